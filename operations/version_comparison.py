"""`rankone compare`: one version of a registered model against another, as a table and as a page with pictures."""

import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from operations.models import WIDTH_OF_A_LOG, AsJson, Model, print_json, the_model, version_of
from retrieval import promotion
from retrieval.home import home
from retrieval.registry import ModelVersion

if TYPE_CHECKING:
    from retrieval.comparison import ClassChange
    from retrieval.gate import Check

MOST_SHOWN = 200  # queries of either gallery: a page of 3 MB
CLASSES_SHOWN = 5  # that fall, and that gain


def compare(
    old: Annotated[str, typer.Argument(metavar="A", help="Version or alias to compare with, as if it were champion.")],
    new: Annotated[str, typer.Argument(metavar="B", help="Version or alias that is compared.")],
    model: Model = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page to write; below RANKONE_HOME when left out.")
    ] = None,
    shown: Annotated[int, typer.Option("--queries", min=0, max=MOST_SHOWN, help="Of either gallery.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Compare version B with version A: what the gate would say, and the queries that are fixed and broken.

    Example: [cyan]rankone compare previous champion[/]
    """
    from retrieval.version_comparison import MissingAnswersError, compare_versions

    name = the_model(model)
    aliases = promotion.history(name).aliases
    versions = [named_version(name, text, aliases) for text in (old, new)]
    place = page or home() / "comparisons" / f"{name}-{versions[0].version}-{versions[1].version}.html"
    if place.suffix != ".html":
        raise ValueError(f"--page is '{place}'; name a file that ends in .html.")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what could not be read is told, and is no part of the answer
            found = compare_versions(*versions)
    except MissingAnswersError as error:
        folder = dataset_here(error.dataset_digest)
        advice = how_to_score(error.version, folder, error.dataset_digest, error.pipeline_run)
        raise ValueError(f"{error} {advice}") from None
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(found.page(shown), encoding="utf-8")
    if as_json:
        numbers = {"old": versions[0].version, "new": versions[1].version}
        print_json({"model": name, **numbers, "page": str(place), **found.facts(shown)})
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_LOG
    verdict = found.verdict
    console.print(f"{found.headline}: {verdict.reason}\n", soft_wrap=True)
    console.print(gate_table(verdict.checks))
    if verdict.comparison:
        compared = verdict.comparison
        console.print(
            f"\nOf {compared.queries:,} queries {compared.fixed:,} are fixed and {compared.broken:,} broken "
            f"(McNemar's exact p {compared.p_value:.2g}). R@1 changes by {100 * compared.gain:+.2f} points, 95 % "
            f"interval {100 * compared.low:+.2f} to {100 * compared.high:+.2f}, the wider by class and by query.\n",
            soft_wrap=True,
        )
        console.print(class_table(compared.class_changes, *(f"version {found.version}" for found in versions)))
    console.print(f"\nThe page with the queries fixed and broken: {place}", soft_wrap=True)


def named_version(name: str, text: str, aliases: dict[str, int]) -> ModelVersion:
    """The version that a number or an alias names.

    Raises:
        ValueError: there is none.
    """
    if text in aliases:
        return version_of(name, aliases[text])
    if not text.isdigit():
        there = ", ".join(sorted(aliases)) or "none"
        raise ValueError(f"{name} has no alias '{text}'; name a version by its number, or one of its aliases: {there}.")
    return version_of(name, int(text))


def dataset_here(digest: str) -> Path | None:
    """The dataset artifact of this digest, where a run on this machine left one."""
    for path in sorted((home() / "artifacts").glob("*/*/dataset/manifest.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if digest and json.loads(path.read_text()).get("digest") == digest:
                return path.parent
    return None


def how_to_score(version: ModelVersion, folder: Path | None, digest: str, run: str) -> str:
    """What to do where a version has no answers to the test images of a dataset."""
    place = shlex.quote(str(folder)) if folder else "FOLDER"
    line = f"python -m retrieval.scoring --model {version.name} --version {version.version} --dataset {place}"
    said = f"Score version {version.version} on them, where torch is installed:\n    {line}"
    if folder:
        return said
    made = f" of pipeline run {run}" if run else ""
    known = f"with the digest {digest[:12]}" if digest else "that the other version was measured on"
    return f"{said}\nFOLDER is the dataset{made} {known}."


def gate_table(checks: "Sequence[Check]") -> Table:
    """The rules of the gate with what was measured and required."""
    table = _table("rule", "measured", "required", "")
    for check in checks:
        failed = "fails" if check.decides else "noted; does not decide"
        table.add_row(check.rule, check.measured, check.required, "passes" if check.passed else failed)
    return table


def class_table(changes: "Sequence[ClassChange]", old: str, new: str) -> Table:
    """The classes that fall deepest, and those that gain most."""
    table = _table("class", "queries", old, new, "points")
    falls = [change for change in changes if change.change < 0][:CLASSES_SHOWN]
    gains = [change for change in reversed(changes) if change.change > 0][:CLASSES_SHOWN]
    for change in (*falls, *reversed(gains)):
        shares = (f"{share:.1%}" for share in (change.champion, change.candidate))
        table.add_row(change.class_name, f"{change.queries:,}", *shares, f"{100 * change.change:+.2f}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table

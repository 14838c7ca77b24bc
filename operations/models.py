"""What an engineer does with registered models: look, promote, approve, roll back, repair.

On the embedded store, or on the server that MLFLOW_TRACKING_URI names. Every move goes through the model's ledger.
"""

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from components.knobs import check_model_name
from retrieval import promotion, registry
from retrieval.ledger import CHALLENGER, CHAMPION, Entry, Move, check_reason
from retrieval.registry import ModelVersion

DIGITS_OF_A_DIGEST = 12
WIDTH_OF_A_LOG = 160  # columns of a table that no terminal shows
NOTHING = "No model is registered yet"
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # unless told otherwise
MINUTE, HOUR, DAY = 60, 3_600, 86_400

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Registered model; needed only where there are several.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for those who read the history.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    for command in (models, history, promote, approve, rollback, reconcile):
        app.command()(command)


def models(model: Model = None, as_json: AsJson = False) -> None:
    """List the versions of every registered model: aliases, R@1 with its interval, data, age."""
    with impatience():
        names = registry.registered_models() if model is None else [the_model(model)]
        listed = {name: promotion.history(name) for name in names}
        rows = [describe(version, listed[name].aliases) for name in names for version in registry.versions_of(name)]
    notices = [f"{name}: {notice}" for name in names for notice in listed[name].notices]
    if as_json:
        print_json({"versions": rows, "notices": notices})
        return
    if not rows:
        print(f"{NOTHING}; `rankone run` trains, judges and registers one.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "version", "aliases", "R@1", "95 % interval", "data", "age", "the gate said"):
        table.add_column(column, overflow="fold")
    for row in rows:
        shares = [percent(row[name]) for name in ("recall_at_1", "recall_at_1_low", "recall_at_1_high")]
        interval = f"{shares[1]} to {shares[2]}" if shares[1] else ""
        cells = [row["model"], str(row["version"]), ", ".join(row["aliases"]), shares[0], interval]
        table.add_row(*cells, row["data"][:DIGITS_OF_A_DIGEST], age_of(row["age_seconds"]), row["outcome"])
    show(table, notices)


def history(model: Model = None, as_json: AsJson = False) -> None:
    """Tell who made which version champion, when and why."""
    with impatience():
        if model is None and not registry.registered_models():
            print_no_history(as_json)
            return
        name = the_model(model)
        found = promotion.history(name)
    if as_json:
        rows = {alias: [row_of(entry) for entry in getattr(found, alias)] for alias in (CHAMPION, CHALLENGER)}
        print_json({"model": name, **rows, "aliases": found.aliases, "notices": found.notices})
        return
    if not found.champion and not found.challenger:
        print(f"{name} has no history yet: no version was ever champion.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("alias", "entry", "when (UTC)", "what", "from", "to", "by", "why"):
        table.add_column(column, overflow="fold")
    for alias, entries in ((CHALLENGER, found.challenger), (CHAMPION, found.champion)):
        for entry in entries:
            when = entry.at.replace("T", " ").rstrip("Z")
            versions = (str(entry.before or ""), str(entry.to or ""))
            table.add_row(alias, str(entry.number), when, entry.action, *versions, entry.by, entry.why)
    show(table, [f"{name}: {notice}" for notice in found.notices])


def promote(
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    reason: Reason,
    into: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Copy it, files and all, into this registered model first.")
    ] = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion, whatever the gate said.

    Example, from development to production: [cyan]rankone promote 7 --into prod.digits --reason "Release 12"[/]
    """
    name = the_model(model)
    found = version_of(name, version)
    notices = (
        [f"the gate rejected it: {found.tags.get('rankone.reason', '')}"] if outcome_of(found) == "rejected" else []
    )
    if into is not None:
        check_model_name(into, "--into")
        check_reason(reason)
        copied = registry.copy_version(name, version, into)
        notices.append(f"{name} version {version} was copied: it is version {copied.version} of {into}")
        name, version = into, copied.version
    report(name, promotion.promote(name, version, reason, by_hand=True), as_json, notices)


def approve(reason: Reason, model: Model = None, as_json: AsJson = False) -> None:
    """Make the challenger champion: what the gate let through with promote_mode=manual, and a person looked at."""
    name = the_model(model)
    report(name, promotion.approve(name, reason), as_json)


def rollback(
    reason: Reason,
    to: Annotated[int | None, typer.Option(min=1, help="An earlier champion; the one before when left out.")] = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier champion.

    Example: [cyan]rankone rollback --reason "It takes boots for sandals"[/]
    """
    name = the_model(model)
    report(name, promotion.rollback(name, reason, to), as_json)


def reconcile(
    adopt: Annotated[bool, typer.Option(help="Keep what was moved by hand, and write it into the ledger.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; needed with --adopt.")] = "",
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Bring the aliases to where the ledger says, after somebody moved them by hand or a process stopped halfway."""
    name = the_model(model)
    repairs = promotion.reconcile(name, adopt, reason)
    if as_json:
        print_json({"model": name, "repairs": [asdict(repair) for repair in repairs]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("alias", "was at", "is at", "what was done"):
        table.add_column(column, overflow="fold")
    for repair in repairs:
        table.add_row(repair.alias, str(repair.found or "no version"), str(repair.now or "no version"), repair.did)
    show(table, [])


@contextlib.contextmanager
def impatience() -> Iterator[None]:
    """Give up on a server that does not answer within seconds: MLflow would ask for minutes, and a monitor waits."""
    new = {name: text for name, text in IMPATIENT.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@impatience()
def the_model(name: str | None) -> str:
    """The model that is meant: the one that was named, or the only one.

    It is the first question of every command, so that a server which does not answer is found here.

    Raises:
        ValueError: there is none, or there are several.
        TrackingError: MLflow does not answer.
    """
    names = registry.registered_models()
    if name in names:
        return name
    listed = ", ".join(names)
    if name is not None:
        raise ValueError(f"There is no registered model '{name}'; there is: {listed or 'none'}.")
    if not names:
        raise ValueError(f"{NOTHING}; `rankone run` trains, judges and registers one.")
    if len(names) > 1:
        raise ValueError(f"There are several registered models; name one of them with --model: {listed}.")
    return names[0]


def version_of(name: str, number: int) -> ModelVersion:
    """A version of a model.

    Raises:
        ValueError: there is none of this number.
    """
    found = {version.version: version for version in registry.versions_of(name)}
    if number not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise ValueError(f"{name} has no version {number}; it has: {there}.")
    return found[number]


def describe(version: ModelVersion, aliases: Mapping[str, int]) -> dict[str, Any]:
    """A version as a row, for programs; shares that are not known are None."""
    ends = {name: share(version.tags.get(f"rankone.{name}")) for name in ("recall_at_1_low", "recall_at_1_high")}
    return {
        "model": version.name,
        "version": version.version,
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
        "recall_at_1": share(version.tags.get("rankone.recall_at_1")),
        **ends,
        "queries": version.evidence.queries,
        "data": version.tags.get("rankone.dataset_digest", ""),
        "evaluation": version.tags.get("rankone.evaluation_digest", ""),
        "outcome": outcome_of(version),
        "age_seconds": round(time.time() - version.created),
        "registered": f"{datetime.datetime.fromtimestamp(version.created, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def print_no_history(as_json: bool) -> None:
    """Tell that no model has a history, with the names that one would have."""
    if as_json:
        print_json({"model": None, CHAMPION: [], CHALLENGER: [], "aliases": {}, "notices": []})
    else:
        print(f"{NOTHING}, so there is no history.")


def report(name: str, moved: Move, as_json: bool, notices: Sequence[str] = ()) -> None:
    """Print what a move has done."""
    entry = moved.entry
    told = [*notices, *([moved.notice] if moved.notice else [])]
    if as_json:
        row = row_of(entry) if entry else None
        print_json({"model": name, "made": moved.made, "entry": row, "notices": told})
        return
    for notice in told:
        print(f"Mind: {notice}")
    if entry is None or not moved.made:
        print(f"Nothing was moved: {name} version {entry.to if entry else None} is {CHAMPION} already.")
        return
    was = f"version {entry.before} was" if entry.before else "there was none"
    print(f"{name}: version {entry.to} is {CHAMPION} now; {was} before.")
    print(f"Entry {entry.number} of the ledger: {entry.action} by {entry.by} at {entry.at}: {entry.why}")
    print(f"What serves models:/{name}@{CHAMPION} takes it when it is started anew.")


def row_of(entry: Entry) -> dict[str, Any]:
    """An entry for programs, with the names that the ledger has."""
    return {"number": entry.number, **json.loads(entry.text())}


def outcome_of(version: ModelVersion) -> str:
    """What the gate said of a version; empty where it was never asked."""
    return version.tags.get("rankone.outcome", "")


def share(text: str | None) -> float | None:
    """A tag as a number; None where it is none."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def percent(value: float | None) -> str:
    """A share for people."""
    return "" if value is None else f"{value:.2%}"


def age_of(seconds: float) -> str:
    """How long ago, in its largest unit."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


def print_json(value: Any) -> None:
    """Print a value for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def show(table: Table, notices: Sequence[str]) -> None:
    """Print a table, and what a person has to mind."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_LOG
    console.print(table)
    for notice in notices:
        console.print(f"\nMind: {notice}")

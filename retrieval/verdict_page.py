"""The page of a verdict: one HTML file, nothing loaded from elsewhere: what was decided and why, and what changed.

For promote's verdict on a candidate, and for `rankone compare`. No torch here.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape

from retrieval.answers import Answers, same_queries
from retrieval.comparison import ClassChange, Comparison
from retrieval.disagreements import Disagreement, Found, disagreements
from retrieval.gate import Outcome, Verdict
from retrieval.pictures import uri_of
from retrieval.registry import ModelVersion, page_address

TEMPLATE = "verdict_page.html"
SHOWN = 12  # queries of each gallery
CLASSES_SHOWN = 10  # that fall, and that gain
TOGETHER = "these steps together"  # label of the sum
LONGEST_TEXT = 400  # characters of a name or value that comes from elsewhere
LINEAGE = {  # what is told of where a version comes from, by its tags
    "data": "rankone.dataset_digest",
    "test images": "rankone.evaluation_digest",
    "model": "rankone.model_digest",
    "parameters": "rankone.parameters_digest",
    "code of promote": "rankone.code_version",
    "pipeline run": "rankone.pipeline_run",
    "its page": "rankone.pipeline_address",
    "copied from": "rankone.copied_from",
}
OF_STEPS = {"code": "rankone.images", "image": "rankone.image_digests"}  # likewise, by step, as JSON


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two models of a page.

    Attributes:
        role: what it is here: "candidate", "champion", or "version 3".
        name: of the registered model and its version, in words.
        address: of its page in MLflow; empty where there is none.
        tags: of the version.
        answers: to the queries compared; None where they are not known.
    """

    role: str
    name: str
    address: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    answers: Answers | None = None


@dataclass(frozen=True)
class Command:
    """A command line to copy, and what it is for."""

    purpose: str
    line: str


@dataclass(frozen=True)
class Shown:
    """One image of a gallery.

    Attributes:
        uri: its picture as a data URI; empty where none was kept.
        class_name: of it.
        similarity: to the query; None for the query itself.
        right: whether it is of the query's class; None for the query itself.
    """

    uri: str
    class_name: str
    similarity: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Row:
    """A query of a gallery with what both models find."""

    query: Shown
    champion: Shown
    candidate: Shown


def render_verdict(
    verdict: Verdict,
    headline: str,
    candidate: Side,
    champion: Side | None,
    pictures: Mapping[str, bytes],
    commands: Sequence[Command] = (),
    shown: int = SHOWN,
) -> str:
    """The page as text. Names of classes come from strangers and tags from anybody: every one of them is escaped.

    Args:
        verdict: of the gate.
        headline: the decision in a few words, with the model's name and version.
        candidate: the model that was judged.
        champion: the one it was judged against; None where there was none.
        pictures: of test images, by sha256; what is missing is said to be.
        commands: to copy.
        shown: queries of each gallery.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": _percent, "points": _points, "shorten": shortened, "web": web_address}
    sides = [candidate] + ([champion] if champion else [])
    fixed, broken = galleries(candidate, champion)
    page = environment.get_template(TEMPLATE).render(
        headline=headline,
        tone=tone(verdict),
        verdict=verdict,
        commands=commands,
        sides=sides,
        links=[web_address(side.address) for side in sides],
        interval=interval_of(candidate.tags),
        fixed=rows_of(fixed, pictures, shown),
        broken=rows_of(broken, pictures, shown),
        fixed_in_all=len(fixed),
        broken_in_all=len(broken),
        compared=champion is not None and comparable(candidate, champion),
        no_pictures=not pictures and bool(fixed or broken),
        classes=changed_classes(verdict.comparison),
        lineage=side_by_side([lineage_rows(side.tags) for side in sides]),
        costs=side_by_side([cost_rows(side.tags) for side in sides]),
    )
    return page.strip() + "\n"


def render_message(headline: str, reason: str) -> str:
    """A page of the verdict's look with a headline and a sentence alone, where there was nothing to judge."""
    text = (Path(__file__).parent / TEMPLATE).read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>") + len("</style>")]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(headline)}</title>\n'
        f'{style}\n</head>\n<body>\n<main>\n<section class="hero">\n<h1>{escape(headline)}</h1>\n'
        f'<p class="reason">{escape(reason)}</p>\n</section>\n</main>\n</body>\n</html>\n'
    )


def commands_for(
    name: str, version: int, verdict: Verdict, previous: int | None, champion: int | None
) -> list[Command]:
    """What a person may want to do after a verdict, as command lines.

    Args:
        name: of the registered model.
        version: that was judged.
        verdict: of the gate.
        previous: what a rollback would return to; None where there is nothing.
        champion: version that it was judged against; None where there was none.
    """
    model = f"--model {shlex.quote(name)}"
    reason = '--reason "..."'
    found = []
    if verdict.outcome in (Outcome.PROMOTED, Outcome.SKIPPED) and previous is not None:
        line = f"rankone rollback --to {previous} {model} {reason}"
        found.append(Command(f"Go back to version {previous}", line))
    if verdict.outcome == Outcome.WAITING:
        found.append(Command("Make it champion", f"rankone approve {model} {reason}"))
    if verdict.outcome == Outcome.REJECTED:
        found.append(Command("Make it champion all the same", f"rankone promote {version} {model} {reason}"))
        if champion:
            found.append(Command("Undo that again", f"rankone rollback --to {champion} {model} {reason}"))
    if champion and verdict.outcome != Outcome.SKIPPED:
        found.append(Command("Compare the two again", f"rankone compare {champion} {version} {model}"))
    return found


def side_of(role: str, found: ModelVersion, answers: Answers | None) -> Side:
    """A version as a page shows it."""
    address = page_address(found.name, found.version)
    return Side(role, f"{found.name} version {found.version}", address, found.tags, answers)


def galleries(candidate: Side, champion: Side | None) -> tuple[list[Disagreement], list[Disagreement]]:
    """The queries fixed and broken; none where the two cannot be compared."""
    if champion is None or not comparable(candidate, champion):
        return [], []
    assert candidate.answers is not None
    assert champion.answers is not None
    return disagreements(candidate.answers, champion.answers)


def comparable(candidate: Side, champion: Side) -> bool:
    """Whether both answered the same queries."""
    one, other = candidate.answers, champion.answers
    return one is not None and other is not None and same_queries(one, other)


def rows_of(found: Sequence[Disagreement], pictures: Mapping[str, bytes], most: int) -> list[Row]:
    """The queries to show, those first of which all three pictures were kept; otherwise in the order given."""

    def missing(pair: Disagreement) -> int:
        return sum(image not in pictures for image in (pair.image, pair.champion.image, pair.candidate.image))

    chosen = sorted(found, key=missing)[:most]
    return [
        Row(
            Shown(_uri(pictures, pair.image), shortened(pair.class_name)),
            _shown(pair.champion, pictures),
            _shown(pair.candidate, pictures),
        )
        for pair in chosen
    ]


def changed_classes(found: Comparison | None, most: int = CLASSES_SHOWN) -> dict[str, list[ClassChange]]:
    """The classes that fall deepest and those that gain most."""
    changes = found.class_changes if found else ()
    return {
        "falls": [change for change in changes if change.change < 0][:most],
        "gains": [change for change in reversed(changes) if change.change > 0][:most],
    }


def lineage_rows(tags: Mapping[str, str]) -> dict[str, str]:
    """Where a version comes from, as its tags say: label and text; what they do not say is left out."""
    rows = {label: tags[tag] for label, tag in LINEAGE.items() if tags.get(tag)}
    for what, tag in OF_STEPS.items():
        rows |= {f"{what} of {step}": str(value) for step, value in _of_steps(tags, tag).items()}
    return {label: shortened(text) for label, text in rows.items()}


def cost_rows(tags: Mapping[str, str]) -> dict[str, str]:
    """What a version cost, as its tags say: by step the seconds and the device, and the images trained on.

    A step that was taken from the cache took no time in this run, and is not told of.
    """
    seconds, devices = _of_steps(tags, "rankone.step_seconds"), _of_steps(tags, "rankone.devices")
    numbers = {step: value for step, value in seconds.items() if isinstance(value, int | float)}
    rows = {}
    if tags.get("rankone.training_images", "").isdigit():
        rows["images trained on"] = f"{int(tags['rankone.training_images']):,}"
    for step, value in numbers.items():
        rows[step] = f"{value:,.1f} s" + (f" on {devices[step]}" if devices.get(step) else "")
    if numbers:
        rows[TOGETHER] = f"{sum(numbers.values()):,.1f} s"
    return {label: shortened(text) for label, text in rows.items()}


def side_by_side(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str | None]]]:
    """Rows of several versions as one table: a label, and its text for each; None where one does not say.

    In the order of who says most, and the sum at the end.
    """
    labels = dict.fromkeys(label for told in sorted(rows, key=len, reverse=True) for label in told)
    labels |= {TOGETHER: labels.pop(TOGETHER)} if TOGETHER in labels else {}
    return [(label, [told.get(label) for told in rows]) for label in labels]


def interval_of(tags: Mapping[str, str]) -> tuple[float, float] | None:
    """The 95 % interval of R@1, as a version's tags say it."""
    try:
        return float(tags["rankone.recall_at_1_low"]), float(tags["rankone.recall_at_1_high"])
    except (KeyError, ValueError):
        return None


def tone(verdict: Verdict) -> str:
    """How the page colours the decision."""
    tones = {Outcome.PROMOTED: "right", Outcome.WAITING: "mark", Outcome.REJECTED: "wrong", Outcome.SKIPPED: "soft"}
    return tones[verdict.outcome]


def web_address(text: str) -> str:
    """The address where it is one of the web; else empty, so that no page links to whatever a tag says."""
    parts = urlsplit(text)
    return text if parts.scheme in ("http", "https") and parts.netloc else ""


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text that is not too long for a table."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def sections_of(
    candidate: Side, champion: Side | None, commands: Iterable[Command]
) -> dict[str, list[tuple[str, str]]]:
    """What the page tells beside the gate's table, for a page in Markdown: by title, rows of label and text."""
    sides = [side for side in (candidate, champion) if side]
    links = [
        (side.role, f"[{side.name}]({side.address})" if web_address(side.address) else side.name) for side in sides
    ]
    found = {
        "Versions": links,
        "Commands": [(command.purpose, f"`{command.line}`") for command in commands],
        "Cost": list(cost_rows(candidate.tags).items()),
        "Lineage": list(lineage_rows(candidate.tags).items()),
    }
    return {title: rows for title, rows in found.items() if rows}


def _of_steps(tags: Mapping[str, str], tag: str) -> dict[str, Any]:
    """A tag that holds JSON by step; empty where it does not."""
    try:
        value = json.loads(tags.get(tag, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _shown(found: Found, pictures: Mapping[str, bytes]) -> Shown:
    return Shown(_uri(pictures, found.image), shortened(found.class_name), found.similarity, found.right)


def _uri(pictures: Mapping[str, bytes], image: str) -> str:
    return uri_of(pictures[image]) if image in pictures else ""


def _percent(share: float, digits: int = 2) -> str:
    return f"{share:.{digits}%}"


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+.2f}"

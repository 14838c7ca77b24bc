"""What the gate found, written down: as JSON for programs and as a page of markdown for people. No torch here."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from retrieval.comparison import ClassChange, Comparison
from retrieval.evidence import Evidence
from retrieval.gate import Check, Verdict
from retrieval.model_card import plain, shortened

CLASSES_SHOWN = 5  # that fall, and that gain
LONGEST = 8_000  # characters; what MLflow takes as a run's description
LONGEST_NAME = 200  # characters of a class's name


def facts_of(verdict: Verdict) -> dict[str, Any]:
    """All that the gate was given and found, but the single answers, as plain JSON; what is no number is null."""
    found: dict[str, Any] = {
        "outcome": str(verdict.outcome),
        "rule": str(verdict.rule),
        "reason": verdict.reason,
        "candidate": _evidence(verdict.candidate),
        "champion": _evidence(verdict.champion) if verdict.champion else None,
        "thresholds": asdict(verdict.thresholds),
        "checks": [asdict(check) for check in verdict.checks],
        "comparison": asdict(verdict.comparison) if verdict.comparison else None,
    }
    return _finite(found)


def page_of(verdict: Verdict, headline: str, sections: Mapping[str, Sequence[tuple[str, str]]] | None = None) -> str:
    """The gate's page in Markdown, of 8,000 characters at most; its first line says the decision and why.

    Args:
        verdict: of the gate.
        headline: the decision in a few words, with the model's name and version.
        sections: what else there is to tell, as rows of label and text by title.
    """
    parts = [
        f"**{headline}**: {_escaped(verdict.reason)}",
        _models(verdict.candidate, verdict.champion),
    ]
    if verdict.checks:
        parts.append(_table(("rule", "measured", "required", ""), [_line(check) for check in verdict.checks]))
    if found := verdict.comparison:
        parts.append(
            f"Of {found.queries:,} queries {found.fixed:,} are fixed and {found.broken:,} broken (McNemar's exact p "
            f"{found.p_value:.2g}). R@1 changes by {_points(found.gain)}, 95 % interval {_points(found.low)} to "
            f"{_points(found.high)}, the wider by class and by query."
        )
        falls = [change for change in found.class_changes if change.change < 0][:CLASSES_SHOWN]
        gains = [change for change in reversed(found.class_changes) if change.change > 0][:CLASSES_SHOWN]
        parts.append(_falls(found, verdict.thresholds.maximum_class_drop))
        parts += [_classes(title, changes) for title, changes in (("falls", falls), ("gains", gains)) if changes]
    for title, rows in (sections or {}).items():
        parts.append(f"### {title}\n\n" + _table(("", ""), rows))
    return shortened("\n\n".join(parts) + "\n", LONGEST)


def _models(candidate: Evidence, champion: Evidence | None) -> str:
    columns = [candidate] + ([champion] if champion else [])
    names = ["", "candidate"] + ([f"champion, version {champion.version or 'unknown'}"] if champion else [])
    rows = [
        ["R@1", *(f"{model.recall_at_1:.2%}" for model in columns)],
        ["queries", *(f"{model.queries:,}" for model in columns)],
        ["evaluation", *(model.evaluation_digest[:12] or "unknown" for model in columns)],
        ["numbers in an embedding", *(f"{model.dimension:,}" if model.dimension else "unknown" for model in columns)],
        ["images/s embedded", *(_speed(model.images_per_second) for model in columns)],
    ]
    return _table(names, rows)


def _speed(images_per_second: float | None) -> str:
    return "not measured" if images_per_second is None else f"{images_per_second:,.0f}"


def _line(check: Check) -> list[str]:
    if check.passed:
        return [check.rule, check.measured, check.required, "passes"]
    return [check.rule, check.measured, check.required, "**fails**" if check.decides else "noted; does not decide"]


def _falls(found: Comparison, most: float) -> str:
    falls = [change.change for change in found.class_changes if change.change < 0]
    deep = sum(fall < -most for fall in falls)
    return f"{len(falls):,} of {len(found.class_changes):,} classes fall, {deep:,} by more than {_points(most)[1:]}."


def _classes(title: str, changes: Sequence[ClassChange]) -> str:
    rows = [
        [
            plain(change.class_name, LONGEST_NAME),
            f"{change.queries:,}",
            f"{change.champion:.1%}",
            f"{change.candidate:.1%}",
        ]
        for change in changes
    ]
    return _table((f"class that {title}", "queries", "champion", "candidate"), rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """What would begin a tag or end a cell, escaped where it is not yet."""
    return re.sub(r"(?<!\\)([<|])", r"\\\1", text)


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+.2f} points"


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        field.name: getattr(evidence, field.name)
        for field in fields(evidence)
        if field.name not in ("correct", "classes")
    }


def _finite(value: Any) -> Any:
    """The same, with None for every number that JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Two versions of a registered model, judged by the gate as if one were candidate against the other. No torch here.

What they answered lies with the versions, and so do pictures of what they were asked: the dataset need not be there.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.answer_records import evaluations_of, find_answers, find_pictures
from retrieval.answers import Answers, evidence_from, same_queries
from retrieval.disagreements import Disagreement
from retrieval.gate import Outcome, Thresholds, Verdict, decide
from retrieval.gate_report import facts_of
from retrieval.registry import ModelVersion, fetch_file
from retrieval.tracking import PIPELINE_RUN, exchange_folder
from retrieval.verdict_page import Side, galleries, render_verdict, side_of

DECISION = "decision.json"  # of the run that registered a version
DIGITS_OF_A_DIGEST = 12


@dataclass(frozen=True, eq=False)
class VersionComparison:
    """What the gate says of one version against another.

    Attributes:
        evaluation_digest: of the test images that both answered.
        headline: the verdict in a few words.
        verdict: of the gate; its candidate is `new`, its champion `old`.
        old: the version that is compared with.
        new: the version that is compared.
        pictures: of test images, by sha256, that were kept with either.
    """

    evaluation_digest: str
    headline: str
    verdict: Verdict
    old: Side
    new: Side
    pictures: Mapping[str, bytes]

    def page(self, shown: int) -> str:
        """As HTML, with so many queries of either gallery."""
        return render_verdict(self.verdict, self.headline, self.new, self.old, self.pictures, (), shown)

    def facts(self, shown: int) -> dict[str, Any]:
        """As plain JSON, with so many of the queries fixed and broken."""
        fixed, broken = galleries(self.new, self.old)
        rows = {"fixed": _rows(fixed[:shown]), "broken": _rows(broken[:shown])}
        return facts_of(self.verdict) | {
            "headline": self.headline,
            "evaluation_digest": self.evaluation_digest,
            "queries": rows,
            "pictures_kept": len(self.pictures),
        }


class MissingAnswersError(ValueError):
    """No test images were answered by both versions.

    Attributes:
        version: the one to score.
        dataset_digest: of the dataset on whose test images to score it.
        pipeline_run: that made this dataset; empty when unknown.
    """

    def __init__(self, message: str, version: ModelVersion, other: ModelVersion) -> None:
        super().__init__(message)
        self.version = version
        self.dataset_digest = other.tags.get("rankone.dataset_digest", "")
        self.pipeline_run = other.tags.get(PIPELINE_RUN, "")


def compare_versions(old: ModelVersion, new: ModelVersion) -> VersionComparison:
    """Judge one version against another on test images that both answered.

    Those that the new one was registered with, where the old one answered them too; else those of the old one; else any
    that both answered.

    Raises:
        ValueError: it is one version.
        MissingAnswersError: no test images were answered by both.
    """
    if old.version == new.version:
        raise ValueError(f"Both are version {old.version} of {old.name}; name two versions.")
    theirs, ours = common_answers(old, new)
    evidence = replace(evidence_from(theirs), version=str(old.version))
    verdict = decide(evidence_from(ours), evidence, thresholds_of(new))
    pictures = {**find_pictures(old, ours.evaluation_digest), **find_pictures(new, ours.evaluation_digest)}
    return VersionComparison(
        evaluation_digest=ours.evaluation_digest,
        headline=headline(verdict, old, new),
        verdict=verdict,
        old=side_of(f"version {old.version}", old, theirs),
        new=side_of(f"version {new.version}", new, ours),
        pictures=pictures,
    )


def common_answers(old: ModelVersion, new: ModelVersion) -> tuple[Answers, Answers]:
    """What both versions answered to the same queries.

    Raises:
        MissingAnswersError: there is none.
    """
    for digest in _common_evaluations(old, new):
        theirs, ours = find_answers(old, digest), find_answers(new, digest)
        if theirs is not None and ours is not None and same_queries(theirs, ours):
            return theirs, ours
    known = [f"version {found.version}: {_short(evaluations_of(found))}" for found in (old, new)]
    raise MissingAnswersError(
        f"Versions {old.version} and {new.version} of {old.name} have no answers to the same test images "
        f"({'; '.join(known)}), so that they cannot be compared query by query.",
        old,
        new,
    )


def thresholds_of(found: ModelVersion) -> Thresholds:
    """What the gate asked when it judged a version: as its decision says, else its tags, else the defaults."""
    with exchange_folder() as temporary:
        path = fetch_file(found, DECISION, Path(temporary))
        try:
            return Thresholds(**json.loads(path.read_text(encoding="utf-8"))["thresholds"])  # type: ignore[union-attr]
        except (AttributeError, KeyError, TypeError, ValueError):
            pass  # it was registered by hand, its run is gone, or its decision is of another format
    try:
        floor, gain = (float(found.tags.get(f"rankone.{name}", "0")) for name in ("floor", "minimum_gain"))
        return Thresholds(floor, gain)
    except ValueError:
        return Thresholds(floor=0.0)


def headline(verdict: Verdict, old: ModelVersion, new: ModelVersion) -> str:
    """The verdict in a few words."""
    which = f"{new.name} version {new.version}"
    if verdict.outcome == Outcome.PROMOTED:
        return f"{which} would be promoted over version {old.version}"
    if verdict.outcome == Outcome.SKIPPED:
        return f"{which} holds the same model as version {old.version}"
    return f"{which} would be rejected against version {old.version} ({verdict.rule})"


def _common_evaluations(old: ModelVersion, new: ModelVersion) -> Iterator[str]:
    common = set(evaluations_of(old)) & set(evaluations_of(new))
    preferred = [found.evidence.evaluation_digest for found in (new, old)]
    yield from (digest for digest in dict.fromkeys([*preferred, *sorted(common)]) if digest in common)


def _short(digests: list[str]) -> str:
    return ", ".join(digest[:DIGITS_OF_A_DIGEST] for digest in digests) or "none"


def _rows(found: list[Disagreement]) -> list[dict[str, Any]]:
    return [
        {
            "image": pair.image,
            "class_name": pair.class_name,
            "old": vars(pair.champion),
            "new": vars(pair.candidate),
        }
        for pair in found
    ]

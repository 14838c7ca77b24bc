"""The gate: whether a model is good enough to be champion. A pure function: the same numbers, the same verdict."""

import math
from dataclasses import dataclass

RULES = ("not_a_number", "floor", "first_model", "other_evaluation", "not_better", "better", "unchanged")
ROUNDING = 1e-12  # 0.92 - 0.91 is a little less than 0.01


@dataclass(frozen=True)
class Evidence:
    """What is known of one model.

    Attributes:
        recall_at_1: share of test queries whose nearest other image is of their class.
        evaluation_digest: of the queries and gallery it was measured on.
        queries: how many they were.
        version: in the registry; empty when unknown.
    """

    recall_at_1: float
    evaluation_digest: str
    queries: int
    version: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        outcome: "promoted" or "rejected"; "unchanged" when the model was champion already.
        rule: which of RULES decided.
        reason: one sentence for a person, with the numbers and what to do.
        candidate: the model that was judged.
        champion: the one it was judged against; None when there was none.
        floor: least R@1 of a champion.
        minimum_gain: least gain over the champion.
    """

    outcome: str
    rule: str
    reason: str
    candidate: Evidence
    champion: Evidence | None
    floor: float
    minimum_gain: float = 0.0


def decide(candidate: Evidence, champion: Evidence | None, floor: float, minimum_gain: float = 0.0) -> Verdict:
    """Judge a candidate.

    It is promoted if its R@1 reaches the floor and, where there is a champion, is above the champion's on the same
    evaluation by at least `minimum_gain`. A tie does not promote. What is no number, or no share, is rejected.

    Raises:
        ValueError: floor or minimum_gain is no number in [0, 1].
    """
    for name, value in {"floor": floor, "minimum_gain": minimum_gain}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a share of queries: give a number from 0 to 1.")
    rule, reason = _judge(candidate, champion, floor, minimum_gain)
    outcome = "promoted" if rule in ("first_model", "better") else "rejected"
    return Verdict(outcome, rule, reason, candidate, champion, floor, minimum_gain)


def _judge(candidate: Evidence, champion: Evidence | None, floor: float, minimum_gain: float) -> tuple[str, str]:
    new = candidate.recall_at_1
    if not _is_share(candidate):
        return "not_a_number", (
            f"R@1 is {new} over {candidate.queries} queries, which is no share of anything: look into the evaluation's "
            "report and the training curves."
        )
    if new < floor:
        return "floor", (
            f"R@1 {_percent(new)} is below the floor of {_percent(floor)}: train longer, look at the worst classes in "
            "the report, or lower minimum_recall_at_1."
        )
    if champion is None:
        return (
            "first_model",
            f"R@1 {_percent(new)} reaches the floor of {_percent(floor)} and there is no champion yet.",
        )
    old = champion.recall_at_1
    if champion.evaluation_digest != candidate.evaluation_digest:
        return "other_evaluation", (
            f"the champion, version {champion.version}, was measured on other queries or another gallery (evaluation "
            f"{_short(champion)}, this one {_short(candidate)}), so its R@1 and {_percent(new)} cannot be compared: "
            "promote under another registered_model, or evaluate the champion's model on this test set and promote it "
            "again, which records the new measure."
        )
    if not _is_share(champion):
        return "not_a_number", (
            f"the R@1 of the champion, version {champion.version}, is recorded as {old}, which is no share: "
            "evaluate and promote it again, or remove the alias by hand."
        )
    if new <= old or new - old < minimum_gain - ROUNDING:
        least = f" by {_points(minimum_gain)}" if minimum_gain else ""
        return "not_better", (
            f"R@1 {_percent(new)} is not{least} above the {_percent(old)} of the champion, version {champion.version}, "
            f"on the same {candidate.queries:,} queries ({_points(new - old, sign=True)}): the champion stays."
        )
    return "better", (
        f"R@1 {_percent(new)} is above the {_percent(old)} of the champion, version {champion.version}, on the same "
        f"{candidate.queries:,} queries ({_points(new - old, sign=True)})."
    )


def _is_share(evidence: Evidence) -> bool:
    return math.isfinite(evidence.recall_at_1) and 0 <= evidence.recall_at_1 <= 1 and evidence.queries > 0


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _points(share: float, sign: bool = False) -> str:
    return f"{100 * share:{'+' if sign else ''}.2f} points"


def _short(evidence: Evidence) -> str:
    return evidence.evaluation_digest[:12] or "unknown"

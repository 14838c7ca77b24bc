"""The gate: whether a model is good enough to be champion. A pure function: the same numbers, the same verdict."""

import enum
import math
from dataclasses import dataclass

import numpy as np

from retrieval.comparison import Comparison, compare
from retrieval.evidence import Evidence

FEW_CLASSES = 5  # of fewer, Student's t makes an interval over classes 3 to 13 standard errors wide on either side
ROUNDING = 1e-12  # 0.92 - 0.91 is a little less than 0.01
NOT_MOVED = "alias_not_moved"  # what the tags of a version name as rule where it won and the ledger refused it
SAME_SHARE = 1e-6  # R@1 was averaged in another order than the answers are here


class Outcome(enum.StrEnum):
    """What became of a candidate."""

    PROMOTED = "promoted"
    WAITING = "waiting"  # it won, and a person decides
    REJECTED = "rejected"
    SKIPPED = "skipped"


class Rule(enum.StrEnum):
    """What decided."""

    NOT_A_NUMBER = "not_a_number"
    UNCHANGED = "unchanged"
    FLOOR = "floor"
    FIRST_MODEL = "first_model"
    OTHER_EVALUATION = "other_evaluation"
    NOT_SCORED = "not_scored"
    FEW_QUERIES = "few_queries"
    NOT_BETTER = "not_better"
    REGRESSION = "regression"
    CLASS_DROP = "class_drop"
    DIMENSION = "dimension"
    SPEED = "speed"
    BETTER = "better"


@dataclass(frozen=True)
class Thresholds:
    """What a champion must reach.

    Attributes:
        floor: least R@1.
        minimum_gain: least gain of R@1 over the champion; at 0 any gain will do. A tie never does.
        maximum_regression: the lower end of the gain's 95 % interval must lie above minus this; at 0 the gain must be
            beyond chance.
        minimum_queries: least number of queries on which two models are compared.
        maximum_class_drop: most that R@1 of one class may fall; deeper falls are reported.
        fail_on_class_drop: whether a deeper fall rejects.
        maximum_dimension: most numbers in an embedding; 0 for no limit.
        minimum_images_per_second: least speed of embedding; 0 for no limit.
    """

    floor: float
    minimum_gain: float = 0.0
    maximum_regression: float = 0.0
    minimum_queries: int = 100
    maximum_class_drop: float = 0.2
    fail_on_class_drop: bool = False
    maximum_dimension: int = 0
    minimum_images_per_second: float = 0.0

    def __post_init__(self) -> None:
        for name in ("floor", "minimum_gain", "maximum_regression", "maximum_class_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it is a share of queries: give a number from 0 to 1."
                )
        for name in ("minimum_queries", "maximum_dimension", "minimum_images_per_second"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more.")


@dataclass(frozen=True)
class Check:
    """One rule, and what it found: a line of the gate's table.

    Attributes:
        rule: its name.
        value: what was measured; None when it was not.
        limit: what it is held against.
        passed: whether it holds.
        measured: the value for a person.
        required: the limit for a person.
        failure: one sentence for a person, without its full stop: what it means if it does not hold, and what to do.
        decides: whether it rejects when it does not hold; else it is only reported.
    """

    rule: Rule
    value: float | None
    limit: float
    passed: bool
    measured: str
    required: str
    failure: str
    decides: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        outcome: promoted, rejected or skipped; waiting, where a model won and a person decides.
        rule: what decided.
        reason: one sentence for a person, with the numbers and what to do.
        candidate: the model that was judged.
        champion: the one it was judged against; None when there was none.
        thresholds: what was asked for.
        checks: every rule that was looked at, in the order in which they decide.
        comparison: query by query; None where the two could not be compared.
    """

    outcome: Outcome
    rule: Rule
    reason: str
    candidate: Evidence
    champion: Evidence | None
    thresholds: Thresholds
    checks: tuple[Check, ...] = ()
    comparison: Comparison | None = None


def decide(candidate: Evidence, champion: Evidence | None, thresholds: Thresholds) -> Verdict:
    """Judge a candidate.

    It is promoted if its R@1 reaches the floor and, where there is a champion, it is better on the same queries by all
    thresholds. A tie does not promote. What is no number, or no share, is rejected. The model that is champion already
    is skipped. Every rule is looked at and reported; the first that fails decides.
    """

    def verdict(outcome: Outcome, rule: Rule, reason: str, *checks: Check, by: Comparison | None = None) -> Verdict:
        return Verdict(outcome, rule, reason, candidate, champion, thresholds, checks, by)

    if flaw := _flaw(candidate):
        advice = "look into the evaluation's report and the training curves"
        return verdict(Outcome.REJECTED, Rule.NOT_A_NUMBER, f"{flaw}: {advice}.")
    new, floor = _percent(candidate.recall_at_1), _floor(candidate, thresholds)
    if champion and champion.model_digest and champion.model_digest == candidate.model_digest:
        reason = f"version {champion.version} holds this very model and is already champion, with R@1 {new}."
        return verdict(Outcome.SKIPPED, Rule.UNCHANGED, reason, floor)
    if champion is None:
        if not floor.passed:
            return verdict(Outcome.REJECTED, Rule.FLOOR, f"{floor.failure}.", floor)
        reason = f"R@1 {new} reaches the floor of {floor.required} and there is no champion yet."
        return verdict(Outcome.PROMOTED, Rule.FIRST_MODEL, reason, floor)
    if obstacle := _obstacle(candidate, champion):
        rule, reason = obstacle if floor.passed else (Rule.FLOOR, floor.failure)
        return verdict(Outcome.REJECTED, rule, f"{reason}.", floor)
    assert candidate.correct is not None
    assert champion.correct is not None
    assert candidate.classes is not None
    found = compare(candidate.correct, champion.correct, candidate.classes)
    checks = (floor, *_comparative(candidate, champion, found, thresholds), *_budgets(candidate, thresholds))
    failed = [check for check in checks if check.decides and not check.passed]
    if failed:
        others = f" (fails as well: {', '.join(check.rule for check in failed[1:])})" if failed[1:] else ""
        return verdict(Outcome.REJECTED, failed[0].rule, f"{failed[0].failure}{others}.", *checks, by=found)
    reason = f"R@1 {new} is above {_champions_share(champion, found)} ({_gain(found)})."
    return verdict(Outcome.PROMOTED, Rule.BETTER, reason, *checks, by=found)


def _flaw(evidence: Evidence) -> str:
    """What makes the numbers of a model none; empty where they are sound."""
    share, queries = evidence.recall_at_1, evidence.queries
    if not (math.isfinite(share) and 0 <= share <= 1 and queries > 0):
        return f"R@1 is {share} over {queries} queries, which is no share of anything"
    if evidence.correct is None:
        return ""
    correct = np.asarray(evidence.correct).astype(float)
    if len(correct) != queries or not np.isin(correct, (0, 1)).all():
        return f"the {len(correct)} answers to {queries} queries are not all right or wrong"
    if abs(correct.mean() - share) > SAME_SHARE:
        return f"R@1 is {share}, and {correct.mean()} of the answers are right"
    return ""


def _obstacle(candidate: Evidence, champion: Evidence) -> tuple[Rule, str] | None:
    """Why the two cannot be compared, with its rule; None where they can."""
    reason = (
        f"the champion, version {champion.version}, has no answers to these {candidate.queries:,} queries (evaluation "
        f"{_short(candidate)}; its own is {_short(champion)}): evaluate could not score it, or ran before it was "
        "champion. Its log says which; run evaluate again, with another champion_fingerprint where a cache keeps it"
    )
    if champion.evaluation_digest != candidate.evaluation_digest:
        return Rule.OTHER_EVALUATION, reason
    if champion.correct is None or candidate.correct is None or candidate.classes is None:
        return Rule.NOT_SCORED, reason
    if flaw := _flaw(champion):
        return Rule.NOT_A_NUMBER, (
            f"of the champion, version {champion.version}, {flaw}: evaluate and promote it again, or remove the alias "
            "by hand"
        )
    return (Rule.OTHER_EVALUATION, reason) if len(champion.correct) != len(candidate.correct) else None


def _floor(candidate: Evidence, thresholds: Thresholds) -> Check:
    new, least = candidate.recall_at_1, thresholds.floor
    failure = (
        f"R@1 {_percent(new)} is below the floor of {_percent(least)}: train longer, look at the worst classes in the "
        "report, or lower minimum_recall_at_1"
    )
    return Check(Rule.FLOOR, new, least, new >= least, _percent(new), _percent(least), failure)


def _comparative(
    candidate: Evidence, champion: Evidence, found: Comparison, thresholds: Thresholds
) -> tuple[Check, ...]:
    """What the comparison is held against."""
    return (
        _enough_queries(champion, found, thresholds),
        _better(candidate, champion, found, thresholds),
        _no_regression(candidate, champion, found, thresholds),
        _no_class_drop(champion, found, thresholds),
    )


def _enough_queries(champion: Evidence, found: Comparison, thresholds: Thresholds) -> Check:
    queries, least = found.queries, thresholds.minimum_queries
    measured, required = f"{queries:,} queries", f"{least:,} queries or more"
    failure = (
        f"this model and the champion, version {champion.version}, can be compared on {measured} and minimum_queries "
        f"asks for {required}: hold more images out for testing, or lower it"
    )
    return Check(Rule.FEW_QUERIES, queries, least, queries >= least, measured, required, failure)


def _better(candidate: Evidence, champion: Evidence, found: Comparison, thresholds: Thresholds) -> Check:
    gain, least = found.gain, thresholds.minimum_gain
    by = f" by {_points(least, sign=False)}" if least else ""
    failure = (
        f"R@1 {_percent(candidate.recall_at_1)} is not{by} above {_champions_share(champion, found)} "
        f"({_points(gain)}): the champion stays"
    )
    passed = gain > 0 and gain >= least - ROUNDING
    required = f"{_points(least)} or more" if least else "above 0"
    return Check(Rule.NOT_BETTER, gain, least, passed, _points(gain), required, failure)


def _no_regression(candidate: Evidence, champion: Evidence, found: Comparison, thresholds: Thresholds) -> Check:
    low, least = found.low, -thresholds.maximum_regression
    required = f"above {_points(least)}"
    failure = (
        f"R@1 {_percent(candidate.recall_at_1)} may be chance against {_champions_share(champion, found)} "
        f"({_gain(found)}): the lower end must be {required}. The champion stays; {_beyond_chance(found)}"
    )
    return Check(Rule.REGRESSION, low, least, low > least, f"lower end {_points(low)}", required, failure)


def _beyond_chance(found: Comparison) -> str:
    """What to do so that smaller gains are told from chance."""
    classes = len(found.class_changes)
    if classes >= FEW_CLASSES:
        return "test on more images to tell smaller gains from chance, or raise maximum_regression"
    risk = ", or raise maximum_regression if you accept the risk" if found.low > -1 else ""
    return (
        f"the interval is over {classes} {'class' if classes == 1 else 'classes'} only, and more classes would narrow "
        f"it more than more images of these: test on more classes{risk}"
    )


def _no_class_drop(champion: Evidence, found: Comparison, thresholds: Thresholds) -> Check:
    worst, least = found.class_changes[0], -thresholds.maximum_class_drop
    measured, required = f"{_points(worst.change)} in class '{worst.class_name}'", f"{_points(least)} or more in each"
    failure = (
        f"R@1 changes by {measured} against the champion, version {champion.version}, and maximum_class_drop asks for "
        f"{required}: look at that class in the report, or set fail_on_class_drop to false"
    )
    passed, decides = worst.change >= least - ROUNDING, thresholds.fail_on_class_drop
    return Check(Rule.CLASS_DROP, worst.change, least, passed, measured, required, failure, decides)


def _budgets(candidate: Evidence, thresholds: Thresholds) -> tuple[Check, ...]:
    """Size and speed, where a limit was set."""
    checks = []
    if most := thresholds.maximum_dimension:
        size = candidate.dimension
        measured, required = f"{size:,} numbers" if size else "not known", f"{most:,} numbers or fewer"
        failure = f"an embedding's length is {measured}, and maximum_dimension asks for {required}: lower dimension"
        checks.append(Check(Rule.DIMENSION, size, most, 0 < size <= most, measured, required, failure))
    if least := thresholds.minimum_images_per_second:
        speed = candidate.images_per_second
        measured, required = "not measured" if speed is None else f"{speed:,.0f} images/s", f"{least:,.0f} or more"
        failure = (
            f"the speed of embedding is {measured}, and minimum_images_per_second asks for {required}: train a smaller "
            "network, or evaluate on the hardware that will serve it"
        )
        passed = speed is not None and speed >= least
        checks.append(Check(Rule.SPEED, speed, least, passed, measured, required, failure))
    return tuple(checks)


def _champions_share(champion: Evidence, found: Comparison) -> str:
    return (
        f"the {_percent(champion.recall_at_1)} of the champion, version {champion.version}, on the same "
        f"{found.queries:,} queries"
    )


def _gain(found: Comparison) -> str:
    return f"{_points(found.gain)}, 95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _points(share: float, sign: bool = True) -> str:
    return f"{100 * share + 0.0:{'+' if sign else ''}.2f} points"


def _short(evidence: Evidence) -> str:
    return evidence.evaluation_digest[:12] or "unknown"

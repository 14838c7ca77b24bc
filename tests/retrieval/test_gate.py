import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evidence import Evidence
from retrieval.gate import Outcome, Rule, Thresholds, decide

SHARES = st.floats(0, 1)
CLASSES = np.repeat([f"class {number:02d}" for number in range(50)], 20)
QUERIES = len(CLASSES)
FLOOR = Thresholds(0.9)


def share_of(recall: float, digest: str = "a" * 64, version: str = "", **facts: Any) -> Evidence:
    """A model of which only the share is known."""
    return Evidence(recall, digest, QUERIES, version, **facts)


def found(right: int, version: str = "7", shift: int = 0, round_classes: bool = True, **facts: Any) -> Evidence:
    """A model that answers so many queries rightly; the wrong ones go round the classes, or fill the first of them."""
    order = np.arange(QUERIES)
    if round_classes:
        order = order.reshape(50, 20).T.ravel()  # one of each class, then the next of each
    correct = np.ones(QUERIES, bool)
    correct[np.roll(order, shift)[: QUERIES - right]] = False
    facts = {"correct": correct, "classes": CLASSES} | facts
    return Evidence(right / QUERIES, "a" * 64, QUERIES, version, **facts)


@pytest.mark.parametrize(
    ("candidate", "champion", "thresholds", "outcome", "rule"),
    [
        (share_of(0.9), None, {}, "promoted", "first_model"),
        (share_of(0.8999), None, {}, "rejected", "floor"),
        (found(950), found(920), {}, "promoted", "better"),
        (found(950), found(950), {}, "rejected", "not_better"),
        (found(950, shift=200), found(950), {}, "rejected", "not_better"),  # a tie of other queries
        (found(950), found(960), {}, "rejected", "not_better"),
        (found(920), found(910), {"minimum_gain": 0.01}, "promoted", "better"),  # 0.92 - 0.91 < 0.01 in floats
        (found(919), found(910), {"minimum_gain": 0.01}, "rejected", "not_better"),
        (found(951), found(950), {}, "rejected", "regression"),  # one query of a thousand may be chance
        (found(951), found(950), {"maximum_regression": 0.005}, "promoted", "better"),
        (found(951, round_classes=False), found(950), {"maximum_regression": 0.005}, "rejected", "regression"),
        (found(890), found(800), {}, "rejected", "floor"),
        (found(950), found(920), {"minimum_queries": 1_001}, "rejected", "few_queries"),
        (found(950), found(920), {"minimum_queries": 1_000}, "promoted", "better"),
        (found(950, dimension=256), found(920), {"maximum_dimension": 256}, "promoted", "better"),
        (found(950, dimension=257), found(920), {"maximum_dimension": 256}, "rejected", "dimension"),
        (found(950), found(920), {"maximum_dimension": 256}, "rejected", "dimension"),
        (found(950, images_per_second=99.0), found(920), {"minimum_images_per_second": 99.0}, "promoted", "better"),
        (found(950, images_per_second=98.9), found(920), {"minimum_images_per_second": 99.0}, "rejected", "speed"),
        (found(950), found(920), {"minimum_images_per_second": 99.0}, "rejected", "speed"),
        (share_of(0.99), share_of(0.91, "b" * 64), {}, "rejected", "other_evaluation"),
        (found(990), share_of(0.91), {}, "rejected", "not_scored"),
        (share_of(0.99), found(910), {}, "rejected", "not_scored"),
        (share_of(0.8), share_of(0.91, "b" * 64), {}, "rejected", "floor"),
        (share_of(math.nan), None, {}, "rejected", "not_a_number"),
        (share_of(math.inf), None, {}, "rejected", "not_a_number"),
        (share_of(99.0), None, {}, "rejected", "not_a_number"),
        (Evidence(0.95, "a", 0), None, {}, "rejected", "not_a_number"),
        (found(950), found(920, correct=np.full(QUERIES, np.nan)), {}, "rejected", "not_a_number"),
        (found(950, correct=np.full(QUERIES, np.nan)), found(920), {}, "rejected", "not_a_number"),
        (found(950, correct=np.full(QUERIES, 0.95)), None, {}, "rejected", "not_a_number"),
        (found(950, correct=np.ones(QUERIES)), None, {}, "rejected", "not_a_number"),  # 95 % and 100 %
        (found(950, correct=np.ones(3)), None, {}, "rejected", "not_a_number"),
        (found(950, model_digest="m"), found(920, model_digest="m"), {}, "skipped", "unchanged"),
        (share_of(0.5, model_digest="m"), share_of(0.5, model_digest="m"), {}, "skipped", "unchanged"),
        (share_of(0.95, model_digest=""), found(920, model_digest=""), {}, "rejected", "not_scored"),
    ],
)
def test_table_of_verdicts(
    candidate: Evidence, champion: Evidence | None, thresholds: dict[str, Any], outcome: str, rule: str
) -> None:
    verdict = decide(candidate, champion, Thresholds(0.9, **thresholds))
    assert (verdict.outcome, verdict.rule) == (outcome, rule)
    failed = [check.rule for check in verdict.checks if check.decides and not check.passed]
    if verdict.outcome == Outcome.PROMOTED:
        assert not failed
    elif verdict.outcome == Outcome.REJECTED and failed:
        assert verdict.rule == failed[0]


def test_reason_carries_the_numbers_and_the_way_out() -> None:
    assert decide(share_of(0.5), None, FLOOR).reason == (
        "R@1 50.00% is below the floor of 90.00%: train longer, look at the worst classes in the report, "
        "or lower minimum_recall_at_1."
    )
    assert decide(found(950), found(940), Thresholds(0.9, minimum_gain=0.02)).reason == (
        "R@1 95.00% is not by 2.00 points above the 94.00% of the champion, version 7, on the same 1,000 queries "
        "(+1.00 points): the champion stays."
    )
    better = decide(found(950), found(920), FLOOR).reason
    assert better.startswith(
        "R@1 95.00% is above the 92.00% of the champion, version 7, on the same 1,000 queries (+3.00 points, 95 % int"
    )
    assert decide(found(951), found(950), FLOOR).reason.endswith(
        "(+0.10 points, 95 % interval -0.18 to +0.38): the lower end must be above +0.00 points. The champion stays; "
        "test on more images to tell smaller gains from chance, or raise maximum_regression."
    )
    other = decide(share_of(0.95), share_of(0.94, "b" * 64, "7"), FLOOR).reason
    assert (
        "version 7, has no answers to these 1,000 queries (evaluation aaaaaaaaaaaa; its own is bbbbbbbbbbbb)" in other
    )
    assert "champion_fingerprint" in other
    tie = decide(found(950), found(950), Thresholds(0.9, maximum_dimension=8)).reason
    assert tie.endswith("the champion stays (fails as well: regression, dimension).")


def gained_by(classes: int, *, in_first: int, in_others: int) -> str:
    """The reason about a model that gains so many of a hundred queries, in the first class and in each other one."""
    names = np.repeat([f"class {number}" for number in range(classes)], 100)
    old, new = np.zeros((2, classes, 100), bool)
    old[:, :50] = True
    new[:, : 50 + in_others] = True
    new[0, : 50 + in_first] = True
    sides = (Evidence(float(s.mean()), "a", s.size, "7", correct=s.ravel(), classes=names) for s in (new, old))
    verdict = decide(*sides, Thresholds(0.0))
    assert verdict.rule == Rule.REGRESSION
    return verdict.reason


@pytest.mark.parametrize("classes", [2, 4])
def test_who_tests_on_few_classes_is_told_to_take_more_of_them(classes: int) -> None:
    assert gained_by(classes, in_first=10, in_others=1).endswith(
        f"The champion stays; the interval is over {classes} classes only, and more classes would narrow it more than "
        "more images of these: test on more classes, or raise maximum_regression if you accept the risk."
    )


def test_five_classes_are_not_few() -> None:
    reason = gained_by(5, in_first=10, in_others=1)
    assert reason.endswith("test on more images to tell smaller gains from chance, or raise maximum_regression.")


def test_no_knob_is_named_where_none_helps() -> None:
    told = "narrow it more than more images of these: test on more classes."
    alone = gained_by(1, in_first=20, in_others=0)
    assert "the interval is over 1 class only" in alone
    assert alone.endswith(told)
    assert gained_by(2, in_first=50, in_others=-40).endswith(told)  # an interval from -1 to 1


def test_a_class_that_falls_is_reported_and_fails_only_if_asked_to() -> None:
    champion, fallen = found(920), found(980).correct
    assert fallen is not None
    fallen[CLASSES == "class 07"] = np.arange(20) < 12
    candidate = dataclasses.replace(found(980), correct=fallen, recall_at_1=float(fallen.mean()))
    lenient = decide(candidate, champion, FLOOR)
    assert (lenient.outcome, lenient.rule) == ("promoted", "better")
    check = next(check for check in lenient.checks if check.rule == Rule.CLASS_DROP)
    assert (check.passed, check.decides) == (False, False)
    assert check.measured == "-30.00 points in class 'class 07'"
    strict = decide(candidate, champion, dataclasses.replace(FLOOR, fail_on_class_drop=True))
    assert (strict.outcome, strict.rule) == ("rejected", "class_drop")
    assert "-30.00 points in class 'class 07'" in strict.reason
    allowed = dataclasses.replace(FLOOR, fail_on_class_drop=True, maximum_class_drop=0.3)
    assert decide(candidate, champion, allowed).rule == "better"


@pytest.mark.parametrize("value", [-0.1, 1.1, 90.0, math.nan])
@pytest.mark.parametrize("name", ["floor", "minimum_gain", "maximum_regression", "maximum_class_drop"])
def test_a_threshold_that_is_no_share_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}.*from 0 to 1"):
        Thresholds(**{"floor": 0.9} | {name: value})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["minimum_queries", "maximum_dimension", "minimum_images_per_second"])
def test_a_threshold_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; give 0 or more"):
        Thresholds(0.9, **{name: value})


NAMES = st.sampled_from(["a", "b", "c"])
ANYTHING = st.floats() | SHARES
THRESHOLDS = st.builds(
    Thresholds,
    SHARES,
    SHARES,
    SHARES,
    st.integers(0, 40),
    SHARES,
    st.booleans(),
    st.integers(0, 300),
    st.floats(0, 1_000),
)


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    """Whatever may be said of a model, sound or not."""
    correct = draw(st.none() | st.lists(st.booleans() | st.sampled_from([0.0, 1.0, math.nan, 2.0]), max_size=30))
    sound = correct and draw(st.booleans())
    return Evidence(
        recall_at_1=float(np.mean(correct)) if sound else draw(ANYTHING),
        evaluation_digest=draw(st.sampled_from(["a" * 64, "b" * 64, ""])),
        queries=len(correct) if sound and correct else draw(st.integers(0, 5)),
        version="3",
        model_digest=draw(st.sampled_from(["", "m", "n"])),
        dimension=draw(st.integers(0, 300)),
        images_per_second=draw(st.none() | st.floats()),
        correct=None if correct is None else np.array(correct, float),
        classes=None if correct is None else draw(st.lists(NAMES, min_size=len(correct), max_size=len(correct))),
    )


@given(evidences(), st.none() | evidences(), THRESHOLDS)
@settings(deadline=None, max_examples=300)
def test_whatever_comes_is_judged_and_only_the_better_is_promoted(
    candidate: Evidence, champion: Evidence | None, thresholds: Thresholds
) -> None:
    verdict = decide(candidate, champion, thresholds)
    assert verdict.reason.endswith(".")
    assert verdict == decide(candidate, champion, thresholds), "the same numbers, the same verdict"
    if verdict.outcome == Outcome.PROMOTED:
        assert thresholds.floor <= candidate.recall_at_1 <= 1
        if champion is not None:
            assert champion.evaluation_digest == candidate.evaluation_digest
            assert champion.recall_at_1 < candidate.recall_at_1 + 1e-6
            assert verdict.comparison is not None
            assert verdict.comparison.gain > 0
            assert verdict.comparison.gain >= thresholds.minimum_gain - 1e-9
            assert verdict.comparison.low > -thresholds.maximum_regression
            assert verdict.comparison.queries >= thresholds.minimum_queries
    elif verdict.outcome == Outcome.SKIPPED:
        assert champion is not None
        assert champion.model_digest == candidate.model_digest != ""
        assert verdict.rule == Rule.UNCHANGED


HITS = st.lists(st.tuples(st.booleans(), st.booleans(), NAMES), min_size=1, max_size=60)


def pair(rows: list[tuple[bool, bool, str]]) -> tuple[Evidence, Evidence]:
    classes = np.array([row[2] for row in rows])
    one, two = (np.array([row[side] for row in rows]) for side in (0, 1))
    return tuple(
        Evidence(float(side.mean()), "a", len(rows), "1", correct=side, classes=classes) for side in (one, two)
    )  # type: ignore[return-value]


@given(HITS, SHARES, SHARES)
@settings(deadline=None)
def test_two_models_are_never_each_better_than_the_other(
    rows: list[tuple[bool, bool, str]], floor: float, regression: float
) -> None:
    one, two = pair(rows)
    thresholds = Thresholds(floor, maximum_regression=regression, minimum_queries=0)
    assert not (decide(one, two, thresholds).outcome == decide(two, one, thresholds).outcome == Outcome.PROMOTED)
    assert decide(one, one, thresholds).outcome == Outcome.REJECTED, "a tie does not promote"


@given(HITS, st.randoms())
@settings(deadline=None)
def test_the_order_of_the_queries_changes_nothing(rows: list[tuple[bool, bool, str]], order: Any) -> None:
    shuffled = rows.copy()
    order.shuffle(shuffled)
    thresholds = Thresholds(0.0, minimum_queries=0)
    first, second = decide(*pair(rows), thresholds), decide(*pair(shuffled), thresholds)
    assert (first.outcome, first.rule, first.comparison) == (second.outcome, second.rule, second.comparison)


@given(HITS, THRESHOLDS, THRESHOLDS)
@settings(deadline=None)
def test_a_lower_bar_never_rejects_what_a_higher_one_promotes(
    rows: list[tuple[bool, bool, str]], one: Thresholds, two: Thresholds
) -> None:
    lower = Thresholds(
        min(one.floor, two.floor),
        min(one.minimum_gain, two.minimum_gain),
        max(one.maximum_regression, two.maximum_regression),
        min(one.minimum_queries, two.minimum_queries),
        max(one.maximum_class_drop, two.maximum_class_drop),
        one.fail_on_class_drop and two.fail_on_class_drop,
    )
    if decide(*pair(rows), one).outcome == Outcome.PROMOTED:
        assert decide(*pair(rows), lower).outcome == Outcome.PROMOTED


@given(SHARES, SHARES, SHARES)
def test_a_first_model_needs_the_floor_only(lower: float, higher: float, floor: float) -> None:
    lower, higher = sorted((lower, higher))
    strict = Thresholds(floor, 0.5, 0.0, 10**6, 0.0, True, 1, 1e6)
    assert (decide(share_of(lower), None, strict).outcome == Outcome.PROMOTED) == (lower >= floor)
    if decide(share_of(lower), None, strict).outcome == Outcome.PROMOTED:
        assert decide(share_of(higher), None, strict).outcome == Outcome.PROMOTED

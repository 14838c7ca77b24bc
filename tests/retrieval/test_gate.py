import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.gate import RULES, Evidence, decide

SHARES = st.floats(0, 1)
ANYTHING = st.floats() | SHARES
EVIDENCE = st.builds(Evidence, ANYTHING, st.sampled_from(["a" * 64, "b" * 64, ""]), st.integers(0, 5), st.just("3"))


def evidence(recall: float, digest: str = "a" * 64, version: str = "") -> Evidence:
    return Evidence(recall, digest, 540, version)


@pytest.mark.parametrize(
    ("candidate", "champion", "gain", "outcome", "rule"),
    [
        (evidence(0.9), None, 0.0, "promoted", "first_model"),
        (evidence(0.8999), None, 0.0, "rejected", "floor"),
        (evidence(0.95), evidence(0.94), 0.0, "promoted", "better"),
        (evidence(0.95), evidence(0.95), 0.0, "rejected", "not_better"),
        (evidence(0.95), evidence(0.96), 0.0, "rejected", "not_better"),
        (evidence(0.92), evidence(0.91), 0.01, "promoted", "better"),  # 0.92 - 0.91 < 0.01 in floats
        (evidence(0.9199), evidence(0.91), 0.01, "rejected", "not_better"),
        (evidence(0.8), evidence(0.7), 0.0, "rejected", "floor"),
        (evidence(0.99), evidence(0.91, "b" * 64), 0.0, "rejected", "other_evaluation"),
        (evidence(math.nan), None, 0.0, "rejected", "not_a_number"),
        (evidence(math.inf), None, 0.0, "rejected", "not_a_number"),
        (evidence(99.0), None, 0.0, "rejected", "not_a_number"),
        (evidence(0.95), evidence(math.nan), 0.0, "rejected", "not_a_number"),
        (Evidence(0.95, "a", 0), None, 0.0, "rejected", "not_a_number"),
    ],
)
def test_table_of_verdicts(
    candidate: Evidence, champion: Evidence | None, gain: float, outcome: str, rule: str
) -> None:
    verdict = decide(candidate, champion, 0.9, gain)
    assert (verdict.outcome, verdict.rule) == (outcome, rule)


def test_reason_carries_the_numbers_and_the_way_out() -> None:
    assert decide(evidence(0.5), None, 0.9).reason == (
        "R@1 50.00% is below the floor of 90.00%: train longer, look at the worst classes in the report, "
        "or lower minimum_recall_at_1."
    )
    assert decide(evidence(0.95), evidence(0.94, version="7"), 0.9, 0.02).reason == (
        "R@1 95.00% is not by 2.00 points above the 94.00% of the champion, version 7, on the same 540 queries "
        "(+1.00 points): the champion stays."
    )
    other = decide(evidence(0.95), evidence(0.94, "b" * 64, "7"), 0.9).reason
    assert "version 7" in other
    assert "cannot be compared" in other
    assert "another registered_model" in other


@pytest.mark.parametrize("value", [-0.1, 1.1, 90.0, math.nan])
def test_a_floor_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        decide(evidence(0.9), None, value)
    with pytest.raises(ValueError, match="from 0 to 1"):
        decide(evidence(0.9), None, 0.9, value)


@given(EVIDENCE, st.none() | EVIDENCE, SHARES, SHARES)
def test_whatever_comes_is_judged_and_only_the_better_is_promoted(
    candidate: Evidence, champion: Evidence | None, floor: float, gain: float
) -> None:
    verdict = decide(candidate, champion, floor, gain)
    assert verdict.rule in RULES
    assert verdict.reason.endswith(".")
    if verdict.outcome == "promoted":
        assert floor <= candidate.recall_at_1 <= 1
        if champion is not None:
            assert champion.evaluation_digest == candidate.evaluation_digest
            assert champion.recall_at_1 < candidate.recall_at_1
            assert candidate.recall_at_1 - champion.recall_at_1 >= gain - 1e-9
    else:
        assert verdict.outcome == "rejected"


@given(SHARES, SHARES, SHARES)
def test_two_models_are_never_each_better_than_the_other(one: float, two: float, floor: float) -> None:
    forth, back = decide(evidence(one), evidence(two), floor), decide(evidence(two), evidence(one), floor)
    assert not (forth.outcome == back.outcome == "promoted")


@given(SHARES, SHARES, st.none() | SHARES, SHARES, SHARES)
def test_a_better_candidate_never_fares_worse(
    lower: float, higher: float, champion: float | None, floor: float, gain: float
) -> None:
    lower, higher = sorted((lower, higher))
    old = None if champion is None else evidence(champion)
    if decide(evidence(lower), old, floor, gain).outcome == "promoted":
        assert decide(evidence(higher), old, floor, gain).outcome == "promoted"

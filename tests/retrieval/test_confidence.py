"""Intervals against their formulas in loops, and the figures the gate relies on."""

import pytest

from retrieval.confidence import verdict, wilson_lower_bound


def test_ninety_per_cent_of_a_thousand_needs_91_5_seen():
    assert wilson_lower_bound(914, 1000) < 0.9 <= wilson_lower_bound(916, 1000)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (3, 7), (450, 500)])
def test_the_wilson_bound_solves_its_own_equation(successes, trials):
    bound = wilson_lower_bound(successes, trials, 0.95)
    share = successes / trials
    z = 1.6448536269514722
    assert share - bound == pytest.approx(z * (bound * (1 - bound) / trials) ** 0.5, abs=1e-9)
    assert 0 <= bound <= share


@pytest.mark.parametrize(
    ("successes", "trials", "said"),
    [
        (916, 1000, "accepted"),
        (914, 1000, "inconclusive"),
        (887, 1000, "inconclusive"),
        (882, 1000, "not accepted"),
        (100, 100, "accepted"),
        (5, 5, "inconclusive"),
        (0, 0, "inconclusive"),
    ],
)
def test_the_verdict_is_inconclusive_where_the_interval_straddles_the_level(successes, trials, said):
    assert verdict(successes, trials, 0.9) == said


@pytest.mark.parametrize("arguments", [(1, 0), (3, 2), (-1, 2), (1, 2, 1.0), (1, 2, 0.3)])
def test_impossible_counts_are_refused(arguments):
    with pytest.raises(ValueError, match=r"trials|level"):
        wilson_lower_bound(*arguments)

"""The acceptance threshold against a loop over every cut."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.thresholds import acceptance_threshold, precision_at

QUERIES = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40)


def by_loop(similarity, correct, level, minimum):
    """Lowest cut whose answered queries, enough of them, are right often enough; and the lowest precision above."""
    best, lowest = None, None
    seen = []
    for cut in sorted(set(similarity), reverse=True):
        right = [c for s, c in zip(similarity, correct, strict=True) if s >= cut]
        if len(right) >= minimum:
            seen.append(sum(right) / len(right))
            if seen[-1] >= level:
                best, lowest = (cut, seen[-1], len(right) / len(correct)), min(seen)
    return best, lowest


@settings(deadline=None)
@given(QUERIES, st.sampled_from([0.3, 0.5, 0.9, 1.0]), st.integers(1, 8))
def test_the_threshold_is_that_of_a_loop(queries, level, minimum):
    similarity, correct = [s / 12 for s, _ in queries], [c for _, c in queries]
    found = acceptance_threshold(np.array(similarity), np.array(correct), level, minimum)
    best, lowest = by_loop(similarity, correct, level, minimum)
    assert found.reached == (best is not None)
    if best is None:
        assert (found.value, found.precision, found.coverage) == (None, None, 0.0)
    else:
        assert (found.value, found.precision, found.coverage) == pytest.approx(best)
        assert found.lowest_precision_above == pytest.approx(lowest)
        assert precision_at(similarity, correct, found.value) == pytest.approx(best[1:])


def test_a_few_lucky_answers_at_the_top_prove_nothing():
    similarity = np.linspace(1, 0, 100)
    correct = np.arange(100) < 10
    assert not acceptance_threshold(similarity, correct, 0.9).reached
    assert acceptance_threshold(similarity, correct, 0.9, minimum_answered=5).reached


def test_the_curve_is_thinned_keeps_the_choice_and_is_plain_json():
    generator = np.random.default_rng(0)
    similarity = generator.random(5000).astype(np.float32)
    correct = generator.random(5000) < similarity
    found = acceptance_threshold(similarity, correct, 0.8)
    assert found.reached
    assert 150 < len(found.curve) <= 200
    assert any(point.threshold == found.value and point.precision == found.precision for point in found.curve)
    assert found.curve[-1].coverage == 1
    assert [point.threshold for point in found.curve] == sorted((p.threshold for p in found.curve), reverse=True)
    assert json.loads(json.dumps(found.curve)) == [list(point) for point in found.curve]


def test_nothing_answered_has_no_precision():
    assert precision_at([0.1, 0.2], [True, False], math.inf) == (None, 0.0)


@pytest.mark.parametrize(
    ("similarity", "correct", "level", "message"),
    [
        ([], [], 0.9, "at least one query"),
        ([0.1], [True, False], 0.9, "one of each"),
        ([0.1, math.nan], [True, False], 0.9, "query 1 is no number"),
        ([0.1], [True], 90, "level is 90"),
    ],
)
def test_bad_input_is_refused(similarity, correct, level, message):
    with pytest.raises(ValueError, match=message):
        acceptance_threshold(similarity, correct, level)


def test_thresholds_and_intervals_need_no_torch():
    program = "import sys, retrieval.thresholds, retrieval.confidence; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""The acceptance threshold against a loop over every cut."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.thresholds import acceptance_threshold, precision_at, threshold_by_trials

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


@settings(deadline=None, max_examples=50)
@given(QUERIES, st.sampled_from([0.3, 0.6, 0.9]), st.integers(1, 6), st.integers(1, 5))
def test_the_trials_are_those_of_a_loop_over_drawn_classes(queries, level, minimum, classes):
    similarity, correct = [s / 12 for s, _ in queries], [c for _, c in queries]
    labels = [number % classes for number in range(len(queries))]
    names = sorted(set(labels))
    draws = np.random.default_rng(3).multinomial(len(names), [1 / len(names)] * len(names), size=40)
    thresholds = []
    for drawn in draws:
        rows = [row for name, times in zip(names, drawn, strict=True) for row in times * members(labels, name)]
        best, _ = by_loop([similarity[r] for r in rows], [correct[r] for r in rows], level, minimum)
        thresholds.append(math.inf if best is None else best[0])
    thresholds.sort()
    found = threshold_by_trials(similarity, correct, labels, level, 40, minimum, seed=3)
    assert found.reached == np.mean([value < math.inf for value in thresholds])
    expected = [None if value == math.inf else value for value in (thresholds[0], thresholds[19], thresholds[38])]
    assert [found.low, found.value, found.high] == expected
    assert found.point == acceptance_threshold(similarity, correct, level, minimum).value


def members(labels, name):
    return [row for row, label in enumerate(labels) if label == name]


def test_the_interval_of_the_threshold_is_around_it_and_open_where_trials_fail():
    generator = np.random.default_rng(0)
    similarity, labels = generator.random(2000), generator.integers(50, size=2000)
    found = threshold_by_trials(similarity, generator.random(2000) < 0.5 + similarity / 2, labels, 0.9)
    assert found.reached == 1
    assert found.low < found.value < found.high
    assert found.low < found.point < found.high
    never = threshold_by_trials(similarity, np.zeros(2000), labels, 0.9)
    assert (never.reached, never.low, never.value, never.high, never.point) == (0, None, None, None, None)
    thirds = np.repeat([[0.1, 0.2, 0.3], [1, 0, 0], [0, 1, 2]], 40, axis=1)
    some = threshold_by_trials(*thirds, 0.9, trials=4000)
    assert some.reached == pytest.approx(1 / 27, abs=0.01)  # a trial that draws the first class thrice
    assert (some.value, some.high) == (None, None)


@pytest.mark.parametrize("classes", [10, 5_000])
def test_200_trials_of_ten_thousand_queries_take_about_a_second(classes):
    generator = np.random.default_rng(0)
    similarity = generator.random(10_000)
    started = time.process_time()
    found = threshold_by_trials(
        similarity, generator.random(10_000) < similarity, generator.integers(classes, size=10_000)
    )
    assert time.process_time() - started < 3
    assert found.count == 200


def test_trials_need_a_label_a_query_and_one_trial():
    with pytest.raises(ValueError, match="trials is 0"):
        threshold_by_trials([0.1], [True], [0], trials=0)
    with pytest.raises(ValueError, match="one a query"):
        threshold_by_trials([0.1], [True], [0, 1])


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

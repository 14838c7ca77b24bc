"""Intervals over classes against drawing them in a loop, and how often they hold the truth."""

import random
import statistics
import time

import numpy as np
import pytest

from retrieval.class_intervals import class_bootstrap_interval


def test_the_interval_is_that_of_drawing_classes_in_a_loop():
    generator = random.Random(0)
    by_class = {c: [generator.random() < 0.3 + 0.05 * c for _ in range(3 + c)] for c in range(10)}
    labels = np.array([c for c, answers in by_class.items() for _ in answers])
    correct = np.array([answer for answers in by_class.values() for answer in answers])
    shares = []
    for _ in range(4000):
        drawn = [answer for c in generator.choices(range(10), k=10) for answer in by_class[c]]
        shares.append(sum(drawn) / len(drawn))
    cuts = statistics.quantiles(shares, n=1_000)
    low, high = class_bootstrap_interval(correct, labels, resamples=20_000)
    # Student's 2.2622 of 9 degrees of freedom, times sqrt(10/9), is a tail of 0.85 % where a normal one has 2.5 %
    assert (low, high) == pytest.approx((cuts[8], cuts[-9]), abs=0.015)


@pytest.mark.parametrize(("classes", "queries"), [(2, 50), (3, 50), (10, 30)])
def test_the_interval_of_few_classes_holds_the_share_as_often_as_it_says(classes, queries):
    generator, missed, labels = np.random.default_rng(0), 0, np.repeat(np.arange(classes), queries)
    for _ in range(400):
        shares = 0.5 + 0.3 * (2 * generator.random(classes) - 1)  # 0.5 on average, of all classes there might be
        low, high = class_bootstrap_interval(generator.random(len(labels)) < shares[labels], labels, resamples=500)
        missed += not low <= 0.5 <= high
    assert missed / 400 <= 0.09  # a plain percentile interval misses it 20 to 47 times in a hundred of 3 and 2 classes


def test_two_classes_that_do_alike_are_no_certainty():
    low, high = class_bootstrap_interval(np.tile(np.arange(50) < 45, 2), np.repeat([0, 1], 50))
    assert low == pytest.approx(1 - 0.174368, abs=1e-4)  # Wilson's for 90 of 100: 0.8256 to 0.9448
    assert high == pytest.approx(0.944771, abs=1e-4)


def test_the_interval_is_seeded_and_wider_than_one_of_single_queries():
    labels = np.repeat(np.arange(20), 50)
    correct = np.repeat(np.arange(20) % 2 == 0, 50)  # classes all right or all wrong
    interval = class_bootstrap_interval(correct, labels, seed=3)
    assert interval == class_bootstrap_interval(correct, labels, seed=3)
    single = class_bootstrap_interval(correct, np.arange(1000), seed=3)
    assert interval[1] - interval[0] > 3 * (single[1] - single[0])


@pytest.mark.parametrize("classes", [100, 10_000])
def test_ten_thousand_resamples_of_ten_thousand_queries_take_no_time(classes):
    generator = np.random.default_rng(0)
    started = time.process_time()
    low, high = class_bootstrap_interval(
        generator.random(10_000) < 0.6, generator.integers(classes, size=10_000), 10_000
    )
    assert time.process_time() - started < 2
    assert 0.55 < low < 0.6 < high < 0.65


def test_one_class_or_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        class_bootstrap_interval(np.ones(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="one length"):
        class_bootstrap_interval(np.ones(3), np.zeros(4, int))
    with pytest.raises(ValueError, match="level"):
        class_bootstrap_interval(np.ones(2), np.arange(2), level=95)

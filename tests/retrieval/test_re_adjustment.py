from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.k_means import normalised
from retrieval.re_adjustment import (
    CO_CLUSTERING,
    K_MEANS,
    NONE,
    Grouping,
    adjust,
    choose_adjustment,
    cluster_centres,
    weighted_groupings,
)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), strength=st.floats(0, 1), images=st.integers(1, 20), clusters=st.integers(1, 5))
def test_adjusting_is_the_formula_in_a_loop(seed: int, strength: float, images: int, clusters: int) -> None:
    random = np.random.default_rng(seed)
    rows, assigned = random.standard_normal((images, 6)), random.integers(-1, clusters, images)
    centres = cluster_centres(
        [(rows[: images // 2], assigned[: images // 2]), (rows[images // 2 :], assigned[images // 2 :])], clusters
    )
    found = adjust(rows, assigned, centres, strength)
    for i in range(images):
        x = rows[i] / np.linalg.norm(rows[i])
        if assigned[i] >= 0:
            members = [rows[j] / np.linalg.norm(rows[j]) for j in range(images) if assigned[j] == assigned[i]]
            centre = np.sum(members, axis=0)
            x = (1 - strength) * x + strength * centre / np.linalg.norm(centre)
        np.testing.assert_allclose(found[i], x / np.linalg.norm(x), atol=1e-4)


def test_strength_zero_changes_nothing_but_the_length() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    assert adjust(rows, np.zeros(5, int), normalised(np.ones((1, 4))), 0).tobytes() == normalised(rows).tobytes()


def test_an_image_without_a_cluster_and_a_cluster_without_images_stay() -> None:
    rows = np.eye(3, dtype=np.float32)
    centres = cluster_centres([(rows[:2], np.array([0, -1]))], clusters=2)
    np.testing.assert_array_equal(centres, [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(adjust(rows, np.array([-1, 1, 1]), centres, 0.5), rows)


@pytest.mark.parametrize(
    ("first", "second", "gain", "by", "verdict"),
    [
        (1, 0, 0.1, CO_CLUSTERING, "beats"),
        (0, 1, 0.1, K_MEANS, "does not beat"),
        (1, 1, 0.1, CO_CLUSTERING, "equals"),
        (1, 0, -0.1, NONE, "does not beat"),
        (0, 0, 0.0, NONE, "does not beat"),
    ],
)
def test_what_scores_best_on_validation_is_chosen(first: int, second: int, gain: float, by: str, verdict: str) -> None:
    rows = np.eye(2, dtype=np.float32)
    centres = {CO_CLUSTERING: np.array([[0.0, 1]] * 2), K_MEANS: np.array([[1.0, 0]] * 2)}

    def measure(adjusted: np.ndarray) -> float:
        """Best where the way that shall win has drawn by about 0.2."""
        moved = {CO_CLUSTERING: adjusted[0, 1], K_MEANS: adjusted[1, 0]}
        drawn = [moved[CO_CLUSTERING] * first, moved[K_MEANS] * second]
        return 0.5 + gain * max(1 - abs(value / 0.2425 - 1) if value else 0 for value in drawn)

    groupings = {
        way: [Grouping(np.array([0, 1]), centres[way].astype(np.float32), np.ones(2, np.float32))] for way in centres
    }
    chosen = choose_adjustment(rows, groupings, measure)
    assert chosen.by == by
    assert chosen.strength == (0 if by == NONE else 0.2)
    assert chosen.best_of(NONE) == 0.5
    assert chosen.why.startswith(f"co-clustering {verdict} its controls")
    assert len(chosen.measured) == 11


def test_only_none_is_measured_where_no_strength_is_given() -> None:
    groupings = {CO_CLUSTERING: [Grouping(np.zeros(2, int), np.ones((1, 2), np.float32), np.ones(2, np.float32))]}
    chosen = choose_adjustment(np.eye(2, dtype=np.float32), groupings, lambda _: 0.5, (0.0,))
    assert chosen.measured == {(NONE, 0.0, 0.0): 0.5}
    assert chosen.best_of(CO_CLUSTERING) is None


def test_rows_are_weighted_and_drawn_to_centres_of_weighted_rows() -> None:
    random = np.random.default_rng(0)
    rows, assigned, ratios = random.standard_normal((8, 3)), np.array([0, 1] * 4), np.array([1.0, 4.0, 9.0])
    held_out, theirs = random.standard_normal((2, 3)), np.array([1, -1])

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield rows[:3], assigned[:3]
        yield rows[3:], assigned[3:]

    plain, weighted = weighted_groupings(batches, 2, theirs, ratios, (0.0, 0.5))
    np.testing.assert_allclose(weighted.weights, [0.5, 1, 1.5])
    np.testing.assert_allclose(plain.adjusted(held_out, theirs, 0.3), adjust(held_out, theirs, plain.centres, 0.3))
    moved = [row * [0.5, 1, 1.5] for row in rows]
    centre = sum(row / np.linalg.norm(row) for row in moved[1::2])
    centre = centre / np.linalg.norm(centre)
    found = weighted.adjusted(held_out, theirs, 0.3)
    for i, share in enumerate((0.3, 0.0)):
        x = held_out[i] * [0.5, 1, 1.5]
        x = (1 - share) * x / np.linalg.norm(x) + share * centre
        np.testing.assert_allclose(found[i], x / np.linalg.norm(x), atol=1e-5)


@pytest.mark.parametrize(("gain", "by", "gamma"), [(0.1, CO_CLUSTERING, 0.5), (0.0, NONE, 0.0), (-0.1, NONE, 0.0)])
def test_blocks_are_weighted_only_where_validation_gains(gain: float, by: str, gamma: float) -> None:
    rows = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
    batches = lambda: iter([(rows, np.array([0, 1]))])  # noqa: E731
    groupings = {
        way: weighted_groupings(batches, 2, np.array([0, 1]), np.array([1.0, ratio]))
        for way, ratio in ((CO_CLUSTERING, 4.0), (K_MEANS, 0.9))
    }
    chosen = choose_adjustment(rows, groupings, lambda found: 0.5 + gain * float(abs(found[0, 1]) > 0.85), (0.1,))
    assert (chosen.by, chosen.gamma, chosen.strength) == (by, gamma, 0)
    assert chosen.why.endswith(f"{by}, feature blocks weighted with gamma {gamma:g}, images drawn with strength 0")
    assert len(chosen.measured) == 11

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.feature_blocks import block_weights, fisher_ratios, k_means_blocks


def fisher_by_hand(rows: np.ndarray, labels: np.ndarray, dimensions: list[int]) -> float:
    """Sums of squares over the dimensions of a block, class by class and image by image."""
    directions = [row / np.linalg.norm(row) for row in rows]
    between = within = 0.0
    for d in dimensions:
        mean = sum(row[d] for row in directions) / len(rows)
        for label in set(labels.tolist()):
            members = [row[d] for row, own in zip(directions, labels, strict=True) if own == label]
            centre = sum(members) / len(members)
            between += len(members) * (centre - mean) ** 2
            within += sum((value - centre) ** 2 for value in members)
    return between / within


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(9, 30), cut=st.integers(0, 9))
def test_fisher_ratios_are_the_formula_in_loops(seed: int, images: int, cut: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(3), np.arange(3), random.integers(0, 3, images - 6)])
    rows = random.standard_normal((images, 7)) + labels[:, None] * random.standard_normal(7)
    blocks = np.array([4, 0, 4, -1, 0, 4, -1])
    found = fisher_ratios([(rows[:cut], labels[:cut]), (rows[cut:], labels[cut:])], blocks, classes=5)
    for d in range(7):
        members = [other for other in range(7) if blocks[other] == blocks[d]]
        assert found[d] == pytest.approx(fisher_by_hand(rows, labels, members), rel=1e-3)


def test_a_block_that_tells_the_classes_apart_weighs_more_the_greater_gamma() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = random.standard_normal((40, 4)) + 3 * np.outer(labels * 2 - 1, [1, 1, 0, 0])
    ratios = fisher_ratios([(rows, labels)], np.array([1, 1, 0, 0]), 2)
    assert ratios[0] > 10 * ratios[2]
    weights = [block_weights(ratios, gamma) for gamma in (0.0, 0.25, 0.5)]
    np.testing.assert_array_equal(weights[0], 1)
    assert weights[2][0] > weights[1][0] > 1 > weights[1][2] > weights[2][2]
    for own in weights:
        assert own.mean() == pytest.approx(1)


def test_weights_are_powers_with_a_mean_of_one() -> None:
    np.testing.assert_allclose(block_weights(np.array([1.0, 16.0]), 0.5), [0.4, 1.6])
    np.testing.assert_array_equal(block_weights(np.zeros(3), 0.5), 1)


def test_a_block_without_variance_gives_finite_weights() -> None:
    rows = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 0.5, 0.0], [1.0, -0.5, 0.0]])
    ratios = fisher_ratios([(rows, np.array([0, 1, 0, 1]))], np.array([0, 1, -1]), 2)
    assert np.isfinite(block_weights(ratios, 0.5)).all()


def test_the_control_groups_columns_that_point_one_way() -> None:
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 50, 1))
    noise = 0.05 * random.standard_normal((50, 5))
    rows = np.concatenate([one, other, one, 2 * other, one], axis=1) + noise
    rows = np.concatenate([rows, np.zeros((50, 1))], axis=1)
    blocks = k_means_blocks(rows, 2, seed=0)
    assert blocks[0] == blocks[2] == blocks[4] != blocks[1] == blocks[3]
    assert blocks[5] == -1
    assert len(set(k_means_blocks(rows, 9, seed=0).tolist())) == 6  # no more than there are columns
    np.testing.assert_array_equal(k_means_blocks(np.zeros((3, 2)), 2, seed=0), -1)

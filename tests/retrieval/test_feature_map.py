"""Two maps of the same images: where groups lie, and that they can be laid on each other."""

import numpy as np
import pytest

from retrieval.feature_map import FeatureMap, feature_map, spread

LABELS = np.arange(120) % 4


def groups(dimension: int, seed: int) -> np.ndarray:
    """(120, dimension), four groups far apart."""
    generator = np.random.default_rng(seed)
    return 6 * np.eye(dimension)[LABELS] + generator.normal(size=(120, dimension))


@pytest.fixture(scope="module")
def laid_out() -> FeatureMap:
    found = feature_map(groups(12, 0), groups(6, 1), LABELS)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["features", "embeddings"])
def test_groups_lie_together_in_the_unit_square(laid_out: FeatureMap, name: str) -> None:
    places = getattr(laid_out, name)
    assert places.shape == (120, 2)
    assert places.min() >= -1e-9
    assert places.max() <= 1 + 1e-9
    centres = np.stack([places[label == LABELS].mean(0) for label in range(4)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(1)
    assert np.mean(nearest == LABELS) > 0.95


def test_no_turn_lays_the_second_map_nearer_to_the_first(laid_out: FeatureMap) -> None:
    first, second = (places - places.mean(0) for places in (laid_out.features, laid_out.embeddings))
    aligned = float((first * second).sum())
    for angle in np.linspace(0, 2 * np.pi, 24):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for mirror in (1, -1):
            assert float((first * (second @ turn * [mirror, 1])).sum()) <= aligned + 1e-9


def test_the_same_seed_gives_the_same_map(laid_out: FeatureMap) -> None:
    again = feature_map(groups(12, 0), groups(6, 1), LABELS)
    assert again is not None
    assert np.array_equal(again.features, laid_out.features)
    assert np.array_equal(again.embeddings, laid_out.embeddings)


def test_a_map_takes_images_spread_over_all() -> None:
    found = feature_map(groups(5, 0), groups(5, 1), np.arange(120), images=20)
    assert found is not None
    assert found.labels.tolist() == np.linspace(0, 119, 20).astype(int).tolist()
    assert len(found.highlighted) == 10


def test_classes_are_spread_from_the_first_to_the_last() -> None:
    assert spread(np.arange(100)) == (0, 11, 22, 33, 44, 55, 66, 77, 88, 99)
    assert spread(np.array([7, 3, 3])) == (3, 7)


@pytest.mark.parametrize(("images", "dimension"), [(11, 5), (40, 1)])
def test_too_little_for_a_picture_makes_none(images: int, dimension: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(images, dimension))
    assert feature_map(vectors, vectors, np.arange(images)) is None


def test_any_seed_of_a_run_draws_a_map() -> None:
    assert feature_map(groups(12, 0)[:16], groups(6, 1)[:16], LABELS[:16], seed=2**63 - 1) is not None


@pytest.mark.parametrize("length", [np.ones(60), np.linspace(1, 9, 60), np.zeros(60)])
def test_vectors_that_all_point_one_way_make_no_map(length: np.ndarray) -> None:
    """t-SNE would end the process there, without a word."""
    alike = length[:, None] * np.array([[1.0, 2.0, 3.0]])
    assert feature_map(groups(12, 0)[:60], alike, LABELS[:60]) is None
    assert feature_map(alike, groups(12, 0)[:60], LABELS[:60]) is None

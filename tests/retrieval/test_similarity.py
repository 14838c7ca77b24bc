"""What a projection keeps, against plain loops and against cases whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from retrieval.similarity import NEIGHBOURS, Similarity, feature_learning, leading_directions, linear_cka


def vectors(rows, dimension, seed=0):
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


def rotation(dimension, seed=0):
    return torch.linalg.qr(vectors(dimension, dimension, seed))[0]


def cosines(values):
    unit = torch.nn.functional.normalize(values.double(), dim=1)
    return unit @ unit.T


def test_cka_is_that_of_the_centred_products():
    x, y = vectors(30, 7), vectors(30, 4, seed=1)
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    first, second = (centre @ cosines(values) @ centre for values in (x, y))
    assert linear_cka(x, y) == pytest.approx(float((first * second).sum() / (first.norm() * second.norm())), abs=1e-9)
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, torch.ones(30, 2)) == 0


def test_overlap_and_correlation_are_those_of_loops():
    x, y = vectors(40, 5), vectors(40, 5) + 0.7 * vectors(40, 5, seed=1)
    kept = Similarity(x).kept_by(y)
    shared = []
    for row in range(40):
        sets = []
        for similarities in (cosines(x), cosines(y)):
            others = sorted((other for other in range(40) if other != row), key=lambda o: -similarities[row, o])
            sets.append(set(others[:NEIGHBOURS]))
        shared.append(len(sets[0] & sets[1]) / NEIGHBOURS)
    assert kept.neighbour_overlap == pytest.approx(np.mean(shared))
    below = torch.tril_indices(40, 40, -1).unbind()
    all_pairs = spearmanr(cosines(x)[below].numpy(), cosines(y)[below].numpy()).statistic
    assert kept.rank_correlation == pytest.approx(all_pairs, abs=0.01)  # random pairs against all of them


def test_a_turned_and_stretched_copy_keeps_everything():
    x = vectors(200, 8)
    kept = Similarity(x).kept_by(3 * x @ rotation(8))
    assert vars(kept) == pytest.approx({"linear_cka": 1, "neighbour_overlap": 1, "rank_correlation": 1}, abs=1e-6)


def test_the_null_keeps_what_chance_keeps_and_the_ceiling_is_above_other_projections():
    scales = torch.linspace(2, 0.1, 24)
    training, x = vectors(2000, 24, seed=1) * scales, vectors(500, 24) * scales
    found = feature_learning(x, x @ rotation(24)[:, :6], training.numpy())
    assert found.null.neighbour_overlap == pytest.approx(NEIGHBOURS / 499, abs=0.01)
    assert abs(found.null.rank_correlation) < 0.02
    assert found.null.linear_cka < 0.1
    for name, most in vars(found.ceiling).items():
        assert getattr(found.null, name) < getattr(found.projection, name) < most <= 1
        assert found.ratios()[name] == pytest.approx(getattr(found.projection, name) / most)
    assert (found.images, found.feature_dimension, found.dimension) == (500, 24, 6)
    assert found == feature_learning(x, x @ rotation(24)[:, :6], training.numpy())


def test_with_as_many_dimensions_the_ceiling_is_all():
    x = vectors(60, 5)
    found = feature_learning(x, vectors(60, 9, seed=2), vectors(90, 5, seed=3).numpy())
    assert vars(found.ceiling) == pytest.approx({"linear_cka": 1, "neighbour_overlap": 1, "rank_correlation": 1})


def test_leading_directions_are_those_of_the_singular_vectors():
    values = vectors(300, 6).numpy() * np.array([5, 4, 3, 2, 1, 0.5], np.float32)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected = np.linalg.svd(unit, full_matrices=False)[2][:3].T
    found = leading_directions(values, 3).numpy()
    assert np.abs((found * expected).sum(0)) == pytest.approx(np.ones(3), abs=1e-5)
    assert leading_directions(values, 10).shape == (6, 6)


def test_a_ceiling_of_nothing_has_no_ratio():
    found = feature_learning(torch.ones(20, 3), vectors(20, 2), np.ones((20, 3), np.float32))
    assert found.ratios()["linear_cka"] is None


def test_other_images_or_too_few_are_refused():
    with pytest.raises(ValueError, match="one an image"):
        Similarity(vectors(5, 3)).kept_by(vectors(4, 3))
    with pytest.raises(ValueError, match="at least 3"):
        Similarity(vectors(2, 3))

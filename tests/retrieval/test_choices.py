import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from retrieval.choices import choose_learning_rate, choose_loss, measure_classes
from retrieval.losses import LOSSES


def blobs(spread: float, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.eye(8)[: len(sizes)]
    return torch.from_numpy(centres[labels] + spread * random.normal(size=(len(labels), 8))), torch.from_numpy(labels)


def test_measures_are_those_of_a_plain_loop() -> None:
    features, labels = blobs(0.4, [5, 9, 4])
    rows = normalize(features, dim=1)
    centres = [normalize(rows[labels == label].mean(0), dim=0) for label in range(3)]
    spreads = [1 - float((rows[labels == label] @ centres[label]).mean()) for label in range(3)]
    distances = [min(1 - float(centres[a] @ centres[b]) for b in range(3) if b != a) for a in range(3)]
    facts = measure_classes(features, labels)
    assert facts.spread == pytest.approx(np.mean(spreads), abs=1e-5)
    assert facts.distance == pytest.approx(np.mean(distances), abs=1e-5)
    assert facts.distance_variation == pytest.approx(np.std(distances) / np.mean(distances), abs=1e-4)
    assert facts.gap == pytest.approx(np.mean(distances) / np.mean(spreads), abs=1e-4)
    assert (facts.classes, facts.images, facts.imbalance) == (3, 18, 9 / 4)
    assert (facts.images_per_class_min, facts.images_per_class_median, facts.images_per_class_max) == (4, 5, 9)


def test_labels_may_be_any_numbers_in_any_order() -> None:
    features, labels = blobs(0.3, [6, 6, 6])
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    assert measure_classes(features[order], 7 - 2 * labels[order]).gap == pytest.approx(
        measure_classes(features, labels).gap, rel=1e-5
    )


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="have 1 class"):
        measure_classes(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64))


def test_small_gaps_take_a_classification_loss() -> None:
    choice = choose_loss(measure_classes(*blobs(2.0, [60] * 5)))
    assert choice.value == "normalised_softmax"
    assert choice.facts["gap"] < 1
    assert f"gap {choice.facts['gap']:.2f}" in choice.why
    assert "gap below 1: a classification loss" in choice.why


def test_large_gaps_take_a_metric_loss() -> None:
    choice = choose_loss(measure_classes(*blobs(0.1, [60] * 5)))
    assert choice.facts["gap"] > 1
    assert choice.value == "proxy_anchor"
    assert choice.value in LOSSES


def test_what_is_asked_for_is_taken_and_the_facts_are_kept() -> None:
    choice = choose_loss(measure_classes(*blobs(0.1, [10] * 5)), "triplet")
    assert choice.value == "triplet"
    assert choice.facts["classes"] == 5
    assert "asked for" in choice.why
    assert choose_learning_rate(256, 128, "0.3").value == 0.3


@given(st.integers(1, 4096), st.integers(2, 4096))
def test_the_rate_grows_with_dimension_and_batch(dimension: int, batch: int) -> None:
    rate = choose_learning_rate(dimension, batch).value
    assert choose_learning_rate(4 * dimension, batch).value == pytest.approx(2 * rate)
    assert choose_learning_rate(dimension, 4 * batch).value == pytest.approx(2 * rate)
    assert choose_learning_rate(256, 128).value == pytest.approx(0.05)

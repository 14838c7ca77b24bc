import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from retrieval.choices import ClassFacts, choose_learning_rate, choose_loss, measure_classes
from retrieval.losses import LOSSES

# facts of the training images of the sets of docs/choices.md, and R@1 in % of their validation images by each of
# LOSSES, as its tables give them; of CIFAR-100 with more training, by those that were measured there
CIFAR_100 = ClassFacts(100, 6000, 60, 60, 60, 1.0, 0.694, 0.422, 0.32, 0.608)
MEASURED = {
    "digits": (
        ClassFacts(10, 1079, 104, 108, 110, 1.058, 0.64, 0.841, 0.05, 1.315),
        (98.6, 98.4, 98.3, 98.5, 98.7, 98.8, 98.9, 98.9, 99.4),
    ),
    "CIFAR-100 superclasses": (
        ClassFacts(20, 3000, 150, 150, 150, 1.0, 0.762, 0.49, 0.269, 0.643),
        (24.8, 23.5, 13.6, 17.1, 19.8, 21.8, 18.8, 23.8, 23.9),
    ),
    "CIFAR-100": (CIFAR_100, (12.6, 12.6, 10.5, 7.8, 10.2, 11.2, 10.2, 13.6, 12.8)),
    "CIFAR-100, more training": (CIFAR_100, (33.7, None, None, None, 17.6, 27.6, 19.1, 34.3, 33.4)),
    "Tiny-ImageNet": (
        ClassFacts(200, 6000, 30, 30, 30, 1.0, 0.699, 0.473, 0.244, 0.677),
        (4.1, 3.3, 2.6, 2.7, 1.9, 3.1, 2.7, 4.9, 4.0),
    ),
    "Omniglot": (
        ClassFacts(964, 11567, 11, 12, 12, 1.091, 0.399, 0.349, 0.363, 0.874),
        (27.3, 18.7, 43.3, 54.4, 56.8, 7.3, 59.9, 33.5, 34.6),
    ),
}

# R@1 in % by peak rate, at each dimension, on CIFAR-100
SWEPT = {
    128: {0.025: 10.54, 0.05: 11.23, 0.07071: 11.98, 0.1: 11.75, 0.1414: 12.38, 0.2: 12.71, 0.4: 12.85},
    256: {0.025: 10.73, 0.05: 11.48, 0.1: 12.52, 0.2: 12.56, 0.4: 12.81},
    512: {0.025: 10.96, 0.05: 12.21, 0.1: 12.75, 0.1414: 12.88, 0.2: 13.0, 0.2828: 12.52, 0.4: 13.25},
}


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


@pytest.mark.parametrize("images", [1, 3])
def test_classes_that_do_not_spread_have_no_finite_gap(images: int) -> None:
    rows = torch.rand(40, 17, generator=torch.Generator().manual_seed(0))
    facts = measure_classes(rows.repeat(images, 1), torch.arange(40).repeat(images))
    assert 0 <= facts.spread < 1e-6
    assert facts.gap == np.inf
    assert ", gap inf; fewer than 25 images a class" in choose_loss(facts).why


def test_labels_may_be_any_numbers_in_any_order() -> None:
    features, labels = blobs(0.3, [6, 6, 6])
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    assert measure_classes(features[order], 7 - 2 * labels[order]).gap == pytest.approx(
        measure_classes(features, labels).gap, rel=1e-5
    )


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="have 1 class"):
        measure_classes(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64))


def test_many_images_a_class_take_classification_joined_by_pairs() -> None:
    choice = choose_loss(measure_classes(*blobs(2.0, [25] * 5)))
    assert choice.value == "softmax_triplet"
    assert f"gap {choice.facts['gap']:.2f}" in choice.why
    assert "25 images a class or more" in choice.why


def test_few_images_a_class_take_a_loss_of_pairs() -> None:
    choice = choose_loss(measure_classes(*blobs(2.0, [24, 24, 24, 500])))  # the median decides
    assert choice.value == "recall_at_k"
    assert "fewer than 25 images a class" in choice.why


@pytest.mark.parametrize("name", MEASURED)
def test_the_rule_chooses_what_was_within_a_point_of_the_best_on_the_sets_it_was_fitted_on(name: str) -> None:
    facts, measured = MEASURED[name]
    recalls = {loss: recall for loss, recall in zip(LOSSES, measured, strict=True) if recall is not None}
    assert recalls[choose_loss(facts).value] >= max(recalls.values()) - 1.0


@pytest.mark.parametrize("dimension", SWEPT)
def test_the_rate_is_within_a_point_of_the_best_of_its_sweep(dimension: int) -> None:
    recalls = SWEPT[dimension]
    automatic = choose_learning_rate(dimension).value
    measured = min(recalls, key=lambda rate: abs(rate - automatic))
    assert measured == pytest.approx(automatic, rel=0.01)  # what the rule gives was in the sweep
    assert recalls[measured] >= max(recalls.values()) - 1.0


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
    assert choose_learning_rate(256, 128).value == pytest.approx(0.2)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from retrieval.choices import ClassFacts, choose_learning_rate, choose_loss, measure_classes
from retrieval.losses import LOSSES

COMPARED = [name for name in LOSSES if name != "cosine_margin"]  # which came later

# R@1 in % of the validation images by each loss, on the sets of docs/choices.md, and the facts of their training images
MEASURED = {
    "digits": (
        ClassFacts(10, 1079, 104, 108, 110, 1.058, 0.64, 0.841, 0.05, 1.315),
        dict(zip(COMPARED, (99.16, 99.16, 99.16, 99.07, 98.42, 99.26, 99.16, 99.26), strict=True)),
    ),
    "CIFAR-100 superclasses": (
        ClassFacts(20, 3000, 150, 150, 150, 1.0, 0.762, 0.49, 0.269, 0.643),
        dict(zip(COMPARED, (23.67, 19.20, 17.00, 20.00, 23.47, 21.50, 23.50, 24.73), strict=True)),
    ),
    "CIFAR-100": (
        ClassFacts(100, 6000, 60, 60, 60, 1.0, 0.694, 0.422, 0.32, 0.609),
        dict(zip(COMPARED, (11.35, 11.75, 10.40, 10.57, 10.48, 12.40, 11.62, 11.57), strict=True)),
    ),
    "Tiny-ImageNet": (
        ClassFacts(200, 6000, 30, 30, 30, 1.0, 0.699, 0.473, 0.244, 0.677),
        dict(zip(COMPARED, (2.50, 3.25, 2.55, 3.10, 2.02, 2.75, 2.88, 2.62), strict=True)),
    ),
    "Omniglot": (
        ClassFacts(964, 11567, 11, 12, 12, 1.091, 0.399, 0.349, 0.363, 0.874),
        dict(zip(COMPARED, (12.58, 48.69, 45.05, 42.79, 10.32, 53.54, 11.98, 10.32), strict=True)),
    ),
}

# R@1 in % by peak rate, at each dimension, on CIFAR-100
SWEPT = {
    128: {0.025: 9.88, 0.05: 9.84, 0.07071: 10.66, 0.1: 11.22, 0.2: 10.59, 0.4: 10.81},
    256: {0.025: 9.62, 0.05: 10.94, 0.1: 12.10, 0.2: 11.50, 0.4: 11.06},
    512: {0.025: 10.66, 0.05: 11.16, 0.1: 11.57, 0.1414: 11.31, 0.2: 11.62, 0.4: 12.09},
}

# cosine_margin beside others in runs of their own
BESIDE_COSINE_MARGIN = {
    "digits": {"cosine_margin": 98.2, "normalised_softmax": 98.9, "softmax_triplet": 99.3},
    "CIFAR-100 superclasses": {"cosine_margin": 24.5, "normalised_softmax": 23.9, "softmax_triplet": 23.9},
    "CIFAR-100": {"cosine_margin": 12.1, "normalised_softmax": 12.3, "softmax_triplet": 11.8},
    "Tiny-ImageNet": {"cosine_margin": 3.7, "normalised_softmax": 3.9, "softmax_triplet": 3.9},
    "Omniglot": {"cosine_margin": 21.1, "recall_at_k": 57.2},
}

# some of MEASURED again, at the rate that choose_learning_rate gives today
AT_THE_RULES_RATE = {
    "CIFAR-100 superclasses": {"normalised_softmax": 23.15, "recall_at_k": 19.50, "softmax_triplet": 24.10},
    "CIFAR-100": {"normalised_softmax": 11.83, "contrastive": 12.67, "recall_at_k": 11.42, "softmax_triplet": 11.77},
    "Omniglot": {"normalised_softmax": 9.47, "recall_at_k": 57.11, "softmax_triplet": 8.87},
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
    facts, recalls = MEASURED[name]
    chosen = choose_loss(facts).value
    assert set(recalls) | set(BESIDE_COSINE_MARGIN[name]) == set(LOSSES)
    for found in (recalls, BESIDE_COSINE_MARGIN[name], AT_THE_RULES_RATE.get(name, recalls)):
        assert found[chosen] >= max(found.values()) - 1.0


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
    assert choose_learning_rate(256, 128).value == pytest.approx(0.1)

"""What a step decides from the data: pure functions that return what they chose and the sentence that says why."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Choice:
    """A decision, for the log, the artifact's metadata and MLflow.

    Attributes:
        value: what was chosen.
        why: one sentence: what was seen and what follows.
        facts: the numbers behind it.
    """

    value: Any
    why: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class ClassFacts:
    """How the classes of a set lie in a space of features, by cosine.

    Attributes:
        classes: number of classes.
        images: number of images.
        images_per_class_min: of the smallest class.
        images_per_class_median: of the middle one.
        images_per_class_max: of the largest.
        imbalance: largest by smallest.
        spread: 1 - mean cosine of an image to its class centre, mean over classes; a class of one image has none.
        distance: 1 - cosine of a class centre to the nearest other one, mean over classes.
        distance_variation: standard deviation of those distances by their mean: how unequal they are.
        gap: distance by spread; below 1 the nearest other class is nearer than the class's own images. Infinite where
            no class spreads: each has one image, or images that are all alike.
    """

    classes: int
    images: int
    images_per_class_min: int
    images_per_class_median: int
    images_per_class_max: int
    imbalance: float
    spread: float
    distance: float
    distance_variation: float
    gap: float


def measure_classes(features: Tensor, labels: Tensor) -> ClassFacts:
    """Measure the classes of a set in the features given.

    Args:
        features: (n, d) float, any scale; rows are normalised here.
        labels: (n,) int64.

    Raises:
        ValueError: fewer than two classes.
    """
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError(f"The images have {len(counts)} class; distances between classes need two at least.")
    rows = functional.normalize(features.float(), dim=1)
    sums = torch.zeros((len(counts), rows.shape[1]), device=rows.device).index_add_(0, classes, rows)
    centres = functional.normalize(sums, dim=1)
    to_own = (rows * centres[classes]).sum(dim=1)
    mean_to_own = torch.zeros(len(counts), device=rows.device).index_add_(0, classes, to_own) / counts
    nearest = (centres @ centres.T).fill_diagonal_(-torch.inf).amax(dim=1)
    spread, distance = max(float((1 - mean_to_own).mean()), 0.0), float((1 - nearest).mean())
    return ClassFacts(
        classes=len(counts),
        images=len(labels),
        images_per_class_min=int(counts.min()),
        images_per_class_median=int(counts.median()),
        images_per_class_max=int(counts.max()),
        imbalance=float(counts.max() / counts.min()),
        spread=spread,
        distance=distance,
        distance_variation=float((1 - nearest).std(correction=0)) / max(distance, 1e-12),
        gap=distance / spread if spread > LEAST_SPREAD else math.inf,
    )


LEAST_SPREAD = 1e-6  # less is rounding
FEW_IMAGES_PER_CLASS = 25  # about the middle, by ratio, of the sets that need different losses: 12 and 60


def choose_loss(facts: ClassFacts, asked: str = "auto") -> Choice:
    """The loss for a set: pairs where a class has few images, else classification that a metric loss joins.

    Below FEW_IMAGES_PER_CLASS (median) recall_at_k: a proxy is learned from the images of its class alone, and with a
    dozen of each the proxies are still near where they began when training ends, while pairs teach from the first step.
    From it on softmax_triplet: every image is compared with all classes at once, and semi-hard triplets add what is
    hard inside the batch.

    Fitted on five sets with a small budget (docs/choices.md). Omniglot (12 images a class) decides for pairs: R@1 59.9
    against 34.6 of softmax_triplet. On digits (108), Tiny-ImageNet (30), CIFAR-100 (60) and its superclasses (150) the
    choice is the best of the menu or within one point; on CIFAR-100 and Tiny-ImageNet softmax_multi_similarity is 0.8
    points ahead, and in the pipeline 0.8 behind on the mean of three short runs. Seen as well: the gap does not order
    these sets (CIFAR-100 0.61, its superclasses 0.64, digits 1.32) and depends on the teacher; so it is reported, and
    does not decide. In these five, sets of few images a class have many classes: which of the two matters cannot be
    told.

    Args:
        facts: of the training images.
        asked: what the user asked for; anything but "auto" is taken as it is.
    """
    seen = (
        f"{facts.classes:,} classes of {facts.images_per_class_min:,} to {facts.images_per_class_max:,} images "
        f"(median {facts.images_per_class_median:,}), spread {facts.spread:.3f} within, distance {facts.distance:.3f} "
        f"to the nearest other class, gap {facts.gap:.2f}"
    )
    if asked != "auto":
        return Choice(asked, f"loss {asked}: asked for; {seen}.", asdict(facts))
    if facts.images_per_class_median < FEW_IMAGES_PER_CLASS:
        value, rule = "recall_at_k", f"fewer than {FEW_IMAGES_PER_CLASS} images a class: a loss of pairs"
    else:
        value, rule = "softmax_triplet", f"{FEW_IMAGES_PER_CLASS} images a class or more: a softmax and pairs"
    return Choice(value, f"loss {value}: {seen}; {rule}.", asdict(facts))


LEARNING_RATE_AT_256 = 0.2
BATCH_AT_256 = 128
DIMENSION_EXPONENT = 0.5


def choose_learning_rate(dimension: int, batch_size: int = BATCH_AT_256, asked: str = "auto") -> Choice:
    """The peak rate of SGD with momentum for an embedding of d dimensions.

    rate = 0.2 * (d / 256) ** 0.5 * (batch / 128) ** 0.5. The loss sees the embedding normalised, so a gradient falls
    with the embedding's length, which grows with the root of d: the rate makes up for it. The root of the batch keeps
    the noise of a step the same.

    The base is that of sweeps on CIFAR-100 over 128, 256 and 512 dimensions and rates of 0.025 to 0.4, and of it and
    half of it on four further sets (docs/choices.md): the rule is within one point of R@1 of the best at each d.
    From 0.1 on the sweep over d is flat, so it supports the root of d and refutes neither a weaker nor a stronger
    power. The power of the batch was not swept.

    Args:
        dimension: d of the embedding.
        batch_size: images of a step, over all processes.
        asked: a number that the user asked for, as text, or "auto".
    """
    facts = {"dimension": dimension, "batch_size": batch_size}
    if asked != "auto":
        return Choice(float(asked), f"learning rate {float(asked):g}: asked for.", facts)
    value = LEARNING_RATE_AT_256 * (dimension / 256) ** DIMENSION_EXPONENT * (batch_size / BATCH_AT_256) ** 0.5
    why = (
        f"learning rate {value:.4g}: {LEARNING_RATE_AT_256:g} at 256 dimensions and batches of {BATCH_AT_256}, "
        f"scaled by the root of each to d = {dimension} and batches of {batch_size}."
    )
    return Choice(value, why, facts)

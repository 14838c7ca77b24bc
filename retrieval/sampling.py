"""Which images make which batch: drawn from a seed of its own, the same whatever else draws random numbers.

An order is a tensor (steps, b) of positions, the batches of one epoch. It depends on its arguments alone, so any
process, or a run that resumes, draws the same one.
"""

import numpy as np
import torch
from torch import Tensor

FEW = 20  # one image of so many may sit out an epoch
IMAGES_OF_A_CLASS = 4  # in a balanced batch, where nothing else is asked for


def shuffled_order(count: int, batch_size: int, seed: int, epoch: int, processes: int = 1) -> Tensor:
    """An epoch of plain shuffled batches, each image at most once.

    All batches are of one size: the largest, up to `batch_size`, that shares the images out evenly and can be split
    among the processes. The few images that remain over sit out this epoch; another epoch leaves out others. Where
    these would be more than one of FEW, as happens with batches of fewer than FEW images a process, the size is the one
    above half the largest that leaves out fewest, the larger of two that leave out few. So a process has batches of one
    image only where there is no room for two.

    Args:
        count: number of images.
        batch_size: most images a batch.
        seed: of the whole training.
        epoch: from 0; each has its own order.
        processes: the size of a batch is a multiple of it.

    Returns:
        (steps, b) int64 positions in [0, count).

    Raises:
        ValueError: fewer images than processes, or a batch smaller than their number.
    """
    most = min(batch_size, count) // processes * processes
    if most < 1:
        raise ValueError(
            f"batch_size is {batch_size} and there are {count} images; each of {processes} processes needs one."
        )
    steps, size = _steps_and_size(count, most, processes)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return torch.from_numpy(order[: steps * size].reshape(steps, size))


def _steps_and_size(count: int, most: int, processes: int) -> tuple[int, int]:
    """Of the batches of an epoch; see shuffled_order. `most` is a multiple of the processes, up to the count."""
    steps = -(-count // most)
    size = max(count // steps // processes, 1) * processes
    steps, few = min(steps, count // size), count // FEW
    if count - steps * size > few:
        size = min(range(most, most // 2, -processes), key=lambda other: max(count % other, few))
        steps = count // size
    return steps, size


def balanced_order(labels: Tensor, classes_per_batch: int, images_per_class: int, seed: int, epoch: int) -> Tensor:
    """An epoch of class-balanced batches: `images_per_class` images each of `classes_per_batch` different classes.

    An epoch has about as many draws as there are images. A class gets turns in proportion to its images, at most one a
    batch, and where the turns go round at least one, so images are seen about equally often. A class goes through its
    images in random order and begins again only when all were drawn: the images of one turn differ, unless the class
    has fewer than `images_per_class`; then each comes up as equally often as can be. A class too large for one turn a
    batch leaves some images out; the next epoch draws others.

    Args:
        labels: (n,) int64, any numbers.
        classes_per_batch: different classes in a batch.
        images_per_class: images of each of them, next to one another in the batch.
        seed: of the whole training.
        epoch: from 0; each has its own order.

    Returns:
        (steps, classes_per_batch * images_per_class) int64 positions in [0, n); every epoch has as many steps.

    Raises:
        ValueError: fewer classes than asked for, or numbers below 1.
    """
    if classes_per_batch < 1 or images_per_class < 1:
        raise ValueError(
            f"classes_per_batch is {classes_per_batch} and images_per_class {images_per_class}; both must be 1 or more."
        )
    _, classes, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    if len(counts) < classes_per_batch:
        raise ValueError(
            f"classes_per_batch is {classes_per_batch} and there are {len(counts)} classes; ask for at most those."
        )
    random = np.random.default_rng((seed, epoch))
    weights = np.maximum(counts / images_per_class, 1.0)
    steps = max(1, round(float(weights.sum()) / classes_per_batch))
    turns = _whole_turns(_spread(weights, steps * classes_per_batch, steps), steps, random)
    drawn = _draw_classes(turns, steps, classes_per_batch, random)  # (steps, classes_per_batch)
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    order = np.empty((steps * classes_per_batch, images_per_class), np.int64)
    for label, images in enumerate(members):
        order[drawn.ravel() == label] = _draw_images(images, int(turns[label]), images_per_class, random)
    return torch.from_numpy(order.reshape(steps, -1))


def batch_shape(
    classes: int, batch_size: int, classes_per_batch: int = 0, images_per_class: int = 0
) -> tuple[int, int]:
    """Classes in a balanced batch and images of each, as asked for; a 0 is filled from the size of the batch.

    Without either, a batch has as many classes as go with IMAGES_OF_A_CLASS images each, at most all there are.

    Args:
        classes: that there are.
        batch_size: most images in a batch where a number is to be filled in.
        classes_per_batch: asked for, or 0.
        images_per_class: asked for, or 0.

    Raises:
        ValueError: more classes asked for than there are, or a batch too small for two classes of two images.
    """
    if classes_per_batch > classes:
        raise ValueError(
            f"classes_per_batch is {classes_per_batch} and there are {classes} classes; ask for at most those."
        )
    filled_classes = classes_per_batch or min(classes, batch_size // (images_per_class or IMAGES_OF_A_CLASS))
    filled_images = images_per_class or batch_size // max(filled_classes, 1)
    if filled_classes < 2 or filled_images < 2:
        raise ValueError(
            f"A batch of {batch_size} images gives {filled_classes} classes x {filled_images} images; a metric needs "
            "two images each of two classes at least: raise batch_size."
        )
    return filled_classes, filled_images


def _spread(weights: np.ndarray, total: int, most: int) -> np.ndarray:
    """Scale weights to a total with none above `most`: what a capped one cannot take goes to the others."""
    capped = np.zeros(len(weights), bool)
    while True:
        room = total - most * capped.sum()
        scaled = np.where(capped, most, weights * (room / max(weights[~capped].sum(), 1e-12)))
        if (scaled <= most + 1e-9).all():
            return scaled
        capped |= scaled > most


def _whole_turns(turns: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Round to whole turns of the same total, none above `most`; a fraction is its chance of being rounded up."""
    whole = np.floor(turns + 1e-9).astype(np.int64)
    fraction = np.clip(turns - whole, 0.0, 1.0)
    chance = random.random(len(turns)) ** (1 / np.maximum(fraction, 1e-9))
    chance[whole >= most] = -1.0
    missing = round(float(turns.sum())) - int(whole.sum())
    whole[np.argsort(-chance, kind="stable")[:missing]] += 1
    return whole


def _draw_classes(turns: np.ndarray, steps: int, classes_per_batch: int, random: np.random.Generator) -> np.ndarray:
    """Different classes for every batch, each class exactly as often as it has turns: (steps, classes_per_batch).

    Systematic sampling: with L batches to go, a class with r turns left is drawn with probability r / L.
    """
    left = turns.copy()
    drawn = np.empty((steps, classes_per_batch), np.int64)
    for step in range(steps):
        to_go = steps - step
        shuffled = random.permutation(len(left))
        marks = random.integers(to_go) + to_go * np.arange(classes_per_batch)
        drawn[step] = shuffled[np.searchsorted(np.cumsum(left[shuffled]), marks, side="right")]
        left[drawn[step]] -= 1
    return drawn


def _draw_images(images: np.ndarray, turns: int, images_per_class: int, random: np.random.Generator) -> np.ndarray:
    """The images of a class for each of its turns, all equally often but for one: (turns, images_per_class)."""
    drawn = random.permutation(images)
    while len(drawn) < turns * images_per_class:
        begun = drawn[len(drawn) - len(drawn) % images_per_class :]  # of the turn that is only partly filled
        again = np.isin(images, begun)
        drawn = np.concatenate([drawn, random.permutation(images[~again]), random.permutation(images[again])])
    return drawn[: turns * images_per_class].reshape(turns, images_per_class)

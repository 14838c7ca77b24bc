"""Augmentation of whole batches on the device: bytes in, numbers in [0, 1] out, drawn from a generator of its own.

To add one: compose it from the functions below and add its name; the parametrised tests cover it.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from retrieval.choices import Choice

Augmentation = Callable[[Tensor, Generator], Tensor]

SHIFT = 1 / 8  # of the side: 4 pixels at 32
COLOUR = 0.3  # brightness, contrast and saturation change by at most this factor
ERASED_AREA = (0.02, 0.25)  # of the image
MIRRORED_SHARE = 0.8  # of the correct answers that must survive mirroring
IMAGES_TO_JUDGE = 10_000


def to_unit(images: Tensor) -> Tensor:
    """Bytes to numbers in [0, 1]: (b, 3, h, w) uint8 -> float32, same memory layout."""
    return images.float().div_(255)


def shift(images: Tensor, generator: Generator, mirror: bool = False) -> Tensor:
    """Move each image by up to SHIFT of its side in both directions; what enters repeats the border.

    The same as a random crop from an image padded with its border, in one gather on bytes.

    Args:
        images: (b, 3, h, w), any dtype.
        generator: of the images' device.
        mirror: also turn half of the images left to right.
    """
    count, _, height, width = images.shape
    rows = _shifted(count, height, generator)
    columns = _shifted(count, width, generator)
    if mirror:
        turned = torch.rand((count, 1), generator=generator, device=images.device) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    which = torch.arange(count, device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)  # (b, h, w, 3)
    return pixels[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(count: int, length: int, generator: Generator) -> Tensor:
    """For each image the source of each row or column: (count, length) int64."""
    most = max(1, round(length * SHIFT))
    offsets = torch.randint(-most, most + 1, (count, 1), generator=generator, device=generator.device)
    return (torch.arange(length, device=generator.device) + offsets).clamp_(0, length - 1)


def recolour(images: Tensor, generator: Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image: (b, 3, h, w) float in [0, 1], again in [0, 1]."""
    factors = 1 + COLOUR * (2 * torch.rand((3, len(images), 1, 1, 1), generator=generator, device=images.device) - 1)
    brightness, contrast, saturation = factors
    images = images * brightness
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return (mean + (images - mean) * contrast).clamp_(0, 1)


def erase(images: Tensor, generator: Generator) -> Tensor:
    """Fill a rectangle in half of the images with the image's mean colour (Zhong et al. 2020): (b, 3, h, w) float."""
    count, _, height, width = images.shape
    draw = torch.rand((5, count, 1), generator=generator, device=images.device)
    smallest, largest = ERASED_AREA
    area = smallest + (largest - smallest) * draw[0]
    ratio = torch.exp((2 * draw[1] - 1) * 1.2)  # height to width, 0.3 to 3.3
    rows = _inside(height, (area * ratio).sqrt(), draw[2])
    columns = _inside(width, (area / ratio).sqrt(), draw[3])
    hidden = rows[:, :, None] & columns[:, None, :] & (draw[4, :, :, None] < 0.5)  # (b, h, w)
    return torch.where(hidden[:, None], images.mean(dim=(2, 3), keepdim=True), images)


def _inside(length: int, share: Tensor, place: Tensor) -> Tensor:
    """Which rows or columns lie in an interval of the given share of the length: (b, length) bool."""
    extent = (share * length).clamp(1, length)
    start = place * (length - extent)
    centres = torch.arange(length, device=share.device) + 0.5
    return (centres >= start) & (centres < start + extent)


def none(images: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    """The images as they are."""
    return to_unit(images)


def shift_only(images: Tensor, generator: Generator) -> Tensor:
    """Shifted; for characters and whatever must not be mirrored."""
    return to_unit(shift(images, generator))


def crop_flip(images: Tensor, generator: Generator) -> Tensor:
    """Shifted and mirrored: the usual one for photographs."""
    return to_unit(shift(images, generator, mirror=True))


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "shift": shift_only,
    "shift_colour": lambda images, generator: recolour(shift_only(images, generator), generator),
    "shift_erase": lambda images, generator: erase(shift_only(images, generator), generator),
    "crop_flip": crop_flip,
    "crop_flip_colour": lambda images, generator: recolour(crop_flip(images, generator), generator),
    "crop_flip_erase": lambda images, generator: erase(crop_flip(images, generator), generator),
}


def named_augmentation(name: str) -> Augmentation:
    """The augmentation of that name: (b, 3, h, w) uint8 and a generator of its device -> (b, 3, h, w) float in [0, 1].

    Raises:
        ValueError: unknown name ("auto" is decided first: choose_augmentation).
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"Unknown augmentation '{name}'; choose one of: {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name]


def choose_augmentation(images: Tensor, labels: Tensor, asked: str = "auto") -> Choice:
    """Decide whether training may mirror the images: does a mirrored image stay nearest to its class?

    Half of the images of each class make its mean picture; the other half are answered by the nearest mean, upright
    and mirrored. Mirroring is allowed when at least MIRRORED_SHARE of the right answers survive it. Digits and
    characters lose most of them. Where the means answer no better than chance nothing can be seen, and images are not
    mirrored.

    Args:
        images: (n, 3, h, w) uint8, training images; at most about IMAGES_TO_JUDGE, evenly spaced, are used.
        labels: (n,) int64.
        asked: what the user asked for; anything but "auto" is taken as it is.

    Returns:
        A name of AUGMENTATIONS and why.

    Raises:
        ValueError: `asked` is neither "auto" nor a name of AUGMENTATIONS.
    """
    if asked != "auto":
        named_augmentation(asked)
        return Choice(asked, f"augmentation {asked}: asked for.", {})
    chosen = torch.arange(0, len(images), max(1, len(images) // IMAGES_TO_JUDGE))
    upright, mirrored, queries, chance = _mirror_test(images[chosen], labels[chosen])
    facts = {"upright_accuracy": upright, "mirrored_accuracy": mirrored, "chance": chance, "queries": queries}
    seen = (
        f"the nearest class mean is right for {upright:.1%} of {queries:,} images and {mirrored:.1%} of their mirrors"
    )
    if upright < chance + 3 * (chance / max(queries, 1)) ** 0.5:
        return Choice("shift", f"augmentation shift, no mirroring: {seen}, no better than chance: no evidence.", facts)
    if mirrored < MIRRORED_SHARE * upright:
        return Choice("shift", f"augmentation shift, no mirroring: {seen}.", facts)
    return Choice("crop_flip", f"augmentation crop_flip, mirroring allowed: {seen}.", facts)


def _mirror_test(images: Tensor, labels: Tensor) -> tuple[float, float, int, float]:
    """Accuracy of nearest class means upright and mirrored, the number of queries, the accuracy of guessing."""
    order = torch.argsort(labels, stable=True)
    images, (_, classes) = images[order], torch.unique(labels[order], return_inverse=True)
    count = int(classes.max()) + 1
    makes_means = torch.arange(len(images), device=images.device) % 2 == 0
    small = functional.adaptive_avg_pool2d(images.float().mean(dim=1), 16)  # (n, 16, 16) grey
    small = small - small[makes_means].mean(dim=0) / 2 - small[makes_means].mean(dim=0).flip(-1) / 2
    sums = torch.zeros((count, 16, 16), device=images.device).index_add_(0, classes[makes_means], small[makes_means])
    present = torch.bincount(classes[makes_means], minlength=count) > 0
    means = functional.normalize(sums.flatten(1), dim=1)
    answers = []
    for queries in (small[~makes_means], small[~makes_means].flip(-1)):
        scores = queries.flatten(1) @ means.T
        answers.append(
            (scores.masked_fill(~present, -torch.inf).argmax(dim=1) == classes[~makes_means]).float().mean().item()
        )
    return answers[0], answers[1], int((~makes_means).sum()), 1 / count

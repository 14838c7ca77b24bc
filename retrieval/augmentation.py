"""Augmentation of whole batches on the device: bytes in, numbers in [0, 1] out, drawn from a generator of its own.

To add one: compose it from the functions below and add its name; the parametrised tests cover it.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from retrieval.choices import Choice
from retrieval.occlusion import SHAPES

Augmentation = Callable[[Tensor, Generator], Tensor]

SHIFT = 1 / 8  # of the side: 4 pixels at 32
COLOUR = 0.3  # brightness, contrast and saturation change by at most this factor
ERASED_AREA = (0.02, 0.25)  # of the image
ROTATION = 30.0  # degrees, either way; with SHEAR and BLEND those of Cubuk et al. 2020, drawn evenly up to them
SHEAR = 0.3
TRANSLATION = 0.2  # of the side, either way, beyond the SHIFT of a crop
BLEND = 0.9  # brightness, contrast, saturation and sharpness are 1 - BLEND to 1 + BLEND times what they were
POSTERIZED_BITS = (4, 7)  # kept of each colour's 8
WARP_ROTATION = 10.0  # degrees, either way
WARP_SHEAR = WARP_SCALE = 0.15
WARP_SHIFT, WARP_BEND = 0.05, 0.025  # of the side: either way, and the standard deviation of
WARP_KNOTS = 5  # by as many points, between which the bend is smooth
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL and torchvision weigh R, G and B
HIDDEN_SHARE = 0.6  # most of an image that `hide_parts` takes away,
HIDDEN_CHANCE = 0.125  # and from how many of them
MIRRORED_SHARE = 0.8  # of the correct answers that must survive mirroring
IMAGES_TO_JUDGE, IMAGES_AT_ONCE = 10_000, 1_000


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
    return torch.where(_rectangles(images, generator), images.mean(dim=(2, 3), keepdim=True), images)


def patch(images: Tensor, generator: Generator) -> Tensor:
    """Fill a rectangle in half of the images with what another image of the batch shows there: (b, 3, h, w) float.

    After CutMix (Yun et al. 2019), which may replace nearly all of an image and mixes the labels by area. Here at most
    a quarter is foreign and the label stays that of the image, so that losses of pairs, which know no mixed labels,
    learn from it too: it is erasing, by pixels that mislead.
    """
    count = len(images)
    steps = torch.randint(1, max(count, 2), (count,), generator=generator, device=images.device)
    others = (torch.arange(count, device=images.device) + steps) % count  # never the image itself
    return torch.where(_rectangles(images, generator), images[others], images)


def _rectangles(images: Tensor, generator: Generator) -> Tensor:
    """A rectangle of ERASED_AREA in a random half of the images: (b, 1, h, w) bool."""
    count, _, height, width = images.shape
    draw = torch.rand((5, count, 1), generator=generator, device=images.device)
    smallest, largest = ERASED_AREA
    area = smallest + (largest - smallest) * draw[0]
    ratio = torch.exp((2 * draw[1] - 1) * 1.2)  # height to width, 0.3 to 3.3
    rows = _inside(height, (area * ratio).sqrt(), draw[2])
    columns = _inside(width, (area / ratio).sqrt(), draw[3])
    return (rows[:, :, None] & columns[:, None, :] & (draw[4, :, :, None] < 0.5))[:, None]


def _inside(length: int, share: Tensor, place: Tensor) -> Tensor:
    """Which rows or columns lie in an interval of the given share of the length: (b, length) bool."""
    extent = (share * length).clamp(1, length)
    start = place * (length - extent)
    centres = torch.arange(length, device=share.device) + 0.5
    return (centres >= start) & (centres < start + extent)


def rand_augment(images: Tensor, generator: Generator) -> Tensor:
    """Change each image by one of GEOMETRIES, by one of FILTERS, or by both, as much as chance says.

    After RandAugment (Cubuk et al. 2020) and TrivialAugment (Mueller and Hutter 2021), from which the even draw of
    strengths is. Differs: the two operations of an image are never of one kind, so that the whole batch is moved by
    one resampling and recoloured by one pass; images are never inverted or equalised.

    Args:
        images: (b, 3, h, w) float in [0, 1], square.
        generator: of the images' device.

    Returns:
        The same shape, again in [0, 1].
    """
    count, device = len(images), images.device
    kinds = torch.randint(3, (count,), generator=generator, device=device)  # 0 moved, 1 recoloured, 2 both
    geometry = torch.randint(len(GEOMETRIES), (count,), generator=generator, device=device)
    choice = torch.randint(len(FILTERS), (count,), generator=generator, device=device)
    strengths = 2 * torch.rand((3, count), generator=generator, device=device) - 1
    moved = move(images, geometry, strengths[:2] * (kinds != 1))
    return refilter(moved, torch.where(kinds == 0, -1, choice), strengths[2])


GEOMETRIES = ("rotate", "shear_x", "shear_y", "translate")
FILTERS = ("brightness", "contrast", "saturation", "sharpness", "posterize", "solarize")


def move(images: Tensor, geometry: Tensor, strengths: Tensor) -> Tensor:
    """Rotate, shear or translate each image, all in one resampling; what enters repeats the border.

    Args:
        images: (b, 3, h, w) float, square.
        geometry: (b,) int64, numbers in GEOMETRIES.
        strengths: (2, b) in [-1, 1], shares of ROTATION, SHEAR or TRANSLATION; the second moves down, and 0 leaves an
            image as it is.
    """
    by = {name: torch.where(geometry == number, strengths, 0) for number, name in enumerate(GEOMETRIES)}
    angle = by["rotate"][0] * math.radians(ROTATION)
    across, down = 2 * TRANSLATION * by["translate"]  # the grid goes from -1 to 1
    first_row = torch.stack([angle.cos(), -angle.sin() + SHEAR * by["shear_x"][0], across], dim=1)
    second_row = torch.stack([angle.sin() + SHEAR * by["shear_y"][0], angle.cos(), down], dim=1)
    grid = functional.affine_grid(torch.stack([first_row, second_row], dim=1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def warp(images: Tensor, generator: Generator) -> Tensor:
    """Turn, shear, scale, shift and bend each image a little, all in one resampling; what enters repeats the border.

    What another hand, or another pen, does to a character; the bend is after Simard et al. (ICDAR 2003), whose field of
    random steps is smoothed by a Gaussian, and here drawn at WARP_KNOTS x WARP_KNOTS points with cubics between them.

    Args:
        images: (b, 3, h, w) float, square.
        generator: of the images' device.
    """
    count, _, height, width = images.shape
    angle, wide, high, shear, across, down = 2 * torch.rand((6, count), generator=generator, device=images.device) - 1
    angle, shear = math.radians(WARP_ROTATION) * angle, WARP_SHEAR * shear
    wide, high = 1 + WARP_SCALE * wide, 1 + WARP_SCALE * high
    across, down = 2 * WARP_SHIFT * across, 2 * WARP_SHIFT * down  # the grid goes from -1 to 1
    first_row = torch.stack([angle.cos() * wide, shear - angle.sin(), across], dim=1)
    second_row = torch.stack([angle.sin(), angle.cos() * high, down], dim=1)
    grid = functional.affine_grid(torch.stack([first_row, second_row], dim=1), list(images.shape), align_corners=False)
    knots = torch.randn((count, 2, WARP_KNOTS, WARP_KNOTS), generator=generator, device=images.device)
    bend = functional.interpolate(2 * WARP_BEND * knots, (height, width), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def refilter(images: Tensor, choice: Tensor, strengths: Tensor) -> Tensor:
    """Change the colours or the sharpness of each image.

    The first four move away from, or towards, black, the mean grey, the grey image and the blurred image, as PIL's
    enhancers do; posterizing keeps POSTERIZED_BITS of a colour; solarizing inverts what is above a threshold.

    Args:
        images: (b, 3, h, w) float in [0, 1].
        choice: (b,) int64, numbers in FILTERS; -1 leaves an image as it is.
        strengths: (b,) in [-1, 1].
    """
    strengths = strengths.view(-1, 1, 1, 1)
    is_ = {name: (choice == number).view(-1, 1, 1, 1) for number, name in enumerate(FILTERS)}
    red, green, blue = (weight * images[:, i : i + 1] for i, weight in enumerate(GREY))
    grey = red + green + blue
    blurred = (9 * functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False) + 4 * images) / 13
    plain = torch.where(is_["saturation"], grey, torch.where(is_["sharpness"], blurred, 0.0))
    plain = torch.where(is_["contrast"], grey.mean(dim=(2, 3), keepdim=True), plain)
    factor = 1 + BLEND * strengths * (is_["brightness"] | is_["contrast"] | is_["saturation"] | is_["sharpness"])
    blended = (plain + (images - plain) * factor).clamp_(0, 1)
    fewest, most = POSTERIZED_BITS
    step = torch.exp2(8 - (fewest + (most - fewest) * strengths.abs()).round()) / 255
    blended = torch.where(is_["posterize"], (blended / step + 1e-4).floor() * step, blended)  # 1e-4: 3.9999999 is 4
    return torch.where(is_["solarize"] & (blended >= strengths.abs()), 1 - blended, blended)


def hide_parts(images: Tensor, generator: Generator) -> Tensor:
    """Hide up to HIDDEN_SHARE of some images, HIDDEN_CHANCE of them: what images with missing parts look like.

    An image loses a block, one of its sides or scattered patches, each a third of the time: the shapes by which models
    are measured (retrieval/occlusion.py). In their place comes the mean colour of the batch, which tells nothing of the
    image.

    Args:
        images: (b, 3, h, w) float in [0, 1].
        generator: of the images' device.
    """
    count, _, height, width = images.shape
    shares, chance = torch.rand((2, count), generator=generator, device=images.device)
    shares = HIDDEN_SHARE * shares * (chance < HIDDEN_CHANCE)
    kinds = torch.randint(len(SHAPES), (count,), generator=generator, device=images.device)
    hidden = torch.zeros((count, height, width), dtype=torch.bool, device=images.device)
    for number, mask in enumerate(SHAPES.values()):
        hidden |= mask(shares * (kinds == number), height, width, generator)
    return torch.where(hidden[:, None], images.mean(dim=(0, 2, 3), keepdim=True), images)


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
    "shift_patch": lambda images, generator: patch(shift_only(images, generator), generator),
    "warp": lambda images, generator: warp(to_unit(images), generator),
    "shift_rand": lambda images, generator: rand_augment(shift_only(images, generator), generator),
    "crop_flip": crop_flip,
    "crop_flip_colour": lambda images, generator: recolour(crop_flip(images, generator), generator),
    "crop_flip_erase": lambda images, generator: erase(crop_flip(images, generator), generator),
    "crop_flip_patch": lambda images, generator: patch(crop_flip(images, generator), generator),
    "crop_flip_rand": lambda images, generator: rand_augment(crop_flip(images, generator), generator),
}

ROBUST: dict[str, Augmentation] = {
    "none": lambda images, generator: images,  # noqa: ARG005
    "missing": hide_parts,
}


def named_augmentation(name: str, robust: str = "none") -> Augmentation:
    """The augmentation of that name: (b, 3, h, w) uint8 and a generator of its device -> (b, 3, h, w) float in [0, 1].

    Args:
        name: one of AUGMENTATIONS.
        robust: one of ROBUST, what embeddings are to withstand: "missing" hides parts of the augmented images.

    Raises:
        ValueError: unknown name ("auto" is decided first: choose_augmentation).
    """
    for given, table, what in ((name, AUGMENTATIONS, "augmentation"), (robust, ROBUST, "robust")):
        if given not in table:
            raise ValueError(f"Unknown {what} '{given}'; choose one of: {', '.join(table)}.")
    augment, harden = AUGMENTATIONS[name], ROBUST[robust]
    return augment if robust == "none" else lambda images, generator: harden(augment(images, generator), generator)


def choose_augmentation(images: Callable[[Tensor], Tensor], labels: Tensor, asked: str = "auto") -> Choice:
    """Decide whether training may mirror the images: does a mirrored image stay nearest to its class?

    Half of the images of each class make its mean picture; the other half are answered by the nearest mean, upright
    and mirrored. Mirroring is allowed when at least MIRRORED_SHARE of the right answers survive it. Digits and
    characters lose most of them. Where the means answer no better than chance nothing can be seen, and images are not
    mirrored.

    Args:
        images: positions (b,) int64 -> (b, 3, h, w) uint8, training images; at most IMAGES_TO_JUDGE, evenly spaced, are
            read, a few at a time.
        labels: (n,) int64, theirs.
        asked: what the user asked for; anything but "auto" is taken as it is, and no image is read.

    Returns:
        A name of AUGMENTATIONS and why.

    Raises:
        ValueError: `asked` is neither "auto" nor a name of AUGMENTATIONS.
    """
    if asked != "auto":
        named_augmentation(asked)
        return Choice(asked, f"augmentation {asked}: asked for.", {})
    chosen = evenly_spaced(len(labels))
    small = torch.cat([_small_grey(images(positions)) for positions in chosen.split(IMAGES_AT_ONCE)])
    upright, mirrored, queries, chance = _mirror_test(small, labels[chosen].to(small.device))
    seen_at_all = upright >= chance + 3 * (chance / max(queries, 1)) ** 0.5
    facts = {"upright_accuracy": upright, "mirrored_accuracy": mirrored, "chance": chance, "queries": queries}
    seen = (
        f"the nearest class mean is right for {upright:.1%} of {queries:,} images and {mirrored:.1%} of their mirrors"
    )
    if not seen_at_all:
        return Choice("shift", f"augmentation shift, no mirroring: {seen}, no better than chance: no evidence.", facts)
    if mirrored < MIRRORED_SHARE * upright:
        return Choice("shift", f"augmentation shift, no mirroring: {seen}.", facts)
    return Choice("crop_flip", f"augmentation crop_flip, mirroring allowed: {seen}.", facts)


def evenly_spaced(count: int) -> Tensor:
    """Of so many images those that an augmentation is chosen by: (at most IMAGES_TO_JUDGE,) int64."""
    return torch.arange(0, count, max(1, -(-count // IMAGES_TO_JUDGE)))


def _small_grey(images: Tensor) -> Tensor:
    """(b, 3, h, w) uint8 -> (b, 16, 16) float."""
    return functional.adaptive_avg_pool2d(images.float().mean(dim=1), 16)


def _mirror_test(small: Tensor, labels: Tensor) -> tuple[float, float, int, float]:
    """Accuracy of nearest class means upright and mirrored, the number of queries, the accuracy of guessing.

    Args:
        small: (n, 16, 16) grey images.
        labels: (n,) int64.
    """
    order = torch.argsort(labels, stable=True)
    small, (_, classes) = small[order], torch.unique(labels[order], return_inverse=True)
    count = int(classes.max()) + 1
    makes_means = torch.arange(len(small), device=small.device) % 2 == 0
    small = small - small[makes_means].mean(dim=0) / 2 - small[makes_means].mean(dim=0).flip(-1) / 2
    sums = torch.zeros((count, 16, 16), device=small.device).index_add_(0, classes[makes_means], small[makes_means])
    present = torch.bincount(classes[makes_means], minlength=count) > 0
    means = functional.normalize(sums.flatten(1), dim=1)
    answers = []
    for queries in (small[~makes_means], small[~makes_means].flip(-1)):
        scores = queries.flatten(1) @ means.T
        answers.append(
            (scores.masked_fill(~present, -torch.inf).argmax(dim=1) == classes[~makes_means]).float().mean().item()
        )
    return answers[0], answers[1], int((~makes_means).sum()), 1 / count

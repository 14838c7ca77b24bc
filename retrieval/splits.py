"""Which images are trained on, chosen on and tested on: the source's own split, stratified, or by classes.

Every choice is by the rank of a hash of seed and content, so the order of the images does not matter, and what is added
or taken away moves little else: of a class at most the images at the edge of its share, and where classes are held out
whole, at most those at the edge of theirs.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

CLASS_ORDERS = ("drawn", "listed")
DISJOINT_BY = ("class", "group")
UNMEASURABLE = "the validation images have no two classes, or no two images of one"  # where can_measure says no


@dataclass(frozen=True)
class Shares:
    """How much is held out.

    Attributes:
        test: of the images of each class (closed) or of the classes (disjoint); in (0, 1).
        validation: of what is left for training; in [0, 1).
        seed: of the choice.
        class_order: where classes are held out whole, which: "drawn" by the seed, or "listed": sorted by name, numbers
            in it by their value, the first ones train, then validation, the last ones are for testing.
        disjoint_by: what is held out whole: a "class", or a "group" of classes, the first folder of a nested name such
            as alphabet/character.
    """

    test: float
    validation: float
    seed: int
    class_order: str = "drawn"
    disjoint_by: str = "class"

    def __post_init__(self) -> None:
        for name, allowed in (("class_order", CLASS_ORDERS), ("disjoint_by", DISJOINT_BY)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Unknown {name} '{getattr(self, name)}'; choose one of: {', '.join(allowed)}.")


@dataclass(frozen=True)
class Labelled:
    """What a split is decided on, one entry an image.

    Attributes:
        classes: class name.
        keys: digest of the content; no two images of a class have the same.
        own: the source's own split, or "".
    """

    classes: Sequence[str]
    keys: Sequence[str]
    own: Sequence[str]


def assign_splits(split: str, images: Labelled, shares: Shares) -> list[str]:
    """One of dataset.SPLITS for every image.

    Args:
        split: one of SPLITTERS.
        images: at least two of each class.
        shares: what to hold out.

    Raises:
        ValueError: an unknown split, or the images do not allow it.
    """
    if split not in SPLITTERS:
        raise ValueError(f"Unknown split '{split}'; choose one of: {', '.join(SPLITTERS)}.")
    return SPLITTERS[split](images, shares)


def check_measurable(splits: Sequence[str], classes: Sequence[str], split: str) -> None:
    """Refuse test images of which R@1 could not be measured, before anything is trained; none at all are allowed.

    Args:
        splits: of each image.
        classes: their names.
        split: one of SPLITTERS, that gave them.

    Raises:
        ValueError: fewer than two classes have two test images.
    """
    of_class = Counter(name for name, its in zip(classes, splits, strict=True) if its == "test")
    pairs = sum(count > 1 for count in of_class.values())
    if of_class and pairs < 2:
        helps = "Give more images of a class (4 or more), more classes, or a larger test_fraction."
        if split == "own":
            helps = (
                "Give more images of a class in the source's test (2 or more), or more classes, or use split=closed."
            )
        raise ValueError(
            f"The {of_class.total():,} test images have {pairs} class(es) of two images or more; R@1 is measured among "
            f"them and takes two such classes. {helps}"
        )


def can_measure(labels: Collection[str] | np.ndarray) -> bool:
    """Whether R@1 among images of these labels (n,) tells models apart.

    It takes two images of a class, for one to be found, and a second class: of a single one every answer is right.
    """
    return 1 < len(set(labels)) < len(labels)


def what_validation_lacks(splits: Sequence[str], classes: Sequence[str], split: str, asked: bool = True) -> str:
    """Why nothing can be chosen on validation and what to do, in a sentence; empty where R@1 can be measured on it.

    Args:
        splits: of each image.
        classes: their names.
        split: one of SPLITTERS, that gave them.
        asked: whether validation images were asked for; without any the sentence is empty then too.
    """
    held_out = [name for name, its in zip(classes, splits, strict=True) if its == "validation"]
    if can_measure(held_out) or not (held_out or asked):
        return ""
    helps = "give more classes, more images of a class (6 or more), or a smaller test_fraction"
    if split == "own":
        helps = (
            "give more classes or more images of a class in the source's validation, or where it has none in its train "
            "(4 or more), or use split=closed"
        )
    return (
        f"{len(held_out):,} validation images of {len(set(held_out)):,} class(es): R@1 takes two classes and two "
        f"images of one, so the later steps choose without evidence and say so; {helps}."
    )


def own(images: Labelled, shares: Shares) -> list[str]:
    """The source's train and test. Validation is the source's too, or carved from train.

    It is carved by classes when no test class is in train, else stratified.

    Raises:
        ValueError: an image without split, or an order or groups of classes where none is held out whole.
    """
    found = set(images.own)
    if "" in found or not {"train", "test"} <= found:
        has = ", ".join(sorted(found - {""})) or "none"
        raise ValueError(
            f"split=own needs train and test for every image; the source's own splits: {has}"
            f"{' and images without one' if '' in found and len(found) > 1 else ''}. "
            "Use split=closed or split=disjoint."
        )
    training = [row for row, split in enumerate(images.own) if split == "train"]
    classes = {images.classes[row] for row in training}
    unseen = classes.isdisjoint(images.classes[row] for row, split in enumerate(images.own) if split == "test")
    carved = "validation" not in found and bool(shares.validation)
    if (shares.class_order, shares.disjoint_by) != ("drawn", "class") and not (carved and unseen):
        raise ValueError(
            f"class_order is {shares.class_order} and disjoint_by is {shares.disjoint_by}; split=own holds classes out "
            "whole only where no test class is in train and validation is carved from it. Leave the two as they are, "
            "or use split=disjoint."
        )
    splits = list(images.own)
    if not carved:
        return splits
    if unseen:
        _classes_to("validation", splits, training, images, shares.validation, shares)
    else:
        _stratified_to("validation", splits, training, images, shares.validation, shares.seed)
    return splits


def closed(images: Labelled, shares: Shares) -> list[str]:
    """The same classes everywhere: of each class a share of its images.

    The share is rounded; of a class of four images or more at least two are held out and two stay, since an image is
    retrieved through another of its class. Of two or three images one is held out for testing, where the training
    images may find it, and none for validation.
    """
    splits = ["train"] * len(images.classes)
    _stratified_to("test", splits, range(len(splits)), images, shares.test, shares.seed)
    training = [row for row, split in enumerate(splits) if split == "train"]
    _stratified_to("validation", splits, training, images, shares.validation, shares.seed)
    return splits


def disjoint(images: Labelled, shares: Shares) -> list[str]:
    """No class in two splits: test classes are never seen in training, and neither are those of validation.

    Validation has at least two classes, since R@1 of a single one is 100 % whatever the model; where that would leave
    fewer than two to train on it has none. With disjoint_by "group" no group is in two splits either, the shares are of
    the groups, and two groups stay to train on.
    """
    splits = ["train"] * len(images.classes)
    _classes_to("test", splits, range(len(splits)), images, shares.test, shares)
    training = [row for row, split in enumerate(splits) if split == "train"]
    _classes_to("validation", splits, training, images, shares.validation, shares)
    return splits


SPLITTERS: dict[str, Callable[[Labelled, Shares], list[str]]] = {"own": own, "closed": closed, "disjoint": disjoint}


def held_out_count(images: int, share: float, alone: bool = True) -> int:
    """How many of a class's images are held out.

    Args:
        images: of the class.
        share: of them to hold out.
        alone: whether one image may be held out by itself, or training be left with one.
    """
    if not share or images < (2 if alone else 4):
        return 0
    fewest = 2 if images >= 4 else 1
    return min(max(round(images * share), fewest), images - fewest)


def _stratified_to(
    split: str, splits: list[str], rows: Sequence[int], images: Labelled, share: float, seed: int
) -> None:
    """Move a share of each class's rows to the split."""
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(images.classes[row], []).append(row)
    for group in members.values():
        ranked = sorted(group, key=lambda row: _rank(seed, split, images.keys[row]))
        for row in ranked[: held_out_count(len(group), share, alone=split == "test")]:
            splits[row] = split


def _classes_to(
    split: str, splits: list[str], rows: Sequence[int], images: Labelled, share: float, shares: Shares
) -> None:
    """Move all rows of a share of the classes, or of the groups of classes, to the split."""
    if not share:
        return
    unit_of = _groups(images.classes) if shares.disjoint_by == "group" else {name: name for name in images.classes}
    units = {unit_of[images.classes[row]] for row in rows}
    if shares.class_order == "listed":
        ordered = sorted(units, key=_by_name, reverse=True)
    else:
        ordered = sorted(units, key=lambda name: _rank(shares.seed, split, name))
    count = max(round(len(ordered) * share), 1)
    if split == "validation":
        classes_of = Counter(unit_of[name] for name in {images.classes[row] for row in rows})
        count = _enough_to_choose_on(count, [classes_of[unit] for unit in ordered])
    if count and len(ordered) - count < 2:
        kind = {"class": "classes", "group": "groups"}[shares.disjoint_by]
        raise ValueError(
            f"{len(ordered)} {kind} are left and {count} would go to {split}; training needs at least 2 {kind} "
            f"of its own. Use split=closed, a smaller fraction, or more {kind}."
        )
    chosen = set(ordered[:count])
    for row in rows:
        if unit_of[images.classes[row]] in chosen:
            splits[row] = split


def _enough_to_choose_on(count: int, classes_of_units: Sequence[int]) -> int:
    """So many of the units, or more until they hold two classes; none where fewer than two units would be left."""
    held = list(accumulate(classes_of_units))
    enough = sum(classes < 2 for classes in held) + 1
    return max(count, enough) if len(held) - enough >= 2 else 0


def _groups(classes: Sequence[str]) -> dict[str, str]:
    """The group of each class."""
    flat = next((name for name in classes if "/" not in name), None)
    if flat is not None:
        raise ValueError(
            f"disjoint_by is group, and class '{flat}' lies in none: its name is not nested, like alphabet/character. "
            "Lay the classes out in folders of groups, or use disjoint_by=class."
        )
    return {name: name.split("/")[0] for name in classes}


def _by_name(name: str) -> tuple[list[str | int], str]:
    """Sorts names with the numbers in them by their value: "n2" before "n10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _rank(seed: int, purpose: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{key}".encode()).digest()

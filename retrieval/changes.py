"""Which images of a dataset are new, changed or gone since another one: pure functions."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

IMAGES_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "class_name", "split", "sha256")])


@dataclass(frozen=True)
class Differences:
    """How the images differ from those of before; counts of images, and names of classes.

    Images of now are as before, moved, changed or new; those of before as now, moved, changed or removed.

    Attributes:
        before: images of before.
        now: images of now.
        new: pixels that were not there.
        removed: pixels that are not there any more.
        changed: other pixels, new ones, at the same place, for others, which are gone.
        moved: the same pixels at another place.
        other_class: moved, changed or as before, and under another class.
        other_split: moved, changed or as before, and in another split.
        new_classes: with how many images.
        removed_classes: with how many images they had.
        by_class: of each class that has some: new, changed and removed images.
    """

    before: int
    now: int
    new: int
    removed: int
    changed: int
    moved: int
    other_class: int
    other_split: int
    new_classes: dict[str, int]
    removed_classes: dict[str, int]
    by_class: dict[str, tuple[int, int, int]]


class _Image(NamedTuple):
    class_name: str
    split: str
    sha256: str


def image_list(index: pa.Table) -> pa.Table:
    """What is kept of a dataset's index: IMAGES_SCHEMA, in the order of the places."""
    return index.select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA).sort_by("source")


def differences(before: pa.Table, now: pa.Table) -> Differences:
    """Compare two lists of images, of IMAGES_SCHEMA.

    A place is where an image came from, relative to the source's root. First images are compared place by place; of
    what is left on either side, equal pixels are one image that moved. So a folder that was renamed, or a table whose
    rows were shuffled, holds nothing new.
    """
    old, fresh = _by_place(before), _by_place(now)
    kept = {place for place in old.keys() & fresh.keys() if old[place].sha256 == fresh[place].sha256}
    moved = _moved(old, fresh, kept)
    came, went = set(moved.values()), set(moved)  # places of moved images, now and before
    appeared, vanished = fresh.keys() - kept - came, old.keys() - kept - went
    changed = appeared & vanished
    pairs = [*((place, place) for place in kept | changed), *moved.items()]
    counts = [
        Counter(images[place].class_name for place in places)
        for images, places in ((fresh, appeared - changed), (fresh, changed), (old, vanished - changed))
    ]
    had, has = (Counter(image.class_name for image in images.values()) for images in (old, fresh))
    return Differences(
        before=len(old),
        now=len(fresh),
        new=len(appeared - changed),
        removed=len(vanished - changed),
        changed=len(changed),
        moved=len(moved),
        other_class=sum(old[was].class_name != fresh[place].class_name for was, place in pairs),
        other_split=sum(old[was].split != fresh[place].split for was, place in pairs),
        new_classes={name: n for name, n in sorted(has.items()) if name not in had},
        removed_classes={name: n for name, n in sorted(had.items()) if name not in has},
        by_class={name: (counts[0][name], counts[1][name], counts[2][name]) for name in sorted(set().union(*counts))},
    )


def _by_place(images: pa.Table) -> dict[str, _Image]:
    columns = (images[name].to_pylist() for name in IMAGES_SCHEMA.names)
    return {place: _Image(*facts) for place, *facts in zip(*columns, strict=True)}


def _moved(old: dict[str, _Image], fresh: dict[str, _Image], kept: set[str]) -> dict[str, str]:
    """Places of now by places of before, of images that have neither the place of before nor other pixels."""
    waiting: dict[str, list[str]] = {}
    for place in sorted(fresh.keys() - kept, reverse=True):
        waiting.setdefault(fresh[place].sha256, []).append(place)
    return {place: found.pop() for place in sorted(old.keys() - kept) if (found := waiting.get(old[place].sha256, []))}


def sentence(found: Differences) -> str:
    """The differences in a few words."""
    counts = {
        "new": found.new,
        "changed": found.changed,
        "removed": found.removed,
        "moved": found.moved,
        "under another class": found.other_class,
        "in another split": found.other_split,
    }
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    classes = [
        f"{len(names)} {what} class{'es' if len(names) > 1 else ''}"
        for what, names in (("new", found.new_classes), ("removed", found.removed_classes))
        if names
    ]
    return ", ".join(parts + classes) or "no image is new, changed or removed"

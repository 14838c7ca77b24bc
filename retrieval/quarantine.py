"""Which images do not enter the dataset, and why: rules over what decoding saw, each image left out by name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.sources import Record
from retrieval.staging import Seen

REASONS = {
    "corrupt": "the data are damaged",
    "truncated": "the data end too early",
    "unreadable": "the bytes could not be read",
    "format": "not a picture of an allowed format or colour mode",
    "too_small": "the shorter side is under min_side",
    "too_large": "more than max_pixels, or a file too big for them",
    "two_labels": "the same picture carries two labels; every copy is left out, for either may be wrong",
    "train_and_test": "the same picture is held out; the copy in training (or validation) is left out",
    "duplicate": "the same picture again; the first by name is kept",
    "single_image_class": "the only image of its class; no other can match it",
}
HELD_OUT_FIRST = {"test": 0, "validation": 1, "train": 2, "": 2}


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One image that is left out.

    Attributes:
        row: of the record.
        name: of the record.
        class_name: of the record.
        reason: one of REASONS.
        detail: what was seen; the other copy's name, the decoder's words.
    """

    row: int
    name: str
    class_name: str
    reason: str
    detail: str


def quarantine(records: Sequence[Record], seen: Sequence[Seen]) -> list[Quarantined]:
    """Apply every rule, in the order of REASONS; ascending by row.

    Two pictures are the same when their decoded RGB bytes, width and height are.

    Args:
        records: one an image; `split` counts only where the source's own split is used.
        seen: what decoding found, one a record.
    """
    refused: dict[int, tuple[str, str]] = {
        row: (image.reason, image.detail) for row, image in enumerate(seen) if image.reason
    }
    refused |= _repeats(records, seen)
    classes = Counter(record.class_name for row, record in enumerate(records) if row not in refused)
    for row, record in enumerate(records):
        if row not in refused and classes[record.class_name] == 1:
            refused[row] = ("single_image_class", f"class {record.class_name}")
    return [Quarantined(row, records[row].name, records[row].class_name, *refused[row]) for row in sorted(refused)]


def check_fraction(quarantined: Sequence[Quarantined], images: int, max_fraction: float) -> None:
    """Refuse a source of which too much is quarantined.

    Raises:
        ValueError: names the biggest causes and a few images of each.
    """
    if len(quarantined) <= max_fraction * images and len(quarantined) < images:
        return
    causes = []
    for reason, count in Counter(image.reason for image in quarantined).most_common(3):
        names = [f"{image.name} ({image.detail})" for image in quarantined if image.reason == reason][:3]
        causes.append(f"{count} x {reason}, {REASONS[reason]}: {', '.join(names)}{', ...' if count > 3 else ''}")
    raise ValueError(
        f"{len(quarantined)} of {images} images are unfit ({len(quarantined) / images:.1%}); "
        f"max_quarantined_fraction allows {max_fraction:.1%} and at least one image must be left. "
        "Mend the source or raise max_quarantined_fraction.\n  " + "\n  ".join(causes)
    )


def _repeats(records: Sequence[Record], seen: Sequence[Seen]) -> dict[int, tuple[str, str]]:
    groups: dict[tuple[str, int, int], list[int]] = {}
    for row, image in enumerate(seen):
        if not image.reason:
            groups.setdefault((image.sha256, image.width, image.height), []).append(row)
    refused: dict[int, tuple[str, str]] = {}
    for rows in groups.values():
        if len(rows) > 1:
            refused |= _judge_copies(rows, records)
    return refused


def _judge_copies(rows: list[int], records: Sequence[Record]) -> dict[int, tuple[str, str]]:
    """Which copies of one picture are left out."""
    if len({records[row].class_name for row in rows}) > 1:
        labelled = {row: f"{records[row].name} is {records[row].class_name}" for row in rows}
        return {
            row: ("two_labels", "; ".join(text for other, text in labelled.items() if other != row)) for row in rows
        }
    kept = min(rows, key=lambda row: (HELD_OUT_FIRST[records[row].split], row))
    return {
        row: (
            "duplicate" if records[row].split == records[kept].split else "train_and_test",
            f"same as {records[kept].name}",
        )
        for row in rows
        if row != kept
    }

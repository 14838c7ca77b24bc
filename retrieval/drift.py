"""Whether new images are what a champion knows: its embeddings of them against those of images it was measured on.

The reference are test images: no model was trained on them, as none was on the new ones, and training images lie closer
to each other than any others do.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.confidence import wilson_lower_bound

FORMAT_VERSION = 1
MOST_IMAGES = 10_000  # of a reference: 10 MB of 512 numbers an image, and 10 images for each of a thousand classes
USUAL = 0.05  # share of the reference that counts as far where the model's threshold does not say it
MOST_FAR = 0.5  # share of the reference that a threshold may call far: one that calls nearly all so hides what moves
LEAST_OF_A_CLASS = 5  # images, in the reference and among the new ones, to speak of a class
MOST_OF_A_CLASS = 500  # images on each side: more would only cost
PERMUTATIONS = 1_999  # so that a single class among a hundred can stand out
FALSE_DISCOVERIES = 0.05  # expected share, among the classes that are said to have moved, of those that have not
ONE_SIDE = 0.975  # level of a one-sided bound that makes a two-sided interval of 95 %


@dataclass(frozen=True)
class Reference:
    """Embeddings of images that a model was measured on.

    Attributes:
        model_digest: of the model.
        embeddings: (r, d) float, any scale; rows are brought to length 1 where they are kept and compared.
        classes: (r,) names.
        threshold: the similarity from which an answer of the model may be trusted; None where there is none.
    """

    model_digest: str
    embeddings: np.ndarray
    classes: np.ndarray
    threshold: float | None


@dataclass(frozen=True)
class Share:
    """How many of some images have no near neighbour in the reference."""

    images: int
    far: int

    @property
    def value(self) -> float | None:
        """The share; None of no images."""
        return self.far / self.images if self.images else None


@dataclass(frozen=True)
class ClassShift:
    """How far the centre of a class has moved.

    Attributes:
        class_name: of the class.
        images: new ones that were compared.
        shift: cosine distance of the mean embeddings of the new images and of the reference, 0 to 2.
        by_chance: what 95 % of the random divisions of the same images into two parts of these sizes stay below.
        p_value: share of these divisions that shift at least as far.
    """

    class_name: str
    images: int
    shift: float
    by_chance: float
    p_value: float


@dataclass(frozen=True)
class Drift:
    """What the champion makes of new images.

    Attributes:
        far_below: the similarity below which a nearest image is far.
        from_threshold: whether that is the model's own threshold, which half of the reference reach or more; else 5 %
            of the reference lie below it.
        seen: of the new images whose class is in the reference.
        unseen: of those whose class the champion has never had.
        usual: of the reference images, each among the others: what is to be expected of images that have not drifted.
        left_out: new images of classes that the champion was trained on and that the reference does not have.
        similarities: (n,) of the new images, seen and unseen, to their nearest, ascending.
        usual_similarities: (r,) of the reference images to their nearest other, ascending.
        shifts: of classes with enough images, the least likely first.
        unseen_classes: with how many new images.
    """

    far_below: float
    from_threshold: bool
    seen: Share
    unseen: Share
    usual: Share
    left_out: int
    similarities: np.ndarray
    usual_similarities: np.ndarray
    shifts: tuple[ClassShift, ...]
    unseen_classes: dict[str, int]

    @property
    def images(self) -> int:
        """New images that were compared."""
        return self.seen.images + self.unseen.images

    @property
    def excess(self) -> float | None:
        """By how much more of the new images of known classes lie far than is usual; None where there are none."""
        return None if self.seen.value is None or self.usual.value is None else self.seen.value - self.usual.value

    @property
    def excess_interval(self) -> tuple[float, float] | None:
        """Where it lies with 95 % confidence, were the images drawn one by one; None where there are none."""
        return difference_interval(self.seen, self.usual) if self.seen.images else None

    @property
    def shifted(self) -> tuple[ClassShift, ...]:
        """The classes whose shift is beyond chance, however many were looked at.

        So many of the least likely that at most 5 % of them are expected to be there by chance (Benjamini and Hochberg,
        Journal of the Royal Statistical Society B, 1995).
        """
        ranks = np.arange(1, len(self.shifts) + 1)
        values = np.array([shift.p_value for shift in self.shifts])
        passing = np.flatnonzero(values <= FALSE_DISCOVERIES * ranks / max(len(values), 1))
        return self.shifts[: passing[-1] + 1] if len(passing) else ()


def save_reference(path: Path, reference: Reference, images: Sequence[str]) -> None:
    """Write a reference as one Parquet file, its numbers as float16; of more than 10,000 images, some of them.

    Args:
        path: of the file.
        reference: all there is.
        images: (r,) sha256 of each image, by which they are chosen.
    """
    rows = some_of(images, MOST_IMAGES)
    values = np.ascontiguousarray(_directions(reference.embeddings[rows]), np.float16)
    threshold = "" if reference.threshold is None else repr(reference.threshold)
    facts = {"format": str(FORMAT_VERSION), "model_digest": reference.model_digest, "threshold": threshold}
    table = pa.table(
        {
            "class_name": pa.array(reference.classes[rows].tolist(), pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]),
        }
    )
    pq.write_table(table.replace_schema_metadata({f"rankone.{name}": text for name, text in facts.items()}), path)


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
        ValueError: it is no reference, or of another format.
    """
    try:
        table = pq.read_table(path)
        facts = {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
        if facts["rankone.format"] != str(FORMAT_VERSION):
            raise ValueError(f"format {facts['rankone.format']}")
        column = table["embedding"].combine_chunks()
        embeddings = column.flatten().to_numpy().reshape(len(table), column.type.list_size).astype(np.float32)
        threshold = facts["rankone.threshold"]
        classes = np.asarray(table["class_name"].to_pylist(), object)
        return Reference(facts["rankone.model_digest"], embeddings, classes, float(threshold) if threshold else None)
    except (KeyError, AttributeError, pa.ArrowInvalid, ValueError) as error:
        raise ValueError(f"{path} is no reference of format {FORMAT_VERSION}: {error}") from error


def some_of(images: Sequence[str], most: int) -> np.ndarray:
    """Positions of at most so many images, ascending: those whose sha256 comes first.

    The choice is even over all images, whatever their order, and the same image is chosen again when others come.
    """
    return np.sort(np.argsort(np.asarray(images, dtype=str), kind="stable")[:most])


def drift(
    reference: Reference, embeddings: np.ndarray, classes: np.ndarray, known: Collection[str] = (), seed: int = 0
) -> Drift:
    """Compare new images with a reference.

    The share that lies far has a baseline, the reference's own, because a nearest image among few is far anyhow. The
    shift of a class is compared with permutations of its images (Good, Permutation Tests, 2000), because the mean of
    few images moves by chance.

    Args:
        reference: at least two images.
        embeddings: (n, d) of the new images by the same model, any scale, at least one.
        classes: (n,) their names.
        known: classes of the champion's images of every split. New images of those that the reference does not have,
            as with classes that are split between training and test, can be compared with nothing and are left out.
        seed: of the permutations.

    Raises:
        ValueError: dimensions disagree, or there is nothing to compare.
    """
    names, held = np.asarray(classes, dtype=str), np.asarray(reference.classes, dtype=str)
    is_seen = np.isin(names, held)
    is_unseen = ~is_seen & ~np.isin(names, np.asarray(sorted(known), dtype=str))
    compared = is_seen | is_unseen
    if len(held) < 2 or not compared.any():
        raise ValueError(
            f"{len(held):,} images in the champion's reference and {len(names):,} new ones, {int(compared.sum()):,} of "
            "them of classes that can be compared; a comparison needs 2 and 1."
        )
    import torch  # seconds to load, which whoever only reads findings has no use for

    from retrieval.neighbours import nearest

    reference = replace(reference, embeddings=_directions(reference.embeddings))
    embeddings = _directions(embeddings)
    before, now = (torch.from_numpy(np.array(rows, np.float32)) for rows in (reference.embeddings, embeddings))
    usual = nearest(before, before, 1, torch.arange(len(before)))[0][:, 0].numpy()
    found = np.full(len(names), np.nan, np.float32)
    found[compared] = nearest(now[torch.from_numpy(compared)], before, 1)[0][:, 0].numpy()
    far_below, own = float(np.quantile(usual, USUAL)), False
    if reference.threshold is not None and np.mean(usual < reference.threshold) <= MOST_FAR:
        far_below, own = reference.threshold, True
    unseen, counts = np.unique(names[is_unseen], return_counts=True)
    return Drift(
        far_below=far_below,
        from_threshold=own,
        seen=_share(found[is_seen], far_below),
        unseen=_share(found[is_unseen], far_below),
        usual=_share(usual, far_below),
        left_out=int((~compared).sum()),
        similarities=np.sort(found[compared]),
        usual_similarities=np.sort(usual),
        shifts=class_shifts(reference, embeddings, classes, seed),
        unseen_classes={str(name): int(count) for name, count in zip(unseen, counts, strict=True)},
    )


def difference_interval(one: Share, other: Share) -> tuple[float, float]:
    """95 % interval of the difference of two shares, from the Wilson interval of each (Newcombe, method 10, 1998).

    Statistics in Medicine 17, 873. Neither share is of no images.
    """
    (first, low, high), (second, lowest, highest) = _with_ends(one), _with_ends(other)
    down = ((first - low) ** 2 + (highest - second) ** 2) ** 0.5
    up = ((high - first) ** 2 + (second - lowest) ** 2) ** 0.5
    return first - second - down, first - second + up


def class_shifts(
    reference: Reference, embeddings: np.ndarray, classes: np.ndarray, seed: int
) -> tuple[ClassShift, ...]:
    """How far each class with enough images has moved, the least likely first."""
    generator = np.random.default_rng(seed)
    names, held = np.asarray(classes, dtype=str), np.asarray(reference.classes, dtype=str)
    shifts = []
    for name in sorted(set(names) & set(held)):
        rows_of_class = reference.embeddings[held == name], embeddings[names == name]
        before, now = (_some(rows, MOST_OF_A_CLASS, generator) for rows in rows_of_class)
        if min(len(before), len(now)) >= LEAST_OF_A_CLASS:
            shifts.append(_shift(str(name), before.astype(np.float64), now.astype(np.float64), generator))
    return tuple(sorted(shifts, key=lambda shift: (shift.p_value, shift.by_chance - shift.shift, shift.class_name)))


def _some(rows: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """At most so many rows, drawn: those that come first may be of one camera or one day."""
    return rows if len(rows) <= most else generator.choice(rows, most, replace=False)


def _shift(name: str, before: np.ndarray, now: np.ndarray, generator: np.random.Generator) -> ClassShift:
    together = np.concatenate([now, before])
    order = generator.permuted(np.tile(np.arange(len(together)), (PERMUTATIONS, 1)), axis=1)
    parts = np.zeros((PERMUTATIONS, len(together)))
    np.put_along_axis(parts, order[:, : len(now)], 1.0, axis=1)
    random = _distances(parts @ together / len(now), (1 - parts) @ together / len(before))
    found = float(_distances(now.mean(0, keepdims=True), before.mean(0, keepdims=True))[0])
    p_value = (1 + int((random >= found - 1e-12).sum())) / (PERMUTATIONS + 1)
    return ClassShift(name, len(now), found, float(np.quantile(random, 0.95)), p_value)


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine distance of each row (p, d) of one from the same row of the other; 1 where a row is 0."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = (left * right).sum(1)
    return 1 - np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def _directions(rows: np.ndarray) -> np.ndarray:
    """(n, d), each row of length 1; a row of zeros stays."""
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _share(similarities: np.ndarray, far_below: float) -> Share:
    return Share(len(similarities), int((similarities < far_below).sum()))


def _with_ends(share: Share) -> tuple[float, float, float]:
    low = wilson_lower_bound(share.far, share.images, ONE_SIDE)
    high = 1 - wilson_lower_bound(share.images - share.far, share.images, ONE_SIDE)
    return share.far / share.images, low, high

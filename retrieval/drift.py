"""Whether new images are what a champion knows: its embeddings of them against those of images it was measured on.

The reference are test images: no model was trained on them, as none was on the new ones, and training images lie closer
to each other than any others do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from retrieval.neighbours import nearest

FORMAT_VERSION = 1
MOST_IMAGES = 5_000  # of a reference: megabytes, and enough for 1 % of them to be 50
USUAL = 0.05  # share of the reference that counts as far where a model has no threshold
LEAST_OF_A_CLASS = 5  # images, in the reference and among the new ones, to speak of a class
PERMUTATIONS = 499
UNLIKELY = 0.01  # a shift that so many random divisions of the images reach is no shift


@dataclass(frozen=True)
class Reference:
    """Embeddings of images that a model was measured on.

    Attributes:
        model_digest: of the model.
        embeddings: (r, d) float32, rows of length 1.
        classes: (r,) names.
        threshold: the similarity from which an answer of the model may be trusted; None where there is none.
    """

    model_digest: str
    embeddings: np.ndarray
    classes: np.ndarray
    threshold: float | None


@dataclass(frozen=True)
class ClassShift:
    """How far the centre of a class has moved.

    Attributes:
        class_name: of the class.
        images: new ones.
        shift: cosine distance of the mean embeddings of the new images and of the reference, 0 to 2.
        by_chance: the mean shift of random divisions of the same images into two parts of these sizes.
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
        images: new images looked at.
        reference_images: images they are compared with.
        far_below: the similarity below which a nearest image is far.
        from_threshold: whether that is the model's own threshold; else 5 % of the reference lie below it.
        far: share of the new images whose nearest image of the reference is farther.
        far_usually: the same of the reference images, each among the others.
        similarities: (n,) of the new images to their nearest, ascending.
        usual_similarities: (r,) of the reference images to their nearest other, ascending.
        shifts: of classes with enough images, the least likely first.
        unseen_classes: with how many new images.
    """

    images: int
    reference_images: int
    far_below: float
    from_threshold: bool
    far: float
    far_usually: float
    similarities: np.ndarray
    usual_similarities: np.ndarray
    shifts: tuple[ClassShift, ...]
    unseen_classes: dict[str, int]

    @property
    def excess(self) -> float:
        """By how much more of the new images lie far than is usual."""
        return self.far - self.far_usually

    @property
    def shifted(self) -> tuple[ClassShift, ...]:
        """The classes whose shift is beyond chance."""
        return tuple(shift for shift in self.shifts if shift.p_value <= UNLIKELY)


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference as one Parquet file; of more than 5,000 images, as many spread evenly."""
    rows = np.linspace(0, len(reference.embeddings) - 1, min(len(reference.embeddings), MOST_IMAGES)).astype(int)
    values = np.ascontiguousarray(reference.embeddings[rows], np.float32)
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
        embeddings = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
        threshold = facts["rankone.threshold"]
        classes = np.asarray(table["class_name"].to_pylist(), object)
        return Reference(facts["rankone.model_digest"], embeddings, classes, float(threshold) if threshold else None)
    except (KeyError, AttributeError, pa.ArrowInvalid, ValueError) as error:
        raise ValueError(f"{path} is no reference of format {FORMAT_VERSION}: {error}") from error


def drift(reference: Reference, embeddings: np.ndarray, classes: np.ndarray, seed: int = 0) -> Drift:
    """Compare new images with a reference.

    The share that lies far has a baseline, the reference's own, because a nearest image among few is far anyhow. The
    shift of a class is compared with permutations of its images (Good, Permutation Tests, 2000), because the mean of
    few images moves by chance.

    Args:
        reference: at least two images.
        embeddings: (n, d) of the new images by the same model, at least one.
        classes: (n,) their names.
        seed: of the permutations.

    Raises:
        ValueError: dimensions disagree, or there are too few images.
    """
    if len(reference.embeddings) < 2 or len(embeddings) < 1:
        raise ValueError(f"{len(reference.embeddings)} and {len(embeddings)} images; a comparison needs 2 and 1.")
    known, fresh = (torch.from_numpy(np.asarray(rows, np.float32)) for rows in (reference.embeddings, embeddings))
    usual = np.sort(nearest(known, known, 1, torch.arange(len(known)))[0][:, 0].numpy())
    found = np.sort(nearest(fresh, known, 1)[0][:, 0].numpy())
    own = reference.threshold is not None
    far_below = reference.threshold if reference.threshold is not None else float(np.quantile(usual, USUAL))
    names, counts = np.unique(classes.astype(str), return_counts=True)
    seen = set(reference.classes.astype(str).tolist())
    return Drift(
        images=len(found),
        reference_images=len(usual),
        far_below=far_below,
        from_threshold=own,
        far=float((found < far_below).mean()),
        far_usually=float((usual < far_below).mean()),
        similarities=found,
        usual_similarities=usual,
        shifts=class_shifts(reference, embeddings, classes, seed),
        unseen_classes={str(name): int(n) for name, n in zip(names, counts, strict=True) if str(name) not in seen},
    )


def class_shifts(
    reference: Reference, embeddings: np.ndarray, classes: np.ndarray, seed: int
) -> tuple[ClassShift, ...]:
    """How far each class with enough images has moved, the least likely first."""
    generator = np.random.default_rng(seed)
    shifts = []
    for name in sorted(set(classes.astype(str)) & set(reference.classes.astype(str))):
        before, now = reference.embeddings[reference.classes == name], embeddings[classes == name]
        if min(len(before), len(now)) >= LEAST_OF_A_CLASS:
            shifts.append(_shift(name, before.astype(np.float64), now.astype(np.float64), generator))
    return tuple(sorted(shifts, key=lambda shift: (shift.p_value, -shift.shift, shift.class_name)))


def _shift(name: str, before: np.ndarray, now: np.ndarray, generator: np.random.Generator) -> ClassShift:
    together = np.concatenate([now, before])
    found = _distance(now.mean(0), before.mean(0))
    order = generator.permuted(np.tile(np.arange(len(together)), (PERMUTATIONS, 1)), axis=1)
    parts = np.zeros((PERMUTATIONS, len(together)))
    np.put_along_axis(parts, order[:, : len(now)], 1.0, axis=1)
    first, second = parts @ together / len(now), (1 - parts) @ together / len(before)
    random = np.array([_distance(left, right) for left, right in zip(first, second, strict=True)])
    p_value = (1 + int((random >= found - 1e-12).sum())) / (PERMUTATIONS + 1)
    return ClassShift(name, len(now), found, float(random.mean()), p_value)


def _distance(left: np.ndarray, right: np.ndarray) -> float:
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return 1 - float(left @ right) / lengths if lengths else 1.0

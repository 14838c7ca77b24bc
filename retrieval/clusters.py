"""The clusters artifact: adjusted features as targets, and which cluster every image and dimension belongs to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.manifest import Manifest, read_manifest, write_manifest

KIND, FORMAT_VERSION = "clusters", 1
TARGETS, ASSIGNMENTS, DIMENSIONS = "targets.npy", "assignments.parquet", "dimensions.parquet"
BLOCK_MATRIX, SHEET = "block_matrix.png", "cluster_sheet_{:02d}.jpeg"  # pictures, see retrieval/cluster_pictures.py


@dataclass(frozen=True)
class Clusters:
    """A clusters folder, opened.

    Attributes:
        targets: (n, D) float32, memory-mapped, rows of length 1; row i is of image i of the dataset.
        image_clusters: (n,) int64; -1 for an image whose features are all zero.
        dimension_clusters: (d,) int64, of the dimensions of the features; -1 for one that is always zero.
        manifest: digest, the digests of dataset and features, and facts.
    """

    targets: np.ndarray
    image_clusters: np.ndarray
    dimension_clusters: np.ndarray
    manifest: Manifest


def save_clusters(
    folder: Path,
    targets: Iterable[np.ndarray],
    image_clusters: np.ndarray,
    dimension_clusters: np.ndarray,
    made_from: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Manifest:
    """Write a clusters folder; the cluster map and pictures that lie there already become part of it.

    Args:
        folder: made when missing.
        targets: batches (any, D) whose rows, laid end to end, are those of the dataset.
        image_clusters: (n,) int.
        dimension_clusters: (d,) int.
        made_from: digests of dataset and features, by those names.
        facts: whatever else a reader wants to know; plain JSON.

    Raises:
        ValueError: the number of targets is not the number of images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored: np.ndarray | None = None
    written = 0
    for batch in targets:
        if stored is None:
            shape = (len(image_clusters), batch.shape[1])
            stored = np.lib.format.open_memmap(folder / TARGETS, "w+", np.float32, shape)
        stored[written : written + len(batch)] = batch[: len(stored) - written]
        written += len(batch)
    if stored is None or written != len(image_clusters):
        raise ValueError(f"{written} targets for {len(image_clusters)} images; every image needs one.")
    stored.flush()  # type: ignore[attr-defined]
    _write_table(folder / ASSIGNMENTS, "id", image_clusters)
    _write_table(folder / DIMENSIONS, "dimension", dimension_clusters)
    return write_manifest(folder, KIND, FORMAT_VERSION, dict(made_from), dict(facts))


def load_clusters(folder: Path) -> Clusters:
    """Open a clusters folder.

    Raises:
        ValueError: it holds no clusters, is of another format, or is damaged.
    """
    manifest = read_manifest(folder, KIND, FORMAT_VERSION)
    return Clusters(
        np.load(folder / TARGETS, mmap_mode="r"),
        pq.read_table(folder / ASSIGNMENTS)["cluster"].to_numpy(),
        pq.read_table(folder / DIMENSIONS)["cluster"].to_numpy(),
        manifest,
    )


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a clusters folder: the block-ordered matrix, then the sheets; empty where none were drawn."""
    sheets = sorted(folder.glob(SHEET.replace("{:02d}", "*")))
    return [folder / BLOCK_MATRIX, *sheets] if sheets else []


def _write_table(path: Path, key: str, clusters: np.ndarray) -> None:
    pq.write_table(pa.table({key: np.arange(len(clusters)), "cluster": np.asarray(clusters, np.int64)}), path)

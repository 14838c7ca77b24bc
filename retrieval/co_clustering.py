"""Spectral co-clustering: images and feature dimensions grouped together, exactly, in bounded memory.

Dhillon, KDD 2001, without the images x images side: A_n = D1^-1/2 A D2^-1/2 has its right singular vectors in the
eigenvectors of A_n^T A_n, which one pass over the rows adds up, and the left ones follow from them row by row. So shards
simply add up, new images are placed by the same map, and nothing grows with the number of images.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh

from retrieval.k_means import KMeans, normalised, spherical_k_means

ROWS_PER_BATCH = 4_096
MOST_VECTORS = 127  # more singular vectors did not raise purity, whatever the number of clusters
MOST_K_MEANS_ROWS = 65_536  # or 256 a cluster: rows that k-means looks at; all others are only assigned
CLEAR_GAP = 2.0  # ratio of neighbouring singular values that shows separate blocks
CLUSTERS_PER_CLASS = 4
LEAST_IMAGES_PER_CLUSTER = 8
LEAST_RANK = 1e-6  # singular values below this are rounding


def root(features: np.ndarray) -> np.ndarray:
    """Square roots: features that are nonnegative already, their bursts tamed.

    Raises:
        ValueError: a feature is negative.
    """
    if features.min(initial=0) < 0:
        raise ValueError("Features hold negative values, which have no root; choose nonnegative=split.")
    return np.sqrt(features)


def split(features: np.ndarray) -> np.ndarray:
    """Two columns a dimension, what is positive and what is negative: nothing is lost. (b, d) -> (b, 2 d)."""
    return np.concatenate([np.maximum(features, 0), np.maximum(-features, 0)], axis=1)


def relu(features: np.ndarray) -> np.ndarray:
    """What is negative becomes 0: a dimension counts only where it fires."""
    return np.maximum(features, 0)


def softplus(features: np.ndarray) -> np.ndarray:
    """log(1 + e^x): like relu, but smooth and never 0."""
    return np.logaddexp(features, 0, dtype=features.dtype)


NONNEGATIVE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "root": root,
    "split": split,
    "relu": relu,
    "softplus": softplus,
}


@dataclass(frozen=True)
class Sums:
    """What one pass over the rows a_i of a nonnegative matrix keeps: enough for its exact singular vectors.

    Sums of shards add up: `sums(first) + sums(second)` is `sums(both)`.

    Attributes:
        gram: (d, d) float64, the sum of a_i a_i^T / r_i where r_i is the sum of row i.
        columns: (d,) float64, the sum of a_i.
        rows: how many rows were seen.
        zero_rows: how many of them were all zero; they add nothing.
    """

    gram: np.ndarray
    columns: np.ndarray
    rows: int
    zero_rows: int

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.gram + other.gram,
            self.columns + other.columns,
            self.rows + other.rows,
            self.zero_rows + other.zero_rows,
        )

    @property
    def zero_columns(self) -> int:
        """How many columns are all zero."""
        return int(np.sum(self.columns <= 0))


def sums(batches: Iterable[np.ndarray]) -> Sums:
    """Add up a nonnegative matrix that comes in batches; memory is d^2 numbers and a few batches, whatever the length.

    Products are taken in the batches' own precision and added in float64.

    Args:
        batches: arrays (any, d) of nonnegative floats.

    Raises:
        ValueError: no rows, or a value that is negative or not finite.
    """
    gram: np.ndarray | None = None
    count = zero_rows = 0
    for batch in batches:
        row_sums = batch.sum(axis=1, dtype=np.float64)
        if not (np.isfinite(row_sums).all() and batch.min(initial=0) >= 0):
            raise ValueError(
                f"Rows {count} to {count + len(batch)} hold negative or non-finite values; "
                f"co-clustering needs a nonnegative matrix: pass features through one of: {', '.join(NONNEGATIVE)}."
            )
        if gram is None:
            gram, columns = np.zeros((batch.shape[1],) * 2), np.zeros(batch.shape[1])
        scale = np.where(row_sums > 0, row_sums, 1) ** -0.5
        scaled = batch * scale[:, None].astype(batch.dtype)  # (b, d)
        gram += scaled.T @ scaled  # numpy sees the symmetry and takes half the products
        columns += batch.sum(axis=0, dtype=np.float64)
        count, zero_rows = count + len(batch), zero_rows + int(np.sum(row_sums <= 0))
    if gram is None:
        raise ValueError("No rows to co-cluster; give at least one batch.")
    return Sums(gram, columns, count, zero_rows)


@dataclass(frozen=True)
class Spectrum:
    """Singular vectors of A_n = D1^-1/2 A D2^-1/2 after the trivial one, as a linear map for rows and points for columns.

    Attributes:
        singular_values: (m,) float64, descending, without the trivial 1.
        row_map: (d, m) float32, D2^-1/2 V / sigma: a row a_i of A has the coordinates a_i row_map / r_i.
        column_coordinates: (d, m) float32, D2^-1/2 V; rows of zeros for columns of zeros.
        leading_singular_value: of the trivial vector, as computed; exactly 1 but for rounding.
    """

    singular_values: np.ndarray
    row_map: np.ndarray
    column_coordinates: np.ndarray
    leading_singular_value: float

    def first(self, vectors: int) -> "Spectrum":
        """The same with fewer vectors."""
        return replace(
            self,
            singular_values=self.singular_values[:vectors],
            row_map=self.row_map[:, :vectors],
            column_coordinates=self.column_coordinates[:, :vectors],
        )

    def row_coordinates(self, rows: np.ndarray) -> np.ndarray:
        """Place rows among the fitted ones: nonnegative (b, d) -> (b, m) float32. Rows of zeros are placed at 0."""
        row_sums = rows.sum(axis=1, dtype=np.float64)
        scaled = rows / np.where(row_sums > 0, row_sums, 1)[:, None].astype(rows.dtype)
        return (scaled @ self.row_map).astype(np.float32, copy=False)


def spectrum(sums: Sums, vectors: int) -> Spectrum:
    """The leading singular vectors after the trivial one, from G = D2^-1/2 S D2^-1/2 = A_n^T A_n in float64.

    The trivial vector is known, sqrt(c / sum c), and taken out of G first: it stays apart even where disconnected
    blocks repeat the singular value 1.

    Args:
        sums: of all rows.
        vectors: m wanted; there are fewer where the matrix has a lower rank.

    Raises:
        ValueError: the matrix is all zero.
    """
    if not sums.columns.any():
        raise ValueError(f"All {sums.rows} rows are zero; there is nothing to co-cluster. Check the features.")
    inverse_root = np.divide(1, np.sqrt(sums.columns), out=np.zeros_like(sums.columns), where=sums.columns > 0)
    gram = sums.gram * inverse_root * inverse_root[:, None]
    trivial = np.sqrt(sums.columns / sums.columns.sum())
    leading = float(np.sqrt(np.linalg.norm(gram @ trivial)))
    gram -= np.outer(trivial, trivial)
    vectors = min(vectors, len(gram) - 1)
    values, directions = eigh(
        gram, subset_by_index=(len(gram) - vectors, len(gram) - 1), overwrite_a=True, check_finite=False
    )
    singular = np.sqrt(np.maximum(values[::-1], 0))
    kept = singular > LEAST_RANK
    columns = inverse_root[:, None] * directions[:, ::-1][:, kept]
    return Spectrum(singular[kept], (columns / singular[kept]).astype(np.float32), columns.astype(np.float32), leading)


@dataclass(frozen=True)
class CoClustering:
    """Images and dimensions grouped together, and where further images belong.

    Attributes:
        nonnegative: how features became a nonnegative matrix, a name of NONNEGATIVE.
        spectrum: where rows and columns lie.
        k_means: the groups, in the coordinates of the spectrum.
        why: how the number of clusters came about.
        column_clusters: (columns,) int64, -1 for a column of zeros.
        dimension_clusters: (d,) int64; of a split dimension, the cluster of its half with the greater sum.
        rows: images that were fitted.
        zero_rows: of them all zero: they belong to no cluster, -1.
        zero_columns: columns that are zero in all of them.
    """

    nonnegative: str
    spectrum: Spectrum
    k_means: KMeans
    why: str
    column_clusters: np.ndarray
    dimension_clusters: np.ndarray
    rows: int
    zero_rows: int
    zero_columns: int

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return len(self.k_means.centres)

    def matrix(self, features: np.ndarray) -> np.ndarray:
        """The rows of A that features (b, d) are: (b, columns) float32, nonnegative."""
        return NONNEGATIVE[self.nonnegative](normalised(features))

    def assign(self, features: np.ndarray) -> np.ndarray:
        """The cluster of each image, fitted or new: (b, d) -> (b,) int64; -1 for a row of zeros."""
        return self.k_means.assign(self.spectrum.row_coordinates(self.matrix(features)))


def co_cluster(
    features: np.ndarray, rows: np.ndarray, clusters: int, classes: int, seed: int, nonnegative: str = "auto"
) -> CoClustering:
    """Co-cluster some rows of a feature matrix; two passes over them, memory columns^2 + a batch + k-means' bounded sample.

    Every image counts alike: rows are brought to length 1, then made nonnegative. Rows and columns are placed at
    D1^-1/2 u and D2^-1/2 v for about as many singular vectors as clusters, brought to length 1 (Ng, Jordan & Weiss 2001), and
    grouped together by spherical k-means.

    Args:
        features: (n, d) float32; may be memory-mapped.
        rows: (m,) rows to fit, the training images.
        clusters: how many, or 0 to choose (see `choose_clusters`).
        classes: of the training images; only its number is used.
        seed: of k-means and of its sample.
        nonnegative: a name of NONNEGATIVE, or "auto": "root" where no feature is negative, else "split".

    Raises:
        ValueError: an unknown name, values that are not finite, or fewer images with features than clusters.
    """
    nonnegative = choose_nonnegative(features, rows) if nonnegative == "auto" else nonnegative
    if nonnegative not in NONNEGATIVE:
        raise ValueError(f"Unknown nonnegative '{nonnegative}'; choose one of: auto, {', '.join(NONNEGATIVE)}.")
    make = NONNEGATIVE[nonnegative]
    added = sums(make(normalised(batch)) for batch in batches_of(features, rows))
    found = spectrum(added, MOST_VECTORS)
    clusters, why = (clusters, "given") if clusters else choose_clusters(found.singular_values, added.rows, classes)
    found = found.first(max(clusters - 1, 1))
    sample = sample_of(rows, clusters, seed)
    places = [found.row_coordinates(make(normalised(batch))) for batch in batches_of(features, sample)]
    groups = spherical_k_means(np.concatenate([*places, found.column_coordinates]), clusters, seed)
    columns = groups.assign(found.column_coordinates)
    halves = columns.reshape(-1, features.shape[1])  # (2, d) when split, else (1, d)
    heavier = np.argmax(added.columns.reshape(halves.shape), axis=0)
    return CoClustering(
        nonnegative,
        found,
        groups,
        why,
        column_clusters=columns,
        dimension_clusters=np.take_along_axis(halves, heavier[None], axis=0)[0],
        rows=added.rows,
        zero_rows=added.zero_rows,
        zero_columns=added.zero_columns,
    )


def choose_nonnegative(features: np.ndarray, rows: np.ndarray) -> str:
    """ "root" where no feature of the rows is negative, else "split"."""
    return "split" if any(batch.min(initial=0) < 0 for batch in batches_of(features, rows)) else "root"


def choose_clusters(singular_values: np.ndarray, rows: int, classes: int) -> tuple[int, str]:
    """How many clusters: as many as the spectrum shows blocks, else four a class of eight images or more each.

    A singular value at least twice its successor ends the blocks; j values after the trivial one make j + 1 blocks.
    Features of photographs fall off smoothly and show none; there 4 to 10 clusters a class kept R@1 best.

    Args:
        singular_values: (m,) descending, without the trivial one.
        rows: images to cluster.
        classes: of these images.

    Returns:
        The number and the reason.
    """
    ratios = singular_values[:-1] / singular_values[1:]
    if len(ratios) and ratios.max() >= CLEAR_GAP:
        blocks = int(ratios.argmax()) + 2
        return blocks, f"the spectrum falls off after {blocks} blocks, by a factor of {ratios.max():.1f}"
    most = max(rows // LEAST_IMAGES_PER_CLUSTER, 1)
    if CLUSTERS_PER_CLASS * classes <= most:
        return CLUSTERS_PER_CLASS * classes, f"the spectrum shows no gap: {CLUSTERS_PER_CLASS} for each of {classes} classes"
    return most, f"the spectrum shows no gap: {LEAST_IMAGES_PER_CLUSTER} images a cluster"


def batches_of(values: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The given rows of a matrix that may be memory-mapped, a batch at a time, as float32."""
    for start in range(0, len(rows), ROWS_PER_BATCH):
        yield np.asarray(values[rows[start : start + ROWS_PER_BATCH]], np.float32)


def sample_of(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The rows that k-means looks at: all of them, or a random part of bounded size, ascending."""
    most = max(MOST_K_MEANS_ROWS, 256 * clusters)
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))

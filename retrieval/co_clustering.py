"""Spectral co-clustering: images and feature dimensions grouped together, new images by the same map."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval.cluster_map import ClusterMap
from retrieval.k_means import normalised, spherical_k_means
from retrieval.nonnegative import NONNEGATIVE
from retrieval.spectrum import LEAST_RANK, spectrum, sums

ROWS_PER_BATCH = 2_048  # with 2,048 features 16 MiB: up to 32 MiB malloc keeps pages instead of faulting new ones in
CACHED_BYTES = 2**20  # of a batch that passes through many operations: each finds it in the cache
MOST_VECTORS = 127  # more singular vectors did not raise purity, whatever the number of clusters
MOST_K_MEANS_ROWS = 65_536  # or 256 a cluster: rows that k-means looks at; all others are only assigned
CLEAR_GAP = 2.0  # ratio of neighbouring singular values that shows separate blocks,
STRONG = 0.25  # where the greater is at least this: the tail falls off anywhere
CLUSTERS_PER_CLASS = 4
LEAST_IMAGES_PER_CLUSTER = 8
IMAGES_PER_CLUSTER = 100  # where classes are unknown; of CIFAR-100 about what four clusters a class hold


@dataclass(frozen=True)
class CoClustering:
    """Images and dimensions grouped together.

    Attributes:
        cluster_map: where images belong, fitted or new.
        why: how the number of clusters came about.
        row_clusters: (rows,) int64 of the fitted images, in their order, as the map assigns them.
        column_clusters: (columns,) int64, -1 for a column of zeros.
        dimension_clusters: (d,) int64; of a split dimension, the cluster of its half with the greater sum.
        rows: images that were fitted.
        zero_rows: of them all zero: they belong to no cluster, -1.
        zero_columns: columns that are zero in all of them.
    """

    cluster_map: ClusterMap
    why: str
    row_clusters: np.ndarray
    column_clusters: np.ndarray
    dimension_clusters: np.ndarray
    rows: int
    zero_rows: int
    zero_columns: int

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return len(self.cluster_map.k_means.centres)


def co_cluster(
    features: np.ndarray,
    rows: np.ndarray,
    clusters: int,
    classes: int,
    seed: int,
    nonnegative: str = "auto",
    products: str = "auto",
) -> CoClustering:
    """Co-cluster some rows of a feature matrix, in memory that does not grow with them: columns^2, a batch, a sample.

    What is left of each row are the eight bytes of its cluster.

    Two passes over the rows: one adds up their products, one places them; a third where k-means saw only a part.

    Every image counts alike: rows are brought to length 1, then made nonnegative. Rows and columns are placed at
    D1^-1/2 u and D2^-1/2 v for about as many singular vectors as clusters, weighted by the roots of their singular
    values, brought to length 1 (Ng, Jordan & Weiss 2001), and grouped together by spherical k-means.

    Args:
        features: (n, d) float32; may be memory-mapped.
        rows: (m,) rows to fit, the training images.
        clusters: how many, or 0 to choose (see `choose_clusters`).
        classes: how many the training images have, or 0 where that is unknown.
        seed: of k-means and of its sample.
        nonnegative: a name of NONNEGATIVE, or "auto": "root" where no feature is negative, else "split".
        products: how rows are multiplied, see `spectrum.sums`.

    Raises:
        ValueError: an unknown name, values that are not finite, or fewer images with features than clusters.
    """
    nonnegative = choose_nonnegative(features, rows) if nonnegative == "auto" else nonnegative
    if nonnegative not in NONNEGATIVE:
        raise ValueError(f"Unknown nonnegative '{nonnegative}'; choose one of: auto, {', '.join(NONNEGATIVE)}.")
    make, at_once = NONNEGATIVE[nonnegative], max(1, CACHED_BYTES // (4 * features.shape[1]))

    def matrix_of(some: np.ndarray) -> Iterator[np.ndarray]:
        return (make(normalised(batch)) for batch in batches_of(features, some, at_once))

    added = sums(matrix_of(rows), products)
    found = spectrum(added, min(clusters - 1, MOST_VECTORS) if clusters > 1 else MOST_VECTORS)
    most = added.rows - added.zero_rows
    if clusters:
        why = "given"
    else:
        values = np.append(found.singular_values, LEAST_RANK) if found.ends else found.singular_values
        clusters, why = choose_clusters(values, most, classes)
    if clusters > most:
        raise ValueError(
            f"co_clusters is {clusters} and {most:,} training images have features; give at most that, or 0 for as "
            "many as the data show."
        )
    found = found.first(max(clusters - 1, 1))

    def placed(some: np.ndarray) -> Iterator[np.ndarray]:
        return (found.row_places(batch) for batch in matrix_of(some))

    sample = sample_of(rows, clusters, seed)
    places = np.empty((len(sample) + len(found.column_places), len(found.singular_values)), np.float32)
    places[len(sample) :] = found.column_places
    start = 0
    with threadpool_limits(1, "blas"):  # between small products other threads would only spin
        for batch in placed(sample):
            places[start : start + len(batch)] = batch
            start += len(batch)
    groups = spherical_k_means(places, clusters, seed, overwrite=True)
    with threadpool_limits(1, "blas"):
        of_all = batches_of(places, np.arange(len(sample))) if len(sample) == len(rows) else placed(rows)
        row_clusters = np.concatenate([groups.assign(batch) for batch in of_all])
    columns = groups.assign(found.column_places)
    halves = columns.reshape(-1, features.shape[1])  # (2, d) when split, else (1, d)
    heavier = np.argmax(added.columns.reshape(halves.shape), axis=0)
    return CoClustering(
        ClusterMap(nonnegative, found, groups),
        why,
        row_clusters=row_clusters,
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

    Where the classes are unknown, IMAGES_PER_CLUSTER decide in place of them.

    A strong singular value, at least twice its successor, ends the blocks; j after the trivial one make j + 1 blocks.
    Blocks hold LEAST_IMAGES_PER_CLUSTER on average, or are two: a later fall is the end of the rank of few rows.
    Features of photographs fall off smoothly and show none; there 4 to 10 clusters a class kept R@1 best.

    Args:
        singular_values: (m,) descending, without the trivial one.
        rows: images to cluster, those without any feature not counted.
        classes: of these images; 0 where unknown.

    Returns:
        The number and the reason.
    """
    most = max(rows // LEAST_IMAGES_PER_CLUSTER, 2)
    ratios = np.where(singular_values[:-1] >= STRONG, singular_values[:-1] / singular_values[1:], 0)[: most - 1]
    if len(ratios) and ratios.max() >= CLEAR_GAP:
        blocks = int(ratios.argmax()) + 2
        return blocks, f"the spectrum falls off after {blocks} blocks, by a factor of {ratios.max():.1f}"
    if not classes:
        return max(rows // IMAGES_PER_CLUSTER, 2), f"the spectrum shows no gap: {IMAGES_PER_CLUSTER} images a cluster"
    if CLUSTERS_PER_CLASS * classes <= most:
        return (
            CLUSTERS_PER_CLASS * classes,
            f"the spectrum shows no gap: {CLUSTERS_PER_CLASS} for each of {classes} classes",
        )
    return most, f"the spectrum shows no gap: {LEAST_IMAGES_PER_CLUSTER} images a cluster"


def batches_of(values: np.ndarray, rows: np.ndarray, rows_per_batch: int | None = None) -> Iterator[np.ndarray]:
    """The given rows of a matrix that may be memory-mapped, a batch at a time, as float32; rows in a row uncopied."""
    at_once = rows_per_batch or ROWS_PER_BATCH
    for start in range(0, len(rows), at_once):
        batch = rows[start : start + at_once]
        consecutive = np.array_equal(batch, np.arange(batch[0], batch[0] + len(batch)))
        yield np.asarray(values[batch[0] : batch[0] + len(batch)] if consecutive else values[batch], np.float32)


def sample_of(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The rows that k-means looks at: all of them, or a random part of bounded size, ascending."""
    most = max(MOST_K_MEANS_ROWS, 256 * clusters)
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))

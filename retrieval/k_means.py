"""Spherical k-means: directions grouped by cosine, the same clusters for the same seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np

SMALL_WORK = 100_000_000  # products of one assignment
SEEDS_TRIED = 64
SEEDING_ROWS = 8_192  # candidates for first centres; more gave no lower inertia


@dataclass(frozen=True)
class KMeans:
    """Centres of spherical k-means.

    Attributes:
        centres: (k, d) float32, unit length.
        inertia: sum over the fitted rows of the squared distance to their centre, 2 - 2 cos.
    """

    centres: np.ndarray
    inertia: float

    def assign(self, rows: np.ndarray) -> np.ndarray:
        """The cluster of each row, (b,) int64: the centre of largest cosine; -1 for a row of zeros.

        Raises:
            ValueError: a row holds values that are not finite.
        """
        products = np.asarray(rows, np.float32) @ self.centres.T
        clusters = np.argmax(products, axis=1)  # finds what is not a number before any number
        broken = ~np.isfinite(products[np.arange(len(products)), clusters])
        if broken.any():
            raise ValueError(
                f"{broken.sum():,} of {len(rows):,} rows hold values that are not finite, the first at place "
                f"{broken.argmax():,}; they are near no centre. Look at the features, and at what made them."
            )
        return np.where(np.any(rows, axis=1), clusters, -1).astype(np.int64)


def spherical_k_means(
    rows: np.ndarray, clusters: int, seed: int, iterations: int = 25, restarts: int = 0, overwrite: bool = False
) -> KMeans:
    """Group directions by cosine (Dhillon & Modha 2001): k-means++ seeds, faiss iterations, the best of some restarts.

    Args:
        rows: (n, d) float, any scale; normalised here. Rows of zeros have no direction and are left out.
        clusters: k, at most the number of rows that are not zero.
        seed: the same seed gives the same bytes on the same machine.
        iterations: of each restart.
        restarts: the one of least inertia is kept; 0 for many with few clusters, where a bad start is fatal, and one
            with many, where starts differ by less than a thousandth of the inertia.
        overwrite: normalise float32 rows where they lie, so that they are held once.

    Raises:
        ValueError: fewer rows with a direction than clusters.
    """
    directions = normalised(rows, out=rows if overwrite else None)
    if not (anywhere := np.any(directions, axis=1)).all():
        directions = directions[anywhere]
    if not 1 <= clusters <= len(directions):
        raise ValueError(
            f"{clusters} clusters of {len(directions)} rows that are not zero; choose from 1 to {len(directions)}."
        )
    restarts = restarts or max(1, SEEDS_TRIED // clusters)
    random = np.random.default_rng(seed)
    attempts = [_lloyd(directions, _spread_seeds(directions, clusters, random), iterations) for _ in range(restarts)]
    return min(attempts, key=lambda attempt: attempt.inertia)


def normalised(rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Rows of unit length, float32, in `out` if that is given; rows of zeros stay zeros."""
    rows = np.asarray(rows, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.divide(rows, np.where(lengths > 0, lengths, 1), out=out)


def _lloyd(directions: np.ndarray, first_centres: np.ndarray, iterations: int) -> KMeans:
    clusters, dimension = first_centres.shape
    lloyd = faiss.Kmeans(
        dimension,
        clusters,
        niter=iterations,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(directions),  # never subsampled
    )
    with _threads_for(directions.size * clusters):
        lloyd.train(directions, init_centroids=first_centres)
        similarity, _ = lloyd.index.search(directions, 1)
    assert lloyd.centroids is not None
    return KMeans(normalised(lloyd.centroids), float(2 * len(directions) - 2 * similarity.sum(dtype=np.float64)))


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One thread for work so small that waking the others takes longer than they save."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads if products > SMALL_WORK else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _spread_seeds(directions: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """First centres that lie far apart: k-means++ (Arthur & Vassilvitskii 2007) on a sample, (k, d) float32."""
    amount = min(len(directions), max(SEEDING_ROWS, 4 * clusters))
    sample = directions[np.sort(random.choice(len(directions), amount, replace=False))]
    chosen = [int(random.integers(amount))]
    distance = np.full(amount, np.inf, np.float32)
    while len(chosen) < clusters:
        distance = np.minimum(distance, np.maximum(1 - sample @ sample[chosen[-1]], 0))
        distance[chosen] = 0
        total = np.cumsum(distance, dtype=np.float64)
        drawn = int(np.searchsorted(total, random.random() * total[-1], side="right"))
        chosen.append(drawn if total[-1] > 0 else int(np.setdiff1d(np.arange(amount), chosen)[0]))
    return np.ascontiguousarray(sample[chosen])

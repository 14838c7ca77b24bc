"""The singular vectors of a normalised nonnegative matrix, exactly, in one pass over rows that may come in shards.

Dhillon, KDD 2001, without the images x images side: A_n = D1^-1/2 A D2^-1/2 has its right singular vectors in the
eigenvectors of A_n^T A_n, which one pass over the rows adds up; the left ones follow from them row by row. So shards
simply add up, new images are placed by the same map, and nothing grows with the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh

LEAST_RANK = 1e-3  # singular values below this are rounding of float32 products


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
                f"Rows {count} to {count + len(batch)} hold negative or non-finite values; co-clustering needs a "
                "nonnegative matrix: pass features through one of retrieval/nonnegative.py."
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
    """Singular vectors of A_n = D1^-1/2 A D2^-1/2 after the trivial one: a linear map for rows, points for columns.

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

    def row_places(self, rows: np.ndarray) -> np.ndarray:
        """Where rows (b, d) lie for clustering: coordinates, each axis weighted by the root of its singular value.

        Dhillon weighs all axes alike, which makes the last ones, nearly noise, as loud as the first. Halved between
        rows and columns, the singular values make the inner product of a row's and a column's place their entry of
        D1^-1/2 A_n D2^-1/2 without its trivial part.
        """
        return self.row_coordinates(rows) * np.sqrt(self.singular_values, dtype=np.float32)

    @property
    def column_places(self) -> np.ndarray:
        """Where columns lie for clustering, (d, m) float32; see `row_places`."""
        return self.column_coordinates * np.sqrt(self.singular_values, dtype=np.float32)


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

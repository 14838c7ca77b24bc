"""The singular vectors of a normalised nonnegative matrix, exactly, in one pass over rows that may come in shards.

Dhillon, KDD 2001, without the images x images side: A_n = D1^-1/2 A D2^-1/2 has its right singular vectors in the
eigenvectors of A_n^T A_n, which one pass over the rows adds up; the left ones follow from them row by row. So shards
simply add up, new images are placed by the same map, and nothing grows with the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from retrieval.gram import COLUMNS_PER_BLOCK, Multiply, in_own_precision, way_to_multiply

ROWS_PER_PRODUCT = 2_048
ROWS_PER_SUM = 64  # of columns in float32; of 2,048 the vectors were turned ten times as far
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
        rounded: whether some were rounded to be multiplied.
    """

    gram: np.ndarray
    columns: np.ndarray
    rows: int
    zero_rows: int
    rounded: bool = False

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.gram + other.gram,
            self.columns + other.columns,
            self.rows + other.rows,
            self.zero_rows + other.zero_rows,
            self.rounded or other.rounded,
        )

    @property
    def zero_columns(self) -> int:
        """How many columns are all zero."""
        return int(np.sum(self.columns <= 0))


def sums(batches: Iterable[np.ndarray], products: str = "auto") -> Sums:
    """Add up a nonnegative matrix that comes in batches; memory is d^2 numbers and a few batches, whatever the length.

    What is added up is an exact nonnegative matrix near the given one: with s_i = a_i / sqrt(r_i), rounded, and its
    own sum t_i, the rows t_i s_i. Their sums are t_i^2, so the sum of s_i s_i^T and that of t_i s_i belong to one
    matrix, whatever was rounded: the leading singular value stays 1, which column sums of the a_i would not give.

    Args:
        batches: arrays (any, d) of nonnegative floats, all of one type; quickest are those that fit the cache.
        products: how float32 batches are multiplied, a name of `gram.PRODUCTS`; float64 ones stay what they are.
            "auto" rounds where there are 1,024 columns or more, to what the processor's matrix units (AMX) or its VNNI
            are made for. Where the next singular value is far that turned the span of the vectors by 0.02 to 0.14
            degrees in bfloat16, by 0.03 to 0.07 in int8. Those of photographs lie a thousandth apart, and what spans a
            given number of them is blurred: of 6,000 images with 1,024 columns (1,280) 99 vectors were turned by 0.88
            (0.33) and by 1.9 (2.1), 9 of them by 0.14 (0.03) and 0.29 (0.08). Sums of ROWS_PER_PRODUCT rows are of
            float32 or exact, all else of float64: unrounded, those 99 vectors were off by 0.0004 degrees.

    Raises:
        ValueError: no rows, a value that is negative or not finite, or unknown products.
    """
    running: _RunningSums | None = None
    count, zero_rows = 0, 0
    for batch in batches:
        row_sums = batch.sum(axis=1)
        if not (np.isfinite(row_sums).all() and batch.min(initial=0) >= 0):
            raise ValueError(
                f"Rows {count} to {count + len(batch)} hold negative or non-finite values; co-clustering needs a "
                "nonnegative matrix: pass features through one of retrieval/nonnegative.py."
            )
        if running is None:
            multiply = way_to_multiply(products, batch.shape[1])
            running = _RunningSums(batch.shape[1], batch.dtype, multiply)
        running.add(batch, np.sqrt(np.where(row_sums > 0, row_sums, 1)))
        count, zero_rows = count + len(batch), zero_rows + int(np.sum(row_sums <= 0))
    if running is None:
        raise ValueError("No rows to co-cluster; give at least one batch.")
    gram, columns = running.finished()
    return Sums(gram, columns, count, zero_rows, running.rounded)


class _RunningSums:
    """Sums so far; scaled rows wait in one piece of memory until they are worth a product."""

    def __init__(self, columns: int, dtype: np.dtype, multiply: Multiply) -> None:
        self.rounded = False
        self._multiply_rows = multiply if dtype == np.float32 else in_own_precision
        self._gram, self._columns = np.zeros((columns, columns)), np.zeros(columns)
        self._rows, self._waiting = np.empty((ROWS_PER_PRODUCT, columns), dtype), 0

    def add(self, batch: np.ndarray, divisors: np.ndarray) -> None:
        """Take in rows (b, d), each divided by its own divisor (b,)."""
        for start in range(0, len(batch), ROWS_PER_PRODUCT):
            part = slice(start, start + ROWS_PER_PRODUCT)
            if self._waiting + len(batch[part]) > ROWS_PER_PRODUCT:
                self._multiply()
            scaled = self._rows[self._waiting : self._waiting + len(batch[part])]
            np.divide(batch[part], divisors[part, None], out=scaled)
            self._waiting += len(scaled)

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of s_i s_i^T, (d, d), and that of t_i s_i, (d,), both float64."""
        self._multiply()
        for start in range(0, len(self._gram), COLUMNS_PER_BLOCK):
            block, below = slice(start, start + COLUMNS_PER_BLOCK), slice(start + COLUMNS_PER_BLOCK, None)
            self._gram[below, block] = self._gram[block, below].T
        return self._gram, self._columns

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = torch.from_numpy(self._rows[: self._waiting])
        self.rounded |= self._multiply_rows(rows, torch.from_numpy(self._gram))
        for few in rows.split(ROWS_PER_SUM):
            self._columns += (few.sum(1) @ few).numpy()
        self._waiting = 0


@dataclass(frozen=True)
class Spectrum:
    """Singular vectors of A_n = D1^-1/2 A D2^-1/2 after the trivial one: a linear map for rows, points for columns.

    Attributes:
        singular_values: (m,) float64, descending, without the trivial 1.
        row_map: (d, m) float32, D2^-1/2 V / sigma: a row a_i of A has the coordinates a_i row_map / r_i.
        column_coordinates: (d, m) float32, D2^-1/2 V; rows of zeros for columns of zeros.
        leading_singular_value: of the trivial vector, as computed; exactly 1 but for rounding.
        ends: whether the matrix has no further ones: all others are at most LEAST_RANK.
    """

    singular_values: np.ndarray
    row_map: np.ndarray
    column_coordinates: np.ndarray
    leading_singular_value: float
    ends: bool

    def first(self, vectors: int) -> "Spectrum":
        """The same with fewer vectors."""
        return replace(
            self,
            singular_values=self.singular_values[:vectors],
            row_map=self.row_map[:, :vectors],
            column_coordinates=self.column_coordinates[:, :vectors],
            ends=self.ends and vectors >= len(self.singular_values),
        )

    def row_coordinates(self, rows: np.ndarray) -> np.ndarray:
        """Place rows among the fitted ones: nonnegative (b, d) -> (b, m) float32. Rows of zeros are placed at 0."""
        row_sums = rows.sum(axis=1)[:, None]
        return ((rows @ self.row_map) / np.where(row_sums > 0, row_sums, 1)).astype(np.float32, copy=False)

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
    """The leading singular vectors after the trivial one, from G = D2^-1/2 S D2^-1/2 = A_n^T A_n.

    Computed in float64; of sums of rounded rows in float32, which takes half the time and turns the vectors a hundred
    times less than the rounding of the rows did. The trivial vector is known, sqrt(c / sum c), and taken out of G
    first: it stays apart even where disconnected blocks repeat the singular value 1.

    Args:
        sums: of all rows.
        vectors: m wanted; there are fewer where the matrix has a lower rank.

    Raises:
        ValueError: the matrix is all zero, its rows are all alike, or it has one column.
    """
    if not sums.columns.any():
        raise ValueError(f"All {sums.rows} rows are zero; there is nothing to co-cluster. Check the features.")
    if len(sums.columns) < 2:
        raise ValueError(
            f"All {sums.rows:,} rows have one column, in which they differ by length alone; co-clustering takes two. "
            "Give a larger feature_dimension, more training images, or nonnegative=split: two columns of a feature."
        )
    inverse_root = np.divide(1, np.sqrt(sums.columns), out=np.zeros_like(sums.columns), where=sums.columns > 0)
    gram = sums.gram * inverse_root * inverse_root[:, None]
    trivial = np.sqrt(sums.columns / sums.columns.sum())
    leading = float(np.sqrt(np.linalg.norm(gram @ trivial)))
    gram -= np.outer(trivial, trivial)
    vectors = min(vectors, len(gram) - 1)
    with threadpool_limits(1, "blas"):  # its many small products gain nothing by more threads, which then spin
        values, directions = eigh(
            gram.astype(np.float32 if sums.rounded else np.float64, copy=False),
            subset_by_index=(len(gram) - vectors, len(gram) - 1),
            overwrite_a=True,
            check_finite=False,
        )
    singular = np.sqrt(np.maximum(values[::-1].astype(np.float64), 0))
    kept = singular > LEAST_RANK
    if not kept.any():
        raise ValueError(
            f"All {sums.rows:,} rows have the same features but for their length; there is nothing to co-cluster. "
            "Check the features: a network that makes them so has learned nothing."
        )
    columns = inverse_root[:, None] * directions[:, ::-1][:, kept]
    return Spectrum(
        singular_values=singular[kept],
        row_map=(columns / singular[kept]).astype(np.float32),
        column_coordinates=columns.astype(np.float32),
        leading_singular_value=leading,
        ends=not kept.all(),
    )

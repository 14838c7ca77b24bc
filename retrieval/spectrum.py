"""The singular vectors of a normalised nonnegative matrix, exactly, in one pass over rows that may come in shards.

Dhillon, KDD 2001, without the images x images side: A_n = D1^-1/2 A D2^-1/2 has its right singular vectors in the
eigenvectors of A_n^T A_n, which one pass over the rows adds up; the left ones follow from them row by row. So shards
simply add up, new images are placed by the same map, and nothing grows with the number of images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import eigh

from retrieval.devices import bfloat16_units, has_fast_bfloat16

COLUMNS_PER_BLOCK = 512  # of the bfloat16 product: fits the cache; smaller ones would be mostly conversion
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
        rounded: whether some were rounded to bfloat16.
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
        batches: arrays (any, d) of nonnegative floats.
        products: how float32 batches are multiplied, a name of PRODUCTS; float64 ones stay what they are. Rounding s_i
            to bfloat16 turns the singular vectors by less than 0.2 degrees; "auto" does so where the processor
            multiplies bfloat16 in hardware and there are 512 columns or more. Sums within a batch are of float32,
            across batches of float64.

    Raises:
        ValueError: no rows, a value that is negative or not finite, or unknown products.
    """
    gram: np.ndarray | None = None
    count, zero_rows, rounded = 0, 0, False
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
        multiply = chosen_products(products, batch)
        scaled, rounded = multiply(scaled, gram), rounded or multiply is in_bfloat16
        columns += scaled.sum(axis=1) @ scaled
        count, zero_rows = count + len(batch), zero_rows + int(np.sum(row_sums <= 0))
    if gram is None:
        raise ValueError("No rows to co-cluster; give at least one batch.")
    return Sums(np.triu(gram) + np.triu(gram, 1).T, columns, count, zero_rows, rounded)


def in_own_precision(scaled: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Add scaled^T scaled to gram; returns the rows that were multiplied: those given, (b, d).

    Few columns are multiplied in float64: it costs little there, and a small singular value loses twice its digits.
    """
    exact = scaled.astype(np.float64) if scaled.shape[1] < COLUMNS_PER_BLOCK else scaled
    gram += exact.T @ exact  # numpy sees the symmetry and takes half the products
    return scaled


def in_bfloat16(scaled: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Add scaled^T scaled to gram, the factors rounded to bfloat16; returns the rounded rows, (b, d) float32.

    Products of bfloat16 are exact in float32, in which they are summed. What lies below the diagonal is left alone: the
    sum is symmetric.
    """
    rounded = torch.from_numpy(scaled).bfloat16().float()
    parts = rounded.split(COLUMNS_PER_BLOCK, dim=1)
    with bfloat16_units():
        for i, left in enumerate(parts):
            for j, right in enumerate(parts[i:], i):
                block = (left.T @ right).numpy()
                rows = slice(i * COLUMNS_PER_BLOCK, i * COLUMNS_PER_BLOCK + len(block))
                columns = slice(j * COLUMNS_PER_BLOCK, j * COLUMNS_PER_BLOCK + block.shape[1])
                gram[rows, columns] += block
    return rounded.numpy()


PRODUCTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "float32": in_own_precision,
    "bfloat16": in_bfloat16,
}


def chosen_products(name: str, batch: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A way to multiply a batch, by its name or "auto".

    Raises:
        ValueError: an unknown name.
    """
    if name not in ("auto", *PRODUCTS):
        raise ValueError(f"Unknown products '{name}'; choose one of: auto, {', '.join(PRODUCTS)}.")
    if name == "auto":
        pays = batch.shape[1] >= COLUMNS_PER_BLOCK and has_fast_bfloat16(torch.device("cpu"))
        name = "bfloat16" if pays else "float32"
    return PRODUCTS[name] if batch.dtype == np.float32 else in_own_precision


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
        sums_or_one = np.where(row_sums > 0, row_sums, 1)[:, None]
        return ((rows @ self.row_map) / sums_or_one.astype(rows.dtype)).astype(np.float32, copy=False)

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
        gram.astype(np.float32 if sums.rounded else np.float64, copy=False),
        subset_by_index=(len(gram) - vectors, len(gram) - 1),
        overwrite_a=True,
        check_finite=False,
    )
    singular = np.sqrt(np.maximum(values[::-1].astype(np.float64), 0))
    kept = singular > LEAST_RANK
    columns = inverse_root[:, None] * directions[:, ::-1][:, kept]
    return Spectrum(singular[kept], (columns / singular[kept]).astype(np.float32), columns.astype(np.float32), leading)

"""Adding up the products of a matrix's columns, rows^T rows, in the numbers that a processor multiplies fastest.

Every way takes float32 rows (b, d) and adds to a float64 sum (d, d), of which it may leave out what lies below the
diagonal. It leaves the rows as it multiplied them, rounded, and says whether it rounded them.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from retrieval.devices import bfloat16_units, has_bfloat16_tiles, has_fast_int8

Multiply = Callable[[Tensor, Tensor], bool]
FEW_COLUMNS = 512  # below that, products of float64 cost little
FEWEST_ROUNDED = 1_024  # columns; of fewer it saves little, and 512 of photographs were turned by 0.9 degrees
COLUMNS_PER_BLOCK = 256  # of a product of rounded rows: its smaller factor fits the cache
ROWS_IN_CACHE = 64  # rounded at once
HALF_OF_STEPS = 127  # int8 counts from -127 to 127: twice as many steps and 0
COARSEST = 2.0**-7  # at 0.006 photographs' vectors were turned by 0.3 degrees, by bfloat16 by 0.9


def in_own_precision(rows: Tensor, gram: Tensor) -> bool:
    """Multiply rows as they are.

    Few columns are multiplied in float64: it costs little there, and a small singular value loses twice its digits.
    """
    exact = (rows.double() if rows.shape[1] < FEW_COLUMNS else rows).numpy()
    gram += torch.from_numpy(exact.T @ exact)  # numpy sees the symmetry and takes half the products
    return False


def in_bfloat16(rows: Tensor, gram: Tensor) -> bool:
    """Multiply nonnegative rows rounded to bfloat16, whose products are exact in float32 and summed there."""
    for few in rows.split(ROWS_IN_CACHE):
        round_to_bfloat16(few.numpy())
    with bfloat16_units():
        for start in range(0, len(gram), COLUMNS_PER_BLOCK):
            block = slice(start, start + COLUMNS_PER_BLOCK)
            gram[block, start:] += rows[:, block].T @ rows[:, start:]
    return True


def round_to_bfloat16(values: np.ndarray) -> None:
    """Round nonnegative float32 numbers to the nearest of bfloat16, in place; those halfway go up."""
    bits = values.view(np.uint32)
    bits += np.uint32(0x8000)
    bits &= np.uint32(0xFFFF0000)


def in_int8(rows: Tensor, gram: Tensor) -> bool:
    """Multiply nonnegative rows rounded to 254 steps from 0 to the greatest value of their column; sums are exact.

    A step u is stored as u - 127, and of two columns

        sum u v = sum (u - 127) (v - 127) + 127 sum u + 127 sum v - 127^2 b.

    Where few values are much greater than the others of their column the steps are too coarse for these (COARSEST), and
    the rows are multiplied as they are. Up to 33,000 rows fit the sums. Columns are filled up to whole blocks, since
    PyTorch 2.14 multiplies a single column wrongly on a CPU (its issue 195066).
    """
    steps = rows.amax(0) / (2 * HALF_OF_STEPS)
    steps[steps < torch.finfo(steps.dtype).tiny] = 0  # nothing there, or nothing that counts
    if coarseness(rows, steps) > COARSEST:
        return in_own_precision(rows, gram)
    per_step = torch.where(steps > 0, 1 / steps, 0)
    columns, totals = rows.shape[1], torch.zeros_like(steps)
    stored = rows.new_zeros(len(rows), columns + -columns % COLUMNS_PER_BLOCK, dtype=torch.int8)
    for few, few_stored in zip(rows.split(ROWS_IN_CACHE), stored.split(ROWS_IN_CACHE), strict=True):
        few.mul_(per_step).round_()
        few_stored[:, :columns] = few - HALF_OF_STEPS
        totals += few.sum(0)
        few.mul_(steps)
    shares = HALF_OF_STEPS * totals.int()
    for start in range(0, columns, COLUMNS_PER_BLOCK):
        block = slice(start, start + COLUMNS_PER_BLOCK)
        product = torch._int_mm(stored[:, block].T, stored[:, start:])[: columns - start, : columns - start]
        product += shares[start:] - HALF_OF_STEPS**2 * len(rows)
        product += shares[block, None]
        gram[block, start:] += product * (steps[block, None] * steps[start:])
    return True


def coarseness(rows: Tensor, steps: Tensor) -> float:
    """Root mean square of what rounding to steps (d,) takes from rows (b, d), by that of the values.

    Both on the scale that the singular vectors are sought on: each column divided by the root of its sum. There a faint
    column with one strong value counts as much as any other.
    """
    sums, squares = torch.zeros_like(steps), torch.zeros_like(steps)
    for few in rows.split(ROWS_IN_CACHE):  # a norm of each column takes PyTorch several times as long
        sums += few.sum(0)
        squares += few.square().sum(0)
    weights = torch.where(steps > 0, 1 / sums, 0)
    taken = len(rows) / 12 * (steps.square() * weights).sum()  # of uniform rounding
    return float((taken / (squares * weights).sum()).sqrt())


PRODUCTS: dict[str, Multiply] = {"float32": in_own_precision, "bfloat16": in_bfloat16, "int8": in_int8}


def way_to_multiply(name: str, columns: int) -> Multiply:
    """A way to multiply float32 rows, by its name or "auto": rounded where that pays, else as they are.

    Raises:
        ValueError: an unknown name, or int8 on a processor that would not sum its products exactly.
    """
    if name == "auto" and columns >= FEWEST_ROUNDED:
        name = "bfloat16" if has_bfloat16_tiles() else "int8" if has_fast_int8() else name
    if name == "int8" and not has_fast_int8():
        raise ValueError("products is 'int8' and this processor has no AVX-512 VNNI; choose float32 or bfloat16.")
    if name not in ("auto", *PRODUCTS):
        raise ValueError(f"Unknown products '{name}'; choose one of: auto, {', '.join(PRODUCTS)}.")
    return PRODUCTS.get(name, in_own_precision)

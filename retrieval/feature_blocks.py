"""Blocks of feature dimensions, weighted by how well they tell the classes apart."""

from collections.abc import Iterable

import numpy as np

from retrieval.k_means import normalised, spherical_k_means

LEAST_VARIANCE = 1e-6  # within classes, of the mean over all blocks: less would make a ratio, and a weight, endless


def fisher_ratios(batches: Iterable[tuple[np.ndarray, np.ndarray]], blocks: np.ndarray, classes: int) -> np.ndarray:
    """Variance between the classes by variance within them, of each block as a whole, told to its dimensions: (d,).

    After Fisher's linear discriminant (1936), with traces over a block instead of a covariance. A ratio of 0 says
    nothing about the classes. Rows count by their direction.

    Args:
        batches: rows (b, d) and their labels (b,) in 0..classes-1.
        blocks: (d,) int block of each dimension; dimensions of -1 make one block.
        classes: number of them; one without rows is left out.
    """
    counts, sums, squares = np.zeros(classes), np.zeros((classes, len(blocks))), np.zeros(len(blocks))
    for rows, labels in batches:
        directions = normalised(rows).astype(np.float64)
        np.add.at(counts, labels, 1)
        np.add.at(sums, labels, directions)
        squares += np.square(directions).sum(axis=0)
    of_classes = (np.square(sums) / np.maximum(counts, 1)[:, None]).sum(axis=0)
    between = of_classes - np.square(sums.sum(axis=0)) / counts.sum()
    _, block = np.unique(blocks, return_inverse=True)
    between, within = np.bincount(block, between), np.bincount(block, squares - of_classes)
    ratios = np.maximum(between, 0) / np.maximum(within, max(LEAST_VARIANCE * within.mean(), 1e-12))
    return ratios[block]


def block_weights(ratios: np.ndarray, gamma: float) -> np.ndarray:
    """What dimensions are multiplied by: ratios^gamma, brought to a mean of 1; (d,) float32. gamma 0 leaves all alike.

    Where all ratios are 0 there is nothing to choose by, and the weights are 1.
    """
    powers = ratios**gamma
    return (powers / powers.mean() if powers.any() else np.ones_like(ratios)).astype(np.float32)


def k_means_blocks(rows: np.ndarray, blocks: int, seed: int) -> np.ndarray:
    """The control: dimensions grouped by plain spherical k-means of their columns; -1 for a column of zeros.

    Args:
        rows: (m, d) features of some images, counted by their direction.
        blocks: how many; fewer where fewer columns are not zero.
        seed: of k-means.
    """
    columns = np.ascontiguousarray(normalised(rows).T)
    most = int(np.any(columns, axis=1).sum())
    if not most:
        return np.full(len(columns), -1)
    return spherical_k_means(columns, min(max(blocks, 1), most), seed).assign(columns)

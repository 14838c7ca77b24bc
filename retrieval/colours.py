"""The colours of a set of images, by which a network brings its input to one scale."""

import numpy as np

from retrieval.dataset import Dataset

LEAST_STD = 1 / 255  # of a channel that never changes: nothing is divided by zero


def colour_statistics(
    dataset: Dataset, rows: np.ndarray, rows_per_block: int = 4096
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of R, G and B over all pixels of the given images, in [0, 1].

    Counted in whole numbers: the result does not depend on the order of the rows, nor on rows_per_block, which bounds
    the memory. A channel's deviation is at least one step of a byte.

    Raises:
        ValueError: no rows.
    """
    if not len(rows):
        raise ValueError("No images to take the colours of; give at least one row.")
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(rows), rows_per_block):
        images = dataset.read(rows[start : start + rows_per_block])
        for channel in range(3):
            counts[channel] += np.bincount(images[..., channel].reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    std = np.sqrt(np.maximum(variance, LEAST_STD**2))
    return tuple(mean.tolist()), tuple(std.tolist())

"""Characters turned by quarters as further classes: four times the images, and classes that must be told apart."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from retrieval.image_batches import ImageBatches

TURNS = 4  # by 0, 90, 180 and 270 degrees


class QuarterTurns:
    """Images in four positions: position i + t n is image i of n, turned by t quarters against the clock.

    Santoro et al. (ICML 2016) turn the characters of Omniglot so, each turn of a class a class of its own: a network
    that meets more classes tells apart better those it has never met.

    Args:
        upright: the images, square.
    """

    def __init__(self, upright: ImageBatches) -> None:
        self._upright, self.device = upright, upright.device

    def __len__(self) -> int:
        return TURNS * len(self._upright)

    def get(self, positions: np.ndarray | Tensor) -> Tensor:
        """The images at the given positions, in their order: (b, 3, size, size) uint8, channels last."""
        chosen = torch.as_tensor(positions)
        return turned(self._upright.get(chosen % len(self._upright)), chosen // len(self._upright))

    def batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches that the orders name; see ImageBatches.batches."""
        for order in orders:
            upright = self._upright.batches([order % len(self._upright)])
            for positions, images in zip(order, upright, strict=True):
                yield turned(images, positions // len(self._upright))


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each image by its number of quarters, against the clock: (b, c, size, size) and (b,) int64 -> the same."""
    result, turns = images, turns.to(images.device)[:, None, None, None]
    for turn in range(1, TURNS):
        result = torch.where(turns == turn, images.rot90(turn, (2, 3)), result)
    return result.contiguous(memory_format=torch.channels_last)


def turned_labels(labels: Tensor) -> Tensor:
    """Labels of the images of QuarterTurns: (n,) of 0..c-1 -> (4 n,) of 0..4c-1, each turn with classes of its own."""
    classes = int(labels.max()) + 1
    return torch.cat([labels + turn * classes for turn in range(TURNS)])

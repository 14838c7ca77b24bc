"""A model of a folder, asked for embeddings of rows of a dataset; it is read when it is first asked, and timed."""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrieval.augmentation import to_unit
from retrieval.dataset import Dataset
from retrieval.features import embed
from retrieval.image_batches import ImageBatches
from retrieval.models import EmbeddingModel, load_model

Change = Callable[[Tensor], Tensor]  # (b, 3, h, w) uint8 -> (b, 3, size, size) uint8, as the model wants it


class Embedder:
    """Embeds images of one dataset with one model.

    Attributes:
        name: of the progress.
        device: where to compute.
        batch_size: images at once.
    """

    def __init__(self, name: str, folder: Path, dataset: Dataset, device: torch.device, batch_size: int) -> None:
        """Remember what to ask; nothing is read."""
        self.name, self.device, self.batch_size = name, device, batch_size
        self._folder, self._dataset = folder, dataset
        self._images, self._seconds = 0, 0.0

    @cached_property
    def model(self) -> EmbeddingModel:
        """The model, which has seen one empty batch: the first one is slower than those that follow."""
        model = load_model(self._folder, self.device)
        size = model.config.image_size
        with torch.no_grad():
            model(torch.zeros(self.batch_size, 3, size, size, device=self.device))
        return model

    def __call__(self, rows: np.ndarray) -> Tensor:
        """The embeddings of rows of the dataset: (m, d) float32 on the CPU; see features.embed."""
        model = self.model
        started = time.perf_counter()
        embeddings = embed(model, self._dataset, rows, self.device, self.batch_size, f"embed, {self.name}")
        self._images, self._seconds = self._images + len(rows), self._seconds + time.perf_counter() - started
        return embeddings

    @property
    def images_per_second(self) -> float | None:
        """Of all that it was asked for so far, reading the images included; None before."""
        return self._images / self._seconds if self._seconds else None

    def changed(self, rows: np.ndarray, change: Change, dataset: Dataset | None = None) -> Tensor:
        """The embeddings of images that are changed first.

        Args:
            rows: (m,) of the dataset.
            change: takes the bytes as they are stored, gives them as the model wants them.
            dataset: another one than the embedder's own.

        Returns:
            (m, d) float32 on the CPU.
        """

        def embedded(images: Tensor) -> Tensor:
            embeddings: Tensor = self.model(to_unit(change(images)))
            return embeddings

        return changed(dataset or self._dataset, rows, self.device, self.batch_size, embedded)


@torch.no_grad()
def changed(
    dataset: Dataset, rows: np.ndarray, device: torch.device, batch_size: int, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """What a function makes of the stored images, batch after batch: (m, ...) on the CPU.

    Args:
        dataset: where the images are.
        rows: (m,) of the dataset, at least one.
        device: where the batches lie.
        batch_size: images at once.
        function: takes (b, 3, size, size) uint8, gives one row an image.
    """
    images = ImageBatches(dataset, rows, device, memory_limit=0)
    batches = torch.arange(len(rows)).split(batch_size)
    return torch.cat([function(images.get(positions)).cpu() for positions in batches])

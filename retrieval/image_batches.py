"""Images for training, a batch at a time: resident on the device when they fit, else gathered ahead."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from retrieval.dataset import Dataset
from retrieval.devices import memory_for_images

ROWS_PER_COPY = 8_192  # bounds the host memory while the images move to the device


class ImageBatches:
    """Some images of a dataset, in batches of bytes: (b, 3, size, size) uint8, channels last, on the device.

    Both ways give the same bytes. Resident: all images lie on the device and a batch is one indexing there. Streamed:
    a thread gathers the coming batches from the memory map, in pinned memory for CUDA, while the device computes.

    Attributes:
        rows: (n,) the dataset's rows; position i in this object is the image of row rows[i].
        device: where batches are delivered.
        resident: whether the images lie on the device.
    """

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, device: torch.device, memory_limit: int | None = None, ahead: int = 4
    ) -> None:
        """Choose the way; move the images when they fit.

        Args:
            dataset: where the pixels are.
            rows: (n,) int64 rows of the dataset.
            device: where batches are wanted.
            memory_limit: most bytes that may stay on the device; devices.memory_for_images when None.
            ahead: batches gathered ahead when streamed.
        """
        self.rows = np.asarray(rows)
        self._dataset, self.device, self._ahead = dataset, device, ahead
        limit = memory_for_images(device) if memory_limit is None else memory_limit
        self.bytes = len(self.rows) * dataset.image_size**2 * 3
        self.resident = self.bytes <= limit
        self._images = self._move() if self.resident else None  # (n, size, size, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> str:
        """Where the images are, for a log."""
        where = f"resident on {self.device.type}" if self.resident else "streamed from the memory map"
        return f"{len(self):,} images, {self.bytes / 2**20:,.1f} MiB, {where}"

    def get(self, positions: np.ndarray | Tensor) -> Tensor:
        """The images at the given positions, in their order: (b, 3, size, size) uint8, channels last."""
        chosen = torch.as_tensor(positions)
        if self._images is not None:
            return self._images[chosen.to(self.device)].permute(0, 3, 1, 2)
        return self._to_device(self._gather(chosen))

    def batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches that the orders name, one a row: each order is (steps, b) int64 positions on the CPU.

        An order is asked for only when its batches are due, so a sampler may draw one an epoch for ever.
        """
        return self._resident_batches(orders) if self.resident else self._streamed_batches(orders)

    def _resident_batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        for order in orders:
            for positions in order.to(self.device):  # one copy an epoch
                yield self.get(positions)

    def _streamed_batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, "gather-images") as thread:
            for order in orders:
                for positions in order:
                    waiting.append(thread.submit(self._gather, positions))
                    if len(waiting) > self._ahead:
                        yield self._to_device(waiting.popleft().result())
            while waiting:
                yield self._to_device(waiting.popleft().result())

    def _gather(self, positions: Tensor) -> Tensor:
        images = torch.from_numpy(self._dataset.read(self.rows[positions.cpu().numpy()]))
        return images.pin_memory() if self.device.type == "cuda" else images

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _move(self) -> Tensor:
        size = self._dataset.image_size
        images = torch.empty((len(self.rows), size, size, 3), dtype=torch.uint8, device=self.device)
        for start in range(0, len(self.rows), ROWS_PER_COPY):
            part = self._dataset.read(self.rows[start : start + ROWS_PER_COPY])
            images[start : start + len(part)].copy_(torch.from_numpy(part))
        return images

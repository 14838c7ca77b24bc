"""Features of a dataset: one vector an image, computed in blocks, kept beside the dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval.augmentation import to_unit
from retrieval.dataset import Dataset
from retrieval.image_batches import ImageBatches
from retrieval.manifest import Manifest, read_manifest, write_manifest
from retrieval.models import EmbeddingModel
from retrieval.progress import Progress

KIND, FORMAT_VERSION = "features", 1
VALUES = "features.npy"


@dataclass(frozen=True)
class Features:
    """A features folder, opened.

    Attributes:
        values: (n, d) float32, memory-mapped; row i is of image i of the dataset.
        manifest: digest, the digests of dataset and backbone, and facts.
    """

    values: np.ndarray
    manifest: Manifest


def embed(
    model: EmbeddingModel,
    dataset: Dataset,
    rows: np.ndarray,
    device: torch.device,
    batch_size: int = 256,
    name: str = "embed",
) -> Tensor:
    """Embed images of a dataset, in float32, with the model in evaluation mode; shows progress.

    Batches are read from the memory map ahead of the device: beside the result, memory does not grow with their number.

    Args:
        model: moved to the device and left there, in evaluation mode.
        dataset: where the images are.
        rows: (m,) int64 rows of the dataset.
        device: where to compute.
        batch_size: images at a time.
        name: of the progress.

    Returns:
        (m, d) float32 on the CPU, in the order of `rows`.

    Raises:
        ValueError: an embedding is not finite, or the images are not of the model's size.
    """
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = ImageBatches(dataset, rows, device, memory_limit=0)
    embeddings = torch.empty(len(rows), model.dimension)
    positions = torch.arange(len(rows))
    whole = len(rows) // batch_size * batch_size
    orders = [positions[:whole].view(-1, batch_size), positions[whole:].view(1, -1)[:, : len(rows) - whole]]
    start = 0
    with torch.inference_mode(), Progress(name, total=len(rows), unit="images") as progress:
        for batch in images.batches(order for order in orders if order.numel()):
            embeddings[start : start + len(batch)] = model(to_unit(batch))
            start += len(batch)
            progress.advance(len(batch))
    broken = int((~torch.isfinite(embeddings)).any(1).sum())
    if broken:
        raise ValueError(f"{name}: {broken} of {len(rows)} embeddings are not finite; train at a lower learning rate.")
    return embeddings


def save_features(
    folder: Path,
    features: np.ndarray | Tensor,
    dataset_digest: str,
    facts: dict[str, Any],
    backbone_digest: str | None = None,
) -> Manifest:
    """Write a features folder.

    Args:
        folder: made when missing.
        features: (n, d), one row for every image of the dataset, in its order.
        dataset_digest: of the dataset.
        facts: whatever else a reader wants to know; plain JSON.
        backbone_digest: of the model that made them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / VALUES, np.ascontiguousarray(features, np.float32))
    made_from = {"dataset": dataset_digest} | ({"backbone": backbone_digest} if backbone_digest else {})
    return write_manifest(folder, KIND, FORMAT_VERSION, made_from, facts)


def load_features(folder: Path, dataset: Dataset | None = None) -> Features:
    """Open a features folder.

    Args:
        folder: written by `save_features`.
        dataset: when given, the features must be of it.

    Raises:
        ValueError: it holds no features, is damaged, or its features are of another dataset.
    """
    manifest = read_manifest(folder, KIND, FORMAT_VERSION)
    values = np.load(folder / VALUES, mmap_mode="r")
    if dataset is not None and manifest.made_from.get("dataset") != dataset.digest:
        raise ValueError(
            f"{folder} holds features of another dataset than {dataset.folder}; run pretrain on this dataset."
        )
    return Features(values, manifest)

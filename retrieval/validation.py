"""How a network does on the validation images: what a training step may look at, and choose by."""

import torch

from retrieval.dataset import Dataset
from retrieval.features import embed
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel
from retrieval.splits import can_measure


def validation_recall_at_1(
    model: EmbeddingModel, dataset: Dataset, device: torch.device, batch_size: int = 256, name: str = "validate"
) -> float | None:
    """R@1 of the validation images among themselves; None where it cannot be measured: see splits.can_measure.

    The model is left on the device, in evaluation mode.
    """
    rows = dataset.rows("validation")
    labels = dataset.labels[rows]
    if not can_measure(labels):
        return None
    return recall_at_1(embed(model, dataset, rows, device, batch_size, name), torch.from_numpy(labels))

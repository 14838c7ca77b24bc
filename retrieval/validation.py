"""How a network does on the validation images: what a training step may look at, and choose by."""

import numpy as np
import torch

from retrieval.dataset import Dataset
from retrieval.features import embed
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel


def validation_recall_at_1(
    model: EmbeddingModel, dataset: Dataset, device: torch.device, batch_size: int = 256, name: str = "validate"
) -> float | None:
    """R@1 of the validation images among themselves; None where no two of them have the same label.

    The model is left on the device, in evaluation mode.
    """
    rows = dataset.rows("validation")
    labels = dataset.labels[rows]
    if len(np.unique(labels)) == len(labels):
        return None
    return recall_at_1(embed(model, dataset, rows, device, batch_size, name), torch.from_numpy(labels))

"""How a network does on the validation images: what a training step may look at, and choose by."""

import numpy as np
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


def distractors(dataset: Dataset) -> np.ndarray:
    """Rows of training images that validation images are searched among too, where something is chosen: (m,) int64.

    Held-out classes are few, and among few classes nearly every answer is right, whatever the model. So where their
    classes are not trained on, as many classes are searched as are tested: the training images of evenly spaced classes
    fill up. They are no queries, and never a right answer. Where the validation images are of training classes there
    are none: they are searched among as many classes as it is, and a model has seen the training images themselves.
    """
    labels, train = dataset.labels, dataset.rows("train")
    held_out, trained_on = np.unique(labels[dataset.rows("validation")]), np.unique(labels[train])
    lacking = min(len(np.unique(labels[dataset.rows("test")])) - len(held_out), len(trained_on))
    if not len(held_out) or lacking < 1 or np.isin(held_out, trained_on).any():
        return train[:0]
    spaced = trained_on[np.linspace(0, len(trained_on) - 1, lacking).round().astype(int)]
    return train[np.isin(labels[train], spaced)]


def searched_among(dataset: Dataset) -> str:
    """What the validation images are searched among where something is chosen, in words."""
    rows = distractors(dataset)
    if not len(rows):
        return "themselves"
    classes, tested = (len(np.unique(dataset.labels[some])) for some in (rows, dataset.rows("test")))
    return f"themselves and {len(rows):,} training images of {classes:,} other class(es); {tested:,} are tested"

"""How a network does on the validation images: what a training step may look at, and choose by."""

import numpy as np
import torch
from torch import Tensor

from retrieval.dataset import Dataset
from retrieval.features import embed
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel
from retrieval.splits import can_measure


def validation_recall_at_1(
    model: EmbeddingModel,
    dataset: Dataset,
    device: torch.device,
    batch_size: int = 256,
    name: str = "validate",
    labelled: bool = True,
) -> float | None:
    """R@1 of the validation images; None where it cannot be measured: see splits.can_measure.

    The model is left on the device, in evaluation mode.

    Args:
        model: to measure.
        dataset: the images.
        device: where to embed.
        batch_size: images at a time.
        name: of the progress.
        labelled: whether training images have classes, see `rows_to_judge`.
    """
    if not can_measure(dataset.labels[dataset.rows("validation")]):
        return None
    return recall_of(embed(model, dataset, rows_to_judge(dataset, labelled), device, batch_size, name), dataset)


def rows_to_judge(dataset: Dataset, labelled: bool = True) -> np.ndarray:
    """Rows of the images that R@1 on validation is measured with: the queries, then the distractors, (m,) int64.

    Args:
        dataset: the images.
        labelled: False where the classes of training images may not be looked at; there are no distractors then.
    """
    queries = dataset.rows("validation")
    return np.concatenate([queries, distractors(dataset)]) if labelled else queries


def recall_of(vectors: Tensor, dataset: Dataset) -> float:
    """R@1 of the validation images by vectors of `rows_to_judge`: (m, d) float, any scale."""
    labels = torch.from_numpy(dataset.labels[dataset.rows("validation")])
    return recall_at_1(vectors[: len(labels)], labels, distractors=vectors[len(labels) :])


def distractors(dataset: Dataset) -> np.ndarray:
    """Rows of training images that validation images are searched among too: (m,) int64.

    Held-out classes are few, and among few classes nearly every answer is right, whatever the model. So where their
    classes are not trained on, as many classes are searched as are tested: the training images of evenly spaced classes
    fill up. They are no queries, and never a right answer. Where the validation images are of training classes there
    are none: they are of all classes already, and a model has seen the training images themselves.
    """
    labels, train = dataset.labels, dataset.rows("train")
    held_out, trained_on = np.unique(labels[dataset.rows("validation")]), np.unique(labels[train])
    lacking = min(len(np.unique(labels[dataset.rows("test")])) - len(held_out), len(trained_on))
    if not len(held_out) or lacking < 1 or np.isin(held_out, trained_on).any():
        return train[:0]
    spaced = trained_on[np.linspace(0, len(trained_on) - 1, lacking).round().astype(int)]
    return train[np.isin(labels[train], spaced)]


def searched_among(dataset: Dataset, labelled: bool = True) -> str:
    """What the validation images are searched among, in words."""
    rows = rows_to_judge(dataset, labelled)[len(dataset.rows("validation")) :]
    if not len(rows):
        return "themselves"
    classes, tested = (len(np.unique(dataset.labels[some])) for some in (rows, dataset.rows("test")))
    return f"themselves and {len(rows):,} training images of {classes:,} other class(es); {tested:,} are tested"

"""How good a retrieval is: recall@k, MAP@R, R-precision, exact and with self removed by index; and accuracy."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrieval.confidence import wilson_lower_bound
from retrieval.neighbours import TIE, nearest, ranked

__all__ = [
    "RetrievalMetrics",
    "nearest_mean_accuracy",
    "recall_at_1",
    "retrieval_metrics",
    "wilson_lower_bound",
]

HITS_AT_ONCE = 4_000_000  # similarities held at a time
ROWS_AT_ONCE = 8_192  # embeddings held in float64 at a time


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """What a set of queries retrieved; shares in [0, 1], over the queries that have another image of their class.

    Attributes:
        recall_at_1: share of queries whose nearest image is of their class.
        recall_at_2: share with an image of their class among the 2 nearest.
        recall_at_4: likewise, 4.
        recall_at_8: likewise, 8; where fewer images can be retrieved, among all of them.
        map_at_r: mean over queries of (1/R) sum over i <= R of P(i) rel(i), with R the images of the class that the
            query can retrieve and P(i) the precision among the first i (Musgrave et al., ECCV 2020).
        r_precision: mean share of the class among the R nearest.
        macro_recall_at_1: mean over classes of the class's recall at 1.
        pessimistic_recall_at_1: recall at 1 when a query with tied nearest images is right only if all tied ones are.
        ties: queries with another image within 1e-6 of the greatest similarity; the lowest index was taken.
        queries: queries measured.
        queries_without_positive: queries left out, because nothing else of their class can be retrieved.
        query_rows: (queries,) int64, row of each measured query in the embeddings.
        nearest: (queries,) int64, gallery row of its nearest image.
        similarity: (queries,) float32, their cosine.
        correct: (queries,) bool, whether the nearest image is of the query's class.
    """

    recall_at_1: float
    recall_at_2: float
    recall_at_4: float
    recall_at_8: float
    map_at_r: float
    r_precision: float
    macro_recall_at_1: float
    pessimistic_recall_at_1: float
    ties: int
    queries: int
    queries_without_positive: int
    query_rows: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    correct: np.ndarray

    def numbers(self) -> dict[str, float]:
        """The numbers by name, without the arrays."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if not isinstance(value, np.ndarray)}


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor | np.ndarray,
    gallery_embeddings: Tensor | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    distractors: Tensor | None = None,
) -> RetrievalMetrics:
    """Measure every row as a query: against all other rows, or against a gallery of other images.

    Order and ties are those of `neighbours.nearest`. A query without another image of its class is left out and
    counted; it stays in the gallery.

    Args:
        embeddings: (n, d) float, any scale; rows are normalised here.
        labels: (n,) integer. Float labels are refused: above 2^24 they run together.
        gallery_embeddings: (m, d) float; none of its images may be among the queries. Without it, each query is
            excluded from its own gallery by its index.
        gallery_labels: (m,) integer, given with gallery_embeddings.
        distractors: (m, d) float; without a gallery: images of other classes than any query's, that are in each query's
            gallery besides and ask nothing.

    Raises:
        ValueError: shapes disagree, labels are no integers, or no query has another image of its class.
    """
    task = _Task(embeddings, labels, gallery_embeddings, gallery_labels, distractors)
    hits_wanted = min(max(8, int(task.positives.max()) + 1), task.available)
    parts = []
    for rows in task.query_rows.split(max(1, HITS_AT_ONCE // hits_wanted)):
        parts.append(_measure(task, rows, hits_wanted))
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    correct, query_labels = columns["recall_at_1"].bool(), task.labels[task.query_rows]
    shares = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r", "r_precision")
    return RetrievalMetrics(
        **{name: float(columns[name].mean()) for name in shares},
        macro_recall_at_1=_macro(correct, query_labels),
        pessimistic_recall_at_1=float(columns["surely_right"].mean()),
        ties=int(columns["tied"].sum()),
        queries=len(task.query_rows),
        queries_without_positive=len(task.labels) - len(task.query_rows),
        query_rows=task.query_rows.cpu().numpy(),
        nearest=columns["nearest"].cpu().numpy(),
        similarity=columns["similarity"].float().cpu().numpy(),
        correct=correct.cpu().numpy(),
    )


def recall_at_1(
    embeddings: Tensor,
    labels: Tensor | np.ndarray,
    gallery_embeddings: Tensor | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    distractors: Tensor | None = None,
) -> float:
    """Share of queries whose nearest image is of their class: `retrieval_metrics(...).recall_at_1` alone, faster."""
    task = _Task(embeddings, labels, gallery_embeddings, gallery_labels, distractors)
    indices = nearest(task.embeddings, task.gallery, 1, task.itself)[1][task.query_rows, 0]
    return float((task.gallery_labels[indices] == task.labels[task.query_rows]).double().mean())


def nearest_mean_accuracy(
    embeddings: Tensor, labels: Tensor | np.ndarray, train_embeddings: Tensor, train_labels: Tensor | np.ndarray
) -> float | None:
    """Share of images whose nearest class mean is that of their class: the accuracy of a classifier without training.

    A class mean is the mean of the class's training embeddings, each brought to length 1. Images of classes without
    training images are left out; None when nothing remains.

    Args:
        embeddings: (n, d) float, any scale.
        labels: (n,) integer.
        train_embeddings: (m, d) float, of other images.
        train_labels: (m,) integer.
    """
    labels, known = _integers("labels", labels, embeddings), _integers("train_labels", train_labels, train_embeddings)
    classes, position = known.unique(return_inverse=True)
    means = torch.zeros(len(classes), train_embeddings.shape[1], dtype=torch.float64, device=train_embeddings.device)
    for rows, of_class in zip(train_embeddings.split(ROWS_AT_ONCE), position.split(ROWS_AT_ONCE), strict=True):
        means.index_add_(0, of_class, normalize(rows.double(), dim=1))  # the sum points where the mean does
    asked = torch.isin(labels, classes)
    if not asked.any():
        return None
    answers = classes[nearest(embeddings[asked].double(), means, 1)[1][:, 0]]
    return float((answers == labels[asked]).double().mean())


class _Task:
    """Queries, gallery and how many positives each query has, checked."""

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor | np.ndarray,
        gallery_embeddings: Tensor | None,
        gallery_labels: Tensor | np.ndarray | None,
        distractors: Tensor | None,
    ) -> None:
        if (gallery_embeddings is None) != (gallery_labels is None):
            raise ValueError("Only one of gallery_embeddings and gallery_labels is given; give both or neither.")
        if gallery_embeddings is not None and distractors is not None:
            raise ValueError("A gallery and distractors are given; lay the distractors into the gallery.")
        self.embeddings, self.labels = embeddings, _integers("labels", labels, embeddings)
        self.itself: Tensor | None = None
        if gallery_embeddings is None or gallery_labels is None:
            self.gallery, self.gallery_labels = self.embeddings, self.labels
            self.itself = torch.arange(len(embeddings), device=embeddings.device)
            if distractors is not None and len(distractors):
                of_no_query = self.labels.new_full((len(distractors),), int(self.labels.max()) + 1)
                self.gallery = torch.cat([self.embeddings, distractors.to(embeddings)])
                self.gallery_labels = torch.cat([self.labels, of_no_query])
        else:
            self.gallery = gallery_embeddings
            self.gallery_labels = _integers("gallery_labels", gallery_labels, gallery_embeddings)
        own = 0 if self.itself is None else 1
        self.available = len(self.gallery) - own
        classes, counts = self.gallery_labels.unique(return_counts=True)
        if not len(classes):
            raise ValueError("The gallery is empty; nothing can be retrieved.")
        place = torch.searchsorted(classes, self.labels).clamp(max=len(classes) - 1)
        self.positives = torch.where(classes[place] == self.labels, counts[place] - own, 0)
        self.query_rows = self.positives.nonzero()[:, 0]
        if not len(self.query_rows):
            raise ValueError(
                f"None of {len(self.labels)} queries has another image of its class to retrieve; recall is undefined. "
                "Check the labels, or measure with more images of a class."
            )


def _integers(name: str, labels: Tensor | np.ndarray, embeddings: Tensor) -> Tensor:
    values = torch.from_numpy(np.array(labels)) if isinstance(labels, np.ndarray) else labels
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} are {values.dtype}; give integers: as floats, labels above 2^24 run together.")
    if values.shape != (len(embeddings),):
        raise ValueError(f"{name} are {tuple(values.shape)} for {len(embeddings)} embeddings; give one label a row.")
    return values.to(embeddings.device, torch.int64)


def _measure(task: _Task, rows: Tensor, hits_wanted: int) -> dict[str, Tensor]:
    """Per-query columns for some of the queries."""
    itself = None if task.itself is None else task.itself[rows]
    similarities, indices = ranked(task.embeddings[rows], task.gallery, hits_wanted, itself)  # (q, k)
    right = task.gallery_labels[indices] == task.labels[rows].unsqueeze(1)
    positives = task.positives[rows]
    rank = torch.arange(1, hits_wanted + 1, device=rows.device)
    counted = right & (rank <= positives.unsqueeze(1))
    precision = right.cumsum(1) / rank.double()
    tied = similarities >= similarities.amax(1, keepdim=True) - TIE
    columns = {f"recall_at_{k}": right[:, :k].any(1).double() for k in (1, 2, 4, 8)}
    return columns | {
        "map_at_r": (precision * counted).sum(1) / positives,
        "r_precision": counted.sum(1) / positives.double(),
        "tied": tied.sum(1) > 1,
        "surely_right": (right | ~tied).all(1).double(),
        "nearest": indices[:, 0],
        "similarity": similarities[:, 0],
    }


def _macro(correct: Tensor, labels: Tensor) -> float:
    classes, position = labels.unique(return_inverse=True)
    right = torch.zeros(len(classes), dtype=torch.float64, device=labels.device).index_add_(
        0, position, correct.double()
    )
    return float((right / position.bincount()).mean())

"""A softmax layer that sees embeddings as retrieval does: by cosine."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize


class CosineLayer(nn.Module):
    """Logits are scale * cosine(embedding, class weight) (Wang et al. 2017), with smoothed labels (Szegedy 2016).

    A plain linear layer also uses the embedding's length, which retrieval by cosine throws away.
    """

    def __init__(self, centres: Tensor, scale: float = 16.0, label_smoothing: float = 0.1) -> None:
        """Begin at the centres of the classes, so that the first steps do not undo what the network knows.

        Args:
            centres: (classes, d) float, e.g. the mean embedding of each class.
            scale: of the logits; higher draws the classes tighter.
            label_smoothing: share of a label that is spread over all classes, from 0 to below 1.
        """
        super().__init__()
        self.weight = nn.Parameter(normalize(centres.float(), dim=1))
        self.scale, self.label_smoothing = scale, label_smoothing

    def logits(self, embeddings: Tensor) -> Tensor:
        """(b, d) -> (b, classes)."""
        return self.scale * linear(normalize(embeddings, dim=1), normalize(self.weight, dim=1))

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Mean cross-entropy of a batch: outputs (b, d), labels (b,) int64; positions are not used."""
        return cross_entropy(self.logits(outputs), labels, label_smoothing=self.label_smoothing)


def class_centres(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean direction of the embeddings of each class: (n, d), (n,) int64 in 0..c-1 -> (c, d) of length 1."""
    rows = normalize(embeddings, dim=1)
    sums = torch.zeros((int(labels.max()) + 1, rows.shape[1]), device=rows.device).index_add_(0, labels, rows)
    return normalize(sums, dim=1)

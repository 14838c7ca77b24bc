"""The ways in which a small network is drawn to adjusted features before it learns the classes: one table, objectives.

To add a way: write the module, forward(outputs (b, d), labels (b,), positions (b,)) -> scalar, and add its name.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.cosine_layer import class_centres
from retrieval.losses import normalised_softmax
from retrieval.relations import Relations, directions
from retrieval.self_labelling import merge_small

BALANCING_ROUNDS = 3  # after as many the shares of clusters hardly change; SwAV takes 3 too
LEAST_SHARE = 1e-6  # of the images, for a cluster in balancing: a logarithm must stay finite
ROWS_PER_BLOCK = 8_192


class SoftClusters(nn.Module):
    """A softmax layer over the co-clusters, taught by how near the targets lie to the centre of each.

    The soft label of an image is softmax(cosine(target, centre) / temperature + shift); the shifts, one a cluster, are
    such that every cluster has the same share of all labels (Sinkhorn-Knopp, as in Caron et al., SwAV, NeurIPS 2020):
    a large cluster does not drown the small ones. Differs from SwAV: centres are fixed, and so are the labels. The
    layer sees embeddings by cosine. Clusters of one image join the nearest other one.

    Attributes:
        weight: (k, d) parameter, one row a cluster, random at first.
    """

    targets: Tensor
    centres: Tensor
    shifts: Tensor

    def __init__(
        self, targets: Tensor, clusters: Tensor, dimension: int, temperature: float = 0.05, scale: float = 16.0
    ) -> None:
        """Find the centres, and balance.

        Args:
            targets: (n, D) float, one row for each position.
            clusters: (n,) int64; -1 for none.
            dimension: d of the embeddings.
            temperature: of the cosines of the targets; the lower, the harder the labels.
            scale: of the cosines of the embeddings.

        Raises:
            ValueError: a row is zero or not finite, or fewer than two clusters have two images.
        """
        super().__init__()
        self.temperature, self.scale = temperature, scale
        targets = directions(targets)
        centres = class_centres(targets, merge_small(targets, clusters))
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("shifts", balancing_shifts(targets, centres, temperature), persistent=False)
        self.weight = nn.Parameter(F.normalize(torch.randn(len(centres), dimension)))

    def soft_labels(self, positions: Tensor) -> Tensor:
        """(b,) int64 -> (b, k), rows add up to 1."""
        return torch.softmax(self.targets[positions] @ self.centres.T / self.temperature + self.shifts, dim=1)

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Mean cross-entropy of a batch: outputs (b, d), positions (b,) int64; labels are not used."""
        logits = self.scale * F.normalize(outputs, dim=1) @ F.normalize(self.weight, dim=1).T
        return F.cross_entropy(logits, self.soft_labels(positions))


def balancing_shifts(targets: Tensor, centres: Tensor, temperature: float, rounds: int = BALANCING_ROUNDS) -> Tensor:
    """What is added to the logits of each cluster so that all have the same share of the soft labels: (k,).

    Each round lowers a cluster's logit by the logarithm of its share over the equal one.

    Args:
        targets: (n, D) of length 1.
        centres: (k, D) of length 1.
        temperature: see `SoftClusters`.
        rounds: the more, the more equal.
    """
    shifts = torch.zeros(len(centres), device=targets.device)
    for _ in range(rounds):
        held = torch.zeros_like(shifts)
        for block in targets.split(ROWS_PER_BLOCK):
            held += torch.softmax(block @ centres.T / temperature + shifts, dim=1).sum(0)
        shifts -= torch.log((held / len(targets)).clamp_min(LEAST_SHARE) * len(centres))
    return shifts


class CentreProxies(nn.Module):
    """Draws an embedding to the centre of its image's co-cluster, away from the centres of all others.

    A normalised softmax whose proxies are the centres and stay where they are, after Movshovitz-Attias et al., ICCV
    2017, where they are learned. An embedding of another dimension than the targets goes through a learned linear map
    first, which is left behind. Clusters of one image join the nearest other one.

    Attributes:
        map: from the embedding to the space of the targets; nothing where the dimensions are equal.
    """

    centres: Tensor
    clusters: Tensor

    def __init__(self, targets: Tensor, clusters: Tensor, dimension: int, scale: float = 16.0) -> None:
        """Find the centres.

        Args:
            targets: (n, D) float, one row for each position.
            clusters: (n,) int64; -1 for none.
            dimension: d of the embeddings.
            scale: of the cosines, the inverse of the temperature.

        Raises:
            ValueError: a row is zero or not finite, or fewer than two clusters have two images.
        """
        super().__init__()
        self.scale = scale
        targets = directions(targets)
        clusters = merge_small(targets, clusters)
        self.register_buffer("centres", class_centres(targets, clusters), persistent=False)
        self.register_buffer("clusters", clusters, persistent=False)
        width = targets.shape[1]
        self.map: nn.Module = nn.Identity() if dimension == width else nn.Linear(dimension, width, bias=False)

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Mean cross-entropy of a batch: outputs (b, d), positions (b,) int64; labels are not used."""
        own = self.clusters[positions]
        return normalised_softmax(self.map(outputs), own, self.centres, scale=self.scale, label_smoothing=0.0)


def _relations(targets: Tensor, clusters: Tensor, dimension: int) -> Relations:  # noqa: ARG001
    return Relations(targets)


ADJUSTING: dict[str, Callable[[Tensor, Tensor, int], nn.Module]] = {
    "relations": _relations,
    "clusters": SoftClusters,
    "centres": CentreProxies,
}


def adjusting_objective(name: str, targets: Tensor, clusters: Tensor, dimension: int) -> nn.Module:
    """An objective of `fit` by its name.

    Args:
        name: a key of ADJUSTING.
        targets: (n, D) float adjusted features, one row for each position.
        clusters: (n,) int64 co-cluster of each, -1 for none; relations do not use it.
        dimension: of the embeddings.

    Raises:
        ValueError: an unknown name, or targets or clusters that the way cannot use.
    """
    if name not in ADJUSTING:
        raise ValueError(f"Unknown adjust_by '{name}'; choose one of: {', '.join(ADJUSTING)}.")
    return ADJUSTING[name](targets, clusters, dimension)

"""How a small network is drawn to features made by another: by the relations among images."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

LEAST_IMAGES = 3  # of a batch


class Relations(nn.Module):
    """Makes the cosines among the images of a batch rise and fall with the targets' (Park et al., CVPR 2019).

    The loss is 1 - the correlation of the two over all pairs of the batch: 0 when they agree, 1 for a network that
    knows nothing. The targets may have any number of dimensions. A network whose embeddings all point one way, as at
    the beginning, does not stand out by that: the squared error of the cosines would drown everything else in it.
    """

    targets: Tensor

    def __init__(self, targets: Tensor) -> None:
        """Keep the targets, normalised.

        Args:
            targets: (n, D) float, one row for each position.

        Raises:
            ValueError: a row is zero or not finite.
        """
        super().__init__()
        self.register_buffer("targets", directions(targets), persistent=False)

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of a batch: outputs (b, d), positions (b,) int64; labels are not used.

        Raises:
            ValueError: fewer than LEAST_IMAGES images: of a single pair nothing rises and falls, the loss is always 1.
        """
        if len(outputs) < LEAST_IMAGES:
            raise ValueError(
                f"A batch of {len(outputs)} images has {len(outputs) * (len(outputs) - 1) // 2} pair(s); relations are "
                f"learned from how pairs differ, which takes {LEAST_IMAGES} images: raise batch_size, or draw the "
                "network by something else than relations."
            )
        wanted = _cosines_of_pairs(self.targets[positions])
        given = _cosines_of_pairs(normalize(outputs, dim=1))
        wanted, given = wanted - wanted.mean(), given - given.mean()
        return 1 - (wanted * given).sum() / (wanted.norm() * given.norm()).clamp_min(1e-6)


def _cosines_of_pairs(rows: Tensor) -> Tensor:
    """(b, d) of length 1 -> (b * (b - 1) / 2,)."""
    first, second = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    return (rows @ rows.T)[first, second]


def directions(targets: Tensor) -> Tensor:
    """Targets (n, D) float brought to length 1, float32.

    Raises:
        ValueError: a row is zero or not finite.
    """
    bad = torch.nonzero(~((targets.norm(dim=1) > 0) & torch.isfinite(targets).all(dim=1))).flatten()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(targets)} targets are zero or not finite, the first at position {int(bad[0])}; "
            "such an image has no direction to be drawn to: look at the features it was made from."
        )
    return normalize(targets.float(), dim=1)

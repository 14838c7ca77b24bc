"""How a small network is drawn to features made by another: by the relations among images, not by the features themselves."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class Relations(nn.Module):
    """Makes the cosines among the images of a batch those of the targets (after Park et al., CVPR 2019).

    The loss is the squared error of the cosines of all pairs, divided by the variance of the targets' cosines: 0 when
    all are met, 1 for a network that knows only their mean. The targets may have any number of dimensions.
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
        bad = torch.nonzero(~((targets.norm(dim=1) > 0) & torch.isfinite(targets).all(dim=1))).flatten()
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(targets)} targets are zero or not finite, the first at position {int(bad[0])}; "
                "such an image has no direction to be drawn to: look at the features it was made from."
            )
        self.register_buffer("targets", normalize(targets.float(), dim=1), persistent=False)

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of a batch: outputs (b, d), positions (b,) int64; labels are not used."""
        targets = self.targets[positions]
        outputs = normalize(outputs, dim=1)
        pairs = ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        wanted = targets @ targets.T
        mean = (wanted * pairs).sum() / pairs.sum()
        error = ((outputs @ outputs.T - wanted).square() * pairs).sum()
        return error / ((wanted - mean).square() * pairs).sum().clamp_min(1e-6)

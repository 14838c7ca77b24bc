"""Pooled features of a backbone, integrated into one vector of a fixed size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

LEAST_VARIANCE = 1e-9  # of the largest: directions with less are rounding, and whitening would make them loud


class Integration(nn.Module):
    """Features of one or several depths -> power and L2 norm for each depth -> projection onto whitened directions.

    Attributes:
        widths: features of each depth; they come laid end to end.
        power: features are raised to it, keeping their sign; 0.5 tames bursts (Jegou and Chum, ECCV 2012).
        mean: (D,) of the training images' features, after the power and the norm.
        projection: (D, d) half-whitened principal directions.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, widths: Sequence[int], dimension: int, power: float) -> None:
        super().__init__()
        self.widths, self.power = tuple(widths), power
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("projection", torch.zeros(sum(widths), dimension))

    def forward(self, pooled: Tensor) -> Tensor:
        """(b, D) -> (b, d), not normalised."""
        return (level(pooled, self.widths, self.power) - self.mean) @ self.projection


def level(pooled: Tensor, widths: Sequence[int], power: float) -> Tensor:
    """Bring depths to one scale: signed power of every feature, then L2 norm 1 for each depth. (b, D) -> (b, D)."""
    powered = pooled if power == 1 else pooled.sign() * pooled.abs().pow(power)
    return torch.cat([normalize(part, dim=1) for part in powered.split(list(widths), dim=1)], 1)


def learn_integration(
    pooled: Tensor,
    widths: Sequence[int],
    dimension: int,
    power: float = 0.5,
    device: torch.device | str = "cpu",
    rows_per_block: int = 8192,
) -> Integration:
    """Half PCA-whitening learned on the training images: component j is divided by the fourth root of its variance.

    Whole whitening divides by the square root: weak directions become as loud as strong ones, which loses R@1.

    Args:
        pooled: (n, D) float, features of training images only, the depths laid end to end.
        widths: features of each depth.
        dimension: d wanted; the result has fewer where the features, or the images, span fewer directions.
        power: see `Integration`.
        device: where products are computed, in double precision.
        rows_per_block: memory is D * D + rows_per_block * D doubles; the result does not depend on it.

    Raises:
        ValueError: fewer than two images, a feature that is not finite, or all images with the same features.
    """
    if len(pooled) < 2:
        raise ValueError(
            f"{len(pooled)} training images; the integration of features needs 2 or more to see a variance."
        )
    mean, covariance = _moments(pooled, widths, power, device, rows_per_block)
    if not torch.isfinite(covariance).all():
        raise ValueError("Features of the training images are not finite: lower the learning rate of the backbone.")
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    kept = min(dimension, int((variances > LEAST_VARIANCE * variances[-1].clamp(min=LEAST_VARIANCE)).sum()))
    if kept == 0:
        raise ValueError("All training images have the same features: the backbone tells nothing apart.")
    variances, directions = variances.flip(0)[:kept], directions.flip(1)[:, :kept]
    signs = directions.gather(
        0, directions.abs().argmax(0, keepdim=True)
    ).sign()  # an eigenvector has no sign of its own
    integration = Integration(widths, kept, power)
    integration.mean.copy_(mean)
    integration.projection.copy_(directions * signs * variances.pow(-0.25))
    return integration


def _moments(
    pooled: Tensor, widths: Sequence[int], power: float, device: torch.device | str, rows_per_block: int
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the levelled features, in double precision, on the CPU."""
    total = torch.zeros(pooled.shape[1], dtype=torch.float64, device=device)
    for block in pooled.split(rows_per_block):
        total += level(block.to(device).double(), widths, power).sum(0)
    mean = total / len(pooled)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=device)
    for block in pooled.split(rows_per_block):
        centred = level(block.to(device).double(), widths, power) - mean
        covariance.addmm_(centred.T, centred)
    return mean.cpu(), covariance.cpu() / (len(pooled) - 1)

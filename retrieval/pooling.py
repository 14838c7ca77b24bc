"""From a feature map to one vector an image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SMALLEST = 1e-6  # activations below it count as it: a power of zero has no gradient


def generalised_mean(maps: Tensor, power: Tensor | float) -> Tensor:
    """Mean of order p over the places of a map, (mean of x^p)^(1/p): p = 1 is the average, large p nears the maximum.

    Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019. The largest activation is
    divided out first, so that no p overflows.

    Args:
        maps: (b, c, h, w) float; negative activations count as zero, as in the paper, where a ReLU comes before.
        power: p > 0, one number.

    Returns:
        (b, c) float32, whatever the precision of the maps.
    """
    positive = maps.float().clamp(min=SMALLEST)
    largest = positive.detach().amax((-2, -1), keepdim=True)  # (b, c, 1, 1)
    mean = (positive / largest).pow(power).mean((-2, -1))  # (b, c)
    return mean.pow(1 / power) * largest.flatten(1)


class GeneralisedMean(nn.Module):
    """`generalised_mean` with an order p that is learned with the network; it begins at 3, the paper's choice."""

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, maps: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c)."""
        return generalised_mean(maps, self.power.float())


class Average(nn.Module):
    """Mean over the places of a map."""

    def forward(self, maps: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c)."""
        return maps.float().mean((-2, -1))


class Maximum(nn.Module):
    """Largest activation over the places of a map."""

    def forward(self, maps: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c)."""
        return maps.amax((-2, -1))


POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "gem": GeneralisedMean,
    "average": Average,
    "max": Maximum,
    "flatten": nn.Flatten,  # every place keeps its own features: (b, c, h, w) -> (b, c * h * w)
}


def build_pooling(name: str) -> nn.Module:
    """The pooling of that name.

    Raises:
        ValueError: no such pooling; lists those there are.
    """
    if name not in POOLINGS:
        raise ValueError(f"Unknown pooling '{name}'; choose one of: {', '.join(POOLINGS)}.")
    return POOLINGS[name]()

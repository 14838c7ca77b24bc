"""The losses that draw images of one class together: functions of a batch, one table, one module that owns proxies.

All work on cosines of the normalised embeddings, so their scale does not matter, and in float32 even under autocast.
To add a loss: write the function, add its name to LOSSES; the parametrised tests already cover it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normalised_softmax(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, *, scale: float = 16.0, label_smoothing: float = 0.1
) -> Tensor:
    """Classify by the cosine to one proxy a class. Zhai & Wu, BMVC 2019.

    Differs from the paper: no layer norm before the normalisation, and labels may be smoothed.

    Args:
        embeddings: (b, d).
        labels: (b,) int64 in 0..c-1.
        proxies: (c, d).
        scale: of the cosines, the inverse of the temperature.
        label_smoothing: share of the target spread evenly over all c classes.
    """
    return F.cross_entropy(scale * _cosines(embeddings, proxies), labels, label_smoothing=label_smoothing)


def contrastive(
    embeddings: Tensor, labels: Tensor, *, positive_margin: float = 0.25, negative_margin: float = 0.65
) -> Tensor:
    """Pull pairs of a class nearer than one margin and push others beyond another. After Hadsell et al., CVPR 2006.

    Differs from the paper: distances between normalised embeddings are not squared, positives have a margin too, and
    the means are over the pairs that violate theirs, positive and negative apart (Musgrave et al., ECCV 2020).

    Args:
        embeddings: (b, d).
        labels: (b,) int64; some class must appear twice.
        positive_margin: Euclidean distance below which a positive pair is near enough.
        negative_margin: Euclidean distance, at most 2, beyond which a negative pair is far enough.
    """
    positive, negative = _pairs(labels)
    distances = _distances(embeddings)
    return _mean_of_active(distances - positive_margin, positive) + _mean_of_active(
        negative_margin - distances, negative
    )


def triplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.1) -> Tensor:
    """A positive nearer than a negative by a margin, over semi-hard triplets. Schroff et al. (FaceNet), CVPR 2015.

    Semi-hard: the negative is farther than the positive, by less than the margin. Differs from the paper: distances are
    not squared, and the mean is over all semi-hard triplets of the batch. A batch without any falls back on the hard
    ones, whose negative is at least as near as the positive; without those either, the loss is 0.

    Args:
        embeddings: (b, d).
        labels: (b,) int64; some class must appear twice.
        margin: difference of Euclidean distances between normalised embeddings.
    """
    positive, negative = _pairs(labels)
    distances = _distances(embeddings)
    anchor, other = positive.nonzero(as_tuple=True)  # (p,): all positive pairs
    violation = distances[anchor, other].unsqueeze(1) - distances[anchor] + margin  # (p, b)
    violating = negative[anchor] & (violation > 0)
    semi_hard = violating & (violation < margin)
    return _mean_of_active(violation, torch.where(semi_hard.any(), semi_hard, violating))


def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    mining_margin: float = 0.1,
) -> Tensor:
    """Weigh each pair by its similarity and by that of its neighbours. Wang et al., CVPR 2019, with its pair mining.

    An anchor keeps the positives less similar than its most similar negative + mining_margin, and the negatives more
    similar than its least similar positive - mining_margin. The mean is over all b anchors; one without pairs counts 0.

    Args:
        embeddings: (b, d).
        labels: (b,) int64; some class must appear twice.
        alpha: sharpness on positives.
        beta: sharpness on negatives.
        base: the cosine around which pairs are weighed.
        mining_margin: cosine; 2 or more keeps every pair of an anchor that has both kinds.
    """
    positive, negative = _pairs(labels)
    cosines = _cosines(embeddings, embeddings)
    hardest_positive = cosines.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    hardest_negative = cosines.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    positive = positive & (cosines - mining_margin < hardest_negative)
    negative = negative & (cosines + mining_margin > hardest_positive)
    pull = _log_one_plus_sum(alpha * (base - cosines), positive, 1) / alpha
    push = _log_one_plus_sum(beta * (cosines - base), negative, 1) / beta
    return (pull + push).mean()


def proxy_anchor(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, *, margin: float = 0.1, scale: float = 32.0
) -> Tensor:
    """Each class's proxy, as the anchor, pulls its images and pushes all others. Kim et al., CVPR 2020.

    Args:
        embeddings: (b, d).
        labels: (b,) int64 in 0..c-1.
        proxies: (c, d).
        margin: cosine.
        scale: sharpness; alpha in the paper.
    """
    cosines = _cosines(embeddings, proxies)  # (b, c)
    own = labels.unsqueeze(1) == torch.arange(len(proxies), device=labels.device)
    pull = _log_one_plus_sum(scale * (margin - cosines), own, 0).sum() / own.any(0).sum()
    push = _log_one_plus_sum(scale * (cosines + margin), ~own, 0).mean()
    return pull + push


@dataclass(frozen=True)
class Loss:
    """An entry of LOSSES.

    Attributes:
        function: (embeddings, labels[, proxies], **options) -> scalar.
        uses_proxies: whether it takes one learned vector a class; otherwise a batch needs pairs of a class.
    """

    function: Callable[..., Tensor]
    uses_proxies: bool

    @property
    def options(self) -> dict[str, float]:
        """The options by name with their defaults, as the function declares them."""
        parameters = inspect.signature(self.function).parameters.values()
        return {
            parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
        }


LOSSES: dict[str, Loss] = {
    "normalised_softmax": Loss(normalised_softmax, uses_proxies=True),
    "contrastive": Loss(contrastive, uses_proxies=False),
    "triplet": Loss(triplet, uses_proxies=False),
    "multi_similarity": Loss(multi_similarity, uses_proxies=False),
    "proxy_anchor": Loss(proxy_anchor, uses_proxies=True),
}


class MetricObjective(nn.Module):
    """A loss by its name, with the proxies that it learns.

    Attributes:
        proxies: (classes, dimension) parameter of unit rows at first, from torch's generator; None for a loss of pairs.
    """

    def __init__(self, name: str, classes: int, dimension: int, **options: float) -> None:
        """Look the loss up.

        Args:
            name: a key of LOSSES.
            classes: labels run from 0 to classes - 1.
            dimension: of the embeddings.
            options: of the loss; the others keep their defaults.

        Raises:
            ValueError: an unknown loss or option; the choices are listed.
        """
        super().__init__()
        if name not in LOSSES:
            raise ValueError(f"Unknown loss '{name}'; choose one of: {', '.join(LOSSES)}.")
        self.name, self.loss = name, LOSSES[name]
        for option in options:
            if option not in self.loss.options:
                raise ValueError(f"Loss {name} has no option '{option}'; choose from: {', '.join(self.loss.options)}.")
        if classes < 2:
            raise ValueError(f"classes is {classes}; a metric loss needs at least 2 classes to hold apart.")
        self.classes, self.options = classes, self.loss.options | options
        self.proxies: nn.Parameter | None = None
        if self.loss.uses_proxies:
            self.proxies = nn.Parameter(F.normalize(torch.randn(classes, dimension)))
        self._batches_seen = False

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: embeddings (b, d), labels (b,) int64 -> scalar float32.

        Raises:
            ValueError: a label out of range, or a batch without a positive pair for a loss of pairs. On an accelerator
                only the first batch is looked at, because each look would wait for the device.
        """
        if labels.device.type == "cpu" or not self._batches_seen:
            self._check(labels)
            self._batches_seen = True
        if self.proxies is not None:
            return self.loss.function(embeddings, labels, self.proxies, **self.options)
        return self.loss.function(embeddings, labels, **self.options)

    def _check(self, labels: Tensor) -> None:
        if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise ValueError(
                f"Labels are {labels.dtype} from {labels.min()} to {labels.max()}; "
                f"give int64 from 0 to {self.classes - 1}."
            )
        if not self.loss.uses_proxies:
            refuse_without_positives(labels)


def refuse_without_positives(labels: Tensor) -> None:
    """Raise ValueError when no two labels of a batch are equal: a loss of pairs would learn nothing or be undefined."""
    if len(labels.unique()) == len(labels):
        raise ValueError(
            f"None of the {len(labels)} images of the batch shares its class with another; a loss of pairs needs at "
            "least 2 images of a class in a batch to form a positive pair. Draw batches with images_per_class >= 2."
        )


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (b, b) of the positive pairs, an image with itself left out by its index, and of the negative ones."""
    if (
        labels.device.type == "cpu"
    ):  # elsewhere this would wait for the device at every batch: MetricObjective looks once
        refuse_without_positives(labels)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """Cosines (b, c) in float32, or float64 for such input, whatever autocast says."""
    with torch.autocast(left.device.type, enabled=False):
        left, right = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (left, right))
        return F.normalize(left) @ F.normalize(right).T


def _distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances (b, b) between normalised embeddings; below 1e-4 they are 1e-4, with gradient 0."""
    return (2 - 2 * _cosines(embeddings, embeddings)).clamp(min=1e-8).sqrt()


def _mean_of_active(violation: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the positive values among the chosen; 0, with gradient 0, when there is none."""
    active = chosen & (violation > 0)
    return torch.where(active, violation, 0).sum() / active.sum().clamp(min=1)


def _log_one_plus_sum(values: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """log(1 + sum of exp over the chosen), safe against overflow."""
    masked = values.masked_fill(~chosen, -torch.inf)
    return torch.cat([masked, torch.zeros_like(values.narrow(dim, 0, 1))], dim).logsumexp(dim)

"""The losses that draw images of one class together: functions of a batch, one table, one module that owns proxies.

All work on cosines of the normalised embeddings, so their scale does not matter, and in float32 even under autocast.
To add a loss: write the function, add its name to LOSSES; the parametrised tests already cover it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

COMPARISONS_AT_ONCE = 2**21  # of a positive pair with an image: 8 MiB a float32 tensor, of which a loss holds a few


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


def cosine_margin(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, *, scale: float = 24.0, margin: float = 0.2
) -> Tensor:
    """Classify by the cosine to one proxy a class, that of the own class lessened by a margin. CosFace, CVPR 2018.

    An image is right only when its own class is nearer by the margin: classes leave room between them, in which classes
    that are met later find a place.

    Args:
        embeddings: (b, d).
        labels: (b,) int64 in 0..c-1.
        proxies: (c, d).
        scale: of the cosines, the inverse of the temperature.
        margin: taken off the cosine to the own proxy.
    """
    cosines = _cosines(embeddings, proxies)
    own = F.one_hot(labels, len(proxies)).to(cosines.dtype)
    return F.cross_entropy(scale * (cosines - margin * own), labels)


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
    ones, whose negative is at least as near as the positive; without those either, the loss is 0. Many pairs are
    gone over in blocks: see _sum_over_blocks.

    Args:
        embeddings: (b, d).
        labels: (b,) int64; some class must appear twice.
        margin: difference of Euclidean distances between normalised embeddings.
    """
    positive, negative = _pairs(labels)
    distances = _distances(embeddings)

    def mine(distances: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and number of the semi-hard triplets of some positive pairs, else of the hard ones; which they are."""
        anchor, other = pairs.unbind(1)  # (p,)
        violation = distances[anchor, other].unsqueeze(1) - distances[anchor] + margin  # (p, b)
        violating = negative[anchor] & (violation > 0)
        semi_hard = violating & (violation < margin)
        found = semi_hard.any()
        chosen = torch.where(found, semi_hard, violating)
        return torch.where(chosen, violation, 0).sum(), chosen.sum(), found

    def mine_by_kind(distances: Tensor, pairs: Tensor) -> Tensor:
        """Sum and number in two rows: 0 in the first unless they are semi-hard, so that rows of blocks add up."""
        total, count, found = mine(distances, pairs)
        either = torch.stack([total, count])
        return torch.stack([torch.where(found, either, 0), either])

    pairs = positive.nonzero()
    if len(_blocks(pairs, len(labels))) == 1:
        total, count, _ = mine(distances, pairs)
    else:
        semi_hard, either = _sum_over_blocks(mine_by_kind, distances, pairs)
        total, count = torch.where(semi_hard[1] > 0, semi_hard, either)
    return total / count.clamp(min=1)


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


RANKS = (1, 2, 4, 8)  # k of the recall@k that recall_at_k averages; the paper adds 16, for batches of thousands


def recall_at_k(
    embeddings: Tensor, labels: Tensor, *, similarity_temperature: float = 0.01, rank_temperature: float = 1.0
) -> Tensor:
    """1 - a smooth recall@k, averaged over k in RANKS; every image queries the batch. Patel et al., CVPR 2022.

    The smooth rank of a positive x for a query q is 1 + the sum over the other images z of
    sigmoid((cos(q, z) - cos(q, x)) / similarity_temperature). Recall@k is the sum over the positives of
    sigmoid((k - rank) / rank_temperature), at most k, over the most hits there can be: the smaller of k and their
    number. Differs from the paper: no similarity mixup, and batches as they come; queries without a positive are left
    out, and the query itself takes no rank. Many pairs are gone over in blocks: see
    _sum_over_blocks.

    Args:
        embeddings: (b, d).
        labels: (b,) int64; some class must appear twice.
        similarity_temperature: of cosines; the smaller, the nearer to true ranks and the fewer the pairs that learn.
        rank_temperature: of ranks.
    """
    positive, _ = _pairs(labels)
    cosines = _cosines(embeddings, embeddings)
    places = torch.arange(len(labels), device=labels.device)
    k = torch.tensor(RANKS, dtype=cosines.dtype, device=labels.device)

    def hits_of(cosines: Tensor, pairs: Tensor) -> Tensor:
        query, hit = pairs.unbind(1)  # (p,)
        ahead = torch.sigmoid((cosines[query] - cosines[query, hit].unsqueeze(1)) / similarity_temperature)  # (p, b)
        itself = (places == query.unsqueeze(1)) | (places == hit.unsqueeze(1))
        ranks = 1 + ahead.masked_fill(itself, 0).sum(1)
        within = torch.sigmoid((k - ranks.unsqueeze(1)) / rank_temperature)  # (p, len(RANKS))
        return within.new_zeros(len(labels), len(RANKS)).index_add(0, query, within)

    hits = _sum_over_blocks(hits_of, cosines, positive.nonzero()).minimum(k)
    most = positive.sum(1, keepdim=True).minimum(k)  # (b, len(RANKS)); 0 where there is no positive
    recall = (hits / most.clamp(min=1)).mean(1)
    return 1 - recall.sum() / positive.any(1).sum()


def softmax_multi_similarity(embeddings: Tensor, labels: Tensor, proxies: Tensor, *, weight: float = 1.0) -> Tensor:
    """A metric loss joins the classification loss: normalised_softmax + weight * multi_similarity.

    Proxies see every class at every step, pairs see the images that are hard for each other; both with the options
    that they have alone.

    Args:
        embeddings: (b, d).
        labels: (b,) int64 in 0..c-1; some class must appear twice.
        proxies: (c, d), of the softmax.
        weight: of multi_similarity.
    """
    return normalised_softmax(embeddings, labels, proxies) + weight * multi_similarity(embeddings, labels)


def softmax_triplet(embeddings: Tensor, labels: Tensor, proxies: Tensor, *, weight: float = 1.0) -> Tensor:
    """A metric loss joins the classification loss: normalised_softmax + weight * triplet.

    Args:
        embeddings: (b, d).
        labels: (b,) int64 in 0..c-1; some class must appear twice.
        proxies: (c, d), of the softmax.
        weight: of triplet.
    """
    return normalised_softmax(embeddings, labels, proxies) + weight * triplet(embeddings, labels)


@dataclass(frozen=True)
class Loss:
    """An entry of LOSSES.

    Attributes:
        function: (embeddings, labels[, proxies], **options) -> scalar.
        uses_proxies: whether it takes one learned vector a class.
        uses_pairs: whether a batch needs two images of some class.
    """

    function: Callable[..., Tensor]
    uses_proxies: bool
    uses_pairs: bool

    @property
    def options(self) -> dict[str, float]:
        """The options by name with their defaults, as the function declares them."""
        parameters = inspect.signature(self.function).parameters.values()
        return {
            parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
        }


LOSSES: dict[str, Loss] = {
    "normalised_softmax": Loss(normalised_softmax, uses_proxies=True, uses_pairs=False),
    "cosine_margin": Loss(cosine_margin, uses_proxies=True, uses_pairs=False),
    "contrastive": Loss(contrastive, uses_proxies=False, uses_pairs=True),
    "triplet": Loss(triplet, uses_proxies=False, uses_pairs=True),
    "multi_similarity": Loss(multi_similarity, uses_proxies=False, uses_pairs=True),
    "proxy_anchor": Loss(proxy_anchor, uses_proxies=True, uses_pairs=False),
    "recall_at_k": Loss(recall_at_k, uses_proxies=False, uses_pairs=True),
    "softmax_multi_similarity": Loss(softmax_multi_similarity, uses_proxies=True, uses_pairs=True),
    "softmax_triplet": Loss(softmax_triplet, uses_proxies=True, uses_pairs=True),
}


class MetricObjective(nn.Module):
    """A loss by its name, with the proxies that it learns.

    Attributes:
        proxies: (classes, dimension) parameter of unit rows at first, from torch's generator; None for a loss of pairs
            alone.
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
        if self.loss.uses_pairs:
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


def _sum_over_blocks(function: Callable[[Tensor, Tensor], Tensor], matrix: Tensor, pairs: Tensor) -> Tensor:
    """The sum of what a function makes of blocks of pairs: beside its matrix, memory is that of one block.

    A class of n images has n * (n - 1) positive pairs: a loss that compares each with every image would fill the memory
    with a large batch of few classes. What fits one block takes no more time than without blocks.

    Args:
        function: of the matrix and of some pairs (p, 2), with tensors (p, b) on the way to a result of fixed shape.
        matrix: (b, b), of cosines or distances; gets the gradient.
        pairs: (p, 2) int64, all of them: row and column.
    """
    blocks = _blocks(pairs, len(matrix))
    total: Tensor = _SumOverBlocks.apply(function, matrix, blocks) if len(blocks) > 1 else function(matrix, pairs)
    return total


def _blocks(pairs: Tensor, images: int) -> tuple[Tensor, ...]:
    """Pairs (p, 2) in blocks of at most COMPARISONS_AT_ONCE comparisons with the images, or of one pair."""
    blocks: tuple[Tensor, ...] = pairs.split(max(1, COMPARISONS_AT_ONCE // images))
    return blocks


class _SumOverBlocks(torch.autograd.Function):
    """Keeps nothing of a block for its gradient, but works it out again.

    It adds in place. torch.utils.checkpoint would keep small tensors of each block, which come to lie between the large
    ones that are freed: the heap would grow with every block, to 2 GB or more with 1,024 images of two classes, where
    this takes 0.15.
    """

    @staticmethod
    def forward(context: Any, function: Callable[[Tensor, Tensor], Tensor], matrix: Tensor, blocks: Any) -> Tensor:
        context.function, context.blocks = function, blocks
        context.save_for_backward(matrix)
        total = function(matrix, blocks[0])
        for block in blocks[1:]:
            total += function(matrix, block)
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        matrix = context.saved_tensors[0].detach().requires_grad_()
        total = torch.zeros_like(matrix)
        for block in context.blocks:
            with torch.enable_grad():
                result = context.function(matrix, block)
            total += torch.autograd.grad(result, matrix, gradients)[0]
        return None, total, None


def _mean_of_active(violation: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the positive values among the chosen; 0, with gradient 0, when there is none."""
    active = chosen & (violation > 0)
    return torch.where(active, violation, 0).sum() / active.sum().clamp(min=1)


def _log_one_plus_sum(values: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """log(1 + sum of exp over the chosen), safe against overflow."""
    masked = values.masked_fill(~chosen, -torch.inf)
    return torch.cat([masked, torch.zeros_like(values.narrow(dim, 0, 1))], dim).logsumexp(dim)

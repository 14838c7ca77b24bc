"""The last touch on trained embeddings: half-whitened, then drawn softly towards the centres of the training classes.

Both are learned on training images and belong to the model: a new image goes the same way, whatever its class.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from retrieval.cosine_layer import class_centres

LEAST_VARIANCE = 1e-6  # of the largest: weaker directions are noise, and whitening would make them loud
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8)  # tried by "auto"; 0 is whitening alone
SHARPNESS = 32.0  # of the softmax over centres; 8, 16 and 24 gave less R@1 on validation images of CIFAR-100


class Refinement(nn.Module):
    """Embeddings -> length 1 -> half-whitened -> drawn towards class centres: (b, d) -> (b, e) of length 1.

    z' = L2((1 - strength) z + strength * sum over classes of p(class | z) centre), with p the softmax of
    sharpness * cosine(z, centre). An image between two classes goes to neither; one that is near a class goes nearer.

    Attributes:
        strength: from 0 (whitened only) to 1 (a mean of centres).
        mean: (d,) of the training embeddings of length 1.
        projection: (d, e) principal directions, each divided by the fourth root of its variance.
        centres: (classes, e) of length 1, of the training images, whitened.
    """

    mean: Tensor
    projection: Tensor
    centres: Tensor

    def __init__(self, dimension: int, refined_dimension: int, classes: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("projection", torch.zeros(dimension, refined_dimension))
        self.register_buffer("centres", torch.zeros(classes, refined_dimension))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(b, d), any scale -> (b, e)."""
        return self.draw(self.whiten(embeddings))

    def whiten(self, embeddings: Tensor) -> Tensor:
        """The first half: (b, d) -> (b, e) of length 1."""
        return normalize((normalize(embeddings.float(), dim=1) - self.mean) @ self.projection, dim=1)

    def draw(self, whitened: Tensor) -> Tensor:
        """The second half: (b, e) of length 1 -> (b, e) of length 1."""
        if self.strength == 0:
            return whitened
        share = (SHARPNESS * whitened @ self.centres.T).softmax(dim=1)  # (b, classes)
        return normalize((1 - self.strength) * whitened + self.strength * share @ self.centres, dim=1)


class CollapsedError(ValueError):
    """All embeddings point the same way."""


def learn_refinement(embeddings: Tensor, labels: Tensor, strength: float) -> Refinement:
    """Learn the directions and the centres on training images.

    Args:
        embeddings: (n, d) float, of training images only, any scale.
        labels: (n,) int64 in 0..c-1.
        strength: see `Refinement`.

    Raises:
        CollapsedError: all embeddings point the same way.
    """
    rows = normalize(embeddings.double(), dim=1)
    variances, directions = torch.linalg.eigh(torch.cov(rows.T))  # ascending
    kept = int((variances > LEAST_VARIANCE * variances[-1].clamp(min=LEAST_VARIANCE)).sum())
    if kept == 0:
        raise CollapsedError("All training images have the same embedding: the network tells nothing apart.")
    variances, directions = variances[-kept:], directions[:, -kept:]
    refinement = Refinement(rows.shape[1], kept, int(labels.max()) + 1, strength)
    refinement.mean.copy_(rows.mean(0))
    refinement.projection.copy_(directions * variances.pow(-0.25))
    refinement.centres.copy_(class_centres(refinement.whiten(embeddings), labels))
    return refinement


@dataclass(frozen=True)
class RefinementChoice:
    """What was chosen for a model's embeddings, and the evidence.

    Attributes:
        refinement: None for none.
        recall_at_1: of the validation images with it.
        measured: R@1 of the validation images by way: "none", "whitened", "drawn 0.2", ...
        why: one sentence.
    """

    refinement: Refinement | None
    recall_at_1: float
    measured: dict[str, float]
    why: str


def choose_refinement(
    embeddings: Tensor,
    labels: Tensor,
    held_out: Tensor,
    recall_at_1: Callable[[Tensor], float],
    strengths: tuple[float, ...] = STRENGTHS,
    forced: bool = False,
) -> RefinementChoice:
    """The refinement of most R@1 on the validation images; of equals the lighter one, none being the lightest.

    Args:
        embeddings: (n, d) of the training images.
        labels: (n,) int64 in 0..c-1, theirs.
        held_out: (v, d) of what `recall_at_1` measures: of the validation images, with others to search among.
        recall_at_1: of (v, any), the same refined.
        strengths: tried, ascending.
        forced: leave none out of the choice.

    Raises:
        CollapsedError: it is forced, and all embeddings point the same way; else none is chosen there.
    """
    tried: dict[str, Refinement | None] = {"none": None}
    untried = ""
    try:
        tried |= {
            f"drawn {strength:g}" if strength else "whitened": learn_refinement(embeddings, labels, strength)
            for strength in strengths
        }
    except CollapsedError as error:
        if forced:
            raise
        untried = f". {error}".rstrip(".")
    measured = {
        way: recall_at_1(held_out if refinement is None else refinement(held_out)) for way, refinement in tried.items()
    }
    best = max((way for way in tried if not (forced and way == "none")), key=lambda way: measured[way])
    shown = ", ".join(f"{way} {recall:.1%}" for way, recall in measured.items())
    asked = "asked for" if forced else "the best"
    return RefinementChoice(
        tried[best],
        measured[best],
        measured,
        f"refinement {best}: {asked} by R@1 on validation ({shown}){untried.rstrip('.')}",
    )

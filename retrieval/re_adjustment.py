"""Re-adjustment of features, as far as validation images gain by it.

Blocks of features are weighted, and images drawn lightly towards the centre of their cluster.

The features come half-whitened from their integration (retrieval/integration.py); whitening them again loses R@1.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.feature_blocks import block_weights
from retrieval.k_means import normalised

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3)  # tried by "auto", beside 0; from 0.3 on R@1 fell
GAMMAS = (0.0, 0.25, 0.5)  # powers of the blocks' Fisher ratios, tried by "auto"
NONE, CO_CLUSTERING, K_MEANS = "none", "co-clustering", "k-means"


def cluster_centres(batches: Iterable[tuple[np.ndarray, np.ndarray]], clusters: int) -> np.ndarray:
    """Mean direction of each cluster from batches of rows (b, d) and their clusters (b,): (k, d) float32, length 1.

    Rows without a cluster (-1) are left out; a cluster without rows has a centre of zeros, which draws nothing.
    """
    total = np.zeros((clusters, 1))
    for rows, assigned in batches:
        part = np.zeros((clusters, rows.shape[1]))
        np.add.at(part, assigned[assigned >= 0], normalised(rows)[assigned >= 0])
        total = total + part
    return normalised(total)


def adjust(rows: np.ndarray, assigned: np.ndarray, centres: np.ndarray, strength: float) -> np.ndarray:
    """Draw rows towards the centre of their cluster: L2((1 - strength) x + strength centre), x of length 1.

    Args:
        rows: (b, d) float.
        assigned: (b,) int cluster of each row; -1 leaves the row where it is.
        centres: (k, d), of length 1, from `cluster_centres`.
        strength: alpha, from 0 (rows stay) to 1 (all rows of a cluster become one).
    """
    rows = normalised(rows)
    if strength == 0 or not len(centres):
        return rows
    pull = np.where(assigned >= 0, np.float32(strength), np.float32(0))[:, None]
    return normalised((1 - pull) * rows + pull * centres[assigned])


@dataclass(frozen=True)
class Grouping:
    """A way to group images and dimensions, applied: what `choose_adjustment` compares.

    Attributes:
        assigned: (v,) cluster of each row that is measured.
        centres: (k, d) from weighted training rows.
        weights: (d,) of the dimensions.
        gamma: what the weights were made with; 0 for weights of 1.
    """

    assigned: np.ndarray
    centres: np.ndarray
    weights: np.ndarray
    gamma: float = 0.0

    def adjusted(self, rows: np.ndarray, assigned: np.ndarray, strength: float) -> np.ndarray:
        """Rows (b, d) of clusters (b,), weighted and then drawn to their centres."""
        return adjust(normalised(rows) * self.weights, assigned, self.centres, strength)


def weighted_groupings(
    batches: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    clusters: int,
    assigned: np.ndarray,
    ratios: np.ndarray,
    gammas: Sequence[float] = GAMMAS,
) -> list[Grouping]:
    """One grouping for each gamma, its centres those of the training rows after weighting.

    Args:
        batches: gives the training rows (b, d) with their clusters (b,), anew at each call.
        clusters: their number.
        assigned: (v,) clusters of the rows that are measured.
        ratios: (d,) of the dimensions, from `fisher_ratios`.
        gammas: powers of the ratios.
    """
    weights = [block_weights(ratios, gamma) for gamma in gammas]
    return [
        Grouping(
            assigned, cluster_centres(((normalised(rows) * own, of) for rows, of in batches()), clusters), own, gamma
        )
        for gamma, own in zip(gammas, weights, strict=True)
    ]


@dataclass(frozen=True)
class Adjustment:
    """What is done to the features, and the evidence.

    Attributes:
        by: NONE, CO_CLUSTERING or K_MEANS.
        gamma: power of the blocks' Fisher ratios; 0 where dimensions keep their weight.
        strength: alpha; 0 where no image is drawn.
        measured: R@1 of the validation rows by (way, gamma, strength); empty where it could not be measured.
        why: one sentence.
    """

    by: str
    gamma: float
    strength: float
    measured: dict[tuple[str, float, float], float]
    why: str

    def best_of(self, way: str) -> float | None:
        """Best R@1 of a way over its gammas and strengths."""
        return max((recall for (measured, *_), recall in self.measured.items() if measured == way), default=None)


def choose_adjustment(
    rows: np.ndarray,
    groupings: Mapping[str, Sequence[Grouping]],
    recall_at_1: Callable[[np.ndarray], float],
    strengths: Sequence[float] = STRENGTHS,
) -> Adjustment:
    """Choose way, gamma and strength of most R@1 on the validation rows; equal ones go to less and to the earlier.

    Leaving the features as they are, and plain k-means, are controls: where either beats co-clustering it is used.

    Args:
        rows: (v, d) features of the images that are measured: of validation, with others to search among.
        groupings: by way, one for each gamma; their order decides between equals.
        recall_at_1: of (v, d) adjusted rows.
        strengths: tried beside 0.
    """
    measured = {(NONE, 0.0, 0.0): recall_at_1(normalised(rows))}
    for way, weighted in groupings.items():
        for grouping, strength in itertools.product(weighted, sorted({0.0, *strengths})):
            if grouping.gamma > 0 or strength > 0:
                adjusted = grouping.adjusted(rows, grouping.assigned, strength)
                measured[way, grouping.gamma, strength] = recall_at_1(adjusted)
    best_option = max(measured, key=lambda option: measured[option])  # the first of equals
    by, gamma, strength = best_option
    chosen = Adjustment(by, gamma, strength, measured, "")
    best = {way: chosen.best_of(way) for way in (NONE, *groupings)}
    shown = ", ".join(f"{way} {recall:.1%}" for way, recall in best.items() if recall is not None)
    control = max(recall for way, recall in best.items() if recall is not None and way != CO_CLUSTERING)
    verdict = "does not beat" if by != CO_CLUSTERING else "beats" if measured[best_option] > control else "equals"
    return Adjustment(
        by,
        gamma,
        strength,
        measured,
        f"co-clustering {verdict} its controls in R@1 on validation ({shown}): {by}, feature blocks weighted with "
        f"gamma {gamma:g}, images drawn with strength {strength:g}",
    )

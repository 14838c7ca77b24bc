"""Two models on the same queries: what one finds and the other does not, and how sure the gain is. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from retrieval.class_intervals import ratio_interval

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class ClassChange:
    """R@1 of the queries of one class, by both models.

    Attributes:
        class_name: of the queries.
        queries: how many.
        champion: R@1 of the model that is replaced.
        candidate: R@1 of the model that replaces it.
    """

    class_name: str
    queries: int
    champion: float
    candidate: float

    @property
    def change(self) -> float:
        """Gain of R@1; negative where the class falls."""
        return self.candidate - self.champion


@dataclass(frozen=True)
class Comparison:
    """How a candidate does on the queries on which the champion was measured.

    Attributes:
        queries: of both.
        gain: R@1 of the candidate less that of the champion.
        low: lower end of the gain's 95 % interval (`gain_interval`); -1 for one class alone, which tells nothing.
        high: upper end; 1 for one class alone.
        fixed: queries that the champion gets wrong and the candidate right.
        broken: queries that the champion gets right and the candidate wrong.
        p_value: exact McNemar: how often chance alone would part fixed and broken at least so unevenly.
        class_changes: of every class, the deepest fall first.
    """

    queries: int
    gain: float
    low: float
    high: float
    fixed: int
    broken: int
    p_value: float
    class_changes: tuple[ClassChange, ...]


def compare(
    candidate: np.ndarray, champion: np.ndarray, classes: Sequence[str] | np.ndarray, resamples: int = RESAMPLES
) -> Comparison:
    """Compare two models query by query.

    Args:
        candidate: (q,) 1 or True where its nearest image is of the query's class.
        champion: (q,) the same of the other model; entry i is the same query.
        classes: (q,) name of each query's class.
        resamples: of the bootstrap.

    Raises:
        ValueError: lengths differ, or there are no queries.
    """
    new, old, names = np.asarray(candidate).astype(bool), np.asarray(champion).astype(bool), np.asarray(classes)
    if not len(new) == len(old) == len(names) > 0:
        raise ValueError(
            f"{len(new)} answers of the candidate, {len(old)} of the champion and {len(names)} classes; "
            "they must be of the same queries, one or more."
        )
    found, position = np.unique(names, return_inverse=True)
    totals = np.bincount(position)
    right_new, right_old = (np.bincount(position[right], minlength=len(found)) for right in (new, old))
    changes = [
        ClassChange(str(name), int(total), float(before / total), float(after / total))
        for name, total, before, after in zip(found, totals, right_old, right_new, strict=True)
    ]
    fixed, broken = int((new & ~old).sum()), int((old & ~new).sum())
    low, high = gain_interval(right_new - right_old, totals, fixed, broken, resamples)
    return Comparison(
        queries=len(new),
        gain=(fixed - broken) / len(new),
        low=low,
        high=high,
        fixed=fixed,
        broken=broken,
        p_value=mcnemar(fixed, broken),
        class_changes=tuple(sorted(changes, key=lambda change: (change.change, change.class_name))),
    )


def gain_interval(
    gained: np.ndarray, totals: np.ndarray, fixed: int, broken: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Two-sided 95 % interval of the gain of R@1: the wider of that by class and that by query.

    Queries of one class are fixed and broken together, so that taking them one by one makes the interval too narrow;
    classes that happen to gain alike make the one by class too narrow, the more easily the fewer there are.

    Args:
        gained: (c,) by class, queries that the candidate gets right less those that the champion does.
        totals: (c,) queries by class.
        fixed: queries that the champion gets wrong and the candidate right.
        broken: queries that the champion gets right and the candidate wrong.
        resamples: draws of classes.

    Returns:
        Its ends; -1 and 1 for one class alone.
    """
    if len(totals) < 2:
        return -1.0, 1.0
    by_class = ratio_interval(gained, totals, resamples, LEVEL)
    by_query = paired_interval(fixed, broken, int(totals.sum()))
    return max(-1.0, min(by_class[0], by_query[0])), min(1.0, max(by_class[1], by_query[1]))


def paired_interval(fixed: int, broken: int, queries: int) -> tuple[float, float]:
    """Two-sided 95 % interval of the gain, were the queries independent (Agresti and Min, Statistics in Medicine 2005).

    Wald's, with half a query added to each of the four cells, so that it has a width where nothing was broken.
    """
    count, gain = queries + 2, (fixed - broken) / (queries + 2)
    error = ((fixed + broken + 1) / count - gain**2) ** 0.5 / count**0.5
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return gain - reach, gain + reach


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p of McNemar's test (Psychometrika 1947): fixed and broken were equally likely.

    The same as `scipy.stats.binomtest(fixed, fixed + broken).pvalue`, whose module takes a second to import.
    """
    from scipy.special import bdtr

    if fixed == broken:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(fixed, broken), fixed + broken, 0.5)))

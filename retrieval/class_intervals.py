"""How far a measured share can be trusted whose queries come in classes: for the gate and the report. No torch here."""

from typing import Any

import numpy as np

from retrieval.confidence import wilson_lower_bound

HELD_AT_ONCE = 4_000_000  # counts of the resamples held at a time


def class_bootstrap_interval(
    correct: Any, labels: Any, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Two-sided interval of the share of right answers: the wider of that by class and that by query.

    Queries of one class succeed and fail together, so taking them one by one makes the interval too narrow (1.21 times
    on CIFAR-100); classes that happen to do alike make the one by class too narrow (`ratio_interval`). By query it is
    Wilson's (JASA 1927).

    Args:
        correct: (q,) bool, array or tensor on the CPU.
        labels: (q,) integer, the class of each query.
        resamples: draws of classes.
        level: of confidence.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: lengths differ, fewer than two classes, or a level outside 0 to 1.
    """
    correct, labels = np.asarray(correct).astype(bool), np.asarray(labels)
    if correct.shape != labels.shape or correct.ndim != 1:
        raise ValueError(f"correct is {correct.shape}, labels {labels.shape}; they must be two vectors of one length.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level is {level}, resamples {resamples}; a level between 0 and 1, one resample or more.")
    classes, position = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} class(es) among the queries; drawing by class needs at least 2.")
    right = np.bincount(position[correct], minlength=len(classes))
    low, high = ratio_interval(right, np.bincount(position), resamples, level, seed)
    successes, trials, one_sided = int(right.sum()), len(labels), (1 + level) / 2
    lowest = wilson_lower_bound(successes, trials, one_sided)
    highest = 1 - wilson_lower_bound(trials - successes, trials, one_sided)
    return max(0.0, min(low, lowest)), min(1.0, max(high, highest))


def ratio_interval(
    sums: np.ndarray, totals: np.ndarray, resamples: int, level: float, seed: int = 0
) -> tuple[float, float]:
    """Two-sided interval of the ratio of two sums over classes, with whole classes drawn again.

    Each resample draws as many classes as there are, with replacement. Few classes make such a bootstrap too narrow;
    the quantiles taken are those of the expanded percentile interval, which has Student's tails (Hesterberg, The
    American Statistician 2015). Two or three classes have no draw that lies so far out, so that the interval never
    is narrower than Student's t over the classes. Classes with equal counts are drawn as one lot, which changes
    nothing but the time.

    Args:
        sums: (c,) integer, by class, at least two.
        totals: (c,) integer, by class, what the sums are shares of.
        resamples: draws.
        level: of confidence.
        seed: of the draws; the same seed gives the same interval.
    """
    from scipy.special import ndtr, stdtrit  # a third of a second to load

    classes = len(totals)
    lots, sizes = np.unique(np.stack([sums, totals], 1), axis=0, return_counts=True)  # (lots, 2)
    generator, ratios = np.random.default_rng(seed), []
    for start in range(0, resamples, at_once := max(1, HELD_AT_ONCE // len(lots))):
        draws = generator.multinomial(classes, sizes / classes, size=min(at_once, resamples - start))
        ratios.append((draws @ lots[:, 0]) / (draws @ lots[:, 1]))
    quantile = -stdtrit(classes - 1, (1 - level) / 2)
    tail = ndtr(-((classes / (classes - 1)) ** 0.5) * quantile)
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    ratio = sums.sum() / totals.sum()
    reach = quantile * (classes / (classes - 1) * ((sums - ratio * totals) ** 2).sum()) ** 0.5 / totals.sum()
    return float(min(low, ratio - reach)), float(max(high, ratio + reach))

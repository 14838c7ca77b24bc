"""The similarity from which an answer can be accepted, and what it costs in unanswered queries. No torch here."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

HELD_AT_ONCE = 4_000_000  # counts of the trials held at a time
MINIMUM_ANSWERED = 30  # queries: fewer answers are no evidence for a threshold
MIDDLE = 0.95  # share of the trials that the interval of the threshold holds


class CurvePoint(NamedTuple):
    """Precision and coverage when every query with similarity >= threshold is answered."""

    threshold: float
    precision: float
    coverage: float


@dataclass(frozen=True)
class Threshold:
    """An acceptance threshold and how it was found.

    Attributes:
        value: answer where similarity >= value; None when the level cannot be reached.
        precision: share of right answers among the answered queries it was chosen on; None when not reached.
        coverage: share of all those queries that are answered; 0 when not reached.
        reached: whether a threshold was found.
        level: the precision asked for.
        lowest_precision_above: lowest precision at any stricter threshold that answers enough queries. Below `level`
            where the curve dips: a stricter threshold is then not always a more precise one.
        curve: precision and coverage by threshold, strictest first, thinned for a chart.
    """

    value: float | None
    precision: float | None
    coverage: float
    reached: bool
    level: float
    lowest_precision_above: float | None
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Trials:
    """The acceptance threshold found again and again on resampled queries.

    A trial in which no similarity reaches the level counts as one whose threshold lies above all similarities.

    Attributes:
        count: trials made.
        reached: share of them in which the level could be reached.
        value: median of the thresholds; None when more than half of the trials cannot reach the level.
        low: lower end of the interval that holds 95 % of the trials; None when nearly no trial reaches the level.
        high: upper end; None when more than 2.5 % of the trials cannot reach the level: then it is open above.
        point: the threshold on the queries as they are, each once; None when it cannot be reached.
    """

    count: int
    reached: float
    value: float | None
    low: float | None
    high: float | None
    point: float | None


def acceptance_threshold(
    similarity: Any, correct: Any, level: float = 0.9, minimum_answered: int = MINIMUM_ANSWERED, curve_points: int = 200
) -> Threshold:
    """The lowest threshold at which the answered queries are right at least `level` of the time.

    Choose it on validation queries and report `precision_at` on test: of all thresholds that reach the level it answers
    most. Thresholds that answer fewer than `minimum_answered` queries are not considered: a few lucky answers at the
    top prove nothing. Queries of equal similarity are answered together. Precision need not rise with the threshold;
    `lowest_precision_above` says how low it falls at the stricter ones.

    Args:
        similarity: (q,) float, of each query to its nearest image; array or tensor on the CPU.
        correct: (q,) bool, whether that image is of the query's class.
        level: precision to reach, above 0 and at most 1.
        minimum_answered: fewest answered queries that count as evidence.
        curve_points: most points of the curve; its ends and the chosen threshold are always among them.

    Raises:
        ValueError: lengths differ, no queries, a similarity that is no number, or a level out of range.
    """
    scores, right = _checked(similarity, correct)
    if not 0 < level <= 1:
        raise ValueError(f"level is {level}; a precision to reach lies above 0 and is at most 1.")
    if minimum_answered < 1 or curve_points < 3:
        raise ValueError(f"minimum_answered is {minimum_answered}, curve_points {curve_points}; at least 1 and 3.")
    order = np.argsort(-scores, kind="stable")
    cuts = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # last query of each similarity
    answered = cuts + 1
    precision = np.cumsum(right[order])[cuts] / answered
    enough = answered >= minimum_answered
    reaching = np.flatnonzero(enough & (precision >= level))
    chosen = int(reaching[-1]) if len(reaching) else None
    points = [
        CurvePoint(float(scores[order[cuts[i]]]), float(precision[i]), float(answered[i] / len(scores)))
        for i in _thinned(len(cuts), curve_points, chosen)
    ]
    if chosen is None:
        return Threshold(None, None, 0.0, False, level, None, tuple(points))
    return Threshold(
        value=float(scores[order[cuts[chosen]]]),
        precision=float(precision[chosen]),
        coverage=float(answered[chosen] / len(scores)),
        reached=True,
        level=level,
        lowest_precision_above=float(precision[: chosen + 1][enough[: chosen + 1]].min()),
        curve=tuple(points),
    )


def threshold_by_trials(
    similarity: Any,
    correct: Any,
    labels: Any,
    level: float = 0.9,
    trials: int = 200,
    minimum_answered: int = MINIMUM_ANSWERED,
    seed: int = 0,
) -> Trials:
    """The acceptance threshold of resampled queries: how far the one found once is chance.

    Each trial draws as many classes as there are, with replacement, takes all their queries, as
    `class_bootstrap_interval` does, and finds the lowest similarity from which precision reaches the level, by the
    rules of `acceptance_threshold`. With a single class all trials are the same.

    Args:
        similarity: (q,) float, of each query to its nearest image.
        correct: (q,) bool, whether that image is of the query's class.
        labels: (q,) integer, the class of each query.
        level: precision to reach, above 0 and at most 1.
        trials: how often to draw, at least 1.
        minimum_answered: fewest answered queries that count as evidence.
        seed: of the draws.

    Raises:
        ValueError: as `acceptance_threshold`; or fewer than 1 trial.
    """
    if trials < 1:
        raise ValueError(f"trials is {trials}; at least 1.")
    point = acceptance_threshold(similarity, correct, level, minimum_answered).value
    scores, right = _checked(similarity, correct)
    classes, position = np.unique(np.asarray(labels), return_inverse=True)
    if position.shape != scores.shape:
        raise ValueError(f"labels are {position.shape} for {len(scores)} queries; give one a query.")
    draws = np.random.default_rng(seed).multinomial(
        len(classes), np.full(len(classes), 1 / len(classes)), size=trials
    )  # (trials, classes): how often each class was drawn
    order = np.argsort(-scores, kind="stable")
    scores, right, position = scores[order], right[order], position[order]
    per_block = max(1, HELD_AT_ONCE // len(scores))
    values = np.concatenate(
        [
            _lowest_reaching(scores, right, draws[start : start + per_block][:, position], level, minimum_answered)
            for start in range(0, trials, per_block)
        ]
    )
    found = np.sort(values)
    low, value, high = (_finite(found, share) for share in ((1 - MIDDLE) / 2, 0.5, (1 + MIDDLE) / 2))
    return Trials(trials, float(np.isfinite(found).mean()), value, low, high, point)


def precision_at(similarity: Any, correct: Any, threshold: float) -> tuple[float | None, float]:
    """Precision and coverage when every query with similarity >= threshold is answered.

    Returns:
        Share of right answers among the answered, None when none is; share of the queries that are answered.

    Raises:
        ValueError: lengths differ, no queries, or a similarity that is no number.
    """
    scores, right = _checked(similarity, correct)
    answered = scores >= threshold
    precision = float(right[answered].mean()) if answered.any() else None
    return precision, float(answered.mean())


def _lowest_reaching(
    scores: np.ndarray, right: np.ndarray, times: np.ndarray, level: float, minimum_answered: int
) -> np.ndarray:
    """The threshold of each trial, infinite where the level is not reached.

    Args:
        scores: (q,) falling.
        right: (q,) bool.
        times: (t, q), how often each query is in each trial.
        level: precision to reach.
        minimum_answered: fewest answered queries.
    """
    cuts = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # last query of each similarity
    answered = np.cumsum(times, axis=1, dtype=np.int64)[:, cuts]  # (t, cuts)
    correct = np.cumsum(times * right, axis=1, dtype=np.int64)[:, cuts]
    drawn = np.diff(answered, axis=1, prepend=0) > 0  # a similarity that the trial has
    reaching = drawn & (answered >= minimum_answered) & (correct / np.maximum(answered, 1) >= level)
    last = len(cuts) - 1 - np.argmax(reaching[:, ::-1], axis=1)
    return np.where(reaching.any(1), scores[cuts[last]], np.inf)


def _finite(rising: np.ndarray, share: float) -> float | None:
    """The least value that at least `share` of the values do not exceed; None when it is infinite."""
    value = rising[max(0, int(np.ceil(share * len(rising) - 1e-9)) - 1)]
    return float(value) if np.isfinite(value) else None


def _checked(similarity: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, right = np.asarray(similarity).astype(np.float64), np.asarray(correct).astype(bool)
    if scores.shape != right.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"similarity is {scores.shape}, correct {right.shape}; need one of each for at least one query."
        )
    if np.isnan(scores).any():
        row = int(np.isnan(scores).argmax())
        raise ValueError(f"The similarity of query {row} is no number; find what made it before choosing a threshold.")
    return scores, right


def _thinned(count: int, most: int, chosen: int | None) -> np.ndarray:
    """At most `most` positions of `count`, evenly spread, with both ends and the chosen one."""
    spread = np.linspace(0, count - 1, min(most - 1, count)).round().astype(int)
    return np.unique(spread if chosen is None else np.append(spread, chosen))

"""Queries that one of two models answers rightly and the other does not: fixed and broken. No torch here."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrieval.answers import Answers, same_queries


@dataclass(frozen=True)
class Found:
    """The image that a model holds to be the most similar to a query.

    Attributes:
        image: sha256 of its pixels.
        class_name: of it.
        similarity: cosine of the two.
        right: whether it is of the query's class.
    """

    image: str
    class_name: str
    similarity: float
    right: bool


@dataclass(frozen=True)
class Disagreement:
    """A query on which two models disagree.

    Attributes:
        image: sha256 of the query's pixels.
        class_name: of the query.
        champion: what the model that is replaced finds.
        candidate: what the model that replaces it finds.
    """

    image: str
    class_name: str
    champion: Found
    candidate: Found


def disagreements(candidate: Answers, champion: Answers) -> tuple[list[Disagreement], list[Disagreement]]:
    """The queries that the candidate fixes, and those that it breaks.

    In turn from every class, so that one class does not fill a gallery; of a class, the surest mistake comes first.

    Raises:
        ValueError: the two did not answer the same queries.
    """
    if not same_queries(candidate, champion):
        raise ValueError("The two models did not answer the same queries; compare answers of one evaluation.")
    fixed = np.flatnonzero(candidate.correct & ~champion.correct)
    broken = np.flatnonzero(champion.correct & ~candidate.correct)
    return (
        [_disagreement(candidate, champion, row) for row in _in_turn(fixed, champion)],
        [_disagreement(candidate, champion, row) for row in _in_turn(broken, candidate)],
    )


def _in_turn(rows: np.ndarray, mistaken: Answers) -> Iterator[int]:
    """The rows: of each class its surest mistake, then of each class the next."""
    surest = rows[np.argsort(-mistaken.similarities[rows], kind="stable")]
    seen: dict[str, int] = {}
    turns = []
    for row in surest:
        name = mistaken.classes[row]
        turns.append(seen.setdefault(name, 0))
        seen[name] += 1
    yield from (int(row) for row in surest[np.argsort(np.array(turns, int), kind="stable")])


def _disagreement(candidate: Answers, champion: Answers, row: int) -> Disagreement:
    return Disagreement(
        str(candidate.images[row]), str(candidate.classes[row]), _found(champion, row), _found(candidate, row)
    )


def _found(answers: Answers, row: int) -> Found:
    return Found(
        image=str(answers.nearest[row]),
        class_name=str(answers.nearest_classes[row]),
        similarity=float(answers.similarities[row]),
        right=bool(answers.correct[row]),
    )

"""Answers that are small enough to read."""

from collections.abc import Sequence

import numpy as np

from retrieval.answers import Answers, in_order

Row = tuple[str, str, str, str, float]  # query, its class, what is found, the class of that, similarity


def answers_to(rows: Sequence[Row], evaluation_digest: str = "e" * 64, model_digest: str = "a" * 64) -> Answers:
    """The answers of a model that finds what the rows say."""
    images, classes, nearest, found, similarities = (np.array(column, object) for column in zip(*rows, strict=True))
    right = np.array([name == other for _, name, _, other, _ in rows])
    sorted_rows = in_order(images, classes, right, nearest, found, similarities.astype(float))
    return Answers(evaluation_digest, model_digest, 8, 100.0, **sorted_rows)

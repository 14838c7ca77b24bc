"""Which queries of an evaluation a model answers rightly: one file, kept with the model's version, read without torch.

Rows are told apart by the image itself, not by its number in a dataset: two datasets with the same test images number
them differently, and their evaluation has one digest.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 1
FACTS = b"rankone.answers"  # entry of the file's metadata that holds all but the rows
SCHEMA = pa.schema({"sha256": pa.string(), "class_name": pa.string(), "correct": pa.bool_()})


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answered to the queries of one evaluation.

    Attributes:
        evaluation_digest: of the queries and the gallery.
        model_digest: of the model's folder.
        dimension: length of its embeddings.
        images_per_second: that it embedded, reading the images included; None when that was not measured.
        images: (q,) sha256 of each query's pixels, ascending.
        classes: (q,) name of its class.
        correct: (q,) bool, whether the nearest other image is of that class.
    """

    evaluation_digest: str
    model_digest: str
    dimension: int
    images_per_second: float | None
    images: np.ndarray
    classes: np.ndarray
    correct: np.ndarray

    @property
    def recall_at_1(self) -> float:
        """Share of the queries that are answered rightly."""
        return float(self.correct.mean())


def in_order(images: np.ndarray, classes: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows as `Answers` holds them: by image, class and answer, so that those of two models lie side by side."""
    images, classes, correct = np.asarray(images, object), np.asarray(classes, object), np.asarray(correct, bool)
    order = np.lexsort((correct, classes.astype(str), images.astype(str)))
    return images[order], classes[order], correct[order]


def same_queries(one: Answers, other: Answers) -> bool:
    """Whether both answer the same queries, row by row."""
    return np.array_equal(one.images, other.images) and np.array_equal(one.classes, other.classes)


def save_answers(path: Path, answers: Answers) -> None:
    """Write a Parquet file with one row a query."""
    facts = {field.name: getattr(answers, field.name) for field in fields(answers) if field.name not in _ROWS}
    columns = [pa.array(column) for column in (answers.images, answers.classes, answers.correct)]
    text = json.dumps(facts | {"format_version": FORMAT_VERSION}, sort_keys=True)
    pq.write_table(pa.table(columns, SCHEMA.with_metadata({FACTS: text.encode()})), path)


def load_answers(path: Path) -> Answers:
    """Read what `save_answers` wrote.

    Raises:
        ValueError: it is no such file, of another format, or damaged.
    """
    try:
        table = pq.read_table(path)
        facts: dict[str, Any] = json.loads((table.schema.metadata or {}).get(FACTS, b"{}"))
        if facts.pop("format_version", None) != FORMAT_VERSION or not len(table):
            raise ValueError("it holds no answers of this format")
        rows = [table[name].to_numpy() for name in SCHEMA.names]
        return Answers(**facts, images=rows[0], classes=rows[1], correct=rows[2].astype(bool))
    except (OSError, TypeError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}. Run evaluate again.") from error


_ROWS = ("images", "classes", "correct")

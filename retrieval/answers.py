"""What a model answers to the queries of an evaluation: one file, kept with the model's version, read without torch.

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

from retrieval.evidence import Evidence

FORMAT_VERSION = 2  # 1 did not say which image was the nearest
FACTS = b"rankone.answers"  # entry of the file's metadata that holds all but the rows
SCHEMA = pa.schema(
    {
        "sha256": pa.string(),
        "class_name": pa.string(),
        "correct": pa.bool_(),
        "nearest": pa.string(),
        "nearest_class": pa.string(),
        "similarity": pa.float32(),
    }
)


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
        nearest: (q,) sha256 of that nearest image's pixels.
        nearest_classes: (q,) name of its class.
        similarities: (q,) float32, cosine of the two.
    """

    evaluation_digest: str
    model_digest: str
    dimension: int
    images_per_second: float | None
    images: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    nearest: np.ndarray
    nearest_classes: np.ndarray
    similarities: np.ndarray

    @property
    def recall_at_1(self) -> float:
        """Share of the queries that are answered rightly."""
        return float(self.correct.mean())


def in_order(
    images: np.ndarray,
    classes: np.ndarray,
    correct: np.ndarray,
    nearest: np.ndarray,
    nearest_classes: np.ndarray,
    similarities: np.ndarray,
) -> dict[str, np.ndarray]:
    """The rows as `Answers` holds them: by image, class and answer, so that those of two models lie side by side."""
    rows = {
        "images": np.asarray(images, object),
        "classes": np.asarray(classes, object),
        "correct": np.asarray(correct, bool),
        "nearest": np.asarray(nearest, object),
        "nearest_classes": np.asarray(nearest_classes, object),
        "similarities": np.asarray(similarities, np.float32),
    }
    keys = ("similarities", "nearest_classes", "nearest", "correct", "classes", "images")  # the last decides first
    order = np.lexsort([rows[key].astype(str) if rows[key].dtype == object else rows[key] for key in keys])
    return {name: column[order] for name, column in rows.items()}


def same_queries(one: Answers, other: Answers) -> bool:
    """Whether both answer the same queries, row by row."""
    return np.array_equal(one.images, other.images) and np.array_equal(one.classes, other.classes)


def evidence_from(answers: Answers) -> Evidence:
    """What the answers say of their model, for the gate."""
    return Evidence(
        recall_at_1=answers.recall_at_1,
        evaluation_digest=answers.evaluation_digest,
        queries=len(answers.correct),
        model_digest=answers.model_digest,
        dimension=answers.dimension,
        images_per_second=answers.images_per_second,
        correct=answers.correct,
        classes=answers.classes,
    )


def save_answers(path: Path, answers: Answers) -> None:
    """Write a Parquet file with one row a query."""
    facts = {field.name: getattr(answers, field.name) for field in fields(answers) if field.name not in _ROWS}
    columns = [pa.array(getattr(answers, row), kind) for row, kind in zip(_ROWS, SCHEMA.types, strict=True)]
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
        if (found := facts.pop("format_version", None)) != FORMAT_VERSION or not len(table):
            raise ValueError(f"it holds no answers of format {FORMAT_VERSION} (its format is {found})")
        rows = {row: table[name].to_numpy() for row, name in zip(_ROWS, SCHEMA.names, strict=True)}
        return Answers(**facts, **rows | {"correct": rows["correct"].astype(bool)})
    except (OSError, TypeError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}. Run evaluate again.") from error


_ROWS = ("images", "classes", "correct", "nearest", "nearest_classes", "similarities")  # in the order of SCHEMA

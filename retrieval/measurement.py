"""Measures how well images find their like: from embeddings and a dataset to the numbers of an evaluation."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from retrieval.class_intervals import class_bootstrap_interval
from retrieval.confidence import verdict, wilson_lower_bound
from retrieval.dataset import Dataset
from retrieval.evaluation import (
    NEIGHBOURS,
    QUERY_SCHEMA,
    Acceptance,
    ClassRecall,
    Confusion,
    CurvePoint,
    Evaluation,
    Mistaken,
    Speed,
    Stage,
    evaluation_digest,
    installed_versions,
)
from retrieval.metrics import RetrievalMetrics, nearest_mean_accuracy, retrieval_metrics
from retrieval.neighbours import nearest
from retrieval.splits import can_measure
from retrieval.thresholds import precision_at, threshold_by_trials
from retrieval.validation import distractors

CURVE_POINTS = 160
WORST_CLASSES, TAKEN_FOR = 10, 3  # shown of the confusion

Embed = Callable[[np.ndarray], Tensor]  # rows of the dataset (m,) -> their embeddings (m, d)


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        acceptance: precision that the similarity threshold must give on validation queries.
        resamples: of the class bootstrap.
        trials: of the similarity threshold, on resampled validation queries.
        seed: of the class bootstrap and of the trials.
        device: where similarities are computed.
    """

    acceptance: float = 0.9
    resamples: int = 2000
    trials: int = 200
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Judged(NamedTuple):
    """What was measured of a model.

    Attributes:
        evaluation: the numbers; its speeds are those of the search alone.
        queries: table of evaluation.QUERY_SCHEMA.
        embeddings: (m, d) of the test images, on the device, by the last stage.
    """

    evaluation: Evaluation
    queries: pa.Table
    embeddings: Tensor


def judge(stages: Mapping[str, Embed], dataset: Dataset, model_digest: str, options: Options) -> Judged:
    """Measure every stage on the test images, and the last one, the model, in full.

    Args:
        stages: what gives the embeddings after each step, in their order.
        dataset: the images.
        model_digest: of the last stage's model.
        options: how to measure.
    """
    measured, speeds = [], []
    for name, embed in stages.items():
        stage, among, embeddings = measure_stage(name, embed, dataset, options)
        measured.append(stage)
        speeds.append(Speed(name, None, None, queries_per_second(embeddings)))
        to_train = "" if stage.recall_at_1_to_train is None else f", to train {stage.recall_at_1_to_train:.4f}"
        print(f"{name}: R@1 among the test images {stage.recall_at_1:.4f}{to_train}", flush=True)
    queries = query_table(embeddings, dataset, among)
    recalls = recall_by_class(queries)
    evaluation = Evaluation(
        evaluation_digest=digest_of_test(dataset),
        protocol=protocol(dataset),
        queries=among.queries,
        queries_without_positive=among.queries_without_positive,
        classes=len(recalls),
        recall_at_1=among.recall_at_1,
        recall_at_1_low=stage.recall_at_1_low,
        recall_at_1_high=stage.recall_at_1_high,
        recall_at_2=among.recall_at_2,
        recall_at_4=among.recall_at_4,
        recall_at_8=among.recall_at_8,
        map_at_r=among.map_at_r,
        r_precision=among.r_precision,
        macro_recall_at_1=among.macro_recall_at_1,
        pessimistic_recall_at_1=among.pessimistic_recall_at_1,
        ties=among.ties,
        threshold=measure_acceptance(embed, dataset, among, options),
        stages=tuple(measured),
        recall_by_class=recalls,
        model_digest=model_digest,
        dataset_digest=dataset.digest,
        versions=installed_versions(),
        confusion=confusion(queries, dataset.class_names, recalls),
        speeds=tuple(speeds),
    )
    return Judged(evaluation, queries, embeddings)


def digest_of_test(dataset: Dataset) -> str:
    """The evaluation digest of a dataset's test images."""
    test = dataset.index.take(dataset.rows("test"))
    images = zip(test["sha256"].to_pylist(), test["class_name"].to_pylist(), strict=True)
    return evaluation_digest(protocol(dataset), images)


def shares_classes(dataset: Dataset) -> bool:
    """Whether test images have classes that were trained on, so that training images can be a gallery too."""
    return bool(np.isin(dataset.labels[dataset.rows("test")], dataset.labels[dataset.rows("train")]).any())


def protocol(dataset: Dataset) -> str:
    """The split and the gallery in words, as they enter the evaluation digest."""
    split = "closed split" if shares_classes(dataset) else "disjoint split, classes never seen in training"
    return f"{split}; each test image searched among the other test images"


def measure_stage(
    name: str, embed: Embed, dataset: Dataset, options: Options
) -> tuple[Stage, RetrievalMetrics, Tensor]:
    """How well the test images are found by the embeddings of one stage.

    Args:
        name: of the stage.
        embed: gives the embeddings of rows.
        dataset: its test rows are the queries; its training rows a second gallery where they share classes.
        options: how to measure.

    Returns:
        The stage's numbers; all that was measured among the test images; their embeddings (m, d).

    Raises:
        ValueError: the test images have no two classes, or no two images of one.
    """
    rows, device = dataset.rows("test"), options.device
    if not can_measure(dataset.labels[rows]):
        raise ValueError(
            f"The {len(rows)} test images have no two classes, or no two images of one; R@1 would tell nothing. "
            "Prepare the data with a larger test split."
        )
    embeddings, labels = embed(rows).to(device), _labels(dataset, rows, device)
    among = retrieval_metrics(embeddings, labels)
    queried = dataset.labels[rows[among.query_rows]]
    low, high = class_bootstrap_interval(among.correct, queried, options.resamples, seed=options.seed)
    to_train = accuracy = None
    if shares_classes(dataset):
        gallery = dataset.rows("train")
        gallery_labels = _labels(dataset, gallery, device)
        trained_on = embed(gallery).to(device)
        to_train = retrieval_metrics(embeddings, labels, trained_on, gallery_labels).recall_at_1
        accuracy = nearest_mean_accuracy(embeddings, labels, trained_on, gallery_labels)
    dimension = embeddings.shape[1]
    return Stage(name, among.recall_at_1, low, high, to_train, among.map_at_r, dimension, accuracy), among, embeddings


def queries_per_second(embeddings: Tensor) -> float:
    """How many images a second find their nearest other one among all of them (m, d), exactly."""
    itself = torch.arange(len(embeddings), device=embeddings.device)
    started = time.perf_counter()
    nearest(embeddings, embeddings, 1, itself)[1].cpu()  # the copy waits for the device
    return len(embeddings) / max(time.perf_counter() - started, 1e-9)


def measure_acceptance(embed: Embed, dataset: Dataset, test: RetrievalMetrics, options: Options) -> Acceptance:
    """Choose the similarity from which answers may be trusted, on validation alone, and measure it on test.

    Validation images are searched among the other validation images and the distractors (validation.distractors); the
    median of the trials is taken. Where they have no two classes, or no two images of one, nothing can be chosen, and
    the level counts as not reached.
    """
    rows, level, device = dataset.rows("validation"), options.acceptance, options.device
    test_curve = trade(test.similarity, test.correct)
    if not can_measure(dataset.labels[rows]):
        return Acceptance(level, False, None, 0, None, 0.0, None, 0.0, (), test_curve)
    others = distractors(dataset)
    validation = retrieval_metrics(
        embed(rows).to(device),
        _labels(dataset, rows, device),
        distractors=embed(others).to(device) if len(others) else None,
    )
    curve = trade(validation.similarity, validation.correct)
    asked = dataset.labels[rows[validation.query_rows]]
    trials = threshold_by_trials(
        validation.similarity, validation.correct, asked, level, options.trials, seed=options.seed
    )
    if trials.value is None:
        return Acceptance(
            level,
            False,
            None,
            validation.queries,
            None,
            0.0,
            None,
            0.0,
            curve,
            test_curve,
            trials,
            distractors=len(others),
        )
    there, covered = precision_at(validation.similarity, validation.correct, trials.value)
    precision, coverage = precision_at(test.similarity, test.correct, trials.value)
    accepted = test.similarity >= trials.value
    answered, right = int(accepted.sum()), int(test.correct[accepted].sum())
    return Acceptance(
        level=level,
        reached=True,
        value=trials.value,
        validation_queries=validation.queries,
        validation_precision=there,
        validation_coverage=covered,
        precision=precision,
        coverage=coverage,
        validation_curve=curve,
        test_curve=test_curve,
        trials=trials,
        precision_low=wilson_lower_bound(right, answered) if answered else None,
        verdict=verdict(right, answered, level),
        distractors=len(others),
    )


def trade(similarity: np.ndarray, correct: np.ndarray, points: int = CURVE_POINTS) -> tuple[CurvePoint, ...]:
    """Precision and coverage were every answer of at least some similarity accepted, at evenly spaced similarities.

    Args:
        similarity: (q,) of the nearest image of each query.
        correct: (q,) bool, whether it is of the query's class.
        points: at most this many; equal numbers of accepted answers are one point.
    """
    if not len(similarity):
        return ()
    order = np.argsort(-similarity, kind="stable")
    falling, right = similarity[order].astype(np.float64), np.cumsum(correct[order])
    levels = np.linspace(falling[-1], falling[0], points)
    accepted = np.maximum(np.searchsorted(-falling, -levels, side="right"), 1)
    _, first = np.unique(-accepted, return_index=True)  # by falling number accepted: by rising similarity
    return tuple(
        CurvePoint(float(falling[count - 1]), float(right[count - 1] / count), float(count / len(falling)))
        for count in accepted[first]
    )


def query_table(embeddings: Tensor, dataset: Dataset, test: RetrievalMetrics) -> pa.Table:
    """One row of QUERY_SCHEMA for every test image that has another of its class among the test images.

    Args:
        embeddings: (m, d) of the test rows.
        dataset: the test images.
        test: what `retrieval_metrics` measured of the same embeddings.
    """
    rows = dataset.rows("test")
    queries = test.query_rows
    itself = torch.arange(len(rows), device=embeddings.device)
    asked = itself[torch.from_numpy(queries).to(embeddings.device)]
    similarities, found = nearest(embeddings[asked], embeddings, min(NEIGHBOURS, len(rows) - 1), exclude=asked)
    first = rows[test.nearest]
    columns = {
        "query": rows[queries],
        "label": dataset.labels[rows[queries]],
        "class_name": [dataset.class_names[label] for label in dataset.labels[rows[queries]]],
        "nearest": first,
        "nearest_label": dataset.labels[first],
        "similarity": test.similarity,
        "correct": test.correct,
        "neighbours": list(rows[found.cpu().numpy()]),
        "neighbour_similarities": list(similarities.cpu().numpy()),
    }
    return pa.table({name: pa.array(columns[name], QUERY_SCHEMA.field(name).type) for name in QUERY_SCHEMA.names})


def recall_by_class(queries: pa.Table) -> tuple[ClassRecall, ...]:
    """R@1 of the queries of each class, the worst class first; classes without queries are not listed."""
    names = np.asarray(queries["class_name"].to_pylist(), dtype=object)
    labels, correct = queries["label"].to_numpy(), queries["correct"].to_numpy(zero_copy_only=False)
    recalls = [
        ClassRecall(
            str(names[labels == label][0]), int(np.sum(labels == label)), float(correct[labels == label].mean())
        )
        for label in np.unique(labels)
    ]
    return tuple(sorted(recalls, key=lambda recall: (recall.recall_at_1, recall.class_name)))


def confusion(queries: pa.Table, class_names: Sequence[str], recalls: Sequence[ClassRecall]) -> tuple[Confusion, ...]:
    """The classes that the worst classes are taken for: of ten at most, those of them that are ever taken wrongly.

    Args:
        queries: table of QUERY_SCHEMA.
        class_names: name of each label.
        recalls: worst class first, from `recall_by_class`.
    """
    names = np.asarray(queries["class_name"].to_pylist(), dtype=object)
    correct, found = queries["correct"].to_numpy(zero_copy_only=False), queries["nearest_label"].to_numpy()
    confused = []
    for recall in recalls[:WORST_CLASSES]:
        wrong = found[(names == recall.class_name) & ~correct]
        labels, counts = np.unique(wrong, return_counts=True)
        order = np.lexsort((labels, -counts))[:TAKEN_FOR]
        taken_for = tuple(Mistaken(class_names[labels[place]], int(counts[place])) for place in order)
        if taken_for:
            confused.append(Confusion(recall.class_name, recall.queries, len(wrong), taken_for))
    return tuple(confused)


def _labels(dataset: Dataset, rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(dataset.labels[rows]).to(device)

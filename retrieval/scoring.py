"""How a model answers the queries of a dataset: the candidate's, and the champion's where they are not recorded yet."""

from pathlib import Path

import numpy as np
import torch

from retrieval.answer_records import find_answers, record_answers
from retrieval.answers import Answers, in_order, same_queries
from retrieval.dataset import Dataset
from retrieval.embedder import Embedder
from retrieval.measurement import digest_of_test
from retrieval.metrics import retrieval_metrics
from retrieval.model_folder import read_model_manifest
from retrieval.registry import ModelVersion, fetch_model
from retrieval.robustness import resized
from retrieval.tracking import TrackingError, exchange_folder


def answers_of(dataset: Dataset, rows: np.ndarray, correct: np.ndarray, embedder: Embedder, digest: str) -> Answers:
    """What was measured of a model, as its answers.

    Args:
        dataset: where the queries are from.
        rows: (q,) of the dataset, the queries.
        correct: (q,) bool, whether the nearest other test image is of the query's class.
        embedder: of the model, which has embedded already.
        digest: of the model's folder.
    """
    images, classes = (np.asarray(dataset.index[name].to_pylist(), object)[rows] for name in ("sha256", "class_name"))
    return Answers(
        digest_of_test(dataset),
        digest,
        embedder.model.dimension,
        embedder.images_per_second,
        *in_order(images, classes, correct),
    )


def score(folder: Path, dataset: Dataset, device: torch.device, batch_size: int) -> Answers:
    """Embed the test images with a model and search each among the others, as `measurement.judge` does.

    Images of another size than the model's are brought to it; its speed is then not measured.

    Raises:
        ValueError: it is no model folder, or an embedding is not finite.
    """
    embedder, rows = Embedder("champion", folder, dataset, device, batch_size), dataset.rows("test")
    size = embedder.model.config.image_size
    fits = size == dataset.image_size
    embeddings = embedder(rows) if fits else embedder.changed(rows, resized(size))
    if not torch.isfinite(embeddings).all():
        raise ValueError("embeddings of the champion are not finite.")
    labels = torch.from_numpy(dataset.labels[rows])
    found = retrieval_metrics(embeddings.to(device), labels.to(device))
    return answers_of(dataset, rows[found.query_rows], found.correct, embedder, read_model_manifest(folder).digest)


def champion_answers(
    champion: ModelVersion | None, candidate: Answers, dataset: Dataset, device: torch.device, batch_size: int
) -> Answers | None:
    """The champion's answers to the queries that the candidate answered: recorded ones, or else it is scored now.

    They are kept with the champion's version, so that it is scored once for each set of test images. A champion whose
    model is gone or cannot be read does not stop the pipeline: that is said, and the gate rejects what it cannot
    compare.

    Args:
        champion: None where there is none yet.
        candidate: answers of the model that was evaluated.
        dataset: its test images are the queries.
        device: where to compute.
        batch_size: images at once.

    Returns:
        None where there is no champion, where it is the candidate itself, and where it cannot be scored.
    """
    if champion is None or champion.model_digest == candidate.model_digest:
        return None
    name = f"The champion, {champion.name} version {champion.version},"
    recorded = find_answers(champion, candidate.evaluation_digest)
    if recorded is not None and same_queries(recorded, candidate):
        print(f"{name} was scored on these test images before: R@1 {recorded.recall_at_1:.4f}", flush=True)
        return recorded
    try:
        with exchange_folder() as temporary:
            answers = score(fetch_model(champion, Path(temporary)), dataset, device, batch_size)
    except (ValueError, TrackingError) as error:
        print(f"{name} cannot be scored on these test images: {error}", flush=True)
        return None
    print(f"{name} is scored on these test images for the first time: R@1 {answers.recall_at_1:.4f}", flush=True)
    try:
        record_answers(champion, answers)
    except TrackingError as error:
        print(f"{name} keeps no record of it, and is scored again next time: {error}", flush=True)
    return answers

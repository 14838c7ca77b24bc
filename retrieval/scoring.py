"""How a model answers the queries of a dataset: the candidate's, and the champion's where they are not recorded yet.

As a program it scores any version of a registered model, so that `rankone compare` can compare it:
`python -m retrieval.scoring --model digits --version 3 --dataset FOLDER`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from retrieval.answer_records import find_answers, record_answers, record_pictures
from retrieval.answers import Answers, in_order, same_queries
from retrieval.dataset import Dataset
from retrieval.devices import pick_device
from retrieval.embedder import Embedder
from retrieval.evaluation import IMAGES
from retrieval.measurement import digest_of_test
from retrieval.metrics import retrieval_metrics
from retrieval.model_folder import read_model_manifest, resize_of
from retrieval.pictures import save_pictures, taken, wanted
from retrieval.registry import ModelVersion, fetch_file, fetch_model, versions_of
from retrieval.robustness import resized
from retrieval.tracking import TrackingError, exchange_folder


def answers_of(
    dataset: Dataset,
    rows: np.ndarray,
    nearest: np.ndarray,
    similarities: np.ndarray,
    correct: np.ndarray,
    embedder: Embedder,
    digest: str,
) -> Answers:
    """What was measured of a model, as its answers.

    Args:
        dataset: where the queries are from.
        rows: (q,) of the dataset, the queries.
        nearest: (q,) of the dataset, the most similar other test image of each.
        similarities: (q,) cosine of the two.
        correct: (q,) bool, whether that is of the query's class.
        embedder: of the model, which has embedded already.
        digest: of the model's folder.
    """
    images, classes = (np.asarray(dataset.index[name].to_pylist(), object) for name in ("sha256", "class_name"))
    return Answers(
        digest_of_test(dataset),
        digest,
        embedder.model.dimension,
        embedder.images_per_second,
        **in_order(images[rows], classes[rows], correct, images[nearest], classes[nearest], similarities),
    )


def score(folder: Path, dataset: Dataset, device: torch.device, batch_size: int) -> Answers:
    """Embed the test images with a model and search each among the others, as `measurement.judge` does.

    Larger images than the model's are brought to its size; its speed is then not measured.

    Raises:
        ValueError: it is no model folder, its images were fitted in another way or were larger, or an embedding is not
            finite.
    """
    manifest = read_model_manifest(folder)
    if (fitted := resize_of(manifest)) != dataset.resize:
        raise ValueError(
            f"the champion was trained on images fitted by resize={fitted}, these are by resize={dataset.resize}: on "
            f"them it would be judged worse than it is. Prepare the data with resize={fitted} to compare the two."
        )
    embedder, rows = Embedder("champion", folder, dataset, device, batch_size), dataset.rows("test")
    size = embedder.model.config.image_size
    if size > dataset.image_size:
        raise ValueError(
            f"the champion looks at images of {size} px, these are stored at {dataset.image_size} px: on them it "
            f"would be judged worse than it is. Prepare the data with image_size={size} to compare the two; "
            "`rankone promote` makes a model of smaller images champion all the same."
        )
    fits = size == dataset.image_size
    embeddings = embedder(rows) if fits else embedder.changed(rows, resized(size))
    if not torch.isfinite(embeddings).all():
        raise ValueError("embeddings of the champion are not finite.")
    labels = torch.from_numpy(dataset.labels[rows])
    found = retrieval_metrics(embeddings.to(device), labels.to(device))
    queries, nearest = rows[found.query_rows], rows[found.nearest]
    return answers_of(dataset, queries, nearest, found.similarity, found.correct, embedder, manifest.digest)


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
            known = trained_on(champion, dataset, Path(temporary))
    except (ValueError, TrackingError) as error:
        print(f"{name} cannot be scored on these test images: {error}", flush=True)
        return None
    print(f"{name} is scored on these test images for the first time: R@1 {answers.recall_at_1:.4f}", flush=True)
    if known:
        print(
            f"{name} was trained on {known:,} of these {len(dataset.rows('test')):,} test images, which favours it; "
            "with the same seed and fractions nearly every image stays on its side.",
            flush=True,
        )
    try:
        record_answers(champion, answers)
    except TrackingError as error:
        print(f"{name} keeps no record of it, and is scored again next time: {error}", flush=True)
    return answers


def trained_on(champion: ModelVersion, dataset: Dataset, folder: Path) -> int:
    """How many of the test images the champion was trained on; 0 where its images are not recorded.

    Args:
        champion: the version.
        dataset: whose test images are meant.
        folder: an existing one, for what is fetched.
    """
    listed = fetch_file(champion, f"data/{IMAGES}", folder)
    if listed is None:
        return 0
    images = pq.read_table(listed, columns=["sha256", "split"]).to_pylist()
    trained = {image["sha256"] for image in images if image["split"] == "train"}
    return len(trained & set(dataset.index["sha256"].take(dataset.rows("test")).to_pylist()))


def score_version(name: str, number: int, folder: Path, device: str, batch_size: int, pictures: int) -> Answers:
    """Have a version answer the test images of a dataset, and keep answers and pictures with it.

    Args:
        name: of the registered model.
        number: of the version.
        folder: of the dataset.
        device: auto, cpu or cuda.
        batch_size: images at once.
        pictures: that are kept, at most.

    Raises:
        ValueError: there is no such version, it holds no model, or the folder holds no dataset.
        TrackingError: MLflow cannot be reached, or the model's files are gone.
    """
    found = next((version for version in versions_of(name) if version.version == number), None)
    if found is None:
        raise ValueError(f"There is no version {number} of a registered model '{name}'; `rankone models` lists them.")
    dataset = Dataset(folder)
    with exchange_folder() as temporary:
        answers = score(fetch_model(found, Path(temporary)), dataset, pick_device(device), batch_size)
        record_answers(found, answers)
        if pictures:
            save_pictures(Path(temporary) / "pictures", taken(dataset, wanted(answers, None, pictures)))
            record_pictures(found, answers.evaluation_digest, Path(temporary) / "pictures")
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    """Score a version from the command line; bad input ends in one clear line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m retrieval.scoring", description=__doc__)
    parser.add_argument("--model", required=True, help="name of the registered model")
    parser.add_argument("--version", required=True, type=int, help="its number")
    parser.add_argument("--dataset", required=True, type=Path, help="folder of a dataset, as prepare_data writes it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", default=128, type=int, help="images at once")
    parser.add_argument("--pictures", default=4000, type=int, help="small pictures that are kept; 0 for none")
    given = parser.parse_args(arguments)
    try:
        found = score_version(given.model, given.version, given.dataset, given.device, given.batch_size, given.pictures)
    except (ValueError, OSError, TrackingError) as error:
        sys.exit(f"scoring: {error}")
    print(
        f"{given.model} version {given.version}: R@1 {found.recall_at_1:.4f} on {len(found.correct):,} queries, kept "
        "with the version.",
        flush=True,
    )


if __name__ == "__main__":
    main()

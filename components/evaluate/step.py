"""Measures the test images after every stage, finds the similarity to trust, and writes the report."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from components.evaluate.params import Params
from components.launch import InputPath, OutputPath, Outputs, Scalar, launch
from retrieval import registry
from retrieval.answers import Answers
from retrieval.changes import image_list
from retrieval.clusters import load_clusters, pictures_of
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.drift import Reference, save_reference
from retrieval.embedder import Embedder
from retrieval.evaluation import IMAGES, QUERIES, REFERENCE, Evaluation, FeatureLearning, Speed, save_evaluation
from retrieval.feature_map import feature_map
from retrieval.features import load_features
from retrieval.manifest import Manifest
from retrieval.measurement import Embed, Judged, Options, judge
from retrieval.model_folder import read_model_manifest
from retrieval.pictures import taken, wanted
from retrieval.report import beside_stages, render_report
from retrieval.robustness import further_dataset, known_images, missing_parts, open_datasets
from retrieval.scoring import answers_of, champion_answers
from retrieval.similarity import feature_learning
from retrieval.tracking import step_run

MADE = {
    "pretrain": "features",
    "co_cluster": "clusters",
    "finetune_metric": "model",
    "finetune_softmax": "tuned_model",
}  # the artifact of each stage
IMAGES_COMPARED = 5_000  # of the test images, for the similarity that they keep: its cost grows with their square


def evaluate(
    params: Params,
    dataset: InputPath,
    features: InputPath,
    clusters: InputPath,
    model: InputPath,
    tuned_model: InputPath,
    evaluation: OutputPath,
    report: OutputPath,
) -> Outputs:
    """Measure every stage on the test images, and the last one in full; write the evaluation and its page.

    The champion is scored on the same test images where that was not done before, so that promote can compare the two
    query by query.
    """
    with tempfile.TemporaryDirectory() as scratch, step_run("evaluate", params) as run:
        images, device = Dataset(dataset), pick_device(params.device)
        others = open_datasets(params.further_datasets, known_images(images), Path(scratch), images.resize)
        run.set_tags({"rankone.device": describe(device)})
        print(
            f"evaluate: {len(images.rows('test')):,} test and {len(images.rows('validation')):,} validation images "
            f"of {len(images.class_names):,} classes, on {device}, seed {params.seed}",
            flush=True,
        )
        vectors, adjusted = load_features(features), load_clusters(clusters)
        artifacts = {
            "dataset": images.manifest,
            "features": vectors.manifest,
            "clusters": adjusted.manifest,
            "model": read_model_manifest(model),
            "tuned_model": read_model_manifest(tuned_model),
        }
        check_of_one_dataset(artifacts, len(images), {"features": vectors.values, "clusters": adjusted.targets})
        models = {
            "finetune_metric": Embedder("finetune_metric", model, images, device, params.batch_size),
            "finetune_softmax": Embedder("finetune_softmax", tuned_model, images, device, params.batch_size),
        }
        computed: dict[str, Embed] = {"pretrain": rows_of(vectors.values), "co_cluster": rows_of(adjusted.targets)}
        options = Options(params.acceptance, params.bootstrap_resamples, params.threshold_trials, params.seed, device)
        judged = judge(computed | models, images, artifacts["tuned_model"].digest, options)
        if said := beside_stages(judged.evaluation, artifacts["tuned_model"].facts):
            print(f"evaluate: {said}", flush=True)
        last = models["finetune_softmax"]
        measured = replace(
            in_full(judged, last, images, others, params),
            speeds=speeds(judged.evaluation, artifacts, models),
            feature_learning=what_is_kept(vectors.values, judged.embeddings, images, params.seed),
        )
        digests = {name: manifest.digest for name, manifest in artifacts.items()}
        digests |= {f"further dataset {name}": other.digest for name, other in others.items()}
        answers = own_answers(judged, images, last)
        champion = champion_answers(
            registry.champion(params.registered_model), answers, images, device, params.batch_size
        )
        if champion is not None:
            digests["champion"] = champion.model_digest
        kept = taken(images, wanted(answers, champion, params.pictures_kept))
        rows, embeddings = images.rows("test"), judged.embeddings.cpu().numpy()
        keep_for_later(evaluation, images, measured, embeddings)
        save_evaluation(evaluation, measured, judged.queries, digests, answers, champion, kept)
        places = feature_map(vectors.values[rows], embeddings, images.labels[rows], seed=params.seed)
        page = render_report(
            measured, judged.queries, images, artifacts, params.gallery_queries, places, pictures_of(clusters)
        )
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page, encoding="utf-8")
        metadata = summary(measured, champion)
        run.log_metrics({name: value for name, value in metadata.items() if not isinstance(value, str)})
        run.set_tags({"rankone.evaluation_digest": measured.evaluation_digest})
        run.log_artifact(report, name="report.html")
        run.log_artifact(evaluation / QUERIES)
    return {"evaluation": metadata, "report": {"recall_at_1": measured.recall_at_1}}


def in_full(
    judged: Judged, model: Embedder, images: Dataset, others: Mapping[str, Dataset], params: Params
) -> Evaluation:
    """What was judged, with the model on images of which parts are missing and on further datasets."""
    known = known_images(images)
    return replace(
        judged.evaluation,
        missing_parts=missing_parts(model, images, judged.embeddings, params.occlusion_queries, params.seed),
        further_datasets=tuple(
            further_dataset(name, other, known, model, params.bootstrap_resamples, params.seed)
            for name, other in others.items()
        ),
        training_images=len(images.rows("train")),
    )


def own_answers(judged: Judged, images: Dataset, model: Embedder) -> Answers:
    """The model's answer to every query, for the comparison with the champion's."""
    query, nearest, similarity, correct = (
        judged.queries[name].to_numpy() for name in ("query", "nearest", "similarity", "correct")
    )
    return answers_of(images, query, nearest, similarity, correct, model, judged.evaluation.model_digest)


def keep_for_later(evaluation: Path, images: Dataset, measured: Evaluation, embeddings: np.ndarray) -> None:
    """Keep what the next run compares itself with: the list of the images, and embeddings of test images."""
    evaluation.mkdir(parents=True, exist_ok=True)
    pq.write_table(image_list(images.index), evaluation / IMAGES)
    test = images.index.take(images.rows("test"))
    classes = np.asarray(test["class_name"].to_pylist(), object)
    reference = Reference(measured.model_digest, embeddings, classes, measured.threshold.value)
    save_reference(evaluation / REFERENCE, reference, test["sha256"].to_pylist())


def rows_of(vectors: np.ndarray) -> Embed:
    """The stage whose vectors, one a row of the dataset, were computed before."""
    return lambda rows: torch.from_numpy(np.asarray(vectors[rows], dtype=np.float32))


def speeds(
    measured: Evaluation, artifacts: Mapping[str, Manifest], models: Mapping[str, Embedder]
) -> tuple[Speed, ...]:
    """The search of each stage as measured, with what its artifact says of training, and its model of embedding.

    Of embedding by a stage without a model its artifact says it too.
    """

    def completed(speed: Speed) -> Speed:
        facts, model = artifacts[MADE[speed.stage]].facts, models.get(speed.stage)
        return replace(
            speed,
            training_images_per_second=facts.get("images_per_second"),
            embedding_images_per_second=model.images_per_second if model else facts.get("embedding_images_per_second"),
        )

    return tuple(map(completed, measured.speeds))


def what_is_kept(features: np.ndarray, embeddings: Tensor, images: Dataset, seed: int) -> FeatureLearning | None:
    """What the embeddings of the test images, or of 5,000 of them, keep of the features; None for fewer than three."""
    rows = images.rows("test")
    if len(rows) < 3:
        return None
    some = np.linspace(0, len(rows) - 1, min(len(rows), IMAGES_COMPARED)).astype(int)
    held_out = torch.from_numpy(np.asarray(features[rows[some]], np.float32)).to(embeddings.device)
    return feature_learning(held_out, embeddings[some], features[images.rows("train")], seed)


def check_of_one_dataset(artifacts: Mapping[str, Manifest], images: int, vectors: Mapping[str, np.ndarray]) -> None:
    """Refuse what was made from another dataset: its training images may be test images here.

    Raises:
        ValueError: names the artifact.
    """
    digest = artifacts["dataset"].digest
    for name, manifest in artifacts.items():
        made_from = manifest.made_from.get("dataset", digest)
        if made_from != digest:
            raise ValueError(
                f"{name} was made from dataset {made_from[:12]}, not from the dataset given, {digest[:12]}; it may "
                "have been trained on the test images. Give the artifacts of one run."
            )
    for name, values in vectors.items():
        if len(values) != images:
            raise ValueError(f"{name} has {len(values):,} rows for {images:,} images. Give the artifacts of one run.")


def summary(measured: Evaluation, champion: Answers | None) -> dict[str, Scalar]:
    """The numbers that the KFP page and the command line's closing table show; what was not found is left out."""
    found: dict[str, Scalar] = {
        "recall_at_1": measured.recall_at_1,
        "recall_at_1_low": measured.recall_at_1_low,
        "recall_at_1_high": measured.recall_at_1_high,
        "map_at_r": measured.map_at_r,
        "queries": measured.queries,
        "coverage": measured.threshold.coverage,
        "threshold_verdict": measured.threshold.verdict,
        "evaluation_digest": measured.evaluation_digest,
    }
    if champion is not None:
        found["champion_recall_at_1"] = champion.recall_at_1
    if measured.threshold.value is not None:
        found["threshold"] = measured.threshold.value
    if measured.threshold.precision_low is not None:
        found["precision_low"] = measured.threshold.precision_low
    if measured.stages[-1].accuracy is not None:
        found["accuracy"] = measured.stages[-1].accuracy
    if measured.feature_learning is not None:
        found |= vars(measured.feature_learning.projection)
    for part in measured.missing_parts:
        if part.share:
            found[f"recall_at_1_{part.shape}_{part.share * 100:.0f}_hidden"] = part.recall_at_1
    for number, further in enumerate(measured.further_datasets, start=1):
        found[f"further_{number}_recall_at_1"] = further.recall_at_1
    for stage in measured.stages:
        found[f"{stage.name}_recall_at_1"] = stage.recall_at_1
        if stage.recall_at_1_to_train is not None:
            found[f"{stage.name}_recall_at_1_to_train"] = stage.recall_at_1_to_train
    return found


if __name__ == "__main__":
    launch(evaluate, Params)

"""Measures the test images after every stage, finds the similarity to trust, and writes the report."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

from components.evaluate.params import Params
from components.launch import InputPath, OutputPath, Outputs, Scalar, launch
from retrieval.clusters import load_clusters
from retrieval.dataset import Dataset
from retrieval.devices import pick_device
from retrieval.evaluation import QUERIES, Evaluation, save_evaluation
from retrieval.features import embed, load_features
from retrieval.manifest import Manifest
from retrieval.measurement import Embed, Options, judge
from retrieval.models import load_model, read_model_manifest
from retrieval.report import render_report
from retrieval.tracking import step_run


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
    """Measure every stage on the test images, and the last one in full; write the evaluation and its page."""
    with step_run("evaluate", params) as run:
        images, device = Dataset(dataset), pick_device(params.device)
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
        stages = {
            "pretrain": rows_of(vectors.values),
            "co_cluster": rows_of(adjusted.targets),
            "finetune_metric": embedder("finetune_metric", model, images, device, params.batch_size),
            "finetune_softmax": embedder("finetune_softmax", tuned_model, images, device, params.batch_size),
        }
        options = Options(params.acceptance, params.bootstrap_resamples, params.seed, device)
        measured, queries = judge(stages, images, artifacts["tuned_model"].digest, options)
        save_evaluation(evaluation, measured, queries, {name: manifest.digest for name, manifest in artifacts.items()})
        report.parent.mkdir(parents=True, exist_ok=True)
        page = render_report(measured, queries, images, artifacts, params.gallery_queries)
        report.write_text(page, encoding="utf-8")
        metadata = summary(measured)
        run.log_metrics({name: value for name, value in metadata.items() if not isinstance(value, str)})
        run.set_tags({"rankone.evaluation_digest": measured.evaluation_digest})
        run.log_artifact(report, name="report.html")
        run.log_artifact(evaluation / QUERIES)
    return {"evaluation": metadata, "report": {"recall_at_1": measured.recall_at_1}}


def rows_of(vectors: np.ndarray) -> Embed:
    """The stage whose vectors, one a row of the dataset, were computed before."""
    return lambda rows: torch.from_numpy(np.asarray(vectors[rows], dtype=np.float32))


def embedder(stage: str, folder: Path, images: Dataset, device: torch.device, batch_size: int) -> Embed:
    """The stage whose vectors a model makes of the images; the model is read when it is first asked."""
    network = cache(lambda: load_model(folder, device))
    return lambda rows: embed(network(), images, rows, device, batch_size, name=f"embed, {stage}")


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


def summary(measured: Evaluation) -> dict[str, Scalar]:
    """The numbers that the KFP page and the command line's closing table show; `threshold` only where one was found."""
    found: dict[str, Scalar] = {
        "recall_at_1": measured.recall_at_1,
        "recall_at_1_low": measured.recall_at_1_low,
        "recall_at_1_high": measured.recall_at_1_high,
        "map_at_r": measured.map_at_r,
        "queries": measured.queries,
        "coverage": measured.threshold.coverage,
        "evaluation_digest": measured.evaluation_digest,
    }
    if measured.threshold.value is not None:
        found["threshold"] = measured.threshold.value
    for stage in measured.stages:
        found[f"{stage.name}_recall_at_1"] = stage.recall_at_1
        if stage.recall_at_1_to_train is not None:
            found[f"{stage.name}_recall_at_1_to_train"] = stage.recall_at_1_to_train
    return found


if __name__ == "__main__":
    launch(evaluate, Params)

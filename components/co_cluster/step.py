"""Groups images and feature dimensions together and draws similar features closer."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score

from components.co_cluster.params import Params
from components.launch import InputPath, OutputPath, Outputs, launch
from retrieval import co_clustering, re_adjustment
from retrieval.cluster_pictures import block_matrix, cluster_sheet
from retrieval.clusters import save_clusters
from retrieval.co_clustering import CoClustering, batches_of, sample_of
from retrieval.dataset import Dataset
from retrieval.features import load_features
from retrieval.k_means import KMeans, normalised, spherical_k_means
from retrieval.metrics import recall_at_1
from retrieval.re_adjustment import CO_CLUSTERING, K_MEANS, NONE, STRENGTHS, Adjustment, Grouping, choose_adjustment
from retrieval.tracking import step_run

MOST_ROWS_DRAWN = 4_096
Assign = Callable[[np.ndarray], np.ndarray]


def co_cluster(params: Params, dataset: InputPath, features: InputPath, clusters: OutputPath) -> Outputs:
    """Fit the co-clusters on the training images, choose how far to adjust on validation, and adjust every image."""
    data = Dataset(dataset)
    loaded = load_features(features, data)
    values, train = loaded.values, data.rows("train")
    classes = len(np.unique(data.labels[train]))
    print(
        f"co_cluster: {len(train):,} of {len(values):,} images of {classes} classes, {values.shape[1]} features each; "
        f"seed {params.seed}.",
        flush=True,
    )
    with step_run("co_cluster", params) as run:
        started = time.monotonic()
        fitted = co_clustering.co_cluster(values, train, params.co_clusters, classes, params.seed, params.nonnegative)
        seconds = time.monotonic() - started
        print(f"co_cluster: {fitted.clusters} clusters in {seconds:.1f} s: {fitted.why}.", flush=True)
        control = plain_k_means(values, train, fitted.clusters, params.seed)
        assigning = {CO_CLUSTERING: fitted.assign, K_MEANS: control.assign}
        centres = {way: centres_of(values, train, assign, fitted.clusters) for way, assign in assigning.items()}
        adjustment = choose(params, data, values, assigning, centres)
        print(f"co_cluster: {adjustment.why}.", flush=True)

        others = np.setdiff1d(np.arange(len(values)), train)
        image_clusters = np.empty(len(values), np.int64)
        image_clusters[train] = fitted.row_clusters
        image_clusters[others] = np.concatenate(
            [*map(fitted.assign, batches_of(values, others)), np.empty(0, np.int64)]
        )
        described = describe(fitted, adjustment, image_clusters[train], data.labels[train], seconds)
        clusters.mkdir(parents=True, exist_ok=True)
        pictures = draw(clusters, fitted, data, values, image_clusters)
        targets = adjusted(values, adjustment, assigning, centres)
        made_from = {"dataset": data.digest, "features": loaded.manifest.digest}
        facts = described | {"clusters_why": fitted.why, "adjusted_by_why": adjustment.why}
        save_clusters(clusters, targets, image_clusters, fitted.dimension_clusters, made_from, facts)
        run.log_metrics({name: value for name, value in described.items() if not isinstance(value, str)})
        run.set_tags({"clusters_why": fitted.why, "adjusted_by_why": adjustment.why})
        for picture in pictures:
            run.log_artifact(picture, "clusters")
    return {"clusters": described}


def plain_k_means(values: np.ndarray, train: np.ndarray, clusters: int, seed: int) -> KMeans:
    """The control: spherical k-means of the features themselves, with as many clusters."""
    sample = sample_of(train, clusters, seed)
    return spherical_k_means(np.concatenate(list(batches_of(values, sample))), clusters, seed)


def centres_of(values: np.ndarray, train: np.ndarray, assign: Assign, clusters: int) -> np.ndarray:
    """Mean direction of each cluster's training images: (k, d)."""
    batches = ((batch, assign(batch)) for batch in batches_of(values, train))
    return re_adjustment.cluster_centres(batches, clusters)


def choose(
    params: Params,
    data: Dataset,
    values: np.ndarray,
    assigning: dict[str, Assign],
    centres: dict[str, np.ndarray],
) -> Adjustment:
    """The way and the strength: given, or those of most R@1 among the validation images."""
    rows = data.rows("validation")
    labels = data.labels[rows]
    if len(np.unique(labels)) == len(labels):
        strength = 0.0 if params.shrinkage == "auto" else float(params.shrinkage)
        way = CO_CLUSTERING if strength else NONE
        return Adjustment(
            way, strength, {}, f"no two validation images share a class to choose by: {way} at {strength:g}"
        )
    held_out = np.concatenate(list(batches_of(values, rows)))
    groupings = {way: Grouping(assign(held_out), centres[way]) for way, assign in assigning.items()}

    def measure(adjusted_rows: np.ndarray) -> float:
        return recall_at_1(torch.from_numpy(adjusted_rows), torch.from_numpy(labels))

    if params.shrinkage == "auto":
        return choose_adjustment(held_out, groupings, measure, STRENGTHS)
    strength = float(params.shrinkage)
    measured = choose_adjustment(held_out, groupings, measure, (strength,)).measured
    return Adjustment(CO_CLUSTERING if strength else NONE, strength, measured, f"strength {strength:g} was given")


def adjusted(
    values: np.ndarray, adjustment: Adjustment, assigning: dict[str, Assign], centres: dict[str, np.ndarray]
) -> Iterator[np.ndarray]:
    """The targets of all images, batch by batch."""
    for batch in batches_of(values, np.arange(len(values))):
        if adjustment.by == NONE:
            yield normalised(batch)
        else:
            assigned = assigning[adjustment.by](batch)
            yield re_adjustment.adjust(batch, assigned, centres[adjustment.by], adjustment.strength)


def describe(
    fitted: CoClustering, adjustment: Adjustment, assigned: np.ndarray, labels: np.ndarray, seconds: float
) -> dict[str, str | int | float]:
    """What is reported: clusters, how pure they are, what was chosen and its evidence."""
    recalls = {
        f"validation_recall_at_1_{way.replace('-', '_')}": recall
        for way in (NONE, CO_CLUSTERING, K_MEANS)
        if (recall := adjustment.best_of(way)) is not None
    }
    return {
        "clusters": fitted.clusters,
        "shrinkage": adjustment.strength,
        "adjusted_by": adjustment.by,
        **recalls,
        "purity": purity(assigned, labels),
        "nmi": float(normalized_mutual_info_score(labels, assigned)),
        "leading_singular_value": fitted.spectrum.leading_singular_value,
        "zero_rows": fitted.zero_rows,
        "zero_columns": fitted.zero_columns,
        "seconds": round(seconds, 3),
    }


def purity(assigned: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose label is the commonest of their cluster."""
    counts = np.zeros((assigned.max() + 2, labels.max() + 1), np.int64)
    np.add.at(counts, (assigned, labels), 1)
    return float(counts.max(axis=1).sum() / len(labels))


def draw(
    folder: Path, fitted: CoClustering, data: Dataset, values: np.ndarray, image_clusters: np.ndarray
) -> list[Path]:
    """The block-ordered matrix and a sheet of images a cluster, as files of the artifact."""
    train = data.rows("train")
    shown = train[:: -(-len(train) // MOST_ROWS_DRAWN)]
    matrix = fitted.matrix(np.concatenate(list(batches_of(values, shown))))
    paths = [folder / "block_matrix.png", folder / "cluster_sheet.png"]
    block_matrix(matrix, image_clusters[shown], fitted.column_clusters, paths[0])
    cluster_sheet(data, train, image_clusters[train], paths[1])
    return paths


if __name__ == "__main__":
    launch(co_cluster, Params)

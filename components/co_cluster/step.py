"""Groups images and feature dimensions together and draws similar features closer."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score

from components.co_cluster.params import Params
from components.launch import InputPath, OutputPath, Outputs, launch
from retrieval import co_clustering
from retrieval.cluster_map import CLUSTER_MAP, ClusterMap
from retrieval.cluster_pictures import block_matrix, cluster_sheets
from retrieval.clusters import BLOCK_MATRIX, save_clusters
from retrieval.co_clustering import CoClustering, batches_of, sample_of
from retrieval.dataset import Dataset
from retrieval.feature_blocks import fisher_ratios, k_means_blocks
from retrieval.features import load_features
from retrieval.k_means import KMeans, normalised, spherical_k_means
from retrieval.re_adjustment import (
    CO_CLUSTERING,
    GAMMAS,
    K_MEANS,
    NONE,
    Adjustment,
    Grouping,
    choose_adjustment,
    weighted_groupings,
)
from retrieval.splits import UNMEASURABLE, can_measure
from retrieval.tracking import step_run
from retrieval.validation import recall_of, rows_to_judge, searched_among

LIGHT = 0.1  # strength without labels: from 0.05 to 0.2 R@1 gained where it was measured, from 0.3 on it fell
MOST_ROWS_SHOWN = 4_096  # in the picture, and to the k-means of dimensions
Groupings = dict[str, list[Grouping]]  # by way, one for each gamma


def co_cluster(params: Params, dataset: InputPath, features: InputPath, clusters: OutputPath) -> Outputs:
    """Fit the co-clusters on the training images, choose how far to adjust on validation, and adjust every image."""
    data = Dataset(dataset)
    loaded = load_features(features, data)
    values, train = loaded.values, data.rows("train")
    classes = len(np.unique(data.labels[train])) if params.labels == "given" else 0
    print(
        f"co_cluster: {len(train):,} of {len(values):,} images of {classes or 'unknown'} classes, "
        f"{values.shape[1]} features each; seed {params.seed}.",
        flush=True,
    )
    with step_run("co_cluster", params) as run:
        started = time.monotonic()
        fitted = co_clustering.co_cluster(values, train, params.co_clusters, classes, params.seed, params.nonnegative)
        seconds = time.monotonic() - started
        print(f"co_cluster: {fitted.clusters} clusters in {seconds:.1f} s: {fitted.why}.", flush=True)
        control = plain_k_means(values, train, fitted.clusters, params.seed)
        everything = np.arange(len(values))
        others = np.setdiff1d(everything, train)
        image_clusters = np.empty(len(values), np.int64)
        image_clusters[train] = fitted.row_clusters
        image_clusters[others] = assigned_to(fitted.cluster_map, values, others)
        grouped_by: dict[str, ClusterMap | KMeans] = {CO_CLUSTERING: fitted.cluster_map, K_MEANS: control}
        assigned = {CO_CLUSTERING: image_clusters, K_MEANS: assigned_to(control, values, everything)}
        blocks = {CO_CLUSTERING: fitted.dimension_clusters, K_MEANS: plain_blocks(values, train, fitted, params.seed)}
        groupings = {way: group(params, data, values, assigned[way], blocks[way]) for way in assigned}
        adjustment = choose(params, data, values, groupings)
        print(f"co_cluster: {adjustment.why}.", flush=True)
        if adjustment.measured:
            print(f"co_cluster: the validation images were searched among {searched_among(data)}.", flush=True)

        described = describe(fitted, adjustment, seconds)
        if adjustment.by != NONE:
            described |= {"embedding_images_per_second": adjusting_rate(values, adjustment, groupings, grouped_by)}
        if params.labels == "given":
            described |= compare(image_clusters[train], data.labels[train])
        clusters.mkdir(parents=True, exist_ok=True)
        fitted.cluster_map.save(clusters / CLUSTER_MAP)
        pictures = draw(clusters, fitted, data, values, image_clusters)
        targets = adjusted(values, adjustment, groupings, assigned)
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


def plain_blocks(values: np.ndarray, train: np.ndarray, fitted: CoClustering, seed: int) -> np.ndarray:
    """The control's blocks of dimensions (d,), as many as the co-clusters have."""
    blocks = len(np.unique(fitted.dimension_clusters[fitted.dimension_clusters >= 0]))
    return k_means_blocks(np.concatenate(list(batches_of(values, few_of(train)))), blocks, seed)


def assigned_to(fitted: ClusterMap | KMeans, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The clusters of some images: (rows,) int64."""
    return np.concatenate([*map(fitted.assign, batches_of(values, rows)), np.empty(0, np.int64)])


def few_of(rows: np.ndarray) -> np.ndarray:
    """At most MOST_ROWS_SHOWN of the rows, evenly spread."""
    return rows[:: -(-len(rows) // MOST_ROWS_SHOWN)]


def group(
    params: Params, data: Dataset, values: np.ndarray, assigned: np.ndarray, blocks: np.ndarray
) -> list[Grouping]:
    """The centres of one way after each weighting of its blocks; weights of 1 alone where none is to be chosen."""
    train = data.rows("train")
    clusters = int(assigned.max(initial=0)) + 1

    def batches(of: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for batch in batches_of(values, train):
            yield batch, of[train[start : start + len(batch)]]
            start += len(batch)

    weighted = params.shrinkage == "auto" and params.labels == "given"
    ratios = np.ones(len(blocks))
    if weighted:
        ratios = fisher_ratios(batches(data.labels), blocks, int(data.labels.max()) + 1)
    held_out = assigned[rows_to_judge(data, params.labels == "given")]
    return weighted_groupings(lambda: batches(assigned), clusters, held_out, ratios, GAMMAS if weighted else (0.0,))


def choose(params: Params, data: Dataset, values: np.ndarray, groupings: Groupings) -> Adjustment:
    """Way, weighting and strength: given, or those of most R@1 of the validation images.

    Without labels there is nothing to choose by: co-clustering draws lightly.
    """
    if params.labels == "none":
        return unmeasured(params, LIGHT, "labels=none, nothing to choose by")
    if not can_measure(data.labels[data.rows("validation")]):
        return unmeasured(params, 0.0, f"nothing to choose by, for {UNMEASURABLE}")
    held_out = np.concatenate(list(batches_of(values, rows_to_judge(data))))

    def measure(adjusted_rows: np.ndarray) -> float:
        return recall_of(torch.from_numpy(adjusted_rows), data)

    if params.shrinkage == "auto":
        return choose_adjustment(held_out, groupings, measure)
    strength = float(params.shrinkage)
    measured = choose_adjustment(held_out, groupings, measure, (strength,)).measured
    return Adjustment(CO_CLUSTERING if strength else NONE, 0.0, strength, measured, f"strength {strength:g} was given")


def unmeasured(params: Params, strength: float, why: str) -> Adjustment:
    """The given strength, else this one, taken on trust."""
    strength = strength if params.shrinkage == "auto" else float(params.shrinkage)
    way = CO_CLUSTERING if strength else NONE
    return Adjustment(way, 0.0, strength, {}, f"{why}: {way} at {strength:g}")


def adjusted(
    values: np.ndarray, adjustment: Adjustment, groupings: Groupings, assigned: dict[str, np.ndarray]
) -> Iterator[np.ndarray]:
    """The targets of all images, batch by batch."""
    batches = batches_of(values, np.arange(len(values)))
    if adjustment.by == NONE:
        yield from map(normalised, batches)
        return
    chosen = next(grouping for grouping in groupings[adjustment.by] if grouping.gamma == adjustment.gamma)
    start = 0
    for batch in batches:
        own = assigned[adjustment.by][start : start + len(batch)]
        yield chosen.adjusted(batch, own, adjustment.strength)
        start += len(batch)


def adjusting_rate(
    values: np.ndarray, adjustment: Adjustment, groupings: Groupings, grouped_by: dict[str, ClusterMap | KMeans]
) -> float:
    """How many images a second are placed in their cluster and adjusted; MOST_ROWS_SHOWN of them at most are timed.

    The adjustment is by one of the groupings; with none no cluster is asked for, and normalising alone would be timed.
    """
    some = np.concatenate(list(batches_of(values, few_of(np.arange(len(values))))))
    started = time.perf_counter()
    assigned = {adjustment.by: assigned_to(grouped_by[adjustment.by], some, np.arange(len(some)))}
    images = sum(len(batch) for batch in adjusted(some, adjustment, groupings, assigned))
    return round(images / max(time.perf_counter() - started, 1e-9), 1)


def describe(fitted: CoClustering, adjustment: Adjustment, seconds: float) -> dict[str, str | int | float]:
    """What is reported: clusters, what was chosen and its evidence."""
    recalls = {
        f"validation_recall_at_1_{way.replace('-', '_')}": recall
        for way in (NONE, CO_CLUSTERING, K_MEANS)
        if (recall := adjustment.best_of(way)) is not None
    }
    return {
        "clusters": fitted.clusters,
        "shrinkage": adjustment.strength,
        "block_gamma": adjustment.gamma,
        "adjusted_by": adjustment.by,
        **recalls,
        "leading_singular_value": fitted.cluster_map.spectrum.leading_singular_value,
        "zero_rows": fitted.zero_rows,
        "zero_columns": fitted.zero_columns,
        "seconds": round(seconds, 3),
        "images_per_second": round(fitted.rows / max(seconds, 1e-9), 1),
    }


def compare(assigned: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well the clusters agree with the classes of the same images."""
    return {"purity": purity(assigned, labels), "nmi": float(normalized_mutual_info_score(labels, assigned))}


def purity(assigned: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose label is the commonest of their cluster."""
    counts = np.zeros((assigned.max() + 2, labels.max() + 1), np.int64)
    np.add.at(counts, (assigned, labels), 1)
    return float(counts.max(axis=1).sum() / len(labels))


def draw(
    folder: Path, fitted: CoClustering, data: Dataset, values: np.ndarray, image_clusters: np.ndarray
) -> list[Path]:
    """The block-ordered matrix and sheets of images of every cluster, as files of the artifact; says where they lie."""
    train = data.rows("train")
    shown = few_of(train)
    matrix = fitted.cluster_map.matrix(np.concatenate(list(batches_of(values, shown))))
    block_matrix(matrix, image_clusters[shown], fitted.column_clusters, folder / BLOCK_MATRIX)
    sheets = cluster_sheets(data, train, image_clusters[train], folder)
    paths = [folder / BLOCK_MATRIX, *sheets]
    print("co_cluster: the clusters are drawn in", *paths, sep="\n  ", flush=True)
    return paths


if __name__ == "__main__":
    launch(co_cluster, Params)

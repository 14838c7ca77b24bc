"""Training without labels: images are assigned to clusters, a network learns to tell these apart, and assigns again."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrieval import distributed
from retrieval.cosine_layer import class_centres
from retrieval.k_means import spherical_k_means

LEAST_IMAGES = 2  # of a cluster: one image alone makes no pair to learn from


def self_train(
    labels: Tensor,
    rounds: int,
    train: Callable[[int, Tensor], None],
    embed: Callable[[], Tensor],
    seed: int,
    name: str = "labels=none",
) -> Tensor:
    """Train on an assignment, assign anew by what was learned, and train on; says how much each assignment moved.

    After DeepCluster (Caron et al., ECCV 2018), which assigns every epoch and refills empty clusters; here an
    assignment holds for a round, and what is in a cluster that is too small joins the nearest other one.

    Args:
        labels: (n,) int64 in 0..k-1, the first assignment.
        rounds: assignments to train on, the first one counted.
        train: called with the number of the round, from 0, and its labels.
        embed: the n rows (n, d) to assign by, as the network is now; called after every round but the last.
        seed: of k-means.
        name: of the step, for the log.

    Returns:
        The labels of the last round.
    """
    clusters = int(labels.max()) + 1
    for number in range(rounds):
        if number:
            before, labels = labels, reassign(embed(), clusters, seed + number)
            kept = agreement(before, labels)
            distributed.say(
                f"{name}: round {number + 1} of {rounds}: {int(labels.max()) + 1} clusters; {kept:.1%} of the images "
                "come from the cluster that most of their new one come from."
            )
        train(number, labels)
    return labels


def reassign(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """Spherical k-means afresh: (n, d) -> (n,) int64 in 0..k-1, at most `clusters`, none too small."""
    values = rows.float().cpu().numpy()
    found = spherical_k_means(values, min(clusters, len(values)), seed).assign(values)
    return merge_small(rows, torch.from_numpy(found))


def merge_small(rows: Tensor, clusters: Tensor, least: int = LEAST_IMAGES) -> Tensor:
    """Labels 0..k-1 of clusters of at least so many images; the images of others join the nearest of these by cosine.

    Args:
        rows: (n, d) float, by which nearness is judged.
        clusters: (n,) int64; -1 is no cluster, and its images join one too.
        least: images of a cluster.

    Raises:
        ValueError: fewer than two clusters are large enough.
    """
    numbers, counts = torch.unique(clusters[clusters >= 0], return_counts=True)
    large = numbers[counts >= least]
    if len(large) < 2:
        raise ValueError(
            f"{len(large)} of {len(numbers)} clusters have {least} images or more; to learn from clusters takes 2 to "
            "tell apart. Choose other co_clusters, or give more images; with labels=given adjust_epochs=0 needs none."
        )
    own = torch.searchsorted(large, clusters.clamp(min=0)).clamp(max=len(large) - 1)
    stays = large[own] == clusters
    centres = class_centres(rows[stays], own[stays])
    nearest = (normalize(rows, dim=1) @ centres.T).argmax(dim=1)
    return torch.where(stays, own, nearest)


def agreement(before: Tensor, after: Tensor) -> float:
    """Share of images that are in the commonest `before` of their `after`: the purity of one assignment in another."""
    counts = np.zeros((int(after.max()) + 1, int(before.max()) + 1), np.int64)
    np.add.at(counts, (after.numpy(), before.numpy()), 1)
    return float(counts.max(axis=1).sum() / len(after))

"""Three ways to draw the network to adjusted features, and none: R@1 on CIFAR-100 after adjusting and after a metric.

    python -m benchmarks.adjusting --location FOLDER --weights FILE --images 12500 --epochs 3 --metric-epochs 3
    python -m benchmarks.adjusting --location FOLDER --weights FILE --images 12500 --blocks

The teacher is a frozen squeezenet1_0 from --weights, average pooled, half-whitened on the training images. Co-clusters
are fitted on them, and the features shrunk towards their centres as far as validation gains. The four-layer network is
drawn to these features for --epochs, as finetune_metric does it, then trained by --loss for --metric-epochs. "none"
trains by the loss alone for as many epochs as both. R@1 is that of the validation images among themselves, cut from
the training part of CIFAR-100; the teacher takes no part in it. --blocks measures the teacher's features themselves:
blocks of dimensions weighted by their Fisher ratio^gamma, with and without drawing images to their clusters.
"""

import argparse
import contextlib
import io
import itertools
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.choices import TEACHER, TEACHER_DIMENSION, Trial, prepare, summary
from benchmarks.threads import keep_threads
from retrieval.adjusting import ADJUSTING, adjusting_objective
from retrieval.augmentation import named_augmentation
from retrieval.co_clustering import CoClustering, co_cluster
from retrieval.dataset import Dataset
from retrieval.devices import describe
from retrieval.feature_blocks import fisher_ratios, k_means_blocks
from retrieval.features import embed
from retrieval.integration import learn_integration
from retrieval.k_means import spherical_k_means
from retrieval.losses import LOSSES, MetricObjective
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel, ModelConfig, build_network
from retrieval.re_adjustment import (
    CO_CLUSTERING,
    GAMMAS,
    K_MEANS,
    NONE,
    STRENGTHS,
    choose_adjustment,
    weighted_groupings,
)
from retrieval.splits import UNMEASURABLE
from retrieval.training import ByLabel, Schedule, fit
from retrieval.validation import validation_recall_at_1
from retrieval.weights import load_weights

CLASSES = 100


@dataclass(frozen=True)
class Teacher:
    """Half-whitened features of the training images (m, D) and of the validation images (v, D), and the labels."""

    features: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray
    held_out_labels: np.ndarray

    def recall(self, rows: np.ndarray) -> float:
        """R@1 of adjusted rows (v, D) of the validation images among themselves."""
        return recall_at_1(torch.from_numpy(rows), torch.from_numpy(self.held_out_labels))


def teach(data: Dataset, trial: Trial, arguments: argparse.Namespace) -> Teacher:
    config = ModelConfig(TEACHER, 0, data.image_size, arguments.teacher_size, pooling="average", head="none")
    network = build_network(config)
    load_weights(network.backbone.trunk, TEACHER, str(arguments.weights))
    validation = data.rows("validation")
    with contextlib.redirect_stdout(io.StringIO()):
        pooled, held_out = (embed(network, data, rows, trial.device) for rows in (trial.rows, validation))
    integration = learn_integration(pooled, (pooled.shape[1],), TEACHER_DIMENSION)
    with torch.inference_mode():
        features, held_out = integration(pooled), integration(held_out)
    return Teacher(features.numpy(), held_out.numpy(), trial.labels.numpy(), data.labels[validation])


def adjusted_features(teacher: Teacher, fitted: CoClustering) -> Tensor:
    """The features (m, D) drawn to their co-clusters as far as validation gains; blocks keep their weight."""
    ones = np.ones(teacher.features.shape[1])
    (grouping,) = weighted_groupings(
        lambda: iter([(teacher.features, fitted.row_clusters)]),
        fitted.clusters,
        fitted.cluster_map.assign(teacher.held_out),
        ones,
        gammas=(0.0,),
    )
    chosen = choose_adjustment(teacher.held_out, {CO_CLUSTERING: [grouping]}, teacher.recall)
    print(f"{fitted.clusters} co-clusters: {fitted.why}; {chosen.why}", flush=True)
    return torch.from_numpy(grouping.adjusted(teacher.features, fitted.row_clusters, chosen.strength))


def compare_blocks(teacher: Teacher, fitted: CoClustering, seed: int) -> None:
    """R@1 of the validation images' features by way and gamma, at the best strength of each and at none."""
    train = teacher.features
    control = spherical_k_means(train, fitted.clusters, seed)
    of_images = {CO_CLUSTERING: fitted.cluster_map.assign, K_MEANS: control.assign}
    numbers = len(np.unique(fitted.dimension_clusters[fitted.dimension_clusters >= 0]))
    of_dimensions = {CO_CLUSTERING: fitted.dimension_clusters, K_MEANS: k_means_blocks(train, numbers, seed)}
    groupings = {}
    for way, assign in of_images.items():
        ratios = fisher_ratios([(train, teacher.labels)], of_dimensions[way], CLASSES)
        batches = partial(iter, [(train, assign(train))])
        groupings[way] = weighted_groupings(batches, fitted.clusters, assign(teacher.held_out), ratios)
    chosen = choose_adjustment(teacher.held_out, groupings, teacher.recall)
    print(f"{fitted.clusters} co-clusters, {numbers} blocks of {train.shape[1]} dimensions, seed {seed}: {chosen.why}")
    print(f"\n| seed {seed} | gamma | not drawn, % | drawn, % | strength |\n|---|---|---|---|---|")
    print(f"| none | 0 | {100 * chosen.measured[NONE, 0.0, 0.0]:.2f} | | |")
    for way, gamma in itertools.product(groupings, GAMMAS):
        plain = chosen.measured.get((way, gamma, 0.0), chosen.measured[NONE, 0.0, 0.0])
        drawn = {strength: chosen.measured[way, gamma, strength] for strength in STRENGTHS}
        best = max(drawn, key=lambda strength: drawn[strength])
        print(f"| {way} | {gamma:g} | {100 * plain:.2f} | {100 * drawn[best]:.2f} | {best:g} |", flush=True)


def run(way: str, targets: Tensor, clusters: Tensor, trial: Trial, seed: int) -> tuple[float, float]:
    """R@1 in % after adjusting, not a number for none, and in the end."""
    arguments, data, dimension = trial.arguments, trial.data, trial.arguments.dimensions[0]
    started = time.perf_counter()
    torch.manual_seed(seed)
    mean, std = trial.colours
    network = build_network(ModelConfig(dimension=dimension, image_size=data.image_size, mean=mean, std=std))
    after, epochs = float("nan"), arguments.epochs + arguments.metric_epochs
    if way != NONE:
        objective = adjusting_objective(way, targets, clusters, dimension)
        after, epochs = train(network, objective, arguments.epochs, None, trial, 2 * seed), arguments.metric_epochs
    objective = ByLabel(MetricObjective(arguments.loss, CLASSES, dimension))
    end = train(network, objective, epochs, trial.balanced, trial, 2 * seed + 1)
    print(
        f"  {way}, seed {seed}: {after:.2f} after adjusting, {end:.2f} in the end "
        f"({time.perf_counter() - started:.0f} s)",
        flush=True,
    )
    return after, end


def train(
    network: EmbeddingModel,
    objective: nn.Module,
    epochs: int,
    balanced: tuple[int, int] | None,
    trial: Trial,
    seed: int,
) -> float:
    """Train on, nothing without epochs; R@1 of the validation images among themselves, in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        if epochs:
            fit(
                network,
                objective,
                trial.images,
                trial.labels,
                Schedule(epochs, trial.rate(trial.arguments.dimensions[0])),
                batch_size=trial.arguments.batch_size,
                seed=seed,
                augment=named_augmentation(trial.augment.value),
                device=trial.device,
                name="adjusting",
                balanced=balanced,
            )
        found = validation_recall_at_1(network, trial.data, trial.device)
    if found is None:
        raise SystemExit(f"Nothing can be measured: {UNMEASURABLE}. Take more images.")
    return 100 * found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--weights", type=Path, required=True, help=f"state dict of {TEACHER}")
    parser.add_argument("--images", type=int, default=12_500, help="of CIFAR-100's training part, a fifth to validate")
    parser.add_argument("--epochs", type=int, default=3, help="of adjusting")
    parser.add_argument("--metric-epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=(NONE, *ADJUSTING), default=[NONE, *ADJUSTING])
    parser.add_argument("--loss", choices=list(LOSSES), default="normalised_softmax")
    parser.add_argument("--co-clusters", type=int, default=0, help="0 to have the number chosen")
    parser.add_argument("--teacher-size", type=int, default=64, help="px, to which images are enlarged for the teacher")
    parser.add_argument("--dimension", dest="dimensions", type=int, nargs=1, default=[256])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0 for the automatic one")
    parser.add_argument("--blocks", action="store_true", help="compare weightings of feature blocks; trains nothing")
    parser.add_argument("--device", default="auto")
    parser.set_defaults(source="cifar100", labels="fine", split="closed", image_size=32, quarter_turns=False)
    parser.set_defaults(test_fraction=0.0, validation_fraction=0.2, class_order="drawn", disjoint_by="class")
    arguments = parser.parse_args()
    keep_threads()
    arguments.images_per_class = arguments.images // CLASSES
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(arguments, Path(folder))
        trial = Trial(data, arguments)
        print(f"{len(trial.rows):,} to train, {len(data.rows('validation')):,} to validate; {describe(trial.device)}")
        teacher = teach(data, trial, arguments)
        everything = np.arange(len(teacher.features))
        fit_of = partial(co_cluster, teacher.features, everything, arguments.co_clusters, CLASSES)
        if arguments.blocks:
            for seed in arguments.seeds:
                compare_blocks(teacher, fit_of(seed), seed)
            return
        fitted = fit_of(seed=0)
        targets, clusters = adjusted_features(teacher, fitted), torch.from_numpy(fitted.row_clusters)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in arguments.ways}
        for seed in arguments.seeds:
            for way, values in found.items():
                values.append(run(way, targets, clusters, trial, seed))
    print(
        f"\n| drawn by | R@1 after {arguments.epochs} epochs of adjusting, % | and {arguments.metric_epochs} more, % |"
    )
    print("|---|---|---|")
    for way, values in found.items():
        after, end = zip(*values, strict=True)
        print(f"| {way} | {'' if way == NONE else summary(after)} | {summary(end)} |")


if __name__ == "__main__":
    main()

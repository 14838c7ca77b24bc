"""Draws the embedding network to the adjusted features, then trains it with a loss chosen from the data."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from components.finetune_metric.params import Params
from components.launch import InputPath, OutputPath, Outputs, launch
from retrieval import distributed
from retrieval.adjusting import adjusting_objective
from retrieval.augmentation import choose_augmentation, named_augmentation
from retrieval.backbones import enlarged_size
from retrieval.checkpoints import Checkpoints, open_checkpoints
from retrieval.choices import Choice, choose_learning_rate, choose_loss, measure_classes
from retrieval.clusters import Clusters, load_clusters
from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed
from retrieval.image_batches import ImageBatches
from retrieval.joining import join
from retrieval.losses import MetricObjective
from retrieval.metrics import recall_at_1
from retrieval.models import FOUR_LAYER, EmbeddingModel, ModelConfig, build_network, save_model
from retrieval.quarter_turns import QuarterTurns, turned_labels
from retrieval.sampling import batch_shape
from retrieval.self_labelling import merge_small, self_train
from retrieval.splits import UNMEASURABLE
from retrieval.tracking import StepRun, step_run
from retrieval.training import ByLabel, History, Schedule, fit
from retrieval.validation import searched_among, validation_recall_at_1

SEEDS_OF_A_ROUND = 1_000_000  # so far apart are the seeds of the rounds of labels=none


@dataclass(frozen=True)
class Training:
    """What the phases have in common.

    Attributes:
        params: the knobs.
        network: changed in place by each phase.
        images: to train on.
        chosen: loss, learning rate and augmentation.
        run: where curves go.
        checkpoints: where the state of each phase is kept.
    """

    params: Params
    network: EmbeddingModel
    images: ImageBatches
    chosen: dict[str, Choice]
    run: StepRun
    checkpoints: Checkpoints


def finetune_metric(params: Params, dataset: InputPath, clusters: InputPath, model: OutputPath) -> Outputs:
    """Decide what to train by, draw the network to the adjusted features, train it, measure it on validation."""
    device = pick_device(params.device)
    distributed.setup(device)
    data, adjusted = Dataset(dataset), load_clusters(clusters)
    rows, labels = training_labels(data) if params.labels == "given" else cluster_labels(data, adjusted)
    targets = targets_of(adjusted, rows, data)
    distributed.say(what_was_read(data, labels, targets, params, device))
    made_from = {"dataset": data.digest, "clusters": adjusted.manifest.digest}
    with open_checkpoints(params, made_from, __file__) as checkpoints, step_run("finetune_metric", params) as run:
        run.set_tags({"rankone.device": describe(device)})
        images = ImageBatches(data, rows, device)
        chosen = decide(params, targets, labels, images, run)
        torch.manual_seed(params.seed)
        network = build_network(network_config(params, data, rows))
        training = Training(params, network, images, chosen, run, checkpoints)
        adjusting = adjust(training, adjusted, rows, targets, labels)
        rounds = train_rounds(training, data, rows, targets, labels)
        if not distributed.is_first():
            return {}
        labelled = params.labels == "given"
        recall = validation_recall_at_1(network, data, device, name="finetune_metric: validate", labelled=labelled)
        phases = [adjusting, *rounds]
        seconds, seen = sum(phase.seconds for phase in phases), sum(phase.images for phase in phases)
        numbers = {"images_per_second": round(seen / seconds, 1)}
        numbers |= {} if recall is None else {"validation_recall_at_1": recall}
        if params.labels == "none":
            numbers |= beside_features(recall, adjusted, data)
        run.log_metrics(numbers)
        found = _percent(recall) + ("" if recall is None else f", searched among {searched_among(data, labelled)}")
        distributed.say(f"finetune_metric: R@1 of the validation images {found}.")
        described = {
            "network": params.network,
            "dimension": params.dimension,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "epochs": params.adjust_epochs + params.metric_epochs * len(rounds),
            "adjust_by": params.adjust_by if params.adjust_epochs else "none",
            **{name: choice.value for name, choice in chosen.items()},
            **{f"{name}_why": choice.why for name, choice in chosen.items()},
            **numbers,
        }
        save_model(model, network.cpu(), made_from, described | {"resize": data.resize, "labels": params.labels})
    return {"model": described}


def training_labels(data: Dataset) -> tuple[np.ndarray, Tensor]:
    """Rows of the training images (m,) and their labels as 0..c-1 (m,)."""
    rows = data.rows("train")
    classes, labels = np.unique(data.labels[rows], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"The training images have {len(classes)} class(es); a metric needs 2 or more. Check the split."
        )
    return rows, torch.from_numpy(labels)


def cluster_labels(data: Dataset, clusters: Clusters) -> tuple[np.ndarray, Tensor]:
    """Rows of the training images (m,) and their clusters as labels 0..k-1 (m,); their classes are not looked at."""
    rows = data.rows("train")
    targets = targets_of(clusters, rows, data)
    return rows, merge_small(targets, torch.tensor(clusters.image_clusters[rows]))


def targets_of(clusters: Clusters, rows: np.ndarray, data: Dataset) -> Tensor:
    """The adjusted features of the training images: (m, D) float32."""
    if len(clusters.targets) != len(data) or clusters.manifest.made_from.get("dataset") != data.digest:
        raise ValueError(
            f"The clusters hold targets of {len(clusters.targets):,} images, the dataset has {len(data):,}, and they "
            "were made from another dataset. Run co_cluster on this one."
        )
    return torch.from_numpy(np.asarray(clusters.targets[rows], np.float32))


def decide(params: Params, targets: Tensor, labels: Tensor, images: ImageBatches, run: StepRun) -> dict[str, Choice]:
    """Loss, rate and augmentation: as asked for, or as the data say; logged with the reasons."""
    facts = measure_classes(targets, labels)
    classes, per_class = batch_of(params, turned_labels(labels) if params.quarter_turns else labels)
    distributed.say(f"finetune_metric: batches of {classes:,} classes x {per_class} images.")
    chosen = {
        "loss": choose_loss(facts, params.loss),
        "learning_rate": choose_learning_rate(params.dimension, classes * per_class, params.learning_rate),
        "augment": choose_augmentation(images.get, labels, params.augment),
    }
    for name, choice in chosen.items():
        distributed.say(f"finetune_metric: {choice.why}")
        run.log_params({f"chosen_{name}": choice.value})
        run.set_tags({f"{name}_why": choice.why})
    run.log_metrics({f"data_{name}": value for name, value in chosen["loss"].facts.items() if value != math.inf})
    return chosen


def batch_of(params: Params, labels: Tensor, number: int = 0) -> tuple[int, int]:
    """Classes in a batch and images of each; those of a later round may be fewer than asked for, which is said.

    Args:
        params: what is asked for.
        labels: (m,) of the training images.
        number: of the round.
    """
    classes, asked = len(labels.unique()), params.classes_per_batch
    if number and asked > classes:
        distributed.say(f"finetune_metric: batches of {classes} classes for the {asked} asked for: there are no more.")
        asked = classes
    return batch_shape(classes, params.batch_size, asked, params.images_per_class)


def network_config(params: Params, data: Dataset, rows: np.ndarray) -> ModelConfig:
    """The network to train: layers as asked for, colours measured, images enlarged if a backbone would leave no map."""
    mean, std = colour_statistics(data, rows)
    return ModelConfig(
        architecture=params.network,
        dimension=params.dimension,
        image_size=data.image_size,
        network_size=0 if params.network == FOUR_LAYER else enlarged_size(params.network, data.image_size),
        mean=mean,
        std=std,
        pooling=params.pooling,
        channels=params.channel_counts,
        kernels=params.kernels,
        strides=params.strides,
        paddings=params.paddings,
        pools=params.pools,
        pool_kind=params.pool_kind,
        batch_norm=params.batch_norm,
    )


def adjust(training: Training, clusters: Clusters, rows: np.ndarray, targets: Tensor, labels: Tensor) -> History:
    """Draw the network to the adjusted features in the way asked for; nothing without epochs."""
    params = training.params
    if not params.adjust_epochs:
        return History()
    assigned = torch.tensor(clusters.image_clusters[rows])
    objective = adjusting_objective(params.adjust_by, targets, assigned, params.dimension)
    distributed.say(f"finetune_metric: drawn to the adjusted features by {params.adjust_by}.")
    return train(training, "adjust", objective, params.adjust_epochs, training.images, labels)


def train_rounds(training: Training, data: Dataset, rows: np.ndarray, targets: Tensor, labels: Tensor) -> list[History]:
    """Train by the labels; without given ones, by those that the network and the targets assign, round after round."""
    params, network, images = training.params, training.network, training.images
    to_train = QuarterTurns(images) if params.quarter_turns else images
    histories: list[History] = []

    def train_round(number: int, assigned: Tensor) -> None:
        assigned = turned_labels(assigned) if params.quarter_turns else assigned
        loss = ByLabel(MetricObjective(training.chosen["loss"].value, int(assigned.max()) + 1, params.dimension))
        histories.append(train(training, "metric", loss, params.metric_epochs, to_train, assigned, number))

    def embed_training_images() -> Tensor:
        distributed.same_everywhere(network)  # running statistics too: every process must assign alike
        embeddings = embed(network, data, rows, images.device, name="finetune_metric: assign")
        return join(embeddings, targets, 0.5)  # a few epochs know other things than the features, not more

    rounds = params.label_rounds if params.labels == "none" and params.metric_epochs else 1
    self_train(labels, rounds, train_round, embed_training_images, params.seed, "finetune_metric, labels=none")
    return histories


def beside_features(recall: float | None, clusters: Clusters, data: Dataset) -> dict[str, float]:
    """What training without labels added to the R@1 of the adjusted features among the validation images; said."""
    if recall is None:
        return {}
    rows = data.rows("validation")
    features = recall_at_1(torch.tensor(clusters.targets[rows]), torch.from_numpy(data.labels[rows]))
    distributed.say(
        f"finetune_metric: without labels, R@1 among the validation images is {recall:.1%}; that of the adjusted "
        f"features is {features:.1%}, so the network is {'ahead' if recall > features else 'not ahead'}."
    )
    return {"validation_recall_at_1_features": features, "without_labels_adds": recall - features}


def train(
    training: Training,
    phase: str,
    objective: nn.Module,
    epochs: int,
    images: ImageBatches | QuarterTurns,
    labels: Tensor,
    number: int = 0,
) -> History:
    """One of the two phases, "adjust" or "metric", or a round of it: train, log a curve; nothing without epochs."""
    if not epochs:
        return History()
    params, chosen = training.params, training.chosen
    first = 0 if phase == "adjust" else params.adjust_epochs + number * epochs

    def log(epoch: int, numbers: dict[str, float]) -> None:
        training.run.log_metrics({f"{phase}_loss": numbers.pop("loss"), **numbers}, step=first + epoch)

    return fit(
        training.network,
        objective,
        images,
        labels,
        Schedule(epochs, chosen["learning_rate"].value),
        batch_size=params.batch_size,
        seed=2 * params.seed + (phase == "metric") + SEEDS_OF_A_ROUND * number,
        augment=named_augmentation(chosen["augment"].value, params.robust),
        device=images.device,
        name=f"finetune_metric, {phase}",
        balanced=batch_of(params, labels, number) if phase == "metric" else None,
        on_epoch=log,
        compile=params.compile,
        checkpoint=training.checkpoints.of(f"{phase} {number}"),
    )


def what_was_read(data: Dataset, labels: Tensor, targets: Tensor, params: Params, device: torch.device) -> str:
    """The line a step begins with."""
    return (
        f"finetune_metric: {len(data):,} images of {data.image_size} px, {len(labels):,} of "
        f"{len(labels.unique()):,} classes to train on; targets of "
        f"{targets.shape[1]} dimensions; {params.network}, d = {params.dimension}; {describe(device)}; "
        f"seed {params.seed}."
    )


def _percent(recall: float | None) -> str:
    return f"cannot be measured: {UNMEASURABLE}" if recall is None else f"is {recall:.1%}"


if __name__ == "__main__":
    launch(finetune_metric, Params, every_rank=True)

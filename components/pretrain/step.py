"""Fine-tunes an image classifier and integrates its features into one vector an image."""

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.launch import InputPath, OutputPath, Outputs, launch
from components.pretrain.params import Params
from retrieval import distributed
from retrieval.augmentation import choose_augmentation, named_augmentation
from retrieval.backbones import IMAGENET_MEAN, IMAGENET_STD, least_image_size
from retrieval.checkpoints import Checkpoints, open_checkpoints
from retrieval.class_layer import ClassLayer
from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed, save_features
from retrieval.image_batches import ImageBatches
from retrieval.integration import learn_integration
from retrieval.models import EmbeddingModel, ModelConfig, build_network, save_model
from retrieval.splits import UNMEASURABLE, can_measure
from retrieval.tracking import StepRun, step_run
from retrieval.training import History, Schedule, fit
from retrieval.validation import recall_of, rows_to_judge, searched_among
from retrieval.weights import load_weights


def pretrain(params: Params, dataset: InputPath, backbone: OutputPath, features: OutputPath) -> Outputs:
    """Build the classifier, train it on the training images, integrate its features, embed every image."""
    device = pick_device(params.device)
    distributed.setup(device)
    data = Dataset(dataset)
    train = data.rows("train")
    distributed.say(_what_was_read(data, train, params, device))
    made_from = {"dataset": data.digest}
    with open_checkpoints(params, made_from, __file__) as checkpoints, step_run("pretrain", params) as run:
        run.set_tags({"rankone.device": describe(device)})
        torch.manual_seed(params.seed)
        network = build_network(classifier_config(params, data, train))
        digest = load_weights(network.backbone.trunk, params.classifier, params.weights)
        checkpoints.depend_on(weights=digest)
        history = fine_tune(network, data, train, params, device, run, checkpoints)
        if not distributed.is_first():
            return {}
        started = time.monotonic()
        pooled = embed(network, data, np.arange(len(data)), device, params.batch_size, "pretrain: embed")
        seconds = time.monotonic() - started
        model = integrated(network, pooled[train], params, device)
        with torch.inference_mode():
            values = model.head(pooled)
        widths = dict(zip(params.backbone_depths, network.backbone.widths, strict=True))
        numbers = validation_numbers(data, pooled, values, widths, labelled=params.labels == "given")
        numbers |= {"embedding_images_per_second": round(len(data) / seconds, 1)}
        if history.images:
            numbers |= {"images_per_second": round(history.images_per_second, 1)}
        facts: dict[str, Any] = {"weights_digest": digest, **numbers}
        if params.labels == "given":
            facts["classes"] = _classes(data, train)
        backbone_digest = save_model(backbone, model.cpu(), made_from, facts).digest
        save_features(features, values, data.digest, {"backbone": params.classifier, **numbers}, backbone_digest)
        numbers |= {"feature_dimension": model.dimension}
        run.log_metrics(numbers)
        described: dict[str, str | float] = {"backbone": params.classifier, "weights_digest": digest, **numbers}
    return {"backbone": described, "features": {"images": len(data), **described}}


def classifier_config(params: Params, data: Dataset, train: np.ndarray) -> ModelConfig:
    """The network whose pooled features are trained: sizes decided, colours measured or those of ImageNet."""
    least = least_image_size(params.classifier, params.backbone_depths)
    size = params.backbone_image_size or max(data.image_size, least)
    if size != data.image_size:
        distributed.say(
            f"pretrain: images of {data.image_size} px are brought to {size} px inside {params.classifier}."
        )
    from_scratch = params.weights == "none"
    mean, std = colour_statistics(data, train) if from_scratch else (IMAGENET_MEAN, IMAGENET_STD)
    return ModelConfig(
        architecture=params.classifier,
        dimension=0,
        image_size=data.image_size,
        network_size=size if size != data.image_size else 0,
        mean=mean,
        std=std,
        pooling="gem",
        head="none",
        depths=params.backbone_depths,
        power=params.feature_power,
    )


def fine_tune(
    network: EmbeddingModel,
    data: Dataset,
    train: np.ndarray,
    params: Params,
    device: torch.device,
    run: StepRun,
    checkpoints: Checkpoints,
) -> History:
    """Train a softmax layer over the training classes, first alone and then with the network; the latter is returned.

    Without epochs the network stays as it is.
    """
    if not params.pretrain_epochs:
        return History()
    if params.labels == "none":
        distributed.say(
            f"pretrain: labels=none: {params.classifier} stays as it is; only a classifier of classes could train it."
        )
        return History()
    images = ImageBatches(data, train, device)
    _, labels = np.unique(data.labels[train], return_inverse=True)
    targets = torch.from_numpy(labels)
    augment = choose_augmentation(images.get, targets, params.augment)
    warmup = warmup_epochs(params)
    distributed.say(f"pretrain: {images.describe()}; {augment.why}")
    run.log_params({"pretrain_augment_chosen": augment.value, "pretrain_warmup_epochs_chosen": warmup})
    layer = ClassLayer(network.dimension, int(labels.max()) + 1)

    def train_for(epochs: int, name: str, first: int) -> History:
        return fit(
            network,
            layer,
            images,
            targets,
            Schedule(epochs, params.pretrain_learning_rate),
            batch_size=params.batch_size,
            seed=2 * params.seed + (first > 0),
            augment=named_augmentation(augment.value),
            device=device,
            name=name,
            on_epoch=lambda epoch, numbers: run.log_metrics(numbers, step=first + epoch),
            compile=params.compile,
            checkpoint=checkpoints.of("network" if first or not warmup else "layer alone"),
        )

    if warmup:
        network.backbone.freeze()
        train_for(warmup, "pretrain, softmax layer alone", first=0)
        network.backbone.freeze(False)
    return train_for(params.pretrain_epochs, "pretrain", first=warmup)


def warmup_epochs(params: Params) -> int:
    """Epochs in which the network is frozen: as asked for, but none from scratch, which is said."""
    if params.weights != "none" or not params.pretrain_warmup_epochs:
        return params.pretrain_warmup_epochs
    distributed.say(
        f"pretrain: {params.classifier} from scratch: no warm-up, as the features of a random network are not worth "
        "a softmax layer of their own."
    )
    return 0


def integrated(network: EmbeddingModel, pooled: Tensor, params: Params, device: torch.device) -> EmbeddingModel:
    """The trained network with its integration, learned on the pooled features of the training images."""
    head = learn_integration(pooled, network.backbone.widths, params.feature_dimension, params.feature_power, device)
    dimension = head.projection.shape[1]
    if dimension < params.feature_dimension:
        distributed.say(
            f"pretrain: feature_dimension is {dimension}, not {params.feature_dimension}: {len(pooled)} training "
            f"images with {pooled.shape[1]} features of {params.classifier} span no more."
        )
    model = build_network(dataclasses.replace(network.config, head="integrated", dimension=dimension))
    model.network.load_state_dict(network.network.state_dict())
    model.head.load_state_dict(head.state_dict())
    return model.eval()


def validation_numbers(
    data: Dataset, pooled: Tensor, values: Tensor, widths: dict[int, int], labelled: bool = True
) -> dict[str, float]:
    """R@1 of the validation images: of each depth alone, of the depths laid end to end, and of the integrated ones.

    Args:
        data: the dataset.
        pooled: (n, D) features of all images, the depths laid end to end.
        values: (n, d) the same, integrated.
        widths: features of each depth, by its number and in the order of `pooled`.
        labelled: whether training images have classes, see validation.rows_to_judge.

    Returns:
        Numbers by name; none where R@1 cannot be measured on validation.
    """
    if not can_measure(data.labels[data.rows("validation")]):
        distributed.say(f"pretrain: R@1 is not measured: {UNMEASURABLE}.")
        return {}
    rows = rows_to_judge(data, labelled)
    parts = pooled[rows].split(list(widths.values()), dim=1)
    depths = {depth: recall_of(part, data) for depth, part in zip(widths, parts, strict=True)}
    together, integrated = recall_of(pooled[rows], data), recall_of(values[rows], data)
    alone = ", ".join(f"depth {depth} alone {recall:.1%}" for depth, recall in depths.items())
    distributed.say(
        f"pretrain: R@1 on validation: {alone}; laid end to end {together:.1%}; integrated {integrated:.1%}; searched "
        f"among {searched_among(data, labelled)}."
    )
    return {
        "validation_recall_at_1": integrated,
        "validation_recall_at_1_pooled": together,
        **{f"validation_recall_at_1_depth_{depth}": recall for depth, recall in depths.items()},
        "integration_adds": integrated - max(depths.values()),
    }


def _classes(data: Dataset, train: np.ndarray) -> int:
    return len(np.unique(data.labels[train]))


def _what_was_read(data: Dataset, train: np.ndarray, params: Params, device: torch.device) -> str:
    classes = "unknown"  # without labels one folder may hold all images
    if params.labels == "given":
        if (count := _classes(data, train)) < 2:
            raise ValueError(
                f"The training images have {count} class(es); a classifier needs 2 or more. Check the split, or give "
                "labels=none to learn from the images alone."
            )
        classes = f"{count:,}"
    return (
        f"pretrain: {len(data):,} images of {data.image_size} px, {len(train):,} of {classes} classes to train on; "
        f"{params.classifier} from {params.weights}; {describe(device)}; seed {params.seed}."
    )


if __name__ == "__main__":
    launch(pretrain, Params, every_rank=True)

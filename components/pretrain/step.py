"""Fine-tunes an image classifier and integrates its features into one vector an image."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.launch import InputPath, OutputPath, Outputs, launch
from components.pretrain.params import Params
from retrieval import distributed
from retrieval.augmentation import choose_augmentation, named_augmentation
from retrieval.backbones import IMAGENET_MEAN, IMAGENET_STD, least_image_size
from retrieval.class_layer import ClassLayer
from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed, save_features
from retrieval.image_batches import ImageBatches
from retrieval.integration import learn_integration
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel, ModelConfig, build_network, save_model
from retrieval.tracking import StepRun, step_run
from retrieval.training import History, Schedule, fit
from retrieval.weights import load_weights

IMAGES_TO_JUDGE = 10_000  # of which the augmentation is decided


def pretrain(params: Params, dataset: InputPath, backbone: OutputPath, features: OutputPath) -> Outputs:
    """Build the classifier, train it on the training images, integrate its features, embed every image."""
    device = pick_device(params.device)
    distributed.setup(device)
    data = Dataset(dataset)
    train = data.rows("train")
    _say(_what_was_read(data, train, params, device))
    with step_run("pretrain", params) as run:
        torch.manual_seed(params.seed)
        network = build_network(classifier_config(params, data, train))
        digest = load_weights(network.backbone.trunk, params.classifier, params.weights)
        history = fine_tune(network, data, train, params, device, run)
        if not distributed.is_first():
            return {}
        pooled = embed(network, data, np.arange(len(data)), device, params.batch_size, "pretrain: embed")
        model = integrated(network, pooled[train], params, device)
        with torch.inference_mode():
            values = model.head(pooled)
        numbers = validation_numbers(data, pooled, values)
        facts: dict[str, Any] = {"weights_digest": digest, "classes": _classes(data, train), **numbers}
        backbone_digest = save_model(backbone, model.cpu(), {"dataset": data.digest}, facts).digest
        save_features(features, values, data.digest, {"backbone": params.classifier, **numbers}, backbone_digest)
        numbers |= {"feature_dimension": model.dimension, "images_per_second": round(history.images_per_second, 1)}
        run.log_metrics(numbers)
        described: dict[str, str | float] = {"backbone": params.classifier, "weights_digest": digest, **numbers}
    return {"backbone": described, "features": {"images": len(data), **described}}


def classifier_config(params: Params, data: Dataset, train: np.ndarray) -> ModelConfig:
    """The network whose pooled features are trained: sizes decided, colours measured or those of ImageNet."""
    least = least_image_size(params.classifier, params.backbone_depths)
    size = params.backbone_image_size or max(data.image_size, least)
    if size != data.image_size:
        _say(f"pretrain: images of {data.image_size} px are brought to {size} px inside {params.classifier}.")
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
    network: EmbeddingModel, data: Dataset, train: np.ndarray, params: Params, device: torch.device, run: StepRun
) -> History:
    """Train the network under a softmax layer over the training classes; without epochs it stays as it is."""
    if not params.pretrain_epochs:
        return History()
    images = ImageBatches(data, train, device)
    _, labels = np.unique(data.labels[train], return_inverse=True)
    targets = torch.from_numpy(labels)
    some = torch.arange(0, len(train), max(1, len(train) // IMAGES_TO_JUDGE))
    augment = choose_augmentation(images.get(some), targets[some].to(device), params.augment)
    _say(f"pretrain: {images.describe()}; {augment.why}")
    run.log_params({"pretrain_augment_chosen": augment.value})
    return fit(
        network,
        ClassLayer(network.dimension, int(labels.max()) + 1),
        images,
        targets,
        Schedule(params.pretrain_epochs, params.pretrain_learning_rate),
        batch_size=params.batch_size,
        seed=params.seed,
        augment=named_augmentation(augment.value),
        device=device,
        name="pretrain",
        on_epoch=lambda epoch, numbers: run.log_metrics(numbers, step=epoch),
        compile=params.compile,
    )


def integrated(network: EmbeddingModel, pooled: Tensor, params: Params, device: torch.device) -> EmbeddingModel:
    """The trained network with its integration, learned on the pooled features of the training images."""
    head = learn_integration(pooled, network.backbone.widths, params.feature_dimension, params.feature_power, device)
    dimension = head.projection.shape[1]
    if dimension < params.feature_dimension:
        _say(
            f"pretrain: feature_dimension is {dimension}, not {params.feature_dimension}: {len(pooled)} training "
            f"images with {pooled.shape[1]} features of {params.classifier} span no more."
        )
    model = build_network(dataclasses.replace(network.config, head="integrated", dimension=dimension))
    model.network.load_state_dict(network.network.state_dict())
    model.head.load_state_dict(head.state_dict())
    return model.eval()


def validation_numbers(data: Dataset, pooled: Tensor, values: Tensor) -> dict[str, float]:
    """R@1 among the validation images, of pooled and of integrated features; empty without two images of a class."""
    rows = data.rows("validation")
    labels = torch.from_numpy(data.labels[rows])
    if len(rows) == len(labels.unique()):
        _say(f"pretrain: {len(rows)} validation images have no two of a class; R@1 is not measured.")
        return {}
    return {
        "validation_recall_at_1": recall_at_1(values[rows], labels),
        "validation_recall_at_1_pooled": recall_at_1(pooled[rows], labels),
    }


def _classes(data: Dataset, train: np.ndarray) -> int:
    return len(np.unique(data.labels[train]))


def _what_was_read(data: Dataset, train: np.ndarray, params: Params, device: torch.device) -> str:
    classes = _classes(data, train)
    if classes < 2:
        raise ValueError(
            f"The training images have {classes} class(es); a classifier needs 2 or more. Check the split."
        )
    return (
        f"pretrain: {len(data):,} images of {data.image_size} px, {len(train):,} of {classes} classes to train on; "
        f"{params.classifier} from {params.weights}; {describe(device)}; seed {params.seed}."
    )


def _say(line: str) -> None:
    if distributed.is_first():
        print(line, flush=True)


if __name__ == "__main__":
    launch(pretrain, Params, every_rank=True)

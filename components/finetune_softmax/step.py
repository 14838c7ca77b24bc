"""Fine-tunes the whole embedding network under a softmax layer over the classes."""

import numpy as np
import torch
from torch import Tensor

from components.finetune_softmax.params import Params
from components.launch import InputPath, OutputPath, Outputs, launch
from retrieval import distributed
from retrieval.augmentation import IMAGES_TO_JUDGE, choose_augmentation, named_augmentation
from retrieval.cosine_layer import CosineLayer, class_centres
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed
from retrieval.image_batches import ImageBatches
from retrieval.models import EmbeddingModel, load_model, read_model_manifest, save_model
from retrieval.tracking import StepRun, step_run
from retrieval.training import History, Schedule, fit
from retrieval.validation import validation_recall_at_1


def finetune_softmax(params: Params, dataset: InputPath, model: InputPath, tuned_model: OutputPath) -> Outputs:
    """Measure; begin a softmax layer at the class centres; train it with the network; measure again and say so."""
    device = pick_device(params.device)
    distributed.setup(device)
    data, network = Dataset(dataset), load_model(model, device)
    if params.labels == "none":
        return pass_through(network, data, model, tuned_model)
    rows = data.rows("train")
    names, labels = np.unique(data.labels[rows], return_inverse=True)
    distributed.say(
        f"finetune_softmax: {len(data):,} images of {data.image_size} px, {len(rows):,} of {len(names):,} classes to "
        f"train on; {network.config.architecture}, d = {network.dimension}; {describe(device)}; seed {params.seed}."
    )
    with step_run("finetune_softmax", params) as run:
        before = validation_recall_at_1(network, data, device, name="finetune_softmax: validate")
        centres = class_centres(embed(network, data, rows, device), torch.from_numpy(labels))
        layer = CosineLayer(centres, label_smoothing=params.label_smoothing)
        history = fine_tune(network, layer, ImageBatches(data, rows, device), torch.from_numpy(labels), params, run)
        if not distributed.is_first():
            return {}
        after = validation_recall_at_1(network, data, device, name="finetune_softmax: validate")
        numbers = {"images_per_second": round(history.images_per_second, 1), "softmax_loss": history.loss}
        recalls = {"validation_recall_at_1_before": before, "validation_recall_at_1": after}
        numbers |= {name: value for name, value in recalls.items() if value is not None}
        numbers |= validation_accuracy(network, layer, data, names, device)
        run.log_metrics(numbers)
        distributed.say(f"finetune_softmax: {what_it_did(before, after)}")
        described = {"epochs": params.softmax_epochs, "dimension": network.dimension, **numbers}
        made_from = {"dataset": data.digest, "model": read_model_manifest(model).digest}
        facts = described | {"softmax": what_it_did(before, after), "resize": data.resize}
        save_model(tuned_model, network.cpu(), made_from, facts)
    return {"tuned_model": described}


def pass_through(network: EmbeddingModel, data: Dataset, model: InputPath, tuned_model: OutputPath) -> Outputs:
    """Hand the model on as it came: without labels there are no classes for a softmax layer."""
    if not distributed.is_first():
        return {}
    why = "labels=none: no classes to put a softmax layer over; the model goes on as it came."
    distributed.say(f"finetune_softmax: {why}")
    manifest = read_model_manifest(model)
    made_from = {"dataset": data.digest, "model": manifest.digest}
    save_model(tuned_model, network.cpu(), made_from, {**manifest.facts, "softmax": why})
    return {"tuned_model": {"epochs": 0, "dimension": network.dimension, "softmax": why}}


def fine_tune(
    network: EmbeddingModel, layer: CosineLayer, images: ImageBatches, labels: Tensor, params: Params, run: StepRun
) -> History:
    """Train the network and the layer with a falling rate, weight decay and smoothed labels; log the curve."""
    some = torch.arange(0, len(labels), max(1, len(labels) // IMAGES_TO_JUDGE))
    augment = choose_augmentation(images.get(some), labels[some].to(images.device), params.augment)
    distributed.say(f"finetune_softmax: {images.describe()}; {augment.why}")
    run.log_params({"chosen_augment": augment.value})
    run.set_tags({"augment_why": augment.why})

    def log(epoch: int, numbers: dict[str, float]) -> None:
        run.log_metrics({"softmax_loss": numbers.pop("loss"), **numbers}, step=epoch)

    return fit(
        network,
        layer,
        images,
        labels,
        Schedule(params.softmax_epochs, params.softmax_learning_rate, params.weight_decay),
        batch_size=params.batch_size,
        seed=params.seed,
        augment=named_augmentation(augment.value, params.robust),
        device=images.device,
        name="finetune_softmax",
        on_epoch=log,
        compile=params.compile,
    )


def validation_accuracy(
    network: EmbeddingModel, layer: CosineLayer, data: Dataset, names: np.ndarray, device: torch.device
) -> dict[str, float]:
    """Share of validation images that the softmax layer names rightly; nothing when their classes are others."""
    rows = data.rows("validation")
    if not len(rows) or not np.isin(data.labels[rows], names).all():
        return {}
    embeddings = embed(network, data, rows, device, name="finetune_softmax: accuracy")
    with torch.inference_mode():
        answers = layer.cpu().logits(embeddings).argmax(1).numpy()
    return {"validation_accuracy": float((names[answers] == data.labels[rows]).mean())}


def what_it_did(before: float | None, after: float | None) -> str:
    """Whether fine-tuning raised R@1 on validation, in a sentence."""
    if before is None or after is None:
        return "R@1 cannot be measured: no two validation images share a class."
    verdict = "raised" if after > before else "did not raise"
    return f"the softmax layer {verdict} R@1 among the validation images: {before:.1%} before, {after:.1%} after."


if __name__ == "__main__":
    launch(finetune_softmax, Params, every_rank=True)

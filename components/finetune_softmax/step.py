"""Fine-tunes the whole embedding network under a softmax layer over the classes."""

import copy

import numpy as np
import torch
from torch import Tensor

from components.finetune_softmax.params import Params
from components.launch import InputPath, OutputPath, Outputs, launch
from retrieval import distributed
from retrieval.augmentation import choose_augmentation, named_augmentation
from retrieval.candidates import Candidate, Judge, better_of, digest_of_backbone, joined_with_features
from retrieval.checkpoints import Checkpoints, open_checkpoints
from retrieval.cosine_layer import CosineLayer, class_centres
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed
from retrieval.image_batches import ImageBatches
from retrieval.model_folder import read_model_manifest
from retrieval.models import EmbeddingModel, load_model, save_model
from retrieval.splits import UNMEASURABLE
from retrieval.tracking import StepRun, step_run
from retrieval.training import History, Schedule, fit

STAYS_TRUE = (  # of a model that goes on as it came, joined or not; its numbers are the other step's
    *("network", "adjust_by", "loss", "loss_why", "learning_rate", "learning_rate_why", "augment", "augment_why"),
    *("resize", "labels"),
)


def finetune_softmax(
    params: Params,
    dataset: InputPath,
    backbone: InputPath,
    features: InputPath,
    model: InputPath,
    tuned_model: OutputPath,
) -> Outputs:
    """Begin a softmax layer at the class centres, train it with the network, refine; the better model goes on."""
    device = pick_device(params.device)
    distributed.setup(device)
    data, network = Dataset(dataset), load_model(model, device)
    if params.labels == "none":
        with step_run("finetune_softmax", params):
            return without_labels(params.join, network, data, backbone, model, tuned_model)
    rows = data.rows("train")
    names, labels = np.unique(data.labels[rows], return_inverse=True)
    distributed.say(
        f"finetune_softmax: {len(data):,} images of {data.image_size} px, {len(rows):,} of {len(names):,} classes to "
        f"train on; {network.config.architecture}, d = {network.dimension}; {describe(device)}; seed {params.seed}."
    )
    made_from = {"dataset": data.digest, "model": read_model_manifest(model).digest}
    if params.join != "none":  # refused now, not after the training
        made_from |= {"backbone": digest_of_backbone(backbone, data, features)}
    with open_checkpoints(params, made_from, __file__) as checkpoints, step_run("finetune_softmax", params) as run:
        run.set_tags({"rankone.device": describe(device)})
        judge = Judge(data, torch.from_numpy(labels), params.refine, device)
        distributed.say(f"finetune_softmax: the validation images, which decide, are searched among {judge.among}.")
        embedded = judge.embed(network, "before")
        layer = CosineLayer(class_centres(embedded.train, judge.labels), label_smoothing=params.label_smoothing)
        before = judge.candidate("before", copy.deepcopy(network), embedded)
        history = fine_tune(network, layer, ImageBatches(data, rows, device), judge.labels, params, run, checkpoints)
        if not distributed.is_first():
            return {}
        learned = {"softmax_loss": history.loss, **validation_accuracy(network, layer, data, names, device)}
        after = judge.candidate("after", network, judge.embed(network, "after"))
        chosen = joined_with_features(params.join, better_of(before, after), judge, backbone, features)
        numbers = {"images_per_second": round(history.images_per_second, 1)}
        numbers |= validation_numbers(before, after, chosen)
        run.log_metrics(numbers | learned)
        decided = decisions(before, after, chosen)
        why = {name: str(reason) for name, reason in decided.items() if name.endswith("_why")}
        for sentence in why.values():
            distributed.say(f"finetune_softmax: {sentence}")
        run.set_tags(why)
        tuned = decided["softmax"] == "fine-tuned"  # else loss and accuracy are of a model that was left
        trained = {"epochs": params.softmax_epochs, **learned} if tuned else {"epochs": 0}
        described = {**trained, "dimension": chosen.model.dimension, **numbers}
        known = {"resize": data.resize, "labels": params.labels, "validation_searched_among": judge.among}
        save_model(tuned_model, chosen.model.cpu(), made_from, described | decided | known)
    return {"tuned_model": described}


def decisions(before: Candidate, after: Candidate, chosen: Candidate) -> dict[str, str | float]:
    """What was decided on the way to the model that goes on, each with its reason."""
    better, config = better_of(before, after), chosen.model.config
    return {
        "softmax": "fine-tuned" if better is after else "as it came",
        "softmax_why": what_it_did(before, after, better),
        "joined": config.joined_share if config.joined else "none",
        "joined_why": chosen.joined_why,
        "refinement": config.refined_strength if config.refined_dimension else "none",
        "refinement_why": chosen.refinement_why,
    }


def validation_numbers(before: Candidate, after: Candidate, chosen: Candidate) -> dict[str, float]:
    """R@1 of the validation images before and after, each plain and refined, and of what goes on."""
    named = {
        "validation_recall_at_1_before": before.plain_recall_at_1,
        "validation_recall_at_1_before_refined": before.recall_at_1,
        "validation_recall_at_1_after": after.plain_recall_at_1,
        "validation_recall_at_1_after_refined": after.recall_at_1,
        "validation_recall_at_1": chosen.recall_at_1,
    }
    return {name: recall for name, recall in named.items() if recall is not None}


def without_labels(
    join: str, network: EmbeddingModel, data: Dataset, backbone: InputPath, model: InputPath, tuned_model: OutputPath
) -> Outputs:
    """Hand the model on as it came, joined with the features if a share is given: there is no class to train by."""
    if not distributed.is_first():
        return {}
    manifest = read_model_manifest(model)
    made_from = {"dataset": data.digest, "model": manifest.digest}
    why = "labels=none: no classes to put a softmax layer over; the model goes on as it came."
    facts = {"labels": "none"} | {name: manifest.facts[name] for name in STAYS_TRUE if name in manifest.facts}
    facts |= {"epochs": 0, "softmax": "as it came", "softmax_why": why}
    distributed.say(f"finetune_softmax: {why}")
    if join != "none":
        made_from |= {"backbone": digest_of_backbone(backbone, data)}
        network = network.cpu().joined_with(load_model(backbone), float(join))
        facts |= {"joined": float(join), "joined_why": f"features of pretrain joined: share {float(join):g}, asked for"}
        distributed.say(f"finetune_softmax: {facts['joined_why']}")
    save_model(tuned_model, network.cpu(), made_from, facts | {"dimension": network.dimension})
    return {"tuned_model": {"epochs": 0, "dimension": network.dimension, "softmax": why}}


def fine_tune(
    network: EmbeddingModel,
    layer: CosineLayer,
    images: ImageBatches,
    labels: Tensor,
    params: Params,
    run: StepRun,
    checkpoints: Checkpoints,
) -> History:
    """Train the network and the layer with a falling rate, weight decay and smoothed labels; log the curve."""
    augment = choose_augmentation(images.get, labels, params.augment)
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
        averaged_from=params.average_from if params.average_from < 1 else None,
        compile=params.compile,
        checkpoint=checkpoints.of("network"),
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


def what_it_did(before: Candidate, after: Candidate, chosen: Candidate) -> str:
    """Whether fine-tuning raised R@1 on validation, and which model goes on, in a sentence."""
    if before.recall_at_1 is None or after.recall_at_1 is None:
        return f"R@1 cannot be measured: {UNMEASURABLE}; the fine-tuned model goes on."
    verdict = "raised" if after.recall_at_1 > before.recall_at_1 else "did not raise"
    goes_on = "fine-tuned model" if chosen is after else "model as it came"
    return (
        f"the softmax layer {verdict} R@1 of the validation images: {before.recall_at_1:.1%} before, "
        f"{after.recall_at_1:.1%} after; the {goes_on} goes on."
    )


if __name__ == "__main__":
    launch(finetune_softmax, Params, every_rank=True)

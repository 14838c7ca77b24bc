"""The knobs of finetune_softmax."""

from dataclasses import dataclass

from components.knobs import (
    AUGMENTATIONS,
    DEVICES,
    LABELS,
    ROBUST,
    check_checkpoints,
    check_choices,
    check_least,
    check_rates,
    check_seed,
    is_auto_or_number,
)


@dataclass(frozen=True)
class Params:
    """How the whole network is fine-tuned under a softmax layer.

    Attributes:
        softmax_epochs: passes over the training images.
        softmax_learning_rate: highest rate of SGD; it rises over a fifth of the steps, then falls along a cosine.
        weight_decay: of all weights; biases and norms do not decay.
        label_smoothing: share of each label that is spread over all classes, from 0 to below 1.
        average_from: share of the steps after which the weights of all further steps are averaged; 1 averages none.
        refine: how the embeddings are refined at the end: auto (as validation images gain by it), none, or how far they
            are drawn to the centres of the training classes after half-whitening, from 0 (whitened only) to 1. With
            labels=none there is nothing to learn it from: auto or none.
        join: whether the features of pretrain are laid beside the embedding: none, auto (as validation images gain by
            it), or their share in the similarity, from 0 to 1. The model then carries both networks and embeds at the
            speed of both. With labels=none, which sees no gain, none or a share.
        batch_size: images at once.
        augment: auto (decided from the images), or the name of an augmentation.
        robust: none, or missing: embeddings are to withstand missing parts, so up to 60 % of every eighth training
            image is hidden.
        labels: given, or none: the model goes on as it came, but for `join`.
        compile: run the network through torch.compile.
        checkpoints: where the state of the training is kept, so that a step that is tried again goes on there: a folder
            or s3://bucket/prefix; empty for the place that `rankone run` names, elsewhere for none.
        checkpoint_seconds: seconds between two states of a training that are kept; 0 keeps none.
        seed: of every random choice.
        device: auto, cpu or cuda.
    """

    softmax_epochs: int = 6
    softmax_learning_rate: float = 0.02
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    average_from: float = 1.0
    refine: str = "auto"
    join: str = "none"
    batch_size: int = 128
    augment: str = "auto"
    robust: str = "none"
    labels: str = "given"
    compile: bool = False
    checkpoints: str = ""
    checkpoint_seconds: float = 60.0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_checkpoints(self)
        check_choices(self, augment=AUGMENTATIONS, robust=ROBUST, labels=LABELS, device=DEVICES)
        check_least(self, softmax_epochs=1, batch_size=2)
        check_seed(self)
        check_rates(self, "softmax_learning_rate")
        if self.refine != "none" and not is_auto_or_number(self.refine, 0, 1):
            raise ValueError(f"refine is '{self.refine}'; give auto, none or a number from 0 to 1, e.g. 0.4.")
        if self.join != "none" and not is_auto_or_number(self.join, 0, 1):
            raise ValueError(f"join is '{self.join}'; give none, auto or a number from 0 to 1, e.g. 0.5.")
        if self.join == "auto" and self.labels == "none":
            raise ValueError("join is 'auto' with labels=none, where no class says what gains; give a share, e.g. 0.5.")
        if self.labels == "none" and self.refine not in ("auto", "none"):
            raise ValueError(
                f"refine is '{self.refine}' with labels=none, where the model goes on as it came: there are no classes "
                "to draw embeddings to. Leave refine at auto, or give labels."
            )
        if not 0 <= self.average_from <= 1:
            raise ValueError(f"average_from is {self.average_from}; it is a share of the steps, from 0 to 1.")
        if not 0 <= self.weight_decay < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"weight_decay is {self.weight_decay} and label_smoothing {self.label_smoothing}; both must be "
                "from 0 to below 1."
            )

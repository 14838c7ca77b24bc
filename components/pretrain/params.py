"""The knobs of pretrain."""

import re
from dataclasses import dataclass

from components.knobs import (
    AUGMENTATIONS,
    BACKBONES,
    DEVICES,
    LABELS,
    check_checkpoints,
    check_choices,
    check_least,
    check_rates,
    check_seed,
)


@dataclass(frozen=True)
class Params:
    """How the classifier is trained and its features are made.

    Attributes:
        classifier: network of torchvision that gives the features, e.g. resnet18, resnet50, alexnet, vgg16,
            mobilenet_v2 or squeezenet1_0.
        weights: what the classifier begins with: none (from scratch), imagenet (downloaded), the path of a file of
            weights, or s3://bucket/key.
        weights_fingerprint: digest of that file, set by `rankone run` so that the step cache sees another one.
        backbone_image_size: height and width in pixels to which images are brought inside the network; 0 for as they
            are stored, or the least that leaves a map. Networks trained on ImageNet want 128 or more.
        backbone_depths: which feature maps are taken, counted from the end; 1 is the last, 2 the last one before the
            resolution halves, and so on.
        pretrain_warmup_epochs: passes before pretrain_epochs, in which the softmax layer alone trains and the network
            is frozen; none from scratch, where a frozen network knows nothing.
        pretrain_epochs: passes over the training images with all layers; 0 leaves the network as it is.
        pretrain_learning_rate: highest rate; from ImageNet weights about 0.01 is enough.
        feature_dimension: length of the integrated feature vector; fewer where backbone or images give fewer.
        feature_power: power of the features before they are integrated; 0.5 tames bursts, 1 keeps them.
        batch_size: images at once.
        augment: auto (decided from the images), or the name of an augmentation.
        labels: given, or none: the network is not trained, as that needs the classes; its features are integrated only.
        compile: run the network through torch.compile.
        checkpoints: where the state of the training is kept, so that a step that is tried again goes on there: a folder
            or s3://bucket/prefix; empty for the place that `rankone run` names, elsewhere for none.
        checkpoint_seconds: seconds between two states of a training that are kept; 0 keeps none.
        seed: of every random choice.
        device: auto, cpu or cuda.
    """

    classifier: str = "resnet18"
    weights: str = "none"
    weights_fingerprint: str = ""
    backbone_image_size: int = 0
    backbone_depths: tuple[int, ...] = (1, 2, 3)
    pretrain_warmup_epochs: int = 1
    pretrain_epochs: int = 5
    pretrain_learning_rate: float = 0.03
    feature_dimension: int = 256
    feature_power: float = 0.5
    batch_size: int = 128
    augment: str = "auto"
    labels: str = "given"
    compile: bool = False
    checkpoints: str = ""
    checkpoint_seconds: float = 60.0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_checkpoints(self)
        check_choices(self, classifier=BACKBONES, augment=AUGMENTATIONS, labels=LABELS, device=DEVICES)
        check_least(self, pretrain_warmup_epochs=0, pretrain_epochs=0, feature_dimension=1, batch_size=2)
        check_seed(self)
        check_rates(self, "pretrain_learning_rate")
        if not self.weights:
            raise ValueError("weights is empty; give none, imagenet, a path or s3://bucket/key.")
        if self.weights.startswith("s3://") and not re.fullmatch(r"s3://[^/]+/.*[^/]", self.weights):
            raise ValueError(f"weights is '{self.weights}', which names no object; give s3://bucket/key.")
        if self.backbone_image_size < 0:
            raise ValueError(
                f"backbone_image_size is {self.backbone_image_size}; give pixels, or 0 for as they are stored."
            )
        if not self.backbone_depths or min(self.backbone_depths) < 1:
            raise ValueError(f"backbone_depths is {list(self.backbone_depths)}; name one map or more, 1 is the last.")
        if not 0 < self.feature_power <= 1:
            raise ValueError(f"feature_power is {self.feature_power}; it must be above 0 and at most 1.")

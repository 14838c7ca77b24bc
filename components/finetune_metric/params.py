"""The knobs of finetune_metric."""

from dataclasses import dataclass, fields

from components.knobs import (
    AUGMENTATIONS,
    BACKBONES,
    DEVICES,
    LABELS,
    ROBUST,
    check_checkpoints,
    check_choices,
    check_least,
    check_seed,
    is_auto_or_number,
)

LEAST_RATE = 1e-12
LOSSES = (
    *("auto", "normalised_softmax", "cosine_margin", "contrastive", "triplet", "multi_similarity", "proxy_anchor"),
    *("recall_at_k", "softmax_multi_similarity", "softmax_triplet"),
)
POOLINGS = ("auto", "gem", "average", "max", "flatten")
POOL_KINDS = ("max", "average")
ADJUST_BY = ("relations", "clusters", "centres")
LEAST_IMAGES_OF_RELATIONS = 3
MOST_DIMENSIONS = 65_536  # the whole last map of the default network in 16 times as many numbers
RATIO = 2.0  # alpha and beta where nothing else is said: the usual doubling wherever the map is halved
RATIO_LIMIT = 1000.0  # far beyond any network; no count of channels overflows
FOUR_LAYER = "four_layer"
FOUR_LAYER_KNOBS = ("channels", "alpha", "beta", "kernels", "strides", "paddings", "pools", "pool_kind", "batch_norm")


@dataclass(frozen=True)
class Params:
    """The network and how it is drawn to the adjusted features and trained by a metric.

    Attributes:
        network: four_layer (three convolutions and one fully connected layer), or a classifier of torchvision, e.g.
            resnet18, trained from scratch.
        dimension: length of the embedding, e.g. 128, 256 or 512.
        channels: output channels of the three convolutions of four_layer; or of the first alone, the others following
            from alpha and beta.
        alpha: channels of the second convolution over those of the first, c2 = round(alpha * c1).
        beta: channels of the third convolution over those of the second, c3 = round(beta * c2).
        kernels: windows of the convolutions of four_layer, one number a layer, or two (height, width).
        strides: steps of the convolutions of four_layer, one number a layer, or two (down, right).
        paddings: zeros around the maps of four_layer, one number a layer, two (top and bottom, left and right) or four
            (left, right, top, bottom).
        pools: window of the pooling after each convolution of four_layer; 1 for none.
        pool_kind: max or average, of the poolings after the convolutions of four_layer.
        pooling: how the last map becomes a vector: gem, average, max or flatten; auto is flatten for four_layer, gem
            for the others.
        batch_norm: whether batch norm follows each convolution of four_layer.
        loss: auto (chosen from the classes), normalised_softmax, cosine_margin, contrastive, triplet, multi_similarity,
            proxy_anchor, recall_at_k, softmax_multi_similarity or softmax_triplet.
        learning_rate: auto (from the dimension and the batch), or the highest rate of SGD.
        adjust_epochs: passes over the training images in which the network is drawn to the adjusted features.
        adjust_by: what draws the network to the adjusted features: relations (cosines among images), clusters (soft
            labels for a softmax layer over the co-clusters) or centres (of the co-clusters, as proxies). On CIFAR-100
            centres did best, but were not shown to beat adjust_epochs=0 with as many metric_epochs more.
        metric_epochs: passes over the training images with the loss.
        classes_per_batch: different classes in a batch; 0 for as many as batch_size holds at 4 images each.
        images_per_class: images of each class in a batch; 0 for as many as batch_size holds.
        batch_size: images at once.
        augment: auto (decided from the images), or the name of an augmentation.
        quarter_turns: whether an image turned by 90, 180 and 270 degrees is one of further classes for the loss, as
            for characters of few images each. An epoch of the loss is then four times as long.
        robust: none, or missing: embeddings are to withstand missing parts, so up to 60 % of every eighth training
            image is hidden.
        labels: given, or none: the images' clusters are the classes to train by, and after each round the images are
            assigned anew. Give pretrain, co_cluster and finetune_softmax the same.
        label_rounds: with labels=none, assignments to train on, metric_epochs each.
        compile: run the network through torch.compile.
        checkpoints: where the state of the training is kept, so that a step that is tried again goes on there: a folder
            or s3://bucket/prefix; empty for the place that `rankone run` names, elsewhere for none.
        checkpoint_seconds: seconds between two states of a training that are kept; 0 keeps none.
        seed: of every random choice.
        device: auto, cpu or cuda.
    """

    network: str = FOUR_LAYER
    dimension: int = 256
    channels: tuple[int, ...] = (64,)
    alpha: float = RATIO
    beta: float = RATIO
    kernels: tuple[int, ...] = (3, 3, 3)
    strides: tuple[int, ...] = (1, 1, 1)
    paddings: tuple[int, ...] = (1, 1, 1)
    pools: tuple[int, ...] = (2, 2, 2)
    pool_kind: str = "max"
    pooling: str = "auto"
    batch_norm: bool = True
    loss: str = "auto"
    learning_rate: str = "auto"
    adjust_epochs: int = 2
    adjust_by: str = "centres"
    metric_epochs: int = 6
    classes_per_batch: int = 0
    images_per_class: int = 0
    batch_size: int = 128
    augment: str = "auto"
    quarter_turns: bool = False
    robust: str = "none"
    labels: str = "given"
    label_rounds: int = 3
    compile: bool = False
    checkpoints: str = ""
    checkpoint_seconds: float = 60.0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_checkpoints(self)
        check_choices(self, network=(FOUR_LAYER, *BACKBONES), loss=LOSSES, augment=AUGMENTATIONS, device=DEVICES)
        check_choices(self, pooling=POOLINGS, pool_kind=POOL_KINDS, robust=ROBUST, labels=LABELS)
        check_choices(self, adjust_by=ADJUST_BY)
        check_least(self, dimension=2, batch_size=2, adjust_epochs=0, metric_epochs=0, label_rounds=1)
        if self.dimension > MOST_DIMENSIONS:
            raise ValueError(f"dimension is {self.dimension:,}; it must be {MOST_DIMENSIONS:,} or less.")
        check_seed(self)
        self._check_layers()
        self._check_ratios()
        self._check_network()
        if not is_auto_or_number(self.learning_rate, LEAST_RATE):
            raise ValueError(f"learning_rate is '{self.learning_rate}'; give auto or a number above 0, e.g. 0.05.")
        if self.adjust_epochs + self.metric_epochs == 0:
            raise ValueError("adjust_epochs and metric_epochs are both 0: nothing would be trained; raise one.")
        if self.adjust_by == "relations" and self.adjust_epochs and self.batch_size < LEAST_IMAGES_OF_RELATIONS:
            raise ValueError(
                f"batch_size is {self.batch_size} with adjust_by=relations, which are learned from how pairs differ: "
                f"give {LEAST_IMAGES_OF_RELATIONS} images or more, or another adjust_by."
            )
        for name in ("classes_per_batch", "images_per_class"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; a metric loss needs pairs of one class and of different ones: "
                    "give 2 or more, or 0 to have it from batch_size."
                )

    @property
    def channel_counts(self) -> tuple[int, int, int]:
        """Channels of the three convolutions; a half is rounded to the even number."""
        if len(self.channels) == 3:
            first, second, third = self.channels
        else:
            first = self.channels[0]
            second = round(self.alpha * first)
            third = round(self.beta * second)
        return first, second, third

    def _check_layers(self) -> None:
        for name, counts, least in [
            ("channels", (1, 3), 1),
            ("kernels", (3, 6), 1),
            ("strides", (3, 6), 1),
            ("paddings", (3, 6, 12), 0),
            ("pools", (3,), 1),
        ]:
            values = getattr(self, name)
            if len(values) not in counts:
                wanted = " or ".join(str(count) for count in counts)
                raise ValueError(f"{name} has {len(values)} numbers; three convolutions need {wanted}.")
            if min(values) < least:
                raise ValueError(f"{name} is {list(values)}; every number must be at least {least}.")

    def _check_ratios(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 < value <= RATIO_LIMIT:
                raise ValueError(f"{name} is {value}; a ratio of channels must be above 0, at most {RATIO_LIMIT:g}.")
            if len(self.channels) == 3 and value != RATIO:
                raise ValueError(
                    f"{name} is {value} and channels {list(self.channels)} names all three layers; give the first "
                    f"layer's channels alone, or leave {name} out."
                )
        if min(self.channel_counts) < 1:
            raise ValueError(
                f"channels {list(self.channels)} with alpha {self.alpha} and beta {self.beta} gives layers of "
                f"{list(self.channel_counts)} channels; every layer needs 1 or more: raise the ratios or channels."
            )

    def _check_network(self) -> None:
        """Refuse what a classifier of torchvision would drop in silence: its layers are its own."""
        if self.network == FOUR_LAYER:
            return
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in FOUR_LAYER_KNOBS and value != field.default:
                raise ValueError(
                    f"{field.name} is {_shown(value)} and network is {self.network}, which has layers of its own; "
                    f"leave {field.name} at {_shown(field.default)}, or take network={FOUR_LAYER}."
                )


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value).lower()

"""Embedding networks: what they are made of, how they are saved, and how they come back without the data."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from retrieval.backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone
from retrieval.integration import Integration
from retrieval.joining import join
from retrieval.layer_shapes import AUTO_POOLING, FOUR_LAYER
from retrieval.manifest import Manifest, write_manifest
from retrieval.model_folder import CONFIG, FORMAT_VERSION, KIND, WEIGHTS, read_model_manifest
from retrieval.networks import FourLayer
from retrieval.refinement import Refinement

HEADS = ("linear", "integrated", "none")


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights that it takes to build an embedding network.

    Attributes:
        architecture: "four_layer" or the name of a backbone.
        dimension: d, the length of the embedding; 0 for head "none", whose length is that of the features.
        image_size: height and width of the images that come in.
        network_size: height and width to which they are brought inside, 0 for as they come: networks made for ImageNet
            want more than 32 px.
        mean: of the colours, R, G and B in [0, 1]; taken off inside.
        std: of the colours; divided by inside.
        pooling: how the last map becomes a vector, one of POOLINGS; "auto" is "flatten" for four_layer, else "gem".
        head: what makes the embedding of a backbone's features: "linear" (a layer to train), "integrated" (half
            PCA-whitening, see retrieval/integration.py) or "none" (the features themselves).
        depths: which maps of a backbone are taken, counted from the end.
        power: of a backbone's features before they are integrated.
        channels: of the three convolutions of four_layer; see retrieval/layer_shapes.py, as for the next six.
        kernels: sizes of the windows.
        strides: steps of the windows.
        paddings: zeros around the map.
        pools: windows of the poolings after each convolution, 1 for none.
        pool_kind: "max" or "average".
        batch_norm: whether batch norm follows each convolution.
        joined: the model whose features are laid beside the embedding (see retrieval/joining.py); None for none.
        joined_share: how much they count in the similarity, from 0 to 1.
        refined_dimension: length of the refined embedding (see retrieval/refinement.py); 0 for no refinement.
        refined_classes: centres that refined embeddings are drawn to.
        refined_strength: how far they are drawn, from 0 to 1.
    """

    architecture: str = FOUR_LAYER
    dimension: int = 256
    image_size: int = 32
    network_size: int = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    pooling: str = "auto"
    head: str = "linear"
    depths: tuple[int, ...] = (1,)
    power: float = 0.5
    channels: tuple[int, ...] = (64, 128, 256)
    kernels: tuple[int, ...] = (3, 3, 3)
    strides: tuple[int, ...] = (1, 1, 1)
    paddings: tuple[int, ...] = (1, 1, 1)
    pools: tuple[int, ...] = (2, 2, 2)
    pool_kind: str = "max"
    batch_norm: bool = True
    joined: "ModelConfig | None" = None
    joined_share: float = 0.0
    refined_dimension: int = 0
    refined_classes: int = 0
    refined_strength: float = 0.0

    def __post_init__(self) -> None:
        known = (FOUR_LAYER, *BACKBONES)
        if self.architecture not in known:
            raise ValueError(f"Unknown architecture '{self.architecture}'; choose one of: {', '.join(known)}.")
        if self.head not in HEADS:
            raise ValueError(f"Unknown head '{self.head}'; choose one of: {', '.join(HEADS)}.")
        if self.architecture == FOUR_LAYER and self.head != "linear":
            raise ValueError(
                f"head is '{self.head}'; {FOUR_LAYER} has a fully connected layer of its own: use 'linear'."
            )
        if (self.dimension == 0) != (self.head == "none") or self.dimension < 0:
            raise ValueError(
                f"dimension is {self.dimension} for head '{self.head}'; it must be 0 for 'none', else 1 or more."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean is {self.mean} and std {self.std}; give three numbers each, std above 0.")
        if self.image_size < 1 or self.network_size < 0:
            raise ValueError(
                f"image_size is {self.image_size} and network_size {self.network_size}; sizes are 1 px or more, and "
                "network_size 0 keeps the images as they come."
            )
        if self.joined is not None and (self.joined.image_size != self.image_size or not 0 <= self.joined_share <= 1):
            raise ValueError(
                f"The model joined takes images of {self.joined.image_size} px with a share of {self.joined_share}; it "
                f"must take the same images, of {self.image_size} px, with a share from 0 to 1."
            )
        if self.refined_dimension and (self.refined_classes < 1 or not 0 <= self.refined_strength <= 1):
            raise ValueError(
                f"refined_classes is {self.refined_classes} and refined_strength {self.refined_strength}; a refinement "
                "has 1 centre or more and a strength from 0 to 1."
            )

    @property
    def size_inside(self) -> int:
        """Height and width of the images that the first layer sees."""
        return self.network_size or self.image_size


class EmbeddingModel(nn.Module):
    """Images to embeddings: colours are normalised and sizes changed inside, so that images come as they are stored.

    Attributes:
        config: what it was built from.
        dimension: length of the embedding.
        network: FourLayer, or the Backbone with its pooled features.
        head: a linear layer, the integration, or nothing.
        joined: the model whose features are laid beside the embedding, or None.
        refinement: the last touch on the embedding, or nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build it with random weights, from torch's own generator."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.network: FourLayer | Backbone
        self.head: nn.Module
        self.network, self.head = _four_layer(config) if config.architecture == FOUR_LAYER else _backbone(config)
        self.joined: EmbeddingModel | None = EmbeddingModel(config.joined) if config.joined else None
        self.dimension = config.dimension or sum(self.backbone.widths)
        self.dimension += self.joined.dimension if self.joined else 0
        self.refinement: nn.Module = nn.Identity()
        if config.refined_dimension:
            self.refinement = Refinement(
                self.dimension, config.refined_dimension, config.refined_classes, config.refined_strength
            )
            self.dimension = config.refined_dimension

    @property
    def backbone(self) -> Backbone:
        """The network, which must be a backbone."""
        assert isinstance(self.network, Backbone), f"{self.config.architecture} is no backbone"
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            images: (b, 3, h, w) float, R, G and B in [0, 1], h and w the config's image_size.

        Returns:
            (b, dimension), not normalised.

        Raises:
            ValueError: images of another size.
        """
        config = self.config
        if images.shape[-3:] != (3, config.image_size, config.image_size):
            raise ValueError(
                f"Images are {tuple(images.shape)}; this model was made for (b, 3, {config.image_size}, "
                f"{config.image_size}). Store the dataset at image_size={config.image_size}, or train a model for it."
            )
        inside = (images - self.mean) / self.std
        if config.size_inside != config.image_size:
            size, smaller = (config.size_inside, config.size_inside), config.size_inside < config.image_size
            inside = interpolate(inside, size, mode="bilinear", align_corners=False, antialias=smaller)
        embeddings = self.head(self.network(inside))
        if self.joined is not None:
            embeddings = join(embeddings, self.joined(images), config.joined_share)
        return self.refinement(embeddings)

    def joined_with(self, other: "EmbeddingModel", share: float) -> "EmbeddingModel":
        """This model with the features of another beside its embedding, in evaluation mode; the weights are shared.

        Raises:
            ValueError: it is refined, which comes last as a refinement is learned on what is joined; or joined before.
        """
        if self.config.refined_dimension or self.joined is not None:
            raise ValueError("The model is refined or joined already; join the network as it was trained.")
        model = EmbeddingModel(replace(self.config, joined=other.config, joined_share=share))
        model.network, model.head, model.joined = self.network, self.head, other
        return model.eval()

    def refined(self, refinement: Refinement) -> "EmbeddingModel":
        """This model with a refinement in the place of its own, in evaluation mode; the weights are shared."""
        classes, dimension = refinement.centres.shape
        config = replace(
            self.config,
            refined_dimension=dimension,
            refined_classes=classes,
            refined_strength=refinement.strength,
        )
        model = EmbeddingModel(config)
        model.network, model.head, model.joined, model.refinement = self.network, self.head, self.joined, refinement
        return model.eval()


def build_network(config: ModelConfig) -> EmbeddingModel:
    """An embedding network with random weights, from torch's own generator, laid out for channels_last images.

    Raises:
        ValueError: the config has no such network: a map would vanish, or an option is unknown.
    """
    return EmbeddingModel(config).to(memory_format=torch.channels_last)


def save_model(folder: Path, model: EmbeddingModel, made_from: dict[str, str], facts: dict[str, Any]) -> Manifest:
    """Write a model folder: weights, config and manifest.

    Args:
        folder: made when missing.
        model: on any device.
        made_from: digest of each artifact that it was made from, by name.
        facts: whatever else a reader wants to know; plain JSON.

    Returns:
        The manifest; its digest is the model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=2, sort_keys=True) + "\n")
    return write_manifest(folder, KIND, FORMAT_VERSION, made_from, facts)


def load_model(folder: Path, device: torch.device | str = "cpu") -> EmbeddingModel:
    """The model of a folder, in evaluation mode.

    Raises:
        ValueError: it is no model, is damaged, or its weights do not fit its config.
    """
    read_model_manifest(folder)
    model = build_network(load_config(folder))
    state = load_file(folder / WEIGHTS)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from error
    return model.to(device).eval()


def load_config(folder: Path) -> ModelConfig:
    """The config of a model folder.

    Raises:
        ValueError: an option that this version does not know.
    """
    return _config_of(json.loads((folder / CONFIG).read_text()), folder / CONFIG)


def _config_of(values: dict[str, Any], path: Path) -> ModelConfig:
    unknown = sorted(set(values) - {field.name for field in fields(ModelConfig)})
    if unknown:
        raise ValueError(f"{path} has the option '{unknown[0]}', which this version does not know.")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if given.get("joined") is not None:
        given["joined"] = _config_of(given["joined"], path)
    return ModelConfig(**given)


def _four_layer(config: ModelConfig) -> tuple[FourLayer, nn.Module]:
    network = FourLayer(
        config.channels,
        config.kernels,
        config.strides,
        config.paddings,
        config.pools,
        config.size_inside,
        config.dimension,
        config.pool_kind,
        config.batch_norm,
        AUTO_POOLING if config.pooling == "auto" else config.pooling,
    )
    return network, nn.Identity()


def _backbone(config: ModelConfig) -> tuple[Backbone, nn.Module]:
    pooling = "gem" if config.pooling == "auto" else config.pooling
    backbone = Backbone(config.architecture, config.size_inside, config.depths, pooling)
    if config.head == "none":
        return backbone, nn.Identity()
    if config.head == "integrated":
        return backbone, Integration(backbone.widths, config.dimension, config.power)
    return backbone, nn.Linear(sum(backbone.widths), config.dimension)

"""What the layers of any embedding network give out and cost, counted while it runs on tensors without memory.

    python -m retrieval.inspection '{"architecture": "resnet18", "dimension": 256, "image_size": 32}'

prints them as JSON, one object a layer, for a process that must not load torch itself. The options are those of
ModelConfig; images are enlarged where a backbone would leave no map, as finetune_metric does. What the four-layer
network costs is known without torch, see retrieval/layer_shapes.py.
"""

import dataclasses
import json
import sys

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from retrieval.backbones import empty_trunk, enlarged_size
from retrieval.layer_shapes import FOUR_LAYER, LayerShape
from retrieval.models import EmbeddingModel, ModelConfig, build_network
from retrieval.networks import FourLayer


def inspect_network(config: ModelConfig) -> list[LayerShape]:
    """The top layers of a network in the order in which they run; their numbers add up to the whole network's.

    Multiply-adds are what torch counts: those of convolutions and matrix products. Images that are enlarged inside are
    the first line.

    Raises:
        ValueError: there is no such network, e.g. a map would vanish.
    """
    model = build_network(config).to("meta").eval()
    size = config.size_inside
    shapes = [LayerShape("enlarged images", 3, size, size)] if size != config.image_size else []
    seen = 0
    with FlopCounterMode(display=False) as counter, torch.inference_mode():

        def add(name: str, layer: nn.Module, outputs: Tensor) -> None:
            nonlocal seen
            flops, seen = counter.get_total_flops() - seen, counter.get_total_flops()
            channels, height, width = (*outputs.shape[1:], 1, 1)[:3]
            learned = sum(parameter.numel() for parameter in layer.parameters())
            shapes.append(LayerShape(name, channels, height, width, learned, flops // 2))

        for name, layer in top_layers(model).items():
            layer.register_forward_hook(lambda layer, _, outputs, name=name: add(name, layer, outputs))
        model(torch.empty(1, 3, config.image_size, config.image_size, device="meta"))
    return shapes


def top_layers(model: EmbeddingModel) -> dict[str, nn.Module]:
    """The layers that are shown as one line each, by name: together they hold every weight."""
    network = model.network
    if isinstance(network, FourLayer):
        layers = dict(network.maps.named_children())
        return layers | {"pooling": network.pooling, "fully connected": network.embedding}
    names = [name for name, _ in empty_trunk(model.config.architecture).named_children()]  # torchvision's
    layers = {f"{name} ({type(layer).__name__})": layer for name, layer in zip(names, network.trunk, strict=False)}
    pooled = zip(model.config.depths, network.poolings, strict=True)
    poolings = {f"pooling of depth {depth}": pooling for depth, pooling in pooled}
    return layers | poolings | {"fully connected": model.head}


def main() -> None:
    """Print the layers of the network that the first argument describes."""
    config = ModelConfig(**json.loads(sys.argv[1]))
    if config.architecture != FOUR_LAYER and not config.network_size:
        config = dataclasses.replace(config, network_size=enlarged_size(config.architecture, config.image_size))
    print(json.dumps([dataclasses.asdict(layer) for layer in inspect_network(config)]))


if __name__ == "__main__":
    main()

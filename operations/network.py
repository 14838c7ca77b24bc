"""The network that a run would train: its layers and what they cost, known before anything runs."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from retrieval.layer_shapes import AUTO_POOLING, FOUR_LAYER, LayerShape, convolutions, layer_shapes, softmax_shape

TITLES = {"parameters": "parameters", "multiply_adds": "multiply-adds", "flops": "FLOPs"}


def refuse_vanishing_map(steps: Mapping[str, Any]) -> None:
    """Refuse a four-layer network that leaves no map of the images; a backbone enlarges them instead.

    Args:
        steps: the `Params` of every step: the images are made by one, the network by another.

    Raises:
        ValueError: names the layer.
    """
    if steps["finetune_metric"].network == FOUR_LAYER:
        _four_layer(steps)


def network_layers(steps: Mapping[str, Any], classes: int | None = None) -> list[LayerShape]:
    """The layers of the network, in the order in which they run.

    Args:
        steps: the `Params` of every step.
        classes: adds the softmax layer over so many.

    Raises:
        ValueError: the network leaves no map.
        OSError: the process that inspects a backbone failed.
    """
    params = steps["finetune_metric"]
    layers = _four_layer(steps) if params.network == FOUR_LAYER else _backbone(steps)
    return layers if classes is None else [*layers, softmax_shape(params.dimension, classes)]


def layers_table(steps: Mapping[str, Any], layers: Sequence[LayerShape]) -> Table:
    """A line a layer and one for all of them."""
    network, size = steps["finetune_metric"].network, steps["prepare_data"].image_size
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True, title_justify="left", title_style="")
    table.title = f"{network}, for one image of {size} px"
    table.add_column("layer", "total")
    table.add_column("output", justify="right")
    for name, total in _totals(layers).items():
        table.add_column(TITLES[name], f"{total:,}", justify="right", no_wrap=True)
    for layer in layers:
        output = f"{layer.channels} x {layer.height} x {layer.width}"
        table.add_row(layer.name, output, f"{layer.parameters:,}", f"{layer.multiply_adds:,}", f"{layer.flops:,}")
    return table


def layers_json(steps: Mapping[str, Any], layers: Sequence[LayerShape]) -> str:
    """The same as JSON: network, image_size, layers (a list) and total."""
    listed = [{**dataclasses.asdict(layer), "flops": layer.flops} for layer in layers]
    described = {"network": steps["finetune_metric"].network, "image_size": steps["prepare_data"].image_size}
    return json.dumps({**described, "layers": listed, "total": _totals(layers)}, indent=2)


def _totals(layers: Sequence[LayerShape]) -> dict[str, int]:
    return {name: sum(getattr(layer, name) for layer in layers) for name in TITLES}


def _four_layer(steps: Mapping[str, Any]) -> list[LayerShape]:
    params = steps["finetune_metric"]
    layers = convolutions(params.channel_counts, params.kernels, params.strides, params.paddings, params.pools)
    pooling = AUTO_POOLING if params.pooling == "auto" else params.pooling
    return layer_shapes(layers, steps["prepare_data"].image_size, pooling, params.dimension, params.batch_norm)


def _backbone(steps: Mapping[str, Any]) -> list[LayerShape]:
    params = steps["finetune_metric"]
    options = {
        "architecture": params.network,
        "dimension": params.dimension,
        "image_size": steps["prepare_data"].image_size,
        "pooling": params.pooling,
    }
    command = [sys.executable, "-m", "retrieval.inspection", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{params.network} cannot be inspected:\n{done.stderr.strip()}")
    return [LayerShape(**layer) for layer in json.loads(done.stdout)]

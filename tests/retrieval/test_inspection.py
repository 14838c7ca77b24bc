import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retrieval.inspection import inspect_network, main
from retrieval.models import ModelConfig, build_network

CONFIGS = {
    "four_layer": ModelConfig(dimension=8, image_size=16, channels=(4, 5, 6)),
    "four_layer_gem": ModelConfig(dimension=8, image_size=16, channels=(4, 5, 6), pooling="gem", batch_norm=False),
    "squeezenet": ModelConfig(architecture="squeezenet1_0", dimension=8, image_size=32),
    "mobilenet": ModelConfig(architecture="mobilenet_v3_small", dimension=8, image_size=16, network_size=32),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_layers_add_up_to_the_whole_network(config: ModelConfig) -> None:
    layers = inspect_network(config)
    network = build_network(config).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        outputs = network(torch.rand(1, 3, config.image_size, config.image_size))
    assert sum(layer.flops for layer in layers) == counter.get_total_flops() > 0
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in network.parameters())
    assert (layers[-1].name, layers[-1].channels) == ("fully connected", outputs.shape[1])


def test_each_layer_has_its_own_share() -> None:
    config = CONFIGS["four_layer_gem"]
    expected = [shape for shape in build_network(config).network.shapes if not shape.name.startswith("pool ")]
    counted = inspect_network(config)
    assert [layer.name for layer in counted] == ["layer1", "layer2", "layer3", "pooling", "fully connected"]
    for layer, shape in zip(counted, expected, strict=True):
        assert (layer.parameters, layer.multiply_adds) == (shape.parameters, shape.multiply_adds)


def test_the_program_prints_the_layers_and_enlarges_small_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"architecture": "alexnet", "dimension": 8, "image_size": 32}
    monkeypatch.setattr("sys.argv", ["inspection", json.dumps(options)])
    main()
    printed = json.loads(capsys.readouterr().out)
    config = ModelConfig(**options, network_size=63)
    assert printed == [dataclasses.asdict(layer) for layer in inspect_network(config)]
    assert (printed[0]["name"], printed[0]["height"]) == ("enlarged images", 63)
    assert printed[1] == {
        "name": "0 (Conv2d)",
        "channels": 64,
        "height": 15,
        "width": 15,
        "parameters": 64 * (3 * 11 * 11 + 1),
        "multiply_adds": 64 * 3 * 11 * 11 * 15 * 15,
    }

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.finetune_metric.params import Params
from operations.network import network_layers
from operations.parameters import resolve, step_params
from retrieval.inspection import inspect_network
from retrieval.models import ModelConfig, build_network

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "operations.command_line"]


def rankone(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    environment.pop("RANKONE_HOME", None)  # then everything lies in the current folder
    command = [*PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.mark.parametrize("assignments", [[], ["channels=[5]", "alpha=1.5", "beta=0.5", "pooling=gem", "image_size=16"]])
def test_the_layers_are_those_of_the_network_that_is_trained(assignments: list[str]) -> None:
    steps = step_params(resolve({}, assignments))
    params: Params = steps["finetune_metric"]
    layers = network_layers(steps)
    config = ModelConfig(
        image_size=steps["prepare_data"].image_size, channels=params.channel_counts, pooling=params.pooling
    )
    assert layers == build_network(config).network.shapes
    with_softmax = network_layers(steps, classes=10)
    assert with_softmax[:-1] == layers
    assert with_softmax[-1].parameters == 10 * params.dimension


def test_inspect_shows_layers_costs_and_their_sums() -> None:
    shown = rankone("inspect", "-p", "alpha=1.5", "--classes", "10").stdout.splitlines()
    rows = {line[:16].strip(): line[16:].split() for line in shown}
    assert rows["convolution 2"][:5] == ["96", "x", "16", "x", "16"]
    assert rows["convolution 2"][5:] == ["55,488", "14,155,776", "28,311,552"]
    assert rows["softmax"][5:] == ["2,560", "2,560", "5,120"]
    for column in range(1, 4):
        numbers = [int(row[-column].replace(",", "")) for name, row in rows.items() if "x" in row]
        assert int(rows["total"][-column].replace(",", "")) == sum(numbers)


def test_inspect_prints_json_of_a_backbone() -> None:
    done = rankone("inspect", "--json", "-p", "network=squeezenet1_1", "-p", "image_size=16", "-p", "dimension=128")
    described = json.loads(done.stdout)
    assert (described["network"], described["image_size"]) == ("squeezenet1_1", 16)
    config = ModelConfig(architecture="squeezenet1_1", image_size=16, network_size=17, dimension=128)
    layers = inspect_network(config)
    assert [layer["name"] for layer in described["layers"]] == [layer.name for layer in layers]
    assert described["total"]["flops"] == sum(layer["flops"] for layer in described["layers"])
    assert described["total"]["parameters"] == sum(p.numel() for p in build_network(config).parameters())


@pytest.mark.parametrize("command", ["run", "compile", "inspect"])
def test_a_network_that_leaves_no_map_is_refused_before_anything_runs(command: str, tmp_path: Path) -> None:
    done = rankone(command, "-p", "image_size=8", "-p", "kernels=[9,9,9]", cwd=tmp_path)
    assert done.returncode == 2
    assert "convolution 2 leaves no map: a 9x9 window" in done.stderr
    assert "images of 8 px" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_layers_of_another_network_are_refused_for_a_backbone() -> None:
    assert resolve({}, ["image_size=8", "network=resnet18"])
    with pytest.raises(ValueError, match=r"kernels is \[9, 9, 9\] and network is resnet18"):
        resolve({}, ["image_size=8", "kernels=[9,9,9]", "network=resnet18"])

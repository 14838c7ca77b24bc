"""A training step that is killed at any moment and tried again writes what it would have written at once."""

import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from components.launch import text_of
from retrieval.clusters import save_clusters
from retrieval.dataset import INDEX_SCHEMA, save_dataset
from retrieval.models import ModelConfig, build_network, save_model
from retrieval.tracking import StepRun

IMAGES = 240
SMALL = {
    "pretrain": {"classifier": "squeezenet1_1", "pretrain_epochs": 2, "feature_dimension": 16, "batch_size": 70},
    "finetune_metric": {
        **{"channels": (4, 4, 8), "dimension": 16, "batch_size": 6, "images_per_class": 2},
        **{"adjust_epochs": 1, "metric_epochs": 1},
    },
    "finetune_softmax": {"softmax_epochs": 2, "batch_size": 16, "average_from": 0.2},
}
ARTIFACTS = {  # inputs and outputs
    "pretrain": (["dataset"], ["backbone", "features"]),
    "finetune_metric": (["dataset", "clusters"], ["model"]),
    "finetune_softmax": (["dataset", "backbone", "features", "model"], ["tuned_model"]),
}
OFTEN = 1e-4  # seconds between two states: as often as they can be written


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images of three classes, each with a bright band of its own; targets that point to the class; a model."""
    folder, random = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    labels = np.arange(IMAGES) % 3
    pixels = random.integers(0, 100, (IMAGES, 8, 8, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label : 2 * label + 3] += 150
    names = np.arange(IMAGES).astype(str)
    parts = np.repeat(["train", "validation"], [IMAGES - 30, 30])
    values = [np.arange(IMAGES), labels, names, parts, names, ["0"] * IMAGES, *[[8] * IMAGES] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    dataset = save_dataset(folder / "dataset", [pixels], index, ["a", "b", "c"], {})
    targets = np.eye(5, dtype=np.float32)[labels] + 0.2 * random.normal(size=(IMAGES, 5)).astype(np.float32)
    save_clusters(folder / "clusters", [targets], labels, np.zeros(5, np.int64), {"dataset": dataset.digest}, {})
    model = build_network(ModelConfig(dimension=16, image_size=8, channels=(4, 4, 8)))
    save_model(folder / "model", model, {"dataset": dataset.digest}, {})
    return {name: folder / name for name in ("dataset", "clusters", "model", "backbone", "features")}


def run_here(step: str, inputs: dict[str, Path], outputs: Path, checkpoints: str, often: float = OFTEN) -> None:
    """The step in this process."""
    module = importlib.import_module(f"components.{step}.step")
    taken, given = ARTIFACTS[step]
    paths = {name: inputs[name] for name in taken} | {name: outputs / name for name in given}
    getattr(module, step)(module.Params(**SMALL[step], checkpoints=checkpoints, checkpoint_seconds=often), **paths)


def kill_when_kept(step: str, inputs: dict[str, Path], outputs: Path, checkpoints: Path, kept: Path) -> None:
    """The step in a process of its own, which is killed by SIGKILL as soon as a state lies there."""
    taken, given = ARTIFACTS[step]
    paths = [*(f"--{name}={inputs[name]}" for name in taken), *(f"--{name}={outputs / name}" for name in given)]
    knobs = [f"--{name}={text_of(value)}" for name, value in SMALL[step].items()]
    keeps = [f"--checkpoints={checkpoints}", f"--checkpoint_seconds={OFTEN}"]
    command = [sys.executable, "-m", "components", step, *paths, *knobs, *keeps]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not kept.exists():
        time.sleep(0.005)  # leaves the processor to the step
        assert process.poll() is None, f"the step ended before it kept {kept}"
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL


def written(folder: Path) -> dict[str, bytes]:
    """The files that hold what was learned; manifests hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".safetensors", ".npy")
    }


def resumed_after(shown: str) -> list[tuple[int, int]]:
    """For each training that was resumed, after how many steps of how many."""
    found = re.findall(r"resumed from a checkpoint, after step ([\d,]+) of ([\d,]+)\.", shown)
    return [(int(after.replace(",", "")), int(of.replace(",", ""))) for after, of in found]


@pytest.mark.usefixtures("mlflow_home")
def test_killed_amid_each_phase_it_resumes_and_ends_with_the_same_bytes(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, checkpoints = "finetune_metric", tmp_path / "checkpoints"
    monkeypatch.setenv("RANKONE_PIPELINE_TASK", step)
    run_here(step, inputs, tmp_path / "once", checkpoints="")
    for phase in ("adjust", "metric"):
        kept = checkpoints / step / f"{phase} 0.safetensors"
        kill_when_kept(step, inputs, tmp_path / f"killed in {phase}", checkpoints, kept)
    capsys.readouterr()
    run_here(step, inputs, tmp_path / "outputs", str(checkpoints))
    (adjusted, of_adjusting), (trained, of_training) = resumed_after(capsys.readouterr().out)
    assert adjusted == of_adjusting, "the phase before is not trained again"
    assert 0 < trained < of_training, "killed amid the only epoch"
    assert written(tmp_path / "outputs") == written(tmp_path / "once")
    assert not checkpoints.exists(), "a step that ended well leaves no checkpoint"


class PowerFailureError(Exception):
    """What stops a step here."""


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize("step", ["pretrain", "finetune_softmax"])
def test_stopped_between_epochs_it_resumes_and_ends_with_the_same_bytes(
    step: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_TASK", step)
    log, logged = StepRun.log_metrics, list[int]()

    def fails_after_an_epoch(self: StepRun, values: dict[str, float], step: int | None = None) -> None:
        if logged:
            raise PowerFailureError
        logged.append(step or 0)
        log(self, values, step)

    run_here(step, inputs, tmp_path / "once", checkpoints="")
    monkeypatch.setattr(StepRun, "log_metrics", fails_after_an_epoch)
    with pytest.raises(PowerFailureError):
        run_here(step, inputs, tmp_path / "failed", str(tmp_path / "kept"))
    monkeypatch.setattr(StepRun, "log_metrics", log)
    capsys.readouterr()
    run_here(step, inputs, tmp_path / "outputs", str(tmp_path / "kept"))
    after, of = resumed_after(capsys.readouterr().out)[-1]
    assert 0 < after < of
    assert written(tmp_path / "outputs") == written(tmp_path / "once")
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("mlflow_home")
def test_a_training_from_other_weights_under_the_same_name_is_not_gone_on_with(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, checkpoints, log = tmp_path / "weights.safetensors", tmp_path / "checkpoints", StepRun.log_metrics

    def put(seed: int) -> None:
        torch.manual_seed(seed)
        save_file(torchvision.models.squeezenet1_1().state_dict(), weights)

    def fails(self: StepRun, values: dict[str, float], step: int | None = None) -> None:
        if step == 2:
            raise ValueError("a failure")
        log(self, values, step)

    knobs = {"weights": str(weights), "backbone_image_size": 32}
    monkeypatch.setitem(SMALL, "pretrain", SMALL["pretrain"] | knobs)
    monkeypatch.setenv("RANKONE_PIPELINE_TASK", "pretrain")
    put(1)
    with monkeypatch.context() as once:
        once.setattr(StepRun, "log_metrics", fails)
        with pytest.raises(ValueError, match="a failure"):
            run_here("pretrain", inputs, tmp_path / "stopped", str(checkpoints))
    assert list(checkpoints.rglob("*.safetensors"))
    put(2)
    capsys.readouterr()
    run_here("pretrain", inputs, tmp_path / "again", str(checkpoints))
    said = capsys.readouterr().out
    assert "is not taken: it is of other parameters, data, code, devices or processes" in said
    assert resumed_after(said) == []

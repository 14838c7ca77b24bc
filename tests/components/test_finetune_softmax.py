from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.finetune_softmax.params import Params
from components.finetune_softmax.step import finetune_softmax, what_it_did
from retrieval.dataset import INDEX_SCHEMA, save_dataset
from retrieval.models import ModelConfig, build_network, load_model, read_model_manifest, save_model

SMALL = {"batch_size": 10, "softmax_epochs": 6, "softmax_learning_rate": 0.05}


def write_inputs(folder: Path, shared_classes: bool = True) -> tuple[Path, Path]:
    """60 images of three classes, each with a bright band of its own, and a network that knows nothing."""
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).integers(0, 100, (60, 8, 8, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label : 2 * label + 3] += 150
    parts = (
        np.repeat(["train", "validation"], 30) if shared_classes else np.array(["train", "train", "validation"] * 20)
    )
    names = np.arange(60).astype(str)
    values = [np.arange(60), labels, names, parts, names, ["0"] * 60, *[[8] * 60] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    save_dataset(folder / "dataset", [pixels], index, ["a", "b", "c"], {})
    torch.manual_seed(0)
    network = build_network(ModelConfig(image_size=8, dimension=16, channels=(4, 4, 8)))
    save_model(folder / "model", network, {}, {})
    return folder / "dataset", folder / "model"


@pytest.mark.usefixtures("mlflow_home")
def test_it_raises_the_network_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, model = write_inputs(tmp_path)
    outputs = finetune_softmax(Params(**SMALL), dataset, model, tmp_path / "tuned")["tuned_model"]
    assert outputs["validation_recall_at_1"] > 0.9
    assert outputs["validation_accuracy"] > 0.9
    assert outputs["images_per_second"] > 0
    shown = capsys.readouterr().out
    assert "60 images of 8 px, 30 of 3 classes to train on; four_layer, d = 16" in shown
    raised = outputs["validation_recall_at_1"] > outputs["validation_recall_at_1_before"]
    assert ("did not raise" in shown) == (not raised)
    tuned, manifest = load_model(tmp_path / "tuned"), read_model_manifest(tmp_path / "tuned")
    assert tuned.config == load_model(model).config
    assert manifest.made_from["model"] == read_model_manifest(model).digest != manifest.digest


@pytest.mark.usefixtures("mlflow_home")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    digests = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        finetune_softmax(Params(**SMALL | {"softmax_epochs": 1}, seed=seed), dataset, model, tmp_path / str(number))
        digests.append(read_model_manifest(tmp_path / str(number)).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.usefixtures("mlflow_home")
def test_accuracy_is_not_measured_on_classes_it_never_saw(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path, shared_classes=False)
    outputs = finetune_softmax(Params(**SMALL | {"softmax_epochs": 1}), dataset, model, tmp_path / "tuned")
    assert "validation_accuracy" not in outputs["tuned_model"]


@pytest.mark.usefixtures("mlflow_home")
def test_a_rate_too_high_stops_and_names_the_step(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    with pytest.raises(ValueError, match=r"finetune_softmax: the loss is (nan|inf) at step \d+ of 18"):
        finetune_softmax(Params(**SMALL | {"softmax_learning_rate": 1e30}), dataset, model, tmp_path / "tuned")


def test_without_labels_the_model_goes_on_as_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, model = write_inputs(tmp_path)
    outputs = finetune_softmax(Params(**SMALL, labels="none"), dataset, model, tmp_path / "tuned")["tuned_model"]
    assert "labels=none: no classes to put a softmax layer over" in capsys.readouterr().out
    assert outputs["epochs"] == 0
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (model, tmp_path / "tuned")]
    assert weights[0] == weights[1]
    assert read_model_manifest(tmp_path / "tuned").made_from["model"] == read_model_manifest(model).digest


def test_it_says_when_it_did_not_help() -> None:
    assert "did not raise R@1 among the validation images: 90.0% before, 90.0% after" in what_it_did(0.9, 0.9)
    assert "raised" in what_it_did(0.9, 0.91)
    assert "cannot be measured" in what_it_did(None, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"softmax_epochs": 0}, "softmax_epochs is 0; it must be 1 or more"),
        ({"softmax_learning_rate": 0.0}, "softmax_learning_rate is 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0; both must be from 0 to below 1"),
        ({"labels": "some"}, "Unknown labels 'some'; choose one of: given, none"),
        ({"robust": "holes"}, "Unknown robust 'holes'"),
        ({"augment": "flip"}, "Unknown augment 'flip'; choose one of: auto, none"),
    ],
)
def test_refuses(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Params(**wrong)

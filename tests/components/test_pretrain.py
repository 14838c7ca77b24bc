import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from components.pretrain import step
from components.pretrain.params import Params
from components.pretrain.step import pretrain
from retrieval.backbones import build_trunk
from retrieval.dataset import Dataset, save_dataset
from retrieval.features import embed, load_features
from retrieval.integration import learn_integration
from retrieval.manifest import file_digest
from retrieval.metrics import recall_at_1
from retrieval.model_folder import read_model_manifest
from retrieval.models import EmbeddingModel, load_model

ROOT = Path(__file__).parents[2]
SMALL = {"classifier": "squeezenet1_0", "feature_dimension": 6, "batch_size": 16, "device": "cpu", "augment": "shift"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three classes that their colour tells apart; 12 images of each to train on, 4 to validate, 4 to test."""
    return save_images(tmp_path_factory.mktemp("pretrain") / "data", np.arange(60) % 3)


def save_images(folder: Path, labels: np.ndarray) -> Dataset:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 120, (60, 24, 24, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 120
    count = len(labels)
    columns = {
        "id": np.arange(count),
        "label": labels,
        "class_name": [f"class {label}" for label in labels],
        "split": ["train"] * 36 + ["validation"] * 12 + ["test"] * 12,
        "source": [f"{i}.png" for i in range(count)],
        "sha256": [f"{i}" for i in range(count)],
        "width": [24] * count,
        "height": [24] * count,
    }
    return save_dataset(folder, [images], pa.table(columns), ["class 0", "class 1", "class 2"], {})


pytestmark = pytest.mark.usefixtures("mlflow_home")


def test_it_trains_and_writes_a_backbone_and_features_of_every_image(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Params(**SMALL, pretrain_epochs=2, pretrain_learning_rate=0.01)
    outputs = pretrain(params, data.folder, tmp_path / "backbone", tmp_path / "features")
    said = capsys.readouterr().out
    assert "60 images of 24 px, 36 of 3 classes to train on; squeezenet1_0 from none" in said
    assert "pretrain: epoch 2 of 2" in said
    model, features = load_model(tmp_path / "backbone"), load_features(tmp_path / "features", data)
    assert features.values.shape == (60, 6)
    embeddings = embed(model, data, np.arange(60), torch.device("cpu"))
    np.testing.assert_allclose(embeddings, features.values, atol=1e-5)  # new images are embedded as these were
    manifest = read_model_manifest(tmp_path / "backbone")
    assert manifest.made_from == {"dataset": data.digest}
    assert features.manifest.made_from == {"dataset": data.digest, "backbone": manifest.digest}
    metadata = outputs["backbone"]
    assert metadata["feature_dimension"] == 6
    assert metadata["validation_recall_at_1"] >= 0.9
    assert metadata["images_per_second"] > 0
    assert metadata["embedding_images_per_second"] > 0
    assert metadata["weights_digest"] == "none"
    assert {f"validation_recall_at_1_depth_{depth}" for depth in (1, 2, 3)} < set(metadata)  # several depths, as a rule


def test_without_epochs_given_weights_stay_and_the_integration_is_learned_on_train_only(
    data: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    state = {f"features.{key}": value for key, value in build_trunk("squeezenet1_0").state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    params = Params(**SMALL, weights=str(tmp_path / "weights.safetensors"), pretrain_epochs=0)
    outputs = pretrain(params, data.folder, tmp_path / "backbone", tmp_path / "features")
    model = load_model(tmp_path / "backbone")
    for key, value in model.network.trunk.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"])
    widths = model.backbone.widths
    head, model.head, model.dimension = model.head, torch.nn.Identity(), sum(widths)
    pooled = embed(model, data, data.rows("train"), torch.device("cpu"), SMALL["batch_size"])
    torch.testing.assert_close(head.projection, learn_integration(pooled, widths, 6).projection, atol=1e-4, rtol=1e-3)
    assert (
        outputs["backbone"]["weights_digest"]
        == hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    )
    assert model.config.mean == (0.485, 0.456, 0.406)
    facts = load_features(tmp_path / "features").manifest.facts
    assert facts["embedding_images_per_second"] == outputs["features"]["embedding_images_per_second"] > 0
    assert "images_per_second" not in facts, "nothing was trained"


def test_what_each_depth_and_the_integration_add_is_measured(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor(data.labels)
    noise, told = torch.randn((60, 5), generator=random), 9 * torch.eye(3)[labels]
    numbers = step.validation_numbers(data, torch.cat([noise, told], 1), told, {1: 5, 3: 3})
    rows = data.rows("validation")
    assert numbers["validation_recall_at_1_depth_1"] == recall_at_1(noise[rows], labels[rows]) < 0.7
    assert numbers["validation_recall_at_1_depth_3"] == numbers["validation_recall_at_1"] == 1
    assert numbers["validation_recall_at_1_pooled"] == recall_at_1(torch.cat([noise, told], 1)[rows], labels[rows])
    assert numbers["integration_adds"] == 0
    assert "depth 3 alone 100.0%; laid end to end" in capsys.readouterr().out


def test_validation_images_of_one_class_measure_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    data = SimpleNamespace(rows=lambda _: np.arange(3), labels=np.array([1, 1, 1, 0, 2]))
    assert step.validation_numbers(data, torch.eye(5), torch.eye(5), {1: 5}) == {}
    assert "R@1 is not measured: the validation images have no two classes" in capsys.readouterr().out


def test_without_labels_one_folder_may_hold_all_training_images_and_their_classes_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.where(np.arange(60) < 36, 0, 1 + np.arange(60) % 2)
    pile = save_images(tmp_path / "pile", labels)
    outputs = tmp_path / "backbone", tmp_path / "features"
    with pytest.raises(ValueError, match=r"training images have 1 class\(es\); .* or give labels=none to learn"):
        pretrain(Params(**SMALL), pile.folder, *outputs)
    pretrain(Params(**SMALL, labels="none"), pile.folder, *outputs)
    said = capsys.readouterr().out
    assert "36 of unknown classes to train on" in said
    assert "labels=none: squeezenet1_0 stays as it is" in said
    assert load_features(tmp_path / "features", pile).values.shape == (60, 6)
    assert "classes" not in read_model_manifest(tmp_path / "backbone").facts


def test_given_weights_are_warmed_up_and_from_scratch_is_not(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    state = {f"features.{key}": value for key, value in build_trunk("squeezenet1_0").state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    calls: list[tuple[str, int, bool]] = []
    fit = step.fit

    def noted(network: EmbeddingModel, *others: Any, **options: Any) -> Any:
        before = network.backbone.trunk[0].weight.clone()
        history = fit(network, *others, **options)
        calls.append((options["name"], others[3].epochs, torch.equal(before, network.backbone.trunk[0].weight)))
        return history

    monkeypatch.setattr(step, "fit", noted)
    slow = {"weights": str(tmp_path / "weights.safetensors"), "pretrain_learning_rate": 1e-4}
    given = Params(**SMALL | slow, pretrain_warmup_epochs=2, pretrain_epochs=1)
    pretrain(given, data.folder, tmp_path / "b", tmp_path / "f")
    assert calls == [("pretrain, softmax layer alone", 2, True), ("pretrain", 1, False)]
    assert "no warm-up" not in capsys.readouterr().out
    calls.clear()
    pretrain(Params(**SMALL, pretrain_epochs=1), data.folder, tmp_path / "c", tmp_path / "g")
    assert calls == [("pretrain", 1, False)]
    assert "squeezenet1_0 from scratch: no warm-up" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(data: Dataset, tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((7, 7, 8)):
        folder = tmp_path / str(number)
        pretrain(Params(**SMALL, pretrain_epochs=1, seed=seed), data.folder, folder / "b", folder / "f")
        digests.append([file_digest(path) for path in sorted(folder.rglob("*.*")) if path.name != "manifest.json"])
    assert len(digests[0]) == 3  # weights, config and features; the manifests tell speeds
    assert digests[0] == digests[1] != digests[2]


def test_fewer_dimensions_than_asked_for_are_said_aloud(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Params(**SMALL | {"feature_dimension": 256}, pretrain_epochs=0)
    outputs = pretrain(params, data.folder, tmp_path / "backbone", tmp_path / "features")
    assert outputs["features"]["feature_dimension"] == 35
    assert "feature_dimension is 35, not 256: 36 training images" in capsys.readouterr().out


def test_images_that_are_too_small_are_enlarged_to_the_least_size_or_refused(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alexnet = SMALL | {"classifier": "alexnet"}
    pretrain(Params(**alexnet, pretrain_epochs=0), data.folder, tmp_path / "backbone", tmp_path / "features")
    assert "images of 24 px are brought to 63 px inside alexnet" in capsys.readouterr().out
    params = Params(**alexnet, pretrain_epochs=0, backbone_image_size=40)
    with pytest.raises(ValueError, match=r"40 px vanish in alexnet.*backbone_image_size"):
        pretrain(params, data.folder, tmp_path / "backbone", tmp_path / "features")


def test_two_processes_train_one_network_and_the_first_one_writes(data: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    places = {"dataset": data.folder, "backbone": tmp_path / "backbone", "features": tmp_path / "features"}
    knobs = [f"--{name}={value}" for name, value in (SMALL | places | {"pretrain_epochs": 1}).items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "components", "pretrain", *knobs],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("classes to train on") == 1
    assert load_features(tmp_path / "features", data).values.shape == (60, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ""}, "weights is empty"),
        ({"weights": "s3://bucket"}, "weights is 's3://bucket', which names no object; give s3://bucket/key"),
        ({"weights": "s3://bucket/folder/"}, "which names no object"),
        ({"backbone_image_size": -1}, "backbone_image_size is -1"),
        ({"backbone_depths": ()}, "backbone_depths is"),
        ({"pretrain_epochs": -1}, "pretrain_epochs is -1"),
        ({"pretrain_warmup_epochs": -1}, "pretrain_warmup_epochs is -1"),
        ({"pretrain_learning_rate": 0.0}, "pretrain_learning_rate is 0"),
        ({"feature_dimension": 0}, "feature_dimension is 0"),
        ({"feature_power": 0.0}, "feature_power is 0"),
        ({"batch_size": 1}, "batch_size is 1; it must be 2 or more"),
        ({"device": "gpu"}, "'gpu'"),
    ],
)
def test_impossible_knobs_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Params(**options)  # type: ignore[arg-type]

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.finetune_metric.params import Params
from components.finetune_metric.step import batch_of, finetune_metric
from retrieval.adjusting import ADJUSTING
from retrieval.clusters import load_clusters, save_clusters
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.losses import LOSSES
from retrieval.model_folder import read_model_manifest
from retrieval.models import load_model

SMALL = {"channels": (4, 4, 8), "dimension": 16, "batch_size": 16, "adjust_epochs": 2, "metric_epochs": 3}


def write_inputs(folder: Path, split: str = "closed") -> tuple[Path, Path]:
    """60 images of three classes, each with a bright band of its own, and targets that point to the class."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = random.integers(0, 100, (60, 8, 8, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label : 2 * label + 3] += 150
    parts = (
        np.array(["train", "train", "validation"] * 20)
        if split == "disjoint"
        else np.repeat(["train", "validation"], 30)
    )
    names = np.arange(60).astype(str)
    values = [np.arange(60), labels, names, parts, names, ["0"] * 60, *[[8] * 60] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    dataset = save_dataset(folder / "dataset", [pixels], index, ["a", "b", "c"], {})
    targets = np.eye(5, dtype=np.float32)[labels] + 0.2 * random.normal(size=(60, 5)).astype(np.float32)
    save_clusters(folder / "clusters", [targets], labels, np.zeros(5, np.int64), {"dataset": dataset.digest}, {})
    return folder / "dataset", folder / "clusters"


@pytest.mark.usefixtures("mlflow_home")
def test_the_network_learns_and_says_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, clusters = write_inputs(tmp_path)
    outputs = finetune_metric(Params(**SMALL), dataset, clusters, tmp_path / "model")["model"]
    assert outputs["validation_recall_at_1"] > 0.9
    assert outputs["loss"] in LOSSES
    assert outputs["loss_why"].startswith(f"loss {outputs['loss']}: 3 classes of 10 to 10 images")
    assert outputs["learning_rate"] == pytest.approx(0.2 * (16 / 256) ** 0.5 * (15 / 128) ** 0.5)
    assert outputs["augment"] == "crop_flip"  # a band mirrored is the same band
    assert outputs["epochs"] == 5
    model = load_model(tmp_path / "model")
    assert model.config.channels == (4, 4, 8)
    assert outputs["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    manifest = read_model_manifest(tmp_path / "model")
    assert (manifest.made_from["dataset"], manifest.facts["labels"]) == (Dataset(dataset).digest, "given")
    shown = capsys.readouterr().out
    assert "finetune_metric: 60 images of 8 px, 30 of 3 classes to train on; targets of 5 dimensions" in shown
    assert "finetune_metric: batches of 3 classes x 5 images." in shown
    assert outputs["loss_why"] in shown
    assert outputs["learning_rate_why"] in shown


@pytest.mark.usefixtures("mlflow_home")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset, clusters = write_inputs(tmp_path)
    quick = SMALL | {"adjust_epochs": 1, "metric_epochs": 1}
    digests = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        finetune_metric(Params(**quick, seed=seed), dataset, clusters, tmp_path / str(number))
        digests.append(read_model_manifest(tmp_path / str(number)).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.usefixtures("mlflow_home")
def test_with_quarter_turns_an_epoch_has_four_times_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, clusters = write_inputs(tmp_path)
    images = []
    for asked in (False, True):
        params = Params(**SMALL | {"adjust_epochs": 0, "metric_epochs": 1}, quarter_turns=asked)
        finetune_metric(params, dataset, clusters, tmp_path / str(asked))
        images.append(int(re.findall(r"of ([\d,]+) images, loss", capsys.readouterr().out)[-1].replace(",", "")))
    assert 3.5 * images[0] <= images[1] <= 4.5 * images[0]


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_without_adjusting(tmp_path: Path, loss: str) -> None:
    dataset, clusters = write_inputs(tmp_path, split="disjoint")
    params = Params(**SMALL | {"adjust_epochs": 0, "metric_epochs": 1}, loss=loss, learning_rate="0.01")
    outputs = finetune_metric(params, dataset, clusters, tmp_path / "model")["model"]
    assert outputs["loss"] == loss
    assert outputs["learning_rate"] == 0.01
    assert "validation_recall_at_1" not in outputs, "of a single class every answer is right"
    assert outputs["adjust_by"] == "none"


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize("adjust_by", ADJUSTING)
def test_adjusting_alone_draws_the_network_to_the_targets(
    tmp_path: Path, adjust_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, clusters = write_inputs(tmp_path)
    params = Params(**SMALL | {"adjust_epochs": 6, "metric_epochs": 0}, adjust_by=adjust_by)
    outputs = finetune_metric(params, dataset, clusters, tmp_path / "model")["model"]
    assert outputs["validation_recall_at_1"] > 0.9
    assert outputs["adjust_by"] == adjust_by
    assert f"finetune_metric: drawn to the adjusted features by {adjust_by}." in capsys.readouterr().out


@pytest.mark.usefixtures("mlflow_home")
def test_without_labels_the_clusters_are_the_classes_and_no_class_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, clusters = write_inputs(tmp_path)
    quick = SMALL | {"adjust_epochs": 1, "metric_epochs": 2}
    params = Params(**quick, labels="none", label_rounds=3, robust="missing")
    outputs = finetune_metric(params, dataset, clusters, tmp_path / "model")["model"]
    shown = capsys.readouterr().out
    assert outputs["epochs"] == 7
    assert read_model_manifest(tmp_path / "model").facts["labels"] == "none"
    assert "finetune_metric, labels=none: round 3 of 3: 3 clusters" in shown
    assert f"that of the adjusted features is {outputs['validation_recall_at_1_features']:.1%}" in shown
    adds = outputs["validation_recall_at_1"] - outputs["validation_recall_at_1_features"]
    assert outputs["without_labels_adds"] == pytest.approx(adds)
    data, given = Dataset(dataset), load_clusters(clusters)
    made_from = {"dataset": "", "features": ""}
    one_class = relabelled(data, tmp_path / "one class", given.image_clusters * 0)
    made_from["dataset"] = one_class.digest
    targets = [np.asarray(given.targets)]
    save_clusters(tmp_path / "same", targets, given.image_clusters, given.dimension_clusters, made_from, {})
    finetune_metric(params, one_class.folder, tmp_path / "same", tmp_path / "blind")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("model", "blind")]
    assert weights[0] == weights[1]


def relabelled(data: Dataset, folder: Path, labels: np.ndarray) -> Dataset:
    """The same images under other labels."""
    index = data.index.set_column(1, "label", pa.array(labels))
    return save_dataset(folder, [data.read(np.arange(len(data)))], index, ["a"], {})


def test_targets_of_another_dataset_are_refused(tmp_path: Path) -> None:
    dataset, clusters = write_inputs(tmp_path)
    save_clusters(tmp_path / "others", [np.ones((7, 3), np.float32)], np.zeros(7), np.zeros(3), {}, {})
    with pytest.raises(ValueError, match="targets of 7 images, the dataset has 60, and they"):
        finetune_metric(Params(**SMALL), dataset, tmp_path / "others", tmp_path / "model")
    save_clusters(tmp_path / "more", [np.ones((60, 3), np.float32)], np.zeros(60), np.zeros(3), {"dataset": "0"}, {})
    with pytest.raises(ValueError, match="another dataset"):
        finetune_metric(Params(**SMALL), dataset, tmp_path / "more", tmp_path / "model")
    assert clusters.exists()


@pytest.mark.usefixtures("mlflow_home")
def test_the_form_of_the_network_is_as_asked_for(tmp_path: Path) -> None:
    dataset, clusters = write_inputs(tmp_path)
    form = {"channels": (4,), "alpha": 1.5, "beta": 0.5, "pooling": "gem", "pool_kind": "average", "batch_norm": False}
    params = Params(**SMALL | {"adjust_epochs": 0, "metric_epochs": 1} | form)
    finetune_metric(params, dataset, clusters, tmp_path / "model")
    config = load_model(tmp_path / "model").config
    assert (config.channels, config.pooling, config.pool_kind) == ((4, 6, 3), "gem", "average")
    assert not config.batch_norm


def test_a_later_round_of_fewer_clusters_than_classes_are_asked_for_in_a_batch_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = Params(labels="none", classes_per_batch=10, batch_size=20)
    eight, ten = torch.arange(80) % 8, torch.arange(80) % 10
    assert batch_of(params, ten) == (10, 2)
    assert batch_of(params, eight, number=2)[0] == 8
    assert "batches of 8 classes for the 10 asked for" in capsys.readouterr().out
    with pytest.raises(ValueError, match="classes_per_batch is 10 and there are 8 classes"):
        batch_of(params, eight)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({}, (64, 128, 256)),
        ({"channels": (8, 16, 16)}, (8, 16, 16)),
        ({"channels": (10,), "alpha": 1.26, "beta": 0.5}, (10, 13, 6)),  # 12.6 -> 13; 6.5 -> 6
    ],
)
def test_channels_follow_from_the_two_ratios(given: dict[str, object], counts: tuple[int, ...]) -> None:
    assert Params(**given).channel_counts == counts


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "tripplet"}, "Unknown loss 'tripplet'; choose one of: auto, normalised_softmax"),
        ({"augment": "flip"}, "Unknown augment 'flip'"),
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"network": "resnet19"}, "Unknown network 'resnet19'; choose one of: four_layer, resnet18"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; give auto or a number above 0"),
        ({"learning_rate": "-1"}, "learning_rate is '-1'"),
        ({"learning_rate": "nan"}, "learning_rate is 'nan'"),
        ({"channels": (64, 128)}, "channels has 2 numbers; three convolutions need 1 or 3"),
        ({"channels": ()}, "channels has 0 numbers; three convolutions need 1 or 3"),
        ({"alpha": 0.0}, "alpha is 0.0; a ratio of channels must be above 0"),
        ({"beta": -1.0}, "beta is -1.0; a ratio"),
        ({"beta": float("nan")}, "beta is nan; a ratio"),
        ({"alpha": float("inf")}, "alpha is inf; a ratio"),
        ({"channels": (4,), "alpha": 0.1}, r"alpha 0.1 and beta 2.0 gives layers of \[4, 0, 0\] channels"),
        ({"channels": (4, 4, 4), "beta": 3.0}, r"beta is 3.0 and channels \[4, 4, 4\] names all three layers"),
        ({"pooling": "gemm"}, "Unknown pooling 'gemm'; choose one of: auto, gem, average, max, flatten"),
        ({"pool_kind": "median"}, "Unknown pool_kind 'median'; choose one of: max, average"),
        ({"kernels": (3, 3, 3, 3)}, "kernels has 4 numbers; three convolutions need 3 or 6"),
        ({"strides": (1, 0, 1)}, r"strides is \[1, 0, 1\]; every number must be at least 1"),
        ({"adjust_epochs": 0, "metric_epochs": 0}, "nothing would be trained"),
        ({"images_per_class": 1}, "images_per_class is 1; a metric loss needs pairs"),
        ({"robust": "holes"}, "Unknown robust 'holes'; choose one of: none, missing"),
        ({"adjust_by": "centers"}, "Unknown adjust_by 'centers'; choose one of: relations, clusters, centres"),
        ({"adjust_by": "relations", "batch_size": 2}, "batch_size is 2 with adjust_by=relations"),
        ({"labels": "some"}, "Unknown labels 'some'; choose one of: given, none"),
        ({"label_rounds": 0}, "label_rounds is 0; it must be 1 or more"),
        ({"dimension": 1}, "dimension is 1; it must be 2 or more"),
        ({"dimension": 100_000}, "dimension is 100,000; it must be 65,536 or less"),
        ({"metric_epochs": -1}, "metric_epochs is -1"),
    ],
)
def test_refuses(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Params(**wrong)


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("channels", (32,), "[64]"),
        ("alpha", 1.5, "2.0"),
        ("beta", 1.5, "2.0"),
        ("kernels", (5, 3, 3), "[3, 3, 3]"),
        ("strides", (2, 1, 1), "[1, 1, 1]"),
        ("paddings", (2, 1, 1), "[1, 1, 1]"),
        ("pools", (2, 2, 1), "[2, 2, 2]"),
        ("pool_kind", "average", "max"),
        ("batch_norm", False, "true"),
    ],
)
def test_refuses_a_knob_of_the_four_layers_for_another_network(name: str, value: object, default: str) -> None:
    assert getattr(Params(**{name: value}), name) == value
    with pytest.raises(ValueError, match=f"^{name} is .* and network is resnet18") as refused:
        Params(network="resnet18", **{name: value})
    assert f"leave {name} at {default}" in str(refused.value)


def test_every_other_knob_goes_with_another_network() -> None:
    assert Params(network="resnet18", pooling="max", dimension=128, channels=(64,)).network == "resnet18"

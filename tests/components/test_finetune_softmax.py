from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from components.finetune_softmax.params import Params
from components.finetune_softmax.step import finetune_softmax, what_it_did
from components.launch import Outputs
from retrieval.candidates import Candidate, Embedded, Judge, better_of, joined_with_features
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.features import embed, save_features
from retrieval.metrics import recall_at_1
from retrieval.model_folder import read_model_manifest
from retrieval.models import ModelConfig, build_network, load_model, save_model

SMALL = {"batch_size": 10, "softmax_epochs": 15, "softmax_learning_rate": 0.05}


def write_inputs(folder: Path, shared_classes: bool = True) -> tuple[Path, Path]:
    """60 images of three classes, each with a bright band of its own, and a network that knows nothing.

    How bright an image is as a whole tells nothing of its class, and that is what an untrained network sees.
    """
    labels = np.arange(60) % 3
    random = np.random.default_rng(0)
    pixels = random.integers(0, 40, (60, 8, 8, 3), dtype=np.uint8)
    pixels += random.integers(0, 150, (60, 1, 1, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label : 2 * label + 3] += 60
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


def write_features(folder: Path, told: float) -> None:
    """A backbone, and features of which those of a class are the nearer to one another the more is told."""
    torch.manual_seed(1)
    backbone = build_network(ModelConfig(image_size=8, dimension=3, channels=(4, 4, 8)))
    data = Dataset(folder / "dataset")
    digest = save_model(folder / "backbone", backbone, {"dataset": data.digest}, {}).digest
    noise = np.random.default_rng(2).normal(size=(len(data), 3))
    values = torch.tensor(told * np.eye(3)[data.labels] + noise)
    save_features(folder / "features", values, data.digest, {}, digest)


def tune(params: Params, dataset: Path, model: Path, tuned: Path) -> Outputs:
    """The step, with the features that lie beside the dataset; without `join` it never looks for them."""
    folder = dataset.parent
    return finetune_softmax(params, dataset, folder / "backbone", folder / "features", model, tuned)


@pytest.mark.usefixtures("mlflow_home")
def test_it_raises_the_network_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, model = write_inputs(tmp_path)
    outputs = tune(Params(**SMALL), dataset, model, tmp_path / "tuned")["tuned_model"]
    assert outputs["validation_recall_at_1"] > 0.75
    assert outputs["validation_accuracy"] > 0.75
    assert outputs["softmax_loss"] > 0
    assert outputs["epochs"] == 15
    assert outputs["images_per_second"] > 0
    shown = capsys.readouterr().out
    assert "60 images of 8 px, 30 of 3 classes to train on; four_layer, d = 16" in shown
    before, after = (outputs[f"validation_recall_at_1_{when}_refined"] for when in ("before", "after"))
    assert ("did not raise" in shown) == (after <= before)
    assert outputs["validation_recall_at_1"] == max(before, after)
    assert "refinement " in shown
    tuned, manifest = load_model(tmp_path / "tuned"), read_model_manifest(tmp_path / "tuned")
    assert tuned.dimension == outputs["dimension"]
    assert manifest.facts["softmax"] == ("fine-tuned" if after > before else "as it came")
    assert manifest.facts["labels"] == "given"
    data = Dataset(dataset)
    rows = data.rows("validation")
    found = recall_at_1(embed(tuned, data, rows, torch.device("cpu")), torch.from_numpy(data.labels[rows]))
    assert found == outputs["validation_recall_at_1"], "what was written is what was chosen"
    assert manifest.made_from["model"] == read_model_manifest(model).digest
    assert manifest.digest != read_model_manifest(model).digest
    assert after > before, "the images are made so that training helps"


@pytest.mark.usefixtures("mlflow_home")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    digests = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        tune(Params(**SMALL, seed=seed), dataset, model, tmp_path / str(number))
        digests.append(read_model_manifest(tmp_path / str(number)).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.usefixtures("mlflow_home")
def test_weights_are_averaged_on_request(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    states = []
    for share in (1.0, 0.5):
        params = Params(**SMALL, refine="none", average_from=share)
        tune(params, dataset, model, tmp_path / f"{share}")
        states.append(load_model(tmp_path / f"{share}").state_dict())
    assert not torch.equal(states[0]["network.embedding.weight"], states[1]["network.embedding.weight"])


@pytest.mark.usefixtures("mlflow_home")
def test_accuracy_is_not_measured_on_classes_it_never_saw(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path, shared_classes=False)
    outputs = tune(Params(**SMALL | {"softmax_epochs": 1}), dataset, model, tmp_path / "tuned")
    assert "validation_accuracy" not in outputs["tuned_model"]


@pytest.mark.usefixtures("mlflow_home")
def test_nothing_is_chosen_on_validation_images_of_one_class(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path, shared_classes=False)
    write_features(tmp_path, told=9.0)
    outputs = tune(Params(**SMALL | {"softmax_epochs": 1}, join="auto"), dataset, model, tmp_path / "tuned")
    assert not [name for name in outputs["tuned_model"] if name.startswith("validation_recall_at_1")]
    facts = read_model_manifest(tmp_path / "tuned").facts
    assert (facts["softmax"], facts["refinement"], facts["joined"]) == ("fine-tuned", "none", "none")
    for name in ("softmax_why", "refinement_why", "joined_why"):
        assert "the validation images have no two classes" in facts[name]


@pytest.mark.usefixtures("mlflow_home")
def test_a_rate_too_high_stops_and_names_the_step(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    with pytest.raises(ValueError, match=r"finetune_softmax: the loss is (nan|inf) at step \d+ of 45"):
        tune(Params(**SMALL | {"softmax_learning_rate": 1e30}), dataset, model, tmp_path / "tuned")


@pytest.mark.usefixtures("mlflow_home")
def test_fine_tuning_that_harms_leaves_the_model_as_it_came(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    tune(Params(**SMALL, refine="none"), dataset, model, tmp_path / "good")
    harm = Params(batch_size=30, softmax_epochs=1, softmax_learning_rate=30.0, refine="none")
    outputs = tune(harm, dataset, tmp_path / "good", tmp_path / "tuned")["tuned_model"]
    assert outputs["validation_recall_at_1_after"] < outputs["validation_recall_at_1_before"]
    good, tuned = load_model(tmp_path / "good").state_dict(), load_model(tmp_path / "tuned").state_dict()
    assert all(torch.equal(good[name], tuned[name]) for name in good)
    facts = read_model_manifest(tmp_path / "tuned").facts
    assert (facts["epochs"], outputs["epochs"]) == (0, 0)
    for told in (outputs, facts):
        assert not {"validation_accuracy", "softmax_loss"} & told.keys(), "they are of the model that was left"
    assert facts["images_per_second"] > 0  # it was trained


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize(("refine", "strength"), [("none", None), ("0", 0.0), ("0.4", 0.4)])
def test_a_refinement_that_is_asked_for_is_used(tmp_path: Path, refine: str, strength: float | None) -> None:
    dataset, model = write_inputs(tmp_path)
    tune(Params(**SMALL | {"softmax_epochs": 1}, refine=refine), dataset, model, tmp_path / "tuned")
    config = load_model(tmp_path / "tuned").config
    assert bool(config.refined_dimension) == (strength is not None)
    assert config.refined_strength == (strength or 0.0)


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize("told", [9.0, 0.0])
def test_features_are_joined_as_validation_gains_by_them(
    tmp_path: Path, told: float, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, model = write_inputs(tmp_path)
    write_features(tmp_path, told)
    alone = tune(Params(batch_size=10, softmax_epochs=2), dataset, model, tmp_path / "alone")["tuned_model"]
    outputs = tune(Params(batch_size=10, softmax_epochs=2, join="auto"), dataset, model, tmp_path / "tuned")
    recall, manifest = outputs["tuned_model"]["validation_recall_at_1"], read_model_manifest(tmp_path / "tuned")
    tuned = load_model(tmp_path / "tuned")
    assert manifest.facts["joined_why"] in capsys.readouterr().out
    if told:
        assert recall == 1 > alone["validation_recall_at_1"]
        assert tuned.config.joined is not None
        assert tuned.config.joined_share == manifest.facts["joined"]
        assert manifest.made_from["backbone"] == read_model_manifest(tmp_path / "backbone").digest
    else:
        assert recall >= alone["validation_recall_at_1"]
        assert ("joined: none" in manifest.facts["joined_why"]) == (tuned.config.joined is None)


@pytest.mark.usefixtures("mlflow_home")
def test_features_of_another_backbone_are_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, model = write_inputs(tmp_path)
    write_features(tmp_path, told=1.0)
    other = build_network(ModelConfig(image_size=8, dimension=3, channels=(4, 4, 8)))
    digest = save_model(tmp_path / "backbone", other, {"dataset": Dataset(dataset).digest}, {}).digest
    with pytest.raises(ValueError, match=f"were made by backbone .* not by the one given, {digest[:12]}; give the"):
        tune(Params(**SMALL, join="0.5"), dataset, model, tmp_path / "tuned")
    assert "epoch" not in capsys.readouterr().out
    alone, judge = of("before", 0.5), Judge(Dataset(dataset), torch.arange(30) % 3, "none", torch.device("cpu"))
    with pytest.raises(ValueError, match="were made by backbone"):
        joined_with_features("auto", alone, judge, tmp_path / "backbone", tmp_path / "features")


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize("labels", ["given", "none"])
@pytest.mark.parametrize(("made_from", "shown"), [({"dataset": "f" * 64}, "f" * 12), ({}, "unknown")])
def test_a_backbone_of_another_dataset_is_refused(
    tmp_path: Path, labels: str, made_from: dict[str, str], shown: str
) -> None:
    dataset, model = write_inputs(tmp_path)
    write_features(tmp_path, told=1.0)
    save_model(tmp_path / "backbone", load_model(tmp_path / "backbone"), made_from, {})
    with pytest.raises(ValueError, match=f"was trained on dataset {shown}, not on the dataset given, .* Run pretrain"):
        tune(Params(**SMALL, labels=labels, join="0.5"), dataset, model, tmp_path / "tuned")


@pytest.mark.usefixtures("mlflow_home")
def test_features_that_are_asked_for_are_joined(tmp_path: Path) -> None:
    dataset, model = write_inputs(tmp_path)
    write_features(tmp_path, told=0.0)
    tune(Params(**SMALL | {"softmax_epochs": 1}, join="0.3", refine="none"), dataset, model, tmp_path / "tuned")
    tuned, backbone = load_model(tmp_path / "tuned"), load_model(tmp_path / "backbone")
    assert tuned.config.joined_share == 0.3
    assert tuned.dimension == 16 + 3
    images = torch.rand(4, 3, 8, 8)
    with torch.inference_mode():
        cosines, theirs = (normalize(model(images)) @ normalize(model(images)).T for model in (tuned, backbone))
        own = normalize(tuned.network((images - tuned.mean) / tuned.std))
    torch.testing.assert_close(cosines, 0.7 * own @ own.T + 0.3 * theirs)


def of(name: str, recall: float | None) -> Candidate:
    network = build_network(ModelConfig(image_size=8, dimension=16, channels=(4, 4, 8)))
    return Candidate(name, network, Embedded(torch.empty(0), torch.empty(0)), network, recall, recall, "")


@pytest.mark.parametrize(
    ("before", "after", "goes_on", "said"),
    [
        (0.9, 0.9, "before", "did not raise R@1 of the validation images: 90.0% before, 90.0% after; the model as"),
        (0.9, 0.8, "before", "did not raise"),
        (0.9, 0.91, "after", "raised R@1 of the validation images: 90.0% before, 91.0% after; the fine-tuned"),
        (None, None, "after", "cannot be measured"),
    ],
)
def test_the_better_model_goes_on_and_a_tie_is_no_gain(
    before: float | None, after: float | None, goes_on: str, said: str
) -> None:
    first, second = of("before", before), of("after", after)
    chosen = better_of(first, second)
    assert chosen.name == goes_on
    assert said in what_it_did(first, second, chosen)


@pytest.mark.usefixtures("mlflow_home")
def test_without_labels_the_model_goes_on_as_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, model = write_inputs(tmp_path)
    outputs = tune(Params(**SMALL, labels="none"), dataset, model, tmp_path / "tuned")["tuned_model"]
    assert "labels=none: no classes to put a softmax layer over" in capsys.readouterr().out
    assert outputs["epochs"] == 0
    facts = read_model_manifest(tmp_path / "tuned").facts
    assert (facts["softmax"], facts["labels"]) == ("as it came", "none")
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (model, tmp_path / "tuned")]
    assert weights[0] == weights[1]
    assert read_model_manifest(tmp_path / "tuned").made_from["model"] == read_model_manifest(model).digest


@pytest.mark.usefixtures("mlflow_home")
@pytest.mark.parametrize("join", ["none", "0.25"])
def test_without_labels_only_what_stays_true_is_said_of_the_model_again(tmp_path: Path, join: str) -> None:
    dataset, model = write_inputs(tmp_path)
    write_features(tmp_path, 1.0)
    decided = {"network": "four_layer", "loss": "triplet", "loss_why": "few images a class", "resize": "drawing"}
    measured = {"images_per_second": 4502.1, "validation_recall_at_1": 0.6, "without_labels_adds": 0.1}
    counted = {"parameters": 10216, "epochs": 3, "dimension": 16}
    save_model(model, load_model(model), {}, decided | measured | counted)
    outputs = tune(Params(**SMALL, labels="none", join=join), dataset, model, tmp_path / "tuned")["tuned_model"]
    facts = read_model_manifest(tmp_path / "tuned").facts
    assert decided.items() <= facts.items()
    assert not (measured | {"parameters": 0}).keys() & (facts | outputs).keys()
    assert (facts["epochs"], facts["dimension"]) == (0, 16 if join == "none" else 19)


@pytest.mark.usefixtures("mlflow_home")
def test_without_labels_a_given_share_of_the_features_is_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, model = write_inputs(tmp_path)
    write_features(tmp_path, 1.0)
    outputs = tune(Params(**SMALL, labels="none", join="0.25"), dataset, model, tmp_path / "tuned")["tuned_model"]
    assert "features of pretrain joined: share 0.25, asked for" in capsys.readouterr().out
    assert outputs["dimension"] == 16 + 3
    manifest = read_model_manifest(tmp_path / "tuned")
    assert (manifest.facts["joined"], manifest.facts["dimension"]) == (0.25, 19)
    assert manifest.made_from["backbone"] == read_model_manifest(tmp_path / "backbone").digest
    data = Dataset(dataset)
    rows = data.rows("validation")
    alone, features, joined = (
        embed(load_model(tmp_path / name), data, rows, torch.device("cpu")) for name in ("model", "backbone", "tuned")
    )
    cosines = [normalize(values) @ normalize(values).T for values in (alone, features, joined)]
    torch.testing.assert_close(cosines[2], 0.75 * cosines[0] + 0.25 * cosines[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"softmax_epochs": 0}, "softmax_epochs is 0; it must be 1 or more"),
        ({"softmax_learning_rate": 0.0}, "softmax_learning_rate is 0.0"),
        ({"average_from": 1.5}, "average_from is 1.5; it is a share of the steps"),
        ({"refine": "1.5"}, "refine is '1.5'; give auto, none or a number from 0 to 1"),
        ({"join": "both"}, "join is 'both'; give none, auto or a number from 0 to 1"),
        ({"join": "auto", "labels": "none"}, "join is 'auto' with labels=none"),
        ({"refine": "0.4", "labels": "none"}, "refine is '0.4' with labels=none"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0; both must be from 0 to below 1"),
        ({"labels": "some"}, "Unknown labels 'some'; choose one of: given, none"),
        ({"robust": "holes"}, "Unknown robust 'holes'"),
        ({"augment": "flip"}, "Unknown augment 'flip'; choose one of: auto, none"),
    ],
)
def test_refuses(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Params(**wrong)

import base64
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.evaluate.params import Params
from components.evaluate.step import evaluate
from retrieval import promotion, registry, scoring
from retrieval.answer_records import evaluations_of, find_answers, find_pictures
from retrieval.answers import load_answers, same_queries
from retrieval.clusters import load_clusters, save_clusters
from retrieval.dataset import Dataset, save_dataset
from retrieval.evaluation import ANSWERS, CHAMPION_ANSWERS, PICTURES, load_evaluation, load_queries
from retrieval.features import embed, save_features
from retrieval.manifest import file_digest
from retrieval.model_folder import read_model_manifest
from retrieval.models import ModelConfig, build_network, load_model, save_model
from retrieval.pictures import load_pictures
from retrieval.robustness import HIDDEN
from retrieval.tracking import client, step_run

pytestmark = pytest.mark.usefixtures("mlflow_home")

SMALL: dict[str, Any] = {"bootstrap_resamples": 200, "gallery_queries": 6, "device": "cpu"}
SPEEDS = r'<section id="efficiency">.*?</section>'
INPUTS = ("dataset", "features", "clusters", "model", "tuned_model")


@dataclasses.dataclass
class Made:
    """What the steps before evaluate leave, of 90 images in 3 classes that their colours nearly tell apart."""

    folder: Path

    def paths(self, **others: Path) -> dict[str, Any]:
        return {name: self.folder / name for name in INPUTS} | others

    @property
    def data(self) -> Dataset:
        return Dataset(self.folder / "dataset")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("evaluate")
    data = save_images(folder / "dataset")
    vectors = data.read(np.arange(len(data))).mean((1, 2)) / 255.0  # (90, 3), the mean colour
    noise = np.random.default_rng(1).normal(size=vectors.shape)
    facts: dict[str, Any] = {"backbone": "none", "embedding_images_per_second": 20.5}
    save_features(folder / "features", vectors + 0.2 * noise, data.digest, facts)
    facts = {"clusters": 3, "clusters_why": "3 clusters: as many as classes", "images_per_second": 7.5}
    facts |= {"embedding_images_per_second": 8.5}
    clusters = np.zeros(len(data), np.int64), np.zeros(3, np.int64)
    save_clusters(folder / "clusters", [vectors.astype(np.float32)], *clusters, {"dataset": data.digest}, facts)
    for seed, name in enumerate(("model", "tuned_model")):
        torch.manual_seed(seed)
        network = build_network(ModelConfig(dimension=4, image_size=8, channels=(4, 4, 4)))
        facts = {"epochs": seed, "images_per_second": 125.0 + seed}
        save_model(folder / name, network, {"dataset": data.digest}, facts)
    return Made(folder)


def save_images(
    folder: Path, seed: int = 0, image_size: int = 8, splits: Sequence[str] = ("train", "validation", "test")
) -> Dataset:
    generator = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    images = generator.integers(0, 200, (90, image_size, image_size, 3), dtype=np.uint8)
    images[np.arange(90), :, :, labels] += generator.integers(0, 50, (90, 1, 1), dtype=np.uint8)
    columns = {
        "id": np.arange(90),
        "label": labels,
        "class_name": [f"class {label}" for label in labels],
        "split": np.repeat(splits, 90 // len(splits)),
        "source": [f"{row}.png" for row in range(90)],
        "sha256": [f"{seed:032d}{row:032d}" for row in range(90)],
        "width": [image_size] * 90,
        "height": [image_size] * 90,
    }
    return save_dataset(folder, [images], pa.table(columns), [f"class {label}" for label in range(3)], {})


@pytest.fixture(scope="module")
def outputs(made: Made, tmp_path_factory: pytest.TempPathFactory, mlflow_folder: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKONE_HOME", str(mlflow_folder))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RANKONE_PIPELINE_RUN", "RANK"):
            patch.delenv(name, raising=False)
        metadata = evaluate(Params(**SMALL), **made.paths(evaluation=folder / "evaluation", report=folder / "report"))
    return folder, dict(metadata["evaluation"])


def recall_of(vectors: np.ndarray, labels: np.ndarray) -> float:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -2)
    return float(np.mean(labels[similarities.argmax(1)] == labels))


def test_every_stage_is_measured_on_the_test_images(made: Made, outputs: tuple[Path, dict[str, Any]]) -> None:
    data, (folder, metadata) = made.data, outputs
    rows = data.rows("test")
    expected = {
        "pretrain": np.load(made.folder / "features" / "features.npy")[rows],
        "co_cluster": np.load(made.folder / "clusters" / "targets.npy")[rows],
    }
    for step, name in {"finetune_metric": "model", "finetune_softmax": "tuned_model"}.items():
        expected[step] = embed(load_model(made.folder / name), data, rows, torch.device("cpu")).numpy()
    measured = load_evaluation(folder / "evaluation")
    assert [stage.name for stage in measured.stages] == list(expected)
    for stage in measured.stages:
        assert stage.recall_at_1 == pytest.approx(recall_of(expected[stage.name], data.labels[rows]))
        assert metadata[f"{stage.name}_recall_at_1"] == stage.recall_at_1
        assert stage.recall_at_1_to_train is not None
    assert measured.recall_at_1 == measured.stages[-1].recall_at_1


def test_the_evaluation_names_what_it_measured(made: Made, outputs: tuple[Path, dict[str, Any]]) -> None:
    folder, metadata = outputs
    measured = load_evaluation(folder / "evaluation")
    assert measured.model_digest == read_model_manifest(made.folder / "tuned_model").digest
    assert measured.dataset_digest == made.data.digest
    assert metadata["evaluation_digest"] == measured.evaluation_digest
    manifest = json.loads((folder / "evaluation" / "manifest.json").read_text())
    assert set(manifest["made_from"]) == set(INPUTS)
    queries = load_queries(folder / "evaluation")
    assert len(queries) == measured.queries == metadata["queries"] == 30
    assert set(queries["query"].to_pylist()) == set(made.data.rows("test").tolist())


def test_metadata_are_scalars_without_a_threshold_that_is_none(outputs: tuple[Path, dict[str, Any]]) -> None:
    folder, metadata = outputs
    threshold = load_evaluation(folder / "evaluation").threshold
    assert all(isinstance(value, str | int | float) for value in metadata.values())
    assert {"recall_at_1", "recall_at_1_low", "recall_at_1_high", "map_at_r", "coverage"} <= set(metadata)
    assert metadata.get("threshold") == threshold.value
    assert ("threshold" in metadata) == threshold.reached


def test_the_same_seed_gives_the_same_bytes(made: Made, outputs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    evaluate(Params(**SMALL), **made.paths(evaluation=tmp_path / "evaluation", report=tmp_path / "report"))
    folders = (tmp_path, outputs[0])
    assert len({file_digest(folder / "evaluation" / "queries.parquet") for folder in folders}) == 1
    numbers = [load_evaluation(folder / "evaluation") for folder in folders]
    assert dataclasses.replace(numbers[0], speeds=()) == dataclasses.replace(numbers[1], speeds=())
    pages = [re.sub(SPEEDS, "", (folder / "report").read_text(), flags=re.DOTALL) for folder in folders]
    assert pages[0] == pages[1] != (outputs[0] / "report").read_text()


def test_the_model_is_measured_beyond_its_test_images(made: Made, outputs: tuple[Path, dict[str, Any]]) -> None:
    folder, metadata = outputs
    measured = load_evaluation(folder / "evaluation")
    assert measured.feature_learning is not None
    assert (measured.feature_learning.images, measured.feature_learning.feature_dimension) == (30, 3)
    assert metadata["linear_cka"] == measured.feature_learning.projection.linear_cka
    whole, *hidden = measured.missing_parts
    assert (whole.share, whole.recall_at_1, whole.queries) == (0, measured.recall_at_1, 30)
    assert [(part.shape, part.share) for part in hidden] == list(HIDDEN)
    assert metadata["recall_at_1_side_50_hidden"] == hidden[-1].recall_at_1
    assert measured.further_datasets == ()
    assert metadata["accuracy"] == measured.stages[-1].accuracy


def test_the_speed_of_every_stage_is_told(made: Made, outputs: tuple[Path, dict[str, Any]]) -> None:
    measured = load_evaluation(outputs[0] / "evaluation")
    embedding = {speed.stage: speed.embedding_images_per_second for speed in measured.speeds}
    assert (embedding["pretrain"], embedding["co_cluster"]) == (20.5, 8.5), "as the steps say, whose vectors are there"
    assert all((embedding[name] or 0) > 0 for name in ("finetune_metric", "finetune_softmax"))
    trained = {speed.stage: speed.training_images_per_second for speed in measured.speeds}
    assert trained == {"pretrain": None, "co_cluster": 7.5, "finetune_metric": 125.0, "finetune_softmax": 126.0}
    assert all(speed.search_queries_per_second > 0 for speed in measured.speeds)


def test_the_co_clusters_that_were_drawn_are_on_the_page(made: Made, tmp_path: Path) -> None:
    (tmp_path / "clusters").mkdir()
    for name in ("block_matrix.png", "cluster_sheet_01.jpeg"):
        (tmp_path / "clusters" / name).write_bytes(name.encode())
    targets, assigned = load_clusters(made.folder / "clusters").targets, np.zeros(90, np.int64)
    from_data = {"dataset": made.data.digest}
    save_clusters(tmp_path / "clusters", [targets], assigned, np.zeros(3, np.int64), from_data, {})
    places = {"clusters": tmp_path / "clusters", "evaluation": tmp_path / "evaluation", "report": tmp_path / "report"}
    evaluate(Params(**FEW), **made.paths(**places))
    page = (tmp_path / "report").read_text()
    assert "The co-clusters" in page
    for name in ("block_matrix.png", "cluster_sheet_01.jpeg"):
        assert base64.b64encode(name.encode()).decode() in page


@pytest.mark.parametrize("labels", ["given", "none"])
def test_a_model_trained_without_labels_is_told_beside_the_pretrained_features(
    labels: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(made.folder / "model")
    save_model(tmp_path / "tuned", model, {"dataset": made.data.digest}, {"labels": labels, "joined": "none"})
    paths = made.paths(tuned_model=tmp_path / "tuned", evaluation=tmp_path / "evaluation", report=tmp_path / "report")
    measured = evaluate(Params(**FEW), **paths)["evaluation"]
    found = re.search(r"evaluate: labels=none: R@1 on the test images is .*", capsys.readouterr().out)
    page = (tmp_path / "report").read_text()
    assert (found is not None) == ("labels=none: R@1 on the test images is" in page) == (labels == "none")
    if found:
        points = 100 * (measured["recall_at_1"] - measured["pretrain_recall_at_1"])
        assert f"is {abs(points):.1f} points {'ahead' if points > 0 else 'behind'}." in found[0]
        assert ("-p join=0.5" in found[0]) == (points < 0)
        assert found[0].removeprefix("evaluate: ") in page


def test_further_datasets_get_a_row_each(made: Made, tmp_path: Path) -> None:
    larger = save_images(tmp_path / "larger", seed=4, image_size=12, splits=["train"] * 90)
    folders = f"{made.folder / 'dataset'}, {larger.folder}"
    fewer = Params(**SMALL | {"gallery_queries": 0, "occlusion_queries": 0}, further_datasets=folders)
    outputs = evaluate(fewer, **made.paths(evaluation=tmp_path / "evaluation", report=tmp_path / "report"))
    measured = load_evaluation(tmp_path / "evaluation")
    own, other = measured.further_datasets
    assert (own.recall_at_1, own.images, own.whole) == (measured.recall_at_1, 30, False)
    assert (own.recall_at_1_low, own.recall_at_1_high) == (measured.recall_at_1_low, measured.recall_at_1_high)
    assert (other.name, other.images, other.classes, other.whole) == (str(larger.folder), 90, 3, True)
    assert (other.image_size, other.model_image_size) == (12, 8)
    assert outputs["evaluation"]["further_2_recall_at_1"] == other.recall_at_1
    assert measured.missing_parts == ()
    page = (tmp_path / "report").read_text()
    assert "12 px, brought to 8 px; all images, it has none for test" in page
    manifest = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())
    assert manifest["made_from"][f"further dataset {larger.folder}"] == larger.digest


def test_further_images_that_the_model_was_trained_on_are_left_out(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = save_images(tmp_path / "again", splits=["test"] * 90)
    fewer = Params(**SMALL | {"gallery_queries": 0, "occlusion_queries": 0}, further_datasets=str(again.folder))
    evaluate(fewer, **made.paths(evaluation=tmp_path / "evaluation", report=tmp_path / "report"))
    measured = load_evaluation(tmp_path / "evaluation")
    (further,) = measured.further_datasets
    assert (further.images, further.left_out, further.recall_at_1) == (30, 60, measured.recall_at_1)
    assert "the model was trained on 60 of its 90 images or chosen by them" in capsys.readouterr().out
    assert "60 more are left out, which the model was trained on or chosen by" in (tmp_path / "report").read_text()


def test_what_is_no_dataset_is_refused_before_anything_is_measured(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Params(**SMALL, further_datasets=f"{made.folder / 'dataset'},{tmp_path / 'nothing'}")
    with pytest.raises(ValueError, match="nothing', which cannot be read as a dataset"):
        evaluate(params, **made.paths(evaluation=tmp_path / "evaluation", report=tmp_path / "report"))
    assert "R@1" not in capsys.readouterr().out


def test_the_page_and_the_numbers_are_in_mlflow(outputs: tuple[Path, dict[str, Any]]) -> None:
    _, metadata = outputs
    experiment = client().get_experiment_by_name("rankone").experiment_id
    query = f"tags.`rankone.evaluation_digest` = '{metadata['evaluation_digest']}' and tags.`rankone.step` = 'evaluate'"
    run = client().search_runs([experiment], query)[0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["recall_at_1"] == metadata["recall_at_1"]
    assert run.data.metrics["pretrain_recall_at_1"] == metadata["pretrain_recall_at_1"]
    assert {file.path for file in client().list_artifacts(run.info.run_id)} >= {"report.html", "queries.parquet"}


def test_the_page_is_one_file_with_the_reasons_of_the_steps(outputs: tuple[Path, dict[str, Any]]) -> None:
    page = (outputs[0] / "report").read_text()
    assert page.startswith("<!doctype html>")
    assert "3 clusters: as many as classes" in page
    assert page.partition('<section id="classes">')[0].count("data:image/png;base64,") == 6 * 6


def test_the_answers_lie_beside_the_numbers(made: Made, outputs: tuple[Path, dict[str, Any]]) -> None:
    folder, metadata = outputs
    answers, measured = load_answers(folder / "evaluation" / ANSWERS), load_evaluation(folder / "evaluation")
    assert (answers.evaluation_digest, answers.model_digest) == (measured.evaluation_digest, measured.model_digest)
    assert answers.recall_at_1 == pytest.approx(measured.recall_at_1)
    assert answers.dimension == 4
    queries = load_queries(folder / "evaluation")
    expected = {made.data.index["sha256"][row["query"]].as_py(): row["correct"] for row in queries.to_pylist()}
    assert dict(zip(answers.images, answers.correct, strict=True)) == expected
    index = made.data.index
    found = {
        index["sha256"][row["query"]].as_py(): (
            index["sha256"][row["nearest"]].as_py(),
            index["class_name"][row["nearest"]].as_py(),
            row["similarity"],
        )
        for row in queries.to_pylist()
    }
    told = zip(answers.nearest, answers.nearest_classes, answers.similarities, strict=True)
    assert dict(zip(answers.images, told, strict=True)) == found
    assert measured.training_images == 30
    assert not (folder / "evaluation" / CHAMPION_ANSWERS).exists(), "there is no champion yet"
    assert "champion_recall_at_1" not in metadata


def test_small_pictures_of_the_test_images_lie_beside_the_answers(
    made: Made, outputs: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pictures = load_pictures(outputs[0] / "evaluation" / PICTURES)
    test = made.data.index.take(made.data.rows("test"))["sha256"].to_pylist()
    assert set(pictures) == set(test), "they are fewer than pictures_kept"
    row = int(next(iter(pictures)))  # the sha256 of these images is their row
    shown = np.asarray(Image.open(io.BytesIO(pictures[f"{row:064d}"])))
    assert np.array_equal(shown, made.data.read(np.array([row]))[0])
    few, none = (Params(**FEW, pictures_kept=most) for most in (5, 0))
    evaluate(few, **made.paths(evaluation=tmp_path / "few", report=tmp_path / "report"))
    kept, answers = load_pictures(tmp_path / "few" / PICTURES), load_answers(tmp_path / "few" / ANSWERS)
    assert 0 < len(kept) <= 5
    first = int(np.flatnonzero(~answers.correct)[0])
    assert {answers.images[first], answers.nearest[first]} <= set(kept), "of a mistake, with what was found"
    evaluate(none, **made.paths(evaluation=tmp_path / "none", report=tmp_path / "report"))
    assert not (tmp_path / "none" / PICTURES).exists()


def test_any_version_can_be_scored_on_any_dataset(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = champion_of("any", made.folder / "model")
    other = save_images(tmp_path / "dataset", seed=5)
    line = ["--model", "any", "--version", "1", "--dataset", str(other.folder), "--device", "cpu"]
    scoring.main([*line, "--pictures", "7"])
    (digest,) = evaluations_of(version)
    answers = find_answers(version, digest)
    assert answers is not None
    assert f"any version 1: R@1 {answers.recall_at_1:.4f} on 30 queries" in capsys.readouterr().out
    embedded = embed(load_model(made.folder / "model"), other, other.rows("test"), torch.device("cpu")).numpy()
    assert answers.recall_at_1 == pytest.approx(recall_of(embedded, other.labels[other.rows("test")]))
    assert 0 < len(find_pictures(version, digest)) <= 7
    with pytest.raises(SystemExit, match="scoring: There is no version 2 of a registered model 'any'"):
        scoring.main([*line, "--version", "2"])
    with pytest.raises(SystemExit, match=r"scoring: .*is no dataset"):
        scoring.main([*line, "--dataset", str(tmp_path)])


def champion_of(name: str, model: Path) -> registry.ModelVersion:
    with step_run("promote", {}) as run:
        version = registry.register(model, name, read_model_manifest(model).digest, {}, run.run_id)
    promotion.promote(name, version.version, "It is good.")
    return version


FEW: dict[str, Any] = SMALL | {"gallery_queries": 0, "occlusion_queries": 0}


def test_the_champion_is_scored_once_on_the_same_images(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = champion_of("scored", made.folder / "model")
    params = Params(**FEW, registered_model="scored")
    outputs = evaluate(params, **made.paths(evaluation=tmp_path / "evaluation", report=tmp_path / "report"))
    assert "champion, scored version 1, is scored on these test images for the first time" in capsys.readouterr().out
    own, champion = (load_answers(tmp_path / "evaluation" / name) for name in (ANSWERS, CHAMPION_ANSWERS))
    measured = load_evaluation(tmp_path / "evaluation")
    assert same_queries(own, champion)
    stage = next(stage for stage in measured.stages if stage.name == "finetune_metric")
    assert champion.recall_at_1 == outputs["evaluation"]["champion_recall_at_1"] == pytest.approx(stage.recall_at_1)
    assert (champion.model_digest, champion.dimension) == (version.model_digest, 4)
    assert (champion.images_per_second or 0) > 0
    manifest = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())
    assert manifest["made_from"]["champion"] == version.model_digest
    recorded = find_answers(version, measured.evaluation_digest)
    assert recorded is not None
    assert np.array_equal(recorded.correct, champion.correct)

    monkeypatch.setattr(scoring, "fetch_model", lambda *_: pytest.fail("it was scored before"))
    again = evaluate(params, **made.paths(evaluation=tmp_path / "second", report=tmp_path / "page"))
    assert again["evaluation"]["champion_recall_at_1"] == champion.recall_at_1
    assert "was scored on these test images before" in capsys.readouterr().out


def test_a_champion_that_was_trained_on_test_images_is_scored_and_that_is_said(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = champion_of("favoured", made.folder / "model")
    test = made.data.index.take(made.data.rows("test"))
    splits = ["train"] * 4 + ["test"] * (len(test) - 4)  # another seed had split them
    listed = pa.table({"sha256": test["sha256"], "split": splits})
    pq.write_table(listed, tmp_path / "images.parquet")
    registry.keep_file(version, tmp_path / "images.parquet", "data/images.parquet")
    params = Params(**FEW, registered_model="favoured")
    evaluate(params, **made.paths(evaluation=tmp_path / "evaluation", report=tmp_path / "report"))
    assert f"was trained on 4 of these {len(test)} test images, which favours it" in capsys.readouterr().out


def test_a_champion_for_smaller_images_is_scored_on_them_resized(made: Made, tmp_path: Path) -> None:
    torch.manual_seed(3)
    larger = save_images(tmp_path / "images of 12 px", image_size=12)
    answers = scoring.score(made.folder / "tuned_model", Dataset(larger.folder), torch.device("cpu"), 16)
    assert len(answers.correct) == 30
    assert answers.images_per_second is None


def test_a_champion_for_larger_images_is_not_judged_on_what_they_lost(made: Made, tmp_path: Path) -> None:
    network = build_network(ModelConfig(dimension=4, image_size=12, channels=(4, 4, 4)))
    save_model(tmp_path / "larger", network, {}, {})
    with pytest.raises(ValueError, match=r"looks at images of 12 px, these are stored at 8 px.*image_size=12"):
        scoring.score(tmp_path / "larger", made.data, torch.device("cpu"), 16)


def test_a_champion_of_images_fitted_otherwise_is_not_scored(made: Made, tmp_path: Path) -> None:
    save_model(tmp_path / "drawn", build_network(ModelConfig(image_size=8)), {}, {"resize": "drawing"})
    with pytest.raises(ValueError, match="fitted by resize=drawing, these are by resize=crop"):
        scoring.score(tmp_path / "drawn", made.data, torch.device("cpu"), 16)


def test_a_champion_that_is_the_model_itself_or_cannot_be_read_is_not_scored(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion_of("itself", made.folder / "tuned_model")
    places = made.paths(evaluation=tmp_path / "first", report=tmp_path / "report")
    evaluate(Params(**FEW, registered_model="itself"), **places)
    assert not (tmp_path / "first" / CHAMPION_ANSWERS).exists()

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "weights.bin").write_bytes(b"")
    with step_run("promote", {}) as run:
        registry.register(tmp_path / "strange", "strange", "f" * 64, {}, run.run_id)
    promotion.promote("strange", 1, "It is strange.")
    places = made.paths(evaluation=tmp_path / "second", report=tmp_path / "report")
    outputs = evaluate(Params(**FEW, registered_model="strange"), **places)
    assert "strange version 1, cannot be scored on these test images" in capsys.readouterr().out
    assert "champion_recall_at_1" not in outputs["evaluation"]


def test_artifacts_of_another_dataset_are_refused(made: Made, tmp_path: Path) -> None:
    other = save_images(tmp_path / "dataset", seed=9)
    paths = made.paths(dataset=other.folder, evaluation=tmp_path / "evaluation", report=tmp_path / "report")
    with pytest.raises(ValueError, match=f"features was made from dataset {made.data.digest[:12]}, not from"):
        evaluate(Params(**SMALL), **paths)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("acceptance", 0.0),
        ("acceptance", 1.01),
        ("bootstrap_resamples", 10),
        ("gallery_queries", -1),
        ("gallery_queries", 201),
        ("pictures_kept", -1),
        ("pictures_kept", 20_001),
        ("batch_size", 1),
        ("threshold_trials", 0),
        ("occlusion_queries", -1),
        ("device", "gpu"),
        ("registered_model", "a/b"),
    ],
)
def test_bad_knobs_are_refused(knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=knob):
        Params(**{knob: value})

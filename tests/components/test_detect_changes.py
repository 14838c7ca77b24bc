"""The step against a real registry: what it decides, what it counts, what its page says."""

import dataclasses
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

from components.detect_changes.params import OPERATIONAL, Params
from components.detect_changes.step import CODE, detect_changes
from components.launch import launch
from operations.parameters import all_knobs
from retrieval import promotion, registry
from retrieval.changes import image_list
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.drift import Reference, save_reference
from retrieval.embedder import Embedder
from retrieval.evaluation import IMAGES, REFERENCE
from retrieval.models import ModelConfig, build_network, save_model
from retrieval.registry import ModelVersion
from retrieval.retraining import TAG
from retrieval.tracking import TrackingError, client, step_run

pytestmark = pytest.mark.usefixtures("mlflow_home")

DECISIVE = [
    "acceptance",
    "adjust_by",
    "adjust_epochs",
    "alpha",
    "augment",
    "average_from",
    "backbone_depths",
    "backbone_image_size",
    "batch_norm",
    "batch_size",
    "beta",
    "bootstrap_resamples",
    "channels",
    "cifar100_labels",
    "class_order",
    "classes_per_batch",
    "classifier",
    "co_clusters",
    "dimension",
    "disjoint_by",
    "fail_on_class_drop",
    "feature_dimension",
    "feature_power",
    "further_datasets",
    "further_fingerprint",
    "gallery_queries",
    "image_size",
    "images_per_class",
    "join",
    "kernels",
    "label_rounds",
    "label_smoothing",
    "labels",
    "learning_rate",
    "loss",
    "max_images_per_class",
    "max_pixels",
    "max_quarantined_fraction",
    "maximum_class_drop",
    "maximum_dimension",
    "maximum_regression",
    "metric_epochs",
    "min_side",
    "minimum_gain",
    "minimum_images_per_second",
    "minimum_queries",
    "minimum_recall_at_1",
    "network",
    "nonnegative",
    "occlusion_queries",
    "paddings",
    "parquet_image_column",
    "parquet_label_column",
    "pool_kind",
    "pooling",
    "pools",
    "pretrain_epochs",
    "pretrain_learning_rate",
    "pretrain_warmup_epochs",
    "promote_mode",
    "quarter_turns",
    "refine",
    "resize",
    "robust",
    "seed",
    "shrinkage",
    "softmax_epochs",
    "softmax_learning_rate",
    "source",
    "split",
    "strides",
    "test_fraction",
    "threshold_trials",
    "validation_fraction",
    "weight_decay",
    "weights",
    "weights_fingerprint",
]  # every other parameter must be one of these: a decision for whoever adds a knob
CLASSES = ("boot", "fish")


def test_every_parameter_is_part_of_what_a_model_is_made_from_or_has_a_reason_not_to_be() -> None:
    assert sorted([*DECISIVE, *OPERATIONAL]) == sorted(all_knobs())
    assert all(OPERATIONAL.values())
    assert {field.name for field in dataclasses.fields(Params)} <= set(OPERATIONAL), "the step sees only others'"


@dataclasses.dataclass
class Bench:
    """Runs detect_changes on small datasets, of which each image is told by a number."""

    folder: Path
    name: str
    runs: int = 0

    def dataset(self, images: Sequence[tuple[str, int, str]]) -> Dataset:
        """Images as (class, number, split); equal numbers are equal pixels, and the place is that of the row."""
        self.runs += 1
        pixels = np.stack(
            [np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8) for _, number, _ in images]
        )
        labels = [CLASSES.index(name) if name in CLASSES else len(CLASSES) for name, _, _ in images]
        index = {
            "id": range(len(images)),
            "label": labels,
            "class_name": [name for name, _, _ in images],
            "split": [split for _, _, split in images],
            "source": [f"{row}.png" for row in range(len(images))],
            "sha256": [f"{number:064d}" for _, number, _ in images],
            "width": [8] * len(images),
            "height": [8] * len(images),
        }
        names = sorted({name for name, _, _ in images} | set(CLASSES))
        columns = {name: list(values) for name, values in index.items()}
        table = pa.table(columns).select(INDEX_SCHEMA.names)
        return save_dataset(self.folder / f"dataset {self.runs}", [pixels], table, names, {})

    def detect(self, images: Sequence[tuple[str, int, str]], **given: Any) -> "Found":
        """As a pod runs it, by its command line."""
        dataset, knobs = self.dataset(images), {field.name for field in dataclasses.fields(Params)}
        outputs = {name: self.folder / f"{name} {self.runs}" for name in ("changes", "plan", "made_from")}
        values = {"registered_model": self.name, "skip_unchanged": "true", "drift_images": 0, "device": "cpu"} | given
        values = {"metric_epochs": "3", "checkpoints": ""} | values
        line = [f"--dataset={self.folder}/dataset {self.runs}"]
        line += [f"--{name}={path}" for name, path in outputs.items()]
        line += [f"--{'' if name in knobs else 'run.'}{name}={value}" for name, value in values.items()]
        launch(detect_changes, Params, arguments=line)
        texts = {name: path.read_text() for name, path in outputs.items()}
        return Found(dataset, texts["plan"], texts["made_from"], texts["changes"])

    def register(self, found: "Found", weights: int = 0, **tags: str) -> ModelVersion:
        """What promote does at the end of a run that went on: a version, with its images and a reference."""
        folder = self.folder / f"model {self.runs}"
        torch.manual_seed(weights)
        manifest = save_model(folder, build_network(ModelConfig(dimension=4, image_size=8, channels=(4, 4, 4))), {}, {})
        recorded = {TAG: found.made_from} | {f"rankone.{name}": text for name, text in tags.items()}
        with step_run("promote", {}) as run:
            version = registry.register(folder, self.name, manifest.digest, recorded, run.run_id)
        images = self.folder / f"{self.runs} {IMAGES}"
        pq.write_table(image_list(found.dataset.index), images)
        registry.keep_file(version, images, f"data/{IMAGES}")
        return version

    def tags(self) -> dict[str, str]:
        """Of the step's latest run."""
        places = [each.experiment_id for each in client().search_experiments()]
        runs = client().search_runs(places, "tags.`rankone.step` = 'detect_changes'", max_results=1)
        return dict(runs[0].data.tags)


@dataclasses.dataclass(frozen=True)
class Found:
    dataset: Dataset
    plan: str
    made_from: str
    page: str

    @property
    def text(self) -> str:
        """What a person reads of the page."""
        return " ".join(re.sub(r"<[^>]+>", " ", self.page.partition("<body>")[2]).split())


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(tmp_path, re.sub(r"\W+", "-", request.node.name).strip("-"))


def images(*numbers: int) -> list[tuple[str, int, str]]:
    return [(CLASSES[number % 2], number, "test" if number % 3 == 0 else "train") for number in numbers]


TEN = images(*range(10))


def test_a_first_run_trains_and_says_what_it_is_made_from(bench: Bench) -> None:
    found = bench.detect(TEN)
    assert found.plan == "train"
    assert json.loads(found.made_from)["data"] == found.dataset.digest
    assert found.text.startswith("To train: there is no champion yet")
    assert "compared with nothing: there is no champion yet" in found.text


def test_a_run_like_the_champion_is_to_be_skipped(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    version = bench.register(bench.detect(TEN))
    promotion.promote(bench.name, version.version, "The first.")
    capsys.readouterr()
    found = bench.detect(TEN, metric_epochs="3.0", checkpoints="s3://elsewhere", device="auto")
    assert found.plan == "skip: data, parameters and code are those of version 1, the champion"
    assert capsys.readouterr().out.startswith("Nothing to train on: data, parameters and code are those of version 1")
    assert found.text.startswith("Nothing to train on: data, parameters and code are those of version 1, the champion")
    assert f"those of the champion, {bench.name} version 1: no image is new, changed or removed" in found.text
    tags = bench.tags()
    assert (tags["rankone.plan"], tags["rankone.same_as_version"]) == ("skip", "1")
    again = bench.detect(TEN, force="true").plan
    assert re.fullmatch(r"train again: version 1, trained \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", again)
    assert bench.detect(TEN, force="true").plan == again, "a failed training is taken up where it stopped"
    assert bench.detect(TEN, maximum_age_days="1").plan.startswith("skip: ")
    assert bench.detect(TEN, skip_unchanged="false").plan == "train"


def test_what_differs_is_trained_on_and_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bench.register(bench.detect(TEN))
    promotion.promote(bench.name, version.version, "The first.")
    found = bench.detect(TEN, metric_epochs="4")
    assert (found.plan, found.text[:60]) == ("train", "To train: parameters differ from those of the champion, vers")
    monkeypatch.setenv(CODE, "another digest of images")
    found = bench.detect(TEN)
    assert (found.plan, found.text[:54]) == ("train", "To train: code differs from that of the champion, vers")
    monkeypatch.delenv(CODE)
    found = bench.detect([(name, number, "train") for name, number, _ in TEN])
    assert found.plan == "train", "the same images in other splits"
    assert "4 in another split" in found.text


def test_weights_that_were_exchanged_in_a_bucket_are_trained_with(bench: Bench, bucket: Any) -> None:
    bucket.put_object(Bucket="bucket", Key="net.pth", Body=b"first")
    given = {"weights": "s3://bucket/net.pth"}
    first = bench.detect(TEN, **given)
    assert re.fullmatch(r"train with s3://bucket/net.pth, etag [0-9a-f]{32}", first.plan)
    version = bench.register(first)
    promotion.promote(bench.name, version.version, "The first.")
    assert bench.detect(TEN, **given).plan.startswith("skip: ")
    assert bench.detect(TEN, **given, force="true").plan.endswith(first.plan.removeprefix("train"))
    assert bench.detect(TEN, **given, skip_unchanged="false").plan == first.plan, "a cache knows it again"
    bucket.put_object(Bucket="bucket", Key="net.pth", Body=b"second")
    second = bench.detect(TEN, **given)
    assert second.plan.startswith("train with s3://bucket/net.pth")
    assert second.plan != first.plan
    assert second.text.startswith("To train: parameters differ from those of the champion")


def test_weights_that_are_not_in_the_bucket_end_the_run_before_it_trains(
    bench: Bench, bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.detect(TEN, weights="s3://bucket/net.pth")
    assert "s3://bucket/net.pth" in capsys.readouterr().err


def test_new_changed_and_removed_images_and_classes_are_counted_and_shown(bench: Bench) -> None:
    version = bench.register(bench.detect(TEN))
    promotion.promote(bench.name, version.version, "The first.")
    now = [("boot", 100, "train"), *TEN[1:9], ("<b>whale</b>", 50, "train"), ("<b>whale</b>", 51, "train")]
    found = bench.detect(now)
    assert found.plan == "train"
    tags = bench.tags()
    counted = {name: int(tags[f"rankone.images_{name}"]) for name in ("new", "changed", "removed", "moved")}
    assert counted == {"new": 1, "changed": 2, "removed": 0, "moved": 0}
    assert (tags["rankone.classes_new"], tags["rankone.classes_removed"]) == ("1", "0")
    assert "New classes: &lt;b&gt;whale&lt;/b&gt; (2)" in found.text
    assert "<b>whale" not in found.page
    assert "&lt;b&gt;whale&lt;/b&gt; 1 1 0 boot 0 1 0" in found.text, "the class that changed most goes first"
    fewer = bench.detect([row for row in TEN if row[0] == "boot"])
    assert "Removed classes: fish (5)" in fewer.text
    assert bench.tags()["rankone.images_removed"] == "5"


def test_the_champion_of_now_counts_whoever_made_it_that(bench: Bench) -> None:
    first = bench.register(bench.detect(TEN))
    promotion.promote(bench.name, first.version, "The first.")
    twelve = images(*range(12))
    second = bench.register(bench.detect(twelve), weights=1)
    promotion.promote(bench.name, second.version, "A person likes it.")
    assert "version 2, the champion" in bench.detect(twelve).plan
    assert bench.detect(TEN).plan.endswith("those of version 1, which was champion until version 2")
    promotion.rollback(bench.name, "It takes boots for fish.")
    assert "version 1, the champion" in bench.detect(TEN).plan
    assert bench.detect(twelve).plan.endswith("those of version 2, which entry 3 of the ledger rolled back from")
    third = bench.register(bench.detect(images(*range(14))), weights=2, outcome="rejected", rule="not_better",
                           judged_against="1")  # fmt: skip
    assert bench.detect(images(*range(14))).plan.endswith("those of version 3, which the gate rejected (not_better)")
    client().set_registered_model_alias(bench.name, "champion", str(third.version))
    assert bench.detect(images(*range(14))).plan.endswith("those of version 3, the champion")
    assert bench.detect(TEN).plan.endswith(
        "those of version 1, which was champion until somebody moved the alias by hand"
    )


def test_a_version_of_before_there_were_records_is_trained_anew(bench: Bench) -> None:
    found = bench.detect(TEN)
    version = bench.register(dataclasses.replace(found, made_from=""))
    promotion.promote(bench.name, version.version, "The first.")
    assert bench.detect(TEN).text.startswith("To train: what the champion, version 1, was made from is not recorded")


def test_a_run_that_is_tried_again_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bench.register(bench.detect(TEN), pipeline_run="run-7")
    promotion.promote(bench.name, version.version, "The first.")
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "run-7")
    found = bench.detect(TEN)
    assert (found.plan, "in an earlier attempt" in found.text) == ("train", True)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "run-8")
    assert bench.detect(TEN).plan.startswith("skip: ")


def test_a_registry_that_does_not_answer_stops_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(name: str) -> None:
        raise TrackingError("MLflow could not do 'find_champion' in http://mlflow.example: no answer")

    monkeypatch.setattr(registry, "champion", silent)
    with pytest.raises(SystemExit) as stopped:
        bench.detect(TEN)
    assert stopped.value.code == 1
    assert not (bench.folder / "plan 1").exists()


def test_new_images_are_looked_at_by_the_champion(bench: Bench) -> None:
    found = bench.detect(images(*range(40)))
    version = bench.register(found)
    promotion.promote(bench.name, version.version, "The first.")
    rows = found.dataset.rows("test")
    embedder = Embedder("champion", bench.folder / f"model {bench.runs}", found.dataset, torch.device("cpu"), 16)
    classes = np.asarray(found.dataset.index["class_name"].to_pylist(), object)[rows]
    reference = bench.folder / REFERENCE
    save_reference(
        reference, Reference(version.model_digest, embedder(rows).numpy(), classes, None), [str(row) for row in rows]
    )
    registry.keep_file(version, reference, f"data/{REFERENCE}")
    again = bench.detect(images(*range(40)), metric_epochs="4", drift_images=50)
    assert "Not looked at: every image is one that the champion knows" in again.text
    new = bench.detect([*images(*range(40)), *images(*range(100, 130))], drift_images=20)
    assert "Looked at: 20 new images of classes among those of the champion." in new.text
    tags = bench.tags()
    assert 0 <= float(tags["rankone.drift_share"]) <= 1
    assert tags["rankone.drift_images"] == "20"
    skipped = bench.detect(images(*range(40)), drift_images=50)
    assert "Not looked at: nothing is trained" in skipped.text


def test_the_page_loads_nothing_from_elsewhere(bench: Bench) -> None:
    page = bench.detect(TEN).page
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(?:src|href)=", page)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")

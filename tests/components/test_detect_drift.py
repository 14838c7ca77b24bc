"""detect_changes with a champion in a real registry: what it says of new digits, and of digits in other colours."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from components.detect_changes.params import Params
from components.detect_changes.step import detect_changes
from components.launch import OutputText, PipelineParameters
from retrieval import promotion, registry
from retrieval.changes import image_list
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.drift import Reference, save_reference
from retrieval.evaluation import IMAGES, REFERENCE
from retrieval.features import embed
from retrieval.model_folder import read_model_manifest
from retrieval.models import ModelConfig, build_network, load_model, save_model
from retrieval.tracking import client, experiment_id, step_run

KNOWN, NEW = slice(0, 700), slice(700, 1_100)


def digits(folder: Path, rows: slice, inverted: bool = False, also: Dataset | None = None, every: int = 1) -> Dataset:
    """Real digits as a dataset, a third of them for test; `also` is laid before them, of pixels is every so manieth."""
    found = load_digits()
    mixed = np.random.default_rng(0).permutation(len(found.data))[rows]
    grey = np.rint(found.images[mixed] * 255 / 16).astype(np.uint8)
    grey = 255 - grey if inverted else grey
    pixels = np.repeat(grey[:, ::every, ::every, None], 3, axis=3)
    split = np.where(np.arange(len(pixels)) % 3 == 0, "test", "train")
    labels = found.target[mixed].astype(np.int64)
    if also is not None:
        pixels = np.concatenate([also.read(np.arange(len(also))), pixels])
        split = np.concatenate([np.asarray(also.index["split"].to_pylist()), split])
        labels = np.concatenate([also.labels, labels])
    count = len(pixels)
    columns: dict[str, Any] = {
        "id": np.arange(count),
        "label": labels,
        "class_name": [f"digit {label}" for label in labels],
        "split": split.tolist(),
        "source": [str(number) for number in range(count)],
        "sha256": [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels],
        "width": [8] * count,
        "height": [8] * count,
    }
    index = pa.table([pa.array(columns[name]) for name in INDEX_SCHEMA.names], names=INDEX_SCHEMA.names)
    return save_dataset(folder, [pixels], index, [f"digit {label}" for label in range(10)], {})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What the champion was made from."""
    return digits(tmp_path_factory.mktemp("first") / "dataset", KNOWN)


@pytest.fixture
def champion(first: Dataset, tmp_path: Path, mlflow_home: Path, request: pytest.FixtureRequest) -> str:
    """The name of a model whose champion is version 1, with what evaluate and promote keep of its images."""
    name = request.node.name
    torch.manual_seed(0)
    config = ModelConfig(dimension=32, image_size=8, channels=(8, 16, 16), pools=(2, 2, 1), batch_norm=False)
    save_model(tmp_path / "model", build_network(config), {}, {})
    rows = first.rows("test")
    embeddings = embed(load_model(tmp_path / "model"), first, rows, torch.device("cpu"), 64, "embed").numpy()
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    classes = np.asarray(first.index["class_name"].to_pylist(), object)[rows]
    digest = read_model_manifest(tmp_path / "model").digest
    images = first.index["sha256"].take(rows).to_pylist()
    save_reference(tmp_path / "reference", Reference(digest, embeddings, classes, None), images)
    pq.write_table(image_list(first.index), tmp_path / "images")
    with step_run("promote", {}) as run:
        version = registry.register(tmp_path / "model", name, digest, {}, run.run_id)
        registry.keep_file(version, tmp_path / "reference", f"data/{REFERENCE}")
        registry.keep_file(version, tmp_path / "images", f"data/{IMAGES}")
    promotion.promote(name, version.version, "The first one.", None)
    return name


def look(champion: str, dataset: Dataset, folder: Path, **knobs: Any) -> tuple[dict[str, Any], str]:
    """The metadata of the page, and the page."""
    folder.mkdir(exist_ok=True)
    outputs = detect_changes(
        Params(registered_model=champion, device="cpu", **knobs),
        dataset=dataset.folder,  # type: ignore[arg-type]
        parameters=PipelineParameters({}),
        changes=folder / "changes",  # type: ignore[arg-type]
        plan=OutputText(folder / "plan"),
        made_from=OutputText(folder / "made_from"),
    )
    return dict(outputs["changes"]), (folder / "changes").read_text()


def test_new_digits_are_no_drift_and_digits_in_other_colours_are(
    champion: str, first: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, page = look(champion, digits(tmp_path / "more", NEW, also=first), tmp_path / "same")
    assert (same["images_new"], same["drift_images"]) == (400, 400)
    assert same["drift_excess_low"] < 0 < same["drift_excess_high"]
    assert same["drift_share"] - same["drift_share_usual"] == pytest.approx(same["drift_excess"])
    assert (same["drift_classes_compared"], same["drift_classes_unseen"]) == (10, 0)
    assert same["drift_classes_shifted"] <= 1
    assert page.count("<svg") == 2
    assert f"{champion} version 1" in page

    capsys.readouterr()
    other, page = look(champion, digits(tmp_path / "other", NEW, inverted=True, also=first), tmp_path / "other page")
    assert other["drift_excess_low"] > 0.5
    assert other["drift_classes_shifted"] == 10
    assert "of 400 new images of known classes have no near neighbour" in capsys.readouterr().out
    run = client().search_runs([experiment_id()], "tags.`rankone.step` = 'detect_changes'", max_results=1)[0]
    assert run.data.metrics["drift_excess"] == other["drift_excess"]
    assert float(run.data.tags["rankone.drift_share"]) == other["drift_share"]


def test_images_stored_smaller_than_the_champion_knows_them_say_nothing_of_drift(champion: str, tmp_path: Path) -> None:
    smaller = digits(tmp_path / "smaller", NEW, every=2)
    found, page = look(champion, smaller, tmp_path / "page")
    assert "drift_share" not in found
    assert "Not looked at: the champion knows images of 8 px, these are stored at 4 px" in page


def test_few_images_are_looked_at_where_few_are_asked_for(champion: str, first: Dataset, tmp_path: Path) -> None:
    found, _ = look(champion, digits(tmp_path / "more", NEW, also=first), tmp_path, drift_images=50)
    assert found["drift_images"] == 50
    found, page = look(champion, digits(tmp_path / "again", NEW, also=first), tmp_path / "none", drift_images=0)
    assert "drift_share" not in found
    assert "Not looked at: drift_images is 0" in page


def test_images_that_the_champion_knows_are_not_looked_at_again(champion: str, first: Dataset, tmp_path: Path) -> None:
    found, page = look(champion, first, tmp_path)
    assert "drift_share" not in found
    assert "every image is one that the champion knows" in page

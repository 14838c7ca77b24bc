"""Hidden parts and other datasets, against plain loops on images that their colours tell apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from retrieval.dataset import Dataset, save_dataset
from retrieval.embedder import Embedder
from retrieval.models import ModelConfig, build_network, save_model
from retrieval.occlusion import hide
from retrieval.robustness import (
    HIDDEN,
    further_dataset,
    known_images,
    mean_colour,
    missing_parts,
    open_datasets,
    pixels,
    resized,
    with_positive,
)

CPU = torch.device("cpu")


def dataset_of(folder: Path, splits: list[str], classes: int = 3, image_size: int = 8, seed: int = 0) -> Dataset:
    count, generator = len(splits), np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = generator.integers(0, 120, (count, image_size, image_size, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels % 3] += generator.integers(0, 80, (count, 1, 1), dtype=np.uint8)
    columns = {
        "id": np.arange(count),
        "label": labels,
        "class_name": [f"class {label}" for label in labels],
        "split": splits,
        "source": [f"{row}.png" for row in range(count)],
        "sha256": [f"{row:064d}" for row in range(count)],
        "width": [image_size] * count,
        "height": [image_size] * count,
    }
    return save_dataset(folder, [images], pa.table(columns), [f"class {label}" for label in range(classes)], {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset_of(tmp_path_factory.mktemp("data") / "data", ["train", "test", "test", "train"] * 15)


@pytest.fixture(scope="module")
def embedder(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, build_network(ModelConfig(dimension=4, image_size=8, channels=(4, 4, 4))), {}, {})
    return Embedder("model", folder, data, CPU, 7)


def recall_by_loop(queries: torch.Tensor, gallery: torch.Tensor, asked: list[int], labels: np.ndarray) -> float:
    unit = [torch.nn.functional.normalize(vectors.double(), dim=1) for vectors in (queries, gallery)]
    right = []
    for number, row in enumerate(asked):
        others = [other for other in range(len(labels)) if other != row]
        right.append(labels[max(others, key=lambda other: float(unit[0][number] @ unit[1][other]))] == labels[row])
    return float(np.mean(right))


def test_the_hidden_recall_is_that_of_hiding_by_hand(data: Dataset, embedder: Embedder) -> None:
    rows, labels = data.rows("test"), data.labels[data.rows("test")]
    whole = embedder(rows)
    found = missing_parts(embedder, data, whole, 1000, seed=2)
    assert (found[0].share, found[0].queries) == (0, 30)
    assert found[0].recall_at_1 == recall_by_loop(whole, whole, list(range(30)), labels)
    images = torch.from_numpy(data.read(rows)).permute(0, 3, 1, 2)
    for part, (shape, share) in zip(found[1:], HIDDEN, strict=True):
        assert (part.shape, part.share, part.queries) == (shape, share, 30)
        generator = torch.Generator().manual_seed(2)
        batches = [hide(batch, shape, share, mean_colour(data), generator) for batch in images.split(7)]
        with torch.no_grad():
            vectors = torch.cat([embedder.model(batch.float() / 255) for batch in batches])
        assert part.recall_at_1 == recall_by_loop(vectors, whole, list(range(30)), labels)


def test_fewer_queries_are_drawn_by_the_seed_against_the_whole_gallery(data: Dataset, embedder: Embedder) -> None:
    whole = embedder(data.rows("test"))
    found = missing_parts(embedder, data, whole, 10, seed=5)
    asked = sorted(np.random.default_rng(5).choice(30, 10, replace=False).tolist())
    assert {part.queries for part in found} == {10}
    assert found[0].recall_at_1 == recall_by_loop(whole[asked], whole, asked, data.labels[data.rows("test")])
    assert missing_parts(embedder, data, whole, 0) == ()


def test_the_mean_colour_is_that_of_the_training_images(data: Dataset) -> None:
    mean = data.read(data.rows("train")).reshape(-1, 3).mean(0)
    assert mean_colour(data).tolist() == np.round(mean).astype(int).tolist()


def test_another_dataset_is_measured_as_by_hand(embedder: Embedder, tmp_path: Path) -> None:
    other = dataset_of(tmp_path / "other", ["test", "train"] * 20, classes=4, image_size=12, seed=3)
    found = further_dataset("other", other, set(), embedder, resamples=100)
    rows = other.rows("test")
    images = torch.from_numpy(other.read(rows)).permute(0, 3, 1, 2)
    with torch.no_grad():
        vectors = embedder.model(resized(8)(images).float() / 255)
    labels = other.labels[rows]
    asked = list(range(len(rows)))
    assert found.recall_at_1 == pytest.approx(recall_by_loop(vectors, vectors, asked, labels))
    flat = images.flatten(1).float()
    assert found.pixels_recall_at_1 == pytest.approx(recall_by_loop(flat, flat, asked, labels))
    assert (found.images, found.queries, found.whole, found.classes) == (20, 20, False, len(np.unique(labels)))
    assert (found.image_size, found.model_image_size, found.dataset_digest) == (12, 8, other.digest)
    assert found.recall_at_1_low <= found.recall_at_1 <= found.recall_at_1_high
    assert found.left_out == 0


def test_known_images_are_neither_searched_for_nor_found(
    data: Dataset, embedder: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["train", "validation", "test"] * 20
    own = dataset_of(tmp_path / "own", splits)
    known = known_images(own)
    assert known == {f"{row:064d}" for row in range(60) if splits[row] != "test"}
    other = dataset_of(tmp_path / "other", ["train", "test", "test", "test"] * 10, classes=4)
    found = further_dataset("other", other, known, embedder, resamples=100)
    rows = np.array([row for row in other.rows("test") if row % 3 == 2])
    with torch.no_grad():
        vectors = embedder.model(torch.from_numpy(other.read(rows)).permute(0, 3, 1, 2).float() / 255)
    assert found.recall_at_1 == pytest.approx(
        recall_by_loop(vectors, vectors, list(range(len(rows))), other.labels[rows])
    )
    assert (found.images, found.left_out) == (len(rows), 30 - len(rows))
    assert (
        f"trained on {30 - len(rows)} of its 30 images or chosen by them; they are left out" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"whose 20 images \(and 40 that the model was .* chosen by\) have fewer than"):
        open_datasets(str(dataset_of(tmp_path / "alike", ["train"] * 60).folder), known, tmp_path)


def test_resizing_is_that_of_pillow_and_leaves_the_right_size_alone() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    images = torch.from_numpy(values).permute(0, 3, 1, 2)
    expected = np.stack(
        [np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR)) for image in values]
    )
    found = resized(8)(images)
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - expected).max() <= 1
    assert resized(24)(images) is images


def test_pixels_are_at_most_32_a_side(tmp_path: Path) -> None:
    large = dataset_of(tmp_path / "large", ["test"] * 6, image_size=40)
    assert pixels(large, large.rows("test"), CPU, 4).shape == (6, 3 * 32 * 32)


def test_datasets_are_opened_by_the_names_given(data: Dataset, tmp_path: Path) -> None:
    second = dataset_of(tmp_path / "second", ["train"] * 9)
    assert open_datasets("", set(), tmp_path) == {}
    found = open_datasets(f" {data.folder} ,{second.folder},", set(), tmp_path)
    assert list(found) == [str(data.folder), str(second.folder)]
    assert found[str(second.folder)].digest == second.digest


def test_a_dataset_of_a_bucket_is_measured_as_the_folder_that_was_copied_there(
    data: Dataset, embedder: Embedder, bucket: Any, tmp_path: Path
) -> None:
    for file in data.folder.iterdir():
        bucket.upload_file(str(file), "bucket", f"sets/other/{file.name}")
    found = open_datasets(f"{data.folder},s3://bucket/sets/other", set(), tmp_path)
    here, there = (further_dataset(name, other, set(), embedder, 100) for name, other in found.items())
    assert (here.recall_at_1, here.dataset_digest) == (there.recall_at_1, there.dataset_digest)
    with pytest.raises(ValueError, match=r"as a dataset: s3://bucket/sets/no holds no finished dataset.* Give folders"):
        open_datasets("s3://bucket/sets/no", set(), tmp_path)
    for name in ("../../out", "/etc/out"):
        manifest = json.dumps({"files": {name: ""}})
        bucket.put_object(Bucket="bucket", Key="sets/bad/manifest.json", Body=manifest.encode())
        with pytest.raises(ValueError, match=f"names '{name}', which lies outside"):
            open_datasets("s3://bucket/sets/bad", set(), tmp_path / "in" / "it")


def test_folders_that_cannot_be_measured_are_refused_by_name(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        open_datasets(f"{data.folder},{data.folder}", set(), tmp_path)
    with pytest.raises(ValueError, match=r"nothing', which cannot be read as a dataset: .*Give folders"):
        open_datasets(f"{data.folder},{tmp_path / 'nothing'}", set(), tmp_path)
    lonely = dataset_of(tmp_path / "lonely", ["test"] * 3)
    single = dataset_of(tmp_path / "single", ["test"] * 3, classes=1)
    one_pair = dataset_of(tmp_path / "one pair", ["train"] * 2 + ["test"] * 3, classes=2)  # two classes, one query's
    for other in (lonely, single, one_pair):
        with pytest.raises(ValueError, match=f"{other.folder.name}', whose 3 images"):
            open_datasets(str(other.folder), set(), tmp_path)
    with pytest.raises(ValueError, match=r"were fitted by resize=crop, and the model's by resize=drawing"):
        open_datasets(str(data.folder), set(), tmp_path, resize="drawing")


def test_images_with_another_of_their_class() -> None:
    assert with_positive(np.array([4, 7, 4, 9, 7])).tolist() == [0, 1, 2, 4]


def test_the_embedder_reads_the_model_when_asked_and_knows_its_speed(data: Dataset, embedder: Embedder) -> None:
    fresh = Embedder("fresh", data.folder / "nowhere", data, CPU, 7)
    assert fresh.images_per_second is None
    with pytest.raises(ValueError, match="is no model"):
        fresh(data.rows("test"))
    assert (embedder.images_per_second or 0) > 0
    rows = data.rows("test")
    same = embedder.changed(rows, lambda images: images)
    assert torch.allclose(same, embedder(rows), atol=1e-6)

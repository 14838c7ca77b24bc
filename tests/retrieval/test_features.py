from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset, save_dataset
from retrieval.features import embed, load_features, save_features
from retrieval.models import ModelConfig, build_network

CPU = torch.device("cpu")


def dataset(folder: Path, images: np.ndarray, splits: tuple[str, ...] = ("train", "validation", "test")) -> Dataset:
    count = len(images)
    columns = {
        "id": np.arange(count),
        "label": np.arange(count) % 3,
        "class_name": [f"class {i % 3}" for i in range(count)],
        "split": [splits[i // 3 % len(splits)] for i in range(count)],
        "source": [f"{i}.png" for i in range(count)],
        "sha256": [f"{i}" for i in range(count)],
        "width": [images.shape[1]] * count,
        "height": [images.shape[1]] * count,
    }
    names = ["class 0", "class 1", "class 2"]
    return save_dataset(folder, [images], pa.table(columns), names, {}, images_per_shard=8)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), dtype=np.uint8)
    return dataset(tmp_path / "data", images)


@pytest.mark.parametrize("batch_size", [4, 7, 64])
def test_embed_gives_each_row_what_the_model_gives_its_image(data: Dataset, batch_size: int) -> None:
    torch.manual_seed(0)
    model = build_network(ModelConfig(dimension=8, image_size=16, channels=(4, 5, 6))).train()
    rows = np.array([20, 3, 3, 9, 0, 11, 17])
    embeddings = embed(model, data, rows, CPU, batch_size)
    assert not model.training
    assert (embeddings.dtype, embeddings.requires_grad) == (torch.float32, False)
    for row, embedding in zip(rows, embeddings, strict=True):
        image = torch.from_numpy(data.read(np.array([row]))).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(model(image)[0].detach(), embedding, atol=1e-5, rtol=1e-5)
    assert embed(model, data, rows[:0], CPU).shape == (0, 8)


def test_embeddings_that_are_not_finite_are_refused(data: Dataset) -> None:
    model = build_network(ModelConfig(dimension=8, image_size=16, channels=(4, 5, 6)))
    with torch.no_grad():
        model.network.embedding.bias[0] = torch.inf
    with pytest.raises(ValueError, match="embed: 21 of 21 embeddings are not finite"):
        embed(model, data, np.arange(21), CPU)


def test_saved_features_come_back(data: Dataset, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((21, 5)).astype(np.float32)
    written = save_features(tmp_path / "features", torch.from_numpy(values), data.digest, {"a": 1}, "backbone's digest")
    features = load_features(tmp_path / "features", data)
    np.testing.assert_array_equal(features.values, values)
    assert isinstance(features.values, np.memmap)
    assert features.manifest == written
    assert features.manifest.made_from == {"dataset": data.digest, "backbone": "backbone's digest"}


def test_features_of_another_dataset_are_refused(data: Dataset, tmp_path: Path) -> None:
    save_features(tmp_path / "features", np.zeros((21, 5)), "another digest", {})
    with pytest.raises(ValueError, match="features of another dataset"):
        load_features(tmp_path / "features", data)


def test_colours_are_those_of_the_given_rows_only(data: Dataset) -> None:
    rows = np.array([4, 1, 20])
    pixels = data.read(rows).reshape(-1, 3) / 255
    mean, std = colour_statistics(data, rows)
    np.testing.assert_allclose(mean, pixels.mean(0))
    np.testing.assert_allclose(std, pixels.std(0))
    assert colour_statistics(data, rows[::-1], rows_per_block=1) == (mean, std)
    with pytest.raises(ValueError, match="No images"):
        colour_statistics(data, rows[:0])


def test_a_channel_that_never_changes_has_a_deviation_to_divide_by(tmp_path: Path) -> None:
    black = dataset(tmp_path / "black", np.zeros((6, 4, 4, 3), np.uint8))
    assert colour_statistics(black, np.arange(6)) == ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))

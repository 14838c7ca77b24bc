from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from retrieval.cluster_pictures import block_matrix, cluster_sheets, layout
from retrieval.clusters import BLOCK_MATRIX, pictures_of
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset

COLOURS = np.random.default_rng(0).integers(0, 256, (5_000, 3), np.uint8)


def dataset_of(folder: Path, colours: np.ndarray, side: int = 8) -> Dataset:
    """Images (n, side, side, 3), each of one colour (n, 3)."""
    images = np.ascontiguousarray(np.broadcast_to(colours[:, None, None], (len(colours), side, side, 3)))
    return save_images(folder, images)


def save_images(folder: Path, images: np.ndarray) -> Dataset:
    count = len(images)
    texts = np.arange(count).astype(str)
    sizes = [[images.shape[1]] * count] * 2
    values = [np.arange(count), np.zeros(count, np.int64), texts, ["train"] * count, texts, ["0" * 64] * count, *sizes]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    return save_dataset(folder, [images], index.cast(INDEX_SCHEMA), ["0"], {})


def shown(sheets: list[Path], colours: np.ndarray) -> np.ndarray:
    """Which of the colours (n, 3) are on one of the sheets: (n,) bool; a JPEG keeps them nearly."""
    found = np.zeros(len(colours), bool)
    for sheet in sheets:
        with Image.open(sheet) as picture:
            pixels = np.unique(np.asarray(picture).reshape(-1, 3), axis=0).astype(np.int64)
        found |= np.array([(np.abs(pixels - colour).max(axis=1) <= 3).any() for colour in colours])
    return found


@pytest.mark.parametrize("clusters", [1, 30, 130, 400])
def test_every_cluster_that_is_not_empty_is_on_a_sheet(clusters: int, tmp_path: Path) -> None:
    of_cluster = COLOURS[:clusters]
    assigned = np.repeat(np.arange(clusters), 3)
    data = dataset_of(tmp_path / "data", of_cluster[assigned])
    sheets = cluster_sheets(data, np.arange(len(assigned)), assigned * 2, tmp_path)  # every second one is empty
    assert shown(sheets, of_cluster.astype(np.int64)).all()
    assert len(sheets) == layout(clusters).sheets
    for sheet in sheets:
        with Image.open(sheet) as picture:
            assert max(picture.size) < 1_400, "it fits in a window"


def test_clusters_come_by_size_and_images_without_one_are_left_out(tmp_path: Path) -> None:
    assigned = np.array([-1] * 9 + [3] * 2 + [5] * 4)
    colours = np.array([[255, 0, 0], [0, 0, 0], [0, 0, 0], [0, 255, 0], [0, 0, 0], [0, 0, 255]])[assigned]
    colours[:9] = [255, 0, 255]
    data = dataset_of(tmp_path / "data", colours.astype(np.uint8))
    [sheet] = cluster_sheets(data, np.arange(len(assigned)), assigned, tmp_path)
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture).astype(np.int64)
    rows = [
        np.flatnonzero((np.abs(pixels - colour) < 40).all(axis=2).any(axis=1)) for colour in ([0, 0, 255], [0, 255, 0])
    ]
    assert rows[0].max() < rows[1].min(), "the larger one above the smaller one"
    assert not (np.abs(pixels - [255, 0, 255]) < 40).all(axis=2).any()


def test_the_sheets_of_many_clusters_of_photographs_stay_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (1_600, 8, 8, 3), np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)) for image in coarse]
    )
    images = (images + random.integers(0, 12, images.shape)).clip(0, 255).astype(np.uint8)  # grain as of a camera
    data, assigned = save_images(tmp_path / "data", images), np.arange(1_600) % 400
    for clusters in (400, 100):
        (folder := tmp_path / str(clusters)).mkdir()
        sheets = cluster_sheets(data, np.arange(1_600), assigned % clusters, folder)
        assert sum(sheet.stat().st_size for sheet in sheets) < 1_000_000
        assert sheets == sorted(sheets)


def test_of_more_clusters_than_images_are_shown_the_smallest_are_left_out() -> None:
    assert layout(1_600).left_out == 0
    assert layout(4_000).left_out == 2_400
    assert "the 2,400 smallest are not shown" in layout(4_000).title(1)
    assert layout(400).title(2) == "sheet 2 of 6: clusters 73 to 144 of 400, the largest first; up to 4 images of each"
    assert layout(1).title(1) == "sheet 1 of 1: clusters 1 to 1 of 1, the largest first; up to 16 images of each"


def test_the_pictures_of_a_folder_are_found_matrix_first(tmp_path: Path) -> None:
    assert pictures_of(tmp_path) == []
    data = dataset_of(tmp_path / "data", COLOURS[:300])
    block_matrix(np.ones((4, 4)), np.arange(4), np.arange(4), tmp_path / BLOCK_MATRIX)
    sheets = cluster_sheets(data, np.arange(300), np.arange(300), tmp_path)
    assert len(sheets) > 1
    assert pictures_of(tmp_path) == [tmp_path / BLOCK_MATRIX, *sheets]

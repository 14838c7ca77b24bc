"""The dataset store: what is saved is read, shard by shard, and damage is found."""

import numpy as np
import pyarrow as pa
import pytest

from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset

SPLITS = ["train", "train", "validation", "test", "test", "train", "test"]


def index_for(count: int = 7) -> pa.Table:
    columns = {
        "id": range(count),
        "label": [row % 2 for row in range(count)],
        "class_name": ["ab"[row % 2] for row in range(count)],
        "split": SPLITS[:count],
        "source": [f"{row}.png" for row in range(count)],
        "sha256": [f"{row:064x}" for row in range(count)],
        "width": [9] * count,
        "height": [9] * count,
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def images(count: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def saved(folder, batches, count: int = 7, images_per_shard: int = 3) -> Dataset:
    return save_dataset(folder, batches, index_for(count), ["a", "b"], {"kept": count}, images_per_shard)


@pytest.mark.parametrize("cuts", [[7], [1] * 7, [3, 4], [2, 0, 5], [6, 1]])
def test_what_is_saved_is_read_whatever_the_batches(tmp_path, cuts):
    dataset = saved(tmp_path / "d", np.split(images(), np.cumsum(cuts)[:-1]))
    rows = np.array([6, 0, 3, 3, 2])
    assert np.array_equal(dataset.read(rows), images()[rows])
    assert sorted(path.name for path in (tmp_path / "d").glob("*.npy")) == [f"images-0000{n}.npy" for n in range(3)]
    assert (len(dataset), dataset.image_size, dataset.class_names) == (7, 4, ["a", "b"])
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert dataset.report() == {"kept": 7}


def test_the_batches_do_not_show_in_the_digest(tmp_path):
    one = saved(tmp_path / "one", [images()])
    two = saved(tmp_path / "two", [images()[:2], images()[2:]])
    assert one.digest == two.digest
    assert saved(tmp_path / "three", [images()[::-1]]).digest != one.digest


def test_rows_of_splits(tmp_path):
    dataset = saved(tmp_path / "d", [images()])
    assert dataset.rows("test").tolist() == [3, 4, 6]
    assert dataset.rows("train", "validation").tolist() == [0, 1, 2, 5]
    with pytest.raises(ValueError, match="Unknown split 'dev'; choose one of: train, validation, test"):
        dataset.rows("dev")


def test_rows_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="6 images for 7 rows"):
        saved(tmp_path / "d", [images(6)])


def test_a_shard_is_written_as_numpy_writes_it(tmp_path):
    saved(tmp_path / "d", [images()[:2], images()[2:]])
    for number, part in enumerate((images()[:3], images()[3:6], images()[6:])):
        np.save(tmp_path / "expected.npy", part)
        expected = (tmp_path / "expected.npy").read_bytes()
        assert (tmp_path / "d" / f"images-{number:05d}.npy").read_bytes() == expected


@pytest.mark.parametrize("odd", [np.zeros((4, 5, 5, 3), np.uint8), np.zeros((4, *images().shape[1:]), np.float32)])
def test_images_of_another_size_or_type_are_refused(tmp_path, odd):
    with pytest.raises(ValueError, match="must be square, uint8 and of one size"):
        saved(tmp_path / "d", [images()[:3], odd])


def test_a_damaged_shard_is_found(tmp_path):
    saved(tmp_path / "d", [images()])
    shard = tmp_path / "d" / "images-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"images-00001\.npy was truncated or altered"):
        Dataset(tmp_path / "d")

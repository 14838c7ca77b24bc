from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """50 images of 8 px and five classes, in shards of 17."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    numbers = np.arange(50)
    values = [
        numbers,
        numbers % 5,
        numbers.astype(str),
        ["train"] * 50,
        numbers.astype(str),
        ["0"] * 50,
        *[[8] * 50] * 2,
    ]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    return save_dataset(tmp_path / "dataset", [pixels], index, list("abcde"), {}, images_per_shard=17)

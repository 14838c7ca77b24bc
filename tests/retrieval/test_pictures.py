import base64
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asked import Row, answers_to
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retrieval import pictures
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.pictures import encoded, load_pictures, save_pictures, taken, uri_of, wanted


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("side", "kind"), [(1, "png"), (16, "png"), (17, "jpeg"), (64, "jpeg"), (900, "jpeg")])
def test_a_picture_is_small(side: int, kind: str) -> None:
    picture = encoded(noise(side))
    image = Image.open(io.BytesIO(picture))
    assert max(image.size) == min(side, 64)
    assert len(picture) < 8_000
    uri = uri_of(picture)
    assert uri.startswith(f"data:image/{kind};base64,")
    assert base64.b64decode(uri.partition(",")[2]) == picture
    if kind == "png":
        assert np.array_equal(np.asarray(image), noise(side))


@pytest.mark.parametrize("picture", [b"", b"<svg onload='alert(1)'>", b"\x89PNG" + bytes(100_000)])
def test_what_is_no_small_picture_gets_no_address(picture: bytes) -> None:
    with pytest.raises(ValueError, match=f"{len(picture):,} bytes are no picture"):
        uri_of(picture)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    kept = {f"{side}": encoded(noise(side)) for side in (30, 8)}
    save_pictures(tmp_path / "pictures", kept)
    assert load_pictures(tmp_path / "pictures") == kept
    save_pictures(tmp_path / "none", {})
    assert load_pictures(tmp_path / "none") == {}


def test_what_holds_no_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pictures"
    with pytest.raises(ValueError, match="pictures cannot be read"):
        load_pictures(path)
    pq.write_table(pa.table({"sha256": ["a"], "picture": [b"\x89PNG"]}), path)
    with pytest.raises(ValueError, match="no pictures of format 1 \\(its format is unknown"):
        load_pictures(path)
    save_pictures(path, {"a": b"<html>"})
    with pytest.raises(ValueError, match="6 bytes are no picture"):
        load_pictures(path)
    save_pictures(path, {"a": encoded(noise(8))})
    monkeypatch.setattr(pictures, "LARGEST_FILE", 10)
    with pytest.raises(ValueError, match="10 are the most"):
        load_pictures(path)


def test_pictures_are_taken_of_test_images(tmp_path: Path) -> None:
    images = np.stack([np.full((8, 8, 3), 40 * row, np.uint8) for row in range(4)])
    columns = [range(4), [0] * 4, ["a"] * 4, ["train", "test", "test", "test"], [""] * 4, list("wxyz"), *[[8] * 4] * 2]
    index = pa.table([pa.array(column) for column in columns], INDEX_SCHEMA.names)
    dataset: Dataset = save_dataset(tmp_path / "dataset", [images], index, ["a"], {})
    found = taken(dataset, ["z", "x"])
    assert list(found) == ["z", "x"]
    assert [np.asarray(Image.open(io.BytesIO(picture)))[0, 0, 0] for picture in found.values()] == [120, 40]
    with pytest.raises(ValueError, match="Image w is not among the 3 test images"):
        taken(dataset, ["x", "w"])


ROWS: list[Row] = [
    ("a", "cat", "b", "cat", 0.9),
    ("b", "cat", "c", "dog", 0.8),
    ("c", "dog", "d", "dog", 0.7),
    ("d", "dog", "a", "cat", 0.6),
]


def test_mistakes_are_wanted_first_with_what_was_found() -> None:
    assert wanted(answers_to(ROWS), None, 100) == ["b", "c", "d", "a"]
    assert wanted(answers_to(ROWS), None, 2) == ["b", "c"]
    assert wanted(answers_to(ROWS), None, 3) == ["b", "c"], "a query without what was found would be no use"
    assert wanted(answers_to(ROWS), None, 0) == []


def test_what_the_champion_answers_otherwise_is_wanted_before() -> None:
    champion = answers_to([*ROWS[:2], ("c", "dog", "a", "cat", 0.7), ("d", "dog", "c", "dog", 0.6)])
    assert wanted(answers_to(ROWS), champion, 12)[:3] == ["c", "a", "d"], "fixed: c; it found a, and now d"
    assert wanted(answers_to(ROWS), champion, 8) == ["b", "c", "d", "a"], "a quarter of 8 has no room for three"


@given(st.integers(1, 40), st.integers(0, 60))
def test_versions_keep_pictures_of_the_same_mistakes_and_never_too_many(queries: int, most: int) -> None:
    generator = np.random.default_rng(queries)
    names = [f"{number:02}" for number in range(queries)]
    rows = [
        (name, "cat", str(generator.choice(names)), str(generator.choice(["cat", "dog"])), float(generator.random()))
        for name in names
    ]
    answers = answers_to(rows)
    kept = wanted(answers, None, most)
    assert len(kept) == len(set(kept)) <= most
    whole = wanted(answers, None, 10_000)
    assert set(whole) >= set(names)
    assert whole[: len(kept)] == kept, "fewer are the first of more"

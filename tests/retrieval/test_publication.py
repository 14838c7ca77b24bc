"""What is published is whole or not there, and sent once."""

from pathlib import Path
from typing import Any

import pytest

from retrieval import publication
from retrieval.manifest import FILE_NAME
from retrieval.object_store import Address
from retrieval.publication import fetch, publish

PLACE = Address("bucket", "published/model/3")


@pytest.fixture
def store(bucket: Any) -> Any:
    return bucket


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "model").mkdir()
    for name in ("model/weights", "report.html"):
        (tmp_path / name).write_text(name)
    return {name: tmp_path / name for name in ("model/weights", "report.html")}


def published(files: dict[str, Path]) -> Any:
    return publish(files, PLACE, "publication", 1, {"model": "0" * 64}, {"version": 3})


def changes(store: Any) -> dict[str, Any]:
    listed = store.list_objects_v2(Bucket="bucket").get("Contents", [])
    return {entry["Key"].removeprefix(f"{PLACE.key}/"): entry["LastModified"] for entry in listed}


def test_what_is_published_comes_back(store: Any, files: dict[str, Path], tmp_path: Path) -> None:
    manifest = published(files)
    assert set(changes(store)) == {"model/weights", "report.html", FILE_NAME}
    assert fetch(PLACE, tmp_path / "back", "publication", 1) == manifest
    assert (tmp_path / "back" / "model" / "weights").read_text() == "model/weights"


def test_the_same_again_sends_nothing(store: Any, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = published(files)
    monkeypatch.setattr(publication, "upload", None)
    assert published(files) == manifest
    files["report.html"].write_text("another")
    with pytest.raises(TypeError, match="not callable"):
        published(files)


def test_the_manifest_goes_first_and_comes_last(
    store: Any, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(files)
    files["report.html"].write_text("another")

    def fails(*_: object, **__: object) -> None:
        raise ValueError("the store has gone")

    with monkeypatch.context() as failing:
        failing.setattr(publication, "upload", fails)
        with pytest.raises(ValueError, match="has gone"):
            published(files)
    with pytest.raises(ValueError, match=r"s3://bucket/published/model/3 holds no finished publication"):
        fetch(PLACE, tmp_path / "back", "publication", 1)
    published(files)
    fetch(PLACE, tmp_path / "back", "publication", 1)
    assert (tmp_path / "back" / "report.html").read_text() == "another"


def test_an_altered_object_is_refused_by_name(store: Any, files: dict[str, Path], tmp_path: Path) -> None:
    published(files)
    store.put_object(Bucket="bucket", Key=f"{PLACE.key}/model/weights", Body=b"model/weight5")
    with pytest.raises(ValueError, match=r"model/weights was truncated or altered"):
        fetch(PLACE, tmp_path / "back", "publication", 1)


def test_a_manifest_cannot_lead_outside(store: Any, files: dict[str, Path], tmp_path: Path) -> None:
    publish({"../outside": files["report.html"]}, PLACE, "publication", 1, {}, {})
    with pytest.raises(ValueError, match=r"names '\.\./outside', which lies outside"):
        fetch(PLACE, tmp_path / "back", "publication", 1)
    assert not (tmp_path / "outside").exists()

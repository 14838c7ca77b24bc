"""Against a real S3 server: it goes away in the middle of things and comes back; it refuses, and the error says why."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval import object_store
from retrieval.checkpoints import Checkpoint, State
from retrieval.object_store import Address, download, list_objects, put_object, upload
from retrieval.publication import fetch, publish
from tests.engine.object_store_server import SECRET, ObjectStoreServer

pytestmark = pytest.mark.engine


@pytest.fixture
def bucket(
    object_store_server: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Address]:
    """An empty bucket; the environment leads there."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in object_store_server.environment().items():
        monkeypatch.setenv(name, value)
    client = object_store_server.client()
    name = f"bucket-{abs(hash(request.node.name)):x}"
    client.create_bucket(Bucket=name)
    yield Address(name, "place")
    client.close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of many parts."""
    path = tmp_path / "large.bin"
    path.write_bytes(np.random.default_rng(0).bytes(96 * 2**20))
    return path


@contextlib.contextmanager
def an_outage(server: ObjectStoreServer, begun: threading.Event, seconds: float) -> Iterator[None]:
    """The store goes away once something has begun, and comes back after so many seconds."""

    def outage() -> None:
        begun.wait(60)
        gateway = server.go_away()
        threading.Event().wait(seconds)
        gateway.come_back()

    thread = threading.Thread(target=outage)
    thread.start()
    try:
        yield
    finally:
        begun.set()
        thread.join()


def first_part_moved(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the first bytes of a transfer have moved."""
    moved, advance = threading.Event(), object_store.Progress.advance

    def noted(self: Any, amount: int = 1, **numbers: float) -> None:
        advance(self, amount, **numbers)
        moved.set()

    monkeypatch.setattr(object_store.Progress, "advance", noted)
    return moved


def test_parts_go_there_and_come_back(bucket: Address, large: Path, tmp_path: Path) -> None:
    upload({large: bucket / "large"})
    assert [(entry.path, entry.size) for entry in list_objects(bucket)] == [("large", large.stat().st_size)]
    download({tmp_path / "back": bucket / "large"})
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_the_store_goes_away_amid_an_upload_and_comes_back(
    object_store_server: ObjectStoreServer,
    bucket: Address,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
) -> None:
    with an_outage(object_store_server, first_part_moved(monkeypatch), seconds):
        upload({large: bucket / "large"}, name="upload")
    assert "does not answer" in capsys.readouterr().out, "the outage was not felt"
    download({tmp_path / "back": bucket / "large"})
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_the_store_goes_away_amid_a_download_and_comes_back(
    object_store_server: ObjectStoreServer,
    bucket: Address,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload({large: bucket / "large"})
    with an_outage(object_store_server, first_part_moved(monkeypatch), 5.0):
        download({tmp_path / "back": bucket / "large"}, name="download")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_checkpoint_is_kept_through_an_outage(object_store_server: ObjectStoreServer, bucket: Address) -> None:
    state = State({"weights": torch.arange(1_000_000.0)}, {"position": 3})
    gateway = object_store_server.go_away()
    kept = Checkpoint(str(bucket), "training", "this", 1)
    kept.write(state)  # returns at once
    gateway.come_back()
    kept.close()
    found = Checkpoint(str(bucket), "training", "this", 1).read()
    assert found is not None
    assert found.facts == {"position": 3}
    assert torch.equal(found.tensors["weights"], state.tensors["weights"])


def test_what_is_published_comes_back(bucket: Address, large: Path, tmp_path: Path) -> None:
    published = publish({"model/large": large}, bucket / "1", "publication", 1, {}, {})
    assert publish({"model/large": large}, bucket / "1", "publication", 1, {}, {}) == published
    assert fetch(bucket / "1", tmp_path / "back", "publication", 1) == published


def test_a_corrupted_part_is_refused_by_the_store(bucket: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_something_else(params: dict[str, Any], **_: Any) -> None:
        params["headers"]["Content-MD5"] = "1B2M2Y8AsgTpgAmY7PhCfg=="  # of nothing

    monkeypatch.setattr(object_store, "_add_md5", of_something_else)
    with pytest.raises(ValueError, match=r"uploading s3://bucket-\w+/place at .* answered BadDigest; what arrived"):
        put_object(bucket, b"content")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret-value", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "stranger-key-value", "InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials_are_one_clear_error_without_any_key(
    object_store_server: ObjectStoreServer,
    bucket: Address,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    code: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"answered {code}") as caught:
        put_object(bucket, b"x")
    error = str(caught.value)
    assert error.startswith(
        f"uploading {bucket} at {object_store_server.endpoint}: bucket '{bucket.bucket}' answered {code}; "
    )
    assert name in error, "says what to mend"
    shown = error + capsys.readouterr().out + caplog.text
    for secret in (SECRET, value):
        assert secret not in shown


def test_a_missing_bucket_is_one_clear_error(object_store_server: ObjectStoreServer, bucket: Address) -> None:
    absent = Address(f"{bucket.bucket}-absent", "x")
    with pytest.raises(ValueError, match=f"bucket '{absent.bucket}' answered NoSuchBucket; there is no such") as caught:
        put_object(absent, b"x")
    assert str(caught.value).startswith(f"uploading {absent} at {object_store_server.endpoint}: ")
    with pytest.raises(ValueError, match=r"listing .*answered NoSuchBucket"):
        list_objects(absent)

"""The store behind `s3://`: what moves comes back whole, what fails says why, and what goes away is waited for."""

import base64
import contextlib
import hashlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from retrieval import object_store
from retrieval.object_store import (
    Address,
    download,
    has_object,
    list_objects,
    put_object,
    read_object,
    remove_object,
    s3_client,
    upload,
)

SECRET = "a-very-secret-key"
PLACE = Address("bucket", "a/place")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket and a client; the environment leads there."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(object_store, "PART_BYTES", 5 * 2**20)  # the least that S3 takes
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "large.bin"
    path.write_bytes(np.random.default_rng(0).bytes(12 * 2**20 + 5))
    return path


class Faulty:
    """A way to the store on which the first connections break after so many bytes from the client."""

    def __init__(self, endpoint: str, breaks: int, after: int = 0) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._store, self._left, self._after, self.broken = (host, int(port)), breaks, after, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> "Faulty":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            breaks = self._left > 0
            self._left -= breaks
            self.broken += breaks
            self._threads.append(threading.Thread(target=self._serve, args=(client, breaks)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket, breaks: bool) -> None:
        with client, socket.create_connection(self._store) as store:
            back = threading.Thread(target=_copy, args=(store, client))
            back.start()
            _copy(client, store, self._after if breaks else None)
            if breaks:
                for end in (client, store):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
            back.join()


def _copy(source: socket.socket, target: socket.socket, most: int | None = None) -> None:
    """Pass on what comes, to its end or so many bytes."""
    with contextlib.suppress(OSError):
        while most is None or most > 0:
            if not (content := source.recv(65_536 if most is None else min(most, 65_536))):
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(content)
            most = None if most is None else most - len(content)


def test_an_address_is_a_bucket_and_a_key() -> None:
    assert Address.parse("s3://bucket/a/b/") == Address("bucket", "a/b")
    assert str(Address.parse("s3://bucket") / "a" / "b#1") == "s3://bucket/a/b#1"
    for wrong in ("gs://bucket/a", "s3:///a", "/a/b"):
        with pytest.raises(ValueError, match="names no bucket; write s3://bucket/prefix"):
            Address.parse(wrong)


def test_what_goes_there_in_parts_comes_back(store: Any, large: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"")
    upload({large: PLACE / "large", small: PLACE / "small"})
    assert store.head_object(Bucket="bucket", Key="a/place/large")["ETag"].endswith('-3"')
    assert [(entry.path, entry.size) for entry in list_objects(PLACE)] == [
        ("large", large.stat().st_size),
        ("small", 0),
    ]
    download({tmp_path / "back" / "large": PLACE / "large", tmp_path / "back" / "small": PLACE / "small"})
    assert (tmp_path / "back" / "large").read_bytes() == large.read_bytes()
    assert (tmp_path / "back" / "small").read_bytes() == b""


def test_small_objects_are_written_found_read_and_removed(store: Any) -> None:
    assert not has_object(PLACE)
    put_object(PLACE / "below", b"other")
    assert not has_object(PLACE), "what only begins alike is another object"
    put_object(PLACE, b"text")
    assert has_object(PLACE)
    assert read_object(s3_client(), PLACE) == b"text"
    remove_object(PLACE)
    remove_object(PLACE)
    assert not has_object(PLACE)


def test_an_altered_object_is_refused_by_name(store: Any, tmp_path: Path) -> None:
    put_object(PLACE, b"content")
    metadata = store.head_object(Bucket="bucket", Key=PLACE.key)["Metadata"]
    store.put_object(Bucket="bucket", Key=PLACE.key, Body=b"c0ntent", Metadata=metadata)
    with pytest.raises(ValueError, match="s3://bucket/a/place was truncated or altered"):
        download({tmp_path / "back": PLACE})
    assert not (tmp_path / "back").exists()


def test_what_others_put_there_has_no_digest_and_is_taken(store: Any, tmp_path: Path) -> None:
    store.put_object(Bucket="bucket", Key="theirs", Body=b"x")
    download({tmp_path / "theirs": Address("bucket", "theirs")})
    assert (tmp_path / "theirs").read_bytes() == b"x"


def test_every_part_carries_its_md5(store: Any, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    add = object_store._add_md5

    def noted(params: dict[str, Any], **rest: Any) -> None:
        add(params, **rest)
        sent.append(params["headers"]["Content-MD5"])

    monkeypatch.setattr(object_store, "_add_md5", noted)
    upload({large: PLACE})
    content, part = large.read_bytes(), object_store.PART_BYTES
    parts = [content[start : start + part] for start in range(0, len(content), part)]
    assert sorted(sent) == sorted(base64.b64encode(hashlib.md5(part).digest()).decode() for part in parts)


@pytest.mark.parametrize(("breaks", "after"), [(3, 0), (4, 100), (6, 3 * 2**20)])
def test_a_connection_that_breaks_is_made_again(
    store: Any,
    endpoint: str,
    large: Path,
    tmp_path: Path,
    breaks: int,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(object_store, "LONGEST_PAUSE", 0.2)
    with Faulty(endpoint, breaks, after) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        upload({large: PLACE})
        assert faulty.broken == breaks
    said = capsys.readouterr().out
    assert said.count("does not answer") == 1
    assert SECRET not in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    download({tmp_path / "back": PLACE})
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_patience_ends(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(object_store, "SECONDS_TO_OUTLAST", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:password@127.0.0.1:{port}")
    with pytest.raises(
        ValueError, match=rf"uploading s3://bucket/a/place at http://127\.0\.0\.1:{port}: no answer for"
    ) as e:
        put_object(PLACE, b"x")
    assert "password" not in str(e.value)


def test_a_missing_bucket_and_a_missing_key_are_told_apart(store: Any, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"fetching s3://bucket/no at {endpoint}: bucket 'bucket' answered NoSuchKey"):
        download({tmp_path / "x": Address("bucket", "no")})
    with pytest.raises(ValueError, match=r"fetching s3://absent/no at .*answered NoSuchBucket; there is no"):
        download({tmp_path / "x": Address("absent", "no")})
    with pytest.raises(ValueError, match=r"uploading s3://absent/no at .*bucket 'absent' answered NoSuchBucket"):
        put_object(Address("absent", "no"), b"x")


@pytest.mark.parametrize("code", sorted(object_store.ADVICE))
def test_every_refusal_says_what_to_do_and_names_no_key(store: Any, code: str) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code, "Message": f"{SECRET} a-name"}}
    with (
        pytest.raises(ValueError, match=r"uploading s3://bucket/x at http://.*: bucket 'bucket' answered") as caught,
        object_store.clear_errors(s3_client(), "bucket", "uploading s3://bucket/x"),
    ):
        raise ClientError(answer, "PutObject")  # type: ignore[arg-type]
    assert object_store.ADVICE[code] in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "a-name" not in str(caught.value)


def test_what_is_not_the_stores_fault_is_not_tried_again(store: Any) -> None:
    patience = object_store._Patience("there")
    answer = lambda status, code: (type("Http", (), {"status_code": status}), {"Error": {"Code": code}})  # noqa: E731
    for status, code, again in [(403, "AccessDenied", False), (404, "NoSuchKey", False), (503, "SlowDown", True)]:
        assert (patience(1, None, answer(status, code), {"context": {}}) is not None) is again


def test_the_usual_bound_on_attempts_holds(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    patience, context = object_store._Patience("there"), dict[str, Any]()
    assert [patience.pause(attempt, context, "x") is None for attempt in (1, 2, 3)] == [False, False, True]

"""Object storage, `s3://`: the one place that loads boto3.

Endpoint, region and credentials come from the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...). What
moves is verified on both ways: the store compares each part with the Content-MD5 that is sent along, and every file
carries its sha256 as metadata, which is compared when it comes back. A store that goes away is waited for.

Standard library only at import.
"""

import base64
import hashlib
import itertools
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retrieval.listing import Listed
from retrieval.manifest import file_digest
from retrieval.progress import Progress

OBJECTS_PER_PAGE = 1000  # of a listing; the most that S3 gives
SECONDS_TO_OUTLAST = 120.0  # for which a request that fails by the store's fault is made again: a gateway restarts
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts; doubled each time, drawn from the upper half
PASSING = (429, 500, 502, 503, 504)  # answers of a store that may do better in a moment
PASSING_CODES = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable")
PART_BYTES = 16 * 2**20  # of a file that moves in several parts at once; S3 takes 10,000 parts: 160 GiB a file
PARTS_AT_ONCE = 8
SHA256 = "sha256"  # the entry in an object's metadata


class MissingObjectError(ValueError):
    """An object is not there."""


class AlteredObjectError(ValueError):
    """What came is not what was uploaded."""


@dataclass(frozen=True, slots=True)
class Address:
    """A place in an object store: `s3://bucket/key`. The key is that of an object, or what several begin with."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, location: str) -> "Address":
        """Read `s3://bucket/key`; the key may be empty, and slashes at its ends are left out.

        Raises:
            ValueError: another form.
        """
        parts = urlsplit(location)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"location '{location}' names no bucket; write s3://bucket/prefix.")
        return cls(parts.netloc, location.split("//", 1)[1].partition("/")[2].strip("/"))

    def __truediv__(self, name: str) -> "Address":
        return Address(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def is_address(location: str) -> bool:
    """Whether a location is in an object store."""
    return location.startswith("s3://")


def s3_client(seconds_to_outlast: float | None = None) -> Any:
    """A client of the object store that the environment names; for this process and its threads.

    Args:
        seconds_to_outlast: for which a request is made again that fails by the store's fault; 0 asks once, and None
            for SECONDS_TO_OUTLAST.
    """
    import boto3
    from botocore.config import Config

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    session = boto3.session.Session()
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 1},  # see _Patience: botocore's own gives up in seconds
        max_pool_connections=32,
        request_checksum_calculation="when_required",  # older stores ignore the newer ones, or refuse them
        response_checksum_validation="when_supported",
    )
    client = session.client("s3", config=config, region_name=region or session.region_name or "us-east-1")
    client.meta.events.register("needs-retry.s3", _Patience(_endpoint(client), seconds_to_outlast))
    for action in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-call.s3.{action}", _add_md5)
    return client


def list_objects(prefix: Address) -> list[Listed]:
    """Every object under a prefix, sorted by key; paths are relative to the prefix.

    Raises:
        ValueError: the store cannot be reached or refuses; names endpoint, bucket and action, never a key.
    """
    client, beginning = s3_client(), f"{prefix.key}/" if prefix.key else ""
    paginator = client.get_paginator("list_objects_v2")
    pages = paginator.paginate(Bucket=prefix.bucket, Prefix=beginning, PaginationConfig={"PageSize": OBJECTS_PER_PAGE})
    with clear_errors(client, prefix.bucket, f"listing s3://{prefix.bucket}/{beginning}"):
        found = [entry for page in pages for entry in page.get("Contents", [])]
    listed = [
        Listed(entry["Key"].removeprefix(beginning), entry["Size"], entry["ETag"].strip('"'))
        for entry in found
        if not entry["Key"].endswith("/")  # the mark that a console leaves for a folder
    ]
    return sorted(listed, key=lambda entry: os.fsencode(entry.path))


def read_object(client: Any, address: Address, version: str = "") -> bytes:
    """The content of a small object.

    Args:
        client: from `s3_client`.
        address: of the object.
        version: the etag that it must have still, if any.

    Raises:
        ValueError: it is not there, has changed, or the store cannot be reached or refuses.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    condition = {"IfMatch": version} if version else {}
    patience, context = _Patience(_endpoint(client)), dict[str, Any]()
    with clear_errors(client, address.bucket, f"fetching {address}"):
        for attempt in itertools.count(1):
            try:
                return client.get_object(Bucket=address.bucket, Key=address.key, **condition)["Body"].read()
            except (HTTPClientError, IncompleteReadError) as error:  # the store went away amid its answer
                if (pause := patience.pause(attempt, context, type(error).__name__)) is None:
                    raise
                time.sleep(pause)
    raise AssertionError("unreachable")


def upload(files: Mapping[Path, Address], name: str = "") -> None:
    """Put files into the store: large ones in parts, several at once, each with its sha256.

    Args:
        files: address of each. An object is replaced as a whole, at its end.
        name: of the progress; nothing is shown without one.

    Raises:
        ValueError: the store cannot be reached or refuses; names endpoint, bucket and action, never a key.
    """
    client = s3_client()
    digests = {path: file_digest(path) for path in files}
    sizes = {path: path.stat().st_size for path in files}

    def submit(manager: Any, path: Path, subscribers: list[Any]) -> Any:
        address, extra = files[path], {"Metadata": {SHA256: digests[path]}}
        return manager.upload(os.fspath(path), address.bucket, address.key, extra, subscribers)

    _move(client, files, "uploading", submit, Progress(name, sum(sizes.values()), "bytes") if name else None)
    for path, address in files.items():
        head = _head(client, address, "checking")
        if (head["ContentLength"], head["Metadata"].get(SHA256)) != (sizes[path], digests[path]):
            raise ValueError(f"{address} is not what was uploaded: another process writes there. Use another place.")


def download(files: Mapping[Path, Address], name: str = "") -> None:
    """Fetch objects to files: large ones in parts, several at once; each is whole or not there.

    Args:
        files: address of each.
        name: of the progress; nothing is shown without one.

    Raises:
        MissingObjectError: an object is not there.
        AlteredObjectError: an object is not what was uploaded, or was replaced meanwhile; its name is given.
        ValueError: the store cannot be reached or refuses; names endpoint, bucket and action, never a key.
    """
    client = s3_client()
    heads = {path: _head(client, address, "fetching") for path, address in files.items()}
    total = sum(head["ContentLength"] for head in heads.values())

    def submit(manager: Any, path: Path, subscribers: list[Any]) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        return manager.download(files[path].bucket, files[path].key, os.fspath(path), None, subscribers)

    _move(client, files, "fetching", submit, Progress(name, total, "bytes") if name else None)
    for path, head in heads.items():
        expected = head["Metadata"].get(SHA256)  # what others put there may have none
        if path.stat().st_size != head["ContentLength"] or (expected and file_digest(path) != expected):
            path.unlink()
            raise AlteredObjectError(
                f"{files[path]} was truncated or altered: its content is not what was uploaded. Upload it again."
            )


def put_object(address: Address, content: bytes) -> None:
    """Write a small object; it appears as a whole.

    Raises:
        ValueError: as of `upload`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        path.write_bytes(content)
        upload({path: address})


def has_object(address: Address) -> bool:
    """Whether an object is there.

    Raises:
        ValueError: the store cannot be reached or refuses.
    """
    client = s3_client()
    with clear_errors(client, address.bucket, f"looking for {address}"):
        pages = client.list_objects_v2(Bucket=address.bucket, Prefix=address.key, MaxKeys=1)
    return any(entry["Key"] == address.key for entry in pages.get("Contents", []))


def version_of(address: Address) -> str:
    """The etag of an object: another one where the content has changed.

    Raises:
        MissingObjectError: it is not there.
        ValueError: the store cannot be reached or refuses.
    """
    return _head(s3_client(), address, "looking at")["ETag"].strip('"')


def remove_object(address: Address) -> None:
    """Remove an object; nothing where there is none.

    Raises:
        ValueError: the store cannot be reached or refuses.
    """
    client = s3_client()
    with clear_errors(client, address.bucket, f"removing {address}"):
        client.delete_object(Bucket=address.bucket, Key=address.key)


@contextmanager
def clear_errors(client: Any, bucket: str, action: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence with endpoint, bucket and action, and without credentials."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from s3transfer.exceptions import RetriesExceededError

    place = f"at {_endpoint(client)}"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise ValueError(
            f"{action} {place}: no credentials for bucket '{bucket}'; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code == "404":  # to a question about an object, which has no room for more
            code = "NoSuchKey" if _is_there(client, bucket) else "NoSuchBucket"
        advice = ADVICE.get(code, "look the code up in the store's documentation")
        kind = MissingObjectError if code == "NoSuchKey" else ValueError
        raise kind(f"{action} {place}: bucket '{bucket}' answered {code}; {advice}.") from None
    except (BotoCoreError, RetriesExceededError) as error:
        cause = getattr(error, "last_exception", error)
        raise ValueError(
            f"{action} {place}: no answer for bucket '{bucket}' ({type(cause).__name__}); "
            "check AWS_ENDPOINT_URL and that the store can be reached from here."
        ) from None


ADVICE = {
    "NoSuchBucket": "there is no such bucket; make it, or check its name and AWS_ENDPOINT_URL",
    "NoSuchKey": "there is no such object; check its name, or run again what should have written it",
    "PreconditionFailed": "the object has changed since it was listed; run the step again",
    "412": "the object has changed since it was listed; run the step again",
    "AccessDenied": "these credentials may not do this; ask for s3:ListBucket, s3:GetObject and s3:PutObject",
    "403": "these credentials are wrong, or may not do this; check them, and ask for s3:GetObject and s3:PutObject",
    "InvalidAccessKeyId": "the store does not know AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not fit AWS_ACCESS_KEY_ID",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired; get new credentials",
    "BadDigest": "what arrived is not what was sent; check the network, and run the step again",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ; set them",
}


class _Patience:
    """Makes a request again that failed by the store's fault or the network's, for some seconds.

    botocore's own retries share a quota among the parts of a transfer, so that a few parallel ones use it up within
    seconds. AWS_MAX_ATTEMPTS, where set, bounds the attempts.
    """

    def __init__(self, place: str, seconds: float | None = None) -> None:
        self._place, self._said, self._lock = place, False, threading.Lock()
        self._seconds = SECONDS_TO_OUTLAST if seconds is None else seconds
        self._most = int(os.environ.get("AWS_MAX_ATTEMPTS") or 1_000)

    def __call__(
        self, attempts: int, caught_exception: Exception | None, response: Any, request_dict: dict[str, Any], **_: Any
    ) -> float | None:
        """Seconds to wait before another attempt; None when the outcome stands. Called by botocore."""
        from botocore.exceptions import ConnectionError as NoConnectionError
        from botocore.exceptions import HTTPClientError, SSLError

        if caught_exception is not None:
            passing = isinstance(caught_exception, (NoConnectionError, HTTPClientError))
            passing, what = passing and not isinstance(caught_exception, SSLError), type(caught_exception).__name__
        else:
            http, parsed = response
            what = str(parsed.get("Error", {}).get("Code", http.status_code))
            passing = http.status_code in PASSING or what in PASSING_CODES
        return self.pause(attempts, request_dict["context"], what) if passing else None

    def pause(self, attempts: int, context: dict[str, Any], what: str) -> float | None:
        """Seconds to wait after so many attempts, the first of which failed at the time that the context keeps."""
        began = context.setdefault("rankone_failing_since", time.monotonic())
        left = began + self._seconds - time.monotonic()
        if attempts >= self._most or left <= 0:
            return None
        with self._lock:
            said, self._said = self._said, True
        if not said:
            print(f"{self._place} does not answer ({what}); trying again for {self._seconds:.0f} s.", flush=True)
        longest = min(FIRST_PAUSE * 2 ** min(attempts - 1, 10), LONGEST_PAUSE)
        return min(longest * random.uniform(0.5, 1.0), left)


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Send the MD5 of a body along, which every store compares with what arrives."""
    body, digest = params["body"], hashlib.md5(usedforsecurity=False)
    if isinstance(body, (bytes, bytearray)):
        digest.update(body)
    else:
        start = body.tell()
        while block := body.read(2**20):
            digest.update(block)
        body.seek(start)
    params["headers"]["Content-MD5"] = base64.b64encode(digest.digest()).decode()


def _move(
    client: Any,
    files: Mapping[Path, Address],
    action: str,
    submit: Callable[[Any, Path, list[Any]], Any],
    progress: Progress | None,
) -> None:
    """Move files in parallel, and wait for all; the first error is that of its file."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager
    from s3transfer.subscribers import BaseSubscriber

    lock = threading.Lock()

    class Shown(BaseSubscriber):
        def on_progress(self, bytes_transferred: int, **_: Any) -> None:
            with lock:
                if progress is not None:
                    progress.advance(bytes_transferred)

    config = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=PARTS_AT_ONCE,
        preferred_transfer_client="classic",
    )
    with progress or nullcontext(), create_transfer_manager(client, config) as manager:
        for path, future in [(path, submit(manager, path, [Shown()])) for path in files]:
            with clear_errors(client, files[path].bucket, f"{action} {files[path]}"):
                future.result()


def _head(client: Any, address: Address, action: str) -> dict[str, Any]:
    with clear_errors(client, address.bucket, f"{action} {address}"):
        return client.head_object(Bucket=address.bucket, Key=address.key)


def _is_there(client: Any, bucket: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError):
        return False
    return True


def _endpoint(client: Any) -> str:
    """Where the store is, without user and password."""
    endpoint = urlsplit(client.meta.endpoint_url)
    return f"{endpoint.scheme}://{endpoint.hostname}{f':{endpoint.port}' if endpoint.port else ''}"

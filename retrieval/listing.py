"""What a source holds, listed without reading it: files of a folder, objects of a bucket, and where they lie.

Standard library only at import; boto3 is loaded when a bucket is listed.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retrieval.home import home

OBJECTS_PER_PAGE = 1000  # of a listing; the most that S3 gives
CIFAR100_FOLDER = "cifar-100-python"
CIFAR100_FILES = (f"{CIFAR100_FOLDER}/train", f"{CIFAR100_FOLDER}/test", f"{CIFAR100_FOLDER}/meta")


@dataclass(frozen=True, slots=True)
class Listed:
    """One file or object.

    Attributes:
        path: relative to the root, with "/" between folders.
        size: bytes; -1 for what is no file.
        version: changes when the content does: times of a file, the etag of an object.
        problem: why it cannot be read as a file, or "".
    """

    path: str
    size: int
    version: str
    problem: str = ""


def existing_folder(location: str, source: str) -> Path:
    """The folder that `location` names.

    Raises:
        ValueError: no location, nothing there, or no folder.
    """
    if not location:
        raise ValueError(f"location is empty; source '{source}' needs the place of its images there.")
    folder = Path(location).expanduser()
    if not folder.exists():
        raise ValueError(f"location '{location}' does not exist; name the folder that holds the images.")
    if not folder.is_dir():
        raise ValueError(f"location '{location}' is no folder; source '{source}' reads a folder.")
    return folder


def cifar100_root(location: str) -> Path:
    """The folder that holds, or is to hold, `cifar-100-python`."""
    return Path(location).expanduser() if location else home() / "downloads"


def parquet_files(location: str) -> list[Listed]:
    """The Parquet files of a folder, at any depth, or the one file that `location` names.

    Raises:
        ValueError: nothing there.
    """
    path = Path(location).expanduser()
    if location and path.is_file():
        return [_listed_file(path, path.name)]
    files = [file for file in list_folder(existing_folder(location, "parquet")) if _is_parquet(file)]
    if not files:
        raise ValueError(
            f"location '{location}' holds no file that ends in .parquet; name the folder or file that does."
        )
    return files


def list_folder(root: Path) -> list[Listed]:
    """Everything below a folder, sorted by path; links are followed, and a link to a folder above itself is a problem.

    Empty folders and what is neither file nor folder are listed too, with their problem.
    """
    return sorted(_walk(root, "", (os.path.realpath(root),)), key=lambda listed: os.fsencode(listed.path))


def readable(path: str) -> str:
    """A path as text that can be written anywhere: bytes that are not UTF-8 appear as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[Listed]:
    empty = True
    with os.scandir(folder) as entries:
        for entry in entries:
            empty = False
            path = f"{prefix}{entry.name}"
            if not entry.is_dir():
                yield _listed_file(entry, path)
                continue
            real = os.path.realpath(entry.path) if entry.is_symlink() else str(Path(above[-1]) / entry.name)
            if real in above:
                yield Listed(path, -1, "", "a link to a folder above it")
            else:
                yield from _walk(Path(entry.path), f"{path}/", (*above, real))
    if empty and prefix:
        yield Listed(prefix.rstrip("/"), -1, "", "an empty folder")


def _listed_file(path: "os.DirEntry[str] | Path", relative: str) -> Listed:
    try:
        status = path.stat()
    except OSError as error:
        return Listed(relative, -1, "", f"cannot be opened: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return Listed(relative, -1, "", "neither file nor folder")
    return Listed(relative, status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}")


def _is_parquet(file: Listed) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.path.split("/"))
    return file.path.lower().endswith(".parquet") and not file.problem and not hidden


@dataclass(frozen=True, slots=True)
class Bucket:
    """A place in an object store: `s3://name/prefix`."""

    name: str
    prefix: str

    @classmethod
    def parse(cls, location: str) -> "Bucket":
        """Read `s3://bucket/prefix`; the prefix may be empty.

        Raises:
            ValueError: another form.
        """
        parts = urlsplit(location)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"location '{location}' names no bucket; write s3://bucket/prefix.")
        prefix = location.split("//", 1)[1].partition("/")[2].strip("/")
        return cls(parts.netloc, f"{prefix}/" if prefix else "")

    def list(self) -> list[Listed]:
        """Every object under the prefix, sorted by key; paths are relative to the prefix.

        Raises:
            ValueError: the store cannot be reached or refuses; names endpoint, bucket and action, never a key.
        """
        client = s3_client()
        paginator = client.get_paginator("list_objects_v2")
        pages = paginator.paginate(
            Bucket=self.name, Prefix=self.prefix, PaginationConfig={"PageSize": OBJECTS_PER_PAGE}
        )
        with clear_s3_errors(client, self.name, f"listing s3://{self.name}/{self.prefix}"):
            found = [entry for page in pages for entry in page.get("Contents", [])]
        listed = [
            Listed(entry["Key"].removeprefix(self.prefix), entry["Size"], entry["ETag"].strip('"'))
            for entry in found
            if not entry["Key"].endswith("/")  # the mark that a console leaves for a folder
        ]
        return sorted(listed, key=lambda entry: os.fsencode(entry.path))


def s3_client() -> Any:
    """A client of the object store that the environment names (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard"}, max_pool_connections=32)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    session = boto3.session.Session()
    return session.client("s3", config=config, region_name=region or session.region_name or "us-east-1")


@contextmanager
def clear_s3_errors(client: Any, bucket: str, action: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence with endpoint, bucket and action, and without credentials."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    endpoint = urlsplit(client.meta.endpoint_url)
    place = f"at {endpoint.scheme}://{endpoint.hostname}{f':{endpoint.port}' if endpoint.port else ''}"
    try:
        yield
    except NoCredentialsError:
        raise ValueError(
            f"{action} {place}: no credentials for bucket '{bucket}'; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        advice = S3_ADVICE.get(code, "look the code up in the store's documentation")
        raise ValueError(f"{action} {place}: bucket '{bucket}' answered {code}; {advice}.") from None
    except BotoCoreError as error:
        raise ValueError(
            f"{action} {place}: no answer for bucket '{bucket}' ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL and that the store can be reached from here."
        ) from None


S3_ADVICE = {
    "NoSuchBucket": "there is no such bucket; check its name and AWS_ENDPOINT_URL",
    "NoSuchKey": "the object has gone since it was listed; run the step again",
    "PreconditionFailed": "the object has changed since it was listed; run the step again",
    "412": "the object has changed since it was listed; run the step again",
    "AccessDenied": "these credentials may not do this; ask for s3:ListBucket and s3:GetObject",
    "403": "these credentials may not do this; ask for s3:ListBucket and s3:GetObject",
    "InvalidAccessKeyId": "the store does not know AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not fit AWS_ACCESS_KEY_ID",
}

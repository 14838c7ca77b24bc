"""A cheap digest of what a source holds now, so that a cache sees when the data change.

Standard library only at import: whoever starts a pipeline calls it, without the libraries that read images.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from retrieval.listing import (
    CIFAR100_FILES,
    Listed,
    cifar100_root,
    existing_folder,
    list_folder,
    parquet_files,
)
from retrieval.manifest import FILE_NAME, digest_of, file_digest
from retrieval.object_store import Address, list_objects


def source_fingerprint(source: str, location: str) -> str:
    """sha256 over names, sizes and times (etags in a bucket) of all that a source holds; contents are not read.

    Args:
        source: one of FINGERPRINTS.
        location: as prepare_data takes it.

    Raises:
        ValueError: an unknown source, or a location that cannot be listed.
    """
    if source not in FINGERPRINTS:
        raise ValueError(f"Unknown source '{source}'; choose one of: {', '.join(FINGERPRINTS)}.")
    return digest_of([source, FINGERPRINTS[source](location)])


def named_fingerprint(paths: str) -> str:
    """sha256 of the files, and of the manifests of the folders, that are named, separated by commas; empty for none.

    What is not there, or is in a bucket, counts by its name alone.
    """
    places = [Path(text.strip()) for text in paths.split(",") if text.strip()]
    manifests = [place / FILE_NAME if place.is_dir() else place for place in places]
    found = {str(place): file_digest(file) for place, file in zip(places, manifests, strict=True) if file.is_file()}
    return digest_of(found) if found else ""


def _digits(location: str) -> list[str]:
    del location  # they ship inside scikit-learn
    return [version("scikit-learn")]


def _cifar100(location: str) -> list[list[str | int]]:
    """Its three files; empty before the download."""
    root = cifar100_root(location)
    return _entries([file for file in list_folder(root) if file.path in CIFAR100_FILES] if root.is_dir() else [])


def _folder(location: str) -> list[list[str | int]]:
    return _entries(list_folder(existing_folder(location, "folder")))


def _parquet(location: str) -> list[list[str | int]]:
    return _entries(parquet_files(location))


def _s3(location: str) -> list[list[str | int]]:
    return _entries(list_objects(Address.parse(location)))


def _entries(listed: list[Listed]) -> list[list[str | int]]:
    return [[entry.path, entry.size, entry.version, entry.problem] for entry in listed]


FINGERPRINTS: dict[str, Callable[[str], object]] = {
    "digits": _digits,
    "cifar100": _cifar100,
    "folder": _folder,
    "parquet": _parquet,
    "s3": _s3,
}

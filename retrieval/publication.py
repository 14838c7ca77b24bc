"""What outlives a run, put into an object store: files and a manifest, which is written last.

Standard library only at import.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval.manifest import FILE_NAME, Manifest, file_digest, manifest_of, read_manifest
from retrieval.object_store import (
    Address,
    download,
    has_object,
    put_object,
    read_object,
    remove_object,
    s3_client,
    upload,
)


def publish(
    files: Mapping[str, Path],
    address: Address,
    kind: str,
    format_version: int,
    made_from: dict[str, str],
    facts: dict[str, Any],
) -> Manifest:
    """Upload files, then their manifest. What is there whole already is not sent again.

    While files are replaced there is no manifest: whoever fetches then is told that the publication is not finished.

    Args:
        files: by their names below the address, with "/" between folders.
        address: of the folder.
        kind: what it is, e.g. "publication".
        format_version: of the files' layout.
        made_from: digest of each artifact that it was made from, by name.
        facts: whatever else a reader needs; plain JSON.

    Raises:
        ValueError: the store cannot be reached or refuses.
    """
    digests = {name: file_digest(path) for name, path in sorted(files.items())}
    manifest, place = manifest_of(digests, kind, format_version, made_from, facts), address / FILE_NAME
    text = manifest.text().encode()
    if has_object(place):
        if read_object(s3_client(), place) == text:
            return manifest
        remove_object(place)
    upload({path: address / name for name, path in files.items()}, name=f"publish {kind}")
    put_object(place, text)
    return manifest


def fetch(address: Address, folder: Path, kind: str, format_version: int) -> Manifest:
    """Download a publication to a folder, and check it.

    Raises:
        ValueError: it is not there, not finished, of another kind, or a file is missing or was altered; it is named.
    """
    if not has_object(address / FILE_NAME):
        raise ValueError(f"{address} holds no finished {kind}: it has no {FILE_NAME}. Run again what publishes it.")
    download({folder / FILE_NAME: address / FILE_NAME})
    names = json.loads((folder / FILE_NAME).read_text()).get("files", {})
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{address / FILE_NAME} names '{name}', which lies outside. Publish it again.")
    download({folder / name: address / name for name in names}, name=f"fetch {kind}")
    return read_manifest(folder, kind, format_version)

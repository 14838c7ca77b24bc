"""The manifest that every artifact folder carries: what it is, what it holds and what it was made from."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says of an artifact folder.

    Attributes:
        kind: what the folder is, e.g. "dataset".
        format_version: of the files' layout; a reader refuses another one.
        digest: sha256 over the names and contents of all files but the manifest; equal content, equal digest.
        files: sha256 of each file by its name.
        made_from: digest of each artifact that this one was made from, by name.
        facts: whatever else a reader needs; plain JSON.
    """

    kind: str
    format_version: int
    digest: str
    files: dict[str, str]
    made_from: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def write_manifest(
    folder: Path,
    kind: str,
    format_version: int,
    made_from: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> Manifest:
    """Digest the files of a finished artifact folder and write its manifest."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != FILE_NAME}
    manifest = Manifest(kind, format_version, digest_of(files), files, made_from or {}, facts or {})
    (folder / FILE_NAME).write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n")
    return manifest


def read_manifest(folder: Path, kind: str, format_version: int) -> Manifest:
    """Read a folder's manifest and check the folder against it.

    Raises:
        ValueError: no manifest, another kind or format, or a file that is missing or was altered; the file is named.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} is no {kind}: it has no {FILE_NAME}. The step that should have written it did not finish."
        )
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Run the step that made it again.") from error
    if (manifest.kind, manifest.format_version) != (kind, format_version):
        raise ValueError(
            f"{folder} holds a {manifest.kind} of format {manifest.format_version}; "
            f"expected a {kind} of format {format_version}. Run the step that made it again with this version."
        )
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: the {kind} is incomplete. Run the step that made it again.")
        if file_digest(folder / name) != digest:
            raise ValueError(
                f"{folder / name} was truncated or altered: its sha256 is not the manifest's. Make the {kind} again."
            )
    return manifest


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """sha256 of a JSON value, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

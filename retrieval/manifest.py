"""The manifest that every artifact folder carries: what it is, what it holds and what it was made from.

Whoever reads a folder checks it whole: every file against its sha256, the manifest against its own seal, and that
nothing else lies there. A process reads each file once for that, however often the folder is opened.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

FILE_NAME = "manifest.json"
SECONDS_TO_SETTLE = 2.0  # a file that changed so lately may change again without its times showing it


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says of an artifact folder.

    Attributes:
        kind: what the folder is, e.g. "dataset".
        format_version: of the files' layout; a reader refuses another one.
        digest: sha256 over the names and contents of all files but the manifest; equal content, equal digest.
        files: sha256 of each file by its path, relative and with "/"; hidden files are not counted.
        made_from: digest of each artifact that this one was made from, by name.
        facts: whatever else a reader needs; plain JSON.
        seal: sha256 over all the others; empty in manifests of earlier versions.
    """

    kind: str
    format_version: int
    digest: str
    files: dict[str, str]
    made_from: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seal: str = ""

    def sealed(self) -> "Manifest":
        """The same with its seal."""
        values = json.loads(self.text())  # as they are read back: keys are texts
        return replace(self, seal=digest_of({name: value for name, value in values.items() if name != "seal"}))

    def text(self) -> str:
        """What is written in `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def write_manifest(
    folder: Path,
    kind: str,
    format_version: int,
    made_from: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> Manifest:
    """Digest the files of a finished artifact folder and write its manifest."""
    files = {name: file_digest(folder / name) for name in files_in(folder)}
    manifest = manifest_of(files, kind, format_version, made_from, facts)
    (folder / FILE_NAME).write_text(manifest.text())
    return manifest


def manifest_of(
    files: dict[str, str],
    kind: str,
    format_version: int,
    made_from: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> Manifest:
    """The manifest of files with these digests, sealed."""
    return Manifest(kind, format_version, digest_of(files), files, made_from or {}, facts or {}).sealed()


def files_in(folder: Path) -> list[str]:
    """Every file in a folder, at any depth, but the manifest and hidden ones: paths with "/", sorted."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix() for path in paths if path != Path(FILE_NAME) and not any(p.startswith(".") for p in path.parts)
    )


def read_manifest(folder: Path, kind: str, format_version: int) -> Manifest:
    """Read a folder's manifest and check the folder against it.

    Raises:
        ValueError: no manifest, another kind or format, a file that is missing, was altered or is not in the manifest;
            the file is named.
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
    if manifest.digest != digest_of(manifest.files) or manifest.seal not in ("", manifest.sealed().seal):
        raise ValueError(f"{path} was altered: its own sha256 is another. Make the {kind} again.")
    if strange := sorted(set(files_in(folder)) - set(manifest.files)):
        raise ValueError(
            f"{folder / strange[0]} is not in the manifest: something else wrote to this {kind}. Remove it."
        )
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: the {kind} is incomplete. Run the step that made it again.")
        if file_digest(folder / name) != digest:
            raise ValueError(
                f"{folder / name} was truncated or altered: its sha256 is not the manifest's. Make the {kind} again."
            )
    return manifest


_digests: dict[tuple[str, int, int, int, int], str] = {}  # of files that this process has read, by what a change alters


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal; a file that has not changed since is not read again."""
    status = path.stat()
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - max(status.st_mtime, status.st_ctime) < SECONDS_TO_SETTLE:
            return digest
        _digests[key] = digest
    return _digests[key]


def digest_of(value: Any) -> str:
    """sha256 of a JSON value, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""What a source holds, listed without reading it: files of a folder and where they lie.

Standard library only. Objects of a bucket are listed by retrieval/object_store.py, in the same form.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrieval.home import home

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

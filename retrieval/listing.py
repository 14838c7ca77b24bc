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

CANNOT_BE_OPENED = "cannot be opened"  # begins the problem of what is there and may not be read


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

    What cannot be listed there as file or folder is among them, with its problem.

    Raises:
        ValueError: no Parquet file there, or a folder that cannot be opened.
    """
    path = Path(location).expanduser()
    if location and path.is_file():
        return [_listed_file(path, path.name)]
    listed = [file for file in list_folder(existing_folder(location, "parquet")) if not _is_set_aside(file)]
    files = [file for file in listed if file.problem or file.path.lower().endswith(".parquet")]
    if all(file.problem for file in files):
        problems = ", ".join(f"{readable(file.path)} ({file.problem})" for file in files[:3])
        raise ValueError(
            f"location '{location}' holds no file that ends in .parquet{f': {problems}' if problems else ''}; "
            "name the folder or file that does."
        )
    return files


def list_folder(root: Path) -> list[Listed]:
    """Everything below a folder, sorted by path; links are followed, and a link to a folder above itself is a problem.

    Empty folders, folders that may not be read, links that lead nowhere and what is neither file nor folder are listed
    too, with their problem.

    Raises:
        ValueError: the folder itself may not be read.
    """
    return sorted(_walk(root, "", (os.path.realpath(root),)), key=lambda listed: os.fsencode(listed.path))


def readable(path: str) -> str:
    """A path as text that can be written anywhere: bytes that are not UTF-8 appear as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[Listed]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except PermissionError as error:  # another error, of a disk that fails say, must not cost a class
        if not prefix:
            raise ValueError(
                f"'{folder}' {_cannot_be_opened(error)}; see to it that whoever runs this may read it."
            ) from error
        yield Listed(prefix.rstrip("/"), -1, "", _cannot_be_opened(error))
        return
    for entry in entries:
        path = f"{prefix}{entry.name}"
        if not _is_folder(entry):
            yield _listed_file(entry, path)
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else str(Path(above[-1]) / entry.name)
        if real in above:
            yield Listed(path, -1, "", "a link to a folder above it")
        else:
            yield from _walk(Path(entry.path), f"{path}/", (*above, real))
    if prefix and not entries:
        yield Listed(prefix.rstrip("/"), -1, "", "an empty folder")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through what may not be read: `_listed_file` says which
        return False


def _listed_file(path: "os.DirEntry[str] | Path", relative: str) -> Listed:
    try:
        status = path.stat()
    except OSError as error:
        return Listed(relative, -1, "", _cannot_be_opened(error))
    if not stat.S_ISREG(status.st_mode):
        return Listed(relative, -1, "", "neither file nor folder")
    return Listed(relative, status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}")


def _cannot_be_opened(error: OSError) -> str:
    return f"{CANNOT_BE_OPENED}: {error.strerror}"


def _is_set_aside(file: Listed) -> bool:
    """Whether writers of Parquet would pass over it, as over their own notes."""
    return any(part.startswith((".", "_")) for part in file.path.split("/"))

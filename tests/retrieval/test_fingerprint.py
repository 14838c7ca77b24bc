"""The fingerprint of a source changes when its data do, and needs no library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.fingerprint import FINGERPRINTS, named_fingerprint, source_fingerprint
from retrieval.sources import SOURCES


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_the_same_folder_gives_the_same(folder):
    assert source_fingerprint("folder", str(folder)) == source_fingerprint("folder", f"{folder}/")


@pytest.mark.parametrize("change", ["add", "remove", "rename", "rewrite", "touch", "ignored"])
def test_a_change_gives_another(folder, change):
    before = source_fingerprint("folder", str(folder))
    path = folder / "cat" / "1.png"
    if change == "add":
        (folder / "cat" / "3.png").write_bytes(b"")
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(folder / "cat" / "9.png")
    elif change == "rewrite":  # the same length and the same time of change
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "touch":
        os.utime(path, ns=(0, 0))
    else:
        (folder / "notes.txt").write_text("x")
    assert source_fingerprint("folder", str(folder)) != before


def test_a_folder_that_comes_to_be_readable_gives_another(folder, refuse_folders):
    (folder / "loop").symlink_to("loop")
    readable = source_fingerprint("folder", str(folder))
    refuse_folders("dog")
    forbidden = source_fingerprint("folder", str(folder))
    assert source_fingerprint("folder", str(folder)) == forbidden != readable
    (folder / "loop").unlink()
    assert source_fingerprint("folder", str(folder)) != forbidden


def test_digits_and_an_absent_cifar(tmp_path):
    absent = source_fingerprint("cifar100", str(tmp_path))
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"x")
    assert len({absent, source_fingerprint("cifar100", str(tmp_path)), source_fingerprint("digits", "")}) == 3


def test_parquet_sees_its_files_alone(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"x")
    before = source_fingerprint("parquet", str(tmp_path))
    (tmp_path / "readme.md").write_text("x")
    assert source_fingerprint("parquet", str(tmp_path)) == before
    (tmp_path / "b.parquet").write_bytes(b"x")
    assert source_fingerprint("parquet", str(tmp_path)) != before


@pytest.mark.parametrize(
    ("source", "location", "message"),
    [
        ("flickr", "", "Unknown source 'flickr'; choose one of: digits, "),
        ("folder", "", "location is empty"),
        ("folder", "/nowhere/at/all", "does not exist"),
        ("folder", __file__, "is no folder"),
        ("s3", "gs://bucket/prefix", "names no bucket"),
    ],
)
def test_a_location_that_cannot_be_listed(source, location, message):
    with pytest.raises(ValueError, match=message):
        source_fingerprint(source, location)


def test_a_named_file_is_known_by_its_content(tmp_path):
    weights, data = tmp_path / "sq.pth", tmp_path / "data"
    weights.write_bytes(b"first")
    data.mkdir()
    (data / "manifest.json").write_text("{}")
    before = named_fingerprint(f"{weights}, {data}")
    assert named_fingerprint(f"{weights},{data}") == before
    weights.touch()
    assert named_fingerprint(f"{weights},{data}") == before
    weights.write_bytes(b"other")
    changed = named_fingerprint(f"{weights},{data}")
    (data / "manifest.json").write_text('{"a": 1}')
    assert len({before, changed, named_fingerprint(f"{weights},{data}")}) == 3


@pytest.mark.parametrize("paths", ["", "none", "imagenet", "s3://bucket/key", "/nowhere/at/all", " , "])
def test_what_is_no_file_here_has_no_fingerprint(paths):
    assert named_fingerprint(paths) == ""


def test_every_source_has_one():
    assert set(FINGERPRINTS) == set(SOURCES)


def test_it_is_standard_library_at_import():
    heavy = "{'numpy', 'PIL', 'torch', 'boto3', 'sklearn', 'pyarrow'}"
    code = f"import retrieval.fingerprint, sys; print({heavy} & {{*sys.modules}})"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout == "set()\n"

"""prepare_data as a step: files of every bad kind in, dataset and report out, the same bytes whatever the way."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.prepare_data import step
from components.prepare_data.params import CLASS_ORDERS, DISJOINT_BY, RESIZES, SOURCES, SPLITS, Params
from components.prepare_data.step import prepare_data
from retrieval import images, sources, splits, staging
from retrieval.dataset import SPLITS as SPLIT
from retrieval.dataset import Dataset

ROOT = Path(__file__).parents[2]


class SilentRun:
    def log_metrics(self, values, step=None):
        self.metrics = dict(values)

    def log_artifact(self, path, folder=None, name=None):
        assert path.is_file()


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    """A step whose run is logged nowhere."""
    monkeypatch.setattr(step, "step_run", lambda name, params: contextlib.nullcontext(SilentRun()))


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, kind)
    return file.getvalue()


def lay_sound(root: Path, classes: str = "abcdef", per_class: int = 6, prefix: str = "", first: int = 0) -> Path:
    for number, name in enumerate(classes):
        folder = root / prefix / name
        folder.mkdir(parents=True, exist_ok=True)
        for place in range(per_class):
            seed = first + 100 * number + place
            (folder / f"{place}.{('jpg', 'png')[place % 2]}").write_bytes(encoded(seed, ("JPEG", "PNG")[place % 2]))
    return root


def run(tmp_path: Path, name: str = "out", **knobs) -> tuple[Dataset, dict, str]:
    """The dataset, the metadata and the page."""
    folder = tmp_path / name
    outputs = prepare_data(Params(**knobs), folder / "dataset", folder / "data_report.html")
    assert not (folder / "dataset.scratch").exists()
    return Dataset(folder / "dataset"), dict(outputs["dataset"]), (folder / "data_report.html").read_text()


def test_the_choices_are_those_of_the_library():
    assert (tuple(sources.SOURCES), tuple(splits.SPLITTERS), tuple(images.RESIZES)) == (SOURCES, SPLITS, RESIZES)
    assert (splits.CLASS_ORDERS, splits.DISJOINT_BY) == (CLASS_ORDERS, DISJOINT_BY)


def test_whole_groups_are_held_out_in_the_order_of_their_names(tmp_path):
    for number, group in enumerate(("one", "three", "two", "zero")):
        lay_sound(tmp_path / "in", "ab", per_class=2, prefix=group, first=1000 * number)
    where = {"source": "folder", "location": str(tmp_path / "in"), "image_size": 16}
    knobs = {"split": "disjoint", "class_order": "listed", "disjoint_by": "group", "test_fraction": 0.5}
    dataset, *_ = run(tmp_path, validation_fraction=0.0, **where, **knobs)
    by_split = {split: {dataset.class_names[dataset.labels[row]] for row in dataset.rows(split)} for split in SPLIT}
    assert by_split == {
        "train": {"one/a", "one/b", "three/a", "three/b"},
        "validation": set(),
        "test": {"two/a", "two/b", "zero/a", "zero/b"},
    }
    assert dataset.report()["settings"]["disjoint_by"] == "group"


def test_a_closed_split_holds_no_class_out():
    with pytest.raises(ValueError, match=r"class_order is listed .* split=closed holds no class out whole"):
        Params(class_order="listed")


def test_the_own_split_takes_the_test_images_of_the_source():
    own = {"source": "cifar100", "split": "own"}
    with pytest.raises(ValueError, match=r"test_fraction is 0.5; split=own takes the source's test images"):
        Params(**own, test_fraction=0.5)
    with pytest.raises(ValueError, match=r"disjoint_by is group; split=own with validation_fraction=0 holds no class"):
        Params(**own, disjoint_by="group", validation_fraction=0.0)
    assert Params(**own, class_order="listed").class_order == "listed"  # has a meaning where test classes are unseen


def test_digits(tmp_path):
    dataset, metadata, page = run(tmp_path)
    assert (len(dataset), dataset.image_size, dataset.class_names) == (1797, 32, list("0123456789"))
    assert (
        metadata["train_images"] + metadata["validation_images"] + metadata["test_images"] == metadata["images"] == 1797
    )
    assert metadata["test_images"] == pytest.approx(0.2 * 1797, abs=10)
    assert (metadata["quarantined"], metadata["split"], metadata["digest"]) == (0, "closed", dataset.digest)
    assert metadata["images_per_second"] > 0
    from sklearn.datasets import load_digits

    first = dataset.read(np.array([0]))[0]  # upsampled bilinearly
    assert np.abs(first[2::4, 2::4, 0].astype(int) - load_digits().images[0] * 255 / 16).mean() < 30
    assert "1,797 images of 10 classes" in page


def test_the_same_seed_gives_the_same_bytes_and_another_another_split(tmp_path):
    lay_sound(tmp_path / "in")
    knobs = {"source": "folder", "location": str(tmp_path / "in"), "image_size": 16}
    one, two, three = (run(tmp_path, name, seed=seed, **knobs)[0] for name, seed in (("1", 0), ("2", 0), ("3", 1)))
    assert one.digest == two.digest != three.digest


def test_neither_listing_order_nor_place_nor_workers_show(tmp_path, monkeypatch):
    lay_sound(tmp_path / "in")
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere")
    knobs = {"source": "folder", "image_size": 16}
    straight, *_ = run(tmp_path, "1", location=str(tmp_path / "in"), workers=1, **knobs)
    original = sources.os.scandir
    monkeypatch.setattr(
        sources.os, "scandir", lambda path: contextlib.nullcontext(sorted(original(path), key=lambda e: e.name)[::-1])
    )
    turned, *_ = run(tmp_path, "2", location=str(tmp_path / "elsewhere"), workers=1, **knobs)
    monkeypatch.undo()
    monkeypatch.setattr(step, "step_run", lambda name, params: contextlib.nullcontext(SilentRun()))
    monkeypatch.setattr(staging, "FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr(staging, "BATCH_BYTES", 1)
    parallel, *_ = run(tmp_path, "3", location=str(tmp_path / "in"), workers=2, **knobs)
    assert straight.digest == turned.digest == parallel.digest
    for row, name in enumerate(straight.index["source"].to_pylist()):
        expected = images.crop(Image.open(tmp_path / "in" / name).convert("RGB"), 16)
        assert np.array_equal(parallel.read(np.array([row]))[0], np.asarray(expected))


def bad_folder(root: Path) -> dict[str, list[str]]:
    """A folder with every kind of bad input; names by reason."""
    lay_sound(root, "abcd", prefix="train")
    lay_sound(root, "abcd", per_class=4, prefix="test", first=1000)
    jpeg, png = encoded(1, "JPEG"), encoded(2)
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(noise, "JPEG")
    damaged = bytearray(noise.getvalue())
    damaged[3000:3400] = b"\xff\xd0" * 200
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    files = {
        "train/a/cut.jpg": jpeg[: len(jpeg) // 2],
        "train/a/empty.png": b"",
        "train/a/damaged.jpg": bytes(damaged),
        "train/a/flipped.png": bytes(flipped),
        "train/a/text.jpg": b"this is a text",
        "train/a/drawing.svg": b"<svg/>",
        "train/b/again.png": (root / "train/b/1.png").read_bytes(),
        "train/c/as_c.png": encoded(7777),
        "train/d/as_d.png": encoded(7777),
        "train/d/tested.png": (root / "test/d/1.png").read_bytes(),
        "train/lonely/one.png": encoded(4242),
        "train/b/notes.txt": b"notes",
        "train/b/Thumbs.db": b"db",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    picture(5, 40, 5).save(root / "train/b/low.png")
    picture(6, 400, 300).save(root / "train/b/huge.png")
    return {
        "truncated": ["train/a/cut.jpg", "train/a/empty.png"],
        "corrupt": ["train/a/damaged.jpg", "train/a/flipped.png"],
        "format": ["train/a/drawing.svg", "train/a/text.jpg"],
        "too_small": ["train/b/low.png"],
        "too_large": ["train/b/huge.png"],
        "duplicate": ["train/b/again.png"],
        "two_labels": ["train/c/as_c.png", "train/d/as_d.png"],
        "train_and_test": ["train/d/tested.png"],
        "single_image_class": ["train/lonely/one.png"],
    }


def test_every_bad_input_is_left_out_counted_and_named(tmp_path):
    expected = bad_folder(tmp_path / "in")
    dataset, metadata, page = run(
        tmp_path,
        source="folder",
        location=str(tmp_path / "in"),
        split="own",
        image_size=16,
        max_pixels=100_000,
        max_quarantined_fraction=0.5,
    )
    report = dataset.report()
    found = {reason: [image["name"] for image in entry["images"]] for reason, entry in report["quarantined"].items()}
    assert found == expected
    assert metadata["quarantined"] == sum(map(len, expected.values())) == report["read"] - report["kept"]
    assert metadata["images"] == len(dataset) == 40
    assert not set(dataset.index["source"].to_pylist()) & {name for names in expected.values() for name in names}
    assert [file["name"] for file in report["ignored"]["files"]] == ["train/b/Thumbs.db", "train/b/notes.txt"]
    assert report["classes_lost"] == ["lonely"]
    assert dataset.class_names == list("abcd")
    for name in (name for names in expected.values() for name in names):
        assert name in page
    for reason, count in ((reason, len(names)) for reason, names in expected.items()):
        assert re.search(rf"<b>{count}</b>{reason.replace('_', ' ')}", page)


def test_what_cannot_be_opened_is_no_class_and_is_named(tmp_path, refuse_folders, capsys):
    lay_sound(tmp_path / "in", "ab", prefix="train")
    lay_sound(tmp_path / "in", "ab", prefix="test", first=1000)
    (tmp_path / "in" / "train" / "loop").symlink_to("loop")
    (tmp_path / "in" / "lost+found").mkdir()
    refuse_folders("lost+found")
    dataset, metadata, page = run(tmp_path, source="folder", location=str(tmp_path / "in"), split="own", image_size=16)
    report = dataset.report()
    assert report["ignored"]["files"] == [
        {"name": "lost+found", "reason": f"cannot be opened: {os.strerror(errno.EACCES)}"},
        {"name": "train/loop", "reason": f"cannot be opened: {os.strerror(errno.ELOOP)}"},
    ]
    assert [entry["name"] for entry in report["classes"]] == dataset.class_names == ["a", "b"]
    assert (report["classes_lost"], metadata["quarantined"]) == ([], 0)
    assert "lost+found" in page
    assert "mind, nothing of these was read: lost+found, train/loop" in capsys.readouterr().out


def test_too_much_of_it_is_an_error_and_leaves_nothing(tmp_path):
    bad_folder(tmp_path / "in")
    with pytest.raises(ValueError, match=r"images are unfit .* max_quarantined_fraction allows 2\.0%") as caught:
        run(tmp_path, source="folder", location=str(tmp_path / "in"), split="own", max_pixels=100_000)
    assert "train/a/cut.jpg" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_split_of_the_source_that_is_not_taken_is_told(tmp_path, capsys):
    lay_sound(tmp_path / "in", prefix="train")
    lay_sound(tmp_path / "in", prefix="test", first=1000)
    told = "the source's own split (test, train) is set aside, for split=closed divides all images anew; -p split=own"
    run(tmp_path, source="folder", location=str(tmp_path / "in"), split="closed")
    assert told in capsys.readouterr().out
    run(tmp_path, source="folder", location=str(tmp_path / "in"), split="own")
    assert "set aside" not in capsys.readouterr().out
    run(tmp_path, source="folder", location=str(lay_sound(tmp_path / "plain")), split="closed")
    assert "set aside" not in capsys.readouterr().out


def test_a_share_to_validate_is_refused_where_the_source_says_what_validates(tmp_path):
    for first, split in enumerate(("train", "validation", "test")):
        lay_sound(tmp_path / "in", prefix=split, first=1000 * first)
    where = {"source": "folder", "location": str(tmp_path / "in"), "split": "own"}
    with pytest.raises(
        ValueError, match=r"validation_fraction is 0\.2; split=own takes the source's validation images"
    ):
        run(tmp_path, validation_fraction=0.2, **where)
    dataset, *_ = run(tmp_path, **where)
    assert len(dataset.rows("validation")) == len(dataset.rows("train"))


def test_disjoint_pools_the_splits_of_the_source(tmp_path):
    lay_sound(tmp_path / "in", prefix="train")
    lay_sound(tmp_path / "in", prefix="test", first=1000)
    dataset, *_ = run(tmp_path, source="folder", location=str(tmp_path / "in"), split="disjoint", test_fraction=0.34)
    of = {split: {*dataset.labels[dataset.rows(split)].tolist()} for split in ("train", "validation", "test")}
    assert {split: len(labels) for split, labels in of.items()} == {"train": 2, "validation": 2, "test": 2}
    assert len(set.union(*of.values())) == 6


def test_a_validation_that_can_measure_nothing_is_told_in_log_and_report(tmp_path, capsys):
    where = {"source": "folder", "location": str(lay_sound(tmp_path / "in", "abcde")), "image_size": 16}
    told = "0 validation images of 0 class(es): R@1 takes two classes and two images of one"
    *_, page = run(tmp_path, "1", split="disjoint", test_fraction=0.4, **where)
    assert f"prepare_data: {told}" in capsys.readouterr().out
    assert told in page
    *_, page = run(tmp_path, "2", split="disjoint", test_fraction=0.4, validation_fraction=0.0, **where)
    assert told not in page + capsys.readouterr().out


def test_what_the_own_split_lacks_is_told_with_what_helps_there(tmp_path, capsys):
    lay_sound(tmp_path / "in", "abc", prefix="train")
    where = {"source": "folder", "location": str(tmp_path / "in"), "split": "own"}
    lay_sound(tmp_path / "in", "xyz", prefix="test", first=1000)
    *_, page = run(tmp_path, **where)  # with two of three classes to choose on one were left to train on
    for told in (page, capsys.readouterr().out):
        assert "0 validation images of 0 class(es)" in told
        assert "or use split=closed" in told
        assert "a smaller test_fraction" not in told


def test_parquet_gives_the_pixels_of_the_folder(tmp_path):
    lay_sound(tmp_path / "in")
    files = sorted((tmp_path / "in").rglob("*.*"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    of_folder, *_ = run(tmp_path, "1", source="folder", location=str(tmp_path / "in"))
    of_parquet, *_ = run(tmp_path, "2", source="parquet", location=str(tmp_path / "x.parquet"))
    everything = np.arange(len(of_folder))
    assert np.array_equal(of_folder.read(everything), of_parquet.read(everything))
    assert of_folder.index["split"] == of_parquet.index["split"]  # decided by content, not by name


def test_a_limit_of_images_is_told(tmp_path):
    lay_sound(tmp_path / "in")
    dataset, _, page = run(tmp_path, source="folder", location=str(tmp_path / "in"), max_images_per_class=4)
    assert len(dataset) == 24
    assert dataset.report()["not_chosen"] == 12
    assert "12 of 36 listed images were not read" in page


def test_a_limit_of_images_counts_what_is_divided(tmp_path):
    lay_sound(tmp_path / "in", "abc", prefix="train")
    lay_sound(tmp_path / "in", "abc", prefix="test", first=1000)
    where = {"source": "folder", "location": str(tmp_path / "in"), "max_images_per_class": 4}
    own, *_ = run(tmp_path, "own", split="own", **where)
    closed, *_ = run(tmp_path, "closed", split="closed", **where)
    counted = [np.bincount(dataset.labels).tolist() for dataset in (own, closed)]
    assert counted == [[8, 8, 8], [4, 4, 4]]


def test_the_index_tells_the_picture(tmp_path):
    lay_sound(tmp_path / "in", "ab")
    dataset, *_ = run(tmp_path, source="folder", location=str(tmp_path / "in"))
    row = dataset.index.slice(1, 1).to_pylist()[0]
    assert (row["source"], row["class_name"], row["width"], row["height"]) == ("a/1.png", "a", 40, 30)
    assert row["sha256"] == hashlib.sha256(np.asarray(picture(1)).tobytes()).hexdigest()


def test_the_page_is_whole_and_escapes_names(tmp_path):
    lay_sound(tmp_path / "in", ["<script>alert(1)<", "b"])
    _, _, page = run(tmp_path, source="folder", location=str(tmp_path / "in"))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_what_a_killed_attempt_left_goes(tmp_path):
    lay_sound(tmp_path / "in", "ab")
    left = tmp_path / "out" / "dataset.scratch" / "batch-00000000.npy"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert len(run(tmp_path, source="folder", location=str(tmp_path / "in"))[0]) == 12


def test_memory_does_not_grow_with_the_images(tmp_path):
    """Decoding and writing 8 times the images costs little more memory: pixels stay on disk."""
    script = (
        "import resource, sys, numpy as np, pathlib\n"
        "from retrieval import images, sources, staging\n"
        "n, scratch = int(sys.argv[1]), pathlib.Path(sys.argv[2]); scratch.mkdir()\n"
        "rng = np.random.default_rng(0)\n"
        "records = [sources.Record(str(i), 'a', '', i) for i in range(n)]\n"
        "def batches(chosen, size):\n"
        "    for start in range(0, n, size):\n"
        "        rows = range(start, min(start + size, n))\n"
        "        yield sources.Values([rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in rows])\n"
        "source = sources.Source(records, [], batches, encoded=False)\n"
        "decoding = staging.Decoding(128, 'crop', images.Limits(10**6, 8))\n"
        "staging.stage(source, records, scratch, decoding)\n"
        "assert sum(len(b) for b in staging.staged_images(scratch, np.arange(n))) == n\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )

    def peak(count: int) -> int:
        command = [sys.executable, "-c", script, str(count), str(tmp_path / str(count))]
        return int(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()[-1])

    assert peak(4_000) - peak(500) < 60  # MiB; the pixels of the difference are 164


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"source": "flickr"}, "Unknown source 'flickr'; choose one of: digits, cifar100, folder, parquet, s3"),
        ({"split": "open"}, "Unknown split 'open'"),
        ({"resize": "pad"}, "Unknown resize 'pad'; choose one of: crop, stretch"),
        ({"source": "folder"}, "location is empty"),
        ({"source": "s3", "location": "/data"}, "needs s3://bucket/prefix"),
        ({"source": "folder", "location": "s3://b/p"}, "set source=s3"),
        ({"location": "/data"}, "digits ship inside scikit-learn"),
        ({"split": "own"}, "split is own; the digits"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"max_quarantined_fraction": 1.5}, "max_quarantined_fraction is 1.5"),
        ({"image_size": 4}, "image_size is 4"),
        ({"min_side": 0}, "min_side is 0; it must be 1 or more"),
        ({"workers": -1}, "workers is -1"),
        ({"max_images_per_class": 1}, "max_images_per_class is 1"),
    ],
)
def test_knobs_that_cannot_be(knobs, message):
    with pytest.raises(ValueError, match=message):
        Params(**knobs)


def test_the_command_line(tmp_path, mlflow_home):
    """The program itself, tracked in the embedded store, with processes that decode."""
    lay_sound(tmp_path / "in", "abc", per_class=4)
    command = [sys.executable, "-m", "components", "prepare_data", "--source=folder", f"--location={tmp_path / 'in'}"]
    command += [f"--dataset={tmp_path / 'd'}", f"--data_report={tmp_path / 'r.html'}", "--image_size=16", "--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 images of 3 classes" in done.stdout
    metadata = json.loads(done.stdout[done.stdout.index("\n{") :])["dataset"]
    assert (metadata["images"], metadata["digest"]) == (12, Dataset(tmp_path / "d").digest)

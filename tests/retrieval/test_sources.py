"""Sources: what they list, what they ignore by name, and what they say when they cannot."""

import errno
import json
import os
import sys
import urllib.request
from functools import partial
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from retrieval.fingerprint import source_fingerprint
from retrieval.images import RefusedImageError
from retrieval.sources import CIFAR100_SUPERCLASSES, Objects, Record, SourceOptions, limit_classes, open_source

OPTIONS = SourceOptions()
SECRET = "hush-hush-secret"


def lay(root, *names: str):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return str(root)


def listing(source) -> list[tuple[str, str, str]]:
    return [(record.name, record.class_name, record.split) for record in source.records]


def contents(source, size: int = 2) -> list:
    return [content for batch in source.batches(source.records, size) for content in batch]


def test_a_folder_of_classes(tmp_path):
    source = open_source("folder", lay(tmp_path, "dog/b.JPG", "cat/a.png", "cat/c.webp"), OPTIONS)
    assert listing(source) == [("cat/a.png", "cat", ""), ("cat/c.webp", "cat", ""), ("dog/b.JPG", "dog", "")]
    assert contents(source) == [b"cat/a.png", b"cat/c.webp", b"dog/b.JPG"]
    assert source.ignored == []


def test_a_folder_with_splits(tmp_path):
    source = open_source("folder", lay(tmp_path, "train/cat/a.png", "val/cat/b.png", "test/dog/c.png"), OPTIONS)
    assert listing(source) == [
        ("test/dog/c.png", "dog", "test"),
        ("train/cat/a.png", "cat", "train"),
        ("val/cat/b.png", "cat", "validation"),
    ]


def test_splits_are_known_in_capitals_too(tmp_path):
    source = open_source("folder", lay(tmp_path, "Train/cat/a.png", "VAL/cat/b.png", "Test/dog/c.png"), OPTIONS)
    assert listing(source) == [
        ("Test/dog/c.png", "dog", "test"),
        ("Train/cat/a.png", "cat", "train"),
        ("VAL/cat/b.png", "cat", "validation"),
    ]
    lay(tmp_path, "cat/d.png")
    with pytest.raises(ValueError, match="splits Test, Train, VAL and beside them cat"):
        open_source("folder", str(tmp_path), OPTIONS)


def test_one_class_may_be_called_train(tmp_path):
    source = open_source("folder", lay(tmp_path, "train/a.png", "plane/b.png"), OPTIONS)
    assert listing(source) == [("plane/b.png", "plane", ""), ("train/a.png", "train", "")]


def test_splits_beside_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="splits test, train and beside them cat"):
        open_source("folder", lay(tmp_path, "train/a/a.png", "test/a/b.png", "cat/c.png"), OPTIONS)


def test_nested_folders_are_classes_of_their_own(tmp_path):
    source = open_source("folder", lay(tmp_path, "bird/eagle/a.png", "bird/owl/b.png"), OPTIONS)
    assert [record.class_name for record in source.records] == ["bird/eagle", "bird/owl"]


def test_what_is_no_image_of_a_class_is_ignored_by_name(tmp_path):
    lay(tmp_path, "a.png", "cat/a.png", "cat/readme.txt", "cat/Thumbs.db", "cat/._a.png", ".git/x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    source = open_source("folder", str(tmp_path), OPTIONS)
    assert listing(source) == [("cat/a.png", "cat", "")]
    assert dict(source.ignored) == {
        "a.png": "lies in no class folder",
        "cat/readme.txt": "no image by its name",
        "cat/Thumbs.db": "no image by its name",
        "cat/._a.png": "hidden",
        ".git/x.png": "hidden",
        "empty": "an empty folder",
        "cat/gone.png": "cannot be opened: No such file or directory",
        "cat/loop": "a link to a folder above it",
        "cat/pipe.png": "neither file nor folder",
    }


def test_links_that_lead_nowhere_are_ignored_by_name(tmp_path):
    lay(tmp_path, "cat/a.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "cat" / "ping.png").symlink_to("pong.png")
    (tmp_path / "cat" / "pong.png").symlink_to("ping.png")
    (tmp_path / "cat" / "through.png").symlink_to(Path("a.png") / "b.png")
    source = open_source("folder", str(tmp_path), OPTIONS)
    assert listing(source) == [("cat/a.png", "cat", "")]
    assert dict(source.ignored) == {
        "loop": f"cannot be opened: {os.strerror(errno.ELOOP)}",
        "cat/ping.png": f"cannot be opened: {os.strerror(errno.ELOOP)}",
        "cat/pong.png": f"cannot be opened: {os.strerror(errno.ELOOP)}",
        "cat/through.png": f"cannot be opened: {os.strerror(errno.ENOTDIR)}",
    }


def test_a_folder_that_may_not_be_read_is_ignored_by_name(tmp_path, refuse_folders):
    lay(tmp_path, "train/cat/a.png", "test/cat/b.png", "train/owl/c.png", "lost+found/d.png")
    refuse_folders("lost+found", "owl")
    source = open_source("folder", str(tmp_path), OPTIONS)
    assert listing(source) == [("test/cat/b.png", "cat", "test"), ("train/cat/a.png", "cat", "train")]
    refused = f"cannot be opened: {os.strerror(errno.EACCES)}"
    assert source.ignored == [("lost+found", refused), ("train/owl", refused)]


@pytest.mark.parametrize("read", [source_fingerprint, partial(open_source, options=OPTIONS)])
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_location_that_may_not_be_read_is_refused(tmp_path, refuse_folders, source, read):
    refuse_folders(tmp_path.name)
    with pytest.raises(ValueError, match=f"{tmp_path.name}' cannot be opened: .*whoever runs this may read it"):
        read(source, str(tmp_path))


def test_a_folder_on_a_disk_that_fails_stops_the_listing(tmp_path, refuse_folders):
    refuse_folders("dog", code=errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        open_source("folder", lay(tmp_path, "cat/a.png", "dog/b.png"), OPTIONS)


def test_a_picture_of_another_format_is_read_and_not_ignored(tmp_path):
    assert len(open_source("folder", lay(tmp_path, "cat/a.heic", "cat/b.svg"), OPTIONS).records) == 2


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "cat").mkdir()
    with open(os.fsencode(tmp_path) + b"/cat/\xff.png", "wb") as file:
        file.write(b"here")
    source = open_source("folder", str(tmp_path), OPTIONS)
    assert json.dumps(listing(source), ensure_ascii=False).encode()
    assert listing(source) == [("cat/\\xff.png", "cat", "")]
    assert contents(source) == [b"here"]


def test_a_file_that_has_gone_is_refused_and_the_next_is_read(tmp_path):
    source = open_source("folder", lay(tmp_path, "cat/a.png", "cat/b.png"), OPTIONS)
    (tmp_path / "cat" / "a.png").unlink()
    refused, content = contents(source)
    assert isinstance(refused, RefusedImageError)
    assert (refused.reason, content) == ("unreadable", b"cat/b.png")


def test_only_so_much_of_a_huge_file_is_read(tmp_path):
    source = open_source("folder", lay(tmp_path, "cat/a.png"), SourceOptions(max_bytes=3))
    assert contents(source) == [b"cat/"]


@pytest.mark.parametrize("names", [(), ("a.png",), ("cat/notes.txt",)])
def test_a_folder_without_images(tmp_path, names):
    with pytest.raises(ValueError, match="holds no image of a class"):
        open_source("folder", lay(tmp_path, *names), OPTIONS)


def test_unknown_source():
    with pytest.raises(
        ValueError, match="Unknown source 'flickr'; choose one of: digits, cifar100, folder, parquet, s3"
    ):
        open_source("flickr", "", OPTIONS)


def test_digits():
    source = open_source("digits", "", OPTIONS)
    pixels = np.stack(contents(source, 500))
    assert pixels.shape == (1797, 8, 8)
    assert pixels.dtype == np.uint8
    assert len(np.unique(pixels)) == 17
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert {record.class_name for record in source.records} == set("0123456789")


def test_a_class_limit_is_a_seeded_choice_in_each_split():
    records = [Record(f"{n}", "ab"[n % 2], ("train", "test")[n % 3 == 0], n) for n in range(60)]
    chosen = limit_classes(records, 4, seed=0)
    assert len(chosen) == 16
    assert [record.where for record in chosen] == sorted(record.where for record in chosen)
    assert limit_classes(records[::-1], 4, seed=0) == chosen[::-1]
    assert limit_classes(records, 4, seed=1) != chosen
    assert limit_classes(records, 0, seed=0) == records


# CIFAR-100


def test_cifar_without_files_names_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="download is false") as caught:
        open_source("cifar100", str(tmp_path), OPTIONS)
    for word in ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", str(tmp_path / "cifar-100-python")):
        assert word in str(caught.value)


def test_a_failed_cifar_download_names_the_way_out(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(ValueError, match="the download failed") as caught:
        open_source("cifar100", str(tmp_path), SourceOptions(download=True))
    assert "md5 eb9058c3a382ffc7106e4002c42a8d85" in str(caught.value)


def test_cifar_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ValueError, match="torchvision, which is not installed"):
        open_source("cifar100", str(tmp_path), OPTIONS)


@pytest.mark.parametrize(("labels", "first"), [("fine", "apple"), ("coarse", "fruit_and_vegetables")])
def test_cifar_lists_both_splits(monkeypatch, labels, first):
    class Reader:
        url = tgz_md5 = ""
        classes = ("apple", "bear")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            del root, download
            self.data = np.full((2, 32, 32, 3), 7 if train else 9, np.uint8)
            self.targets = [0, 1]

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Reader)
    source = open_source("cifar100", "here", SourceOptions(cifar100_labels=labels))
    assert listing(source)[0] == ("train/00000", first, "train")
    assert [record.split for record in source.records] == ["train", "train", "test", "test"]
    assert [int(content[0, 0, 0]) for content in contents(source)] == [7, 7, 9, 9]


def test_the_superclasses_hold_a_hundred_classes():
    names = [name for names in CIFAR100_SUPERCLASSES.values() for name in names.split()]
    assert (len(CIFAR100_SUPERCLASSES), len(names), len(set(names))) == (20, 100, 100)


# Parquet


def write_parquet(path, **columns) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return str(path)


def test_parquet_with_bytes_and_names(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", image=[b"1", b"2", b"3", b"4", b"5"], label=["a", "b", None, "a", "b"])
    write_parquet(tmp_path / "deep" / "test-0.parquet", image=[b"6", None], label=["a", "c"])
    source = open_source("parquet", str(tmp_path), OPTIONS)
    assert listing(source) == [
        ("deep/test-0.parquet#0000000", "a", "test"),
        ("deep/test-0.parquet#0000001", "c", "test"),
        ("train-0.parquet#0000000", "a", "train"),
        ("train-0.parquet#0000001", "b", "train"),
        ("train-0.parquet#0000003", "a", "train"),
        ("train-0.parquet#0000004", "b", "train"),
    ]
    six, none, *others = contents(source)
    assert (six, others) == (b"6", [b"1", b"2", b"4", b"5"])
    assert none.reason == "unreadable"
    assert source.ignored == [("train-0.parquet#0000002", "no label in this row")]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_parquet_rows_are_chosen_rightly(tmp_path, size):
    write_parquet(tmp_path / "a.parquet", image=[bytes([n]) for n in range(9)], label=list(range(9)))
    source = open_source("parquet", str(tmp_path / "a.parquet"), OPTIONS)
    chosen = [source.records[row] for row in (0, 3, 4, 8)]
    assert [content for batch in source.batches(chosen, size) for content in batch] == [b"\0", b"\3", b"\4", b"\x08"]


def test_parquet_as_hugging_face_writes_it(tmp_path):
    table = pa.table({"img": [{"bytes": b"1", "path": "x.png"}, {"bytes": b"2", "path": None}], "fine": [1, 0]})
    features = {"info": {"features": {"fine": {"names": ["apple", "bear"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "x.parquet")
    source = open_source("parquet", str(tmp_path), SourceOptions(image_column="img", label_column="fine"))
    assert [record.class_name for record in source.records] == ["bear", "apple"]
    assert contents(source) == [b"1", b"2"]


def test_parquet_rows_without_a_label_are_ignored_by_name(tmp_path):
    write_parquet(tmp_path / "texts.parquet", image=[b"1", b"2", b"3"], label=["a", "", " "])
    write_parquet(tmp_path / "signs.parquet", image=[b"4", b"5"], label=[-1, 1])  # without names any number is a class
    source = open_source("parquet", str(tmp_path), OPTIONS)
    assert [record.class_name for record in source.records] == ["-1", "1", "a"]
    ignored = [(f"texts.parquet#000000{row}", "no label in this row") for row in (1, 2)]
    assert source.ignored == ignored


def write_named(path, labels: list) -> str:
    table = pa.table({"image": [b"1"] * len(labels), "label": labels})
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    return str(path)


def test_hugging_faces_number_for_no_label_is_no_class(tmp_path):
    source = open_source("parquet", write_named(tmp_path / "x.parquet", [0, -1, 1, None]), OPTIONS)
    assert [record.class_name for record in source.records] == ["cat", "dog"]
    assert source.ignored == [(f"x.parquet#000000{row}", "no label in this row") for row in (1, 3)]
    texts = open_source("parquet", write_named(tmp_path / "y.parquet", ["cat", "owl"]), OPTIONS)
    assert [record.class_name for record in texts.records] == ["cat", "owl"]


@pytest.mark.parametrize("label", [2, -2])
def test_a_label_beyond_the_names_is_refused(tmp_path, label):
    path = write_named(tmp_path / "x.parquet", [0, label])
    with pytest.raises(ValueError, match=rf"x\.parquet#0000001 has the label {label}; .* names 2 classes, 0 to 1"):
        open_source("parquet", path, OPTIONS)


def test_parquet_with_a_split_column(tmp_path):
    path = write_parquet(tmp_path / "all.parquet", image=[b"1", b"2"], label=[0, 0], split=["train", "Test"])
    assert [record.split for record in open_source("parquet", path, OPTIONS).records] == ["train", "test"]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("val/validation-00000.parquet", "validation"),
        ("validation/val-0.parquet", "validation"),
        ("Valid/VAL-0.parquet", "validation"),
        ("data/test/test-1.parquet", "test"),
        ("train/val-0.parquet", ""),
        ("val/validation_test-0.parquet", ""),
        ("trainval.parquet", ""),
    ],
)
def test_the_path_of_a_parquet_file_says_its_split(tmp_path, file, split):
    write_parquet(tmp_path / file, image=[b"1"], label=["a"])
    assert listing(open_source("parquet", str(tmp_path), OPTIONS)) == [(f"{file}#0000000", "a", split)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"1"]}, "has no column 'label'; its columns are: image"),
        ({"picture": [b"1"], "label": [1]}, "has no column 'image'"),
        ({"image": ["1"], "label": [1]}, "holds string; it must hold the bytes"),
        ({"image": [b"1"], "label": [1.5]}, "holds double; it must hold texts or whole numbers"),
    ],
)
def test_parquet_of_another_shape(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        open_source("parquet", write_parquet(tmp_path / "x.parquet", **columns), OPTIONS)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"x\.parquet' cannot be read as Parquet"):
        open_source("parquet", str(tmp_path), OPTIONS)


def test_what_cannot_be_opened_beside_parquet_is_ignored_by_name(tmp_path, refuse_folders):
    write_parquet(tmp_path / "a.parquet", image=[b"1"], label=["a"])
    lay(tmp_path, "lost+found/b.parquet", "readme.md")
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    refuse_folders("lost+found")
    source = open_source("parquet", str(tmp_path), OPTIONS)
    assert [record.name for record in source.records] == ["a.parquet#0000000"]
    assert source.ignored == [
        ("loop.parquet", f"cannot be opened: {os.strerror(errno.ELOOP)}"),
        ("lost+found", f"cannot be opened: {os.strerror(errno.EACCES)}"),
    ]
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"\.parquet: loop\.parquet \(cannot be opened: .*\), lost\+found \(cannot"):
        open_source("parquet", str(tmp_path), OPTIONS)


def test_no_parquet_file(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file that ends in \.parquet"):
        open_source("parquet", str(tmp_path), OPTIONS)


# S3


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint, tmp_path, monkeypatch):
    """An empty bucket `pictures` and a client; the environment leads there."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="pictures")
    yield client
    client.close()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()


def put(client, *keys: str) -> None:
    for key in keys:
        client.put_object(Bucket="pictures", Key=key, Body=b"" if key.endswith("/") else key.encode())


def test_a_bucket_in_the_folder_layout(store):
    put(store, "set/train/cat/a.png", "set/test/cat/b.png", "set/train/cat/notes.txt", "set/train/", "other/dog/c.png")
    source = open_source("s3", "s3://pictures/set", OPTIONS)
    assert listing(source) == [("test/cat/b.png", "cat", "test"), ("train/cat/a.png", "cat", "train")]
    assert source.ignored == [("train/cat/notes.txt", "no image by its name")]
    assert contents(source) == [b"set/test/cat/b.png", b"set/train/cat/a.png"]


def test_a_listing_of_many_pages(store, monkeypatch):
    monkeypatch.setattr("retrieval.object_store.OBJECTS_PER_PAGE", 2)
    put(store, *(f"cat/{number}.png" for number in range(5)))
    assert len(open_source("s3", "s3://pictures", OPTIONS).records) == 5


def test_what_was_fetched_is_not_fetched_again(store, monkeypatch):
    put(store, "cat/a.png", "cat/b.png", "cat/c.png")
    interrupted = open_source("s3", "s3://pictures", OPTIONS)
    next(iter(next(interrupted.batches(interrupted.records, 1))))  # the first, and then the power fails
    store.put_object(Bucket="pictures", Key="cat/b.png", Body=b"changed")

    fetched = []
    original = Objects._fetch
    monkeypatch.setattr(
        "retrieval.sources.Objects._fetch",
        lambda its, client, entry: fetched.append(entry.path) or original(its, client, entry),
    )
    source = open_source("s3", "s3://pictures", OPTIONS)
    assert contents(source) == [b"cat/a.png", b"changed", b"cat/c.png"]
    assert sorted(fetched) == ["cat/b.png", "cat/c.png"]
    fetched.clear()
    store.put_object(Bucket="pictures", Key="cat/c.png", Body=b"cat/c.pnG")  # the same size, another etag
    assert contents(open_source("s3", "s3://pictures", OPTIONS))[2] == b"cat/c.pnG"
    assert fetched == ["cat/c.png"]


def test_the_spool_goes_when_the_dataset_is_written(store, tmp_path):
    put(store, "cat/a.png")
    source = open_source("s3", "s3://pictures", OPTIONS)
    contents(source)
    assert any(path.is_file() for path in (tmp_path / "home" / "spool").rglob("*"))
    source.close()
    assert not any(path.is_file() for path in (tmp_path / "home" / "spool").rglob("*"))


@pytest.mark.parametrize("call", ["read_bytes", "is_dir", "write_bytes", "replace"])
def test_another_run_over_the_same_objects_may_end_at_any_time(store, tmp_path, monkeypatch, call):
    put(store, "cat/a.png", "cat/b.png")
    source, other = (open_source("s3", "s3://pictures", OPTIONS) for _ in range(2))
    contents(other)
    if call != "read_bytes":  # nothing to read, but the folders are there
        for path in filter(Path.is_file, (tmp_path / "home" / "spool").rglob("*")):
            path.unlink()
    original, calls = getattr(Path, call), []

    def end_of_the_other_before(path: Path, *arguments):
        other.close()
        calls.append(path)
        return original(path, *arguments)

    monkeypatch.setattr(Path, call, end_of_the_other_before)
    assert contents(source, 1) == [b"cat/a.png", b"cat/b.png"]
    assert calls


def test_an_object_that_changed_since_it_was_listed(store):
    put(store, "cat/a.png")
    source = open_source("s3", "s3://pictures", OPTIONS)
    store.put_object(Bucket="pictures", Key="cat/a.png", Body=b"another")
    with pytest.raises(ValueError, match="has changed since it was listed"):
        contents(source)


def test_an_object_that_has_gone(store):
    put(store, "cat/a.png")
    source = open_source("s3", "s3://pictures", OPTIONS)
    store.delete_object(Bucket="pictures", Key="cat/a.png")
    with pytest.raises(ValueError, match=r"fetching s3://pictures/cat/a\.png at http://.*NoSuchKey"):
        contents(source)


def test_a_huge_object_is_not_fetched(store):
    put(store, "cat/a.png")
    (refused,) = contents(open_source("s3", "s3://pictures", SourceOptions(max_bytes=3)))
    assert refused.reason == "too_large"


def test_a_missing_bucket(store, endpoint):
    del store
    with pytest.raises(
        ValueError, match=f"listing s3://absent/x/ at {endpoint}: bucket 'absent' answered NoSuchBucket"
    ):
        open_source("s3", "s3://absent/x", OPTIONS)


def test_no_credentials(store, monkeypatch):
    del store
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ValueError, match="no credentials for bucket 'pictures'; set AWS_ACCESS_KEY_ID"):
        open_source("s3", "s3://pictures", OPTIONS)


def test_an_unreachable_endpoint_names_no_key(store, monkeypatch):
    del store
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:password@127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ValueError, match=r"at http://127\.0\.0\.1:9: no answer for bucket 'pictures'") as caught:
        open_source("s3", "s3://pictures", OPTIONS)
    assert "password" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "a-name" not in str(caught.value)


def test_the_fingerprint_of_a_bucket(store):
    put(store, "cat/a.png")
    before = source_fingerprint("s3", "s3://pictures")
    assert source_fingerprint("s3", "s3://pictures") == before
    store.put_object(Bucket="pictures", Key="cat/a.png", Body=b"cat/b.png")
    assert source_fingerprint("s3", "s3://pictures") != before

"""Where images come from: each source lists cheap records first and gives their bytes, or pixels, batch by batch.

To add a source: write a function of location and options that returns a `Source`, and add its name to SOURCES.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.home import home
from retrieval.images import RefusedImageError
from retrieval.listing import (
    CIFAR100_FOLDER,
    Listed,
    cifar100_root,
    existing_folder,
    list_folder,
    parquet_files,
    readable,
)
from retrieval.object_store import Address, list_objects, read_object, s3_client

# Looked up in small letters: folders and the column of Parquet may have them in capitals.
SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
PICTURE_ENDINGS = {  # the first row can be read; a file of the second is a picture too, and is refused by name
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(
        ".heic",
        ".heif",
        ".avif",
        ".jp2",
        ".jxl",
        ".svg",
        ".psd",
        ".ico",
        ".ppm",
        ".pgm",
        ".tga",
        ".dng",
        ".nef",
        ".cr2",
    ),
}
NO_LABEL = -1  # where Hugging Face's metadata names the whole numbers
DOWNLOADS_AT_ONCE = 8  # in each decoding process

Content = bytes | np.ndarray | RefusedImageError
Contents = Iterable[Content]  # of a batch, in the order of its records; may travel to another process


@dataclass(frozen=True, slots=True)
class Record:
    """One image as listed, not yet read.

    Attributes:
        name: where it lies, relative to the source's root; unique.
        class_name: what it shows.
        split: one of dataset.SPLITS where the source says so, else "".
        where: what the source needs to read it.
    """

    name: str
    class_name: str
    split: str
    where: Any


@dataclass(frozen=True)
class Source:
    """The images that a source lists.

    Attributes:
        records: in an order that does not depend on the order of listing.
        ignored: name and reason of all else that lies there and is no image of a class.
        batches: from records in that order and a batch's length to the batches' contents.
        encoded: whether the contents are bytes that are worth decoding in other processes.
        close: called when the dataset is written; removes what was kept to resume.
    """

    records: list[Record]
    ignored: list[tuple[str, str]]
    batches: Callable[[Sequence[Record], int], Iterator[Contents]]
    encoded: bool = True
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class SourceOptions:
    """What single sources need to know; see the knobs of prepare_data.

    Attributes:
        download: cifar100 may be fetched.
        cifar100_labels: "fine" (100 classes) or "coarse" (20).
        image_column: of Parquet: bytes, or a struct with a field `bytes`.
        label_column: of Parquet: texts or whole numbers.
        max_bytes: of one file; of a larger one only so much is read.
    """

    download: bool = False
    cifar100_labels: str = "fine"
    image_column: str = "image"
    label_column: str = "label"
    max_bytes: int = 2**30


def open_source(name: str, location: str, options: SourceOptions) -> Source:
    """List a source.

    Raises:
        ValueError: an unknown source, a location that cannot be read, or one without images.
    """
    if name not in SOURCES:
        raise ValueError(f"Unknown source '{name}'; choose one of: {', '.join(SOURCES)}.")
    source = SOURCES[name](location, options)
    if not source.records:
        ignored = ", ".join(f"{path} ({reason})" for path, reason in source.ignored[:3]) or "nothing else either"
        raise ValueError(
            f"location '{location}' holds no image of a class: {ignored}. "
            "Lay images out as root/<class>/* or root/{train,test}/<class>/*."
        )
    return source


def limit_classes(records: list[Record], images_per_class: int, seed: int) -> list[Record]:
    """At most so many records of a class in each of the source's splits, a seeded choice; all when 0."""
    if not images_per_class:
        return records
    places: dict[tuple[str, str], list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault((record.class_name, record.split), []).append(place)

    def rank(place: int) -> bytes:
        return hashlib.sha256(f"{seed}/limit/{records[place].name}".encode()).digest()

    kept = (place for group in places.values() for place in sorted(group, key=rank)[:images_per_class])
    return [records[place] for place in sorted(kept)]


def digits(location: str, options: SourceOptions) -> Source:
    """The 1,797 handwritten digits inside scikit-learn: 8x8, their 17 grey levels scaled to 0..255."""
    del location, options
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    records = [Record(f"digit-{row:04d}", str(label), "", ("", row)) for row, label in enumerate(bunch.target)]
    return Source(records, [], _rows_of({"": pixels}), encoded=False)


def cifar100(location: str, options: SourceOptions) -> Source:
    """CIFAR-100 (Krizhevsky 2009) through torchvision's reader: 60,000 of 32x32 with the source's train and test."""
    fine_names, arrays, labels = _read_cifar100(cifar100_root(location), options.download)
    coarse = {name: superclass for superclass, names in CIFAR100_SUPERCLASSES.items() for name in names.split()}
    if options.cifar100_labels not in ("fine", "coarse"):
        raise ValueError(f"Unknown cifar100_labels '{options.cifar100_labels}'; choose one of: fine, coarse.")
    names = fine_names if options.cifar100_labels == "fine" else [coarse[name] for name in fine_names]
    records = [
        Record(f"{split}/{row:05d}", names[label], split, (split, row))
        for split in ("train", "test")
        for row, label in enumerate(labels[split])
    ]
    return Source(records, [], _rows_of(arrays), encoded=False)


def folder(location: str, options: SourceOptions) -> Source:
    """A folder of classes: root/<class>/* or root/{train,val,test}/<class>/*.

    The class is the path of the image's folder, so nested folders are classes of their own (`birds/eagle`).
    """
    root = existing_folder(location, "folder")
    records, ignored = arrange(list_folder(root))

    def batches(chosen: Sequence[Record], size: int) -> Iterator[Contents]:
        for part in _parts(chosen, size):
            yield Files([os.path.join(root, record.where.path) for record in part], options.max_bytes)

    return Source(records, ignored, batches)


def parquet(location: str, options: SourceOptions) -> Source:
    """Parquet files with image bytes and a label.

    As Hugging Face writes them too: a struct of bytes and path, class names in the metadata. The split comes from a
    column `split`, or from the file's path (train-00000-of-00002.parquet).
    """
    path = Path(location).expanduser()
    root = path.parent if path.is_file() else path
    records: list[Record] = []
    ignored: list[tuple[str, str]] = []
    for file in parquet_files(location):
        if file.problem:
            ignored.append((readable(file.path), file.problem))
        else:
            _list_rows(root, file.path, options, records, ignored)

    def batches(chosen: Sequence[Record], size: int) -> Iterator[Contents]:
        for file, rows in groupby(chosen, key=lambda record: record.where[0]):
            yield from _read_rows(root / file, options.image_column, [record.where[1] for record in rows], size)

    return Source(records, ignored, batches)


def s3(location: str, options: SourceOptions) -> Source:
    """A bucket in the folder layout. Objects are kept under the embedded home until the dataset is written.

    An object that is there with the size and etag of the listing is not fetched again. Runs over one location share
    what is kept, and the first to end removes it; the others fetch again what they miss.
    """
    place = Address.parse(location)
    records, ignored = arrange(list_objects(place))
    endpoint = s3_client().meta.endpoint_url
    spool = home() / "spool" / hashlib.sha256(f"{endpoint} {location}".encode()).hexdigest()[:16]

    def batches(chosen: Sequence[Record], size: int) -> Iterator[Contents]:
        for part in _parts(chosen, size):
            yield Objects(place, spool, [record.where for record in part], options.max_bytes)

    return Source(records, ignored, batches, close=lambda: shutil.rmtree(spool, ignore_errors=True))


SOURCES: dict[str, Callable[[str, SourceOptions], Source]] = {
    "digits": digits,
    "cifar100": cifar100,
    "folder": folder,
    "parquet": parquet,
    "s3": s3,
}


def arrange(listed: list[Listed]) -> tuple[list[Record], list[tuple[str, str]]]:
    """Records and ignored files from paths in the folder layout.

    Raises:
        ValueError: folders named like splits lie beside folders named like classes.
    """
    with_splits = _has_splits({entry.path.split("/")[0] for entry in listed if "/" in entry.path})
    records: list[Record] = []
    ignored: list[tuple[str, str]] = []
    for entry in listed:
        *folders, name = entry.path.split("/")
        split = SPLIT_NAMES[folders.pop(0).lower()] if with_splits and folders and not _is_hidden(entry.path) else ""
        reason = _reason_to_ignore(entry, folders, name)
        if reason:
            ignored.append((readable(entry.path), reason))
        else:
            records.append(Record(readable(entry.path), readable("/".join(folders)), split, entry))
    return records, ignored


@dataclass(frozen=True)
class Files:
    """The bytes of files, read when iterated."""

    paths: list[str]
    max_bytes: int

    def __iter__(self) -> Iterator[Content]:
        for path in self.paths:
            try:
                with open(path, "rb", buffering=0) as file:
                    size = os.fstat(file.fileno()).st_size  # a buffer is made for as much as is asked for
                    yield file.read(min(size, self.max_bytes) + 1)
            except OSError as error:
                yield RefusedImageError("unreadable", error.strerror or type(error).__name__)


@dataclass(frozen=True)
class Objects:
    """The bytes of objects, fetched in parallel when iterated; the spool keeps each under its key, size and etag."""

    place: Address
    spool: Path
    listed: list[Listed]
    max_bytes: int

    def __iter__(self) -> Iterator[Content]:
        client = s3_client()
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            yield from pool.map(lambda entry: self._content(client, entry), self.listed)

    def _content(self, client: Any, entry: Listed) -> Content:
        if entry.size > self.max_bytes:
            return RefusedImageError("too_large", f"{entry.size:,} bytes; not fetched")
        key = hashlib.sha256(f"{entry.path}\n{entry.size}\n{entry.version}".encode()).hexdigest()
        path = self.spool / key[:2] / key
        kept = _kept(path)
        if kept is not None and len(kept) == entry.size:
            return kept
        content = self._fetch(client, entry)
        _keep(path, content)
        return content

    def _fetch(self, client: Any, entry: Listed) -> bytes:
        return read_object(client, self.place / entry.path, entry.version)


@dataclass(frozen=True)
class Values:
    """Contents that are in memory already."""

    values: list[Content] = field(default_factory=list)

    def __iter__(self) -> Iterator[Content]:
        return iter(self.values)


def _kept(path: Path) -> bytes | None:
    """What the spool keeps there; None for nothing, and where another run that ends removes it meanwhile."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _keep(path: Path, content: bytes) -> None:
    """Keep a copy, whole or not at all; none where another run that ends removes the folder meanwhile."""
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    with suppress(FileNotFoundError, FileExistsError):  # mkdir raises the second for a folder that has just gone
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)


def _parts(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _rows_of(arrays: dict[str, np.ndarray]) -> Callable[[Sequence[Record], int], Iterator[Contents]]:
    """Batches of pixels from arrays by name."""

    def batches(chosen: Sequence[Record], size: int) -> Iterator[Contents]:
        for part in _parts(chosen, size):
            yield Values([arrays[array][row] for array, row in (record.where for record in part)])

    return batches


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _reason_to_ignore(entry: Listed, folders: list[str], name: str) -> str:
    if entry.problem:
        return entry.problem
    if _is_hidden(entry.path):
        return "hidden"
    if os.path.splitext(name)[1].lower() not in PICTURE_ENDINGS:
        return "no image by its name"
    return "" if folders else "lies in no class folder"


def _has_splits(tops: set[str]) -> bool:
    """Whether the folders at the root are splits, not classes."""
    seen = {top for top in tops if not _is_hidden(top)}
    splits = {top for top in seen if top.lower() in SPLIT_NAMES}
    if len(splits) >= 2 and seen != splits:
        raise ValueError(
            f"The root holds the splits {', '.join(sorted(splits))} "
            f"and beside them {', '.join(sorted(seen - splits)[:3])}; "
            "it must hold either splits or classes: move the others away."
        )
    return bool(splits) and seen == splits


def _read_cifar100(root: Path, download: bool) -> tuple[list[str], dict[str, np.ndarray], dict[str, list[int]]]:
    try:
        from torchvision.datasets import CIFAR100
    except ImportError as error:
        raise ValueError(
            f"source 'cifar100' is read by torchvision, which is not installed ({error}); "
            "`pip install torchvision`, or turn the images into a folder or Parquet and name that as source."
        ) from error
    try:
        parts = {split: CIFAR100(str(root), train=split == "train", download=download) for split in ("train", "test")}
    except Exception as error:  # torchvision, urllib and pickle each have their own
        tried = f"the download failed ({error})" if download else "download is false"
        raise ValueError(
            f"'{root / CIFAR100_FOLDER}' is missing or damaged and {tried}. Set download=true, or fetch by hand "
            f"{CIFAR100.url} (md5 {CIFAR100.tgz_md5}) and unpack it so that "
            f"train, test and meta lie in {root / CIFAR100_FOLDER}."
        ) from error
    arrays = {split: part.data for split, part in parts.items()}
    return parts["train"].classes, arrays, {split: part.targets for split, part in parts.items()}


def _list_rows(
    root: Path, file: str, options: SourceOptions, records: list[Record], ignored: list[tuple[str, str]]
) -> None:
    """Append a record for each row of a Parquet file; a row without a label is ignored by name."""
    columns = _check_columns(root / file, options)
    try:
        table = pq.read_table(root / file, columns=columns)
    except pa.ArrowException as error:
        raise ValueError(f"'{root / file}' cannot be read as Parquet: {error}") from error
    labels = table[options.label_column].to_pylist()
    names = _class_names(table.schema, options.label_column)
    split = _split_of_path(file)
    splits = table["split"].to_pylist() if "split" in columns else [split] * len(labels)
    for row, (label, own) in enumerate(zip(labels, splits, strict=True)):
        name = f"{readable(file)}#{row:07d}"
        class_name = _class_name(label, names, name)
        if not class_name.strip():
            ignored.append((name, "no label in this row"))
        else:
            records.append(Record(name, class_name, SPLIT_NAMES.get(str(own).lower(), ""), (file, row)))


def _check_columns(path: Path, options: SourceOptions) -> list[str]:
    """The columns to list, label and split; refuses a file that lacks what is needed."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{path}' cannot be read as Parquet: {error}") from error
    for column in (options.image_column, options.label_column):
        if column not in schema.names:
            raise ValueError(f"'{path}' has no column '{column}'; its columns are: {', '.join(schema.names)}.")
    image = schema.field(options.image_column).type
    if pa.types.is_struct(image) and "bytes" in [image.field(i).name for i in range(image.num_fields)]:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise ValueError(
            f"Column '{options.image_column}' of '{path}' holds {image}; it must hold the bytes of images."
        )
    label = schema.field(options.label_column).type
    label = label.value_type if pa.types.is_dictionary(label) else label
    if not (pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)):
        raise ValueError(
            f"Column '{options.label_column}' of '{path}' holds {label}; it must hold texts or whole numbers."
        )
    return [options.label_column, *({"split"} & set(schema.names) - {options.label_column})]


def _class_name(label: str | int | None, names: list[str], row: str) -> str:
    """The class of a label; empty where there is none, which Hugging Face's whole numbers say by NO_LABEL."""
    if label is None or isinstance(label, str) or not names:
        return "" if label is None else str(label)
    if label != NO_LABEL and not 0 <= label < len(names):
        raise ValueError(
            f"{row} has the label {label}; the file's metadata names {len(names)} classes, 0 to {len(names) - 1}, and "
            f"{NO_LABEL} is none. Mend the label or the names, or take the names out of the metadata."
        )
    return "" if label == NO_LABEL else names[label]


def _class_names(schema: pa.Schema, label_column: str) -> list[str]:
    """Names of whole-number labels where Hugging Face's metadata has them, else none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return list(features[label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return []


def _split_of_path(file: str) -> str:
    """The split that the words of a path name, by whichever of its names; empty where they name none, or two."""
    found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", file.lower()) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else ""


def _read_rows(path: Path, column: str, rows: list[int], size: int) -> Iterator[Contents]:
    """Contents of the wanted rows, ascending, streamed through the file from its beginning."""
    file, start, taken = pq.ParquetFile(path), 0, 0
    for batch in file.iter_batches(batch_size=size, columns=[column]):
        end = start + len(batch)
        values: list[Content] = []
        while taken < len(rows) and rows[taken] < end:
            values.append(_cell(batch[0][rows[taken] - start].as_py()))
            taken += 1
        if values:
            yield Values(values)
        start = end
    file.close()


def _cell(value: Any) -> Content:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if content is not None else RefusedImageError("unreadable", "no bytes in this row")


CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

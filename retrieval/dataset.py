"""The dataset store: every image as RGB bytes of one size, and an index of what each of them is."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.manifest import Manifest, read_manifest, write_manifest

KIND, FORMAT_VERSION = "dataset", 1
INDEX, REPORT = "index.parquet", "report.json"
SPLITS = ("train", "validation", "test")
INDEX_SCHEMA = pa.schema(
    {
        "id": pa.int64(),  # row number: image i of the shards laid end to end
        "label": pa.int64(),  # position of the class in the sorted class names
        "class_name": pa.string(),
        "split": pa.string(),  # one of SPLITS
        "source": pa.string(),  # where the image came from, relative to the source's root
        "sha256": pa.string(),  # of the RGB pixels; of a JPEG, of the file without its metadata
        "width": pa.int32(),  # of the picture as decoded, before it was fitted to the store's size
        "height": pa.int32(),
    }
)


class Dataset:
    """A dataset folder, opened: labels and splits in memory, pixels memory-mapped.

    Attributes:
        folder: where it lies.
        manifest: kind, digest and facts.
        index: table of INDEX_SCHEMA, one row an image.
        labels: (n,) int64.
        class_names: name of each label.
        image_size: height and width of every stored image, in pixels.
    """

    def __init__(self, folder: Path, just_written: Manifest | None = None) -> None:
        """Open and verify a dataset folder.

        Args:
            folder: where it lies.
            just_written: its manifest, by who digested the files a moment ago: to do so again would take a third of
                the time of making a dataset of small images.

        Raises:
            ValueError: it is no dataset, of another format, or damaged.
        """
        self.folder = folder
        self.manifest: Manifest = just_written or read_manifest(folder, KIND, FORMAT_VERSION)
        self.index: pa.Table = pq.read_table(folder / INDEX)
        self.labels: np.ndarray = self.index["label"].to_numpy()
        self.class_names: list[str] = self.manifest.facts["class_names"]
        self.image_size: int = self.manifest.facts["image_size"]
        self._splits: np.ndarray = self.index["split"].to_numpy(zero_copy_only=False)
        self._shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("images-*.npy"))]
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """sha256 of the content: the same images, labels and splits give the same digest."""
        return self.manifest.digest

    def rows(self, *splits: str) -> np.ndarray:
        """Row numbers of the images in any of the named splits, ascending: (m,) int64."""
        for split in splits:
            if split not in SPLITS:
                raise ValueError(f"Unknown split '{split}'; choose one of: {', '.join(SPLITS)}.")
        return np.flatnonzero(np.isin(self._splits, splits))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images of the given rows, in their order: (b, image_size, image_size, 3) uint8."""
        images = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            chosen = shard_of == number
            images[chosen] = self._shards[number][rows[chosen] - self._starts[number]]
        return images

    @property
    def resize(self) -> str:
        """How pictures were brought to the store's size, a name of images.RESIZES: new ones must be fitted alike."""
        return str(self.report().get("settings", {}).get("resize", "crop"))

    def report(self) -> dict[str, Any]:
        """What prepare_data counted, refused and why."""
        return json.loads((self.folder / REPORT).read_text())


def save_dataset(
    folder: Path,
    batches: Iterable[np.ndarray],
    index: pa.Table,
    class_names: list[str],
    report: dict[str, Any],
    images_per_shard: int = 65_536,
) -> Dataset:
    """Write a dataset folder from a stream of image batches; memory is one batch, whatever the number of images.

    Args:
        folder: made when missing.
        batches: arrays (any, size, size, 3) uint8 whose rows, laid end to end, are the rows of the index.
        index: table of INDEX_SCHEMA.
        class_names: name of each label.
        report: what was counted and refused; plain JSON.
        images_per_shard: rows of a shard; the last one may be shorter.

    Raises:
        ValueError: the number of images is not the number of rows, or images differ in size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image_size = _write_shards(folder, batches, len(index), images_per_shard)
    pq.write_table(index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA), folder / INDEX)
    (folder / REPORT).write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    facts = {"class_names": class_names, "image_size": image_size}
    return Dataset(folder, write_manifest(folder, KIND, FORMAT_VERSION, facts=facts))


def _write_shards(folder: Path, batches: Iterable[np.ndarray], count: int, images_per_shard: int) -> int:
    """Write so many images as np.save would, shard by shard, as they come; returns their size."""
    written = image_size = 0
    with ExitStack() as shard:
        for part in _parts(batches, images_per_shard):
            image_size = image_size or part.shape[1]
            if part.shape[1:] != (image_size, image_size, 3) or part.dtype != np.uint8:
                raise ValueError(
                    f"Images are {part.dtype} {part.shape[1:]} after {written:,} of {image_size} px; "
                    "they must be square, uint8 and of one size."
                )
            if written % images_per_shard == 0:
                shard.close()
                path = folder / f"images-{written // images_per_shard:05d}.npy"
                file = shard.enter_context(path.open("wb"))
                shape = (min(images_per_shard, max(count - written, 0)), *part.shape[1:])
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(np.ascontiguousarray(part).data)
            written += len(part)
    if written != count:
        raise ValueError(f"{written} images for {count} rows of the index; every row needs one image.")
    return image_size


def _parts(batches: Iterable[np.ndarray], images_per_shard: int) -> Iterator[np.ndarray]:
    """The batches, cut where a shard ends."""
    count = 0
    for batch in batches:
        while len(batch):
            room = images_per_shard - count % images_per_shard
            yield batch[:room]
            count += min(room, len(batch))
            batch = batch[room:]

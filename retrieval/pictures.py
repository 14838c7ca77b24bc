"""Small pictures of test images, kept with a model's version so that its galleries outlive the dataset. No torch here.

They are few and small: at most so many, of 64 pixels a side. A picture is found by the sha256 of the image that it is
of, as in the dataset's index.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from retrieval.answers import Answers
from retrieval.dataset import Dataset
from retrieval.disagreements import Disagreement, disagreements

FORMAT_VERSION = 1
MARK = b"rankone.pictures"  # entry of the file's metadata that holds the format
SCHEMA = pa.schema({"sha256": pa.string(), "picture": pa.binary()})
SIDE = 64  # pixels; larger pictures are shrunk to this
LOSSLESS_SIDE = 16  # up to this size a PNG is no larger than a JPEG
LARGEST = 64 * 1024  # bytes of one picture; 64 x 64 random pixels as JPEG take 6,000
LARGEST_FILE = 256 * 2**20  # bytes
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}  # by how a picture begins
SHARE_OF_DISAGREEMENTS = 0.25  # of the pictures that are kept; the rest serves comparisons with other versions


def encoded(pixels: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 as PNG where it is tiny, else shrunk and as JPEG."""
    image = Image.fromarray(pixels)
    kind = "png" if max(image.size) <= LOSSLESS_SIDE else "jpeg"
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    return buffer.getvalue()


def uri_of(picture: bytes) -> str:
    """A picture as a data URI.

    Raises:
        ValueError: it is neither PNG nor JPEG.
    """
    return f"data:image/{_kind(picture)};base64,{base64.b64encode(picture).decode()}"


def wanted(answers: Answers, champion: Answers | None, most: int) -> list[str]:
    """The images to keep pictures of, by sha256, the most telling first.

    First what the model and the champion disagree on, a quarter of them at most; then the queries that the model gets
    wrong, since every disagreement with whatever other version is a mistake of one of the two; then the others. Each
    query comes with what was found for it. Wrong ones, and right ones, are taken by their sha256: by chance, but for
    every version by the same, so that the pictures of two versions are of the same queries.

    Args:
        answers: of the model.
        champion: its answers to the same queries; None where there is none.
        most: pictures.
    """
    kept: dict[str, None] = {}
    if champion is not None:
        fixed, broken = disagreements(answers, champion)
        pairs = chain.from_iterable(zip_longest(fixed, broken))
        _fill(kept, map(_images_of, (pair for pair in pairs if pair)), int(most * SHARE_OF_DISAGREEMENTS))
    wrong, right = np.flatnonzero(~answers.correct), np.flatnonzero(answers.correct)
    _fill(kept, ((answers.images[row], answers.nearest[row]) for row in chain(wrong, right)), most)
    return list(kept)


def taken(dataset: Dataset, images: Sequence[str]) -> dict[str, bytes]:
    """Pictures of test images of a dataset, by sha256, in the order asked for.

    Raises:
        ValueError: one is not among the test images.
    """
    rows = dataset.rows("test")
    row_of = dict(zip(dataset.index["sha256"].take(rows).to_pylist(), rows, strict=True))
    if missing := [image for image in images if image not in row_of]:
        raise ValueError(f"Image {missing[0]} is not among the {len(rows):,} test images of {dataset.folder}.")
    return {image: encoded(dataset.read(np.array([row_of[image]]))[0]) for image in images}


def save_pictures(path: Path, pictures: dict[str, bytes]) -> None:
    """Write a Parquet file with one row a picture."""
    columns = [list(pictures), list(pictures.values())]
    schema = SCHEMA.with_metadata({MARK: str(FORMAT_VERSION).encode()})
    table = pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema)
    pq.write_table(table, path, compression="none")  # pictures are compressed already


def load_pictures(path: Path) -> dict[str, bytes]:
    """Read what `save_pictures` wrote.

    Raises:
        ValueError: it is no such file, of another format, damaged, or larger than any that is written.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has {path.stat().st_size:,} bytes; {LARGEST_FILE:,} are the most")
        table = pq.read_table(path)
        found = (table.schema.metadata or {}).get(MARK, b"").decode()
        if found != str(FORMAT_VERSION):
            raise ValueError(f"it holds no pictures of format {FORMAT_VERSION} (its format is {found or 'unknown'})")
        pictures = dict(zip(table["sha256"].to_pylist(), table["picture"].to_pylist(), strict=True))
        for picture in pictures.values():
            _kind(picture)
    except (OSError, TypeError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    return pictures


def _kind(picture: bytes) -> str:
    kind = next((kind for start, kind in KINDS.items() if picture.startswith(start)), "")
    if not kind or len(picture) > LARGEST:
        raise ValueError(f"{len(picture):,} bytes are no picture in PNG or JPEG of at most {LARGEST:,} bytes")
    return kind


def _images_of(pair: Disagreement) -> Iterator[str]:
    yield from (pair.image, pair.champion.image, pair.candidate.image)


def _fill(kept: dict[str, None], queries: Iterable[Iterable[str]], most: int) -> None:
    """Add the images of each query, whole queries only, until one does not fit."""
    for images in queries:
        new = dict.fromkeys(image for image in images if image not in kept)
        if len(kept) + len(new) > most:
            return
        kept.update(new)

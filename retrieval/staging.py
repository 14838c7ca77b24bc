"""Decoding in parallel: every listed image to the store's size in scratch shards, and what was seen of each.

Memory is a few batches, whatever the number of images. Batches keep the order of the records, so neither the number of
processes nor their speed shows in the result.
"""

import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from retrieval.images import Limits, Picture, RefusedImageError, bounded, decode, from_array
from retrieval.progress import Progress
from retrieval.sources import Contents, Record, Source

FEWEST_FOR_PROCESSES = 1_000  # starting them takes longer than decoding fewer images
BATCH_BYTES = 2**24  # of a scratch shard


@dataclass(frozen=True)
class Decoding:
    """How images become rows of the store.

    Attributes:
        image_size: pixels a side.
        resize: one of images.RESIZES.
        limits: what a picture may be.
        workers: processes; 0 for one a processor.
    """

    image_size: int
    resize: str
    limits: Limits
    workers: int = 0

    @property
    def images_per_batch(self) -> int:
        """As many as fit in BATCH_BYTES; between 16 and 512."""
        return max(16, min(512, BATCH_BYTES // (3 * self.image_size**2)))


@dataclass(frozen=True, slots=True)
class Seen:
    """What decoding found of one image; `reason` is empty for one that was decoded."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""


def stage(source: Source, records: Sequence[Record], scratch: Path, decoding: Decoding) -> tuple[list[Seen], float]:
    """Decode all records into scratch shards.

    Args:
        source: that the records are of.
        records: in the source's order.
        scratch: an empty folder; one file a batch.
        decoding: size and limits.

    Returns:
        What was seen, one a record, in their order; and images a second.
    """
    processes = decoding.workers or _processors()
    seen: list[Seen] = []
    batches = source.batches(records, decoding.images_per_batch)
    work = functools.partial(_decode_batch, scratch=scratch, decoding=decoding)
    alone = processes == 1 or not source.encoded or len(records) < FEWEST_FOR_PROCESSES
    results = _in_this_process(work, batches) if alone else _in_processes(work, batches, processes)
    with Progress("prepare_data: decode", len(records), "images") as progress:
        for part in results:
            seen += part
            progress.advance(len(part))
    if len(seen) != len(records):
        raise ValueError(
            f"{len(records)} images were listed and {len(seen)} read; the source changed, run the step again."
        )
    return seen, progress.per_second


def staged_images(scratch: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The images of the given rows, ascending, batch by batch; each scratch shard is removed once it is read."""
    start = 0
    for path in sorted(scratch.glob("batch-*.npy")):
        shard = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(rows, [start, start + len(shard)])
        if last > first:  # whole in the usual case: then nothing is copied
            yield shard if last - first == len(shard) else shard[rows[first:last] - start]
        start += len(shard)
        path.unlink()


def _decode_batch(numbered: tuple[int, Contents], scratch: Path, decoding: Decoding) -> list[Seen]:
    number, contents = numbered
    size = decoding.image_size
    pixels = np.empty((decoding.images_per_batch, size, size, 3), np.uint8)
    seen: list[Seen] = []
    with bounded(decoding.limits):
        for content in contents:
            try:
                picture = _picture(content, decoding)
                pixels[len(seen)] = picture.fitted(size, decoding.resize)
            except RefusedImageError as refused:
                pixels[len(seen)] = 0
                seen.append(Seen(reason=refused.reason, detail=refused.detail))
            else:
                seen.append(Seen(picture.sha256, picture.width, picture.height, picture.notes))
    np.save(scratch / f"batch-{number:08d}.npy", pixels[: len(seen)])
    return seen


def _picture(content: bytes | np.ndarray | RefusedImageError, decoding: Decoding) -> Picture:
    if isinstance(content, RefusedImageError):
        raise content
    if isinstance(content, np.ndarray):
        return from_array(content, decoding.limits)
    return decode(content, decoding.limits, decoding.image_size)


def _in_this_process(work: "functools.partial[list[Seen]]", batches: Iterable[Contents]) -> Iterator[list[Seen]]:
    yield from map(work, enumerate(batches))


def _in_processes(
    work: "functools.partial[list[Seen]]", batches: Iterable[Contents], processes: int
) -> Iterator[list[Seen]]:
    """Results in order, with a few batches under way for each process."""
    # a fork starts at once, where another way imports the whole step again; the children only decode
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_process) as pool:
        under_way: deque[Future[list[Seen]]] = deque()
        try:
            for numbered in enumerate(batches):
                under_way.append(pool.submit(work, numbered))
                if len(under_way) > 3 * processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_process() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it ends; spare the parent's objects from collection."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler raises, which a finalizer could swallow
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1

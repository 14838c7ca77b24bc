"""Images a second of prepare_data against torchvision's ImageFolder with Pillow, on the same files in the same run.

    python -m benchmarks.prepare_data [FOLDER] [--image_size=32] [--runs=3]

FOLDER is in ImageFolder's layout, root/<class>/*; without it a folder of 2,000 JPEGs of 500x375 is made. Both sides
read every file, turn it to RGB, bring the short side to size and take the centre. ImageFolder does so in one process
and keeps the pixels in memory; prepare_data lists, decodes, hashes, quarantines, splits and writes the dataset. The
sides take turns, file caches warm. CPU time an image is of all processes: it says what the work costs when others use
the machine too.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from retrieval.dataset import save_dataset
from retrieval.images import Limits
from retrieval.indexing import index_of
from retrieval.quarantine import quarantine
from retrieval.sources import SourceOptions, open_source
from retrieval.splits import Labelled, Shares, assign_splits
from retrieval.staging import Decoding, stage, staged_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        folder = options.folder or make_folder(Path(spare) / "made")
        image_folder(folder, options.image_size)  # warm the file cache, and load what is loaded once
        prepare(folder, options.image_size, options.workers, Path(spare) / "first")
        sides: dict[str, Callable[[Path], int]] = {
            "ImageFolder + Pillow": lambda _: image_folder(folder, options.image_size),
            "prepare_data": lambda scratch: prepare(folder, options.image_size, options.workers, scratch),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for run in range(options.runs):
            for name, side in sides.items():
                found[name].append(measured(side, Path(spare) / f"run {run}"))
    medians = {name: statistics.median(speed for speed, _ in values) for name, values in found.items()}
    for name, values in found.items():
        print(
            f"{name}: {medians[name]:,.0f} images/s, median of {', '.join(f'{speed:,.0f}' for speed, _ in values)}; "
            f"{statistics.median(cpu for _, cpu in values):.3f} ms of CPU an image"
        )
    print(f"{medians['prepare_data'] / medians['ImageFolder + Pillow']:.2f} times as fast")


def measured(side: Callable[[Path], int], scratch: Path) -> tuple[float, float]:
    """Images a second, and milliseconds of CPU an image."""
    begun, cpu = time.perf_counter(), cpu_seconds()
    images = side(scratch)
    return images / (time.perf_counter() - begun), 1000 * (cpu_seconds() - cpu) / images


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def image_folder(folder: Path, image_size: int) -> int:
    fit = transforms.Compose([transforms.Resize(image_size), transforms.CenterCrop(image_size)])
    images = [np.asarray(image) for image, _ in ImageFolder(str(folder), fit)]
    return len(images)


def prepare(folder: Path, image_size: int, workers: int, scratch: Path) -> int:
    (scratch / "shards").mkdir(parents=True)
    source = open_source("folder", str(folder), SourceOptions())
    decoding = Decoding(image_size, "crop", Limits(64_000_000, 8), workers)
    seen, _ = stage(source, source.records, scratch / "shards", decoding)
    left_out = {image.row for image in quarantine(source.records, seen)}
    rows = np.array([row for row in range(len(seen)) if row not in left_out])
    kept = [source.records[row] for row in rows]
    labelled = Labelled([record.class_name for record in kept], [seen[row].sha256 for row in rows], [""] * len(rows))
    splits = assign_splits("closed", labelled, Shares(0.2, 0.1, 0))
    index, names = index_of(source.records, seen, rows, splits)
    save_dataset(scratch / "dataset", staged_images(scratch / "shards", rows), index, names, {})
    return len(seen)


def make_folder(root: Path, classes: int = 20, images_per_class: int = 100) -> Path:
    rng = np.random.default_rng(0)
    for name in (f"class {number:02d}" for number in range(classes)):
        (root / name).mkdir(parents=True)
        for place in range(images_per_class):
            small = rng.integers(0, 256, (25, 34, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
            image.save(root / name / f"{place:03d}.jpg", quality=90)
    return root


if __name__ == "__main__":
    main()

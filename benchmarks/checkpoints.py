"""What keeping states of a training costs, and what a kill costs with and without them.

    python -m benchmarks.checkpoints [--seconds 60] [--every 5] [--place FOLDER or s3://bucket/prefix] [--rounds 3]

Trains the four-layer network (d = 256) and resnet18 on random images of 32 px by turns with and without checkpoints,
`--every` so many seconds; prints the share of time that they cost, the size of a state, the time to copy it (the
training waits), to write it (a thread does) and to read it, and what that makes at `--seconds`. Then the four-layer
training is killed by SIGKILL at a random moment and started again: seconds that were trained twice.
"""

import argparse
import contextlib
import io
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.threads import keep_threads
from retrieval.augmentation import named_augmentation
from retrieval.checkpoints import Checkpoint, State
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.models import FOUR_LAYER, EmbeddingModel, ModelConfig, build_network
from retrieval.training import ByLabel, History, Schedule, fit

CLASSES, BATCH, SIZE = 100, 128, 32
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="the interval to answer for")
    parser.add_argument("--every", type=float, default=5.0, help="the interval to measure at")
    parser.add_argument("--place", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=60, help="of one training; resnet18 has a third")
    parser.add_argument("--worker", nargs=2, metavar=("DATASET", "PLACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_threads()
    if options.worker:
        dataset, place = options.worker
        train(FOUR_LAYER, Dataset(Path(dataset)), Checkpoint(place, "worker", "benchmark", options.every), loud=True)
        return
    print(f"{torch.get_num_threads()} threads; states kept in {options.place or 'a folder'}")
    with tempfile.TemporaryDirectory() as folder:
        place = options.place or f"{folder}/kept"
        dataset = random_images(Path(folder) / "dataset", options.batches * BATCH)
        for architecture in (FOUR_LAYER, "resnet18"):
            cost(architecture, dataset, place, options)
        killed(dataset, place, options.every)


def cost(architecture: str, dataset: Dataset, place: str, options: argparse.Namespace) -> None:
    """Times of training with and without, by turns, and of the parts of keeping a state."""
    copies: list[float] = []
    writes: list[float] = []
    sizes: list[float] = []

    class Timed(Checkpoint):
        def write(self, state: State, wait: bool = False) -> None:
            sizes.append(sum(tensor.nbytes for tensor in state.tensors.values()) / 2**20)
            started = time.perf_counter()
            super().write(state)
            copies.append(time.perf_counter() - started)
            if wait:
                self.close()

        def _write(self, state: State) -> None:
            started = time.perf_counter()
            super()._write(state)
            writes.append(time.perf_counter() - started)

    without, with_them = list[float](), list[float]()
    for _ in range(options.rounds):
        without.append(train(architecture, dataset, None).seconds)
        timed = Timed(place, architecture, "benchmark", options.every)
        with_them.append(train(architecture, dataset, timed).seconds)
        reader = Checkpoint(place, architecture, "benchmark", options.every)
        started = time.perf_counter()
        reader.read()
        reading = time.perf_counter() - started
        reader.remove()
    plain, kept = min(without), min(with_them)
    each = np.mean(copies) + np.mean(writes)  # as if the thread's time were taken from the training
    print(
        f"{architecture}: {plain:.1f} s without, {kept:.1f} s with a state every {options.every:g} s "
        f"({kept / plain - 1:+.1%}); a state of {sizes[0]:.1f} MiB is copied in {np.mean(copies) * 1e3:.0f} ms, "
        f"written in {np.mean(writes) * 1e3:.0f} ms, read in {reading * 1e3:.0f} ms: every {options.seconds:g} s at "
        f"most {each / options.seconds:.2%}",
        flush=True,
    )


def killed(dataset: Dataset, place: str, every: float) -> None:
    """Kill a training at a random moment once a state is kept, start it again, and see from where it goes on."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.checkpoints",
        f"--every={every}",
        "--worker",
        str(dataset.folder),
        place,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reader = Checkpoint(place, "worker", "benchmark", every)
    while reader.read() is None:
        time.sleep(0.1)
        assert process.poll() is None, "the training ended before a state was kept"
    time.sleep(random.uniform(0, every))
    process.kill()
    stopped = time.time()
    process.wait()
    state = reader.read()
    assert state is not None
    path = Path(place) / "worker.safetensors"
    lost = f"{stopped - path.stat().st_mtime:.1f} s of training" if path.exists() else "at most the interval"
    started = time.perf_counter()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    resumed = next(line for line in again.stdout.splitlines() if "resumed" in line)
    print(f"killed: {lost} done twice; {resumed} The rest took {time.perf_counter() - started:.1f} s.")
    reader.remove()


def train(architecture: str, dataset: Dataset, checkpoint: Checkpoint | None, loud: bool = False) -> History:
    """One epoch from the same beginning."""
    torch.manual_seed(0)
    network: EmbeddingModel = build_network(ModelConfig(architecture, 256, SIZE))
    count = len(dataset) if architecture == FOUR_LAYER else len(dataset) // 3
    images = ImageBatches(dataset, np.arange(count), CPU)
    objective = ByLabel(MetricObjective("normalised_softmax", CLASSES, 256))
    with contextlib.nullcontext() if loud else contextlib.redirect_stdout(io.StringIO()):
        return fit(
            network,
            objective,
            images,
            torch.tensor(dataset.labels[:count]),
            Schedule(1, 0.05),
            batch_size=BATCH,
            seed=0,
            augment=named_augmentation("crop_flip"),
            device=CPU,
            name="benchmark",
            checkpoint=checkpoint,
        )


def random_images(folder: Path, count: int) -> Dataset:
    """So many images of noise."""
    labels = np.arange(count) % CLASSES
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    names = np.arange(count).astype(str)
    values = [np.arange(count), labels, names, ["train"] * count, names, ["0"] * count, *[[SIZE] * count] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    return save_dataset(folder, [pixels], index, [str(label) for label in range(CLASSES)], {})


if __name__ == "__main__":
    main()

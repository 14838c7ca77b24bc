"""Images a second of the training loop, beside the same step on data that costs nothing and beside a DataLoader loop.

    python -m benchmarks.training [--images 4096] [--batch-size 128] [--rounds 3] [--device auto] [--network four_layer]

Three loops train the same network by the same loss on the same random images of 32 pixels, in turns in one process:

- loop: retrieval.training.fit, images resident, shift and mirror on the device;
- synthetic: the bare step, always on the same ready batch: what the device can do at most;
- dataloader: what one would write first: a torch Dataset of PIL images with torchvision's RandomCrop,
  RandomHorizontalFlip and ToTensor, a DataLoader (--workers processes), loss.item() at every step.

The median of the rounds is printed, as is the loop's share of synthetic and its factor over dataloader.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.threads import keep_threads
from retrieval.augmentation import SHIFT, named_augmentation, to_unit
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.devices import autocast, describe, pick_device
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.models import EmbeddingModel, ModelConfig, build_network
from retrieval.training import ByLabel, Schedule, fit

CLASSES, DIMENSION, SIZE = 100, 256, 32


def random_dataset(folder: Path, count: int) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    numbers = np.arange(count)
    names, sizes = numbers.astype(str), np.full(count, SIZE)
    values = [numbers, numbers % CLASSES, names, ["train"] * count, names, ["0"] * count, sizes, sizes]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    return save_dataset(folder, [pixels], index, [str(number) for number in range(CLASSES)], {})


def objects(arguments: argparse.Namespace, device: torch.device) -> tuple[EmbeddingModel, MetricObjective]:
    torch.manual_seed(0)
    network = build_network(ModelConfig(architecture=arguments.network, dimension=DIMENSION, image_size=SIZE))
    return network.to(device), MetricObjective("normalised_softmax", CLASSES, DIMENSION).to(device)


def optimiser_of(network: nn.Module, loss: nn.Module) -> torch.optim.SGD:
    parameters = [*network.parameters(), *loss.parameters()]
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def loop(arguments: argparse.Namespace, dataset: Dataset, device: torch.device) -> float:
    network, loss = objects(arguments, device)
    images = ImageBatches(dataset, np.arange(len(dataset)), device)
    with contextlib.redirect_stdout(io.StringIO()):
        history = fit(
            network,
            ByLabel(loss),
            images,
            torch.tensor(dataset.labels),
            Schedule(2, 0.01),
            batch_size=arguments.batch_size,
            seed=0,
            augment=named_augmentation("crop_flip"),
            device=device,
            name="benchmark",
            compile=arguments.compile,
        )
    return history.epochs[-1]["images_per_second"]  # the first epoch warms up


def synthetic(arguments: argparse.Namespace, dataset: Dataset, device: torch.device) -> float:
    network, loss = objects(arguments, device)
    rows = np.arange(arguments.batch_size) % len(dataset)
    images = to_unit(ImageBatches(dataset, rows, device).get(np.arange(len(rows))))
    labels = torch.from_numpy(dataset.labels[rows]).to(device)
    forward = torch.compile(network) if arguments.compile else network
    optimiser = optimiser_of(network, loss)
    steps = max(1, len(dataset) // arguments.batch_size)
    for _ in range(2):
        started = time.perf_counter()
        for _ in range(steps):
            with autocast(device):
                outputs = forward(images)
            optimiser.zero_grad()
            total = loss(outputs.float(), labels)
            total.backward()
            optimiser.step()
        total.item()
    return steps * arguments.batch_size / (time.perf_counter() - started)


class Pictures(torch.utils.data.Dataset):
    """Images one at a time, as PIL gives them."""

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, labels: np.ndarray, flip: bool = True, border: str = "constant"
    ) -> None:
        self.pictures = [Image.fromarray(image) for image in dataset.read(rows)]
        self.labels = labels
        padding = round(dataset.image_size * SHIFT)
        shifted = [transforms.RandomCrop(dataset.image_size, padding=padding, padding_mode=border)]
        flipped = [transforms.RandomHorizontalFlip()] if flip else []
        self.transform = transforms.Compose([*shifted, *flipped, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[number]), int(self.labels[number])


def dataloader(arguments: argparse.Namespace, dataset: Dataset, device: torch.device) -> float:
    network, loss = objects(arguments, device)
    network.to(memory_format=torch.contiguous_format)
    pictures = Pictures(dataset, np.arange(len(dataset)), dataset.labels)
    loader = DataLoader(
        pictures, arguments.batch_size, shuffle=True, drop_last=True, num_workers=arguments.workers,
        pin_memory=device.type == "cuda", persistent_workers=arguments.workers > 0,
    )  # fmt: skip
    optimiser = optimiser_of(network, loss)
    for _ in range(2):
        started, seen = time.perf_counter(), 0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            with autocast(device):
                outputs = network(images)
            optimiser.zero_grad()
            total = loss(outputs.float(), labels)
            total.backward()
            optimiser.step()
            seen += len(labels)
            total.item()
    return seen / (time.perf_counter() - started)


LOOPS: dict[str, Callable[[argparse.Namespace, Dataset, torch.device], float]] = {
    "loop": loop,
    "synthetic": synthetic,
    "dataloader": dataloader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--network", default="four_layer")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    keep_threads()
    device = pick_device(arguments.device)
    print(f"{arguments.images:,} images, batches of {arguments.batch_size}, {arguments.network}, {describe(device)}")
    measured: dict[str, list[float]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as folder:
        dataset = random_dataset(Path(folder) / "dataset", arguments.images)
        for number in range(arguments.rounds):
            for name, run in LOOPS.items():
                measured[name].append(run(arguments, dataset, device))
                print(f"round {number + 1}: {name} {measured[name][-1]:,.0f} images/s", flush=True)
    median = {name: statistics.median(rates) for name, rates in measured.items()}
    for name, rate in median.items():
        print(f"{name:10} {rate:10,.0f} images/s")
    share, factor = median["loop"] / median["synthetic"], median["loop"] / median["dataloader"]
    print(f"loop is {share:.1%} of synthetic, {factor:.2f} x dataloader")


if __name__ == "__main__":
    main()

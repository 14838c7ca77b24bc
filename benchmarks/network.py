"""Forms of the four-layer network side by side on CIFAR-100: R@1 on a validation part, parameters, images a second.

    python -m benchmarks.network --location FOLDER [--images 20000] [--epochs 4] [--seeds 0 1] [--variants default gem]

FOLDER holds the official `cifar-100-python`; of it only training images are read. A seeded choice of --images of them
trains, as many of each class; --validation others, of the same classes, are queries among themselves. Every form is
trained by the normalised softmax loss through retrieval.training.fit, with the same batches, augmentation and rate. A
seed is that of weights, batches and augmentation; the images stay the same. Spread is the deviation over seeds.
Rates are images a second and a CPU-second of training: on a machine that is shared only the second can be compared.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.threads import keep_threads
from benchmarks.training_part import training_part
from retrieval.augmentation import named_augmentation
from retrieval.choices import choose_learning_rate
from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.models import ModelConfig, build_network
from retrieval.training import ByLabel, Schedule, fit
from retrieval.validation import validation_recall_at_1

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_batch_norm": {"batch_norm": False},
    "gem": {"pooling": "gem"},
    "average": {"pooling": "average"},
    "max": {"pooling": "max"},
    "average_pools": {"pool_kind": "average"},
    "gem_wide": {"pooling": "gem", "channels": (64, 128, 512)},
    "gem_large_map": {"pooling": "gem", "pools": (2, 2, 1)},
    "large_first_window": {"kernels": (5, 3, 3), "paddings": (2, 1, 1)},
    "narrow": {"channels": (32, 64, 128)},
    "equal_channels": {"channels": (128, 128, 128)},
}


def measure(form: dict[str, Any], seed: int, dataset: Dataset, arguments: argparse.Namespace) -> dict[str, float]:
    """Train one form with one seed: its R@1, parameters and rates."""
    device = pick_device(arguments.device)
    rows = dataset.rows("train")
    mean, std = colour_statistics(dataset, rows)
    torch.manual_seed(seed)
    network = build_network(
        ModelConfig(dimension=arguments.dimension, image_size=dataset.image_size, mean=mean, std=std, **form)
    )
    loss = MetricObjective("normalised_softmax", len(dataset.class_names), arguments.dimension)
    rate = arguments.learning_rate or choose_learning_rate(arguments.dimension, arguments.batch_size).value
    cpu = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        history = fit(
            network,
            ByLabel(loss),
            ImageBatches(dataset, rows, device),
            torch.from_numpy(dataset.labels[rows]),
            Schedule(arguments.epochs, rate),
            batch_size=arguments.batch_size,
            seed=seed,
            augment=named_augmentation("crop_flip"),
            device=device,
            name="benchmark",
        )
        cpu = time.process_time() - cpu
        recall = validation_recall_at_1(network, dataset, device)
    assert recall is not None
    return {
        "recall_at_1": recall,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "images_per_second": history.images_per_second,
        "images_per_cpu_second": history.images / cpu,
    }


def line(name: str, runs: Sequence[dict[str, float]]) -> str:
    recalls = [run["recall_at_1"] for run in runs]
    spread = f"{statistics.stdev(recalls):.4f}" if len(recalls) > 1 else "-"
    wall, cpu = (
        statistics.median(run[rate] for run in runs) for rate in ("images_per_second", "images_per_cpu_second")
    )
    return f"{name:20}{statistics.mean(recalls):8.4f}{spread:>9}{runs[0]['parameters']:>12,}{wall:>10,.0f}{cpu:>14,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--validation", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0 for the automatic one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_threads()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    with tempfile.TemporaryDirectory() as folder:
        dataset = training_part(Path(folder) / "dataset", arguments.location, arguments.images, arguments.validation)
        print(
            f"{len(dataset.rows('train')):,} images to train, {len(dataset.rows('validation')):,} to measure, "
            f"{arguments.epochs} epochs, d = {arguments.dimension}, batches of {arguments.batch_size}, seeds "
            f"{arguments.seeds}, {describe(pick_device(arguments.device))}, {torch.get_num_threads()} thread(s)"
        )
        for seed in arguments.seeds:  # by seed, so that a machine that slows down slows all forms alike
            for name in arguments.variants:
                runs[name].append(measure(VARIANTS[name], seed, dataset, arguments))
                print(f"seed {seed}: {line(name, runs[name][-1:])}", flush=True)
    print(f"\n{'form':20}{'R@1':>8}{'spread':>9}{'parameters':>12}{'images/s':>10}{'images/CPU-s':>14}")
    for name in arguments.variants:
        print(line(name, runs[name]))


if __name__ == "__main__":
    main()

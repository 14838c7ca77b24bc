"""What each augmentation adds to R@1 on CIFAR-100, at equal budget, on whole images and on images with parts missing.

    python -m benchmarks.augmentation --location FOLDER [--images 20000] [--epochs 5] [--seeds 2]
        [--names crop_flip,crop_flip_rand,crop_flip+missing] [--channels 64,128,256]

FOLDER holds the official `cifar-100-python`; only its training images are used. A seeded choice of --images of them
trains, as many of each class, and --validation others are the validation images: every number is R@1 among these. The
four-layer network, d = 256, trains by the normalised softmax; the batch, and the learning rate unless it is given, are
those of finetune_metric's defaults. A name with +missing also hides parts in training. "half hidden" is the mean over
the four halves of an image, filled with the mean colour of the validation images.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.threads import keep_threads
from benchmarks.training_part import training_part
from retrieval.augmentation import named_augmentation, to_unit
from retrieval.choices import choose_learning_rate
from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel, ModelConfig, build_network
from retrieval.training import ByLabel, Schedule, fit

NAMES = (
    "none,shift,crop_flip,crop_flip_colour,crop_flip_erase,crop_flip_patch,crop_flip_rand,"
    "crop_flip+missing,crop_flip_rand+missing"
)
DIMENSION, SIZE = 256, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--validation", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--names", default=NAMES)
    parser.add_argument("--channels", default="64,128,256")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0 for the automatic one")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_threads()

    device = pick_device(arguments.device)
    print(f"{describe(device)}; {arguments}", flush=True)
    print(f"{'augmentation':<28} {'R@1':>7} {'+-':>6} {'half hidden':>12} {'images/s':>9}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = training_part(Path(folder) / "dataset", arguments.location, arguments.images, arguments.validation)
        for name in arguments.names.split(","):
            runs = [measure(name, data, arguments, seed, device) for seed in range(arguments.seeds)]
            whole, halved, speed = zip(*runs, strict=True)
            spread = statistics.stdev(whole) if len(whole) > 1 else 0.0
            means = statistics.mean(whole), spread, statistics.mean(halved), statistics.mean(speed)
            print(f"{name:<28} {means[0]:7.2%} {means[1]:6.2%} {means[2]:12.2%} {means[3]:9.0f}", flush=True)


def measure(
    name: str, data: Dataset, arguments: argparse.Namespace, seed: int, device: torch.device
) -> tuple[float, float, float]:
    """R@1 on whole images, R@1 with half of each query and of each image of the gallery hidden, images a second."""
    rows = data.rows("train")
    labels = torch.tensor(data.labels[rows])
    mean, std = colour_statistics(data, rows)
    torch.manual_seed(seed)
    channels = tuple(int(number) for number in arguments.channels.split(","))
    network = build_network(ModelConfig(dimension=DIMENSION, image_size=SIZE, mean=mean, std=std, channels=channels))
    augmentation, _, robust = name.partition("+")
    with contextlib.redirect_stdout(io.StringIO()):
        history = fit(
            network,
            ByLabel(MetricObjective("normalised_softmax", int(labels.max()) + 1, DIMENSION)),
            ImageBatches(data, rows, device),
            labels,
            Schedule(arguments.epochs, arguments.learning_rate or choose_learning_rate(DIMENSION).value),
            batch_size=128,
            seed=seed,
            augment=named_augmentation(augmentation, robust or "none"),
            device=device,
            name=name,
        )
    held_out = data.rows("validation")
    answers = torch.tensor(data.labels[held_out])
    images = to_unit(ImageBatches(data, held_out, device).get(np.arange(len(held_out))))
    halves = [recall_at_1(embed(network, half), answers) for half in halved(images)]
    return recall_at_1(embed(network, images), answers), statistics.mean(halves), history.images_per_second


def halved(images: Tensor) -> list[Tensor]:
    """The images without their upper, lower, left and right half."""
    colour, half = images.mean(dim=(0, 2, 3)).view(3, 1, 1), SIZE // 2
    results = [images.clone() for _ in range(4)]
    results[0][:, :, :half], results[1][:, :, half:] = colour, colour
    results[2][:, :, :, :half], results[3][:, :, :, half:] = colour, colour
    return results


def embed(network: EmbeddingModel, images: Tensor) -> Tensor:
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in images.split(500)]).cpu()


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")

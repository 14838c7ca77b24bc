"""Features of CIFAR-100's training images as a frozen classifier gives them: a real input for benchmarks.co_clustering.

    python -m benchmarks.raw_features FOLDER --weights=FILE [--depths=1] [--images=50000] --to=features
    python -m benchmarks.co_clustering --features=features.npy --labels=features_labels.npy --clusters=100

FOLDER holds the official `cifar-100-python`. Activations are averaged over each map, of several depths laid end to end;
nothing is whitened: they are what the classifier's relu left, nonnegative. Labels are the 100 fine ones. Fewer images
than all are the first ones of the file, which is in random order.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from retrieval.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from retrieval.sources import SourceOptions, open_source
from retrieval.weights import load_weights

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--classifier", default="squeezenet1_0")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--depths", default="1", help="maps from the end, e.g. 1,2,3")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--to", type=Path, required=True, help="beginning of the two files' names")
    options = parser.parse_args()
    pixels, labels = training_images(options.folder, options.images)
    depths = [int(depth) for depth in options.depths.split(",")]
    network = Backbone(options.classifier, options.image_size, depths, pooling="average").eval()
    load_weights(network.trunk, options.classifier, options.weights)
    features = np.concatenate([embed(network, part, options.image_size) for part in np.split(pixels, cuts(pixels))])
    np.save(f"{options.to}.npy", features)
    np.save(f"{options.to}_labels.npy", labels)
    print(f"{options.to}.npy: {features.shape[0]:,} x {features.shape[1]:,}, least value {features.min():g}")


def training_images(folder: str, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training images (n, 32, 32, 3) uint8 and their fine labels (n,) int64."""
    source = open_source("cifar100", folder, SourceOptions(download=False))
    records = [record for record in source.records if record.split == "train"][:images]
    pixels = np.stack([np.asarray(content) for contents in source.batches(records, 1_024) for content in contents])
    return pixels, np.unique([record.class_name for record in records], return_inverse=True)[1]


def cuts(pixels: np.ndarray) -> range:
    return range(BATCH, len(pixels), BATCH)


@torch.inference_mode()
def embed(network: torch.nn.Module, pixels: np.ndarray, image_size: int) -> np.ndarray:
    """(b, 32, 32, 3) uint8 -> (b, features) float32, the images enlarged."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(colours).view(3, 1, 1) for colours in (IMAGENET_MEAN, IMAGENET_STD))
    return network((images - mean) / std).float().numpy()


if __name__ == "__main__":
    main()

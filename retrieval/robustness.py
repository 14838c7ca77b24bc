"""How a model does where it was not trained to: with parts of the image missing, and on images of other datasets."""

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from retrieval.class_intervals import class_bootstrap_interval
from retrieval.colours import colour_statistics
from retrieval.dataset import FORMAT_VERSION, KIND, Dataset
from retrieval.embedder import Change, Embedder, changed
from retrieval.evaluation import FurtherDataset, MissingParts
from retrieval.metrics import recall_at_1, retrieval_metrics
from retrieval.neighbours import nearest
from retrieval.object_store import Address, is_address
from retrieval.occlusion import hide
from retrieval.progress import Progress
from retrieval.publication import fetch

HIDDEN = (
    *(("block", share) for share in (0.1, 0.25, 0.5)),
    *(("patches", share) for share in (0.1, 0.25, 0.5)),
    ("side", 0.5),
)
WHOLE = "whole"
IMAGES_FOR_COLOUR = 2_048  # training images whose mean colour fills what is hidden
PIXELS_SIDE = 32  # of the images that are compared by their pixels: more would be no better, and 49 times the memory


def missing_parts(
    embedder: Embedder, dataset: Dataset, whole: Tensor, queries: int, seed: int = 0
) -> tuple[MissingParts, ...]:
    """R@1 of test images of which a part is hidden, among the whole test images, the query itself excluded.

    The first entry is of the same queries whole. What is hidden has the mean colour of the training images.

    Args:
        embedder: of the model and the dataset.
        dataset: the images.
        whole: (m, d) embeddings of its test rows.
        queries: at most so many of the test images that have another of their class, drawn by the seed; 0 measures
            nothing.
        seed: of the draw and of the places that are hidden.
    """
    if not queries:
        return ()
    rows, labels = dataset.rows("test"), dataset.labels[dataset.rows("test")]
    asked = with_positive(labels)
    if len(asked) > queries:
        asked = np.sort(np.random.default_rng(seed).choice(asked, queries, replace=False))
    fill = mean_colour(dataset)
    found = [MissingParts(WHOLE, 0.0, len(asked), _recall(whole[asked], whole, asked, labels))]
    with Progress("hide parts", total=len(HIDDEN) * len(asked), unit="images") as progress:
        for shape, share in HIDDEN:
            generator = torch.Generator().manual_seed(seed)
            change = _hiding(shape, share, fill, generator)
            vectors = embedder.changed(rows[asked], change).to(whole.device)
            found.append(MissingParts(shape, share, len(asked), _recall(vectors, whole, asked, labels)))
            progress.advance(len(asked))
    return tuple(found)


def mean_colour(dataset: Dataset) -> Tensor:
    """Of the training images, or of some of them spread evenly: (3,) uint8."""
    rows = dataset.rows("train")
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), IMAGES_FOR_COLOUR)).astype(int)]
    mean, _ = colour_statistics(dataset, some)
    return (torch.tensor(mean) * 255).round().to(torch.uint8)


def known_images(dataset: Dataset) -> set[str]:
    """The sha256 of the images that a model of the dataset was trained on or chosen by."""
    return set(dataset.index["sha256"].take(dataset.rows("train", "validation")).to_pylist())


def open_datasets(folders: str, known: Set[str], scratch: Path, resize: str = "crop") -> dict[str, Dataset]:
    """The dataset folders of a text, separated by commas, by the text that names each.

    Args:
        folders: the text; a folder of a bucket is s3://bucket/prefix.
        known: sha256 of the images that the model was trained on or chosen by.
        scratch: an existing folder, for what comes from a bucket; it must stay as long as the datasets are read.
        resize: how the model's images were fitted; theirs must be alike.

    Raises:
        ValueError: one is no dataset, is named twice, was fitted in another way, or cannot be measured: its test images
            (all, where it has none for test) have fewer than two classes of two images that are not known. Or the
            bucket cannot be read.
    """
    found: dict[str, Dataset] = {}
    for name in filter(None, (part.strip() for part in folders.split(","))):
        if name in found:
            raise ValueError(f"further_datasets names '{name}' twice; name every dataset once.")
        try:
            found[name] = Dataset(_on_this_machine(name, scratch / str(len(found))))
        except ValueError as error:
            raise ValueError(
                f"further_datasets names '{name}', which cannot be read as a dataset: {error} "
                "Give folders that prepare_data wrote, separated by commas."
            ) from error
        rows, left_out = rows_to_measure(found[name], known)
        labels = found[name].labels[rows]
        if len(np.unique(labels[with_positive(labels)])) < 2:
            but = f" (and {left_out:,} that the model was trained on or chosen by)" if left_out else ""
            raise ValueError(
                f"further_datasets names '{name}', whose {len(labels):,} images{but} have fewer than two classes of "
                "two images: nothing can be measured. Prepare it with more images to test on."
            )
        if found[name].resize != resize:
            raise ValueError(
                f"further_datasets names '{name}', whose images were fitted by resize={found[name].resize}, and the "
                f"model's by resize={resize}. Prepare it with resize={resize}."
            )
    return found


def _on_this_machine(name: str, scratch: Path) -> Path:
    """The folder of a name; one of a bucket is fetched to `scratch`, which is made.

    Raises:
        ValueError: at the address is no whole dataset, or the bucket cannot be read.
    """
    if not is_address(name):
        return Path(name)
    fetch(Address.parse(name), scratch, KIND, FORMAT_VERSION)
    return scratch


def rows_to_measure(dataset: Dataset, known: Set[str]) -> tuple[np.ndarray, int]:
    """The test rows of a further dataset, or all where it has none, without known images; and how many these were."""
    test = dataset.rows("test")
    rows = test if len(test) else np.arange(len(dataset))
    new = np.array([image not in known for image in dataset.index["sha256"].take(rows).to_pylist()], bool)
    return rows[new], int((~new).sum())


def further_dataset(
    name: str, dataset: Dataset, known: Set[str], embedder: Embedder, resamples: int = 2000, seed: int = 0
) -> FurtherDataset:
    """The model on another dataset's images, searched among each other; and their pixels, as the least to beat.

    Images of another size than the model's are brought to it, bilinear and with antialiasing, a batch at a time. Known
    images are left out, of the queries and of what is searched; how many is printed.

    Args:
        name: of the dataset, for the report.
        dataset: its test images are taken, or all where it has none.
        known: sha256 of the images that the model was trained on or chosen by.
        embedder: of the model.
        resamples: of the class bootstrap.
        seed: of the class bootstrap.
    """
    rows, left_out = rows_to_measure(dataset, known)
    if left_out:
        print(
            f"Further dataset {name}: the model was trained on {left_out:,} of its {left_out + len(rows):,} images or "
            "chosen by them; they are left out.",
            flush=True,
        )
    device, size = embedder.device, embedder.model.config.image_size
    labels = torch.from_numpy(dataset.labels[rows])
    found = retrieval_metrics(embedder.changed(rows, resized(size), dataset).to(device), labels)
    queried = dataset.labels[rows[found.query_rows]]
    low, high = class_bootstrap_interval(found.correct, queried, resamples, seed=seed)
    return FurtherDataset(
        name=name,
        images=len(rows),
        whole=not len(dataset.rows("test")),
        classes=len(np.unique(queried)),
        queries=found.queries,
        recall_at_1=found.recall_at_1,
        recall_at_1_low=low,
        recall_at_1_high=high,
        pixels_recall_at_1=recall_at_1(pixels(dataset, rows, device, embedder.batch_size), labels),
        image_size=dataset.image_size,
        model_image_size=size,
        dataset_digest=dataset.digest,
        left_out=left_out,
    )


def resized(size: int) -> Change:
    """Brings bytes (b, 3, h, w) to (b, 3, size, size), bilinear with antialiasing; changes none of that size."""

    def change(images: Tensor) -> Tensor:
        if images.shape[-2:] == (size, size):
            return images
        smooth = interpolate(images.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
        return smooth.round().clamp(0, 255).to(torch.uint8)

    return change


def pixels(dataset: Dataset, rows: np.ndarray, device: torch.device, batch_size: int) -> Tensor:
    """The bytes of the images as vectors, of 32 px a side at most: (m, 3 s s) float32, on the device."""
    shrink = resized(min(PIXELS_SIDE, dataset.image_size))
    return changed(dataset, rows, device, batch_size, lambda images: shrink(images).flatten(1)).to(device).float()


def with_positive(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Positions of the images that have another of their class: (q,) int64."""
    _, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[position] > 1)


def _hiding(shape: str, share: float, fill: Tensor, generator: torch.Generator) -> Change:
    return lambda images: hide(images, shape, share, fill, generator)


def _recall(vectors: Tensor, gallery: Tensor, asked: np.ndarray, labels: np.ndarray) -> float:
    itself = torch.from_numpy(asked).to(gallery.device)
    found = nearest(vectors, gallery, 1, exclude=itself)[1][:, 0].cpu().numpy()
    return float((labels[found] == labels[asked]).mean())

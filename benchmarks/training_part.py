"""Some training images of CIFAR-100 to train on and others to measure on, for benchmarks that compare trainings."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.sources import SourceOptions, limit_classes, open_source


def training_part(folder: Path, location: str, images: int, validation: int) -> Dataset:
    """Training images of CIFAR-100 as a dataset: a seeded choice, as many of each class; its test images are not read.

    Args:
        folder: where the dataset is written.
        location: holds the official `cifar-100-python`.
        images: to train on.
        validation: others, of the same classes.
    """
    source = open_source("cifar100", location, SourceOptions())
    records = [record for record in source.records if record.split == "train"]
    classes = sorted({record.class_name for record in records})
    chosen = limit_classes(records, (images + validation) // len(classes), seed=0)
    held_out = {record.name for record in limit_classes(chosen, validation // len(classes), seed=1)}
    labels = [classes.index(record.class_name) for record in chosen]
    splits = ["validation" if record.name in held_out else "train" for record in chosen]
    names, places = [record.class_name for record in chosen], [record.name for record in chosen]
    unknown, sides = [""] * len(chosen), [32] * len(chosen)
    values = [range(len(chosen)), labels, names, splits, places, unknown, sides, sides]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    batches = (np.stack([np.asarray(image) for image in part]) for part in source.batches(chosen, 1000))
    return save_dataset(folder, batches, index, classes, {})

"""Reads images from a source, checks them, splits them, and writes the store that every later step reads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.launch import OutputPath, Outputs, Scalar, launch
from components.prepare_data.params import Params
from retrieval.dataset import SPLITS, save_dataset
from retrieval.dataset_report import describe, render_dataset_report
from retrieval.images import Limits
from retrieval.indexing import index_of
from retrieval.listing import CANNOT_BE_OPENED
from retrieval.quarantine import check_fraction, quarantine
from retrieval.sources import Record, Source, SourceOptions, limit_classes, open_source
from retrieval.splits import Labelled, Shares, assign_splits, check_measurable, what_validation_lacks
from retrieval.staging import Decoding, stage, staged_images
from retrieval.tracking import step_run


def prepare_data(params: Params, dataset: OutputPath, data_report: OutputPath) -> Outputs:
    """Decode to scratch shards, quarantine, split, and write the dataset with its report page."""
    with step_run("prepare_data", params) as run, scratch_folder(dataset) as scratch:
        source, records = listed(params)
        print(
            f"prepare_data: {len(records):,} images of {len({record.class_name for record in records}):,} classes "
            f"from {' '.join(filter(None, (params.source, params.location)))}, on the cpu, seed {params.seed}"
        )
        limits = Limits(params.max_pixels, params.min_side)
        decoding = Decoding(params.image_size, params.resize, limits, params.workers)
        seen, images_per_second = stage(source, records, scratch, decoding)

        quarantined = quarantine(records, seen)
        check_fraction(quarantined, len(records), params.max_quarantined_fraction)
        rows = np.setdiff1d(np.arange(len(records)), [image.row for image in quarantined])
        labelled = Labelled(
            [records[row].class_name for row in rows],
            [seen[row].sha256 for row in rows],
            [records[row].split for row in rows],
        )
        shares = Shares(
            params.test_fraction, params.validation_fraction, params.seed, params.class_order, params.disjoint_by
        )
        splits = assign_splits(params.split, labelled, shares)
        check_measurable(splits, labelled.classes, params.split)

        index, class_names = index_of(records, seen, rows, splits)
        report = describe(source, records, seen, quarantined, index, settings(params))
        store = save_dataset(dataset, staged_images(scratch, rows), index, class_names, report)
        data_report.parent.mkdir(parents=True, exist_ok=True)
        data_report.write_text(render_dataset_report(store), encoding="utf-8")
        source.close()

        counts = {f"{split}_images": len(store.rows(split)) for split in SPLITS}
        numbers = {"images": len(store), "classes": len(class_names), **counts, "quarantined": len(quarantined)}
        run.log_metrics(numbers | {"images_per_second": images_per_second})
        run.log_artifact(data_report, name="data_report.html")
        print(summary(numbers, report, params.split))
        if lacks := what_validation_lacks(splits, labelled.classes, params.split, params.validation_fraction > 0):
            print(f"prepare_data: {lacks}")
    facts: dict[str, Scalar] = {
        "images_per_second": round(images_per_second, 1),
        "digest": store.digest,
        "split": params.split,
    }
    return {"dataset": facts | numbers, "data_report": {"images": len(store), "quarantined": len(quarantined)}}


def listed(params: Params) -> tuple[Source, list[Record]]:
    """The source, opened, and the records to read; without the source's own split where that is not asked for."""
    limits = Limits(params.max_pixels, params.min_side)
    options = SourceOptions(
        download=params.download,
        cifar100_labels=params.cifar100_labels,
        image_column=params.parquet_image_column,
        label_column=params.parquet_label_column,
        max_bytes=limits.max_bytes,
    )
    source = open_source(params.source, params.location, options)
    if params.split == "own":
        check_validation_is_not_given_twice(source.records, params.validation_fraction)
    records = source.records if params.split == "own" else without_own_split(source.records, params.split)
    return source, limit_classes(records, params.max_images_per_class, params.seed)


def check_validation_is_not_given_twice(records: list[Record], fraction: float) -> None:
    """Refuse a validation_fraction that would have no say.

    Raises:
        ValueError: the source has validation images, and another fraction than the default is asked for.
    """
    if fraction != Params.validation_fraction and any(record.split == "validation" for record in records):
        raise ValueError(
            f"validation_fraction is {fraction}; split=own takes the source's validation images, which it has. Leave "
            "validation_fraction as it is, or use split=closed or split=disjoint."
        )


def without_own_split(records: list[Record], split: str) -> list[Record]:
    """The records as if the source had no split of its own, which is said."""
    if own := ", ".join(sorted({record.split for record in records} - {""})):
        print(
            f"prepare_data: the source's own split ({own}) is set aside, for split={split} divides all images "
            "anew; -p split=own keeps it"
        )
    return [replace(record, split="") for record in records]


def settings(params: Params) -> dict[str, str | int | float]:
    """The knobs that the report tells: those that shape the dataset, not where it lies or how fast it is made."""
    names = (
        *("source", "split", "test_fraction", "validation_fraction", "class_order", "disjoint_by", "image_size"),
        *("resize", "cifar100_labels"),
        *("max_pixels", "min_side", "max_images_per_class", "max_quarantined_fraction", "seed"),
    )
    return {name: getattr(params, name) for name in names}


def summary(numbers: dict[str, int], report: dict, split: str) -> str:
    """What was written, in a line or two."""
    by_reason = {reason: entry["count"] for reason, entry in report["quarantined"].items()}
    closed = [file["name"] for file in report["ignored"]["files"] if CANNOT_BE_OPENED in file["reason"]]
    mind = f"\nprepare_data: mind, nothing of these was read: {', '.join(closed)}" if closed else ""
    left_out = ", ".join(f"{count} {reason}" for reason, count in by_reason.items()) or "none"
    return (
        f"prepare_data: {numbers['images']:,} images of {numbers['classes']:,} classes, split {split}: "
        f"{numbers['train_images']:,} train, {numbers['validation_images']:,} validation, "
        f"{numbers['test_images']:,} test\n"
        f"prepare_data: quarantined: {left_out}; ignored files: {report['ignored']['count']:,}{mind}"
    )


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside the output; what an attempt that was killed left there goes."""
    folder = output.with_name(f"{output.name}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    launch(prepare_data, Params)

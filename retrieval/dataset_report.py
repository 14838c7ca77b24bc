"""The report of a dataset: what was counted, converted, refused and ignored, as JSON and as one page."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from retrieval.dataset import SPLITS, Dataset
from retrieval.quarantine import REASONS, Quarantined
from retrieval.sources import Record, Source
from retrieval.splits import what_validation_lacks
from retrieval.staging import Seen

TEMPLATE = "dataset_report.html"
CLASSES_PICTURED = 120
NAMES_SHOWN = 500  # of a reason; report.json has all
SAMPLE_PIXELS, SAMPLE_GAP = 48, 3
CONVERSIONS = {
    "grey": "grey to RGB",
    "1_bit": "black and white to RGB",
    "palette": "palette to RGB",
    "alpha": "alpha laid on white",
    "cmyk": "CMYK to RGB",
    "ycbcr": "YCbCr to RGB",
    "16_bit": "16 bits scaled to 8",
    "turned": "turned as EXIF says",
    "turned_sideways": "turned sideways as EXIF says",
    "odd_jpeg": "JPEG with stray bytes, decoded all the same",
    "unreadable_exif": "EXIF unreadable, not turned",
    "first_frame": "animated or of many pages, first frame taken",
}


def describe(
    source: Source,
    records: Sequence[Record],
    seen: Sequence[Seen],
    quarantined: Sequence[Quarantined],
    index: pa.Table,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of report.json. The same images give the same content: no times, no places, no speeds.

    Args:
        source: what was listed.
        records: those that were read.
        seen: what decoding found, one a record.
        quarantined: those left out.
        index: of those kept.
        settings: the knobs that shape the dataset.
    """
    class_names = index["class_name"].to_pylist()
    kept = Counter(zip(class_names, index["split"].to_pylist(), strict=True))
    names = sorted({record.class_name for record in records})
    return {
        "settings": dict(settings),
        "listed": len(source.records),
        "not_chosen": len(source.records) - len(records),
        "read": len(records),
        "kept": len(index),
        "images_by_split": {split: sum(kept[name, split] for name in names) for split in SPLITS},
        "classes": [{"name": name} | {split: kept[name, split] for split in SPLITS} for name in names],
        "classes_lost": sorted(set(names) - set(class_names)),
        "conversions": dict(Counter(note for image in seen for note in image.notes)),
        "quarantined": {reason: entry for reason in REASONS if (entry := _of_reason(reason, quarantined))["count"]},
        "ignored": {
            "count": len(source.ignored),
            "files": [{"name": name, "reason": reason} for name, reason in sorted(source.ignored)],
        },
    }


def render_dataset_report(dataset: Dataset) -> str:
    """The page: one HTML document without scripts or links, its pictures inside."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report = dataset.report()
    labels = {name: label for label, name in enumerate(dataset.class_names)}
    present = [entry for entry in report["classes"] if entry["name"] in labels]
    largest = max(sum(entry[split] for split in SPLITS) for entry in present)
    samples = 11 if len(present) <= 20 else 7
    pictured = [
        entry | {"pictures": class_strip(dataset, labels[entry["name"]], samples)}
        for entry in present[:CLASSES_PICTURED]
    ]
    return environment.get_template(TEMPLATE).render(
        report=report,
        lacks=what_validation_lacks(
            dataset.index["split"].to_pylist(),
            dataset.index["class_name"].to_pylist(),
            report["settings"]["split"],
            report["settings"]["validation_fraction"] > 0,
        ),
        dataset=dataset,
        splits=SPLITS,
        pictured=pictured,
        unpictured=present[CLASSES_PICTURED:],
        largest=largest,
        strip_width=samples * (SAMPLE_PIXELS + SAMPLE_GAP) - SAMPLE_GAP,
        reasons=REASONS,
        conversions=CONVERSIONS,
        names_shown=NAMES_SHOWN,
    )


def class_strip(dataset: Dataset, label: int, samples: int) -> str:
    """Images of a class side by side, evenly spaced through its rows: a PNG as data URI."""
    rows = np.flatnonzero(dataset.labels == label)
    chosen = rows[np.linspace(0, len(rows) - 1, min(samples, len(rows))).astype(int)]
    step = SAMPLE_PIXELS + SAMPLE_GAP
    strip = Image.new("RGBA", (len(chosen) * step - SAMPLE_GAP, SAMPLE_PIXELS))
    for place, pixels in enumerate(dataset.read(chosen)):
        smooth = Image.Resampling.BILINEAR if dataset.image_size > SAMPLE_PIXELS else Image.Resampling.NEAREST
        strip.paste(Image.fromarray(pixels).resize((SAMPLE_PIXELS, SAMPLE_PIXELS), smooth), (place * step, 0))
    file = io.BytesIO()
    strip.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _of_reason(reason: str, quarantined: Sequence[Quarantined]) -> dict[str, Any]:
    images = [
        {"name": image.name, "class_name": image.class_name, "detail": image.detail}
        for image in quarantined
        if image.reason == reason
    ]
    return {"count": len(images), "what": REASONS[reason], "images": images}

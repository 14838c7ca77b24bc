"""The report page: one HTML file, no scripts, no links: what a model was trained on, and how well it finds."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from retrieval.charts import histogram, map_chart, missing_parts_chart, percent, stage_chart, threshold_chart
from retrieval.dataset import SPLITS, Dataset
from retrieval.evaluation import ClassRecall, Confusion, Evaluation, MissingParts
from retrieval.feature_map import FeatureMap
from retrieval.manifest import Manifest
from retrieval.splits import UNMEASURABLE
from retrieval.thresholds import MINIMUM_ANSWERED

TEMPLATE = "report.html"
NEIGHBOURS_SHOWN = 5
THUMBNAIL_PIXELS = 96  # larger pictures are shrunk to this
LOSSLESS_PIXELS = 48  # up to this size a PNG is small enough
CLASSES_OPEN, CLASSES_LISTED = 40, 1000
PAIRS_SHOWN = 12
LONGEST_TEXT, LONGEST_LIST, MOST_FACTS = 400, 8, 60
OF_FEATURES = ("pretrain", "co_cluster")  # stages whose vectors are features that a model can be joined with
WHY = "_why"  # ending of the fact that gives the reason of another one


@dataclass(frozen=True)
class Picture:
    """One image in the gallery: its pixels as a data URI, and what is said under it."""

    uri: str
    class_name: str
    source: str
    similarity: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Mixed:
    """A class that is often taken for others, with pictures of the first such query of each and of what it found."""

    confusion: Confusion
    picture: Picture
    taken_for: tuple[tuple[Picture, int], ...]


@dataclass(frozen=True)
class Swapped:
    """Two classes taken for one another: an image of each that was, and how many queries of each were."""

    pictures: tuple[Picture, Picture]
    queries: tuple[int, int]


@dataclass(frozen=True)
class Answer:
    """One query of the gallery and the images found for it, most similar first."""

    query: Picture
    found: tuple[Picture, ...]
    right: bool


def render_report(
    evaluation: Evaluation,
    queries: pa.Table,
    dataset: Dataset,
    artifacts: Mapping[str, Manifest],
    gallery_queries: int = 24,
    places: FeatureMap | None = None,
    cluster_pictures: Sequence[Path] = (),
) -> str:
    """The page as text. Names of classes and files come from strangers: every one of them is escaped.

    Args:
        evaluation: the numbers.
        queries: table of evaluation.QUERY_SCHEMA.
        dataset: where the pictures and the counts come from.
        artifacts: manifest of each artifact that led to the model, by name; their facts and digests are shown.
        gallery_queries: how many queries to show with their neighbours.
        places: where the test images lie by features and by embeddings; no map is drawn without it.
        cluster_pictures: files of the block-ordered matrix and of the sheets of images, as clusters.pictures_of finds
            them; the page holds the matrix and the first sheet, and names the others.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "asked": asked_for}
    failures, successes = chosen_queries(queries, gallery_queries)
    recalls = listed_classes(evaluation.recall_by_class)
    page = environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        beside_stages=beside_stages(evaluation, artifacts["tuned_model"].facts) if "tuned_model" in artifacts else None,
        unmeasurable=UNMEASURABLE,
        splits=split_counts(dataset),
        settings=list(readable(dataset.report().get("settings", {"image size": dataset.image_size}))),
        choices=[choice for name, manifest in artifacts.items() for choice in choices_in(name, manifest.facts)],
        artifacts={name: (manifest, list(readable(plain(manifest.facts)))) for name, manifest in artifacts.items()},
        quarantine=quarantine(dataset.report()),
        # the charts are made of numbers and of names that they escape
        stage_chart=Markup(stage_chart(evaluation.stages)),
        minimum_answered=MINIMUM_ANSWERED,
        threshold_chart=Markup(threshold_chart(evaluation.threshold)),
        histogram=Markup(histogram([recall.recall_at_1 for recall in evaluation.recall_by_class])),
        missing_parts_chart=Markup(missing_parts_chart(evaluation.missing_parts)) if evaluation.missing_parts else "",
        shares_hidden=sorted({part.share for part in evaluation.missing_parts}),
        hidden_by_shape=hidden_by_shape(evaluation.missing_parts),
        maps=maps(places, dataset) if places else None,
        cluster_pictures=[uri_of_file(path) for path in cluster_pictures[:2]],
        cluster_sheets=[path.name for path in cluster_pictures[1:]],
        mixed=mixed(evaluation.confusion, queries, dataset),
        swapped=swapped(queries, dataset),
        failures=answers(failures, dataset),
        successes=answers(successes, dataset),
        wrong=int(np.sum(~queries["correct"].to_numpy(zero_copy_only=False))),
        classes_open=recalls[:CLASSES_OPEN],
        classes_more=recalls[CLASSES_OPEN:],
        classes_left_out=len(evaluation.recall_by_class) - len(recalls),
    )
    return page.strip() + "\n"


def asked_for(share: float) -> str:
    """A share that someone asked for, as they did: 0.975 is "97.5 %", where `percent` would round it."""
    return f"{100 * share:g} %"


def beside_stages(evaluation: Evaluation, facts: Mapping[str, Any]) -> str | None:
    """How the model compares with what it learned from, where that must be said: see the two functions below."""
    return without_labels(evaluation, facts) or stage_ahead(evaluation, facts)


def stage_ahead(evaluation: Evaluation, facts: Mapping[str, Any]) -> str | None:
    """Which earlier stage is clearly ahead of the model, in words, and what to do where its features are.

    Args:
        evaluation: whose last stage is the model.
        facts: of the model's manifest.
    """
    if (ahead := evaluation.ahead) is None:
        return None
    said = (
        f"What {ahead.name} made is clearly ahead of the model: {percent(ahead.recall_at_1)} against "
        f"{percent(evaluation.recall_at_1)}."
    )
    if ahead.name not in OF_FEATURES:
        return said
    joined = facts.get("joined", "none")
    if joined != "none":
        return f"{said} Already it carries the features of pretrain with join={joined:g}."
    return (
        f"{said} -p join=auto lets the model carry the features of pretrain where they raise R@1, at the speed of both "
        "networks."
    )


def without_labels(evaluation: Evaluation, facts: Mapping[str, Any]) -> str | None:
    """How a model trained without labels compares with the pretrained features, and what to do where it is behind.

    Args:
        evaluation: whose first stage is the features, and whose last is the model.
        facts: of the model's manifest.

    Returns:
        R@1 of both on the test images and the points between them, in words; None for a model trained with labels.
    """
    if facts.get("labels") != "none":
        return None
    own, features = evaluation.recall_at_1, evaluation.stages[0].recall_at_1
    points = 100 * abs(own - features)
    apart = f"{points:.1f} points" if points >= 0.05 else "less than 0.1 points"
    found = "as good" if own == features else f"{apart} {'ahead' if own > features else 'behind'}"
    said = (
        f"labels=none: R@1 on the test images is {percent(own)} by the model and {percent(features)} by the pretrained "
        f"features: the model is {found}."
    )
    if own >= features:
        return said
    joined = facts.get("joined", "none")
    if joined != "none":
        return f"{said} Already it carries the features with join={joined:g}; a greater share counts them more."
    return f"{said} -p join=0.5 lets it carry the features too, at the speed of both networks."


def chosen_queries(queries: pa.Table, count: int) -> tuple[pa.Table, pa.Table]:
    """The queries to show: the worst failures first, that is wrong and most similar, then right ones.

    Two thirds are failures where there are as many; the right ones are spread evenly from the surest to the least sure.
    """
    correct = queries["correct"].to_numpy(zero_copy_only=False)
    surest = np.argsort(-queries["similarity"].to_numpy(), kind="stable")
    wrong, right = surest[~correct[surest]], surest[correct[surest]]
    failures = min(len(wrong), max(round(count * 2 / 3), count - len(right)))
    successes = min(len(right), count - failures)
    spread = np.linspace(0, len(right) - 1, successes).round().astype(int) if successes else np.empty(0, int)
    return queries.take(wrong[:failures]), queries.take(right[spread])


def answers(queries: pa.Table, dataset: Dataset) -> list[Answer]:
    """Queries with the pictures of their nearest images, in the table's order."""
    found: list[Answer] = []
    for query in queries.to_pylist():
        similarities = query["neighbour_similarities"][:NEIGHBOURS_SHOWN]
        neighbours = [
            _picture(dataset, row, similarity, bool(dataset.labels[row] == query["label"]))
            for row, similarity in zip(query["neighbours"], similarities, strict=False)
        ]
        found.append(Answer(_picture(dataset, query["query"]), tuple(neighbours), query["correct"]))
    return found


def mixed(confusion: Iterable[Confusion], queries: pa.Table, dataset: Dataset) -> list[Mixed]:
    """The worst classes with pictures: of each class that they are taken for, the image that was found first."""
    wrong = [query for query in queries.to_pylist() if not query["correct"]]
    found = []
    for entry in confusion:
        own = [query for query in wrong if query["class_name"] == entry.class_name]
        taken_for = []
        for mistaken in entry.taken_for:
            shown = next(q for q in own if dataset.class_names[q["nearest_label"]] == mistaken.class_name)
            taken_for.append((_picture(dataset, shown["nearest"]), mistaken.queries))
        found.append(Mixed(entry, _picture(dataset, own[0]["query"]), tuple(taken_for)))
    return found


def swapped(queries: pa.Table, dataset: Dataset) -> list[Swapped]:
    """The pairs of classes most often taken for one another, each for the other at least once; the worst pair first."""
    wrong = queries.filter(pc.invert(queries["correct"])).select(["label", "nearest_label", "query"]).to_pylist()
    counts = Counter((query["label"], query["nearest_label"]) for query in wrong)
    shown = {(query["label"], query["nearest_label"]): query["query"] for query in reversed(wrong)}  # the first stays
    pairs = [(ways, ways[::-1]) for ways in counts if ways[0] < ways[1] and ways[::-1] in counts]
    pairs.sort(key=lambda both: (-counts[both[0]] - counts[both[1]], both))
    return [
        Swapped((_picture(dataset, shown[there]), _picture(dataset, shown[back])), (counts[there], counts[back]))
        for there, back in pairs[:PAIRS_SHOWN]
    ]


def hidden_by_shape(parts: Sequence[MissingParts]) -> dict[str, dict[float, float]]:
    """R@1 by the share hidden, for each shape; the whole image is the first share of each."""
    table: dict[str, dict[float, float]] = {}
    whole = next((part.recall_at_1 for part in parts if not part.share), None)
    for part in parts:
        if part.share and whole is not None:
            table.setdefault(part.shape, {0.0: whole})[part.share] = part.recall_at_1
    return table


def maps(places: FeatureMap, dataset: Dataset) -> dict[str, Any]:
    """Both maps as pictures, and the names of the classes that they colour."""
    drawn = {"features": places.features, "embeddings": places.embeddings}
    return {
        "names": [_shortened(dataset.class_names[label]) for label in places.highlighted],
        "images": len(places.labels),
        "classes": len(np.unique(places.labels)),
        **{
            name: Markup(map_chart(spots, places.labels, places.highlighted, f"Test images by their {name}"))
            for name, spots in drawn.items()
        },
    }


def listed_classes(recalls: tuple[ClassRecall, ...]) -> list[ClassRecall]:
    """The classes that the page lists, worst first: all, or the worst CLASSES_LISTED."""
    return sorted(recalls, key=lambda recall: (recall.recall_at_1, recall.class_name))[:CLASSES_LISTED]


def split_counts(dataset: Dataset) -> list[dict[str, Any]]:
    """Images and classes of each split, and the fewest and most images of a class in it."""
    counts = []
    for split in SPLITS:
        of_class = np.unique(dataset.labels[dataset.rows(split)], return_counts=True)[1]
        fewest, most = (int(of_class.min()), int(of_class.max())) if len(of_class) else (0, 0)
        counts.append(
            {"name": split, "images": int(of_class.sum()), "classes": len(of_class), "fewest": fewest, "most": most}
        )
    return counts


def choices_in(artifact: str, facts: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What a step decided by itself: every fact `x` that comes with a fact `x_why`, at any depth."""
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            yield from choices_in(artifact, fact)
        elif name.endswith(WHY):
            chosen = name.removesuffix(WHY)
            value = _text(facts[chosen]) if chosen in facts else ""
            yield {"artifact": artifact, "name": _spaced(chosen), "value": value, "why": _shortened(str(fact))}


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that no table of the page shows already: without reasons and without the names of the classes."""
    kept = {name: fact for name, fact in facts.items() if not name.endswith(WHY) and name != "class_names"}
    return {name: plain(fact) if isinstance(fact, Mapping) else fact for name, fact in kept.items()}


def quarantine(report: Mapping[str, Any]) -> dict[str, Any]:
    """What prepare_data counted and refused, from its report: numbers, and for each reason a few of the names."""
    reasons = [
        {
            "name": _spaced(reason),
            "what": entry["what"],
            "count": entry["count"],
            "images": [_shortened(image["name"]) for image in entry["images"][:LONGEST_LIST]],
        }
        for reason, entry in report.get("quarantined", {}).items()
    ]
    counts = {name: report[name] for name in ("listed", "read", "kept") if name in report}
    return {"counts": counts, "reasons": reasons, "ignored": report.get("ignored", {}).get("count", 0)}


def readable(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts as rows of name and text, nested names joined; long texts, lists and tables are cut and say so."""
    rows = list(_rows(facts, ()))
    yield from rows[:MOST_FACTS]
    if len(rows) > MOST_FACTS:
        yield "…", f"and {len(rows) - MOST_FACTS:,} more"


def _rows(facts: Mapping[str, Any], above: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    for name, fact in facts.items():
        path = (*above, _spaced(_shortened(str(name))))
        if isinstance(fact, Mapping):
            yield from _rows(fact, path)
        elif fact is not None and fact != []:
            yield " · ".join(path), _text(fact)


def _text(fact: Any) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, int):
        return f"{fact:,}"
    if isinstance(fact, float):
        return f"{fact:.4g}"
    if isinstance(fact, list | tuple):
        shown = ", ".join(_item(item) for item in fact[:LONGEST_LIST])
        return shown + (f" … and {len(fact) - LONGEST_LIST:,} more" if len(fact) > LONGEST_LIST else "")
    return _shortened(str(fact))


def _item(item: Any) -> str:
    if isinstance(item, Mapping):
        return "; ".join(f"{name}: {_text(value)}" for name, value in list(item.items())[:LONGEST_LIST])
    return _text(item)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _picture(dataset: Dataset, row: int, similarity: float | None = None, right: bool | None = None) -> Picture:
    index = dataset.index
    return Picture(
        uri=data_uri(dataset.read(np.array([row]))[0]),
        class_name=_shortened(index["class_name"][row].as_py()),
        source=_shortened(index["source"][row].as_py() or ""),
        similarity=similarity,
        right=right,
    )


def uri_of_file(path: Path) -> str:
    """A picture file as a data URI; its ending says what it is: .png or .jpeg."""
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def data_uri(pixels: np.ndarray) -> str:
    """A picture (h, w, 3) uint8 as a data URI: small ones as PNG, larger ones shrunk and as JPEG."""
    image = Image.fromarray(pixels)
    lossless = max(image.size) <= LOSSLESS_PIXELS
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    kind, options = ("png", {"optimize": True}) if lossless else ("jpeg", {"quality": 85})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

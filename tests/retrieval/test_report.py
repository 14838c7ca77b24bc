import base64
import hashlib
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from retrieval.dataset import Dataset, save_dataset
from retrieval.evaluation import Evaluation
from retrieval.manifest import Manifest
from retrieval.measurement import Options, judge
from retrieval.report import chosen_queries, data_uri, readable, render_report

EVIL = "<script>alert('x')</script> & \"Söhne\""
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page is made of; fails where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def dataset_of(folder: Path, classes: int, per_class: int, name: str = "class", image_size: int = 8) -> Dataset:
    """Classes with a half to train on, a quarter to validate and a quarter to test."""
    count = classes * per_class
    labels = np.arange(count) % classes
    names = [f"{name} {label:03d}" for label in range(classes)]
    splits = [("train", "train", "validation", "test")[row // classes % 4] for row in range(count)]
    columns = {
        "id": np.arange(count),
        "label": labels,
        "class_name": [names[label] for label in labels],
        "split": splits,
        "source": [f"{names[label]}/{row}.png" for row, label in enumerate(labels)],
        "sha256": [hashlib.sha256(f"{row}".encode()).hexdigest() for row in range(count)],
        "width": [image_size] * count,
        "height": [image_size] * count,
    }
    images = np.random.default_rng(0).integers(0, 256, (count, image_size, image_size, 3), dtype=np.uint8)
    report = {
        "settings": {"source": "folder", "split": "closed", "image_size": image_size},
        "read": count + 12,
        "kept": count,
        "quarantined": {
            "corrupt": {"count": 12, "what": "the data are damaged", "images": [{"name": f"{name}/x.png"}] * 12}
        },
        "ignored": {"count": 3, "files": []},
    }
    return save_dataset(folder, [images], pa.table(columns), names, report)


def judged(data: Dataset, noise: float = 1.0) -> tuple[Evaluation, pa.Table]:
    labels = torch.tensor(data.labels)
    generator = torch.Generator().manual_seed(0)
    vectors = (
        torch.nn.functional.one_hot(labels).float()
        + noise * torch.randn(len(data), len(data.class_names), generator=generator) / len(data.class_names) ** 0.5
    )
    stages = {"pretrain": lambda rows: vectors[rows] ** 3, "finetune_softmax": lambda rows: vectors[rows]}
    return judge(stages, data, "a" * 64, Options(resamples=200))


def artifacts_of(data: Dataset) -> dict[str, Manifest]:
    facts = {
        "loss": "triplet",
        "loss_why": "loss triplet: the gap is wide.",
        "softmax": {"accuracy_after": 0.8125, "names": [EVIL] * 50},
    }
    return {"dataset": data.manifest, "tuned_model": Manifest("model", 1, "a" * 64, {}, {}, facts)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset_of(tmp_path_factory.mktemp("report") / "data", classes=6, per_class=24, name=EVIL)


@pytest.fixture(scope="module")
def evaluation(data: Dataset) -> tuple[Evaluation, pa.Table]:
    return judged(data)


@pytest.fixture(scope="module")
def html(data: Dataset, evaluation: tuple[Evaluation, pa.Table]) -> str:
    return render_report(*evaluation, data, artifacts_of(data), gallery_queries=9)


def test_the_page_says_what_it_must(html: str, evaluation: tuple[Evaluation, pa.Table]) -> None:
    numbers, page = evaluation[0], Page(html)
    for text in (
        f"{100 * numbers.recall_at_1:.1f} %",
        f"95 % interval {100 * numbers.recall_at_1_low:.1f} % to {100 * numbers.recall_at_1_high:.1f} %",
        f"{100 * numbers.map_at_r:.1f} %",
        numbers.protocol,
        "among test images",
        "to the training images",
        "finetune_softmax",
        "loss triplet: the gap is wide.",
        "softmax · accuracy after 0.8125",
        "156 read, 144 kept.",
        "3 files were no pictures",
        "the data are damaged",
        "… and 4 more",
        numbers.evaluation_digest,
        numbers.dataset_digest,
        numbers.model_digest,
        numbers.versions["torch"],
    ):
        assert text in page.text
    assert page.tags.count("svg") == 2
    ids = {value for name, value in page.attributes if name == "id"}
    assert ids >= {"headline", "stages", "gallery", "classes", "threshold", "dataset", "provenance"}


def test_names_from_strangers_stay_text(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags
    assert f"{EVIL} 003" in page.texts
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_needs_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in dict(page.attributes).values() or "default-src 'none'" in html
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert sources
    assert all(value.startswith("data:image/") for value in sources)
    assert "url(" not in html
    assert "@import" not in html


def test_right_and_wrong_are_told_by_more_than_colour(html: str, evaluation: tuple[Evaluation, pa.Table]) -> None:
    classes = [value for name, value in Page(html).attributes if name == "class"]
    right, wrong = classes.count("picture right"), classes.count("picture wrong")
    assert right + wrong == 9 * 5
    assert (html.count("✓"), html.count("✗")) == (right, wrong)
    assert evaluation[0].recall_at_1 < 1


def test_the_worst_failures_come_first() -> None:
    table = pa.table({"query": range(6), "similarity": [0.9, 0.2, 0.8, 0.7, 0.6, 0.5], "correct": [True, False] * 3})
    failures, successes = chosen_queries(table, 3)
    assert failures["query"].to_pylist() == [3, 5]
    assert successes["query"].to_pylist() == [0]
    failures, successes = chosen_queries(table, 60)
    assert failures["query"].to_pylist() == [3, 5, 1]
    assert successes["query"].to_pylist() == [0, 2, 4]
    assert [len(part) for part in chosen_queries(table, 0)] == [0, 0]


@pytest.mark.parametrize("classes", [2, 200])
def test_every_class_is_listed_and_the_page_stays_small(classes: int, tmp_path: Path) -> None:
    data = dataset_of(tmp_path / "data", classes, per_class=8, image_size=64)
    html = render_report(*judged(data, noise=0.1), data, artifacts_of(data), gallery_queries=24)
    page = Page(html)
    assert all(name in page.texts for name in data.class_names)
    assert len(html) < 2_000_000
    assert ("R@1 of a class" in page.text) == (classes == 200)


def test_a_model_without_failures_or_threshold_has_a_page_too(tmp_path: Path) -> None:
    data = dataset_of(tmp_path / "data", classes=3, per_class=8)
    html = render_report(*judged(data, noise=0.0), data, {"dataset": data.manifest}, gallery_queries=4)
    assert "No query is answered wrongly." in Page(html).text
    assert "no threshold is set" in Page(html).text  # too few validation queries to choose on


def test_the_same_evaluation_gives_the_same_page(
    html: str, data: Dataset, evaluation: tuple[Evaluation, pa.Table]
) -> None:
    assert html == render_report(*evaluation, data, artifacts_of(data), gallery_queries=9)


@pytest.mark.parametrize(("size", "kind"), [(8, "png"), (48, "png"), (49, "jpeg"), (400, "jpeg")])
def test_pictures_are_bounded(size: int, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    uri = data_uri(pixels)
    assert uri.startswith(f"data:image/{kind};base64,")
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert max(image.size) == min(size, 96)
    if kind == "png":
        assert np.array_equal(np.asarray(image), pixels)
    assert len(uri) < 20_000


def test_facts_of_any_size_are_cut_and_say_so() -> None:
    facts = {f"fact_{number}": {"list": list(range(100)), "text": "x" * 9_999, "none": None} for number in range(100)}
    rows = list(readable(facts))
    assert rows[0] == ("fact 0 · list", "0, 1, 2, 3, 4, 5, 6, 7 … and 92 more")
    assert rows[-1] == ("…", "and 140 more")
    assert max(len(text) for _, text in rows) <= 400

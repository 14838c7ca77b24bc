import base64
import hashlib
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from retrieval.charts import percent
from retrieval.dataset import Dataset, save_dataset
from retrieval.evaluation import Acceptance, Evaluation, FeatureLearning, FurtherDataset, Kept, MissingParts, Speed
from retrieval.feature_map import FeatureMap
from retrieval.manifest import Manifest
from retrieval.measurement import Options, judge
from retrieval.report import (
    PAIRS_SHOWN,
    asked_for,
    chosen_queries,
    data_uri,
    mixed,
    readable,
    render_report,
    stage_ahead,
    swapped,
    without_labels,
)

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
    return judge(stages, data, "a" * 64, Options(resamples=200))[:2]


def measured_in_full(evaluation: Evaluation) -> Evaluation:
    """With numbers for all that `judge` leaves to others."""
    return replace(
        evaluation,
        speeds=(Speed("pretrain", None, 310.4, 1234.5), Speed("finetune_softmax", 777.2, 4321.0, 987.0)),
        feature_learning=FeatureLearning(36, 9, 6, Kept(0.512, 0.4, 0.3), Kept(0.1, 0.05, 0.0), Kept(0.8, 0.8, 0.0)),
        missing_parts=(
            MissingParts("whole", 0.0, 36, 0.875),
            *(MissingParts("block", share, 36, 0.625 - share) for share in (0.1, 0.25, 0.5)),
            MissingParts("side", 0.5, 36, 0.375),
        ),
        further_datasets=(FurtherDataset(EVIL, 90, True, 3, 88, 0.61, 0.55, 0.66, 0.222, 64, 32, "f" * 64),),
    )


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
        f"R@1, {numbers.ties} ties decided wrongly {100 * numbers.pessimistic_recall_at_1:.1f} %",
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


@pytest.fixture(scope="module")
def full(data: Dataset, evaluation: tuple[Evaluation, pa.Table]) -> str:
    places = np.random.default_rng(0).random((36, 2))
    laid_out = FeatureMap(places, places[::-1], data.labels[data.rows("test")], (0, 2))
    return render_report(
        measured_in_full(evaluation[0]), evaluation[1], data, artifacts_of(data), gallery_queries=0, places=laid_out
    )


def test_what_was_measured_beyond_retrieval_is_shown(full: str) -> None:
    page = Page(full)
    ids = {value for name, value in page.attributes if name == "id"}
    assert ids >= {"feature-learning", "missing-parts", "further-datasets", "efficiency"}
    for text in (
        "linear CKA 0.100 0.512 0.800 64.0 %",
        "rank correlation of cosines 0.000 0.300 0.000 –",
        "2 of 6 classes are coloured",
        "hidden 0 % 10 % 25 % 50 %",
        "block 87.5 % 52.5 % 37.5 % 12.5 %",
        "61.0 % 55.0 % to 66.0 % 22.2 % 64 px, brought to 32 px; all images, it has none for test",
        "pretrain – 310 1,234",
        "A dash under training: the step trained nothing; under embedding: co_cluster left the features as they are.",
        "finetune_softmax 777 4,321 987",
    ):
        assert text in page.text
    assert page.tags.count("svg") == 5
    assert "script" not in page.tags
    assert EVIL in page.texts


def test_a_stage_that_is_clearly_ahead_of_the_model_is_named(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table], html: str
) -> None:
    behind = replace(evaluation[0], recall_at_1_high=0.0)
    page = Page(render_report(behind, evaluation[1], data, artifacts_of(data), gallery_queries=0))
    assert "is clearly ahead of the model" in page.text
    assert "-p join=auto" in page.text
    assert "clearly ahead" not in Page(html).text


@pytest.mark.parametrize(
    ("stage", "joined", "said"),
    [
        ("co_cluster", "none", "-p join=auto lets the model carry the features of pretrain where they raise R@1"),
        ("co_cluster", 0.25, "Already it carries the features of pretrain with join=0.25."),
        ("finetune_metric", "none", "What finetune_metric made is clearly ahead of the model: 70.0 % against 50.0 %."),
    ],
)
def test_to_join_the_features_is_advised_only_where_they_are_ahead_and_not_in_the_model(
    evaluation: tuple[Evaluation, pa.Table], stage: str, joined: object, said: str
) -> None:
    first, last = evaluation[0].stages
    stages = (replace(first, name=stage, recall_at_1=0.7, recall_at_1_low=0.65), replace(last, recall_at_1=0.5))
    measured = replace(evaluation[0], recall_at_1=0.5, recall_at_1_high=0.6, stages=stages)
    found = stage_ahead(measured, {"labels": "given", "joined": joined}) or ""
    assert found.startswith(f"What {stage} made is clearly ahead of the model")
    assert said in found
    assert ("join=auto" in found) == ("join=auto" in said)


@pytest.mark.parametrize(
    ("model", "features", "joined", "said"),
    [
        (
            0.412,
            0.444,
            "none",
            "41.2 % by the model and 44.4 % by the pretrained features: the model is 3.2 points behind",
        ),
        (0.412, 0.444, "none", "-p join=0.5"),
        (0.412, 0.444, 0.25, "Already it carries the features with join=0.25; a greater share counts them more"),
        (
            0.444,
            0.412,
            "none",
            "44.4 % by the model and 41.2 % by the pretrained features: the model is 3.2 points ahead.",
        ),
        (0.4, 0.4, "none", "the model is as good."),
        (0.4, 0.4003, "none", "the model is less than 0.1 points behind"),
    ],
)
def test_a_model_trained_without_labels_is_told_beside_the_pretrained_features(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table], model: float, features: float, joined: object, said: str
) -> None:
    first, last = evaluation[0].stages
    stages = (replace(first, recall_at_1=features), replace(last, recall_at_1=model))
    measured = replace(evaluation[0], recall_at_1=model, recall_at_1_high=0.0, stages=stages)
    facts = {"labels": "none", "joined": joined}
    artifacts = artifacts_of(data) | {"tuned_model": Manifest("model", 1, "a" * 64, {}, {}, facts)}
    page = Page(render_report(measured, evaluation[1], data, artifacts, gallery_queries=0)).text
    assert said in page
    assert ("-p join=0.5" in page) == (model < features and joined == "none")
    assert "join=auto" not in page, "finetune_softmax refuses it with labels=none"
    assert said in (without_labels(measured, facts) or "")


def test_of_a_model_trained_with_labels_nothing_is_told_of_training_without(
    evaluation: tuple[Evaluation, pa.Table], html: str
) -> None:
    assert without_labels(evaluation[0], {"labels": "given"}) is None
    assert without_labels(evaluation[0], {}) is None
    assert "labels=none" not in html


def test_the_co_clusters_are_shown_where_they_were_drawn(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table], html: str, tmp_path: Path
) -> None:
    pictures = [tmp_path / name for name in ("matrix.png", "sheet_01.jpeg", "sheet_02.jpeg")]
    for number, path in enumerate(pictures):
        path.write_bytes(bytes([number] * 30))
    page = Page(render_report(*evaluation, data, artifacts_of(data), gallery_queries=0, cluster_pictures=pictures))
    sources = [value for name, value in page.attributes if name == "src"]
    wanted = [
        f"data:image/{kind};base64,{base64.b64encode(bytes([number] * 30)).decode()}"
        for number, kind in enumerate(("png", "jpeg", "jpeg"))
    ]
    assert [uri in sources for uri in wanted] == [True, True, False], "the matrix and the first sheet"
    assert "the first of 2 sheets" in page.text
    assert "sheet_01.jpeg to sheet_02.jpeg" in page.text
    assert ("id", "clusters") in page.attributes
    assert ("id", "clusters") not in Page(html).attributes


def test_what_was_not_measured_has_no_section(html: str) -> None:
    ids = {value for name, value in Page(html).attributes if name == "id"}
    assert not ids & {"feature-learning", "missing-parts", "further-datasets"}


def test_the_trials_of_the_threshold_and_the_verdict_are_shown(
    full: str, evaluation: tuple[Evaluation, pa.Table]
) -> None:
    threshold, page = evaluation[0].threshold, Page(full)
    assert threshold.trials is not None
    assert "of 200 trials" in page.text or "median of 200 trials" in page.text
    assert f"90 % on test {threshold.verdict}" in page.text
    assert f"trials that reach the level {percent(threshold.trials.reached)}" in page.text


def test_the_level_is_shown_as_it_was_asked_for(data: Dataset, evaluation: tuple[Evaluation, pa.Table]) -> None:
    numbers, queries = evaluation
    asked = replace(numbers, threshold=replace(numbers.threshold, value=0.5, level=0.975))
    page = Page(render_report(asked, queries, data, artifacts_of(data), gallery_queries=0)).text
    assert "from which at least 97.5 % of the answers are right" in page
    assert "asked for: 97.5 %" in page
    assert f"97.5 % on test {numbers.threshold.verdict}" in page
    assert [asked_for(share) for share in (0.9, 0.57, 0.999, 1)] == ["90 %", "57 %", "99.9 %", "100 %"]


def test_validation_images_of_one_class_are_not_called_missing(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table]
) -> None:
    numbers, queries = evaluation
    unmeasured = replace(numbers, threshold=Acceptance(0.9, False, None, 0, None, 0.0, None, 0.0))
    page = Page(render_report(unmeasured, queries, data, artifacts_of(data), gallery_queries=0)).text
    assert "nothing to choose a similarity on, for the validation images have no two classes" in page


@pytest.mark.parametrize("distractors", [0, 2_059])
def test_what_the_validation_queries_were_searched_among_is_told(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table], distractors: int
) -> None:
    numbers, queries = evaluation
    reached = replace(numbers.threshold, value=0.5, distractors=distractors)
    html = render_report(replace(numbers, threshold=reached), queries, data, artifacts_of(data), gallery_queries=0)
    assert ("searched among 2,059 training images too" in Page(html).text) == bool(distractors)


def test_mistaken_classes_come_with_a_picture_of_the_first(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table]
) -> None:
    numbers, queries = evaluation
    found = mixed(numbers.confusion, queries, data)
    assert [entry.confusion for entry in found] == list(numbers.confusion)
    assert found
    wrong = [query for query in queries.to_pylist() if not query["correct"]]
    for entry in found:
        own = [query for query in wrong if query["class_name"] == entry.confusion.class_name]
        assert entry.picture.uri == data_uri(data.read(np.array([own[0]["query"]]))[0])
        for (picture, count), mistaken in zip(entry.taken_for, entry.confusion.taken_for, strict=True):
            assert (picture.class_name, count) == (mistaken.class_name, mistaken.queries)


def test_of_classes_taken_for_one_another_the_worst_pair_comes_first(data: Dataset) -> None:
    answers = [(0, 1), (1, 0), (1, 0), (2, 3), (3, 2), (2, 4), (0, 2), (0, 0)]  # label, label that was found
    rows = [[int(row) for row in np.flatnonzero(data.labels == label)] for label in range(5)]
    table = pa.table(
        {
            "query": [rows[label][number % len(rows[label])] for number, (label, _) in enumerate(answers)],
            "label": [label for label, _ in answers],
            "nearest_label": [found for _, found in answers],
            "correct": [label == found for label, found in answers],
        }
    )
    found = swapped(table, data)
    assert [pair.queries for pair in found] == [(1, 2), (1, 1)]
    assert [[picture.class_name for picture in pair.pictures] for pair in found] == [
        [data.class_names[0], data.class_names[1]],
        [data.class_names[2], data.class_names[3]],
    ]
    first = data_uri(data.read(np.array([table["query"][1].as_py()]))[0])
    assert found[0].pictures[1].uri == first, "the first image of class 1 that was taken for class 0"


def test_the_report_says_how_many_errors_are_of_classes_taken_for_one_another(
    data: Dataset, evaluation: tuple[Evaluation, pa.Table], html: str
) -> None:
    queries = evaluation[1]
    pairs = swapped(queries, data)
    assert 0 < len(pairs) <= PAIRS_SHOWN
    wrong = len(queries) - sum(queries["correct"].to_pylist())
    held = sum(sum(pair.queries) for pair in pairs)
    assert f"{held:,} of the {wrong:,} wrong queries" in Page(html).text


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
    assert "6 validation queries are too few to choose a similarity on, 30 are the least" in Page(html).text


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

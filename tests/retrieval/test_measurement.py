from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from retrieval.confidence import verdict, wilson_lower_bound
from retrieval.dataset import Dataset, save_dataset
from retrieval.evaluation import evaluation_digest
from retrieval.measurement import Options, judge, measure_stage, protocol, shares_classes, trade
from retrieval.metrics import nearest_mean_accuracy

OPTIONS = Options(acceptance=0.9, resamples=200)


def dataset_of(folder: Path, splits: list[str], labels: np.ndarray, image_size: int = 4) -> Dataset:
    count = len(labels)
    names = [f"class {label}" for label in range(labels.max() + 1)]
    columns = {
        "id": np.arange(count),
        "label": labels,
        "class_name": [names[label] for label in labels],
        "split": splits,
        "source": [f"{row}.png" for row in range(count)],
        "sha256": [f"{row:064d}" for row in range(count)],
        "width": [9] * count,
        "height": [9] * count,
    }
    images = np.zeros((count, image_size, image_size, 3), np.uint8)
    return save_dataset(folder, [images], pa.table(columns), names, {})


@pytest.fixture
def closed(tmp_path: Path) -> Dataset:
    """Five classes, 200 images: of four, two train, one validates, one tests; class 4 has one test image."""
    labels = np.where(np.arange(200) < 4, 4, np.arange(200) // 4 % 4)
    return dataset_of(tmp_path / "closed", ["train", "validation", "test", "train"] * 50, labels)


@pytest.fixture
def vectors() -> Tensor:
    """Near their class, some of them far from it."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.where(torch.arange(200) < 4, 4, torch.arange(200) // 4 % 4)
    return torch.nn.functional.one_hot(labels, 6) * 2.3 + torch.randn(200, 6, generator=generator)


def by_hand(vectors: Tensor, labels: np.ndarray) -> tuple[dict[int, int], float]:
    """The nearest other image of each query that has another of its class, and R@1, in plain loops over float64."""
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    found = {}
    for query in range(len(unit)):
        if sum(labels == labels[query]) < 2:
            continue
        others = [(float(unit[query] @ unit[row]), -row) for row in range(len(unit)) if row != query]
        found[query] = -max(others)[1]
    return found, float(np.mean([labels[query] == labels[row] for query, row in found.items()]))


def test_the_numbers_are_those_of_plain_loops(closed: Dataset, vectors: Tensor) -> None:
    evaluation, queries, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    rows = closed.rows("test")
    found, recall = by_hand(vectors[rows], closed.labels[rows])
    assert evaluation.recall_at_1 == pytest.approx(recall, abs=1e-12)
    assert evaluation.stages[-1].recall_at_1 == evaluation.recall_at_1
    assert dict(zip(queries["query"].to_pylist(), queries["nearest"].to_pylist(), strict=True)) == {
        int(rows[query]): int(rows[row]) for query, row in found.items()
    }
    assert (evaluation.queries, evaluation.queries_without_positive, evaluation.classes) == (49, 1, 4)
    assert evaluation.recall_at_1_low <= evaluation.recall_at_1 <= evaluation.recall_at_1_high
    unit = torch.nn.functional.normalize(vectors)
    train = closed.rows("train")
    nearest = train[(unit[rows] @ unit[train].T).argmax(1)]
    to_train = np.mean(closed.labels[nearest] == closed.labels[rows])
    assert evaluation.stages[-1].recall_at_1_to_train == pytest.approx(to_train)


def test_a_row_a_query_and_none_finds_itself(closed: Dataset, vectors: Tensor) -> None:
    vectors[6] = vectors[10]  # the same vector twice among the test images: the index excludes, not the similarity
    _, queries, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    test = set(closed.rows("test").tolist())
    for query in queries.to_pylist():
        assert query["query"] in test
        assert set(query["neighbours"]) <= test - {query["query"]}
        assert len(set(query["neighbours"])) == 8
        assert query["neighbours"][0] == query["nearest"]
        assert query["neighbour_similarities"][0] == pytest.approx(query["similarity"], abs=1e-6)
        assert query["correct"] == (query["nearest_label"] == query["label"])
    twins = [query for query in queries.to_pylist() if query["query"] in (6, 10)]
    assert {query["nearest"] for query in twins} == {6, 10}


def test_recall_by_class_adds_up(closed: Dataset, vectors: Tensor) -> None:
    evaluation, _, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    recalls = evaluation.recall_by_class
    assert sum(recall.queries for recall in recalls) == evaluation.queries
    assert sum(recall.queries * recall.recall_at_1 for recall in recalls) == pytest.approx(
        evaluation.queries * evaluation.recall_at_1
    )
    assert np.mean([recall.recall_at_1 for recall in recalls]) == pytest.approx(evaluation.macro_recall_at_1)
    assert [recall.recall_at_1 for recall in recalls] == sorted(recall.recall_at_1 for recall in recalls)


def test_the_threshold_comes_from_validation_alone(closed: Dataset, vectors: Tensor) -> None:
    first, _, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    assert first.threshold.value is not None
    changed = vectors.clone()
    changed[closed.rows("test")] = torch.randn(50, 6, generator=torch.Generator().manual_seed(7))
    second, _, _ = judge({"model": lambda rows: changed[rows]}, closed, "m" * 64, OPTIONS)
    assert second.threshold.value == first.threshold.value
    assert second.threshold.validation_curve == first.threshold.validation_curve
    assert second.threshold.precision != first.threshold.precision
    changed = vectors.clone()
    changed[closed.rows("validation")] *= torch.tensor([1.0, 1, 1, 1, 9, 9])
    assert judge({"model": lambda rows: changed[rows]}, closed, "m" * 64, OPTIONS)[0].threshold != first.threshold


def test_the_threshold_on_test_is_what_its_rows_say(closed: Dataset, vectors: Tensor) -> None:
    evaluation, queries, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    threshold = evaluation.threshold
    similarity, correct = queries["similarity"].to_numpy(), queries["correct"].to_numpy(zero_copy_only=False)
    accepted = similarity >= threshold.value
    assert threshold.coverage == pytest.approx(accepted.mean())
    assert threshold.precision == pytest.approx(correct[accepted].mean())
    assert threshold.validation_precision is not None
    assert threshold.validation_precision >= 0.9


@pytest.mark.parametrize("validation", [[], [0, 8, 16]])  # none, and three images of one class
def test_without_validation_images_that_measure_no_threshold_is_chosen(
    tmp_path: Path, validation: list[int], vectors: Tensor
) -> None:
    splits = np.array(["train", "test"] * 20, dtype="<U10")
    splits[validation] = "validation"
    data = dataset_of(tmp_path / "data", splits.tolist(), np.arange(40) // 2 % 4)
    evaluation, _, _ = judge({"model": lambda rows: vectors[rows]}, data, "m" * 64, OPTIONS)
    assert (evaluation.threshold.reached, evaluation.threshold.value) == (False, None)
    assert evaluation.threshold.validation_queries == 0


def test_classes_never_trained_on_have_no_training_gallery(tmp_path: Path, vectors: Tensor) -> None:
    labels = np.arange(40) // 10
    data = dataset_of(tmp_path / "data", ["train"] * 10 + ["validation"] * 10 + ["test"] * 20, labels)
    asked: list[np.ndarray] = []

    def embed(rows: np.ndarray) -> Tensor:
        asked.append(rows)
        return vectors[rows]

    stage, _, _ = measure_stage("model", embed, data, OPTIONS)
    assert not shares_classes(data)
    assert stage.recall_at_1_to_train is None
    assert "disjoint" in protocol(data)
    assert [rows.tolist() for rows in asked] == [data.rows("test").tolist()]


@pytest.mark.parametrize("alike", [False, True])
def test_the_threshold_of_unseen_classes_is_sought_among_as_many_as_are_tested(tmp_path: Path, alike: bool) -> None:
    labels = np.arange(200) // 20
    splits = ["train"] * 100 + ["validation"] * 40 + ["test"] * 60
    data = dataset_of(tmp_path / "data", splits, labels)
    places = np.where(labels == 5, 0, labels) if alike else labels  # class 5 validates and lies where class 0 lies
    noise = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.one_hot(torch.from_numpy(places), 10) + 0.05 * noise
    found = judge({"model": lambda rows: vectors[rows]}, data, "m" * 64, OPTIONS)[0].threshold
    assert found.distractors == 20, "a class of the training images beside two, as three are tested"
    assert found.validation_queries == 40
    similarity = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T
    similarity.fill_diagonal_(-1)
    gallery = np.r_[100:140, 0:20]
    nearest = gallery[similarity[100:140][:, gallery].argmax(1)]
    right = float(np.mean(labels[nearest] == labels[100:140]))
    assert found.validation_curve[0].precision == pytest.approx(right)
    assert (right < 0.9) == alike


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 0, 1, 1]])
def test_test_images_of_one_class_or_without_a_pair_are_refused(
    tmp_path: Path, labels: list[int], vectors: Tensor
) -> None:
    data = dataset_of(tmp_path / "data", ["train", "train", "test", "test"], np.array(labels))
    with pytest.raises(ValueError, match="The 2 test images have no two classes, or no two images of one"):
        measure_stage("model", lambda rows: vectors[rows], data, OPTIONS)


def test_the_digest_is_of_the_task_not_of_the_model_or_the_size(
    closed: Dataset, tmp_path: Path, vectors: Tensor
) -> None:
    first, _, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    larger = dataset_of(tmp_path / "larger", closed.index["split"].to_pylist(), closed.labels, image_size=8)
    second, _, _ = judge({"model": lambda rows: -vectors[rows][:, :3]}, larger, "n" * 64, OPTIONS)
    assert first.evaluation_digest == second.evaluation_digest
    assert first.dataset_digest != second.dataset_digest
    rows = closed.rows("test")
    images = [(f"{row:064d}", f"class {closed.labels[row]}") for row in rows]
    assert first.evaluation_digest == evaluation_digest(protocol(closed), images[::-1])


def test_the_same_seed_gives_the_same_evaluation(closed: Dataset, vectors: Tensor) -> None:
    first, second = (judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS) for _ in range(2))
    assert replace(first.evaluation, speeds=()) == replace(second.evaluation, speeds=())
    assert first.queries.equals(second.queries)


def test_the_trade_is_that_of_counting() -> None:
    generator = np.random.default_rng(0)
    similarity = generator.integers(0, 20, 60) / 20
    correct = generator.random(60) < similarity
    points = trade(similarity, correct, points=40)
    for point in points:
        accepted = similarity >= point.similarity - 1e-12
        assert point.coverage == pytest.approx(accepted.mean())
        assert point.precision == pytest.approx(correct[accepted].mean())
    assert points[0].coverage == 1
    assert [point.similarity for point in points] == sorted({point.similarity for point in points})


def test_the_worst_classes_say_what_they_are_taken_for(closed: Dataset, vectors: Tensor) -> None:
    evaluation, queries, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    rows = queries.to_pylist()
    assert [confused.class_name for confused in evaluation.confusion] == [
        recall.class_name for recall in evaluation.recall_by_class if recall.recall_at_1 < 1
    ]
    for confused in evaluation.confusion:
        own = [row for row in rows if row["class_name"] == confused.class_name]
        wrong = [closed.class_names[row["nearest_label"]] for row in own if not row["correct"]]
        assert (confused.queries, confused.wrong) == (len(own), len(wrong))
        assert [mistaken.queries for mistaken in confused.taken_for] == sorted(
            (wrong.count(name) for name in set(wrong)), reverse=True
        )[:3]
        assert all(wrong.count(mistaken.class_name) == mistaken.queries for mistaken in confused.taken_for)


def test_accuracy_is_of_the_class_means_where_classes_were_trained_on(closed: Dataset, vectors: Tensor) -> None:
    stage, _, _ = measure_stage("model", lambda rows: vectors[rows], closed, OPTIONS)
    test, train = closed.rows("test"), closed.rows("train")
    expected = nearest_mean_accuracy(vectors[test], closed.labels[test], vectors[train], closed.labels[train])
    assert stage.accuracy == expected
    assert expected is not None


def test_the_threshold_is_the_median_of_its_trials_and_has_a_verdict(closed: Dataset, vectors: Tensor) -> None:
    evaluation, queries, _ = judge({"model": lambda rows: vectors[rows]}, closed, "m" * 64, OPTIONS)
    threshold = evaluation.threshold
    assert threshold.trials is not None
    assert (threshold.value, threshold.trials.count) == (threshold.trials.value, 200)
    accepted = queries["similarity"].to_numpy() >= threshold.value
    right = int((queries["correct"].to_numpy(zero_copy_only=False) & accepted).sum())
    assert threshold.precision_low == wilson_lower_bound(right, int(accepted.sum()))
    assert threshold.verdict == verdict(right, int(accepted.sum()), 0.9)


def test_the_search_of_every_stage_is_timed(closed: Dataset, vectors: Tensor) -> None:
    stages = {"first": lambda rows: vectors[rows], "second": lambda rows: vectors[rows]}
    speeds = judge(stages, closed, "m" * 64, OPTIONS).evaluation.speeds
    assert [speed.stage for speed in speeds] == ["first", "second"]
    assert all(speed.search_queries_per_second > 0 for speed in speeds)
    assert {speed.embedding_images_per_second for speed in speeds} == {None}

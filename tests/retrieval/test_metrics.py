"""Every measure against plain loops and pytorch-metric-learning; and the slips that peers make."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.metrics import nearest_mean_accuracy, recall_at_1, retrieval_metrics
from retrieval.neighbours import TIE, ranked

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator


def by_loop(embeddings, labels, gallery=None, gallery_labels=None):
    """All measures, one query after another."""
    alone = gallery is None
    gallery, gallery_labels = (embeddings, labels) if alone else (gallery, gallery_labels)
    available = len(gallery) - alone
    sums: dict[str, list[float]] = {}
    by_class: dict[int, list[bool]] = {}
    left_out = ties = 0
    for row, label in enumerate(labels.tolist()):
        positives = sum(other == label for i, other in enumerate(gallery_labels.tolist()) if not (alone and i == row))
        if positives == 0:
            left_out += 1
            continue
        exclude = torch.tensor([row]) if alone else None
        similarity, order = ranked(embeddings[row : row + 1], gallery, available, exclude)
        right = [int(gallery_labels[i]) == label for i in order[0]]
        precisions = [sum(right[: i + 1]) / (i + 1) for i in range(positives) if right[i]]
        tied = [bool(s >= similarity.max() - TIE) for s in similarity[0]]
        ties += sum(tied) > 1
        by_class.setdefault(label, []).append(right[0])
        measures = {f"recall_at_{k}": any(right[:k]) for k in (1, 2, 4, 8)} | {
            "map_at_r": sum(precisions) / positives,
            "r_precision": sum(right[:positives]) / positives,
            "pessimistic_recall_at_1": all(r for r, t in zip(right, tied, strict=True) if t),
        }
        for name, value in measures.items():
            sums.setdefault(name, []).append(float(value))
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    macro = [sum(values) / len(values) for values in by_class.values()]
    return means | {
        "macro_recall_at_1": sum(macro) / len(macro),
        "ties": ties,
        "queries": len(labels) - left_out,
        "queries_without_positive": left_out,
    }


def batch(rows, classes, seed, whole=False):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, 3, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[-2:] = 0  # one positive pair at least
    return embeddings.round() if whole else embeddings, labels


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_measures_among_themselves_agree_with_the_loop(rows, classes, whole, seed):
    embeddings, labels = batch(rows, classes, seed, whole)
    found = retrieval_metrics(embeddings, labels)
    assert found.numbers() == pytest.approx(by_loop(embeddings, labels))
    assert recall_at_1(embeddings, labels) == pytest.approx(found.recall_at_1)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(2, 30), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_measures_against_a_gallery_agree_with_the_loop(rows, others, classes, whole, seed):
    given = *batch(rows, classes, seed, whole), *batch(others, classes, seed + 100, whole)
    found = retrieval_metrics(*given)
    assert found.numbers() == pytest.approx(by_loop(*given))
    assert recall_at_1(*given) == pytest.approx(found.recall_at_1)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(0, 20), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_measures_among_distractors_agree_with_the_loop(rows, others, classes, whole, seed):
    embeddings, labels = batch(rows, classes, seed, whole)
    distractors = batch(others + 2, classes, seed + 100, whole)[0][:others]
    of_no_query = torch.arange(100, 100 + others)  # each a class of its own: asks nothing
    expected = by_loop(torch.cat([embeddings, distractors]), torch.cat([labels, of_no_query]))
    expected["queries_without_positive"] -= others
    found = retrieval_metrics(embeddings, labels, distractors=distractors)
    assert found.numbers() == pytest.approx(expected)
    assert recall_at_1(embeddings, labels, distractors=distractors) == pytest.approx(found.recall_at_1)


def test_distractors_of_a_gallery_are_refused():
    embeddings, labels = batch(6, 2, seed=0)
    with pytest.raises(ValueError, match="lay the distractors into the gallery"):
        recall_at_1(embeddings, labels, embeddings, labels, distractors=embeddings)


@pytest.mark.parametrize("with_gallery", [False, True])
def test_measures_agree_with_pytorch_metric_learning(with_gallery):
    embeddings, labels = batch(200, 8, seed=1)
    gallery, gallery_labels = batch(150, 8, seed=2) if with_gallery else (None, None)
    unit = torch.nn.functional.normalize
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"), k="max_bin_count"
    )
    expected = calculator.get_accuracy(
        unit(embeddings), labels, gallery if gallery is None else unit(gallery), gallery_labels
    )
    found = retrieval_metrics(embeddings, labels, gallery, gallery_labels)
    assert found.recall_at_1 == pytest.approx(expected["precision_at_1"])
    assert found.map_at_r == pytest.approx(expected["mean_average_precision_at_r"])
    assert found.r_precision == pytest.approx(expected["r_precision"])


def test_query_blocks_do_not_change_the_measures(monkeypatch):
    embeddings, labels = batch(60, 5, seed=4)
    whole = retrieval_metrics(embeddings, labels)
    monkeypatch.setattr("retrieval.metrics.HITS_AT_ONCE", 100)
    assert retrieval_metrics(embeddings, labels).numbers() == pytest.approx(whole.numbers())


def test_labels_beyond_what_float32_can_tell_apart_stay_apart():
    labels = torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1])
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert retrieval_metrics(embeddings, labels).recall_at_1 == 0
    with pytest.raises(ValueError, match=r"float32; give integers"):
        retrieval_metrics(embeddings, labels.float())


def test_a_query_without_another_image_of_its_class_is_left_out_and_counted():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    found = retrieval_metrics(embeddings, np.array([5, 5, 7], np.int32))
    assert (found.recall_at_1, found.queries, found.queries_without_positive) == (1, 2, 1)
    assert found.query_rows.tolist() == [0, 1]
    assert found.nearest.tolist() == [1, 0]
    with pytest.raises(ValueError, match="None of 3 queries"):
        retrieval_metrics(embeddings, torch.arange(3))
    with pytest.raises(ValueError, match="None of 3 queries"):
        recall_at_1(embeddings, torch.arange(3))


def test_duplicates_of_two_classes_count_as_ties_and_as_wrong_when_pessimistic():
    embeddings, labels = torch.ones(40, 4), torch.arange(40) % 2
    found = retrieval_metrics(embeddings, labels)
    assert found.ties == 40
    assert found.pessimistic_recall_at_1 == 0
    assert found.recall_at_1 == pytest.approx(19 / 40)  # the lowest other index: 0, for row 0 it is 1


def test_bfloat16_scores_would_give_other_neighbours_and_ours_do_not():
    embeddings, labels = torch.randn(500, 32, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 50
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = retrieval_metrics(embeddings, labels).nearest
    unit = torch.nn.functional.normalize(embeddings.double())
    exact = (unit @ unit.T).fill_diagonal_(-2).argmax(1).numpy()
    low = unit.bfloat16().float()
    rounded = (low @ low.T).bfloat16().fill_diagonal_(-2).argmax(1).numpy()
    assert (found == exact).all()
    assert (rounded != exact).any()


def test_bad_input_is_refused():
    embeddings, labels = batch(5, 2, seed=0)
    with pytest.raises(ValueError, match="one label a row"):
        retrieval_metrics(embeddings, labels[:4])
    with pytest.raises(ValueError, match="both or neither"):
        retrieval_metrics(embeddings, labels, gallery_labels=labels)
    with pytest.raises(ValueError, match="empty"):
        retrieval_metrics(embeddings, labels, embeddings[:0], labels[:0])


def test_the_nearest_mean_is_that_of_loops_over_the_classes_trained_on():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 4, generator=generator), torch.randn(40, 4, generator=generator)
    train_labels, labels = torch.arange(60) % 3 * 5, torch.arange(40) % 4 * 5  # class 15 was never trained on
    means = {}
    for label in (0, 5, 10):
        rows = [train[row].double() for row in range(60) if train_labels[row] == label]
        means[label] = sum(row / row.norm() for row in rows) / len(rows)
    right = []
    for row in range(40):
        if int(labels[row]) in means:
            cosines = {label: float(test[row].double() @ mean / mean.norm()) for label, mean in means.items()}
            right.append(max(cosines, key=cosines.get) == int(labels[row]))
    assert len(right) == 30
    assert nearest_mean_accuracy(test, labels, train, train_labels) == pytest.approx(sum(right) / 30)


def test_without_a_class_trained_on_there_is_no_accuracy():
    vectors = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert nearest_mean_accuracy(vectors, torch.arange(4), vectors, torch.arange(4) + 9) is None

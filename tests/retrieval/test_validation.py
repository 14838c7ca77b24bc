"""What validation images are searched among where something is chosen by them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from retrieval.candidates import Embedded, Judge
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.models import ModelConfig, build_network
from retrieval.validation import distractors, recall_of, rows_to_judge, searched_among, validation_recall_at_1


def dataset_of(folder: Path, split_of: dict[str, list[int]], images: int = 3) -> Dataset:
    """So many images of every class of each split, the classes taking turns."""
    pairs = [(label, split) for _ in range(images) for split, labels in split_of.items() for label in labels]
    labels, splits = map(list, zip(*pairs, strict=True))
    count, names = len(pairs), [str(label) for label in range(max(labels) + 1)]
    ids = np.arange(count).astype(str)
    values = [range(count), labels, [names[label] for label in labels], splits, ids, ["0"] * count, *[[8] * count] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3))
    return save_dataset(folder, [pixels], index, names, {})


class Lookup(torch.nn.Module):
    """Embeds an image, whose first pixel says its row, near the axis of its class; one class lies near another."""

    dimension = 8

    def __init__(self, data: Dataset, alike: tuple[int, int]) -> None:
        super().__init__()
        of_class = np.where(data.labels == alike[0], alike[1], data.labels)
        noise = torch.randn(len(data), 8, generator=torch.Generator().manual_seed(0))
        self.places = torch.eye(8)[torch.from_numpy(of_class)] + 0.05 * noise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.places[(images[:, 0, 0, 0] * 255).round().long()]


@pytest.mark.parametrize(
    ("train", "validation", "test", "expected"),
    [
        ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10], [0, 4]),  # two to have four, evenly spaced
        ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11], [0, 2, 4]),
        ([0, 1], [2, 3], [4, 5, 6, 7, 8], [0, 1]),  # there are no more
        ([0, 1, 2], [3, 4], [5, 6], []),  # as many are held out as are tested
        ([0, 1, 2], [3, 4, 5], [6, 7], []),
        ([0, 1, 2], [0, 1, 2], [0, 1, 2], []),
        ([0, 1, 2], [2, 3], [4, 5, 6, 7], []),  # partly of training classes: among themselves
        ([0, 1, 2], [], [3, 4, 5], []),
    ],
)
def test_unseen_classes_are_searched_among_as_many_as_are_tested(
    tmp_path: Path, train: list[int], validation: list[int], test: list[int], expected: list[int]
) -> None:
    data = dataset_of(tmp_path, {"train": train, "validation": validation, "test": test})
    rows = distractors(data)
    assert sorted(set(data.labels[rows].tolist())) == expected
    assert set(rows.tolist()) == {row for row in data.rows("train") if data.labels[row] in expected}, "all of a class"


def test_it_is_said_in_words(tmp_path: Path) -> None:
    unseen = dataset_of(tmp_path / "unseen", {"train": [0, 1, 2], "validation": [3, 4], "test": [5, 6, 7, 8]})
    assert searched_among(unseen) == "themselves and 6 training images of 2 other class(es); 4 are tested"
    closed = dataset_of(tmp_path / "closed", {"train": [0, 1], "validation": [0, 1], "test": [0, 1]})
    assert searched_among(closed) == searched_among(unseen, labelled=False) == "themselves"


def test_a_network_is_measured_among_the_distractors_but_not_without_labels(tmp_path: Path) -> None:
    data = dataset_of(tmp_path, {"train": [0, 1, 2], "validation": [3, 4], "test": [5, 6, 7]}, images=6)
    network = Lookup(data, alike=(3, 0))
    rows = rows_to_judge(data)
    assert rows.tolist() == [*data.rows("validation"), *distractors(data)]
    found = validation_recall_at_1(network, data, torch.device("cpu"))
    assert found == recall_of(network.places[rows], data) < 1
    assert validation_recall_at_1(network, data, torch.device("cpu"), labelled=False) == 1


@pytest.mark.parametrize("tested", [[5, 6], [5, 6, 7, 8]])
def test_a_model_that_takes_unseen_classes_for_known_ones_is_judged_so(tmp_path: Path, tested: list[int]) -> None:
    data = dataset_of(tmp_path, {"train": [0, 1, 2], "validation": [3, 4], "test": tested}, images=4)
    axes = normalize(torch.eye(4) + 0.01 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0)))
    places = {0: axes[0], 1: axes[1], 2: axes[2], 3: axes[0], 4: axes[3]}  # class 3 lies where 0 lies
    noise = torch.Generator().manual_seed(1)

    def embedded(split: str) -> torch.Tensor:
        rows = torch.stack([places[label] for label in data.labels[data.rows(split)].tolist()])
        return rows + 0.05 * torch.randn(rows.shape, generator=noise)

    judged = Embedded(embedded("train"), embedded("validation"))
    _, labels = np.unique(data.labels[data.rows("train")], return_inverse=True)
    network = build_network(ModelConfig(image_size=8, dimension=4, channels=(4, 4, 8)))
    judge = Judge(data, torch.from_numpy(labels), "none", torch.device("cpu"))
    found = judge.candidate("before", network, judged).recall_at_1
    if len(tested) == 2:
        assert found == 1, "among themselves they are told apart"
        return
    distracting = judged.train[np.isin(data.labels[data.rows("train")], [0, 2])]
    gallery = normalize(torch.cat([judged.held_out, distracting]).double())
    similarity = gallery[:8] @ gallery.T
    similarity.fill_diagonal_(-1)
    classes = np.concatenate([data.labels[data.rows("validation")], np.full(len(distracting), -1)])
    assert found == np.mean(classes[similarity.argmax(1).numpy()] == classes[:8])
    assert 0.5 <= found < 1, "some of class 3 find an image of class 0"

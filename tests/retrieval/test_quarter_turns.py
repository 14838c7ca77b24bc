"""Turned images: the right pixels at the right positions, resident or streamed, and classes of their own."""

import numpy as np
import pytest
import torch

from retrieval.dataset import Dataset
from retrieval.image_batches import ImageBatches
from retrieval.quarter_turns import TURNS, QuarterTurns, turned, turned_labels

CPU = torch.device("cpu")
ROWS = np.arange(40, 3, -3)


def test_each_image_is_turned_by_its_own_quarters() -> None:
    images = torch.randint(256, (5, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    turns = torch.tensor([3, 0, 1, 2, 1])
    for image, turn, found in zip(images, turns, turned(images, turns), strict=True):
        assert np.array_equal(found.numpy(), np.rot90(image.numpy(), int(turn), (1, 2)))


@pytest.mark.parametrize("memory_limit", [None, 0])
def test_batches_hold_what_get_gives(dataset: Dataset, memory_limit: int | None) -> None:
    upright = ImageBatches(dataset, ROWS, CPU, memory_limit)
    images = QuarterTurns(upright)
    assert len(images) == TURNS * len(ROWS)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).view(-1, 4)
    batches = list(images.batches([order[:5], order[5:]]))
    assert len(batches) == len(order)
    for positions, batch in zip(order, batches, strict=True):
        expected = [upright.get([int(at) % len(ROWS)])[0].rot90(int(at) // len(ROWS), (1, 2)) for at in positions]
        assert torch.equal(batch, torch.stack(expected))
        assert torch.equal(images.get(positions), batch)


def test_turns_of_a_class_are_classes_of_their_own(dataset: Dataset) -> None:
    labels = torch.from_numpy(dataset.labels[ROWS])
    found = turned_labels(labels).view(TURNS, -1)
    turns, uprights = np.arange(TURNS).repeat(len(labels)), np.tile(labels, TURNS)
    pairs = {(turn, upright): int(number) for turn, upright, number in zip(turns, uprights, found.ravel(), strict=True)}
    assert len(set(pairs.values())) == TURNS * len(labels.unique()) == len(pairs)
    assert torch.equal(found[0], labels)
    assert sorted(set(pairs.values())) == list(range(len(pairs)))

import threading

import numpy as np
import pytest
import torch

from retrieval.dataset import Dataset
from retrieval.image_batches import ImageBatches

CPU = torch.device("cpu")


ROWS = np.arange(49, 2, -2)  # not ascending, over several shards


@pytest.mark.parametrize("memory_limit", [None, 0])
def test_both_ways_give_the_dataset_s_bytes(dataset: Dataset, memory_limit: int | None) -> None:
    images = ImageBatches(dataset, ROWS, CPU, memory_limit)
    assert images.resident == (memory_limit is None)
    orders = [torch.randint(0, len(ROWS), (5, 6), generator=torch.Generator().manual_seed(e)) for e in range(3)]
    batches = list(images.batches(iter(orders)))
    wanted = [positions for order in orders for positions in order]
    assert len(batches) == len(wanted) == 15
    for batch, positions in zip(batches, wanted, strict=True):
        assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), dataset.read(ROWS[positions.numpy()]))
        assert torch.equal(batch, images.get(positions))
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_the_limit_decides(dataset: Dataset) -> None:
    size = len(ROWS) * 8 * 8 * 3
    assert ImageBatches(dataset, ROWS, CPU, size).resident
    streamed = ImageBatches(dataset, ROWS, CPU, size - 1)
    assert not streamed.resident
    assert "streamed from the memory map" in streamed.describe()


def test_batches_are_gathered_ahead_in_a_thread_and_no_further(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageBatches(dataset, ROWS, CPU, memory_limit=0, ahead=3)
    threads: list[str] = []
    read = dataset.read

    def noted(rows: np.ndarray) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return read(rows)

    monkeypatch.setattr(dataset, "read", noted)
    batches = images.batches([torch.zeros((20, 2), dtype=torch.int64)])
    next(batches)
    assert len(threads) <= 4
    assert threads[0].startswith("gather-images")
    list(batches)
    assert len(threads) == 20


def test_an_error_in_the_thread_reaches_the_loop(dataset: Dataset) -> None:
    images = ImageBatches(dataset, ROWS, CPU, memory_limit=0)
    with pytest.raises(IndexError):
        list(images.batches([torch.tensor([[0, 1], [2, 1000]])]))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gather-images")]

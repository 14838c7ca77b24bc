from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retrieval.sampling import balanced_order, batch_shape, shuffled_order


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4), st.integers(0, 5))
def test_shuffled_batches_are_equal_and_leave_few_images_out(
    count: int, batch: int, processes: int, epoch: int
) -> None:
    if min(count, batch) < processes:
        with pytest.raises(ValueError, match="each of"):
            shuffled_order(count, batch, 0, epoch, processes)
        return
    order = shuffled_order(count, batch, 0, epoch, processes)
    steps, size = order.shape
    assert size <= batch
    assert size % processes == 0
    assert len(order.unique()) == order.numel()
    assert 0 <= int(order.min()) <= int(order.max()) < count
    assert count - order.numel() < max(steps * processes, size)


def even_batches(count: int, batch: int, processes: int) -> tuple[int, int]:
    """Steps and size of batches that share the images out evenly."""
    most = min(batch, count) // processes * processes
    steps = -(-count // most)
    size = max(count // steps // processes, 1) * processes
    return min(steps, count // size), size


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 8))
def test_other_batches_than_even_ones_are_taken_only_where_these_leave_many_images_out(
    count: int, batch: int, processes: int
) -> None:
    assume(min(count, batch) >= processes)
    steps, size = shuffled_order(count, batch, 0, 0, processes).shape
    even_steps, even_size = even_batches(count, batch, processes)
    most = min(batch, count) // processes * processes
    seen = even_steps * even_size
    if 20 * (count - seen) <= count:
        assert (steps, size) == (even_steps, even_size)
        return
    assert size > processes or most == processes  # a batch of one image has no spread for batch norm
    assert steps * size >= seen
    larger = [other for other in range(size + 1, most + 1) if other % processes == 0]
    assert all(count % other > max(count % size, count // 20) for other in larger)


@pytest.mark.parametrize(
    ("count", "batch", "processes", "shape"),
    [
        (101, 2, 1, (50, 2)),
        (100, 3, 1, (33, 3)),
        (1001, 16, 8, (62, 16)),
        (3, 2, 1, (1, 2)),
        (9, 8, 1, (1, 8)),
        (260, 128, 8, (2, 128)),
        (103, 8, 1, (14, 7)),
    ],
)
def test_small_batches_leave_few_images_out(count: int, batch: int, processes: int, shape: tuple[int, int]) -> None:
    assert shuffled_order(count, batch, 0, 0, processes).shape == shape


def test_another_epoch_has_another_order_and_leaves_out_others() -> None:
    first, second = shuffled_order(100, 32, 0, 0), shuffled_order(100, 32, 0, 1)
    assert first.shape == (4, 25)
    assert not torch.equal(first, second)
    seen = set[int]()
    for epoch in range(40):
        seen |= set(shuffled_order(101, 32, 7, epoch).flatten().tolist())
    assert seen == set(range(101))


class_sizes = st.lists(st.integers(1, 40), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(class_sizes, st.integers(2, 6), st.integers(1, 5), st.integers(0, 3))
def test_balanced_batches(sizes: list[int], classes_per_batch: int, images_per_class: int, epoch: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)) * 3 - 1, sizes)))
    if len(sizes) < classes_per_batch:
        with pytest.raises(ValueError, match=f"classes_per_batch is {classes_per_batch} and there are {len(sizes)}"):
            balanced_order(labels, classes_per_batch, images_per_class, 0, epoch)
        return
    order = balanced_order(labels, classes_per_batch, images_per_class, 0, epoch)
    assert order.shape[1] == classes_per_batch * images_per_class
    assert order.shape == balanced_order(labels, classes_per_batch, images_per_class, 0, epoch + 1).shape
    drawn = labels[order].view(len(order), classes_per_batch, images_per_class)
    assert (drawn == drawn[:, :, :1]).all()  # a turn is of one class
    for batch, groups in zip(drawn[:, :, 0], order.view(-1, classes_per_batch, images_per_class), strict=True):
        assert len(batch.unique()) == classes_per_batch
        for label, group in zip(batch, groups, strict=True):
            available = int((labels == label).sum())
            times = Counter(group.tolist()).values()
            if available >= images_per_class:
                assert max(times) == 1
            else:
                assert max(times) <= -(-images_per_class // available) + 1
    for label in labels.unique():  # within a class, all images equally often but for one
        times = torch.bincount(order.flatten(), minlength=len(labels))[labels == label]
        assert int(times.max() - times.min()) <= 1


def test_every_image_is_seen_about_equally_often() -> None:
    labels = torch.from_numpy(np.repeat(np.arange(10), [40, 44, 48, 52, 56, 60, 64, 68, 72, 80]))
    times = sum(torch.bincount(balanced_order(labels, 4, 4, 0, e).flatten(), minlength=len(labels)) for e in range(10))
    assert 8 <= int(times.min()) <= int(times.max()) <= 12
    one = torch.bincount(balanced_order(labels, 4, 4, 0, 0).flatten(), minlength=len(labels))
    assert int(one.max()) <= 2


def test_classes_meet_in_all_combinations() -> None:
    labels = torch.arange(12).repeat_interleave(40)
    drawn = labels[torch.cat([balanced_order(labels, 4, 4, 0, epoch) for epoch in range(4)])][:, ::4]
    pairs = {(int(a), int(b)) for batch in drawn for a in batch for b in batch if a < b}
    assert len(pairs) == 12 * 11 // 2


def test_a_large_class_has_at_most_one_turn_a_batch() -> None:
    labels = torch.from_numpy(np.repeat([0, 1, 2], [1000, 8, 8]))
    order = balanced_order(labels, 2, 4, 0, 0)
    assert (labels[order].view(len(order), 2, 4)[:, :, 0] == 0).sum(1).max() == 1


def test_orders_depend_on_their_arguments_alone() -> None:
    labels = torch.arange(6).repeat_interleave(7)
    torch.manual_seed(1), np.random.seed(1)
    first = balanced_order(labels, 3, 2, 5, 2), shuffled_order(42, 8, 5, 2)
    torch.manual_seed(2), np.random.seed(2)
    state = torch.random.get_rng_state()
    second = balanced_order(labels, 3, 2, 5, 2), shuffled_order(42, 8, 5, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first[0], balanced_order(labels, 3, 2, 6, 2))


def test_the_shape_of_a_batch_is_filled_from_its_size() -> None:
    assert batch_shape(100, 128) == (32, 4)
    assert batch_shape(10, 128) == (10, 12)
    assert batch_shape(10, 128, images_per_class=8) == (10, 8)
    assert batch_shape(100, 128, classes_per_batch=16) == (16, 8)
    with pytest.raises(ValueError, match="classes_per_batch is 50 and there are 3 classes; ask for at most those"):
        batch_shape(3, 128, 50, 2)
    with pytest.raises(ValueError, match="raise batch_size"):
        batch_shape(10, 6)


def test_refuses_numbers_below_one() -> None:
    with pytest.raises(ValueError, match="images_per_class 0; both must be 1 or more"):
        balanced_order(torch.arange(4), 2, 0, 0, 0)

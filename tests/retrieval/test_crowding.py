"""Other programs on the processors of a training: seen by what the system gave, and said once."""

import pytest
import torch

from retrieval import crowding
from retrieval.crowding import Crowding, Usage, crowded

IDLE = Usage(wall=10.0, processor=19.5, interruptions=430)  # measured: two threads alone on two processors
BUSY = Usage(wall=10.0, processor=6.2, interruptions=1510)  # and beside two programs that keep them busy
BEGUN = Usage(wall=0.0, processor=0.0, interruptions=0)


def test_threads_with_their_processors_need_no_remark() -> None:
    assert crowded(BEGUN, IDLE, threads=2) is None


def test_few_processors_for_many_threads_are_told_with_what_to_do() -> None:
    said = crowded(BEGUN, BUSY, threads=2)
    assert said is not None
    assert "2 threads were given 0.6 processors" in said
    assert "OMP_NUM_THREADS=1" in said
    many = crowded(BEGUN, Usage(wall=10.0, processor=39.0, interruptions=9000), threads=16)
    assert many is not None
    assert "OMP_NUM_THREADS=3" in many


def test_waiting_for_a_file_is_not_crowding() -> None:
    assert crowded(BEGUN, Usage(wall=10.0, processor=2.0, interruptions=20), threads=2) is None


def usages(monkeypatch: pytest.MonkeyPatch, *given: Usage) -> None:
    remaining = iter(given)
    monkeypatch.setattr(Usage, "now", lambda: next(remaining))


def test_it_is_said_once_and_not_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    soon = Usage(wall=crowding.SECONDS / 2, processor=0.1, interruptions=10_000)
    usages(monkeypatch, BEGUN, soon, BUSY, BUSY)
    watched = Crowding(torch.device("cpu"))
    assert watched.remark() is None
    assert "0.6 processors" in (watched.remark() or "")
    assert watched.remark() is None


@pytest.mark.parametrize(("device", "threads"), [("cpu", 1), ("cuda", 2)])
def test_one_thread_or_another_device_is_never_crowded(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    usages(monkeypatch, BEGUN, BUSY)
    assert Crowding(torch.device(device)).remark() is None


def test_the_system_tells_what_this_process_used() -> None:
    before = Usage.now()
    while Usage.now().processor - before.processor < 0.05:
        sum(range(10_000))
    after = Usage.now()
    assert after.wall > before.wall
    assert after.interruptions >= before.interruptions

"""Other programs on the processors of a training: seen by what the system gave, and left their share."""

import pytest
import torch

from retrieval import crowding
from retrieval.crowding import Crowding, Usage, threads_for

IDLE = Usage(wall=10.0, processor=19.5, interruptions=430)  # measured: two threads alone on two processors
BUSY = Usage(wall=10.0, processor=6.2, interruptions=1510)  # and beside two programs that keep them busy
CPU = torch.device("cpu")
BEGUN = Usage(wall=0.0, processor=0.0, interruptions=0)


def test_threads_with_their_processors_are_left() -> None:
    assert threads_for(BEGUN, IDLE, threads=2) == 2


def test_displaced_threads_become_as_many_as_the_processors_given() -> None:
    assert threads_for(BEGUN, BUSY, threads=2) == 1
    assert threads_for(BEGUN, Usage(wall=10.0, processor=39.0, interruptions=9000), threads=16) == 3


def test_waiting_for_a_file_is_not_crowding() -> None:
    assert threads_for(BEGUN, Usage(wall=10.0, processor=2.0, interruptions=20), threads=2) == 2


def test_interruptions_are_counted_by_thread() -> None:
    each = 10 * 43 // 2  # of one thread in ten seconds on an idle machine, as in IDLE
    waiting = Usage(wall=10.0, processor=110.0, interruptions=16 * each)
    assert threads_for(BEGUN, waiting, threads=16) == 16


@pytest.mark.parametrize(("interruptions", "left"), [(499, 2), (500, 1)])
def test_two_threads_are_crowded_from_fifty_interruptions_a_second(interruptions: int, left: int) -> None:
    assert threads_for(BEGUN, Usage(wall=10.0, processor=15.0, interruptions=interruptions), threads=2) == left


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that are set, of two; OMP_NUM_THREADS says nothing."""
    taken = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: taken[-1])
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return taken


def usages(monkeypatch: pytest.MonkeyPatch, *given: Usage) -> None:
    remaining = iter(given)
    monkeypatch.setattr(Usage, "now", lambda: next(remaining))


def test_fewer_threads_are_taken_once_and_not_too_soon(monkeypatch: pytest.MonkeyPatch, threads: list[int]) -> None:
    soon = Usage(wall=crowding.SECONDS / 2, processor=0.1, interruptions=10_000)
    usages(monkeypatch, BEGUN, soon, BUSY, BUSY)
    watched = Crowding(CPU)
    assert watched.relieve() is None
    assert threads == [2]
    said = watched.relieve()
    assert said is not None
    assert "2 threads were given 0.6 processors" in said
    assert "goes on with 1" in said
    assert threads == [2, 1]
    assert watched.relieve() is None
    assert threads == [2, 1]


def test_a_number_of_threads_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch, threads: list[int]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    usages(monkeypatch, BEGUN, BUSY)
    assert "start again with OMP_NUM_THREADS=1" in (Crowding(CPU).relieve() or "")
    assert threads == [2]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("keeps_states", "then"),
    [(True, "it goes on at the state kept last."), (False, "it begins anew, for no states are kept.")],
)
def test_who_starts_again_is_told_where_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, keeps_states: bool, then: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    usages(monkeypatch, BEGUN, BUSY)
    said = Crowding(CPU, keeps_states).relieve() or ""
    assert said.endswith(f"start again with OMP_NUM_THREADS=1; {then}")


def test_the_threads_of_before_are_put_back_where_some_were_taken(
    monkeypatch: pytest.MonkeyPatch, threads: list[int]
) -> None:
    usages(monkeypatch, BEGUN, BUSY, BEGUN, IDLE)
    with Crowding(CPU) as watched:
        watched.relieve()
    assert threads == [2, 1, 2]
    with Crowding(CPU) as watched:
        watched.relieve()
    assert threads == [2, 1, 2]


@pytest.mark.parametrize(("device", "count"), [("cpu", 1), ("cuda", 2)])
def test_one_thread_or_another_device_is_never_crowded(
    monkeypatch: pytest.MonkeyPatch, threads: list[int], device: str, count: int
) -> None:
    threads.append(count)
    usages(monkeypatch, BEGUN, BUSY)
    assert Crowding(torch.device(device)).relieve() is None
    assert threads == [2, count]


def test_the_system_tells_what_this_process_used() -> None:
    before = Usage.now()
    while Usage.now().processor - before.processor < 0.05:
        sum(range(10_000))
    after = Usage.now()
    assert after.wall > before.wall
    assert after.interruptions >= before.interruptions

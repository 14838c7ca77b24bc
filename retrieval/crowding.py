"""Whether other programs take the processors that a training wants for its threads."""

import os
import resource
import time
from dataclasses import dataclass

import torch

SECONDS = 6.0  # looked at before anything is said
INTERRUPTIONS_PER_THREAD = 25.0  # a second: displaced, not waiting for a file or each other; 21.5 when idle
SHARE = 0.8  # of the processors that the threads want; an idle machine gives 0.95 and more of them


@dataclass(frozen=True)
class Usage:
    """What the system has given this process, all its threads together, since it began.

    Attributes:
        wall: seconds.
        processor: seconds of processors.
        interruptions: how often a thread that had more to do was taken from its processor.
    """

    wall: float
    processor: float
    interruptions: int

    @classmethod
    def now(cls) -> "Usage":
        """The use so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.monotonic(), used.ru_utime + used.ru_stime, used.ru_nivcsw)


class Crowding:
    """Looks, from its making on, at the processors that the system gives, and takes fewer threads where these are few.

    A context: when it ends, the number of threads is what it was at its making.

    Threads of one operation end together: each waits for the slowest, so that one processor that another program keeps
    busy slows all of them: on two processors that three other programs used, a small ResNet-18 trained at 5 images/s
    with two threads and at 112 once it took one. A number that OMP_NUM_THREADS names is kept, and only spoken of.

    Args:
        device: of the training; on others than a CPU, or with one thread, nothing is done.
        keeps_states: whether the training, started again, goes on at a checkpoint.
    """

    def __init__(self, device: torch.device, keeps_states: bool = False) -> None:
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._begun = Usage.now()
        self._over = self._threads < 2
        self._fewer, self._keeps_states = False, keeps_states

    def __enter__(self) -> "Crowding":
        return self

    def __exit__(self, *_: object) -> None:
        if self._fewer:
            torch.set_num_threads(self._threads)

    def relieve(self) -> str | None:
        """Take fewer threads, once SECONDS have passed, where it is so; says what was done. Later calls do nothing."""
        if self._over or (now := Usage.now()).wall - self._begun.wall < SECONDS:
            return None
        self._over = True
        fewer = threads_for(self._begun, now, self._threads)
        if fewer == self._threads:
            return None
        given = (now.processor - self._begun.processor) / (now.wall - self._begun.wall)
        seen = (
            f"{self._threads} threads were given {given:.1f} processors: other programs, or a limit of the container, "
            "take the rest, and threads wait for each other."
        )
        if "OMP_NUM_THREADS" in os.environ:
            then = "goes on at the state kept last" if self._keeps_states else "begins anew, for no states are kept"
            return f"{seen} Fewer may be faster: start again with OMP_NUM_THREADS={fewer}; it {then}."
        torch.set_num_threads(fewer)
        self._fewer = True
        return f"{seen} It goes on with {fewer}, whose sums round otherwise; OMP_NUM_THREADS={self._threads} keeps all."


def threads_for(begun: Usage, now: Usage, threads: int) -> int:
    """How many threads suit a time in which so many had work to do: as many, or fewer where they were displaced."""
    seconds = now.wall - begun.wall
    processors = (now.processor - begun.processor) / seconds
    interruptions = (now.interruptions - begun.interruptions) / seconds
    crowded = interruptions >= INTERRUPTIONS_PER_THREAD * threads and processors <= SHARE * threads
    return max(1, int(processors)) if crowded else threads

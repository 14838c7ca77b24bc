"""Whether other programs take the processors that a training wants for its threads."""

import resource
import time
from dataclasses import dataclass

import torch

SECONDS = 6.0  # looked at before anything is said
INTERRUPTIONS = 50.0  # a second: threads that were displaced, and did not wait for a file or each other
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
    """Looks, from its making on, at the processors that the system gives, and remarks once that they are too few.

    Threads of one operation end together: each waits for the slowest, so that one processor that another program keeps
    busy slows all of them.

    Args:
        device: of the training; on others than a CPU, or with one thread, there is nothing to remark.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._begun = Usage.now()
        self._over = self._threads < 2

    def remark(self) -> str | None:
        """A sentence to show, once SECONDS have passed and where it is so; asked again it says nothing more."""
        if self._over or (now := Usage.now()).wall - self._begun.wall < SECONDS:
            return None
        self._over = True
        return crowded(self._begun, now, self._threads)


def crowded(begun: Usage, now: Usage, threads: int) -> str | None:
    """What there is to say of a time in which so many threads had work to do; None where they had their processors."""
    seconds = now.wall - begun.wall
    processors = (now.processor - begun.processor) / seconds
    interruptions = (now.interruptions - begun.interruptions) / seconds
    if interruptions < INTERRUPTIONS or processors > SHARE * threads:
        return None
    return (
        f"{threads} threads were given {processors:.1f} processors: other programs, or a limit of the container, take "
        "the rest. Threads wait for each other, so fewer may be faster: stop the run and start it again with "
        f"OMP_NUM_THREADS={max(1, int(processors))}; it goes on where it was."
    )

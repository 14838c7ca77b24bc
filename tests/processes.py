"""Work that several processes do at the same time."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def at_once(work: Callable[[Argument], Result], arguments: Sequence[Argument]) -> list[Result]:
    """What `work` returns for each argument, done by as many forks of this process, which end by themselves."""
    with ProcessPoolExecutor(len(arguments), mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(work, arguments))

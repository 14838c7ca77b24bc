"""Memory that a process frees: kept for its next tensor, not handed back to the system each time.

Standard library only: every image carries this file.
"""

import ctypes
import os

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, by their numbers in glibc's <malloc.h>
NEVER, NONE = -1, 0


def keep_freed_memory() -> bool:
    """Let glibc keep what this process frees until the process ends.

    By itself it maps whatever is larger than 32 MiB anew each time, and the system clears every page of it: half of the
    CPU time of embedding images at 128 px (`python -m benchmarks.freed_memory`). Where MALLOC_... or
    GLIBC_TUNABLES is set, that stands.

    Returns:
        Whether memory is kept: not where that is decided already, nor with another C library than glibc.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(MMAP_MAX, NONE) and mallopt(TRIM_THRESHOLD, NEVER))

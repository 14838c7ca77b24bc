"""As many threads for every side of a comparison, whoever else wants the processors meanwhile."""

import os

import torch


def keep_threads() -> None:
    """Ask for the number of threads that torch has now, where none is asked for: `fit` gives up none of these.

    See retrieval/crowding.py. Benchmarks say nothing of what `fit` prints; sides at another number would go unseen.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

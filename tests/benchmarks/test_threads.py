"""Sides of a comparison that train in one process do so with as many threads, however crowded the machine becomes."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import training
from benchmarks.threads import keep_threads

FOLDER = Path(training.__file__).parent
THAT_TRAIN = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if re.search(r"^from retrieval.training import .*\bfit\b", path.read_text(), re.M)
)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS says nothing, now and after the test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that what a test sets is undone
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


@pytest.mark.usefixtures("three_threads")
def test_the_number_of_threads_is_asked_for_by_name() -> None:
    keep_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.usefixtures("three_threads")
def test_a_number_that_was_asked_for_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    keep_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.usefixtures("three_threads")
def test_they_are_kept_before_the_first_side_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise InterruptedError(os.environ.get("OMP_NUM_THREADS"))

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(sys, "argv", ["training", "--images=128"])
    with pytest.raises(InterruptedError, match="3"):
        training.main()


def test_benchmarks_that_train_are_found() -> None:
    assert {"adjusting", "augmentation", "choices", "network", "peers", "training"} <= set(THAT_TRAIN)


@pytest.mark.parametrize("name", THAT_TRAIN)
def test_every_benchmark_that_trains_keeps_them(name: str) -> None:
    main = re.search(r"^def main\(\).*?(?=^\S)", (FOLDER / f"{name}.py").read_text(), re.MULTILINE | re.DOTALL)
    assert main
    assert re.search(r"^    keep_threads\(\)$", main[0], re.MULTILINE)

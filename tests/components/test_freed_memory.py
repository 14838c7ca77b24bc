"""Freed memory stays with a step's process, unless it is told otherwise."""

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from components import freed_memory, launch

ROOT = Path(__file__).parent.parent.parent
FAULTS_OF_LATER_ARRAYS = """
import resource, sys
import numpy as np
from components.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    print(keep_freed_memory())
np.ones(2**26, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(kept: str, **given: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS_OF_LATER_ARRAYS, kept]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | given, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_an_array_takes_the_pages_of_the_one_before() -> None:
    (mapped_anew,) = run("as it is")
    said, kept = run("kept")
    assert said == "True"
    assert int(kept) < int(mapped_anew) / 50


@pytest.mark.parametrize(
    "given", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}]
)
def test_what_the_environment_says_of_memory_is_kept(given: dict[str, str]) -> None:
    assert run("kept", **given)[0] == "False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: object())
    assert not freed_memory.keep_freed_memory()


@dataclasses.dataclass(frozen=True)
class Params:
    pass


def say(_: Params) -> dict[str, dict[str, str]]:
    print("said")
    return {}


@pytest.mark.parametrize(("plan", "heard"), [("train", ["kept", "said"]), ("skip: no", ["Skipped: no"])])
def test_a_step_keeps_memory_before_it_works_and_not_where_it_is_skipped(
    plan: str, heard: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: print("kept"))
    launch.launch(say, Params, arguments=[f"--plan={plan}"])
    assert capsys.readouterr().out.splitlines()[: len(heard)] == heard

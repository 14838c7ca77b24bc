"""Every command that README.md shows is executed, in a folder of its own, on images of its own.

Two are executed by `.ci/run`, since a test cannot call the test suite: `make demo` and `make test`.
"""

import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from operations.parameters import resolve
from operations.recipes import load_recipe
from tests.digit_folder import write_digits

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.strip()]
RANKONE = [command[1:] for command in COMMANDS if command[0].endswith("rankone")]
PROGRAM = [sys.executable, "-m", "operations.command_line"]
LESS_WORK = {
    "max_images_per_class": "30",
    "max_quarantined_fraction": "0.2",  # digits of 8 x 8 repeat
    "classifier": "squeezenet1_0",
    "pretrain_epochs": "0",
    "channels": "[16]",
    "adjust_epochs": "1",
    "metric_epochs": "2",
    "softmax_epochs": "1",
    "bootstrap_resamples": "200",
    "threshold_trials": "20",
    "occlusion_queries": "50",
    "gallery_queries": "6",
}


def of(name: str) -> list[list[str]]:
    return [arguments for arguments in RANKONE if arguments[0] == name]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the images that the README speaks of and a home of its own."""
    write_digits(tmp_path / "photos", 30)
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(tmp_path / "images.json"))  # none of those that were built here
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_the_readme_shows_every_command() -> None:
    shown = {"run", "recipes", "parameters", "inspect", "compile", "ui", "models", "history"}
    assert {arguments[0] for arguments in RANKONE} == shown


QUICK = ("recipes", "parameters", "inspect", "compile", "models", "history")


@pytest.mark.parametrize("arguments", [arguments for name in QUICK for arguments in of(name)], ids=" ".join)
def test_a_command_of_the_readme_works(arguments: list[str], place: Path) -> None:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, cwd=place, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("arguments", of("run"), ids=" ".join)
def test_a_run_of_the_readme_works_with_a_small_budget(arguments: list[str], place: Path) -> None:
    recipe = arguments[arguments.index("--recipe") + 1]
    assignments = [value for option, value in itertools.pairwise(arguments) if option == "-p"]
    assert resolve(load_recipe(recipe), assignments)
    less = [f"--param={name}={value}" for name, value in LESS_WORK.items()]
    done = subprocess.run([*PROGRAM, *arguments, *less], capture_output=True, text=True, cwd=place, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "R@1 of the model" in done.stdout
    assert list((place / "home" / "runs").glob("*/report.html"))


@pytest.mark.parametrize("arguments", of("ui"), ids=" ".join)
def test_the_page_of_the_readme_opens_and_ctrl_c_ends_it(arguments: list[str], place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*PROGRAM, *arguments, f"--port={port}"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log, start_new_session=True)
    try:
        page = opened(f"http://127.0.0.1:{port}/", process)
        assert "<title>MLflow</title>" in page, (place / "log").read_text()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "Traceback" not in (place / "log").read_text()


def opened(address: str, process: subprocess.Popen[bytes], seconds: float = 120) -> str:
    """The page, asked for until it is there, or nothing when the server has ended."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.2)
    return ""


@pytest.mark.parametrize("target", [command[1] for command in COMMANDS if command[0] == "make"])
def test_a_make_target_of_the_readme_is_executed_by_ci(target: str) -> None:
    assert f"\nmake {target}\n" in (ROOT / ".ci" / "run").read_text()
    done = subprocess.run(["make", "--dry-run", target], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_no_other_command_is_shown() -> None:
    assert all(command[0] == "make" or command[0].endswith("rankone") for command in COMMANDS)


def test_every_page_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file(), target

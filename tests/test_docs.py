"""The commands that README.md shows: executed where they only read or compile, else checked as far as they parse."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from operations.parameters import resolve
from operations.recipes import load_recipe

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.strip()]
RANKONE = [command[1:] for command in COMMANDS if command[0].endswith("rankone")]


def of(name: str) -> list[list[str]]:
    return [arguments for arguments in RANKONE if arguments[0] == name]


def test_the_readme_shows_every_command() -> None:
    assert {arguments[0] for arguments in RANKONE} == {"run", "recipes", "parameters", "compile", "ui"}


@pytest.mark.parametrize("arguments", of("recipes") + of("parameters") + of("compile"), ids=" ".join)
def test_a_command_of_the_readme_works(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "operations.command_line", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("arguments", of("run"), ids=" ".join)
def test_the_parameters_of_a_run_of_the_readme_exist(arguments: list[str]) -> None:
    recipe = arguments[arguments.index("--recipe") + 1]
    assignments = [value for option, value in itertools.pairwise(arguments) if option == "-p"]
    assert resolve(load_recipe(recipe), assignments)


@pytest.mark.parametrize("target", [command[1] for command in COMMANDS if command[0] == "make"])
def test_a_make_target_of_the_readme_exists(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_every_page_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file(), target

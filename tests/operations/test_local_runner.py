import json
from pathlib import Path

import pytest
from kfp.local import status

from operations.local_runner import ProcessTask, missing_outputs
from operations.step_processes import SPIN_COUNT, StepProcesses


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def step_started(self, step: str) -> None: ...

    def step_said(self, step: str, line: str) -> None:
        self.heard.append(f"{step}: {line}")

    def step_ended(self, result: object) -> None: ...


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.chdir(tmp_path)  # `python -m` looks there first
    artifact = {"name": "model", "uri": str(tmp_path / "model"), "type": {"schemaTitle": "system.Model"}}
    return {"outputs": {"artifacts": {"model": {"artifacts": [artifact]}}, "outputFile": str(tmp_path / "output.json")}}


def task(program: str, asked: dict, tmp_path: Path, ear: Ear) -> ProcessTask:
    package = tmp_path / "components"
    package.mkdir()
    (package / "__main__.py").write_text(program)
    command = ["python", "-m", "components", "learn", "--executor-input", json.dumps(asked)]
    return ProcessTask(ear, StepProcesses(), full_command=command, env_vars={}, image="an-image:c0de")


def report(asked: dict) -> str:
    text = json.dumps({"artifacts": asked["outputs"]["artifacts"]})
    return f"open({asked['outputs']['outputFile']!r}, 'w').write({text!r})\n"


def test_succeeds_when_every_output_is_reported_and_there(asked: dict, tmp_path: Path) -> None:
    ear = Ear()
    program = report(asked) + f"print('hello'); open({str(tmp_path / 'model')!r}, 'w')"
    assert task(program, asked, tmp_path, ear).run() == status.Status.SUCCESS
    assert ear.heard == ["learn: hello"]


def test_a_process_that_ends_well_and_reports_nothing_has_failed(asked: dict, tmp_path: Path) -> None:
    ear = Ear()
    assert task("pass", asked, tmp_path, ear).run() == status.Status.FAILURE
    assert ear.heard == ["learn: learn ended well and did not report its output 'model'."]


def test_an_output_that_is_reported_and_missing_has_failed(asked: dict, tmp_path: Path) -> None:
    assert task(report(asked), asked, tmp_path, Ear()).run() == status.Status.FAILURE
    assert missing_outputs(asked) == ["model"]


def test_a_failing_process_says_its_exit_status(asked: dict, tmp_path: Path) -> None:
    ear = Ear()
    assert task("raise SystemExit(3)", asked, tmp_path, ear).run() == status.Status.FAILURE
    assert ear.heard == ["learn: learn ended with exit status 3."]


@pytest.mark.parametrize(("given", "expected"), [(None, SPIN_COUNT), ("7", "7")])
def test_idle_threads_of_a_step_sleep_soon_unless_told_otherwise(
    asked: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    ear = Ear()
    task("import os; print(os.environ['GOMP_SPINCOUNT'])", asked, tmp_path, ear).run()
    assert ear.heard[0] == f"learn: {expected}"


def test_a_step_knows_the_version_of_its_code(asked: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_CODE_VERSION", "of another program")
    ear = Ear()
    task("import os; print(os.environ['RANKONE_CODE_VERSION'])", asked, tmp_path, ear).run()
    assert ear.heard[0] == "learn: c0de"

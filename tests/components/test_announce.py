import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.announce import step
from components.announce.params import Params
from components.announce.step import announce
from components.launch import FinalStatus
from retrieval.run_records import records_of
from retrieval.tracking import client, step_run
from tests.receiver import TOKEN, Receiver, receiving


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, mlflow_home: Path) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", uuid.uuid4().hex)
    with receiving() as found:
        monkeypatch.setenv("RANKONE_WEBHOOK_URL", found.address)
        yield found


def program(folder: Path, status: dict, **environment: str) -> subprocess.CompletedProcess[str]:
    """The step as KFP runs it, with what KFP says of how the others ended."""
    asked = {"inputs": {"parameterValues": {"status": status, "webhook_format": "generic"}}}
    asked["outputs"] = {"outputFile": str(folder / "announce" / "executor_output.json")}
    command = [sys.executable, "-m", "components", "announce", "--webhook_format=generic"]
    command += ["--pipeline-run=ignored", "--executor-input", json.dumps(asked)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False, timeout=60
    )


def test_the_step_tells_what_kfp_told_it(receiver: Receiver, tmp_path: Path) -> None:
    with step_run("prepare_data", {}):
        pass
    done = program(tmp_path, {"state": "FAILED", "error": {"code": 1.0, "message": "the image cannot be pulled"}})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The receiver was told: Failed.\n"
    assert receiver.messages[0]["reason"].startswith("the image cannot be pulled. no step after prepare_data")
    assert json.loads((tmp_path / "announce" / "executor_output.json").read_text()) == {"artifacts": {}}
    found = records_of(os.environ["RANKONE_PIPELINE_RUN"])
    assert found
    assert client().get_run(found.run_id).info.status == "FAILED"


def test_a_receiver_that_fails_never_fails_the_run(receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers = [404]
    done = program(tmp_path, {"state": "SUCCEEDED"})
    assert done.returncode == 0
    assert "was not told" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_an_end_is_no_reason_to_wait_for_a_receiver_that_is_left_behind(receiver: Receiver) -> None:
    receiver.drips = True  # no limit of a socket ends this one
    line = "from retrieval.webhook import deliver; import os; deliver(os.environ['RANKONE_WEBHOOK_URL'], {}, 1, 0.3)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert "did not answer within 0.3 s" in done.stderr
    assert TOKEN not in done.stderr
    assert time.monotonic() - started < 20


def test_whatever_goes_wrong_the_run_is_not_at_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError(f"https://hooks.example/{TOKEN}")

    monkeypatch.setattr(step.announcement, "announce", broken)
    monkeypatch.setattr(step.announcement, "end_in_mlflow", broken)
    assert announce(Params(), FinalStatus({})) == {}
    said = capsys.readouterr().out
    assert said.count("RuntimeError") == 2
    assert TOKEN not in said


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown webhook_format 'teams'; choose one of: generic, slack"):
        Params(webhook_format="teams")

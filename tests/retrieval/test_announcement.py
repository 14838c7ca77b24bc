import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval import announcement
from retrieval.announcement import announce, end_in_mlflow
from retrieval.news import Ending
from retrieval.run_records import page_of_run, records_of
from retrieval.tracking import TrackingError, client, step_run
from tests.receiver import TOKEN, Receiver, receiving

WELL, BADLY = Ending("SUCCEEDED"), Ending("FAILED")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, mlflow_home: Path) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "*")
    with receiving() as found:
        monkeypatch.setenv("RANKONE_WEBHOOK_URL", found.address)
        yield found


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, mlflow_home: Path) -> str:
    """Of a pipeline run of which prepare_data went well."""
    name = uuid.uuid4().hex
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", name)
    with step_run("prepare_data", {}):
        pass
    return name


def decide(outcome: str) -> None:
    with step_run("promote", {}) as run:
        run.set_tags({"rankone.outcome": outcome, "rankone.reason": "because", "rankone.recall_at_1": 0.5})


def fail(step: str) -> None:
    with pytest.raises(ValueError, match="broken"), step_run(step, {}):
        raise ValueError("broken weights")


@pytest.mark.parametrize("outcome", ["promoted", "rejected", "skipped", "waiting"])
def test_a_decision_is_told_once(receiver: Receiver, key: str, outcome: str) -> None:
    decide(outcome)
    assert announce(key, "generic", WELL).startswith("The receiver was told: ")
    assert "was told before" in announce(key, "generic", WELL)
    (message,) = receiver.messages
    assert (message["outcome"], message["reason"], message["model"]["recall_at_1"]) == (outcome, "because", 0.5)
    assert (message["run"]["key"], message["format_version"]) == (key, 1)


def test_a_failure_is_told_with_its_step(receiver: Receiver, key: str) -> None:
    fail("pretrain")
    announce(key, "slack", BADLY)
    (message,) = receiver.messages
    assert message["text"] == "Failed at pretrain\nValueError: broken weights"
    assert message["blocks"][0]["text"]["text"].startswith(":red_circle: *Failed at pretrain*")


def test_a_run_that_failed_and_went_well_when_tried_again_is_told_of_again(receiver: Receiver, key: str) -> None:
    fail("promote")
    announce(key, "generic", BADLY)
    decide("promoted")
    announce(key, "generic", WELL)
    assert [message["outcome"] for message in receiver.messages] == ["failed", "promoted"]


def test_what_was_not_delivered_is_tried_again_by_the_next_attempt(
    receiver: Receiver, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decide("promoted")
    receiver.answers = [500]
    said = announce(key, "generic", WELL, attempts=1)
    assert said == "The receiver was not told that this run ended as promoted: it answered 500."
    assert announce(key, "generic", WELL).startswith("The receiver was told: ")
    assert len(receiver.messages) == 2
    assert TOKEN not in said + capsys.readouterr().out


def test_without_an_address_nothing_is_posted_and_that_is_said(
    receiver: Receiver, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide("promoted")
    monkeypatch.setenv("RANKONE_WEBHOOK_URL", " ")
    assert announce(key, "generic", WELL) == "Nobody is told of it: RANKONE_WEBHOOK_URL is not set."
    monkeypatch.setenv("RANKONE_WEBHOOK_URL", f"ftp://host/{TOKEN}")
    said = announce(key, "generic", WELL)
    assert "begins with https:// or http://" in said
    assert TOKEN not in said
    assert not receiver.messages


def test_a_run_whose_records_cannot_be_read_is_told_of_all_the_same(
    receiver: Receiver, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> None:
        raise TrackingError("no server at https://user:secret@mlflow.example")

    monkeypatch.setattr(announcement, "records_of", broken)
    announce(key, "generic", BADLY)
    (message,) = receiver.messages
    assert message["outcome"] == "failed"
    assert "no server at https://mlflow.example" in message["reason"]


def test_a_run_that_left_no_record_failed(receiver: Receiver) -> None:
    announce("never-began", "generic", BADLY)
    assert receiver.messages[0]["outcome"] == "failed"
    assert receiver.messages[0]["reason"] == "no step left a record in MLflow"


def test_records_hold_the_last_attempt_of_each_step(key: str) -> None:
    fail("pretrain")
    with step_run("pretrain", {}):
        pass
    found = records_of(key)
    assert found is not None
    assert [(step.step, step.status) for step in found.steps] == [
        ("prepare_data", "FINISHED"),
        ("pretrain", "FINISHED"),
    ]
    assert found.page == "", "a file has no page"
    assert records_of("another") is None


def test_the_address_of_a_page_holds_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example:8443/base/")
    assert page_of_run("1", "2") == "https://mlflow.example:8443/base/#/experiments/1/runs/2"


def statuses(key: str) -> dict[str, str]:
    runs = client().search_runs(["1"], f"tags.`rankone.pipeline_run` = '{key}'")
    return {run.data.tags.get("rankone.step", "the run"): run.info.status for run in runs}


@pytest.mark.parametrize(
    ("state", "status"), [("SUCCEEDED", "FINISHED"), ("FAILED", "FAILED"), ("CANCELLED", "KILLED")]
)
def test_the_records_of_a_run_are_ended_as_it_ended(key: str, state: str, status: str) -> None:
    assert statuses(key) == {"prepare_data": "FINISHED", "the run": "RUNNING"}
    assert end_in_mlflow(key, state) == ""
    assert statuses(key) == {"prepare_data": "FINISHED", "the run": status}


def test_a_step_that_was_killed_is_ended_in_its_place(key: str) -> None:
    step = uuid.uuid4().hex
    code = f"import os; from retrieval.tracking import step_run\nwith step_run({step!r}, {{}}): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 9
    assert statuses(key)[step] == "RUNNING"
    assert end_in_mlflow(key, "FAILED") == f"Left open in MLflow and ended there as KILLED: {step}."
    assert statuses(key) == {"prepare_data": "FINISHED", step: "KILLED", "the run": "FAILED"}
    found = records_of(key)
    assert found
    record = found.step(step)
    assert record
    assert "without a word" in record.tags["rankone.error"]
    assert end_in_mlflow(key, "FAILED") == ""


def test_a_run_that_is_tried_again_is_at_work_again(key: str) -> None:
    end_in_mlflow(key, "FAILED")
    with step_run("pretrain", {}):
        assert statuses(key)["the run"] == "RUNNING"
    end_in_mlflow(key, "SUCCEEDED")
    assert statuses(key)["the run"] == "FINISHED"


def test_a_run_that_was_given_is_left_to_its_owner(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = client().create_run("1", tags={"rankone.kind": "pipeline", "rankone.pipeline_run": key}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", owners)
    end_in_mlflow(key, "SUCCEEDED")
    assert client().get_run(owners).info.status == "RUNNING"


@pytest.mark.parametrize("state", ["", "RUNNING"])
def test_nothing_is_ended_where_nobody_says_that_it_is_over(key: str, state: str) -> None:
    assert end_in_mlflow(key, state) == ""
    assert statuses(key)["the run"] == "RUNNING"


def test_an_mlflow_that_is_not_there_is_named(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = end_in_mlflow(key, "SUCCEEDED")
    assert said.startswith("MLflow was not told how the run ended, and shows it as running: http://127.0.0.1:9")

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval import announcement
from retrieval.announcement import announce
from retrieval.news import Ending
from retrieval.run_records import page_of_run, records_of
from retrieval.tracking import TrackingError, step_run
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

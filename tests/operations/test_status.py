"""`rankone status`: the rules on runs made up here, and the command on a registry."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from operations import status
from operations.command_line import app
from operations.status import Limits, Status, data_confirmed, data_made, last_failure, problems, rejections
from retrieval import registry
from retrieval.gate import Outcome
from retrieval.ledger import Entry
from retrieval.manifest import write_manifest
from retrieval.model_folder import FORMAT_VERSION, KIND
from retrieval.promotion import promote
from retrieval.registry import ModelVersion, TrackedRun, register
from retrieval.tracking import PIPELINE_RUN, client, experiment_id, step_run
from tests.operations.test_prometheus import parse_exposition

pytestmark = pytest.mark.usefixtures("mlflow_home")
DAY = 86_400.0
NOW = 1_764_000_000.0


def version(number: int, data: str, created: float = NOW) -> ModelVersion:
    return ModelVersion("shoes", number, "", {"rankone.dataset_digest": data} if data else {}, created)


def run(outcome: str = "rejected", ended: float = NOW, status: str = "FINISHED", **tags: Any) -> TrackedRun:
    known = {"rankone.outcome": outcome} | {f"rankone.{key}": str(value) for key, value in tags.items()}
    return TrackedRun("a", status, ended, {key: text for key, text in known.items() if text})


def moved(at: str) -> Entry:
    return Entry(1, "promote", None, 1, "key", "Ada", "why", at)


def outcomes(judged: list[TrackedRun], moves: list[Entry] | None = None) -> int:
    return len(rejections(judged, moves or []))


def test_rejections_are_counted_until_one_was_let_through() -> None:
    rejected, skipped = run("rejected"), run("skipped")
    assert outcomes([]) == 0
    assert outcomes([rejected, rejected]) == 2
    assert outcomes([rejected, run("promoted"), rejected]) == 1
    assert outcomes([rejected, run("waiting"), rejected]) == 1
    assert outcomes([skipped, rejected, skipped, rejected]) == 2
    assert outcomes([skipped, run("promoted")]) == 0


def test_rejections_before_the_champion_was_moved_by_a_person_do_not_count() -> None:
    moves = [moved("2025-11-24T00:00:00Z"), moved("2025-11-25T00:00:00Z")]
    at = 1_764_028_800.0  # the second of them
    judged = [run(ended=at + 60), run(ended=at - 60), run(ended=at - 90)]
    assert outcomes(judged, moves) == 1
    assert outcomes(judged, moves[:1]) == 3


def test_data_are_as_old_as_the_first_version_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [version(3, "a", NOW - 1), version(2, "b", NOW - 2), version(1, "a", NOW - 3)]
    monkeypatch.setattr(registry, "data_read", lambda version: None)
    assert data_made(versions[0], versions) == NOW - 3
    assert data_made(versions[1], versions) == NOW - 2
    monkeypatch.setattr(registry, "data_read", lambda version: version.created - 0.5)
    assert data_made(versions[0], versions) == NOW - 3.5
    unknown = [version(2, "", NOW), version(1, "", NOW - 1)]
    assert data_made(unknown[0], unknown) == NOW - 0.5  # nothing says that two without a digest are the same


def test_data_are_confirmed_by_every_run_that_found_the_same() -> None:
    champion, other = version(2, "a", NOW - 20), version(3, "b", NOW - 10)
    versions = [other, champion, version(1, "a", NOW - 30)]

    def confirmed(*judged: TrackedRun, detected: tuple[TrackedRun, ...] = ()) -> float:
        return data_confirmed(champion, versions, judged, detected, NOW - 40) - NOW

    assert confirmed() == -20  # by its own registration
    assert confirmed(run("promoted", NOW - 10, version=3)) == -20  # other data
    assert confirmed(run("rejected", NOW - 9, version=1)) == -9  # other parameters, the same data
    assert confirmed(run("skipped", NOW - 8, rule="unchanged", champion_version=2)) == -8
    assert confirmed(run("rejected", NOW - 8, champion_version=2)) == -20  # compared with it, on whatever data

    def of(pipeline_run: str, found: TrackedRun) -> TrackedRun:
        return replace(found, tags={**found.tags, PIPELINE_RUN: pipeline_run})

    # what was skipped was the same as version 3, which is not champion and has other data
    skipped = of("p", run("skipped", NOW - 7, champion_version=2))
    assert confirmed(skipped, detected=(of("p", run("", same_as_version=3)),)) == -20
    assert confirmed(skipped, detected=(of("p", run("", same_as_version=1)),)) == -7
    assert confirmed(skipped, detected=(of("q", run("", same_as_version=3)),)) == -7


def test_the_outcomes_are_those_of_the_gate() -> None:
    assert {status.PROMOTED, status.WAITING, status.REJECTED, status.SKIPPED} == set(Outcome)


def test_what_is_read_of_detect_changes_is_what_it_writes() -> None:
    from components.detect_changes.step import described
    from retrieval.retraining import Plan

    assert described(Plan(True, "nothing has changed", 3), None, None)["same_as_version"] == 3


def test_a_run_that_still_works_is_no_failure() -> None:
    failed = run(status="FAILED")
    assert last_failure([]) is None
    assert last_failure([run(status="RUNNING"), failed, run()]) == failed
    assert last_failure([run(), failed]) is None


GOOD = Status(
    model="shoes",
    version=3,
    recall_at_1=0.9,
    data="d" * 64,
    data_made=NOW - 20 * DAY,
    data_confirmed=NOW - 5 * DAY,
    success=run("skipped", NOW - DAY, rule="unchanged"),
    failure=None,
    rejections=2,
    rejected=run("rejected", NOW - 2 * DAY, rule="not_better", reason="It is worse."),
    notices=(),
)


@pytest.mark.parametrize(
    ("changed", "limits", "said"),
    [
        ({}, {}, []),
        ({}, {"age_days": 5, "rejections": 2, "idle_days": 1}, []),
        ({}, {"age_days": 4.9}, ["last known to be current 5.0 days ago, more than 4.9"]),
        (
            {},
            {"rejections": 1},
            ["2 runs one after the other were rejected, more than 1; the last by the rule"],
        ),
        ({}, {"idle_days": 0.5}, ["the last run that went through was 1.0 days ago, more than 0.5"]),
        ({"success": None}, {"idle_days": 9}, ["the last run that went through was never"]),
        ({"notices": ("the alias champion was moved",)}, {}, ["the alias champion was moved"]),
        ({"version": None, "data_confirmed": None}, {"age_days": 1}, ["no version is champion"]),
        ({"failure": run(status="FAILED", error="ConflictError: x")}, {}, ["failed in promote: ConflictError: x"]),
    ],
)
def test_what_somebody_should_look_at(changed: dict[str, Any], limits: dict[str, Any], said: list[str]) -> None:
    found = problems(replace(GOOD, **changed), Limits(**limits), NOW)
    assert len(found) == len(said)
    assert all(part in problem for part, problem in zip(said, found, strict=True)), found


def test_metrics_are_seconds_and_are_left_out_where_nothing_is_known() -> None:
    unknown = Status('odd "name"\\', None, None, "", None, None, None, None, 0, None, (), ("no version is champion.",))
    families = parse_exposition(status.exposition(status.metrics([GOOD, unknown], NOW)))
    shoes, odd = (("model", "shoes"),), (("model", 'odd "name"\\'),)
    assert families["rankone_champion_data_age_seconds"]["samples"] == {shoes: 5 * DAY}
    assert families["rankone_champion_data_made_timestamp_seconds"]["samples"] == {shoes: NOW - 20 * DAY}
    assert families["rankone_champion_data_confirmed_timestamp_seconds"]["samples"] == {shoes: NOW - 5 * DAY}
    assert families["rankone_last_success_timestamp_seconds"]["samples"] == {shoes: NOW - DAY}
    assert families["rankone_champion_recall_at_1_ratio"]["samples"] == {shoes: 0.9}
    assert families["rankone_consecutive_rejections"]["samples"] == {shoes: 2, odd: 0}
    assert families["rankone_attention"]["samples"] == {shoes: 0, odd: 1}
    assert families["rankone_alias_astray"]["samples"] == {shoes: 0, odd: 0}
    labels = (("data", "d" * 64), ("model", "shoes"), ("version", "3"))
    assert families["rankone_champion_info"]["samples"] == {labels: 1}
    labels = (("model", "shoes"), ("outcome", "skipped"), ("rule", "unchanged"))
    assert families["rankone_last_outcome_info"]["samples"] == {labels: 1}
    assert all(family["type"] == "gauge" and family["help"] for family in families.values())
    assert list(parse_exposition(status.exposition(status.metrics([], NOW)))) == ["rankone_attention"]


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of its own, and for the command a server that holds somebody else's model beside it."""
    monkeypatch.setattr(registry, "registered_models", lambda: ["by-hand", request.node.name])
    return request.node.name


@pytest.fixture
def make(model: str, tmp_path: Path) -> Callable[..., ModelVersion]:
    def make(weights: str, data: str) -> ModelVersion:
        folder = tmp_path / weights
        folder.mkdir()
        (folder / "weights.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        digest = write_manifest(folder, KIND, FORMAT_VERSION).digest
        tags = {"rankone.dataset_digest": data, "rankone.recall_at_1": "0.9", PIPELINE_RUN: f"{model}/{weights}"}
        with step_run("promote", {"registered_model": model}) as tracked:
            made = register(folder, model, digest, tags, tracked.run_id)
            tracked.set_tags({"rankone.outcome": "promoted", "rankone.version": made.version})
        promote(model, made.version, "It is better.")
        return made

    return make


def track(step: str, model: str, days_ahead: float, status: str = "FINISHED", **tags: Any) -> None:
    """A run of a step that ended at another time."""
    at = int((time.time() + days_ahead * DAY) * 1_000)
    known = {"rankone.step": step} | {f"rankone.{key}": str(value) for key, value in tags.items()}
    made = client().create_run(experiment_id(), at, known, step).info.run_id
    client().log_param(made, "registered_model", model)
    client().set_terminated(made, status, at)


def asked(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["status", *arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def at_day(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    now = time.time() + days * DAY
    monkeypatch.setattr(status.time, "time", lambda: now)


def test_a_registry_is_told_and_judged(model: str, make: Callable[..., ModelVersion], monkeypatch) -> None:
    made = make("one", "d" * 64)
    read = made.created - 3_600
    tracked = client().create_run(experiment_id(), int(read * 1_000), {"rankone.step": "prepare_data"}, "prepare_data")
    client().set_tag(tracked.info.run_id, PIPELINE_RUN, f"{model}/one")
    track("promote", model, 2, outcome="skipped", rule="unchanged", champion_version=1)
    track("promote", model, 3, outcome="rejected", rule="not_better", reason="It is worse.", version=9)
    track("promote", "another", 4, outcome="rejected")
    at_day(monkeypatch, 10)
    columns = " ".join(asked().splitlines()[0].split())
    assert columns == "model champion R@1 data of current as of last run it was rejected alias"
    (told,) = json.loads(asked("--json"))["models"]
    assert told["model"] == model
    assert told["champion"] == {"version": 1, "recall_at_1": 0.9}
    assert told["data"]["digest"] == "d" * 64
    assert told["data"]["made"]["age_seconds"] == pytest.approx(10 * DAY + 3_600, abs=60)
    assert told["data"]["confirmed"]["age_seconds"] == pytest.approx(8 * DAY, abs=60)
    assert told["last_success"]["outcome"] == "rejected"
    assert told["last_success"]["age_seconds"] == pytest.approx(7 * DAY, abs=60)
    assert (told["consecutive_rejections"], told["last_rejection"]["rule"]) == (1, "not_better")
    assert (told["fine"], told["problems"], told["notices"]) == (True, [], [])
    asked("--maximum-age-days", "8.1", "--maximum-rejections", "1", "--maximum-idle-days", "7.1")
    assert "were last known to be current 8.0 days ago" in asked("--maximum-age-days", "7", code=1)
    assert "1 runs one after the other" in asked("--maximum-rejections", "0", "-m", model, code=1)
    families = parse_exposition(asked("--prometheus", "--maximum-age-days", "7", code=1))
    labels = (("model", model),)
    assert families["rankone_attention"]["samples"] == {labels: 1}
    assert families["rankone_champion_data_age_seconds"]["samples"][labels] == pytest.approx(8 * DAY, abs=60)


def test_an_alias_that_was_moved_by_hand_and_a_failure_are_told(model: str, make, monkeypatch) -> None:
    make("one", "d" * 64)
    make("two", "e" * 64)
    client().set_registered_model_alias(model, "champion", "1")
    track("promote", model, 1, "FAILED", error="OSError: no space left")
    told = json.loads(asked("--json", code=1))["models"][0]
    assert "somebody moved it by hand" in told["problems"][0]
    assert told["problems"][1] == "the last run failed in promote: OSError: no space left"
    assert told["failure"]["error"] == "OSError: no space left"
    assert told["last_success"]["outcome"] == "promoted"
    text = asked(code=1)
    assert "astray" in text
    assert f"{model}: the alias champion is at version 1" in text.replace("\n", " ")
    families = parse_exposition(asked("--prometheus", code=1))
    assert families["rankone_alias_astray"]["samples"] == {(("model", model),): 1}


def test_a_model_of_somebody_else_is_no_reason_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    client().create_registered_model("by-hand")
    client().create_model_version("by-hand", "s3://nowhere/model")
    monkeypatch.setattr(registry, "registered_models", lambda: ["by-hand"])
    assert asked(code=1).startswith("No model is registered yet")
    assert json.loads(asked("--json", code=1)) == {"fine": False, "models": []}
    assert asked("--prometheus", code=1).splitlines()[-1] == "rankone_attention 1"
    assert list(parse_exposition(asked("--prometheus", code=1))) == ["rankone_attention"]
    assert "no version is champion" in asked("--model", "by-hand", code=1)


def test_bad_input_is_an_error(model: str) -> None:
    with pytest.raises(ValueError, match="--json and --prometheus were both given"):
        asked("--json", "--prometheus")
    with pytest.raises(ValueError, match="There is no registered model 'boots'"):
        asked("--model", "boots")
    assert CliRunner().invoke(app, ["status", "--maximum-age-days", "-1"]).exit_code == 2


def test_the_commands_of_the_page_are_those_of_the_command_line(model: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "promotion.md").read_text(encoding="utf-8")
    commands = re.findall(r"rankone status([^\n>`]*)", page)
    assert len(commands) >= 3
    for command in commands:
        assert "No such option" not in CliRunner().invoke(app, ["status", *command.split()]).output


def test_the_page_names_every_metric_and_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "promotion.md").read_text(encoding="utf-8")
    for metric in status.metrics([GOOD], NOW):
        assert f"`{metric.name}`" in page, metric.name
    for column in ("data of", "current as of", "last run", "it was", "rejected", "alias"):
        assert f"`{column}`" in page

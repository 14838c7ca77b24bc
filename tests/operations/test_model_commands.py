import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from operations import models
from operations.command_line import app, main
from retrieval import registry
from retrieval.manifest import write_manifest
from retrieval.model_folder import FORMAT_VERSION, KIND
from retrieval.promotion import history, propose
from retrieval.registry import ModelVersion, register
from retrieval.tracking import client, step_run

pytestmark = pytest.mark.usefixtures("mlflow_home")
Register = Callable[..., ModelVersion]


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of its own, and for a program whose store holds nothing else."""
    monkeypatch.setattr(registry, "registered_models", lambda: [request.node.name])
    monkeypatch.setenv("RANKONE_BY", "Ada")
    return request.node.name


@pytest.fixture
def make(model: str, tmp_path: Path) -> Register:
    def version(weights: str, outcome: str = "promoted", recall: float = 0.9) -> ModelVersion:
        folder = tmp_path / weights
        folder.mkdir()
        (folder / "weights.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        digest = write_manifest(folder, KIND, FORMAT_VERSION).digest
        known = {"recall_at_1": repr(recall), "recall_at_1_low": "0.85", "recall_at_1_high": "0.95", "outcome": outcome}
        known |= {"dataset_digest": "d" * 64, "reason": "It is worse.", "queries": "7"}
        tags = {f"rankone.{name}": text for name, text in known.items()}
        with step_run("promote", {}) as run:
            return register(folder, model, digest, tags, run.run_id, card="# Card")

    return version


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def asked(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json"))


def test_an_empty_registry_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "registered_models", list)
    assert said("models").startswith("No model is registered yet")
    assert asked("models") == {"versions": [], "notices": []}
    assert said("history").startswith("No model is registered yet")
    assert asked("history") == {"model": None, "champion": [], "challenger": [], "aliases": {}, "notices": []}
    with pytest.raises(ValueError, match="No model is registered yet"):
        said("rollback", "--reason", "x")


@pytest.mark.parametrize(
    "command",
    ["models", "history", "status", "compare 1 2", "promote 1 --reason x", "rollback --reason x", "models -m boots"],
)
def test_a_server_that_is_away_ends_in_an_error_within_seconds(monkeypatch, capsys, command: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:1")
    monkeypatch.setattr("sys.argv", ["rankone", *command.split()])
    monkeypatch.setitem(models.IMPATIENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "rankone: http://127.0.0.1:1 does not answer; is MLFLOW_TRACKING_URI right?\n"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_promotions_and_rollbacks_are_told(model: str, make: Register) -> None:
    for weights in ("one", "two", "three"):
        make(weights)
    assert said("history") == f"{model} has no history yet: no version was ever champion.\n"
    assert f"{model}: version 1 is champion now; there was none before." in said("promote", "1", "--reason", "First.")
    assert "Entry 2 of the ledger: promote by Ada at" in said("promote", "2", "--reason", "Better.")
    assert asked("promote", "3", "--reason", "Best.")["entry"]["from"] == 2
    assert said("promote", "3", "--reason", "Again.").startswith(f"Nothing was moved: {model} version 3 is champion")
    assert history(model).aliases == {"champion": 3, "previous": 2}
    assert "version 2 is champion now; version 3 was before" in said("rollback", "--reason", "Boots for sandals.")
    assert asked("rollback", "--reason", "Still.")["entry"]["to"] == 1
    assert history(model).aliases == {"champion": 1}
    with pytest.raises(ValueError, match="had no champion before"):
        said("rollback", "--reason", "Again.")
    assert asked("rollback", "--to", "3", "--reason", "It was the best.")["entry"]["action"] == "rollback"
    with pytest.raises(ValueError, match="has no version 9"):
        said("promote", "9", "--reason", "x")
    with pytest.raises(ValueError, match=r"Version 4 of .* was never champion \(these were: 1, 2, 3\)"):
        said("rollback", "--to", "4", "--reason", "x")
    table = said("history")
    assert [word in table for word in ("Boots for sandals.", "rollback", "Ada", "when (UTC)")] == [True] * 4
    assert [(entry["from"], entry["to"]) for entry in asked("history")["champion"]] == [
        (None, 1),
        (1, 2),
        (2, 3),
        (3, 2),
        (2, 1),
        (1, 3),
    ]


def test_versions_are_listed_with_what_is_known_of_them(model: str, make: Register) -> None:
    make("one")
    make("two", "rejected", 0.88)
    said("promote", "1", "--reason", "First.")
    client().create_model_version(model, "s3://nowhere/model")
    newest, second, first = asked("models")["versions"]
    assert (first["version"], first["aliases"], first["recall_at_1"]) == (1, ["champion"], 0.9)
    assert (first["recall_at_1_low"], first["recall_at_1_high"], first["data"]) == (0.85, 0.95, "d" * 64)
    assert 0 <= first["age_seconds"] < 300
    assert (second["outcome"], second["aliases"]) == ("rejected", [])
    assert (newest["recall_at_1"], newest["outcome"]) == (None, "")
    table = said("models")
    assert "90.00%  85.00% to 95.00%  dddddddddddd" in " ".join(table.split()).replace(" ", "  ").replace(
        "  to  ", " to "
    )
    assert "Mind: the gate rejected it: It is worse." in said("promote", "2", "--reason", "I know better.")


def test_a_challenger_waits_for_approval(model: str, make: Register) -> None:
    make("one")
    make("two")
    said("promote", "1", "--reason", "First.")
    with pytest.raises(ValueError, match="No challenger of"):
        said("approve", "--reason", "x")
    propose(model, 2, "It is better.", 1, "runs:/1/decision.json")
    assert history(model).aliases == {"champion": 1, "challenger": 2}
    entry = asked("approve", "--reason", "Looked at it.")["entry"]
    assert (entry["to"], entry["report"], entry["why"]) == (2, "runs:/1/decision.json", "Looked at it.")
    assert history(model).aliases == {"champion": 2, "previous": 1}
    assert [row["action"] for row in asked("history")["challenger"]] == ["propose", "withdraw"]
    assert asked("models")["versions"][0]["outcome"] == "approved"


def test_what_was_moved_by_hand_is_put_back_or_adopted(model: str, make: Register) -> None:
    make("one")
    make("two")
    said("promote", "1", "--reason", "First.")
    assert "nothing: it agrees with the ledger" in said("reconcile")
    client().set_registered_model_alias(model, "champion", "2")
    assert f"Mind: {model}: the alias champion is at version 2" in said("models")
    assert "Mind:" in said("history")
    assert asked("reconcile")["repairs"][0] == {
        "alias": "champion",
        "found": 2,
        "now": 1,
        "did": "put back: it had been moved by hand",
    }
    assert history(model).aliases == {"champion": 1}
    client().set_registered_model_alias(model, "champion", "2")
    with pytest.raises(ValueError, match="reason is empty"):
        said("reconcile", "--adopt")
    said("reconcile", "--adopt", "--reason", "It was an emergency.")
    client().delete_registered_model_alias(model, "champion")
    with pytest.raises(ValueError, match="leave --adopt out"):
        said("reconcile", "--adopt", "--reason", "x")
    said("reconcile")
    entries = asked("history")["champion"]
    assert [(entry["action"], entry["to"]) for entry in entries] == [
        ("promote", 1),
        ("restore", 1),
        ("adopt", 2),
        ("restore", 2),
    ]
    assert history(model).aliases == {"champion": 2, "previous": 1}


def test_production_has_files_of_its_own(model: str, make: Register) -> None:
    version, into = make("one"), f"prod.{model}"
    copied = asked("promote", "1", "--into", into, "--reason", "Release 12.")
    assert (copied["model"], copied["entry"]["to"]) == (into, 1)
    assert f"{model} version 1 was copied: it is version 1 of {into}" in copied["notices"]
    here, there = (client().get_model_version(name, "1") for name in (model, into))
    assert there.tags["rankone.copied_from"] == f"models:/{model}/1"
    assert there.tags["rankone.model_digest"] == version.model_digest
    assert "rankone.outcome" not in there.tags
    assert there.description == "# Card"
    places = [Path(found.source.removeprefix("file://").replace("%20", " ")) for found in (here, there)]
    assert places[0] != places[1]
    files = [
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()} for place in places
    ]
    assert files[0] == files[1]
    run = client().get_run(there.run_id)
    assert client().get_experiment(run.info.experiment_id).name == f"rankone-ledger.{into}"
    assert not asked("promote", "1", "--into", into, "--reason", "Again.")["made"]
    assert len(client().search_model_versions(f"name = '{into}'")) == 1
    assert history(model).aliases == {}


def test_files_that_were_altered_do_not_reach_production(model: str, make: Register) -> None:
    make("one")
    source = client().get_model_version(model, "1").source
    place = Path(source.removeprefix("file://").replace("%20", " "))
    next(place.rglob("weights.safetensors")).write_text("other")
    with pytest.raises(ValueError, match=r"weights\.safetensors was truncated or altered"):
        said("promote", "1", "--into", f"prod.{model}", "--reason", "x")
    assert client().search_model_versions(f"name = 'prod.{model}'") == []
    assert not client().search_registered_models(f"name = 'prod.{model}'"), "one without a version is in the way"


def test_nothing_is_copied_into_a_name_that_none_has_or_without_a_reason(model: str, make: Register) -> None:
    make("one")
    for into in ("", "it's prod", "-x "):
        with pytest.raises(ValueError, match=f"--into is '{into}'; use letters"):
            said("promote", "1", "--into", into, "--reason", "x")
    with pytest.raises(ValueError, match="The reason is empty"):
        said("promote", "1", "--into", f"prod.{model}", "--reason", " ")
    assert not client().search_registered_models(f"name = 'prod.{model}'")
    assert history(model).aliases == {}


def test_a_model_of_others_with_a_quote_in_its_name_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "it's theirs"
    client().create_registered_model(name)
    client().create_model_version(name, "file:///nowhere")
    monkeypatch.setattr(registry, "registered_models", lambda: [name])
    assert [row["version"] for row in asked("models")["versions"]] == [1]


def test_the_only_model_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "registered_models", lambda: ["digits", "shoes"])
    assert models.the_model("shoes") == "shoes"
    with pytest.raises(ValueError, match="name one of them with --model: digits, shoes"):
        models.the_model(None)
    with pytest.raises(ValueError, match="There is no registered model 'boots'; there is: digits, shoes"):
        models.the_model("boots")
    with pytest.raises(ValueError, match="There is no registered model 'boots'"):
        said("models", "--model", "boots")


@pytest.mark.parametrize("command", ["models", "history", "promote 1 --reason x", "rollback --reason x"])
def test_an_empty_name_is_not_the_only_model(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(registry, "registered_models", lambda: ["digits"])
    with pytest.raises(ValueError, match="There is no registered model ''; there is: digits"):
        said(*command.split(), "--model", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (60, "1 min"), (7_199, "1 h"), (86_400 * 40, "40 d")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert models.age_of(seconds) == text

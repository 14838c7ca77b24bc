import os
from typing import Any

import pytest

from retrieval import ledger_store, promotion, tracking, tracking_process
from retrieval.ledger import AliasMovedError, ConflictError, LedgerError, MissingVersionError
from retrieval.ledger_store import Ledger, ledger_run, make_ledger
from retrieval.registry import champion
from retrieval.tracking import client
from tests.ledger_stress import make_model
from tests.processes import at_once

pytestmark = pytest.mark.usefixtures("mlflow_home")


def ledgers(name: str) -> list[Any]:
    return [found for found in client().search_experiments() if found.name.startswith(f"rankone-ledger.{name}")]


def test_an_entry_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Ledger("once")
    assert book.read() == ledger_store.Page({}, {})
    assert ledger_run("once") == "", "reading makes none"
    assert book.claim("promote/champion/000001", "é one")
    assert book.claim("promote/champion/000001", "é one"), "a call that was retried"
    assert not book.claim("promote/champion/000001", "two")
    book.mark("rankone.moving/champion/000001/t", "1")
    book.mark("rankone.moving/champion/000001/t", "done")
    page = book.read()
    assert page.claims == {"promote/champion/000001": "é one"}
    assert page.marks["rankone.moving/champion/000001/t"] == "done"

    def broken(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(client(), "log_param", broken)
    with pytest.raises(OSError, match="no network"):
        book.claim("promote/champion/000002", "x")


def test_aliases_are_moved_and_removed() -> None:
    make_model("aliases")
    book = Ledger("aliases")
    book.set_alias("champion", 2)
    assert book.aliases() == {"champion": 2}
    book.delete_alias("champion")
    book.delete_alias("champion")
    assert book.aliases() == Ledger("nobody").aliases() == {}
    with pytest.raises(MissingVersionError, match="that version was deleted"):
        book.set_alias("champion", 99)


def make_at_once(_: int) -> str:
    return make_ledger("at-once")


def test_of_ledgers_made_at_once_one_stays() -> None:
    client()
    runs = at_once(make_at_once, range(4))
    assert len(set(runs)) == 1
    assert [found.name for found in ledgers("at-once")] == ["rankone-ledger.at-once"]


def test_a_ledger_that_was_renamed_before_the_answer_was_lost_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = client().rename_experiment

    def lost(*values: Any) -> None:
        rename(*values)
        raise OSError("no answer")

    monkeypatch.setattr(client(), "rename_experiment", lost)
    assert make_ledger("lost-answer")
    assert len(ledgers("lost-answer")) == 1


def test_a_deleted_ledger_is_not_begun_anew() -> None:
    make_model("deleted")
    promotion.promote("deleted", 1, "First.")
    ledger_store._ledger_run.cache_clear()
    client().delete_experiment(ledgers("deleted")[0].experiment_id)
    with pytest.raises(LedgerError, match="was deleted or doubled in MLflow"):
        promotion.history("deleted")


def test_a_champion_whose_alias_was_not_set_any_more_is_known_from_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    make_model("stopped")
    promotion.promote("stopped", 1, "First.")
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.ledger.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            promotion.promote("stopped", 2, "Better.")
    assert Ledger("stopped").aliases() == {"champion": 1}
    found = champion("stopped")
    assert found
    assert found.version == 2
    assert promotion.reconcile("stopped")[0].did == "finished what a process that stopped had left"
    assert Ledger("stopped").aliases() == {"champion": 2, "previous": 1}


def test_a_champion_that_was_deleted_is_rolled_back_from() -> None:
    make_model("gone")
    for version in (1, 2, 3):
        promotion.promote("gone", version, "Better.")
    client().delete_model_version("gone", "3")
    assert champion("gone") is None
    assert "the alias champion was removed" in promotion.history("gone").notices[0]
    with pytest.raises(AliasMovedError, match="was removed"):
        promotion.promote("gone", 4, "Better.", against=3)
    with pytest.raises(MissingVersionError, match="gone has no version 3, or no more"):
        promotion.reconcile("gone")
    assert promotion.rollback("gone", "Somebody deleted it.").made
    assert promotion.history("gone").aliases == {"champion": 2, "previous": 1}
    assert [entry.to for entry in promotion.history("gone").champion] == [1, 2, 3, 2]


def test_an_alias_from_before_the_ledger_begins_it() -> None:
    make_model("older")
    client().set_registered_model_alias("older", "champion", "4")
    assert promotion.history("older").notices == ()
    assert promotion.promote("older", 5, "Better.", against=4).made
    assert [(entry.action, entry.to) for entry in promotion.history("older").champion] == [("adopt", 4), ("promote", 5)]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_through_the_process_that_holds_mlflow_open_a_refusal_keeps_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_model("process")
    key = tracking.start_pipeline_run("a run", {})
    try:
        assert os.environ[tracking_process.SOCKET], "not in this process"
        moved = promotion.promote("process", 1, "First.", against=None)
        assert moved.made
        assert moved.entry
        assert moved.entry.by == f"pipeline run {key}"
        with pytest.raises(ConflictError, match="Version 2 was compared with no version, and champion is version 1"):
            promotion.promote("process", 2, "Better.", against=None)
        with pytest.raises(MissingVersionError, match="no version 99"):
            promotion.promote("process", 99, "Better.")
    finally:
        tracking.finish_pipeline_run(key, "FINISHED")
    assert promotion.history("process").aliases == {"champion": 1}


def test_who_is_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(promotion.getpass, "getuser", nobody)
    assert promotion.who().startswith("user ")
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "r1")
    assert promotion.who() == "pipeline run r1"
    monkeypatch.setenv("RANKONE_BY", "Ada")
    assert promotion.who() == "Ada"


def test_an_alias_that_two_make_at_once_is_moved_by_the_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow looks whether the alias is there and adds it else; between the two another may have added it."""
    client().create_registered_model("at once")
    for _ in range(2):
        client().create_model_version("at once", "file:///nowhere")
    asked = []

    class Late:
        def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
            asked.append(version)
            if len(asked) == 1:
                client().set_registered_model_alias(name, alias, "1")
                raise RuntimeError("(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.name")
            client().set_registered_model_alias(name, alias, version)

    with monkeypatch.context() as late:
        late.setattr(ledger_store, "client", Late)
        Ledger("at once").set_alias("champion", 2)
    assert asked == ["2", "2"]
    assert Ledger("at once").aliases() == {"champion": 2}

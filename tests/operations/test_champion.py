from pathlib import Path
from typing import Any

import pytest

from operations.champion import keep_parameters, parameters_of, with_champion
from retrieval import registry
from retrieval.registry import ModelVersion

VALUES: dict[str, Any] = {"registered_model": "digits", "channels": (8, 16), "seed": 1}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path


def crown(monkeypatch: pytest.MonkeyPatch, run: str = "", digest: str = "m" * 64) -> None:
    tags = {"rankone.model_digest": digest, "rankone.pipeline_run": run}
    monkeypatch.setattr(registry, "champion", lambda name: ModelVersion(name, 3, "r", tags))


def fingerprint(values: dict[str, Any], runs: Path) -> str:
    found = with_champion(values, runs)
    assert found.items() >= values.items()
    return str(found["champion_fingerprint"])


def test_without_a_champion_the_fingerprint_is_empty(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "champion", asked.append)
    assert fingerprint(VALUES, runs) == ""
    assert fingerprint({}, runs) == ""
    assert asked == ["digits", "rankone"]


def test_another_champion_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    crown(monkeypatch)
    assert fingerprint(VALUES, runs) == "m" * 64
    crown(monkeypatch, digest="n" * 64)
    assert fingerprint(VALUES, runs) == "n" * 64
    crown(monkeypatch, digest="")
    assert fingerprint(VALUES, runs) == "version 3", "registered by hand"


def test_the_command_that_made_the_champion_finds_its_own_cache(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    keep_parameters(runs / "first", VALUES | {"champion_fingerprint": "of before"})
    crown(monkeypatch, run="first")
    assert fingerprint(VALUES, runs) == "of before"
    assert fingerprint(VALUES | {"seed": 2}, runs) == "m" * 64
    assert fingerprint({name: value for name, value in VALUES.items() if name != "seed"}, runs) == "m" * 64


@pytest.mark.parametrize("run", ["second", "nowhere", "../first", ""])
def test_a_champion_of_another_place_is_news(monkeypatch: pytest.MonkeyPatch, runs: Path, run: str) -> None:
    keep_parameters(runs / "first", VALUES | {"champion_fingerprint": "of before"})
    crown(monkeypatch, run=run)
    assert fingerprint(VALUES, runs) == "m" * 64


def test_parameters_that_cannot_be_read_are_none(runs: Path) -> None:
    (runs / "first" / "parameters.json").write_text("{")
    assert parameters_of(runs, "first") == {}
    keep_parameters(runs / "first", VALUES)
    assert parameters_of(runs, "first") == {"registered_model": "digits", "channels": [8, 16], "seed": 1}

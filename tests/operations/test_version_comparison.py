"""`rankone compare` on the embedded store."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from operations.command_line import app
from operations.version_comparison import dataset_here, how_to_score
from retrieval import registry
from retrieval.answer_records import record_answers, record_pictures
from retrieval.answers import Answers, in_order
from retrieval.manifest import write_manifest
from retrieval.model_folder import FORMAT_VERSION, KIND
from retrieval.pictures import encoded, save_pictures, uri_of
from retrieval.registry import ModelVersion, keep_file, register
from retrieval.tracking import client, step_run

pytestmark = pytest.mark.usefixtures("mlflow_home")
Register = Callable[..., ModelVersion]
ONE, OTHER = "1" * 64, "2" * 64  # digests of evaluations
PICTURES = {str(number): encoded(np.full((8, 8, 3), number, np.uint8)) for number in range(200)}


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of its own, and for a program whose store holds nothing else."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    monkeypatch.setattr(registry, "registered_models", lambda: [name])
    monkeypatch.setenv("RANKONE_BY", "Ada")
    return name


@pytest.fixture
def make(model: str, tmp_path: Path) -> Register:
    """Registers a model that gets so many of 200 queries wrong, of as many test images."""

    def version(weights: str, wrong: range, *evaluations: str, pictures: bool = True) -> ModelVersion:
        folder = tmp_path / weights
        folder.mkdir()
        (folder / "weights.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        digest = write_manifest(folder, KIND, FORMAT_VERSION).digest
        known = {"floor": "0.25", "dataset_digest": weights * 8, "pipeline_run": f"run-of-{weights}"}
        known |= {"evaluation_digest": evaluations[-1]} if evaluations else {}
        with step_run("promote", {}) as run:
            tags = {f"rankone.{name}": text for name, text in known.items()}
            found = register(folder, model, digest, tags, run.run_id)
        save_pictures(folder / "pictures", PICTURES)
        for evaluation in evaluations:
            record_answers(found, answers(wrong, evaluation, digest))
            if pictures:
                record_pictures(found, evaluation, folder / "pictures")
        return found

    return version


def answers(wrong: range, evaluation: str, model_digest: str) -> Answers:
    numbers = np.arange(200)
    classes, right = np.char.add("<b>class ", (numbers % 20).astype(str)), ~np.isin(numbers, wrong)
    nearest = np.where(right, (numbers + 20) % 200, (numbers + 1) % 200)
    rows = in_order(numbers.astype(str), classes, right, nearest.astype(str), classes[nearest], numbers / 200)
    return Answers(evaluation, model_digest, 8, 100.0, **rows)


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def asked(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json"))


def test_two_versions_are_told_apart_query_by_query(model: str, make: Register, tmp_path: Path) -> None:
    make("one", range(40), ONE)
    make("two", range(39, 44), ONE)
    page = tmp_path / "pages" / "two.html"
    told = said("compare", "1", "2", "--page", str(page))
    first, *_ = told.splitlines()
    assert first.startswith(f"{model} version 2 would be promoted over version 1: R@1 97.50% is above the 80.00% of")
    assert "Of 200 queries 39 are fixed and 4 broken (McNemar's exact p 3.1e-08)." in told
    assert re.search(r"floor +97\.50% +25\.00% +passes", told), "as its tags say: there is no decision"
    assert str(page) in told.replace("\n", "")
    text = page.read_text()
    assert uri_of(PICTURES["38"]) in text
    assert text.partition("<h1")[2].partition(">")[2].startswith(f"{model} version 2 would be promoted over version 1")
    assert "39 fixed" in text
    assert "<b>class" not in text
    found = asked("compare", "2", "1", "--queries", "3")
    assert (found["outcome"], found["rule"], found["old"], found["new"]) == ("rejected", "not_better", 2, 1)
    assert found["comparison"]["fixed"] == 4
    assert [len(found["queries"][name]) for name in ("fixed", "broken")] == [3, 3]
    assert found["queries"]["fixed"][0] == {
        "image": "43",
        "class_name": "<b>class 3",
        "old": {"image": "44", "class_name": "<b>class 4", "similarity": pytest.approx(43 / 200), "right": False},
        "new": {"image": "63", "class_name": "<b>class 3", "similarity": pytest.approx(43 / 200), "right": True},
    }
    assert Path(found["page"]).name == f"{model}-2-1.html"
    assert Path(found["page"]).is_file()


def test_versions_go_by_their_aliases_and_by_what_the_gate_asked(model: str, make: Register, tmp_path: Path) -> None:
    make("one", range(40), ONE)
    second = make("two", range(30), ONE)
    decision = tmp_path / "decision.json"
    decision.write_text(json.dumps({"thresholds": {"floor": 0.99, "minimum_queries": 7}}))
    keep_file(second, decision, "decision.json")
    said("promote", "1", "--reason", "First.")
    said("promote", "2", "--reason", "Better.")
    found = asked("compare", "previous", "champion")
    assert (found["old"], found["new"]) == (1, 2)
    assert (found["rule"], found["thresholds"]["minimum_queries"]) == ("floor", 7)
    with pytest.raises(ValueError, match=r"has no alias 'newest'; .* one of its aliases: champion, previous"):
        said("compare", "newest", "2")
    with pytest.raises(ValueError, match="has no version 9"):
        said("compare", "9", "2")
    with pytest.raises(ValueError, match="Both are version 2"):
        said("compare", "2", "champion")
    with pytest.raises(ValueError, match=r"ends in \.html"):
        said("compare", "1", "2", "--page", "page.txt")


def test_test_images_that_both_answered_are_looked_for(model: str, make: Register) -> None:
    make("one", range(40), ONE, OTHER)
    make("two", range(30), OTHER, ONE)
    make("three", range(20), OTHER)
    assert asked("compare", "1", "2")["evaluation_digest"] == ONE, "those that the new one was registered with"
    assert asked("compare", "3", "2")["evaluation_digest"] == OTHER


def test_without_common_test_images_the_command_that_scores_is_told(
    model: str, make: Register, mlflow_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make("one", range(40), ONE)
    second = make("twooo", range(30), OTHER)
    with pytest.raises(ValueError, match="have no answers to the same test images") as caught:
        said("compare", "1", "2")
    told = str(caught.value)
    assert "(version 1: 111111111111; version 2: 222222222222)" in told
    command = f"python -m retrieval.scoring --model {model} --version 1 --dataset"
    assert (
        f"    {command} FOLDER\nFOLDER is the dataset of pipeline run run-of-twooo with the digest twoootwoootw" in told
    )
    folder = mlflow_home / "artifacts" / "a run" / "prepare-data" / "dataset"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"digest": "twooo" * 8}))
    with pytest.raises(ValueError, match=re.escape(f"{command} '{folder}'")):
        said("compare", "1", "2")
    (folder / "manifest.json").write_text("no json")
    assert dataset_here("twooo" * 8) is None
    assert how_to_score(second, None, "", "").endswith("FOLDER is the dataset that the other version was measured on.")


def test_a_comparison_outlives_the_pictures_and_broken_answers(
    model: str, make: Register, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("one", range(40), ONE, pictures=False)
    make("two", range(30), ONE, OTHER, pictures=False)
    third = make("three", range(30), OTHER)
    found = asked("compare", "1", "2")
    assert found["pictures_kept"] == 0
    text = Path(found["page"]).read_text()
    assert "No pictures were kept with these versions" in text
    assert "&lt;b&gt;class 1" in text
    broken = tmp_path / f"{OTHER}.parquet"
    broken.write_bytes(b"no table")
    client().log_artifact(third.run_id, str(broken), "answers")
    with pytest.raises(ValueError, match="have no answers to the same test images"):
        said("compare", "2", "3")


def test_copies_for_production_can_be_compared(
    model: str, make: Register, mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = f"prod.{model}"
    for number, wrong in enumerate((range(40), range(30)), start=1):
        make(f"weights {number}", wrong, ONE)
        said("promote", str(number), "--into", into, "--reason", "Release.")
    monkeypatch.setattr(registry, "registered_models", lambda: [into])
    found = asked("compare", "1", "2")
    assert (found["model"], found["comparison"]["fixed"], found["pictures_kept"]) == (into, 10, 200)

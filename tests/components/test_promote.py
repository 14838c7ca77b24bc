import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.launch import AGAIN, SKIP, TRAIN, InputText
from components.promote import step
from components.promote.params import Params
from components.promote.step import FORMAT_VERSION, KIND, PUBLICATION_FORMAT, promote
from retrieval import model_folder, registry
from retrieval.answers import Answers, in_order
from retrieval.evaluation import IMAGES, QUERY_SCHEMA, REFERENCE, Acceptance, Evaluation, save_evaluation
from retrieval.ledger import AliasMovedError, ConflictError
from retrieval.manifest import read_manifest, write_manifest
from retrieval.news import Ending, news_of
from retrieval.object_store import Address
from retrieval.pictures import encoded, uri_of
from retrieval.promotion import approve, history, rollback
from retrieval.promotion import promote as promote_by_hand
from retrieval.publication import fetch
from retrieval.registry import champion
from retrieval.retraining import TAG, TRAINED_AT, MadeFrom, origins
from retrieval.run_records import records_of
from retrieval.tracking import PIPELINE_RUN, TrackingError, client, step_run

pytestmark = pytest.mark.usefixtures("mlflow_home")

QUERIES, CLASSES = 1_000, 100
MADE_FROM = MadeFrom("d" * 64, "p" * 64, "c" * 64)
PICTURES = {str(number): encoded(np.full((8, 8, 3), number % 256, np.uint8)) for number in range(100)}


@dataclasses.dataclass
class Bench:
    """Runs promote on models that are told apart by their weights alone."""

    folder: Path
    name: str
    runs: int = 0

    def promote(
        self,
        weights: str,
        recall: float,
        digest: str = "e" * 64,
        champion_answers: Answers | None = None,
        plan: str = TRAIN,
        made_from: str = "",
        **params: Any,
    ) -> dict[str, Any]:
        self.runs += 1
        folder = self.folder / str(self.runs)
        model = folder / "tuned_model"
        model.mkdir(parents=True)
        (model / "weights.safetensors").write_text(weights)
        (model / "config.json").write_text("{}")
        model_digest = write_manifest(model, model_folder.KIND, model_folder.FORMAT_VERSION).digest
        save(folder / "evaluation", measured(recall, digest, model_digest), champion_answers)
        (folder / "report").write_text("<h1>Report</h1>")
        outputs = promote(
            Params(registered_model=self.name, **params),
            tuned_model=model,
            evaluation=folder / "evaluation",
            report=folder / "report",
            decision=folder / "decision",
            verdict_page=folder / "verdict_page",
            plan=InputText(plan),
            made_from=InputText(made_from),
        )
        return dict(outputs["decision"])

    def skip(self, reason: str) -> dict[str, Any]:
        """Promote, when all other steps had nothing to do."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        for name in ("tuned_model", "evaluation"):
            (folder / name).mkdir(parents=True)
        (folder / "report").touch()
        outputs = promote(
            Params(registered_model=self.name),
            *(folder / name for name in ("tuned_model", "evaluation", "report", "decision", "verdict_page")),
            plan=InputText(SKIP + reason),
            made_from=InputText(MADE_FROM.text()),
        )
        return dict(outputs["decision"])

    @property
    def champion(self) -> int | None:
        found = champion(self.name)
        return found.version if found else None

    @property
    def versions(self) -> list[int]:
        return sorted(int(found.version) for found in client().search_model_versions(f"name = '{self.name}'"))

    def tags(self, version: int) -> dict[str, str]:
        return client().get_model_version(self.name, str(version)).tags


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(tmp_path, re.sub(r"\W+", "-", request.node.name).strip("-"))


def measured(recall: float, digest: str, model_digest: str) -> Evaluation:
    shares = {
        field.name: recall
        for field in dataclasses.fields(Evaluation)
        if field.name.startswith("recall_at_") or field.name in ("map_at_r", "r_precision", "macro_recall_at_1")
    }
    return Evaluation(
        evaluation_digest=digest,
        protocol="test images among test images",
        queries=QUERIES,
        queries_without_positive=0,
        classes=CLASSES,
        pessimistic_recall_at_1=recall,
        ties=0,
        threshold=Acceptance(0.9, False, None, 0, None, 0.0, None, 0.0),
        stages=(),
        recall_by_class=(),
        model_digest=model_digest,
        dataset_digest="d" * 64,
        versions={"torch": "2.0.0"},
        **shares,
    )


def answered(recall: float, digest: str, model_digest: str) -> Answers:
    """So many right answers; the wrong ones go round the classes, so that a better model breaks none."""
    numbers, wrong = np.arange(QUERIES), round(QUERIES * (1 - recall))
    images, classes = numbers.astype(str), np.char.add("class ", (numbers % CLASSES).astype(str))
    right = numbers >= wrong
    nearest = np.where(right, (numbers + CLASSES) % QUERIES, (numbers + 1) % QUERIES)
    rows = in_order(images, classes, right, images[nearest], classes[nearest], numbers / QUERIES)
    return Answers(digest, model_digest, 128, 500.0, **rows)


def save(folder: Path, evaluation: Evaluation, champion_answers: Answers | None = None) -> None:
    row = {"query": 0, "label": 0, "class_name": "0", "nearest": 1, "nearest_label": 0, "similarity": 1.0}
    row |= {"correct": True, "neighbours": [1], "neighbour_similarities": [1.0]}
    table = pa.Table.from_pylist([row] * evaluation.queries, QUERY_SCHEMA)
    answers = answered(evaluation.recall_at_1, evaluation.evaluation_digest, evaluation.model_digest)
    save_evaluation(folder, evaluation, table, answers=answers, champion=champion_answers, pictures=PICTURES)


def test_the_first_model_above_the_floor_becomes_champion(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    decision = bench.promote("one", 0.95)
    assert (decision["outcome"], decision["rule"], decision["alias"]) == ("promoted", "first_model", "champion")
    assert (decision["version"], decision["recall_at_1"]) == (1, 0.95)
    assert "champion_recall_at_1" not in decision
    assert bench.champion == 1
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith(f"Promoted: {bench.name} version 1 is now champion: R@1 95.00% reaches the floor")
    assert "1,000 queries of 100 classes" in second


def test_a_model_below_the_floor_is_registered_without_the_alias(bench: Bench) -> None:
    decision = bench.promote("one", 0.5)
    assert (decision["outcome"], decision["rule"], decision["alias"]) == ("rejected", "floor", "")
    assert (bench.champion, bench.versions) == (None, [1])
    tags = bench.tags(1)
    assert (tags["rankone.outcome"], tags["rankone.floor"], tags["rankone.recall_at_1"]) == ("rejected", "0.9", "0.5")
    assert "below the floor" in tags["rankone.reason"]
    assert bench.promote("one", 0.5, minimum_recall_at_1=0.4)["outcome"] == "promoted"
    assert (bench.champion, bench.versions) == (1, [1])
    assert bench.tags(1)["rankone.outcome"] == "promoted"


def test_only_a_better_model_on_the_same_images_takes_the_alias(bench: Bench) -> None:
    assert bench.promote("one", 0.95)["rule"] == "first_model"
    assert bench.promote("two", 0.95)["rule"] == "not_better"
    assert bench.promote("three", 0.99, digest="f" * 64)["rule"] == "other_evaluation"
    assert bench.promote("four", 0.96, minimum_gain=0.02)["rule"] == "not_better"
    assert bench.champion == 1
    decision = bench.promote("five", 0.96)
    assert (decision["rule"], decision["champion_recall_at_1"]) == ("better", 0.95)
    assert (decision["champion_version"], decision["fixed"], decision["broken"]) == ("1", 10, 0)
    assert 0 < decision["gain_low"] < decision["gain"] == pytest.approx(0.01)
    assert bench.champion == 5
    assert bench.promote("one", 0.95)["rule"] == "not_better"
    assert (bench.champion, bench.versions) == (5, [1, 2, 3, 4, 5])


def test_promoting_the_champion_again_changes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.promote("one", 0.95)
    before = bench.tags(1)
    capsys.readouterr()
    decision = bench.promote("one", 0.95)
    assert (decision["outcome"], decision["rule"], decision["version"]) == ("skipped", "unchanged", 1)
    said = capsys.readouterr().out
    assert said.startswith(f"Skipped (unchanged): {bench.name} version 1 stays champion: version 1 holds this")
    assert (bench.champion, bench.versions) == (1, [1])
    assert bench.tags(1) == before
    assert len(history(bench.name).champion) == 1


def test_a_champion_that_comes_out_again_keeps_its_verdict_and_is_measured_anew(bench: Bench) -> None:
    bench.promote("one", 0.95)
    before = bench.tags(1)
    decision = bench.promote("one", 0.96, digest="f" * 64, minimum_recall_at_1=0.5, minimum_gain=0.1)
    assert decision["outcome"] == "skipped"
    changed = {name: text for name, text in bench.tags(1).items() if before[name] != text}
    assert changed.pop("rankone.evaluation_digest") == "f" * 64
    assert changed == dict.fromkeys(
        ("rankone.recall_at_1", "rankone.recall_at_1_low", "rankone.recall_at_1_high"), "0.96"
    )


def test_a_champion_by_hand_that_comes_out_again_stays_what_the_gate_said(bench: Bench) -> None:
    bench.promote("one", 0.5)
    promote_by_hand(bench.name, 1, "The floor is too high.", by_hand=True)
    assert bench.promote("one", 0.5)["outcome"] == "skipped"
    assert (bench.tags(1)["rankone.outcome"], bench.tags(1)["rankone.rule"]) == ("rejected", "floor")


def test_a_run_with_nothing_to_train_on_is_recorded_and_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.promote("one", 0.95)
    before = bench.tags(1)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "a-nightly-run")
    capsys.readouterr()
    decision = bench.skip("data, parameters and code are those of version 1, the champion")
    assert decision == {
        "outcome": "skipped",
        "rule": "unchanged",
        "reason": "data, parameters and code are those of version 1, the champion",
        "registered_model": bench.name,
        "alias": "",
        "champion_version": 1,
    }
    line = (
        f"Skipped (unchanged): {bench.name}: data, parameters and code are those of version 1, the champion; version 1"
    )
    assert capsys.readouterr().out.startswith(line)
    folder = bench.folder / "2" / "decision"
    written = json.loads((folder / "decision.json").read_text())
    assert written.items() >= decision.items()
    assert MadeFrom.parse(written[TAG]) == MADE_FROM
    assert (folder / "gate.md").read_text().startswith(f"**Skipped (unchanged): {bench.name}**: data")
    read_manifest(folder, KIND, FORMAT_VERSION)
    assert "Skipped (unchanged)" in (bench.folder / "2" / "verdict_page").read_text()
    of_step, of_pipeline = runs_of("a-nightly-run")
    for tags in (of_step, of_pipeline):
        assert (tags["rankone.outcome"], tags["rankone.rule"]) == ("skipped", "unchanged")
        assert tags["rankone.champion_version"] == "1"
        assert "rankone.version" not in tags
    assert (bench.tags(1), bench.versions, len(history(bench.name).champion)) == (before, [1], 1)


def test_a_run_with_nothing_to_train_on_needs_no_champion(bench: Bench) -> None:
    bench.promote("one", 0.5)
    assert "champion_version" not in bench.skip("what it would make is version 1, which the gate rejected (floor)")


def runs_of(key: str) -> tuple[dict[str, str], dict[str, str]]:
    """Tags of the run of promote and of the pipeline's run."""
    places = [each.experiment_id for each in client().search_experiments()]
    found = client().search_runs(places, f"tags.`{PIPELINE_RUN}` = '{key}'")
    by_step = {run.data.tags.get("rankone.step", ""): run.data.tags for run in found}
    return by_step["promote"], by_step[""]


def test_the_run_of_the_pipeline_says_what_came_of_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "a-run-of-its-own")
    bench.promote("one", 0.95)
    of_step, of_pipeline = runs_of("a-run-of-its-own")
    told = {name: of_pipeline[f"rankone.{name}"] for name in ("outcome", "rule", "registered_model", "version")}
    assert told == {"outcome": "promoted", "rule": "first_model", "registered_model": bench.name, "version": "1"}
    assert of_pipeline["rankone.reason"] == of_step["rankone.reason"]


def test_a_version_carries_what_it_was_made_from_and_when_it_was_last_trained(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(time: str) -> None:
        monkeypatch.setattr(step, "utc_now", lambda: time)

    at("2026-01-01T00:00:00Z")
    bench.promote("one", 0.95, made_from=MADE_FROM.text())
    assert MadeFrom.parse(bench.tags(1)[TAG]) == MADE_FROM
    at("2026-02-01T00:00:00Z")
    bench.promote("one", 0.95, made_from=MADE_FROM.text())
    assert bench.tags(1)[TRAINED_AT] == "2026-01-01T00:00:00Z", "it may have come from a cache"
    other = dataclasses.replace(MADE_FROM, parameters="q" * 64)
    bench.promote("one", 0.95, plan=f"{AGAIN}version 1", made_from=other.text())
    (again,) = registry.versions_of(bench.name)
    assert origins(again) == [MADE_FROM, other]
    assert bench.tags(1)[TRAINED_AT] == "2026-02-01T00:00:00Z"


def test_what_later_runs_compare_with_is_kept_with_the_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_evaluation

    def with_lists(folder: Path, *values: Any, **named: Any) -> Any:
        folder.mkdir(parents=True)
        for name in (IMAGES, REFERENCE):
            (folder / name).write_text(f"what is in {name}")
        return saved(folder, *values, **named)

    monkeypatch.setitem(globals(), "save_evaluation", with_lists)
    bench.promote("one", 0.95)
    version = registry.champion(bench.name)
    assert version is not None
    for name in (IMAGES, REFERENCE):
        kept = registry.fetch_file(version, f"data/{name}", bench.folder)
        assert kept is not None
        assert kept.read_text() == f"what is in {name}"


def test_a_champion_measured_on_new_images_can_be_compared_on_them(bench: Bench) -> None:
    bench.promote("one", 0.95)
    assert bench.promote("two", 0.97, digest="f" * 64)["rule"] == "other_evaluation"
    assert bench.promote("one", 0.96, digest="f" * 64)["outcome"] == "skipped"
    assert bench.promote("two", 0.97, digest="f" * 64)["rule"] == "better"
    assert (bench.champion, bench.versions) == (2, [1, 2])


def test_a_champion_is_judged_by_what_evaluate_scored_it_at(bench: Bench) -> None:
    bench.promote("one", 0.95)
    model = registry.champion(bench.name)
    assert model is not None
    scored = answered(0.94, "f" * 64, model.model_digest)
    other_model = dataclasses.replace(scored, model_digest="0" * 64)
    assert bench.promote("two", 0.97, "f" * 64, other_model)["rule"] == "other_evaluation", "of the champion before"
    other_images = dataclasses.replace(scored, images=np.char.add(scored.images.astype(str), "b").astype(object))
    assert bench.promote("three", 0.97, "f" * 64, other_images)["rule"] == "other_evaluation"
    decision = bench.promote("four", 0.97, "f" * 64, scored)
    assert (decision["rule"], decision["champion_recall_at_1"], bench.champion) == ("better", 0.94, 4)


@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        ({"minimum_queries": 1_001}, "few_queries"),
        ({"maximum_dimension": 127}, "dimension"),
        ({"minimum_images_per_second": 501.0}, "speed"),
        ({"maximum_dimension": 128, "minimum_images_per_second": 500.0}, "better"),
    ],
)
def test_the_guards_hold_for_who_would_replace_a_champion(bench: Bench, knobs: dict[str, Any], rule: str) -> None:
    assert bench.promote("one", 0.95, **knobs)["rule"] == "first_model", "the first model needs the floor only"
    assert bench.promote("two", 0.97, **knobs)["rule"] == rule


def test_a_gain_that_may_be_chance_is_let_through_only_if_allowed(bench: Bench) -> None:
    bench.promote("one", 0.95)
    assert bench.promote("two", 0.951)["rule"] == "regression"
    assert bench.promote("two", 0.951, maximum_regression=0.002)["rule"] == "better"


def test_the_page_says_first_what_was_decided_and_why(bench: Bench) -> None:
    bench.promote("one", 0.95)
    decision = bench.promote("two", 0.97, digest="e" * 64)
    page = (bench.folder / "2" / "decision" / "gate.md").read_text()
    first, *rest = page.splitlines()
    assert first == f"**Promoted: {bench.name} version 2 is now champion**: {decision['reason']}"
    text = "\n".join(rest)
    assert "| R@1 | 97.00% | 95.00% |" in text
    assert "| few_queries | 1,000 queries | 100 queries or more | passes |" in text
    assert "20 are fixed and 0 broken (McNemar's exact p 1.9e-06)" in text
    assert "0 of 100 classes fall" in text
    run = client().get_run(client().get_model_version(bench.name, "2").run_id)
    assert run.data.tags["mlflow.note.content"] == page
    assert {file.path for file in client().list_artifacts(run.info.run_id)} >= {"gate.md", "answers"}
    written = json.loads((bench.folder / "2" / "decision" / "decision.json").read_text())
    assert written["comparison"]["fixed"] == 20
    assert len(written["comparison"]["class_changes"]) == 100
    assert [check["rule"] for check in written["checks"]] == [
        "floor",
        "few_queries",
        "not_better",
        "regression",
        "class_drop",
    ]
    assert written["thresholds"]["maximum_regression"] == 0.0


def test_the_page_with_the_galleries_is_kept_and_so_are_the_pictures(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.95)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "a-run")
    decision = bench.promote("two", 0.97)
    page = (bench.folder / "2" / "verdict_page").read_text()
    body = page.partition("<body>")[2]
    assert body.index(f"Promoted: {bench.name} version 2 is now champion") < body.index(decision["reason"])
    assert "20 fixed" in page
    assert "0 broken" in page
    assert uri_of(PICTURES["49"]) in page, "the surest mistake of the champion that is none now"
    assert f"rankone rollback --to 1 --model {bench.name}" in page
    run = client().get_run(client().get_model_version(bench.name, "2").run_id)
    note = run.data.tags["mlflow.note.content"]
    assert f"`rankone rollback --to 1 --model {bench.name} --reason" in note
    assert f"| champion | {bench.name} version 1 |" in note
    assert "| pipeline run | a-run |" in note
    assert "verdict.html" in {file.path for file in client().list_artifacts(run.info.run_id)}
    (kept,) = client().list_artifacts(run.info.run_id, "pictures")
    assert kept.path == f"pictures/{'e' * 64}.parquet"
    assert bench.promote("three", 0.9, minimum_recall_at_1=0.5)["rule"] == "not_better"
    assert f"rankone promote 3 --model {bench.name}" in (bench.folder / "3" / "verdict_page").read_text()
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "another-run")
    assert bench.promote("two", 0.97)["outcome"] == "skipped"
    assert 'id="galleries"' not in (bench.folder / "4" / "verdict_page").read_text()


def test_on_a_server_the_page_links_to_the_champion_without_its_password(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.95)
    given = "http://user:secret@mlflow.example/"
    monkeypatch.setattr(registry, "server_address", functools.partial(with_server, given, registry.server_address))
    bench.promote("two", 0.97)
    page = (bench.folder / "2" / "verdict_page").read_text()
    assert f'href="http://mlflow.example/#/models/{bench.name}/versions/1"' in page
    assert "secret" not in page


def with_server(address: str, ask: Callable[[], str]) -> str:
    """What a server of this address would be called, while the store is another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        return ask()


def test_the_decision_the_run_and_the_version_say_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "the-run")
    monkeypatch.setenv("RANKONE_CODE_VERSION", "code-1")
    decision = bench.promote("one", 0.95)
    folder = bench.folder / "1" / "decision"
    manifest = read_manifest(folder, KIND, FORMAT_VERSION)
    assert set(manifest.made_from) == {"tuned_model", "evaluation", "report"}
    written = json.loads((folder / "decision.json").read_text())
    assert written.items() >= decision.items()
    assert written["candidate"]["evaluation_digest"] == "e" * 64
    tags = bench.tags(1)
    assert tags["rankone.dataset_digest"] == "d" * 64
    assert tags["rankone.model_digest"] == manifest.made_from["tuned_model"]
    assert (tags["rankone.code_version"], tags["rankone.pipeline_run"]) == ("code-1", "the-run")
    run = client().get_run(client().get_model_version(bench.name, "1").run_id)
    assert (run.info.run_name, run.info.status) == ("promote", "FINISHED")
    assert (run.data.tags["rankone.outcome"], run.data.tags["rankone.version"]) == ("promoted", "1")
    assert run.data.metrics == {"recall_at_1": 0.95, "minimum_recall_at_1": 0.9}
    assert {file.path for file in client().list_artifacts(run.info.run_id)} >= {"decision.json", "report.html"}


def test_where_a_person_decides_the_winner_waits(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    decision = bench.promote("one", 0.95, promote_mode="manual")
    assert (decision["outcome"], decision["rule"], decision["alias"]) == ("waiting", "first_model", "challenger")
    assert bench.champion is None
    assert "Waiting: " in capsys.readouterr().out
    approve(bench.name, "Looked at its gallery.")
    assert bench.champion == 1
    assert bench.promote("two", 0.94, promote_mode="manual")["outcome"] == "rejected"
    assert bench.promote("three", 0.97, promote_mode="manual")["outcome"] == "waiting"
    assert bench.promote("four", 0.96)["outcome"] == "promoted"
    with pytest.raises(ConflictError, match="Version 3 was compared with version 1, and champion is version 4"):
        approve(bench.name, "Looked at its gallery.")
    assert bench.champion == 4


@pytest.mark.parametrize("run", ["", "the-run"])
def test_a_challenger_that_was_overtaken_is_judged_again_and_approved(
    bench: Bench, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.91)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", run)
    assert bench.promote("two", 0.97, promote_mode="manual")["outcome"] == "waiting"
    with monkeypatch.context() as patch:
        patch.setenv("RANKONE_PIPELINE_RUN", "another-run")
        bench.promote("three", 0.93)
    with pytest.raises(ConflictError, match="Version 2 was compared with version 1, and champion is version 3"):
        approve(bench.name, "Looked at its gallery.")
    for _ in range(2):
        assert bench.promote("two", 0.97, promote_mode="manual")["champion_version"] == "3"
    assert [entry.against for entry in history(bench.name).challenger] == [1, 3]
    approve(bench.name, "Looked at its gallery.")
    assert bench.champion == 2
    assert [(entry.action, entry.to) for entry in history(bench.name).challenger][2:] == [("withdraw", None)]


def test_two_runs_that_promote_at_the_same_moment_leave_one_champion_and_a_conflict(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.91)
    published = step.publish_model

    def meanwhile(*values: Any) -> Any:
        monkeypatch.setattr(step, "publish_model", published)
        bench.promote("three", 0.93)
        return published(*values)

    monkeypatch.setattr(step, "publish_model", meanwhile)
    with pytest.raises(ConflictError, match="was compared with version 1, and champion is version 3 since entry 2 by"):
        bench.promote("two", 0.95)
    assert bench.champion == 3
    assert (bench.tags(2)["rankone.outcome"], bench.tags(2)["rankone.rule"]) == ("rejected", "alias_not_moved")
    assert bench.promote("two", 0.95)["rule"] == "better", "judged again"
    assert [entry.to for entry in history(bench.name).champion] == [1, 3, 2]


def test_the_ledger_says_who_and_why_and_a_retried_run_promotes_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.91)
    with monkeypatch.context() as patch:
        patch.setenv("RANKONE_PIPELINE_RUN", "the-run")
        bench.promote("two", 0.95)
        entry = history(bench.name).champion[-1]
        assert (entry.before, entry.to, entry.by) == (1, 2, "pipeline run the-run")
        assert entry.why == bench.tags(2)["rankone.reason"]
        assert entry.report.endswith("/decision.json")
        assert bench.promote("two", 0.95)["outcome"] == "promoted"
    assert bench.promote("two", 0.95)["outcome"] == "skipped", "in a run of its own"
    assert [entry.to for entry in history(bench.name).champion] == [1, 2]
    rollback(bench.name, "Users complain.")
    before = bench.tags(2)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "the-run")
    with pytest.raises(ConflictError, match=r"made version 2 champion already, by entry 2 .* entry 3 .*Users complain"):
        bench.promote("two", 0.95)
    assert bench.champion == 1
    assert bench.tags(2) == before


def test_a_run_whose_promotion_was_overtaken_says_so_when_it_is_retried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.91)
    with monkeypatch.context() as patch:
        patch.setenv("RANKONE_PIPELINE_RUN", "the-run")
        bench.promote("two", 0.95)
    before = bench.tags(2)
    bench.promote("three", 0.97)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "the-run")
    with pytest.raises(ConflictError, match=r"made version 2 champion already, by entry 2 .* entry 3 .*version 3"):
        bench.promote("two", 0.95)
    assert (bench.champion, bench.tags(2)) == (3, before)


def fail(*_: Any, **__: Any) -> None:
    raise TrackingError("MLflow does not answer.")


@pytest.mark.parametrize("call", ["components.promote.step.log_decision", "retrieval.ledger.finish"])
def test_a_retried_step_tells_of_its_promotion(bench: Bench, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.promote("one", 0.91)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", run := f"retried after {call}")
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)  # the ledger has its entry by then
        with pytest.raises(TrackingError):
            bench.promote("two", 0.97)
    before, entry = bench.tags(2), history(bench.name).champion[-1]
    decision = bench.promote("two", 0.97)
    assert (decision["outcome"], decision["rule"], decision["alias"]) == ("promoted", "better", "champion")
    assert (decision["reason"], decision["champion_version"]) == (entry.why, "1")
    assert (decision["fixed"], decision["broken"]) == (60, 0)
    assert (bench.champion, bench.tags(2)) == (2, before)
    assert history(bench.name).champion[-1] == entry
    assert history(bench.name).aliases == {"champion": 2, "previous": 1}
    written = json.loads((bench.folder / "3" / "decision" / "decision.json").read_text())
    assert written["comparison"]["fixed"] == 60
    page = (bench.folder / "3" / "verdict_page").read_text()
    assert f"Promoted: {bench.name} version 2 is now champion" in page
    assert "60 fixed" in page
    assert f"rankone rollback --to 1 --model {bench.name}" in page
    news = news_of(run, records_of(run), Ending("SUCCEEDED"))
    assert (news.outcome, news.headline) == ("promoted", f"Promoted: {bench.name} version 2 is now champion")
    assert (news.reason, news.champion_version, news.gain) == (entry.why, "1", pytest.approx(0.06))
    assert runs_of(run)[1]["rankone.outcome"] == "promoted"


def test_the_first_champion_is_told_of_as_such_when_its_step_is_retried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "the-first-run")
    first, again = bench.promote("one", 0.95), bench.promote("one", 0.95)
    assert again == first
    assert (again["outcome"], again["rule"]) == ("promoted", "first_model")


@pytest.mark.parametrize("gone", ["the answers", "the version"])
def test_a_promotion_that_cannot_be_compared_any_more_is_told_by_the_ledger(
    bench: Bench, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.promote("one", 0.91)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "the-run")
    first, before = bench.promote("two", 0.97), bench.tags(2)
    if gone == "the answers":
        monkeypatch.setattr(step, "find_answers", lambda *_: None)
    else:
        client().delete_model_version(bench.name, "1")
    again = bench.promote("two", 0.97)
    assert again.items() >= {name: first[name] for name in ("outcome", "rule", "reason", "version", "alias")}.items()
    assert "gain" not in again
    assert bench.tags(2) == before
    assert len(history(bench.name).champion) == 2


def test_an_alias_that_was_moved_by_hand_stops_a_promotion_and_is_told_of(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.promote("one", 0.93)
    bench.promote("two", 0.91)
    client().set_registered_model_alias(bench.name, "champion", "2")
    capsys.readouterr()
    assert bench.promote("three", 0.5)["outcome"] == "rejected"
    assert "Mind: the alias champion is at version 2" in capsys.readouterr().out
    with pytest.raises(AliasMovedError, match="says version 1: somebody moved it by hand"):
        bench.promote("four", 0.99)
    assert bench.champion == 2


def test_a_version_carries_its_card_and_where_it_comes_from(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "whole-run")
    monkeypatch.setenv("RANKONE_CODE_VERSION", "code-1")
    monkeypatch.setenv("RANKONE_PIPELINE_ADDRESS", "https://pipelines.example/#/runs/details/{run}")
    with monkeypatch.context() as patch, step_run("co_cluster", {}):
        patch.setenv("RANKONE_IMAGE", "not told yet: the run has begun")
    with monkeypatch.context() as patch:
        patch.setenv("RANKONE_IMAGE", "there/training@sha256:1")
        with step_run("pretrain", {"epochs": 3}) as run:
            run.set_tags({"rankone.device": "NVIDIA X"})
    bench.promote("one", 0.95)
    tags, found = bench.tags(1), client().get_model_version(bench.name, "1")
    assert json.loads(tags["rankone.images"]) == dict.fromkeys(("co_cluster", "pretrain", "promote"), "code-1")
    assert json.loads(tags["rankone.image_digests"]) == {"pretrain": "there/training@sha256:1"}
    assert json.loads(tags["rankone.devices"]) == {"pretrain": "NVIDIA X"}
    assert set(json.loads(tags["rankone.step_seconds"])) == {"co_cluster", "pretrain"}
    assert tags["rankone.pipeline_address"] == "https://pipelines.example/#/runs/details/whole-run"
    assert len(tags["rankone.parameters_digest"]) == 64
    assert (float(tags["rankone.recall_at_1_low"]), float(tags["rankone.recall_at_1_high"])) == (0.95, 0.95)
    assert found.description.startswith(f"# {bench.name}: image embeddings")
    assert "R@1 95.00%" in found.description
    files = Path(found.source.removeprefix("file://").replace("%20", " "))
    assert (files / "model_card.md").read_text() == found.description


def test_an_evaluation_of_another_model_is_refused(bench: Bench) -> None:
    bench.promote("one", 0.95)
    first, other = bench.folder / "1", bench.folder / "other"
    save(other, measured(0.99, "e" * 64, "f" * 64))
    with pytest.raises(ValueError, match="evaluate this model"):
        promote(
            Params(registered_model=bench.name),
            tuned_model=first / "tuned_model",
            evaluation=other,
            report=first / "report",
            decision=bench.folder / "decision",
            verdict_page=bench.folder / "verdict_page",
        )
    assert bench.versions == [1]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"registered_model": "a/b"}, "registered_model is 'a/b'"),
        ({"registered_model": ""}, "registered_model is ''"),
        ({"minimum_recall_at_1": 90.0}, "minimum_recall_at_1 is 90.0"),
        ({"promote_mode": "ask"}, "Unknown promote_mode 'ask'; choose one of: auto, manual"),
        ({"minimum_gain": float("nan")}, "minimum_gain is nan"),
        ({"maximum_regression": -0.1}, "maximum_regression is -0.1"),
        ({"maximum_class_drop": 20.0}, "maximum_class_drop is 20.0"),
        ({"minimum_queries": -1}, "minimum_queries is -1"),
        ({"maximum_dimension": -1}, "maximum_dimension is -1"),
        ({"minimum_images_per_second": float("inf")}, "minimum_images_per_second is inf"),
    ],
)
def test_knobs_that_cannot_be_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Params(**knobs)


@pytest.mark.usefixtures("bucket")
def test_model_and_report_are_published_before_the_alias_moves(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="answered NoSuchBucket"):
        bench.promote("one", 0.95, publish_to="s3://missing/models")
    assert (bench.champion, bench.versions) == (None, [1])
    decision = bench.promote("one", 0.95, publish_to="s3://bucket/models/")
    assert decision["published"] == f"s3://bucket/models/{bench.name}/1"
    assert bench.champion == 1
    fetch(Address.parse(decision["published"]), tmp_path / "back", "publication", PUBLICATION_FORMAT)
    assert read_manifest(tmp_path / "back" / "model", model_folder.KIND, model_folder.FORMAT_VERSION)
    assert (tmp_path / "back" / "report.html").read_text() == "<h1>Report</h1>"


def test_a_place_to_publish_is_a_bucket() -> None:
    with pytest.raises(ValueError, match="publish_to is '/models'; give s3://bucket/prefix, or nothing"):
        Params(publish_to="/models")

import dataclasses
import json
from pathlib import Path

import pytest

from retrieval.evaluation import Acceptance, ClassRecall, Evaluation, Speed
from retrieval.manifest import write_manifest
from retrieval.model_card import LONGEST, model_card, shortened, weak_classes
from retrieval.model_folder import FORMAT_VERSION, KIND
from tests.components.test_promote import measured


@pytest.fixture
def evaluation() -> Evaluation:
    classes = tuple(ClassRecall(f"class {number}", 10 + number, number / 10) for number in range(9, 0, -1))
    return dataclasses.replace(
        measured(0.9, "e" * 64, "m" * 64),
        recall_at_1_low=0.875,
        recall_at_1_high=0.925,
        queries=1_234,
        classes=9,
        recall_by_class=classes,
        speeds=(Speed("finetune_softmax", None, 1_500.0, 9.0),),
    )


def card_of(tmp_path: Path, evaluation: Evaluation, tags: dict[str, str], facts: dict[str, object]) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "four_layer", "dimension": 128}))
    manifest = write_manifest(folder, KIND, FORMAT_VERSION, {}, facts)
    return model_card("digits", folder, manifest, evaluation, tags)


def test_a_card_says_how_good_from_what_and_how(tmp_path: Path, evaluation: Evaluation) -> None:
    tags = {
        "rankone.pipeline_run": "run-7",
        "rankone.code_version": "code-1",
        "rankone.step_seconds": '{"pretrain": 61.4}',
    }
    card = card_of(tmp_path, evaluation, tags, {"softmax_why": "It raised R@1.", "epochs": 3})
    for text in (
        "# digits: image embeddings for retrieval",
        "R@1 90.00% (95 % interval 87.50% to 92.50%, the wider by class and by query), 1,234 queries of 9 classes",
        "- class 1: R@1 10.00% of 11 queries",
        "dataset `dddddddddddd`, evaluation `eeeeeeeeeeee`",
        "pipeline run run-7",
        "network four_layer",
        "dimension 128",
        "It raised R@1.",
        "pretrain 61 s",
        "embeds 1,500 images a second",
        "no similarity was found",
    ):
        assert text in card, text
    sections = [line for line in card.splitlines() if line.startswith("## ")]
    assert sections == ["## Figures", "## Weak classes", "## Data", "## Method", "## Cost", "## Use"]


def test_a_threshold_is_told_where_there_is_one(tmp_path: Path, evaluation: Evaluation) -> None:
    values = {field.name: getattr(evaluation.threshold, field.name) for field in dataclasses.fields(Acceptance)}
    found = dataclasses.replace(evaluation, threshold=Acceptance(**(values | {"value": 0.75})))
    assert "from the cosine similarity 0.7500 on" in card_of(tmp_path, found, {}, {})


def test_the_weakest_classes_come_first(evaluation: Evaluation) -> None:
    assert [line.split(":")[0] for line in weak_classes(evaluation)] == [f"class {number}" for number in range(1, 6)]


def test_what_comes_from_elsewhere_is_one_plain_line(tmp_path: Path, evaluation: Evaluation) -> None:
    classes = (ClassRecall("# <b>|\n" + "x" * 9_000, 1, 0.0),)
    bad = dataclasses.replace(evaluation, recall_by_class=classes)
    card = card_of(tmp_path, bad, {}, {f"{number}_why": "y" * 900 for number in range(40)})
    assert len(card) <= LONGEST
    assert "- \\# \\<b\\>\\|" in card
    assert card.endswith("\n…")


@pytest.mark.parametrize("longest", [5, 8, 9, 100])
def test_a_text_loses_whole_lines(longest: int) -> None:
    text = "ab\ncd\nef\n"
    found = shortened(text, longest)
    assert len(found) <= longest
    assert found == text or text.startswith(found.removesuffix("\n…"))

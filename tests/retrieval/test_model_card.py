import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from retrieval.evaluation import Acceptance, ClassRecall, Evaluation, Speed
from retrieval.manifest import write_manifest
from retrieval.model_card import LONGEST, model_card, shortened, use, weak_classes
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
    card = card_of(tmp_path, evaluation, tags, {"softmax_why": "It raised R@1.", "epochs": 3, "dimension": 139})
    for text in (
        "# digits: image embeddings for retrieval",
        "R@1 90.00% (95 % interval 87.50% to 92.50%, the wider by class and by query), 1,234 queries of 9 classes",
        "- class 1: R@1 10.00% of 11 queries",
        "dataset `dddddddddddd`, evaluation `eeeeeeeeeeee`",
        "pipeline run run-7",
        "network four_layer",
        "dimension 139",
        "It raised R@1.",
        "pretrain 61 s",
        "embeds 1,500 images a second",
        "trust no similarity: none was chosen, for R@1 could not be measured on validation",
    ):
        assert text in card, text
    sections = [line for line in card.splitlines() if line.startswith("## ")]
    assert sections == ["## Figures", "## Weak classes", "## Data", "## Method", "## Cost", "## Use"]


CHOSEN = Acceptance(0.9, True, 0.75, 80, 0.93, 0.9, 0.96, 0.8, precision_low=0.92, verdict="accepted")
POOR = {"precision": 0.5, "precision_low": 0.4, "verdict": "not accepted"}
UNDECIDED = {"precision": 0.91, "precision_low": 0.85, "verdict": "inconclusive"}
UNREACHED = {"precision": None, "coverage": 0.0, "precision_low": None, "verdict": "inconclusive"}
NOT_FOUND = {"reached": False, "value": None, "precision": None, "precision_low": None, "verdict": "no threshold"}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            {},
            "trust an answer from the cosine similarity 0.7500 on: accepted on test, where 80.00% of the queries have "
            "such an answer and 96.00% of those are right (92.00% or more with 95 % confidence; asked for: 90.00%)",
        ),
        (
            POOR,
            "trust no similarity: 0.7500, chosen on validation, is not accepted on test, where 80.00% of the queries "
            "have such an answer and 50.00% of those are right (40.00% or more",
        ),
        (UNDECIDED, "trust no similarity: 0.7500, chosen on validation, is inconclusive on test, where 80.00%"),
        (UNREACHED, "trust no similarity: 0.7500, chosen on validation, is inconclusive on test, where no query has"),
        (NOT_FOUND, "trust no similarity: none gives 90.00% right answers to the 80 validation queries"),
        (
            NOT_FOUND | {"validation_queries": 29},
            "trust no similarity: 29 validation queries are too few to choose one on, 30 are the least",
        ),
        (
            NOT_FOUND | {"validation_queries": 0},
            "trust no similarity: none was chosen, for R@1 could not be measured on validation",
        ),
    ],
)
def test_of_trust_it_is_spoken_only_where_test_accepts_it(
    evaluation: Evaluation, found: dict[str, Any], told: str
) -> None:
    judged = dataclasses.replace(evaluation, threshold=dataclasses.replace(CHOSEN, **found))
    (said,) = [line for line in use("digits", judged) if "trust" in line]
    assert said.startswith(told)


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

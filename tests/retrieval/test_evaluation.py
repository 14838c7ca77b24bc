import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from retrieval.evaluation import (
    EVALUATION,
    QUERIES,
    QUERY_SCHEMA,
    Acceptance,
    ClassRecall,
    Confusion,
    CurvePoint,
    Evaluation,
    FeatureLearning,
    FurtherDataset,
    Kept,
    MissingParts,
    Mistaken,
    Speed,
    Stage,
    evaluation_digest,
    installed_versions,
    load_evaluation,
    load_queries,
    save_evaluation,
)
from retrieval.thresholds import Trials

TRIALS = Trials(200, 0.95, 0.75, 0.5, None, 0.7)
CURVE = (CurvePoint(0.1, 0.5, 1.0), CurvePoint(0.9, 1.0, 0.1))
THRESHOLD = Acceptance(0.9, True, 0.75, 40, 0.92, 0.5, 0.875, 0.4, CURVE, (), TRIALS, 0.7, "inconclusive")
EXAMPLE = Evaluation(
    evaluation_digest="e" * 64,
    protocol="closed split",
    queries=2,
    queries_without_positive=1,
    classes=2,
    recall_at_1=0.5,
    recall_at_1_low=0.0,
    recall_at_1_high=1.0,
    recall_at_2=0.75,
    recall_at_4=0.8,
    recall_at_8=0.9,
    map_at_r=0.4,
    r_precision=0.45,
    macro_recall_at_1=0.5,
    pessimistic_recall_at_1=0.5,
    ties=0,
    threshold=THRESHOLD,
    stages=(Stage("pretrain", 0.3, 0.2, 0.4, None, 0.2, 16), Stage("finetune_softmax", 0.5, 0.0, 1.0, 0.6, 0.4, 8)),
    recall_by_class=(ClassRecall("dögs", 1, 0.0), ClassRecall("cats", 1, 1.0)),
    model_digest="a" * 64,
    dataset_digest="d" * 64,
    versions={"python": "3.11"},
    confusion=(Confusion("dögs", 1, 1, (Mistaken("cats", 1),)),),
    speeds=(Speed("pretrain", None, None, 12.5), Speed("finetune_softmax", 3.5, 4.5, 5.5)),
    feature_learning=FeatureLearning(3, 8, 4, Kept(0.5, 0.4, -0.3), Kept(0.1, 0.2, 0.0), Kept(1.0, 0.8, 0.0)),
    missing_parts=(MissingParts("whole", 0.0, 2, 0.5), MissingParts("block", 0.25, 2, 0.25)),
    further_datasets=(FurtherDataset("other", 9, True, 3, 8, 0.5, 0.4, 0.6, 0.1, 64, 32, "f" * 64),),
)
QUERY = {
    "query": 4,
    "label": 0,
    "class_name": "cats",
    "nearest": 5,
    "nearest_label": 0,
    "similarity": 0.5,
    "correct": True,
    "neighbours": [5, 6],
    "neighbour_similarities": [0.5, 0.25],
}
TABLE = pa.Table.from_pylist([QUERY, QUERY | {"query": 5, "nearest": 4}], QUERY_SCHEMA)


@pytest.mark.parametrize(
    "evaluation",
    [
        EXAMPLE,
        replace(EXAMPLE, threshold=replace(THRESHOLD, reached=False, value=None, precision=None, trials=None)),
        replace(EXAMPLE, confusion=(), speeds=(), feature_learning=None, missing_parts=(), further_datasets=()),
    ],
    ids=["all", "no threshold", "no more than retrieval"],
)
def test_comes_back_as_it_was_saved(evaluation: Evaluation, tmp_path: Path) -> None:
    manifest = save_evaluation(tmp_path / "evaluation", evaluation, TABLE, {"dataset": "d" * 64})
    assert load_evaluation(tmp_path / "evaluation") == evaluation
    assert load_queries(tmp_path / "evaluation").equals(TABLE)
    assert manifest.made_from == {"dataset": "d" * 64}


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save_evaluation(tmp_path / name, EXAMPLE, TABLE) for name in "ab")
    assert first == second


@pytest.mark.parametrize("name", [EVALUATION, QUERIES])
def test_an_altered_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    save_evaluation(tmp_path, EXAMPLE, TABLE)
    with (tmp_path / name).open("ab") as file:
        file.write(b" ")
    for load in (load_evaluation, load_queries):
        with pytest.raises(ValueError, match=rf"{name} was truncated or altered"):
            load(tmp_path)


def test_keys_are_plain_json(tmp_path: Path) -> None:
    save_evaluation(tmp_path, EXAMPLE, TABLE)
    values = json.loads((tmp_path / EVALUATION).read_text())
    assert values["recall_at_1"] == 0.5
    assert values["threshold"]["value"] == 0.75
    assert values["stages"][1]["recall_at_1_to_train"] == 0.6


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_evaluation(tmp_path, replace(EXAMPLE, map_at_r=float("nan")), TABLE)


def test_the_ratio_to_a_ceiling_of_nothing_is_none() -> None:
    assert EXAMPLE.feature_learning is not None
    assert EXAMPLE.feature_learning.ratios() == {"linear_cka": 0.5, "neighbour_overlap": 0.5, "rank_correlation": None}


def test_one_row_a_query(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 rows for 2 queries"):
        save_evaluation(tmp_path, EXAMPLE, TABLE.slice(1))


def test_the_digest_names_images_classes_and_protocol_in_no_order() -> None:
    images = [("aa", "cat"), ("bb", "dog"), ("bb", "dog")]
    digest = evaluation_digest("closed", images)
    assert digest == evaluation_digest("closed", reversed(images))
    others = [images[:2], [("aa", "dog"), *images[1:]], [("ab", "cat"), *images[1:]]]
    assert digest not in {evaluation_digest("closed", other) for other in others}
    assert digest != evaluation_digest("disjoint", images)


def test_versions_are_recorded() -> None:
    versions = installed_versions()
    assert set(versions) == {"python", "torch", "numpy", "faiss", "rankone"}
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["faiss"][0].isdigit()


def test_loading_needs_no_torch(tmp_path: Path) -> None:
    save_evaluation(tmp_path, EXAMPLE, TABLE)
    program = f"""
import sys, pathlib
from retrieval.evaluation import load_evaluation
load_evaluation(pathlib.Path({str(tmp_path)!r}))
assert not {{"torch", "kfp", "mlflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("low", "ahead"), [(0.61, True), (0.6, False), (0.4, False)])
def test_a_stage_is_ahead_only_when_its_interval_lies_above_the_models(low: float, ahead: bool) -> None:
    stages = (Stage("pretrain", 0.7, low, 0.8, None, 0.2, 16), Stage("finetune_softmax", 0.5, 0.4, 0.6, None, 0.4, 8))
    measured = replace(EXAMPLE, stages=stages, recall_at_1_low=0.4, recall_at_1_high=0.6)
    assert (measured.ahead == stages[0]) == ahead
    assert (measured.ahead is None) != ahead

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.answer_records import (
    evaluations_of,
    find_answers,
    find_pictures,
    record_answers,
    record_pictures,
)
from retrieval.answers import FACTS, SCHEMA, Answers, in_order, load_answers, same_queries, save_answers
from retrieval.manifest import write_manifest
from retrieval.pictures import encoded, save_pictures
from retrieval.registry import ModelVersion, register
from retrieval.tracking import client, step_run

ROWS = st.lists(
    st.tuples(st.text("0a", min_size=1, max_size=2), st.sampled_from(["cat", "dög"]), st.booleans()), min_size=1
)
ROW_NAMES = ("correct", "nearest", "nearest_classes", "similarities")
DIGEST, MODEL = "e" * 64, "a" * 64


def answers(rows: list[tuple[str, str, bool]], **facts: object) -> Answers:
    """What is found follows from the query and from whether it is right, so that equal rows are equal."""
    images, classes, correct = (np.array(column, object) for column in zip(*rows, strict=True))
    known = {"evaluation_digest": DIGEST, "model_digest": MODEL, "dimension": 128, "images_per_second": 99.5}
    nearest = np.array([f"{image}-{right}" for image, _, right in rows], object)
    found = np.array([name if right else f"not {name}" for _, name, right in rows], object)
    similarities = np.array([len(image) / 4 + right / 8 for image, _, right in rows])
    return Answers(**(known | facts), **in_order(images, classes, correct, nearest, found, similarities))


EXAMPLE = answers([("b", "dög", False), ("a", "cat", True), ("c", "cat", True)])


def same(one: Answers, other: Answers) -> bool:
    facts = ("evaluation_digest", "model_digest", "dimension", "images_per_second")
    return (
        all(getattr(one, name) == getattr(other, name) for name in facts)
        and same_queries(one, other)
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ROW_NAMES)
    )


@given(ROWS, st.randoms(), st.none() | st.floats(0, 1e6))
@settings(deadline=None)
def test_what_is_read_is_what_was_written_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, bool]],
    order: random.Random,
    speed: float | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "answers.parquet"
    shuffled = rows.copy()
    order.shuffle(shuffled)
    written = answers(shuffled, images_per_second=speed)
    save_answers(path, written)
    read = load_answers(path)
    assert same(read, written)
    assert same(read, answers(rows, images_per_second=speed))
    assert read.recall_at_1 == pytest.approx(sum(correct for *_, correct in rows) / len(rows))


def test_queries_are_told_apart_by_image_and_class() -> None:
    assert same_queries(EXAMPLE, answers([("a", "cat", False), ("c", "cat", True), ("b", "dög", True)]))
    assert not same_queries(EXAMPLE, answers([("a", "cat", True), ("c", "cat", True)]))
    assert not same_queries(EXAMPLE, answers([("a", "dög", True), ("c", "cat", True), ("b", "dög", True)]))


def test_what_holds_no_answers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    with pytest.raises(ValueError, match=r"answers.parquet cannot be read: .*Run evaluate again"):
        load_answers(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read"):
        load_answers(path)
    pq.write_table(pa.table({"sha256": ["a"], "class_name": ["cat"], "correct": [True]}), path)
    with pytest.raises(ValueError, match="it holds no answers of format 2"):
        load_answers(path)
    old = SCHEMA.with_metadata({FACTS: json.dumps({"format_version": 1}).encode()})
    columns = [["a"], ["cat"], [True], ["b"], ["cat"], [0.5]]
    pq.write_table(pa.table([pa.array(c, k) for c, k in zip(columns, SCHEMA.types, strict=True)], old), path)
    with pytest.raises(ValueError, match=r"its format is 1\). Run evaluate again"):
        load_answers(path)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "weights.safetensors").write_bytes(b"weights")
    write_manifest(folder, "model", 1)
    return folder


@pytest.fixture
def version(model_folder: Path, mlflow_home: Path) -> ModelVersion:
    with step_run("promote", {}) as run:
        return register(model_folder, "answers", MODEL, {}, run.run_id)


def test_the_answers_of_a_version_are_found_by_their_evaluation(
    version: ModelVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_answers(version, DIGEST) is None
    record_answers(version, EXAMPLE)
    record_answers(version, dataclasses.replace(EXAMPLE, evaluation_digest="f" * 64, dimension=64))
    found, other = find_answers(version, DIGEST), find_answers(version, "f" * 64)
    assert found is not None
    assert other is not None
    assert same(found, EXAMPLE)
    assert other.dimension == 64
    assert find_answers(version, "0" * 64) is None
    assert evaluations_of(version) == [DIGEST, "f" * 64]
    assert find_answers(dataclasses.replace(version, tags={"rankone.model_digest": "b" * 64}), DIGEST) is None
    broken = tmp_path / f"{DIGEST}.parquet"
    broken.write_bytes(b"no table")
    client().log_artifact(version.run_id, str(broken), "answers")
    assert find_answers(version, DIGEST) is None
    assert "The recorded answers of version 1 are left aside" in capsys.readouterr().out


def test_a_version_that_was_registered_by_hand_has_no_answers(mlflow_home: Path) -> None:
    by_hand = ModelVersion("by-hand", 1)
    record_answers(by_hand, EXAMPLE)
    assert find_answers(by_hand, DIGEST) is None
    gone = ModelVersion("gone", 1, run_id="0" * 32)
    assert find_answers(gone, DIGEST) is None
    for without in (by_hand, gone):
        assert evaluations_of(without) == []
        assert find_pictures(without, DIGEST) == {}


def test_the_pictures_of_a_version_are_found_by_their_evaluation(
    version: ModelVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"a": encoded(np.zeros((8, 8, 3), np.uint8)), "b": encoded(np.ones((40, 40, 3), np.uint8))}
    save_pictures(tmp_path / "pictures", kept)
    record_pictures(version, "2" * 64, tmp_path / "pictures")
    assert find_pictures(version, "2" * 64) == kept
    assert find_pictures(version, "3" * 64) == {}
    (tmp_path / "broken").write_bytes(b"no table")
    record_pictures(version, "4" * 64, tmp_path / "broken")
    assert find_pictures(version, "4" * 64) == {}
    assert "The pictures of version 1 are left aside" in capsys.readouterr().out

"""Whether a run is new, by the three digests; and which images are, against plain loops."""

import json
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.changes import (
    IMAGES_SCHEMA,
    SECONDS_A_DAY,
    TAG,
    MadeFrom,
    differences,
    parameters_digest,
    plan_of,
    sentence,
)
from retrieval.registry import ModelVersion

ORIGIN, NOW = MadeFrom("d", "p", "c"), time.time()


def version(number: int, made_from: MadeFrom | None = ORIGIN, days: float = 1.0, **tags: str) -> ModelVersion:
    recorded = {TAG: made_from.text()} if made_from else {}
    named = {f"rankone.{name}": text for name, text in tags.items()}
    return ModelVersion("digits", number, tags=recorded | named, created=NOW - days * SECONDS_A_DAY)


def test_a_run_like_the_champion_has_nothing_to_do() -> None:
    champion = version(2)
    plan = plan_of(ORIGIN, [champion, version(1, MadeFrom("d", "p", "c0"))], champion, NOW)
    assert (plan.skip, plan.version) == (True, 2)
    assert plan.reason == "data, parameters and code are those of version 2, the champion"


@pytest.mark.parametrize("part", ["data", "parameters", "code"])
def test_whatever_differs_is_named_and_trained_on(part: str) -> None:
    champion = version(1)
    other = MadeFrom(**{**json.loads(ORIGIN.text()), part: "new"})
    plan = plan_of(other, [champion], champion, NOW)
    assert (plan.skip, plan.version) == (False, None)
    assert plan.reason == f"{part} differs from those of the champion, version 1"


def test_what_was_rejected_or_rolled_back_from_is_not_trained_again() -> None:
    champion = version(1, MadeFrom("old", "p", "c"))
    rejected = version(2, outcome="rejected", rule="not_better")
    plan = plan_of(ORIGIN, [champion, rejected], champion, NOW)
    assert (plan.skip, plan.version) == (True, 2)
    assert "which the gate rejected (not_better)" in plan.reason
    assert "no longer champion" in plan_of(ORIGIN, [champion, version(3, outcome="promoted")], champion, NOW).reason
    assert "waits" in plan_of(ORIGIN, [champion, version(3, outcome="waiting")], champion, NOW).reason


def test_force_an_age_and_the_switch_go_before() -> None:
    champion = version(1, days=3)
    for given_, words in (
        ({"force": True}, "force asks"),
        ({"maximum_age_days": 2.5}, "3.0 days old, more than maximum_age_days = 2.5"),
        ({"skip_unchanged": False}, "skip_unchanged is off"),
    ):
        plan = plan_of(ORIGIN, [champion], champion, NOW, **given_)
        assert not plan.skip
        assert words in plan.reason
    assert plan_of(ORIGIN, [champion], champion, NOW, maximum_age_days=3.5).skip


def test_without_a_champion_or_a_record_it_trains() -> None:
    assert "no champion yet" in plan_of(ORIGIN, [], None, NOW).reason
    unknown = version(1, None)
    assert "not recorded" in plan_of(ORIGIN, [unknown], unknown, NOW).reason


def test_parameters_are_the_same_however_they_are_written() -> None:
    given_ = {"epochs": "3", "flag": "true", "channels": "[64, 128]", "loss": "auto", "device": "cpu"}
    same = {"epochs": "3.0", "flag": "True", "channels": "[64.0, 128.0]", "loss": "auto", "device": "cuda"}
    digest = parameters_digest(given_, {"device": "what computes"})
    assert parameters_digest(same, {"device": ""}) == digest
    for name, text in {"epochs": "4", "flag": "false", "channels": "[64]", "loss": "triplet"}.items():
        assert parameters_digest(given_ | {name: text}, {"device": ""}) != digest


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"data": "d"}'])
def test_a_record_of_another_make_is_none(text: str) -> None:
    assert MadeFrom.parse(text) is None


def test_a_record_is_read_as_it_was_written() -> None:
    assert MadeFrom.parse(ORIGIN.text()) == ORIGIN


names = st.sampled_from("abc")
lists = st.dictionaries(st.sampled_from("uvwxyz"), st.tuples(names, st.sampled_from(["train", "test"]), names))


def table(rows: dict[str, tuple[str, str, str]]) -> pa.Table:
    columns = [[place, *row] for place, row in rows.items()]
    return pa.Table.from_pylist([dict(zip(IMAGES_SCHEMA.names, row, strict=True)) for row in columns], IMAGES_SCHEMA)


@settings(deadline=None)
@given(lists, lists)
def test_differences_are_those_of_a_loop(before: dict, now: dict) -> None:
    found = differences(table(before), table(now))
    counts = dict.fromkeys(("new", "removed", "changed", "other_class", "other_split"), 0)
    by_class: dict[str, list[int]] = {}
    for place in set(before) | set(now):
        if place not in before:
            counts["new"] += 1
            by_class.setdefault(now[place][0], [0, 0, 0])[0] += 1
        elif place not in now:
            counts["removed"] += 1
            by_class.setdefault(before[place][0], [0, 0, 0])[2] += 1
        else:
            counts["other_class"] += before[place][0] != now[place][0]
            counts["other_split"] += before[place][1] != now[place][1]
            if before[place][2] != now[place][2]:
                counts["changed"] += 1
                by_class.setdefault(now[place][0], [0, 0, 0])[1] += 1
    assert {name: getattr(found, name) for name in counts} == counts
    assert found.by_class == {name: tuple(row) for name, row in by_class.items()}
    old, fresh = ([row[0] for row in rows.values()] for rows in (before, now))
    assert found.new_classes == {name: fresh.count(name) for name in set(fresh) - set(old)}
    assert found.removed_classes == {name: old.count(name) for name in set(old) - set(fresh)}
    assert (found.before, found.now) == (len(before), len(now))
    assert (sentence(found) == "no image is new, changed or removed") == (before == now)

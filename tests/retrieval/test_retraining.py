"""Whether a run is new, by the three digests and what became of the versions that are equal in them."""

import dataclasses
import time

import pytest

from retrieval.gate import NOT_MOVED
from retrieval.ledger import ADOPT, PROMOTE, PROPOSE, ROLLBACK, Entry
from retrieval.promotion import History
from retrieval.registry import ModelVersion
from retrieval.retraining import (
    SECONDS_A_DAY,
    TAG,
    TRAINED_AT,
    MadeFrom,
    Plan,
    origin_tag,
    origins,
    parameters_digest,
    plan_of,
    trained_at,
)
from retrieval.tracking import PIPELINE_RUN

ORIGIN, NOW = MadeFrom("d", "p", "c"), time.time()


OLD = dataclasses.replace(ORIGIN, data="old")


def utc(days: float) -> str:
    """So many days ago."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - days * SECONDS_A_DAY))


def version(number: int, made_from: MadeFrom | None = ORIGIN, days: float = 1.0, **tags: str) -> ModelVersion:
    recorded = {TAG: made_from.text()} if made_from else {}
    named = {f"rankone.{name}": text for name, text in tags.items()}
    return ModelVersion("digits", number, tags=recorded | named, created=NOW - days * SECONDS_A_DAY)


def moves(*entries: tuple[str, int]) -> History:
    """A history of the champion; the last of the moves is where the alias is."""
    before, made = None, list[Entry]()
    for number, (action, to) in enumerate(entries, 1):
        made.append(Entry(number, action, before, to, f"key {number}", "somebody", "why", "2026-01-01T00:00:00Z"))
        before = to
    aliases = {"champion": before} if before else {}
    return History(tuple(made), (), aliases, None, ())


def planned(versions: list[ModelVersion], champion: ModelVersion | None, history: History, **given_: object) -> Plan:
    return plan_of(ORIGIN, versions, champion, history, NOW, **given_)  # type: ignore[arg-type]


def test_a_run_like_the_champion_has_nothing_to_do() -> None:
    champion = version(2)
    plan = planned([champion, version(1, OLD)], champion, moves((PROMOTE, 2)))
    assert (plan.skip, plan.version, plan.again) == (True, 2, "")
    assert plan.reason == "data, parameters and code are those of version 2, the champion"


@pytest.mark.parametrize(
    ("parts", "differ"),
    [
        (["data"], "data differ from those"),
        (["parameters"], "parameters differ from those"),
        (["code"], "code differs from that"),
        (["data", "code"], "data and code differ from those"),
        (["data", "parameters", "code"], "data, parameters and code differ from those"),
    ],
)
def test_whatever_differs_is_named_and_trained_on(parts: list[str], differ: str) -> None:
    champion = version(1, dataclasses.replace(ORIGIN, **dict.fromkeys(parts, "other")))
    plan = planned([champion], champion, moves((PROMOTE, 1)))
    assert (plan.skip, plan.version) == (False, None)
    assert plan.reason == f"{differ} of the champion, version 1"


def test_what_this_champion_rejected_is_not_trained_again() -> None:
    champion = version(1, OLD)
    rejected = version(2, outcome="rejected", rule="not_better", judged_against="1")
    plan = planned([rejected, champion], champion, moves((PROMOTE, 1)))
    assert (plan.skip, plan.version) == (True, 2)
    assert plan.reason.endswith("those of version 2, which the gate rejected (not_better)")


def test_what_another_champion_rejected_is_judged_again() -> None:
    champion = version(1, OLD)
    rejected = version(3, outcome="rejected", rule="not_better", judged_against="2")
    plan = planned([rejected, version(2, OLD), champion], champion, moves((PROMOTE, 1), (PROMOTE, 2), (ROLLBACK, 1)))
    assert not plan.skip
    assert plan.reason == (
        "data differ from those of the champion, version 1; version 3 is made from the same and is to be judged again"
    )


@pytest.mark.parametrize("rule", [NOT_MOVED, "not_scored", "other_evaluation"])
def test_a_verdict_that_was_none_is_sought_again(rule: str) -> None:
    champion = version(1, OLD)
    rejected = version(2, outcome="rejected", rule=rule, judged_against="1")
    assert not planned([rejected, champion], champion, moves((PROMOTE, 1))).skip


def test_a_first_model_below_the_floor_is_not_trained_again() -> None:
    assert planned([version(1, outcome="rejected", rule="floor")], None, moves()).skip


def test_what_was_rolled_back_from_is_not_trained_again() -> None:
    champion, bad = version(1, OLD), version(2, outcome="promoted", judged_against="1")
    plan = planned([bad, champion], champion, moves((PROMOTE, 1), (PROMOTE, 2), (ROLLBACK, 1)))
    assert (plan.skip, plan.version) == (True, 2)
    assert plan.reason.endswith("those of version 2, which entry 3 of the ledger rolled back from")


def test_what_was_champion_and_was_overtaken_is_not_trained_again() -> None:
    champion = version(2, OLD)
    plan = planned([champion, version(1, outcome="skipped")], champion, moves((PROMOTE, 1), (PROMOTE, 2)))
    assert plan.reason.endswith("those of version 1, which was champion until version 2")
    assert plan.skip
    by_hand = planned([champion, version(1)], champion, moves((PROMOTE, 2), (ADOPT, 1)))
    assert by_hand.reason.endswith("which was champion until somebody moved the alias by hand")


def test_a_version_that_won_and_never_became_champion_is_judged_again() -> None:
    champion = version(1, OLD)
    stopped = version(2, outcome="promoted", judged_against="1")  # before the alias was moved
    assert not planned([stopped, champion], champion, moves((PROMOTE, 1))).skip


def test_a_challenger_that_waits_is_not_trained_again() -> None:
    champion, waiting = version(1, OLD), version(2, outcome="waiting", judged_against="1")
    history, proposed = moves((PROMOTE, 1)), Entry(1, PROPOSE, None, 2, "key", "somebody", "why", "", "", 1)
    assert not planned([waiting, champion], champion, history).skip, "it was not proposed yet"
    history = dataclasses.replace(history, challenger=(proposed,), aliases={"champion": 1, "challenger": 2})
    assert planned([waiting, champion], champion, history).reason.endswith("version 2, which waits for approval")
    history = dataclasses.replace(history, aliases={"champion": 1, "challenger": 3})
    assert planned([waiting, champion], champion, history).reason.endswith("version 2, which was not approved")
    newer = version(4, OLD)
    assert not planned([newer, waiting, champion], newer, history).skip, "it was compared with another champion"
    stopped = version(2, outcome="waiting", judged_against="4")  # judged again, and before it was proposed again
    assert not planned([newer, stopped, champion], newer, history).skip, "it could not be approved"
    again = dataclasses.replace(history, challenger=(proposed, dataclasses.replace(proposed, number=2, against=4)))
    assert planned([newer, stopped, champion], newer, again).skip


def test_the_champion_goes_before_newer_versions() -> None:
    champion, newer = version(1), version(2, outcome="rejected", rule="not_better", judged_against="1")
    assert planned([newer, champion], champion, moves((PROMOTE, 1))).version == 1


def test_force_an_age_and_the_switch_go_before() -> None:
    champion, history = version(1, days=3), moves((PROMOTE, 1))
    for given_, words in (
        ({"force": True}, "force asks"),
        ({"maximum_age_days": 2.5}, "its training was 3.0 days ago, longer than maximum_age_days = 2.5"),
        ({"skip_unchanged": False}, "skip_unchanged is off"),
    ):
        plan = planned([champion], champion, history, **given_)
        assert not plan.skip
        assert words in plan.reason
        assert bool(plan.again) == ("skip_unchanged" not in given_)
    assert planned([champion], champion, history, maximum_age_days=3.5).skip


def test_a_training_that_comes_out_the_same_or_loses_makes_the_champion_no_older() -> None:
    champion, history = version(1, days=9), moves((PROMOTE, 1))
    lost = version(2, days=1, outcome="rejected", rule="not_better", judged_against="1")
    assert planned([lost, champion], champion, history, maximum_age_days=2).skip
    came_again = dataclasses.replace(champion, tags=champion.tags | {TRAINED_AT: utc(1)})
    assert planned([came_again], came_again, history, maximum_age_days=2).skip
    assert not planned([came_again], came_again, history, maximum_age_days=0.5).skip


def test_what_is_asked_for_again_is_one_text_until_it_was_trained() -> None:
    champion, history = version(1, days=9), moves((PROMOTE, 1))
    first = planned([champion], champion, history, force=True).again
    assert first == f"version 1, trained {utc(9)}"
    assert planned([champion], champion, history, maximum_age_days=2).again == first
    came_again = dataclasses.replace(champion, tags=champion.tags | {TRAINED_AT: utc(0)})
    assert planned([came_again], came_again, history, force=True).again not in ("", first)


def test_an_earlier_attempt_of_the_run_itself_counts_for_nothing() -> None:
    mine = version(1)
    mine.tags[PIPELINE_RUN] = "run 7"
    plan = planned([mine], mine, moves((PROMOTE, 1)), pipeline_run="run 7")
    assert (plan.skip, plan.version) == (False, None)
    assert plan.reason == "this run made the champion, version 1, in an earlier attempt"
    assert planned([mine], mine, moves((PROMOTE, 1)), pipeline_run="run 8").skip


def test_a_version_that_came_out_of_two_origins_is_no_news_to_either() -> None:
    champion, history = version(1), moves((PROMOTE, 1))
    other = dataclasses.replace(ORIGIN, parameters="other")
    champion.tags.update(origin_tag(other.text(), champion.tags))
    assert origins(champion) == [ORIGIN, other]
    for made_from in (ORIGIN, other):
        assert plan_of(made_from, [champion], champion, history, NOW).skip
        assert origin_tag(made_from.text(), champion.tags) == {}
    third = dataclasses.replace(other, code="third")
    assert plan_of(third, [champion], champion, history, NOW).reason.startswith(
        "code differs from that of the champion"
    )


def test_what_a_version_is_made_from_is_recorded_once_and_never_overwritten() -> None:
    assert origin_tag("", {}) == {}
    assert origin_tag(ORIGIN.text(), {}) == {TAG: ORIGIN.text()}
    (name,) = origin_tag(OLD.text(), {TAG: ORIGIN.text()})
    assert name.startswith(f"{TAG}.")
    assert origins(version(1, None)) == []


def test_without_a_champion_or_a_record_it_trains() -> None:
    assert "no champion yet" in planned([], None, moves()).reason
    unknown = version(1, None)
    assert "not recorded" in planned([unknown], unknown, moves((PROMOTE, 1))).reason


def test_when_a_version_was_trained_is_recorded_or_else_when_it_was_registered() -> None:
    made = version(1, days=2)
    assert trained_at(made) == made.created
    for text in ("", "yesterday"):
        assert trained_at(dataclasses.replace(made, tags={TRAINED_AT: text})) == made.created
    assert trained_at(dataclasses.replace(made, tags={TRAINED_AT: "1970-01-01T00:01:00Z"})) == 60


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

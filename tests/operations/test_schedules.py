"""The file of schedules, and what has to be done: without a server."""

import datetime
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from operations import profiles, schedules
from operations.cron import parse_cron
from operations.parameters import all_knobs
from operations.schedules import Change, File, Live, compare, load_schedules, mark_of, next_times, read_mark

UTC = datetime.UTC
DAY = datetime.date(2026, 1, 1)  # as YAML reads 2026-01-01 without quotes
NIGHTLY = {
    "name": "nightly",
    "cron": "0 3 * * *",
    "recipe": "folder",
    "parameters": {"source": "s3", "location": "s3://images/photos", "dimension": 128, "channels": [8, 8, 8]},
}


@pytest.fixture
def written(tmp_path: Path):
    def write(*entries: Any, **more: Any) -> Path:
        path = tmp_path / "schedules.yaml"
        path.write_text(yaml.safe_dump({"schedules": list(entries), **more}))
        return path

    return write


def live_of(schedule: schedules.Schedule, **changed: Any) -> Live:
    made = Live("id", schedule.name, "rankone", schedule.digest(), not schedule.paused, schedule.facts())
    return replace(made, **changed)


def test_an_entry_has_the_defaults_that_are_safe(written) -> None:
    (found,) = load_schedules(written(NIGHTLY), "runner").schedules
    facts = found.facts()
    assert facts["when"] == "cron 0 0 3 * * *"
    assert (facts["pipeline"], facts["version"]) == ("rankone-release-cpu", "latest")
    assert (facts["catchup"], facts["max_concurrency"]) == (False, 1)
    assert (found.paused, facts["experiment"], facts["service_account"]) == (None, "rankone", "runner")
    assert facts["parameters.channels"] == [8, 8, 8]
    assert facts["parameters.registered_model"] == "folder"  # of the recipe
    assert "parameters.source_fingerprint" not in facts


def test_every_run_is_skipped_when_nothing_has_changed_where_the_pipeline_can(written) -> None:
    assert set(schedules.ALWAYS) == {"skip_unchanged"}
    (found,) = load_schedules(written(NIGHTLY)).schedules
    assert found.sent_parameters().get("skip_unchanged") == (True if "skip_unchanged" in all_knobs() else None)


def test_a_parameter_that_schedules_set_can_be_set_otherwise(written, monkeypatch) -> None:
    monkeypatch.setattr(schedules, "ALWAYS", {"dimension": 512, "no_such_knob": 1})
    (found,) = load_schedules(written(NIGHTLY)).schedules
    assert found.sent_parameters()["dimension"] == 128
    assert "no_such_knob" not in found.sent_parameters()
    (found,) = load_schedules(written({**NIGHTLY, "parameters": {**NIGHTLY["parameters"], "dimension": 64}})).schedules
    assert found.sent_parameters()["dimension"] == 64
    (found,) = load_schedules(written({"name": "a", "cron": "@daily"})).schedules
    assert found.sent_parameters() == {"dimension": 512}


def test_settings_of_the_profile_stand_among_the_parameters(written) -> None:
    selector = {"nvidia.com/gpu.product": "NVIDIA-H200"}
    entry = {**NIGHTLY, "profile": "h200", "parameters": {"accelerated_node_selector": selector, "seed": 3}}
    entry["parameters"]["accelerator_count"] = "2"
    entry |= {"recipe": "digits"}
    (found,) = load_schedules(written(entry)).schedules
    assert found.sent_parameters()["accelerated_node_selector"] == selector
    assert (found.sent_parameters()["accelerator_count"], found.sent_parameters()["seed"]) == ("2", 3)
    assert found.pipeline == "rankone-release-h200"


def test_times_may_be_bounded_and_are_in_utc(written) -> None:
    entry = {**NIGHTLY, "start": datetime.date(2026, 12, 1), "end": "2026-12-02T05:00:00+02:00"}
    (found,) = load_schedules(written(entry)).schedules
    assert (found.facts()["start"], found.facts()["end"]) == ("2026-12-01T00:00:00Z", "2026-12-02T03:00:00Z")
    now = datetime.datetime(2026, 11, 25, tzinfo=UTC)
    assert [time.isoformat() for time in found.next_times(now)] == [
        "2026-12-01T03:00:00+00:00",
        "2026-12-02T03:00:00+00:00",
    ]


def test_an_interval_counts_from_its_start_or_from_when_it_was_made() -> None:
    now, made = datetime.datetime(2026, 11, 25, 12, tzinfo=UTC), datetime.datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
    times = next_times(None, 6 * 3_600, now, since=made)
    assert [f"{time:%d %H:%M}" for time in times] == ["25 17:30", "25 23:30", "26 05:30"]
    assert [f"{time:%d %H:%M}" for time in next_times(None, 6 * 3_600, now)] == ["25 18:00", "26 00:00", "26 06:00"]
    assert next_times(parse_cron("0 3 * * *"), None, now, end=made) == []


@pytest.mark.parametrize("when", [{"every": "1h"}, {"cron": "0 3 * * *"}])
def test_no_time_comes_after_the_last_year_that_a_calendar_has(written, when: dict[str, str]) -> None:
    entry = {"name": "nightly", **when, "start": "9999-12-31T02:30:00Z"}
    (found,) = load_schedules(written(entry)).schedules
    times = found.next_times(datetime.datetime(2026, 11, 25, tzinfo=UTC))
    assert 0 < len(times) <= schedules.SHOWN_TIMES
    (found,) = load_schedules(written({**entry, "start": "9999-12-31T23:59:00Z"})).schedules
    assert found.next_times(datetime.datetime(2026, 11, 25, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"crom": "0 3 * * *"}, r"schedule nightly: there is no key 'crom'; did you mean cron\? These exist: name"),
        ({"name": "Nightly"}, "name is 'Nightly'"),
        ({"name": "a" * 51}, "50 at most"),
        ({"name": None}, "name is None; it must be a text"),
        ({"cron": "0 3 * * * *"}, "schedule nightly: cron is .* leave the seconds out"),
        ({"cron": 3}, "cron is 3; it must be a text. Quote it"),
        ({"every": "6h"}, "give cron or every"),
        ({"recipe": "folders"}, "Unknown recipe 'folders'; choose one of"),
        ({"profile": "h100"}, "Unknown profile 'h100'; choose one of"),
        ({"parameters": {"dimensions": 3}}, "There is no parameter 'dimensions'; did you mean dimension"),
        ({"parameters": {"dimension": "wide"}}, "dimension is 'wide'; it must be a whole number"),
        ({"parameters": {"dimension": None}}, "the parameter dimension has no value"),
        ({"parameters": {"kernels": [DAY]}}, "nightly: kernels has 2026-01-01,.* quote it"),
        ({"parameters": {"plain_node_selector": {"a": DAY}}}, "selector has 2026-01-01,.* quote it"),
        ({"parameters": {"plain_tolerations": [{"key": DAY}]}}, "tolerations has 2026-01-01,.* quote it"),
        ({"parameters": {"plain_memory": None}}, "the parameter plain_memory has no value; give one, or leave it out"),
        ({"parameters": {"accelerator_count": "2"}}, "accelerator_count is no parameter but a setting"),
        ({"parameters": {"plain_memory": "much"}}, "plain_memory is 'much'"),
        ({"parameters": {"plain_memory": 48}}, "plain_memory is '48', less than the profile's shared_memory, "),
        ({"parameters": {"source_fingerprint": "a"}}, "source_fingerprint stands for one moment"),
        ({"parameters": {"champion_fingerprint": "3"}}, "champion_fingerprint stands for one moment"),
        ({"parameters": {"source": "folder", "location": "photos"}}, "location is 'photos', which is on this machine"),
        ({"parameters": ["seed"]}, "parameters is .* it must be a mapping"),
        ({"paused": "yes"}, "paused is 'yes'; it must be true or false"),
        ({"max_concurrency": 11}, "max_concurrency is 11; it is from 1 to 10"),
        ({"max_concurrency": True}, "max_concurrency is True"),
        ({"version": 123456789012}, "version is 123456789012; it must be a text. Quote it"),
        ({"version": " "}, "version is empty"),
        ({"start": "tomorrow"}, "start is 'tomorrow'; it is a time like"),
        ({"start": "0001-01-01T00:00:00+14:00"}, "start is '0001-.*'; in UTC .* not within the years 1 to 9999; give"),
        ({"end": "9999-12-31T23:59:59-10:00"}, "end is '9999-.*'; in UTC .* not within the years 1 to 9999; give"),
        ({"start": "2026-12-02", "end": "2026-12-01"}, "end is 2026-12-01T00:00:00Z, not after start"),
    ],
)  # fmt: skip
def test_what_would_not_run_as_it_is_meant_is_refused(written, changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_schedules(written({**NIGHTLY, **changed}))


@pytest.fixture
def profile_of(tmp_path: Path):
    """Writes a profile of one's own: the profile cpu with another memory."""

    def write(name: str, memory: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((profiles.FOLDER / "cpu.yaml").read_text().replace("memory: 8Gi", f"memory: {memory}"))
        return str(path)

    return write


def test_two_profiles_of_one_file_name_would_share_a_release_and_are_refused(written, profile_of) -> None:
    large, small = profile_of("one/team.yaml", "64Gi"), profile_of("two/team.yml", "16Gi")
    entries = [{"name": name, "every": "6h", "profile": path} for name, path in (("a", large), ("b", small))]
    same = {**entries[0], "name": "c", "profile": profile_of("three/team.yaml", "64Gi")}
    assert [each.pipeline for each in load_schedules(written(entries[0], same)).schedules] == [
        "rankone-release-team",
        "rankone-release-team",
    ]
    message = "a and b have different profiles of the name 'team', .* rankone-release-team; rename the file of one"
    with pytest.raises(ValueError, match=message):
        load_schedules(written(entries[0], same, entries[1]))
    renamed = {**entries[1], "profile": profile_of("two/team-small.yaml", "16Gi")}
    assert load_schedules(written(entries[0], renamed)).schedules[1].profile.accelerated.memory == "16Gi"


def test_a_profile_that_takes_the_name_of_one_of_rankone_is_refused(written, profile_of) -> None:
    entry = {"name": "a", "every": "6h", "profile": str(profiles.FOLDER / "cpu.yaml")}
    assert load_schedules(written(entry)).schedules[0].pipeline == "rankone-release-cpu"
    path = profile_of("one/cpu.yaml", "64Gi")
    message = f"schedule a: profile is '{path}', but 'cpu' is a profile of Rankone's own, .* rename the file"
    with pytest.raises(ValueError, match=message):
        load_schedules(written({**entry, "profile": path}))


@pytest.mark.parametrize(
    ("seconds", "text"), [(60, "1m"), (90 * 60, "90m"), (6 * 3_600, "6h"), (7 * 86_400, "7d"), (86_401, "86401s")]
)
def test_an_interval_is_told_in_its_largest_unit(seconds: int, text: str) -> None:
    assert schedules.interval_text(seconds) == text
    assert schedules.interval_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no list of schedules"),
        ("schedules: {}", "has no list of schedules"),
        ("schedules: []\nschedule: []", "there is no key 'schedule'"),
        ("owner: a b\nschedules: []", "owner is 'a b'"),
        ("schedules:\n- nightly", "schedule 1 is no mapping"),
        ("schedules:\n- name: a\n  every: 1h\n- name: a\n  every: 2h", "has 2 schedules of the name 'a'"),
        ("schedules:\n- name: a\n  every: 1h\n  every: 2h", "the key 'every' is there twice"),
        ("schedules:\n- name: a\n  every: 1h\n  parameters: {seed: 1, seed: 2}", "the key 'seed' is there twice"),
        ("schedules:\n- name: a\n  every: 1s", "every is '1s'; it is like 90m, 6h or 2d"),
        ("schedules:\n- {name: a, every: 1h, start: 0001-01-01T00:00:00+14:00}", "schedule a: start is '0001-01-01"),
        ("schedules:\n- name: a", "give cron or every"),
        ("schedules: [", "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "schedules.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_schedules(path)
    with pytest.raises(ValueError, match="There is no file"):
        load_schedules(tmp_path / "schedule.yaml")


def kinds(changes: list[Change]) -> list[tuple[str, str]]:
    return [(change.name, change.kind) for change in changes]


def test_what_is_unchanged_is_kept_and_what_is_gone_is_deleted_last(written) -> None:
    entries = [{"name": "new", "every": "6h"}, NIGHTLY, {"name": "other", "cron": "@daily"}]
    file = load_schedules(written(*entries))
    _, nightly, other = file.schedules
    gone = live_of(replace(other, name="gone"), id="g")
    stranger = live_of(replace(other, name="new"), id="s", owner=None)
    of_others = live_of(replace(other, name="theirs"), id="t", owner="another-team")
    changed = live_of(replace(other, experiment="trials"), id="o")
    changes = compare(file, [gone, stranger, of_others, live_of(nightly, id="n"), changed])
    assert kinds(changes) == [("new", "create"), ("nightly", "keep"), ("other", "replace"), ("gone", "delete")]
    assert changes[2].fields == (("experiment", "trials", "rankone"),)
    assert [live.id for change in changes for live in change.remove] == ["o", "g"]


def test_a_pause_of_the_cluster_stays_unless_the_file_says_otherwise(written) -> None:
    def change_of(paused: bool | None, enabled: bool, same: bool = True) -> Change:
        file = load_schedules(written(NIGHTLY if paused is None else {**NIGHTLY, "paused": paused}))
        lives = [live_of(file.schedules[0], enabled=enabled, digest="" if not same else file.schedules[0].digest())]
        return compare(file, lives)[0]

    assert (change_of(None, False).kind, change_of(None, False).enabled) == ("keep", False)
    assert (change_of(False, False).kind, change_of(False, False).fields) == ("resume", (("paused", True, False),))
    assert (change_of(True, True).kind, change_of(True, False).kind) == ("pause", "keep")
    made_anew = change_of(None, False, same=False)
    assert (made_anew.kind, made_anew.enabled) == ("replace", False)
    assert change_of(True, True, same=False).enabled is False


def test_whether_it_is_paused_is_no_reason_to_make_it_anew(written) -> None:
    digests = {
        load_schedules(written(entry)).schedules[0].digest()
        for entry in (NIGHTLY, {**NIGHTLY, "paused": True}, {**NIGHTLY, "max_concurrency": 1, "version": "latest"})
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"cron": "1 3 * * *"},
        {"profile": "one-gpu"},
        {"experiment": "trials"},
        {"version": "0123456789ab"},
        {"catchup": True},
        {"max_concurrency": 2},
        {"start": "2026-12-01"},
        {"end": "2026-12-01"},
        {"service_account": "runner"},
        {"parameters": {**NIGHTLY["parameters"], "dimension": 256}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_else_is_changed_makes_it_another(written, changed: dict[str, Any]) -> None:
    before = load_schedules(written(NIGHTLY)).schedules[0]
    file = load_schedules(written({**NIGHTLY, **changed}))
    (change,) = compare(file, [live_of(before)])
    assert change.kind == "replace"
    key = next(iter(changed))
    shown = {"cron": "when", "profile": "pipeline", "parameters": "parameters.dimension"}.get(key, key)
    assert [name for name, _, _ in change.fields] == [shown]


def test_one_that_is_there_twice_is_tidied(written) -> None:
    file = load_schedules(written(NIGHTLY))
    (nightly,) = file.schedules
    old, new = live_of(nightly, id="old", digest="0" * 16), live_of(nightly, id="new")
    (change,) = compare(file, [old, new])
    assert (change.kind, change.keep, change.remove) == ("tidy", new, (old,))
    (change,) = compare(file, [old, replace(old, id="older")])
    assert (change.kind, [live.id for live in change.remove]) == ("replace", ["old", "older"])
    (change,) = compare(File("rankone", ()), [old, new])
    assert (change.kind, change.remove) == ("delete", (old, new))


def test_one_whose_pipeline_was_deleted_is_made_anew(written) -> None:
    file = load_schedules(written(NIGHTLY))
    live = live_of(file.schedules[0])
    live = replace(live, facts={**live.facts, "pipeline": "(deleted)"})
    (change,) = compare(file, [live])
    assert (change.kind, change.fields) == ("replace", (("pipeline", "(deleted)", "rankone-release-cpu"),))


def test_one_that_another_version_made_is_said_so(written) -> None:
    file = load_schedules(written(NIGHTLY))
    (change,) = compare(file, [live_of(file.schedules[0], digest="0" * 16)])
    assert change.fields == (("made by", "another version of Rankone", "this one"),)


def test_a_mark_is_short_and_is_read_back() -> None:
    mark = mark_of("a" * 39, "0123456789abcdef")
    assert len(mark) < 255  # of older databases
    assert read_mark(mark) == ("a" * 39, "0123456789abcdef")
    assert read_mark("Nightly training of the shoes") == read_mark(None) == (None, "")


def test_the_example_of_the_page_is_a_file_and_shows_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text(encoding="utf-8")
    path = tmp_path / "schedules.yaml"
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    path.write_text(example, encoding="utf-8")
    file = load_schedules(path)
    assert (file.owner, len(file.schedules)) == ("vision", 3)
    assert {key for entry in yaml.safe_load(example)["schedules"] for key in entry} == set(schedules.KEYS)
    assert file.schedules[0].sent_parameters()["accelerated_memory"] == "48Gi"
    assert file.schedules[1].paused

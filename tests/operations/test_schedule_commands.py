"""`rankone schedule`, with kfp's own client against a stub of the server (tests/kfp_server.py)."""

import functools
import json
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from operations import cluster_commands, release, schedules
from operations.compile import content_digest
from operations.release import compile_release, tasks_of
from tests import kfp_server
from tests.kfp_server import IMAGES, Stub

pytest_plugins = ["tests.cluster_fixtures"]

NIGHTLY = {"name": "nightly", "cron": "0 3 * * *", "parameters": {"dimension": 128, "channels": [8, 8, 8]}}
WEEKLY = {"name": "weekly", "every": "7d", "recipe": "digits", "experiment": "trials"}
CREATE = ("POST", "/apis/v2beta1/recurringruns")
DELETE = ("DELETE", "/apis/v2beta1/recurringruns")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes schedules.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(*entries: dict[str, Any], **more: Any) -> None:
        Path("schedules.yaml").write_text(yaml.safe_dump({"schedules": list(entries), **more}))

    return write


@functools.cache
def digest_of(text: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        package.write_bytes(text)
        return content_digest(package)


@pytest.fixture(autouse=True)
def compiled_once(stub: Stub, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every release is compiled once for all tests, and its digest taken once."""

    def compile_once(output: Path, images: Any, profile: Any) -> Path:
        kept = packages / f"release-{profile.name}.yaml"
        if not kept.exists():
            compile_release(kept, images, profile)
        return Path(shutil.copyfile(kept, output))

    monkeypatch.setattr(release, "compile_release", compile_once)
    monkeypatch.setattr(release, "content_digest", lambda package: digest_of(package.read_bytes()))


def made(stub: Stub, name: str) -> dict[str, Any]:
    (found,) = [run for run in stub.recurring.values() if run["display_name"] == name]
    return found


def changes_of(stub: Stub) -> list[str]:
    """What was asked of the server that changes something, since the last look."""
    asked = [request for request in stub.requests if not request.startswith("GET")]
    stub.requests.clear()
    return asked


def test_a_schedule_is_made_as_the_file_says_it(stub: Stub, rankone, write, monkeypatch) -> None:
    monkeypatch.setenv("RANKONE_SERVICE_ACCOUNT", "runner")
    monkeypatch.setattr(schedules, "ALWAYS", {"seed": 7})
    write({**NIGHTLY, "start": "2026-12-01", "end": "2099-12-01", "max_concurrency": 2}, WEEKLY)
    done = rankone("schedule", "apply")
    assert done.status == 0, done.err
    run = made(stub, "nightly")
    (pipeline,) = stub.pipelines.values()
    assert pipeline["display_name"] == "rankone-release-cpu"
    assert run["pipeline_version_reference"] == {"pipeline_id": pipeline["pipeline_id"]}  # follows the latest
    assert run["trigger"] == {
        "cron_schedule": {
            "cron": "0 0 3 * * *",
            "start_time": "2026-12-01T00:00:00+00:00",
            "end_time": "2099-12-01T00:00:00+00:00",
        }
    }
    assert run["runtime_config"] == {"parameters": {"dimension": 128, "channels": [8, 8, 8], "seed": 7}}
    assert (run["no_catchup"], run["max_concurrency"], run["status"]) == (True, "2", "ENABLED")
    assert run["service_account"] == "runner"
    assert stub.experiments[run["experiment_id"]]["display_name"] == "rankone"
    weekly = made(stub, "weekly")
    assert weekly["trigger"] == {"periodic_schedule": {"interval_second": str(7 * 86_400)}}
    assert (weekly["no_catchup"], weekly["max_concurrency"]) == (True, "1")
    assert stub.experiments[weekly["experiment_id"]]["display_name"] == "trials"
    assert "+ nightly: made\n    next (UTC): " in done.out
    assert re.search(r"next \(UTC\): \w{3} \d{4}-\d\d-\d\d 03:00, \w{3} .* 03:00, \w{3} .* 03:00\n", done.out)


def test_nothing_is_touched_that_is_unchanged(stub: Stub, rankone, write) -> None:
    write(NIGHTLY, WEEKLY)
    assert rankone("schedule", "diff").status == 1
    assert changes_of(stub) == []
    assert rankone("schedule", "apply").status == 0
    assert len(changes_of(stub)) == 1 + 1 + 2 + 2  # a pipeline, a version, experiments, recurring runs
    before = dict(stub.recurring)
    assert rankone("schedule", "diff").status == 0
    done = rankone("schedule", "apply")
    assert "nightly: unchanged\n    next (UTC)" in done.out
    assert done.out.endswith("Nothing was to be done.\n")
    assert changes_of(stub) == []
    assert stub.recurring == before


def test_what_is_changed_is_made_first_and_deleted_after(stub: Stub, rankone, write) -> None:
    write(NIGHTLY, WEEKLY)
    rankone("schedule", "apply")
    old, weekly = made(stub, "nightly"), made(stub, "weekly")
    write({**NIGHTLY, "cron": "0 4 * * *", "parameters": {"dimension": 256}}, WEEKLY)
    done = rankone("schedule", "diff")
    assert done.status == 1
    assert "~ nightly: to be made anew\n" in done.out
    assert '    when: "cron 0 0 3 * * *" -> "cron 0 0 4 * * *"\n' in done.out
    assert "    parameters.dimension: 128 -> 256\n" in done.out
    assert "    parameters.channels: [8, 8, 8] -> nothing\n" in done.out
    changes_of(stub)
    done = rankone("schedule", "apply")
    assert done.status == 0, done.err
    assert changes_of(stub) == [" ".join(CREATE), f"{' '.join(DELETE)}/{old['recurring_run_id']}"]
    assert made(stub, "nightly")["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert made(stub, "weekly") == weekly
    assert stub.stops_runs == 0  # what the old one had started goes on


def test_what_is_taken_out_of_the_file_is_deleted(stub: Stub, rankone, write) -> None:
    write(NIGHTLY, WEEKLY)
    rankone("schedule", "apply")
    write(WEEKLY)
    assert "- nightly: to be deleted: the file does not have it" in rankone("schedule", "diff").out
    assert "- nightly: deleted" in rankone("schedule", "apply").out
    assert [run["display_name"] for run in stub.recurring.values()] == ["weekly"]
    write()
    done = rankone("schedule", "apply")
    assert done.status == 2
    assert "has no schedules, so that all would be deleted; say so with --allow-empty" in done.err
    assert "only with --allow-empty" in rankone("schedule", "diff").out
    assert rankone("schedule", "apply", "--allow-empty").status == 0
    assert stub.recurring == {}


def test_what_others_made_is_listed_and_never_touched(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    ours = made(stub, "nightly")
    theirs = {**ours, "recurring_run_id": "theirs", "description": "Do not touch", "display_name": "weekly"}
    theirs["trigger"] = {"cron_schedule": {"cron": "10 */7 * * * ?"}}
    other = {**ours, "recurring_run_id": "other", "description": schedules.mark_of("shoes", "0" * 16)}
    stub.recurring |= {"theirs": theirs, "other": other}
    before = dict(stub.recurring)
    done = rankone("schedule", "diff")
    assert done.status == 0
    assert "Mind: another recurring run 'nightly' is at work, made by owner shoes; it is left alone" in done.out
    assert "Mind: another recurring run 'nightly'" in rankone("schedule", "apply").out
    assert len(json.loads(rankone("schedule", "diff", "--json").out)["notices"]) == 1
    assert stub.recurring == before
    done = rankone("schedule", "delete", "weekly")
    assert done.status == 2
    assert "'weekly' was not made by `rankone schedule`; it is left alone" in done.err
    rows = {row["id"]: row for row in json.loads(rankone("schedule", "list", "--json").out)}
    assert [rows[name]["owner"] for name in ("theirs", "other")] == [None, "shoes"]
    assert (rows["theirs"]["when"], rows["theirs"]["next"]) == ("cron 10 */7 * * * ?", [])
    assert (rows[ours["recurring_run_id"]]["when"], rows["theirs"]["experiment"]) == ("0 3 * * *", "rankone")
    assert all(time.endswith("T03:00:00Z") for time in rows[ours["recurring_run_id"]]["next"])
    write(NIGHTLY, {**NIGHTLY, "name": "weekly"}, owner="shoes")
    assert rankone("schedule", "apply").status == 0
    assert {"theirs", ours["recurring_run_id"]} <= set(stub.recurring)
    assert "other" not in stub.recurring  # the one of this owner, made anew


def test_a_failure_half_way_leaves_the_old_one_and_the_next_run_ends_it(stub: Stub, rankone, write) -> None:
    write(NIGHTLY, WEEKLY)
    rankone("schedule", "apply")
    before = dict(stub.recurring)
    write({**NIGHTLY, "cron": "0 4 * * *"}, {**WEEKLY, "every": "1d"})
    stub.broken = [CREATE]
    done = rankone("schedule", "apply")
    assert done.status == 2
    assert "'nightly' was not brought to what the file says: " in done.err
    assert "(503)" in done.err
    assert "Nothing was done before. Schedules that were not replaced go on as they were" in done.err
    assert stub.recurring == before

    stub.broken = [DELETE]
    done = rankone("schedule", "apply")
    assert "Its new one is at work beside it." in done.err
    names = sorted(run["display_name"] for run in stub.recurring.values())
    assert names == ["nightly", "nightly", "weekly"]

    done = rankone("schedule", "diff")
    assert "nightly: there twice, so that one is to be deleted" in done.out
    stub.broken = [(CREATE[0], CREATE[1])]  # of weekly
    done = rankone("schedule", "apply")
    assert "Done before: nightly: a second one of the same name deleted." in done.err
    done = rankone("schedule", "apply")
    assert done.status == 0, done.err
    assert made(stub, "nightly")["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert made(stub, "weekly")["trigger"]["periodic_schedule"]["interval_second"] == "86400"
    assert rankone("schedule", "diff").status == 0


def test_one_that_somebody_deleted_meanwhile_is_no_error(stub: Stub, rankone, write, monkeypatch) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    write({**NIGHTLY, "cron": "0 4 * * *"})
    create = Stub.create_recurring

    def somebody_deletes(self: Stub, *given: Any) -> Any:
        self.recurring.clear()
        return create(self, *given)

    rules = [(method, path, somebody_deletes if rule is create else rule) for method, path, rule in kfp_server.RULES]
    monkeypatch.setattr(kfp_server, "RULES", rules)
    assert rankone("schedule", "apply").status == 0
    assert made(stub, "nightly")["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"


def test_a_pause_outlasts_apply_until_the_file_or_a_person_says_otherwise(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    assert rankone("schedule", "pause", "nightly").out == "nightly is paused now.\n"
    assert rankone("schedule", "pause", "nightly").out == "nightly is paused already.\n"
    assert "next (UTC): none, it is paused" in rankone("schedule", "apply").out
    write({**NIGHTLY, "cron": "0 4 * * *"})
    rankone("schedule", "apply")
    assert made(stub, "nightly")["status"] == "DISABLED"
    assert re.search("nightly +rankone +paused", rankone("schedule", "list").out)
    assert rankone("schedule", "resume", "nightly").out == "nightly is on now.\n"
    write({**NIGHTLY, "cron": "0 4 * * *", "paused": True})
    assert "    paused: false -> true\n" in rankone("schedule", "diff").out
    run = made(stub, "nightly")["recurring_run_id"]
    changes_of(stub)
    assert "~ nightly: paused" in rankone("schedule", "apply").out
    assert changes_of(stub) == [f"POST /apis/v2beta1/recurringruns/{run}:disable"]
    write({**NIGHTLY, "cron": "0 4 * * *", "paused": False})
    assert "~ nightly: goes on" in rankone("schedule", "apply").out
    assert made(stub, "nightly")["status"] == "ENABLED"
    write({**NIGHTLY, "paused": True, "name": "later"})
    rankone("schedule", "apply")
    assert made(stub, "later")["mode"] == "DISABLE"


def test_delete_takes_one_away_and_apply_makes_it_again(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    done = rankone("schedule", "delete", "nightly")
    assert "nightly is deleted; `rankone schedule apply` makes it again" in done.out
    assert stub.recurring == {}
    assert stub.stops_runs == 0
    done = rankone("schedule", "pause", "nightly")
    assert done.status == 2
    assert "There is no schedule 'nightly'; there is: none." in done.err
    assert "The cluster has no recurring run" in rankone("schedule", "list").out
    rankone("schedule", "apply")
    assert made(stub, "nightly")


def test_a_name_that_owners_share_needs_an_owner(stub: Stub, rankone, write) -> None:
    write(NIGHTLY, owner="vision")
    rankone("schedule", "apply")
    write(NIGHTLY, owner="shoes")
    rankone("schedule", "apply")
    vision, shoes = sorted(stub.recurring, key=lambda run: "owner shoes" in stub.recurring[run]["description"])
    before = dict(stub.recurring)
    for command in ("delete", "pause", "resume"):
        done = rankone("schedule", command, "nightly")
        assert done.status == 2
        assert "There are schedules 'nightly' of owners shoes, vision; name yours with --owner." in done.err
        done = rankone("schedule", command, "nightly", "--owner", "hats")
        assert done.status == 2
        assert "Owner hats has no schedule 'nightly'; there is one of: shoes, vision." in done.err
    assert stub.recurring == before
    assert rankone("schedule", "pause", "nightly", "--owner", "shoes").out == "nightly is paused now.\n"
    assert [stub.recurring[run]["status"] for run in (vision, shoes)] == ["ENABLED", "DISABLED"]
    assert rankone("schedule", "resume", "nightly", "--owner", "shoes").out == "nightly is on now.\n"
    assert stub.recurring[shoes]["status"] == "ENABLED"
    assert rankone("schedule", "delete", "nightly", "--owner", "vision").status == 0
    assert list(stub.recurring) == [shoes]
    done = rankone("schedule", "delete", "nightly", "--owner", "vision")
    assert "Owner vision has no schedule 'nightly'; there is one of: shoes." in done.err
    assert rankone("schedule", "pause", "nightly").status == 0


def test_two_of_one_owner_are_taken_together(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    twin = {**made(stub, "nightly"), "recurring_run_id": "twin"}
    by_hand = {**twin, "recurring_run_id": "by-hand", "description": "Do not touch"}
    stub.recurring |= {"twin": twin, "by-hand": by_hand}
    assert rankone("schedule", "pause", "nightly").status == 0
    states = {identity: run["status"] for identity, run in stub.recurring.items()}
    assert sorted(states.values()) == ["DISABLED", "DISABLED", "ENABLED"]
    assert states["by-hand"] == "ENABLED"
    assert rankone("schedule", "delete", "nightly").status == 0
    assert list(stub.recurring) == ["by-hand"]


def test_a_release_is_uploaded_when_the_code_has_changed_and_schedules_stay(
    stub: Stub, rankone, write, packages: Path, monkeypatch
) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    before, (first,) = dict(stub.recurring), stub.versions.values()
    digests = {"one": first["name"], "two": "222222222222"}
    monkeypatch.setattr(release, "content_digest", lambda package: digests["two"])
    done = rankone("schedule", "diff")
    assert done.status == 1
    assert f"~ rankone-release-cpu: version {first['name']} now, 222222222222 then" in done.out
    assert "rankone-release-cpu: version 222222222222 from now on" in rankone("schedule", "apply").out
    assert stub.recurring == before
    monkeypatch.setattr(release, "content_digest", lambda package: digests["one"])  # the change is taken back
    done = rankone("schedule", "apply")
    assert f"version {first['name']}.2 from now on, 222222222222 before" in done.out
    assert list(stub.versions.values())[-1]["name"] == f"{first['name']}.2"
    assert rankone("schedule", "diff").status == 0
    assert stub.recurring == before


def test_a_release_is_apart_from_what_is_submitted(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    rankone("submit", "--recipe", "digits")
    names = {pipeline["display_name"] for pipeline in stub.pipelines.values()}
    assert names == {"rankone", "rankone-release-cpu"}
    assert rankone("schedule", "diff").status == 0


def test_two_who_release_at_once_leave_one_version(stub: Stub, rankone, write, packages: Path) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    name = next(iter(stub.versions.values()))["name"]
    stub.versions.clear()
    stub.racer = lambda: (setattr(stub, "racer", lambda: None), stub.keep_version(
        next(iter(stub.pipelines)), name, (packages / "cpu.yaml").read_text()))  # fmt: skip
    assert rankone("schedule", "apply").status == 0
    assert [version["name"] for version in stub.versions.values()] == [name]


def test_no_step_of_a_release_is_taken_from_the_cache(tmp_path: Path, stub: Stub) -> None:
    from operations.profiles import load_profile

    package = compile_release(tmp_path / "release.yaml", IMAGES, load_profile("cpu"))
    released = next(yaml.safe_load_all(package.read_text()))
    submitted = next(yaml.safe_load_all(cached_package(tmp_path).read_text()))
    (reading,) = [task for task in tasks_of(submitted) if task["taskInfo"]["name"] == "prepare-data"]
    assert reading["cachingOptions"] == {"enableCache": True}
    assert "enableCache" not in package.read_text()
    for task in tasks_of(submitted):
        task["cachingOptions"] = {}
    assert released == submitted


def cached_package(folder: Path) -> Path:
    from operations import compile
    from operations.profiles import load_profile

    return compile.compile_pipeline(folder / "submitted.yaml", images=IMAGES, profile=load_profile("cpu"))


def test_tasks_within_tasks_are_found() -> None:
    inner = {"dag": {"tasks": {"b": {"cachingOptions": {"enableCache": True}}}}}
    specification = {"root": {"dag": {"tasks": {"a": {}}}}, "components": {"comp-a": inner, "comp-b": {}}}
    assert len(list(tasks_of(specification))) == 2


def test_a_pinned_schedule_runs_its_version_and_no_release_is_needed(stub: Stub, rankone, write, monkeypatch) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    (version,) = stub.versions.values()
    write({**NIGHTLY, "version": version["name"]})
    assert f'    version: "latest" -> "{version["name"]}"\n' in rankone("schedule", "diff").out
    monkeypatch.setattr(release, "content_digest", lambda package: "222222222222")
    assert rankone("schedule", "apply").status == 0
    assert len(stub.versions) == 1
    run = made(stub, "nightly")
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert rankone("schedule", "diff").status == 0
    (row,) = json.loads(rankone("schedule", "list", "--json").out)
    assert row["version"] == version["name"]
    write({**NIGHTLY, "version": "nothing"})
    done = rankone("schedule", "diff")
    assert done.status == 2
    assert f"rankone-release-cpu has no version 'nothing'; uploaded last: {version['name']}." in done.err
    write({**NIGHTLY, "profile": "h200", "version": "nothing"})
    assert "rankone-release-h200 has no version 'nothing'; uploaded last: none yet." in rankone("schedule", "diff").err


def test_a_pinned_version_decides_which_parameters_there_are(stub: Stub, rankone, write, monkeypatch) -> None:
    monkeypatch.setattr(schedules, "ALWAYS", {"seed": 7})
    write(NIGHTLY)
    rankone("schedule", "apply")
    (version,) = stub.versions.values()
    known = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    del known["seed"]  # the version is older than this knob
    write({**NIGHTLY, "version": version["name"]})
    assert rankone("schedule", "apply").status == 0
    assert "seed" not in made(stub, "nightly")["runtime_config"]["parameters"]
    write({**NIGHTLY, "version": version["name"], "parameters": {"seed": 3}})
    done = rankone("schedule", "apply")
    assert done.status == 2
    assert f"version {version['name']} of rankone-release-cpu has no parameter seed; it has: " in done.err


def test_without_a_release_no_image_is_needed(stub: Stub, rankone, write, monkeypatch) -> None:
    write(NIGHTLY)
    done = rankone("schedule", "apply", "--no-release")
    assert done.status == 2
    assert "rankone-release-cpu was never released; leave --no-release out, once." in done.err
    rankone("schedule", "apply")

    def no_lock() -> dict[str, str]:
        raise FileNotFoundError("There is no image lock.")

    monkeypatch.setattr(cluster_commands, "locked_images", no_lock)
    monkeypatch.setattr(release, "content_digest", lambda package: "222222222222")
    write({**NIGHTLY, "cron": "0 4 * * *"})
    assert rankone("schedule", "apply").status == 2
    assert rankone("schedule", "diff", "--no-release").status == 1
    assert rankone("schedule", "apply", "--no-release").status == 0
    assert made(stub, "nightly")["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert len(stub.versions) == 1


def test_bad_input_is_refused_before_anything_is_sent(stub: Stub, rankone, write) -> None:
    write(NIGHTLY, {**WEEKLY, "parameters": {"dimensions": 3}})
    for command in ("apply", "diff"):
        done = rankone("schedule", command)
        assert done.status == 2
        assert "schedules.yaml, schedule weekly: There is no parameter 'dimensions'" in done.err
    assert rankone("schedule", "apply", "--file", "none.yaml").status == 2
    assert stub.requests == []


def test_json_says_what_is_done(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    told = json.loads(rankone("schedule", "diff", "--json").out)
    assert told["releases"][0]["pipeline"] == "rankone-release-cpu"
    assert (told["releases"][0]["now"], told["releases"][0]["changes"]) == (None, True)
    assert (told["schedules"][0]["change"], len(told["schedules"][0]["next"])) == ("create", 3)
    told = json.loads(rankone("schedule", "apply", "--json").out)
    assert told["schedules"][0]["change"] == "create"
    write({**NIGHTLY, "cron": "0 4 * * *"})
    told = json.loads(rankone("schedule", "apply", "--json").out)
    assert told["schedules"][0]["fields"] == [{"field": "when", "now": "cron 0 0 3 * * *", "then": "cron 0 0 4 * * *"}]
    assert told["releases"][0]["changes"] is False


def test_many_recurring_runs_come_in_pages_and_in_a_namespace(stub: Stub, rankone, write, monkeypatch) -> None:
    stub.many_users = True
    monkeypatch.setenv("RANKONE_KFP_NAMESPACE", "vision")
    write(NIGHTLY)
    assert rankone("schedule", "apply").status == 0
    ours = made(stub, "nightly")
    others = {f"r{number}": {**ours, "recurring_run_id": f"r{number}", "description": ""} for number in range(230)}
    stub.recurring = {**others, **stub.recurring}
    assert rankone("schedule", "diff").status == 0
    assert len(json.loads(rankone("schedule", "list", "--json").out)) == 231


def test_every_command_of_the_page_does_what_it_says(stub: Stub, rankone, tmp_path: Path, monkeypatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    Path("schedules.yaml").write_text(example, encoding="utf-8")
    lines = re.findall(r"^ *\S*rankone schedule .*", page, re.MULTILINE)
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert {command[1] for command in commands} == {"diff", "apply", "list", "pause", "resume", "delete"}
    for command in commands:
        done = rankone(*command)
        assert done.status == (1 if command[1] == "diff" else 0), (command, done.err)
        assert done.out
    profiles_used = {pipeline["display_name"] for pipeline in stub.pipelines.values()}
    assert profiles_used == {"rankone-release-one-gpu", "rankone-release-cpu"}
    assert len(stub.recurring) == 3  # apply at the end made the deleted one again


def test_a_release_pipeline_that_was_deleted_is_made_again_with_its_schedules(stub: Stub, rankone, write) -> None:
    write(NIGHTLY)
    rankone("schedule", "apply")
    old = made(stub, "nightly")
    stub.pipelines.clear()
    stub.versions.clear()
    done = rankone("schedule", "apply")
    assert '    pipeline: "(deleted)" -> "rankone-release-cpu"' in done.out
    assert made(stub, "nightly")["recurring_run_id"] != old["recurring_run_id"]

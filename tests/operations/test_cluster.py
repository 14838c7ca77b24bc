"""Submitting and following runs, with kfp's own client against a stub of the server (tests/kfp_server.py)."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from operations import cluster_commands
from operations.cluster import ClusterError, connect
from operations.cluster_runs import StepState, steps_of, watch
from operations.parameters import step_names
from tests.kfp_server import IMAGES, Stub, through_model

pytest_plugins = ["tests.cluster_fixtures"]


def run_of(stub: Stub) -> dict[str, Any]:
    return list(stub.runs.values())[-1]


def test_a_run_carries_the_recipe_the_assignments_and_the_hardware(stub: Stub, rankone, monkeypatch) -> None:
    monkeypatch.setenv("RANKONE_SERVICE_ACCOUNT", "rankone")
    selector = '{"nvidia.com/gpu.product": "NVIDIA-H200-NVL"}'
    done = rankone(
        "submit", "--recipe", "digits", "--profile", "h200", "-p", "dimension=128", "-p", "channels=[8,8,8]",
        "-p", f"accelerated_node_selector={selector}", "-p", "accelerator_count=2",
    )  # fmt: skip
    assert done.status == 0, done.err
    run = run_of(stub)
    parameters = run["runtime_config"]["parameters"]
    fingerprint = parameters.pop("source_fingerprint")
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert parameters == {
        "source": "digits", "split": "closed", "registered_model": "digits", "batch_size": 32, "location": "",
        "dimension": 128, "channels": [8, 8, 8],
        "accelerated_node_selector": json.loads(selector), "accelerator_count": "2",
    }  # fmt: skip
    assert run["service_account"] == "rankone"
    assert run["display_name"].startswith("digits ")
    assert stub.experiments[run["experiment_id"]]["display_name"] == "rankone"
    assert f"{stub.address}/#/runs/details/{run['run_id']}" in done.out


def test_what_is_uploaded_runs_images_by_digest_and_is_named_by_its_content(stub: Stub, rankone) -> None:
    assert rankone("submit", "--recipe", "digits").status == 0
    (version,) = stub.versions.values()
    assert re.fullmatch("[0-9a-f]{12}", version["display_name"])
    executors = version["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == set(IMAGES.values())
    assert version["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]


def test_a_version_is_uploaded_once_and_another_profile_is_another_version(stub: Stub, rankone) -> None:
    assert "(uploaded)" in rankone("submit", "--recipe", "digits").out
    assert "(there already)" in rankone("submit", "--recipe", "digits", "-p", "seed=2").out
    assert (len(stub.pipelines), len(stub.versions), len(stub.runs)) == (1, 1, 2)
    assert "(uploaded)" in rankone("submit", "--recipe", "digits", "--profile", "h200").out
    assert (len(stub.pipelines), len(stub.versions), len(stub.experiments)) == (1, 2, 1)


def test_two_who_upload_at_once_use_the_same_version(stub: Stub, rankone, packages: Path) -> None:
    assert rankone("submit", "--recipe", "digits").status == 0
    name = next(iter(stub.versions.values()))["name"]
    stub.versions.clear()

    def be_quicker() -> None:
        stub.keep_version(next(iter(stub.pipelines)), name, (packages / "cpu.yaml").read_text())

    stub.racer = be_quicker
    assert "(there already)" in rankone("submit", "--recipe", "digits").out
    assert len(stub.versions) == 1


def test_waiting_shows_each_step_and_succeeds(stub: Stub, rankone) -> None:
    done = rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05")
    assert done.status == 0, done.err
    for step in step_names():
        assert re.search(rf"^{step} +RUNNING", done.out, flags=re.MULTILINE), done.out
        assert re.search(rf"^{step} +SUCCEEDED  0:00:45$", done.out, flags=re.MULTILINE), done.out
    assert done.out.splitlines()[-1] == "SUCCEEDED after 1:30:00"


def test_waiting_for_a_run_that_fails_says_where_and_is_no_success(stub: Stub, rankone) -> None:
    stub.fails_at = "pretrain"
    done = rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05")
    assert done.status == 1
    run = run_of(stub)["run_id"]
    assert f"pretrain: pretrain ended with exit status 1; `rankone logs {run} pretrain` shows what it said." in done.out
    assert "co_cluster " not in done.out


def test_a_server_that_is_away_for_a_moment_is_outlasted(stub: Stub, rankone) -> None:
    stub.away_after, stub.away = "co-cluster", 2
    done = rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05")
    assert done.status == 0
    assert done.out.count("(503)") == 2


def test_a_server_that_refuses_while_a_run_is_watched_ends_the_watch_and_not_the_run(stub: Stub, rankone) -> None:
    rankone("submit", "--recipe", "digits")
    client = connect()
    stub.token = "another"
    with pytest.raises(ClusterError, match=r"401.*The run itself goes on"):
        watch(client, run_of(stub)["run_id"], 0.01, lambda _: None, lambda _: None)


def test_a_terminal_shows_a_table_of_the_steps(stub: Stub, rankone, monkeypatch) -> None:
    monkeypatch.setattr(cluster_commands, "_console", lambda: Console(force_terminal=True, width=100, highlight=False))
    done = rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05")
    assert done.status == 0
    for step in step_names():
        assert re.search(rf"{step} +.*SUCCEEDED.* +0:00:45", done.out)


def test_ctrl_c_leaves_the_run_and_says_how_to_stop_it(stub: Stub, rankone, monkeypatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    done = rankone("submit", "--recipe", "digits", "--wait")
    assert done.status == 130
    run = run_of(stub)
    assert (
        f"The run goes on: {stub.address}/#/runs/details/{run['run_id']}\n`rankone cancel {run['run_id']}`" in done.err
    )
    assert run["state"] == "RUNNING"


def test_json_stands_alone_and_tells_how_it_ended(stub: Stub, rankone) -> None:
    done = rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05", "--json")
    told = json.loads(done.out)
    assert (told["state"], told["uploaded"], told["run"]) == ("SUCCEEDED", True, run_of(stub)["run_id"])
    assert told["page"].startswith(stub.address)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "dimensions=3"], "There is no parameter 'dimensions'"),
        (["-p", "accelerator_count=2"], "accelerator_count is no parameter but a setting"),  # the cpu profile has none
        (["--profile", "h100"], "Unknown profile 'h100'"),
        (["--profile", "h200", "-p", "accelerated_memory=much"], "accelerated_memory is 'much'"),
        (["--profile", "h200", "-p", "accelerated_memory=48"], "accelerated_memory is '48', less than the profile's"),
        (["-p", "weights=/dev/null"], "weights names '/dev/null', which is on this machine; give an s3:// address"),
        (["-p", "source=folder", "-p", "location=photos"], "location is 'photos', which is on this machine"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(stub: Stub, rankone, arguments, message) -> None:
    done = rankone("submit", *arguments)
    assert done.status == 2
    assert message in done.err
    assert not stub.requests


def test_a_folder_called_as_a_choice_is_no_reason_to_refuse(stub: Stub, rankone, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert rankone("submit", "--recipe", "digits", "-p", "weights=imagenet", "-p", "source_fingerprint=a").status == 0
    assert run_of(stub)["runtime_config"]["parameters"]["weights"] == "imagenet"


def test_a_token_is_sent_and_never_shown(stub: Stub, rankone, monkeypatch) -> None:
    stub.token = "secret-of-the-house"
    done = rankone("runs")
    assert done.status == 2
    assert "does not know who asks (401): give a token, RANKONE_KFP_TOKEN" in done.err
    monkeypatch.setenv("RANKONE_KFP_TOKEN", "secret-of-yesterday")
    done = rankone("runs")
    assert "(401): RANKONE_KFP_TOKEN is expired" in done.err
    assert "secret-of-yesterday" not in done.err + done.out
    monkeypatch.setenv("RANKONE_KFP_TOKEN", "Bearer secret-of-the-house")
    assert rankone("runs").status == 0


def test_in_a_pod_the_mounted_token_is_read_anew_for_every_request(stub: Stub, monkeypatch, tmp_path: Path) -> None:
    mounted = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(mounted))
    mounted.write_text("first")
    stub.token = "first"
    client = connect()
    mounted.write_text("second")
    stub.token = "second"
    assert client.health()["tag_name"] == "2.17.0"
    assert stub.tokens[-1] == "Bearer second"


def test_without_a_token_nothing_is_claimed(stub: Stub, rankone) -> None:
    assert rankone("runs").status == 0
    assert set(stub.tokens) == {""}


def test_a_server_of_many_users_wants_a_namespace_and_gets_it_everywhere(stub: Stub, rankone, monkeypatch) -> None:
    stub.many_users = True
    assert "serves many users; name your namespace: RANKONE_KFP_NAMESPACE" in rankone("runs").err
    monkeypatch.setenv("RANKONE_KFP_NAMESPACE", "vision")
    assert rankone("submit", "--recipe", "digits").status == 0
    assert next(iter(stub.experiments.values()))["namespace"] == "vision"
    assert rankone("runs").status == 0


def test_a_namespace_is_not_told_to_a_server_of_one_user(stub: Stub, rankone, monkeypatch) -> None:
    monkeypatch.setenv("RANKONE_KFP_NAMESPACE", "vision")
    assert rankone("submit", "--recipe", "digits").status == 0


def test_what_is_no_kubeflow_is_told_apart(stub: Stub, rankone, monkeypatch) -> None:
    monkeypatch.setattr(Stub, "answer", lambda *_: "<html>Log in</html>")
    done = rankone("runs")
    assert done.status == 2
    assert "answers, and not as the API of Kubeflow Pipelines: '<html>Log in</html>'" in done.err


def test_an_address_where_nobody_is_and_none_at_all(stub: Stub, rankone, monkeypatch) -> None:
    monkeypatch.setenv("RANKONE_KFP_HOST", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 does not answer" in rankone("runs").err
    monkeypatch.setenv("RANKONE_KFP_HOST", "localhost:8080")
    assert "must begin with http:// or https://" in rankone("runs").err
    monkeypatch.setenv("RANKONE_KFP_HOST", "ada:secret@localhost:8080")
    assert "RANKONE_KFP_HOST is 'localhost:8080'; it must begin with http:// or https://" in rankone("runs").err
    monkeypatch.setenv("RANKONE_KFP_HOST", "http://ada:secret@127.0.0.1:1")
    done = rankone("runs")
    assert "RANKONE_KFP_HOST holds a user's name or a password" in done.err
    assert "secret" not in done.err
    monkeypatch.delenv("RANKONE_KFP_HOST")
    assert "No Kubeflow Pipelines is named" in rankone("runs").err


def test_a_token_of_several_words_is_refused_and_not_repeated(stub: Stub, rankone, monkeypatch) -> None:
    monkeypatch.setenv("RANKONE_KFP_TOKEN", "secret\nother")
    done = rankone("runs")
    assert "RANKONE_KFP_TOKEN has white space in it" in done.err
    assert "secret" not in done.err


def test_runs_are_listed_newest_first_over_several_pages(stub: Stub, rankone) -> None:
    for _ in range(3):
        rankone("submit", "--recipe", "digits")
    stub.runs |= {f"old-{number}": {**run_of(stub), "run_id": f"old-{number}"} for number in range(120)}
    listed = json.loads(rankone("runs", "--limit", "110", "--json").out)
    assert [fact["run"] for fact in listed[:2]] == ["old-119", "old-118"]
    assert len(listed) == 110
    shown = rankone("runs", "--limit", "2").out
    assert "old-119" in shown
    assert "2026-03-01 10:00:00" in shown


def test_logs_of_a_step_come_from_the_page_or_from_the_api(stub: Stub, rankone) -> None:
    rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05")
    stub.logs = {"pretrain-pod": "epoch 1 of 5\nepoch 2 of 5\n", "pretrain-driver-pod": "input executionID:3"}
    for places in ({"page"}, {"api"}):
        stub.log_paths = places
        done = rankone("logs", "latest", "pretrain")
        assert done.out == "epoch 1 of 5\nepoch 2 of 5\n"
        assert done.err == "pretrain-pod:\n"
    stub.logs = {}
    done = rankone("logs", "latest", "pretrain")
    assert done.status == 2
    assert "No log of pretrain is left on the cluster" in done.err


def test_logs_without_a_step_show_how_far_each_is(stub: Stub, rankone) -> None:
    rankone("submit", "--recipe", "digits")
    run = run_of(stub)["run_id"]
    shown = rankone("logs", run).out
    assert re.search("prepare_data +RUNNING", shown)
    assert re.search("promote +PENDING", shown)
    assert "promote has not started in this run" in rankone("logs", run, "promote").err
    assert "Unknown step 'train'; choose one of" in rankone("logs", run, "train").err


def test_a_run_is_stopped_and_goes_on(stub: Stub, rankone) -> None:
    rankone("submit", "--recipe", "digits")
    run = run_of(stub)["run_id"]
    assert "only a run that failed or was stopped is tried again" in rankone("retry", run).err
    assert rankone("cancel", run).status == 0
    assert run_of(stub)["state"] == "CANCELED"
    assert "is CANCELED; there is nothing to stop" in rankone("cancel", run).err
    done = rankone("retry", run, "--wait", "--every", "0.05")
    assert done.status == 0, done.err
    assert f"POST /apis/v2beta1/runs/{run}:retry" in stub.requests
    assert run_of(stub)["state"] == "SUCCEEDED"


def test_an_unknown_run_and_no_run_at_all(stub: Stub, rankone) -> None:
    assert "no run nothing" in rankone("cancel", "nothing").err
    assert "There is no run yet" in rankone("logs", "latest").err


def test_steps_are_told_from_their_drivers_and_pods(stub: Stub, rankone) -> None:
    rankone("submit", "--recipe", "digits", "--wait", "--every", "0.05")
    states = steps_of(connect().get_run(run_of(stub)["run_id"]))
    assert {state.step for state in states} == set(step_names())
    assert states[0] == StepState("prepare_data", "SUCCEEDED", 45.0, "")


def test_the_stub_refuses_a_field_that_the_models_do_not_have() -> None:
    with pytest.raises(AssertionError, match="lost something"):
        through_model({"display_name": "a", "shoe_size": 3}, "V2beta1Run")
    with pytest.raises(AssertionError, match="is no V2beta1Predicate"):
        through_model({"key": "a", "operation": "SMELLS_LIKE"}, "V2beta1Predicate")


def test_images_that_no_registry_holds_are_refused_before_anything_is_sent(stub: Stub, rankone, monkeypatch) -> None:
    images = IMAGES | {"rankone-data": "rankone-data:0123456789ab"}
    monkeypatch.setattr(cluster_commands, "locked_images", lambda: images)
    done = rankone("submit", "--recipe", "digits")
    assert done.status == 2
    assert "No registry holds rankone-data, so no pod can run it" in done.err
    assert not stub.runs

import dataclasses
import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from retrieval import tracking, tracking_process
from retrieval.tracking import TrackingError, client, step_run
from tests.processes import at_once

pytestmark = pytest.mark.usefixtures("mlflow_home")
ROOT = Path(__file__).parents[2]
KILLED_STEP = """
import os
from retrieval.tracking import step_run
with step_run("pretrain", {}) as run:
    print(run.run_id, flush=True)
    os._exit(9)
"""


@dataclasses.dataclass(frozen=True)
class Knobs:
    epochs: int = 3
    kernels: tuple[int, ...] = (5, 3)


@pytest.fixture(scope="module")
def told(mlflow_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One pipeline run through the tracking process, with a step that works, one that is killed, and one that errs."""
    found: dict[str, Any] = {}
    page = tmp_path_factory.mktemp("pages") / "page"
    page.write_text("<p>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKONE_HOME", str(mlflow_folder))
        key = tracking.start_pipeline_run("digits", {"seed": 0}, {"recipe": "digits"})
        found["process"], _ = tracking_process._started[0]
        try:
            with step_run("pretrain", Knobs()) as run:
                run.log_metrics({"loss": 0.5}, step=1)
                run.log_artifact(page)
                found |= {"channel": type(run._channel), "step": run.run_id}
            killed = run_python(KILLED_STEP)
            found |= {"killed": killed.communicate()[0].strip(), "killed_status": killed.returncode}
            try:
                with step_run("co_cluster", {"epochs": 3}) as run:
                    found["refused"] = run.run_id
                    run.log_params({"epochs": 4})  # a parameter is written once
            except TrackingError as error:
                found["refusal"] = error
            found["parent"] = tracking.pipeline_run_id(key)
        finally:
            tracking.finish_pipeline_run(key, "FINISHED", {"outcome": "promoted"})
    return found


def run_python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(run_id: str) -> Any:
    return client().get_run(run_id)


def test_importing_tracking_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, retrieval.registry, retrieval.gate; print({'mlflow', 'torch'} & set(sys.modules))"
    output, _ = run_python(code).communicate()
    assert output.strip() == "set()"


def test_a_step_leaves_params_tags_curves_and_files(mlflow_home: Path, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<p>")
    with step_run("pretrain", Knobs()) as run:
        run.log_metrics({"loss": 0.5, "accuracy": 1}, step=1)
        run.log_metrics({"loss": 0.25}, step=2)
        run.log_params({"loss": "contrastive"})
        run.set_tags({"note": 3})
        run.log_artifact(tmp_path / "page", "pages", name="report.html")
        run_id = run.run_id
    found = finished(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "pretrain"
    assert found.info.end_time >= found.info.start_time
    assert found.data.params == {"epochs": "3", "kernels": "[5, 3]", "loss": "contrastive"}
    assert found.data.metrics == {"loss": 0.25, "accuracy": 1.0}
    assert [(point.step, point.value) for point in client().get_metric_history(run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    tags = found.data.tags
    assert tags["note"] == "3"
    assert tags["rankone.step"] == "pretrain"
    assert {"rankone.version.python", "rankone.version.torch", "rankone.host", "rankone.platform"} <= set(tags)
    assert "mlflow.parentRunId" not in tags
    assert [file.path for file in client().list_artifacts(run_id, "pages")] == ["pages/report.html"]
    assert (mlflow_home / "mlflow-artifacts" / run_id / "artifacts" / "pages" / "report.html").read_text() == "<p>"


def test_a_call_to_log_metrics_is_one_batch(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with step_run("pretrain", {}) as run:
        calls = []
        monkeypatch.setattr(client(), "log_batch", lambda *_, **given: calls.append(given))
        run.log_metrics({f"metric_{number}": number for number in range(50)}, step=1)
        monkeypatch.undo()
        monkeypatch.setenv("RANKONE_HOME", str(mlflow_home))
    assert len(calls) == 1


def test_steps_of_one_pipeline_run_share_a_parent(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "a-run")
    parents = set()
    for step in ("pretrain", "co_cluster"):
        with step_run(step, {}) as run:
            run_id = run.run_id
        parents.add(finished(run_id).data.tags["mlflow.parentRunId"])
        assert finished(run_id).data.tags[tracking.PIPELINE_RUN] == "a-run"
    (parent,) = parents
    assert finished(parent).data.tags[tracking.PIPELINE_RUN] == "a-run"


def test_an_injected_run_is_the_parent(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = client().create_run(client().create_experiment("another")).info
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.run_id)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "b-run")
    with step_run("pretrain", {}) as run:
        run_id = run.run_id
    assert finished(run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert finished(run_id).info.experiment_id == parent.experiment_id
    assert tracking._runs_of("b-run") == []


def test_an_injected_run_that_does_not_exist_is_named(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="0" * 32), step_run("pretrain", {}):
        pass


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_how_a_step_ends_is_its_status(mlflow_home: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), step_run("pretrain", {}) as run:  # noqa: PT012
        run_id = run.run_id
        raise error
    assert finished(run_id).info.status == status
    assert finished(run_id).data.tags["rankone.error"].startswith(type(error).__name__)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused(mlflow_home: Path, value: float) -> None:
    with pytest.raises(ValueError, match="loss is"), step_run("pretrain", {}) as run:
        run.log_metrics({"loss": value})


def test_a_knob_is_never_cut_short(mlflow_home: Path) -> None:
    with step_run("pretrain", {f"knob_{number}": "x" * 6_000 for number in range(150)}) as run:
        run_id = run.run_id
    params = finished(run_id).data.params
    assert len(params) == 150
    assert {len(text) for text in params.values()} == {6_000}
    with pytest.raises(ValueError, match="knob has 6,001 characters"), step_run("pretrain", {"knob": "x" * 6_001}):
        pass


def test_a_file_that_is_missing_is_refused(mlflow_home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file"), step_run("pretrain", {}) as run:
        run.log_artifact(tmp_path / "none.html")


def test_only_the_first_rank_tracks(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "c-run")
    with step_run("pretrain", Knobs()) as run:
        run.log_metrics({"loss": 1.0})
        run.set_tags({"a": 1})
        assert run.run_id == ""
    assert tracking._runs_of("c-run") == []


def test_no_thread_is_left(mlflow_home: Path) -> None:
    before = set(threading.enumerate())
    with step_run("pretrain", {}) as run:
        run.log_metrics({"loss": 1.0})
    assert set(threading.enumerate()) <= before


def track_one_step(_: int) -> str:
    with step_run("pretrain", {"a": 1}) as run:
        return run.run_id


def test_four_processes_at_once_make_one_sound_store(
    tmp_path: Path, mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client()  # MLflow is imported here, once, and not by each of the four
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path))
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "d-run")
    run_ids = at_once(track_one_step, range(4))
    (experiment,) = client().search_experiments(filter_string="name = 'rankone'")
    assert experiment.artifact_location == (tmp_path / "mlflow-artifacts").as_uri()
    steps = [run for run in client().search_runs([experiment.experiment_id]) if run.info.run_name == "pretrain"]
    assert {run.info.run_id for run in steps} == set(run_ids)
    assert len(set(run_ids)) == 4
    assert {run.info.status for run in steps} == {"FINISHED"}
    assert not (tmp_path / "mlflow.making").exists()


def test_a_store_is_there_once_it_was_made_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path))
    assert not tracking.has_store()
    (tmp_path / "mlflow.db").touch()
    assert tracking.has_store()
    (tmp_path / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.has_store()


def test_a_store_that_is_no_file_of_ours_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path))
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(ValueError, match=r"mlflow\.db is no file that this user may read and write"):
        tracking.embedded_store()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ada:secret@host", "http://host"),
        ("http://ada:se@cret@host", "http://host"),
        ("http://ada:se/cret@host", "http://host"),
        ("ada:secret@host", "host"),
    ],
)
def test_an_error_is_told_without_the_password_of_its_address(
    address: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**_: object) -> None:
        raise RuntimeError(f"API request to {address}/api failed")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(tracking, "_actions", lambda _: {"run_id": refuses})
    place = shown if "://" in shown else "the store of MLFLOW_TRACKING_URI"
    with pytest.raises(TrackingError, match=f"'run_id' in {place}: API request to {shown}/api failed"):
        tracking.perform(tracking.RunWriter(), "run_id", {})


def test_the_process_ends_where_mlflow_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be looked at as one")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    with listener:
        command = [sys.executable, "-m", "retrieval.tracking_process", str(listener.fileno())]
        environment = os.environ | {"RANKONE_HOME": str(tmp_path)}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env=environment, cwd=ROOT
        )
    assert process.stdin is not None
    process.stdin.close()
    try:
        assert process.wait(100) == 0
    finally:
        process.kill()


def test_another_server_is_used_when_named(mlflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.tracking_uri() == "http://127.0.0.1:1"


def test_a_step_that_comes_at_the_same_time_nests_under_the_run_of_the_pipeline(
    mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_of, looked, made = tracking._runs_of, threading.Event(), threading.Event()

    def seen(key: str) -> list[str]:
        found = runs_of(key)
        if threading.current_thread() is pipeline and not looked.is_set():
            looked.set()
            made.wait(1)  # for the step, which makes no run meanwhile
        return found

    monkeypatch.setattr(tracking, "_runs_of", seen)
    found: dict[str, str] = {}
    pipeline = threading.Thread(target=lambda: found.update(pipeline=tracking._pipeline_run("both", 1_000)))
    pipeline.start()
    assert looked.wait(60)
    found["step"] = tracking._pipeline_run("both", 2_000)
    made.set()
    pipeline.join()
    assert found["step"] == found["pipeline"]


def test_steps_are_tracked_by_the_process(told: dict[str, Any]) -> None:
    assert told["channel"] is tracking_process.Connection
    step, parent = finished(told["step"]), finished(told["parent"])
    assert (step.info.status, step.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert step.data.params == {"epochs": "3", "kernels": "[5, 3]"}
    assert step.data.tags["mlflow.parentRunId"] == told["parent"]
    assert [file.path for file in client().list_artifacts(told["step"])] == ["page"]
    assert (parent.info.status, parent.data.params) == ("FINISHED", {"seed": "0"})
    assert (parent.data.tags["outcome"], parent.data.tags["recipe"]) == ("promoted", "digits")


def test_a_killed_step_does_not_stay_running(told: dict[str, Any]) -> None:
    assert told["killed_status"] == 9
    assert finished(told["killed"]).info.status == "KILLED"
    assert "out of memory" in finished(told["killed"]).data.tags["rankone.error"]


def test_what_the_process_cannot_do_is_an_error_of_the_step(told: dict[str, Any]) -> None:
    assert "log_params" in str(told["refusal"])
    assert finished(told["refused"]).info.status == "FAILED"


def test_the_process_ends_with_the_pipeline_run(told: dict[str, Any]) -> None:
    assert told["process"].returncode == 0
    assert tracking_process._started == []


def test_without_its_process_a_step_tracks_by_itself(
    mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tracking_process.SOCKET, str(tmp_path / "gone"))
    with step_run("pretrain", {}) as run:
        run_id = run.run_id
    assert finished(run_id).info.status == "FINISHED"


def test_an_image_with_mlflows_client_alone_asks_for_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mlflow.store.tracking.sqlalchemy_store", None)  # as without sqlalchemy
    with pytest.raises(ValueError, match=r"holds its client .*name a server in MLFLOW_TRACKING_URI"):
        tracking.embedded_store()

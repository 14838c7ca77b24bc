"""The whole DAG with the real command lines, from the compiled YAML, on real images."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_0

from operations.display import Display
from operations.parameters import resolve
from operations.run import PATHS, end_tracking, refuse_missing_files, run_here, with_source
from retrieval import tracking
from tests.digit_folder import write_digits

STEPS = ["prepare_data", "detect_changes", "pretrain", "co_cluster", "finetune_metric", "finetune_softmax"]
STEPS += ["evaluate", "promote"]
SMALL = {
    "source": "folder",
    "classifier": "squeezenet1_0",
    "pretrain_epochs": "0",
    "feature_dimension": "32",
    "channels": "[8, 16, 16]",
    "dimension": "128",
    "adjust_epochs": "1",
    "metric_epochs": "3",
    "softmax_epochs": "1",
    "bootstrap_resamples": "200",
    "threshold_trials": "20",
    "occlusion_queries": "50",
    "gallery_queries": "6",
    "minimum_recall_at_1": "0.2",
}


class Pipeline:
    """One home folder and one command, called as a person calls it."""

    def __init__(self, home: Path, images: Path) -> None:
        self.home = home
        self.values = SMALL | {"location": str(images)}

    def command(self, **changes: str) -> list[str]:
        assignments = [f"--param={name}={value}" for name, value in (self.values | changes).items()]
        return [sys.executable, "-m", "operations.command_line", "run", *assignments]

    def environment(self) -> dict[str, str]:
        return os.environ | {"RANKONE_HOME": str(self.home), "COLUMNS": "200"}

    def run(self, **changes: str) -> subprocess.CompletedProcess[str]:
        command = self.command(**changes)
        return subprocess.run(command, capture_output=True, text=True, env=self.environment(), timeout=280)

    def latest(self) -> Path:
        return max((self.home / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def ran(output: str) -> list[str]:
    """Steps that did work, in order."""
    started = re.findall(r"^\[\d/\d\] (\w+)$", output, flags=re.MULTILINE)
    return [step for step in started if step in STEPS]


def from_cache(output: str) -> list[str]:
    return re.findall(r"^\[\d/\d\] (\w+)  done before", output, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "digits"
    write_digits(folder, 30)
    return folder


@pytest.fixture(scope="module")
def pipeline(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("home"), images)


@pytest.fixture(scope="module")
def first(pipeline: Pipeline) -> subprocess.CompletedProcess[str]:
    """The first run; all that follow find its cache."""
    done = pipeline.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def registry(home: Path) -> tuple[dict[int, dict[str, str]], dict[str, int]]:
    """Tags of every model version by its number, and the versions of the aliases."""
    with sqlite3.connect(home / "mlflow.db") as database:
        versions: dict[int, dict[str, str]] = {
            number: {} for (number,) in database.execute("SELECT version FROM model_versions")
        }
        for number, key, value in database.execute("SELECT version, key, value FROM model_version_tags"):
            versions[number][key] = value
        aliases = dict(database.execute("SELECT alias, version FROM registered_model_aliases"))
    database.close()
    return versions, aliases


def test_a_first_run_does_every_step_and_promotes(pipeline: Pipeline, first: subprocess.CompletedProcess[str]) -> None:
    assert ran(first.stdout) == STEPS
    assert "promoted: " in first.stdout
    for stage in ("pretrain", "co_cluster", "finetune_metric", "finetune_softmax"):
        assert f"R@1 after {stage}" in first.stdout
    versions, aliases = registry(pipeline.home)
    assert set(versions) == {1}
    assert aliases == {"champion": 1}
    assert "<html" in (pipeline.latest() / "report.html").read_text()
    assert "is now champion" in (pipeline.latest() / "verdict.html").read_text()
    assert (pipeline.latest() / "pipeline.yaml").is_file()


def test_every_artifact_is_recorded_and_whole(pipeline: Pipeline, first: subprocess.CompletedProcess[str]) -> None:
    reports = list((pipeline.home / "artifacts").rglob("executor_output.json"))
    assert {path.parent.name.replace("-", "_") for path in reports} >= set(STEPS)
    for path in reports:
        for artifact in json.loads(path.read_text())["artifacts"].values():
            entry = artifact["artifacts"][0]
            assert Path(entry["uri"]).exists()
            assert entry["type"]["schemaTitle"].startswith("system.")


def test_curves_and_parameters_are_in_mlflow(pipeline: Pipeline, first: subprocess.CompletedProcess[str]) -> None:
    with sqlite3.connect(pipeline.home / "mlflow.db") as database:
        kept = "FROM runs WHERE lifecycle_stage = 'active'"  # of two that are made at once for one key one is deleted
        names = dict(database.execute(f"SELECT name, run_uuid {kept}"))
        parents = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'mlflow.parentRunId'"))
        curve = database.execute(
            "SELECT COUNT(DISTINCT step) FROM metrics WHERE run_uuid = ? AND key = 'metric_loss'",
            (names["finetune_metric"],),
        ).fetchone()[0]
        parameters = dict(
            database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (names["finetune_metric"],))
        )
        states = {state for (state,) in database.execute(f"SELECT status {kept}")}
    database.close()
    assert {parents[names[step]] for step in STEPS} == {
        run for name, run in names.items() if name not in STEPS and not name.startswith("ledger of ")
    }
    assert curve >= 3
    assert parameters["dimension"] == "128"
    assert states == {"FINISHED"}


def test_an_equal_run_takes_every_step_from_the_cache(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str]
) -> None:
    done = pipeline.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(done.stdout) == ["detect_changes", "promote"]
    assert from_cache(done.stdout) == [step for step in STEPS if step not in ("detect_changes", "promote")]
    assert "skip_unchanged is off" in done.stdout
    versions, aliases = registry(pipeline.home)
    assert set(versions) == {1}, "the same model must not be registered twice"
    assert aliases == {"champion": 1}


def pipeline_tags(home: Path) -> dict[str, str]:
    """Tags of the latest run of the pipeline, which MLflow may still be writing when the command has ended."""
    query = """SELECT key, value FROM tags WHERE run_uuid = (
        SELECT run_uuid FROM runs JOIN tags USING (run_uuid) WHERE key = 'rankone.kind' AND value = 'pipeline'
        ORDER BY start_time DESC LIMIT 1)"""
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        return dict(database.execute(query))


def test_an_unchanged_run_is_skipped_and_one_with_another_parameter_is_not(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str]
) -> None:
    before = registry(pipeline.home)
    done = pipeline.run(skip_unchanged="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skipped (unchanged): data, parameters and code are those of version 1, the champion." in done.stdout
    assert ran(done.stdout) == STEPS[1:]
    steps = json.loads((pipeline.latest() / "result.json").read_text())["steps"]
    decision = steps["promote"]["artifacts"]["decision"]["metadata"]
    assert (decision["outcome"], decision["rule"]) == ("skipped", "unchanged")
    for step in STEPS[2:-1]:
        for artifact in steps[step]["artifacts"].values():
            assert artifact["metadata"]["skipped"].startswith("data, parameters and code")
            assert artifact["metadata"]["step_seconds"] < 1, "nothing was done"
    assert "Nothing to train on" in (pipeline.latest() / "changes.html").read_text()
    assert "Skipped (unchanged)" in (pipeline.latest() / "verdict.html").read_text()
    assert registry(pipeline.home) == before
    tags = pipeline_tags(pipeline.home)
    assert (tags["rankone.outcome"], tags["rankone.rule"]) == ("skipped", "unchanged")
    other = pipeline.run(skip_unchanged="true", minimum_gain="0.01")
    assert other.returncode == 0, other.stdout + other.stderr
    assert "To train: parameters differ from those of the champion, version 1." in other.stdout
    assert ran(other.stdout) == ["detect_changes", "evaluate", "promote"], "it asks for another gate, not for training"


def test_a_forced_run_trains_once_and_is_then_as_new(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str]
) -> None:
    forced = pipeline.run(skip_unchanged="true", force="true")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert "force asks for training all the same" in forced.stdout
    assert from_cache(forced.stdout) == STEPS[:1], "what was asked for again is no cache's answer"
    assert set(registry(pipeline.home)[0]) == {1}, "the same seed gives the same model"
    aged = pipeline.run(skip_unchanged="true", maximum_age_days="0.04")  # an hour
    assert "Skipped (unchanged)" in aged.stdout, aged.stdout


def test_images_elsewhere_are_the_same_and_one_that_changed_is_counted(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str], changed: Path
) -> None:
    moved = pipeline.run(skip_unchanged="true", location=str(changed))
    assert "Skipped (unchanged)" in moved.stdout, moved.stdout
    picture = changed / "0" / "000.png"
    Image.open(picture).transpose(Image.Transpose.ROTATE_90).save(picture)
    failing = pipeline.run(skip_unchanged="true", location=str(changed), weights=no_weights(changed.parent))
    assert "To train: data and parameters differ from those of the champion, version 1." in failing.stdout
    assert ran(failing.stdout) == STEPS[:3]
    found = json.loads((pipeline.latest() / "result.json").read_text())["steps"]["detect_changes"]
    changes = found["artifacts"]["changes"]
    counted = {name: changes["metadata"][f"images_{name}"] for name in ("new", "changed", "removed", "moved")}
    assert counted == {"new": 0, "changed": 1, "removed": 0, "moved": 0}
    assert "champion, rankone version 1: 1 changed." in Path(changes["uri"]).read_text()


def test_a_model_below_the_floor_is_registered_and_not_promoted(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str]
) -> None:
    done = pipeline.run(registered_model="strict", minimum_recall_at_1="1.0", softmax_learning_rate="0.011")
    assert done.returncode == 0, done.stdout + done.stderr
    assert from_cache(done.stdout) == ["prepare_data", "pretrain", "co_cluster", "finetune_metric"]
    assert "rejected: " in done.stdout
    assert "no alias" in done.stdout
    assert registry(pipeline.home)[1] == {"champion": 1}


def test_a_failed_step_resumes_there(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_text("half of a file")
    failed = pipeline.run(weights=str(weights), registered_model="resumed")
    assert failed.returncode == 1
    assert f"{weights}" in failed.stdout
    assert "pretrain failed" in failed.stdout
    assert "resumes at this step" in failed.stdout
    torch.manual_seed(0)
    save_file(squeezenet1_0(num_classes=1000).state_dict(), weights)
    resumed = pipeline.run(weights=str(weights), registered_model="resumed")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert from_cache(resumed.stdout) == ["prepare_data"]
    assert ran(resumed.stdout) == STEPS[1:]


@pytest.fixture
def changed(images: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "digits"
    shutil.copytree(images, copy)
    return copy


def no_weights(folder: Path) -> str:
    """A file at which pretrain fails, though it is there."""
    path = folder / "no-weights.pth"
    path.write_text("no weights")
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_stop_the_running_step(pipeline: Pipeline, changed: Path, number: signal.Signals) -> None:
    command = pipeline.command(location=str(changed))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=pipeline.environment()
    )
    assert process.stdout is not None
    seen = ""
    while "] pretrain" not in seen:
        line = process.stdout.readline()
        assert line, seen + (process.stderr.read() if process.stderr else "")
        seen += line
    process.send_signal(number)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped. The same command again resumes" in rest
    assert "Traceback" not in seen + rest + error
    assert not running_steps(pipeline.home), "a step outlived the run that was stopped"


def test_a_changed_file_runs_again(pipeline: Pipeline, changed: Path) -> None:
    failing = {"location": str(changed), "weights": no_weights(changed.parent)}
    assert ran(pipeline.run(**failing).stdout) == STEPS[:3]
    assert from_cache(pipeline.run(**failing).stdout) == STEPS[:1], "unchanged images are not read again"

    picture = changed / "0" / "000.png"
    Image.open(picture).transpose(Image.Transpose.ROTATE_90).save(picture)
    again = pipeline.run(location=str(changed), registered_model="changed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert ran(again.stdout) == STEPS, "a changed file re-runs what depends on it"


def test_a_training_that_is_killed_resumes_amid_its_epochs(
    pipeline: Pipeline, first: subprocess.CompletedProcess[str]
) -> None:
    longer = {"metric_epochs": "30", "checkpoint_seconds": "0.01", "registered_model": "killed"}
    kept = pipeline.home / "checkpoints"
    process = subprocess.Popen(
        pipeline.command(**longer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=pipeline.environment()
    )
    while not list(kept.glob("*/finetune-metric/metric 0.safetensors")):
        time.sleep(0.02)  # leaves the processor to the step
        assert process.poll() is None
    for number in running_steps(pipeline.home):
        os.kill(number, signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    again = pipeline.run(**longer)
    assert again.returncode == 0, again.stdout + again.stderr
    assert ran(again.stdout)[:2] == ["detect_changes", "finetune_metric"]
    resumed = re.search(r"finetune_metric, metric: resumed from a checkpoint, after step (\d+) of", again.stdout)
    assert resumed
    assert int(resumed[1]) > 0
    assert not list(kept.rglob("*.safetensors")), "a step that ended well leaves no checkpoint"


def running_steps(home: Path) -> list[int]:
    """Numbers of the processes that work on steps for this home, and of the one they are forks of."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            works = b"components" in line or b"operations.step_server" in line
            if works and f"RANKONE_HOME={home}".encode() in environment:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "There is no parameter 'epoch'"),
        ("seed=many", "seed is 'many'; it must be a whole number"),
        ("location=/nowhere/at/all", "/nowhere/at/all"),
        ("loss=tripplet", "Unknown loss 'tripplet'; choose one of: auto, normalised_softmax"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    pipeline: Pipeline, tmp_path: Path, assignment: str, message: str
) -> None:
    fresh = Pipeline(tmp_path / "home", Path(pipeline.values["location"]))
    name, _, value = assignment.partition("=")
    done = fresh.run(**{name: value})
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "artifacts").exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("weights=resnet.pth", "weights names 'resnet.pth', which is no file here; give none, imagenet, a path"),
        ("weights=there", "weights names '.*there', which is no file"),
        ("further_datasets=made, nowhere", "further_datasets names 'nowhere', which is no folder here; give folders"),
        ("further_datasets=made,there", "further_datasets names '.*there', which has no manifest.json; give folders"),
        ("further_datasets=made,./made", "further_datasets names '.*made' twice; name every dataset once"),
    ],
)
def test_files_that_a_step_would_miss_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignment: str, message: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=message):
        run_here("digits", resolve({}, [assignment]))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", PATHS)
def test_a_home_folder_that_nobody_has_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    values = {"source": "folder", "location": str(tmp_path), name: "~nouser/photos"}
    message = "'~nouser/photos' begins with '~nouser', a home folder that this machine does not know; give the whole"
    with pytest.raises(ValueError, match=message):
        run_here("folder", values)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("values", [{"location": "round"}, {"checkpoints": "round/states"}])
def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(ValueError, match=r"'round.*' is a link that leads to itself; name what it was to lead to"):
        run_here("folder", {"source": "folder", "location": str(tmp_path), **values})


def test_files_that_are_there_and_words_and_addresses_are_not_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "weights.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path / "weights.safetensors")
    for weights in ("none", "imagenet", "s3://bucket/key", "weights.safetensors", here):
        refuse_missing_files({"weights": weights, "further_datasets": ""})
    (tmp_path / "manifest.json").touch()
    refuse_missing_files({"further_datasets": f"., {tmp_path}, s3://bucket/sets/other"})


def test_a_file_of_another_content_under_the_same_name_is_another_value(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"first")
    before = with_source({"weights": str(weights)})
    assert with_source({"weights": str(weights)}) == before
    weights.write_bytes(b"other")
    assert with_source({"weights": str(weights)})["weights_fingerprint"] != before["weights_fingerprint"]
    assert "weights_fingerprint" not in with_source({"weights": "imagenet"})


def test_a_run_is_ended_in_mlflow_though_the_process_that_held_it_was_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path))
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "a-run")
    key = tracking.start_pipeline_run("digits", {})
    run_id = tracking.pipeline_run_id(key)
    process, _ = tracking.tracking_process._started[0]
    process.kill()
    process.wait()
    assert tracking.client().get_run(run_id).info.status == "RUNNING"
    display = Display(9, tmp_path)
    with display.console.capture() as said:
        end_tracking(key, "FINISHED", display)
    assert said.get() == ""
    assert tracking.client().get_run(run_id).info.status == "FINISHED"


def test_a_run_ends_as_its_steps_did_when_mlflow_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(*_: object, **__: object) -> None:
        raise tracking.TrackingError("The tracking process has ended")

    monkeypatch.setattr(tracking, "finish_pipeline_run", gone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    display = Display(9, tmp_path)
    with display.console.capture() as said:
        end_tracking("key", "FINISHED", display)
    assert "MLflow was not told how the run ended" in said.get()

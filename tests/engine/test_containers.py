"""The whole DAG in containers: images from a bucket, records in MLflow on PostgreSQL, models and reports in the bucket.

Needs a container engine, the images of `make images`, Debian's PostgreSQL, and an S3 store that AWS_ENDPOINT_URL names
with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.local import status

from operations.container_task import Containers, ContainerTask, engine
from operations.image_lock import LockedImage, images_of, lock_path, read_lock, steps_of_images
from retrieval.object_store import s3_client
from tests.digit_folder import write_digits
from tests.engine.servers import emptied_bucket, keys, mlflow_server, postgresql
from tests.engine.small import SMALL

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS = [
    "prepare_data",
    "detect_changes",
    "pretrain",
    "co_cluster",
    "finetune_metric",
    "finetune_softmax",
    "evaluate",
    "promote",
    "announce",
]
IMAGES = sorted(steps_of_images())
MODEL = "bucket"  # in the registry
EMBED_REGISTERED = """
import base64, json, sys
from pathlib import Path
import mlflow, pandas
pictures = [base64.b64encode(Path(path).read_bytes()).decode() for path in sys.argv[3:]]
model = mlflow.pyfunc.load_model(sys.argv[1])
embeddings = model.predict(pandas.DataFrame({"image": pictures}))
Path(sys.argv[2]).write_text(json.dumps(embeddings))
"""
EMBED_ARTIFACT = """
import json, sys
from pathlib import Path
import numpy, torch
from retrieval.images import Limits, decode
from retrieval.models import load_model
network = load_model(Path(sys.argv[1]))
size = network.config.image_size
images = [decode(Path(path).read_bytes(), Limits(10**6, 1), size).fitted(size, "crop") for path in sys.argv[3:]]
with torch.inference_mode():
    batch = torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).float() / 255
    embeddings = torch.nn.functional.normalize(network(batch), dim=1).tolist()
Path(sys.argv[2]).write_text(json.dumps(embeddings))
"""


@pytest.fixture(scope="module")
def lock() -> dict[str, LockedImage]:
    locked = read_lock(lock_path())
    images_of(locked)  # built from the code that is tested
    return locked


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "digits"
    write_digits(folder, 30)
    return folder


@pytest.fixture(scope="module")
def bucket(images: Path) -> Iterator[str]:
    """A bucket that holds the pictures, and goes with all that came into it."""
    with emptied_bucket() as name:
        for picture in sorted(images.rglob("*.png")):
            s3_client().upload_file(str(picture), name, f"pictures/{picture.relative_to(images)}")
        yield name


@dataclass
class Deployment:
    """What a run meets, and what it left."""

    home: Path
    bucket: str
    server: str
    password: str
    output: str = ""

    def environment(self) -> dict[str, str]:
        own = {"RANKONE_HOME": str(self.home), "MLFLOW_TRACKING_URI": self.server, "COLUMNS": "200"}
        return os.environ | own

    def command(self, **changed: str) -> list[str]:
        values = SMALL | {"source": "s3", "location": f"s3://{self.bucket}/pictures", "registered_model": MODEL}
        command = [sys.executable, "-m", "operations.command_line", "run", "--runner", "docker"]
        return command + [f"--param={name}={value}" for name, value in (values | changed).items()]

    def run(self, **changed: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(**changed), self.environment()
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=800)

    def latest(self) -> dict[str, Any]:
        folder = max((self.home / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        return json.loads((folder / "result.json").read_text()) | {"folder": folder}


@pytest.fixture(scope="module")
def deployed(
    lock: dict[str, LockedImage], bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """One run of the DAG with everything real; the tests look at what it left."""
    password = secrets.token_hex(12)
    store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with (
        postgresql(password) as database,
        mlflow_server(lock["rankone-registry"].reference, database, bucket, store) as server,
    ):
        deployment = Deployment(tmp_path_factory.mktemp("home"), bucket, server, password)
        done = deployment.run()
        deployment.output = done.stdout + done.stderr
        assert done.returncode == 0, deployment.output
        yield deployment


def test_every_step_succeeds_and_the_model_is_promoted(deployed: Deployment) -> None:
    result = deployed.latest()
    assert result["status"] == "FINISHED"
    assert list(result["steps"]) == STEPS
    assert all(step["succeeded"] and not step["cached"] for step in result["steps"].values())
    assert "Promoted: bucket version 1 is now champion" in deployed.output


def test_the_images_came_from_the_bucket(deployed: Deployment, bucket: str) -> None:
    dataset = deployed.latest()["steps"]["prepare_data"]["artifacts"]["dataset"]["metadata"]
    assert dataset["images"] + dataset["quarantined"] == 300
    assert dataset["classes"] == 10
    assert f"from s3 s3://{bucket}/pictures" in deployed.output


def test_each_step_ran_in_its_locked_image(deployed: Deployment, lock: dict[str, LockedImage]) -> None:
    """An image tells its steps its own content, and they write it into MLflow."""
    compiled = yaml.safe_load((deployed.latest()["folder"] / "pipeline.yaml").read_text())
    executors = compiled["deploymentSpec"]["executors"].values()
    named = {executor["container"]["image"] for executor in executors}
    assert named == {image.reference for image in lock.values()}
    content = {step: lock[image].content for image, steps in steps_of_images().items() for step in steps}
    del content["announce"]  # which reads runs and leaves none
    assert {
        run.data.tags["rankone.step"]: run.data.tags["rankone.code_version"] for run in step_runs(deployed)
    } == content


def step_runs(deployed: Deployment) -> list[Any]:
    client = mlflow_client(deployed)
    experiment = client.get_experiment_by_name("rankone")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    key = deployed.latest()["folder"].name
    return [run for run in runs if run.data.tags["rankone.pipeline_run"] == key and "rankone.step" in run.data.tags]


def mlflow_client(deployed: Deployment) -> Any:
    from retrieval.tracking import loading

    with loading():
        from mlflow.tracking import MlflowClient
    return MlflowClient(deployed.server, deployed.server)


def test_the_steps_of_one_run_share_a_parent_that_has_finished(deployed: Deployment) -> None:
    runs = step_runs(deployed)
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert len(parents) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert mlflow_client(deployed).get_run(parents.pop()).info.status == "FINISHED"


def test_model_and_report_are_in_the_bucket(deployed: Deployment, bucket: str) -> None:
    names = {key.rpartition("/")[2] for key in keys(bucket) if key.startswith("mlflow/")}
    assert {"weights.safetensors", "MLmodel", "report.html", "data_report.html", "decision.json"} <= names


def test_the_champion_is_the_model_that_was_made(deployed: Deployment) -> None:
    client = mlflow_client(deployed)
    assert client.get_registered_model(MODEL).aliases == {"champion": "1"}
    made = Path(deployed.latest()["steps"]["finetune_softmax"]["artifacts"]["tuned_model"]["uri"])
    digest = json.loads((made / "manifest.json").read_text())["digest"]
    assert client.get_model_version(MODEL, "1").tags["rankone.model_digest"] == digest


def test_the_registered_model_embeds_as_the_one_that_was_made_bit_for_bit(
    deployed: Deployment, images: Path, tmp_path: Path
) -> None:
    pictures = [str(path) for path in sorted(images.rglob("*.png"))[::8]]
    made = deployed.latest()["steps"]["finetune_softmax"]["artifacts"]["tuned_model"]["uri"]
    sources = {"registered": (EMBED_REGISTERED, f"models:/{MODEL}@champion"), "made": (EMBED_ARTIFACT, made)}
    found = {}
    for name, (program, model) in sources.items():
        command = [sys.executable, "-c", program, model, str(tmp_path / name), *pictures]
        place = ROOT if name == "made" else tmp_path  # the registered model brings its own copy of the library
        done = subprocess.run(command, capture_output=True, text=True, env=deployed.environment(), cwd=place)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name).read_text())
    assert len(found["made"]) == len(pictures)
    assert found["registered"] == found["made"]


def test_no_secret_is_in_anything_that_was_written(deployed: Deployment) -> None:
    secret = [os.environ["AWS_SECRET_ACCESS_KEY"], deployed.password]
    assert not any(text in deployed.output for text in secret)
    for path in deployed.home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(text.encode() in data for text in secret), path


def test_every_file_belongs_to_who_called(deployed: Deployment) -> None:
    owners = {path.lstat().st_uid for path in deployed.home.rglob("*")}
    assert owners == {os.getuid()}


def test_an_equal_run_takes_every_step_that_asks_no_registry_from_the_cache(deployed: Deployment) -> None:
    done = deployed.run()
    assert done.returncode == 0, done.stdout + done.stderr
    run = [step for step, entry in deployed.latest()["steps"].items() if not entry["cached"]]
    assert run == ["detect_changes", "promote", "announce"]
    assert mlflow_client(deployed).get_registered_model(MODEL).aliases == {"champion": "1"}


def test_a_container_killed_amid_an_epoch_goes_on_from_the_bucket_to_the_same_weights(deployed: Deployment) -> None:
    """The state lies in the object store, where the next container finds it."""
    long = {"metric_epochs": "60"}  # so that there is time to kill it
    done = deployed.run(**long, checkpoint_seconds="0")
    assert done.returncode == 0, done.stdout + done.stderr
    uninterrupted = trained_weights(deployed)
    kept = long | {"checkpoints": f"s3://{deployed.bucket}/checkpoints", "checkpoint_seconds": "0.2"}
    process = subprocess.Popen(
        deployed.command(**kept), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=deployed.environment(), cwd=ROOT,
    )  # fmt: skip
    while not any("/metric 0." in key for key in keys(deployed.bucket)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)  # leaves the processor to the step
    run = max((deployed.home / "runs").iterdir(), key=lambda folder: folder.stat().st_ctime_ns).name
    with engine() as client:
        (container,) = client.containers.list(filters={"label": f"rankone.run={run}"})
        container.kill("SIGKILL")
    killed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, killed
    done = deployed.run(**kept)
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = re.findall(r"metric: resumed from a checkpoint, after step ([\d,]+) of ([\d,]+)\.", done.stdout)
    after, of = (int(number.replace(",", "")) for number in resumed[-1])
    assert 0 < after < of
    assert trained_weights(deployed) == uninterrupted
    assert not any(key.startswith("checkpoints/") for key in keys(deployed.bucket)), (
        "a step that ended well leaves none"
    )


def trained_weights(deployed: Deployment) -> str:
    """Their digest: of bytes that differ pytest would look for the differences for minutes."""
    made = Path(deployed.latest()["steps"]["finetune_metric"]["artifacts"]["model"]["uri"])
    return hashlib.sha256((made / "weights.safetensors").read_bytes()).hexdigest()


def test_ctrl_c_stops_the_container_of_the_running_step(
    lock: dict[str, LockedImage], images: Path, tmp_path: Path
) -> None:
    """With the embedded store and a folder, which is mounted read-only."""
    values = SMALL | {"source": "folder", "location": str(images), "pretrain_epochs": "500"}
    command = [sys.executable, "-m", "operations.command_line", "run", "--runner=docker"]
    command += [f"--param={name}={value}" for name, value in values.items()]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"RANKONE_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert process.stdout is not None
    seen = ""
    while "pretrain: 300 images" not in seen:
        line = process.stdout.readline()
        assert line, seen + (process.stderr.read() if process.stderr else "")
        seen += line
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=120)
    assert process.returncode == 130, rest + error
    assert "Stopped. The same command again resumes" in rest
    run = re.search(r"^Run (\S+):", seen, flags=re.MULTILINE)
    assert run
    with engine() as client:
        assert not client.containers.list(all=True, filters={"label": f"rankone.run={run[1]}"})


def test_with_the_embedded_store_a_second_model_is_compared_with_the_first(
    lock: dict[str, LockedImage], images: Path, tmp_path: Path
) -> None:
    """Files pass between a step's container and the process of this machine that holds MLflow."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"RANKONE_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    told = []
    for epochs in ("2", "3"):
        values = SMALL | {"source": "folder", "location": str(images), "metric_epochs": epochs, "minimum_queries": "10"}
        command = [sys.executable, "-m", "operations.command_line", "run", "--runner=docker"]
        command += [f"--param={name}={value}" for name, value in values.items()]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(done.stdout)
    assert "version 1 is now champion" in told[0]
    assert re.search(r"of the champion, version 1|version 1, on the same 60 queries", told[1]), told[1]
    assert not list((tmp_path / "home" / "artifacts").glob("tmp*")), "what was exchanged is gone"


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def step_started(self, step: str) -> None: ...

    def step_said(self, step: str, line: str) -> None:
        self.heard.append(line)

    def step_ended(self, result: object) -> None: ...


def task(image: str, program: str, tmp_path: Path, ear: Ear) -> ContainerTask:
    artifact = {"name": "model", "uri": str(tmp_path / "model"), "type": {"schemaTitle": "system.Model"}}
    outputs = {"artifacts": {"model": {"artifacts": [artifact]}}, "outputFile": str(tmp_path / "output.json")}
    tail = ["-m", "components", "learn", "--executor-input", json.dumps({"outputs": outputs})]
    command = ["python", "-c", program, *tail]
    return ContainerTask(
        ear,
        Containers("test"),
        image=image,
        pipeline_root=str(tmp_path),
        full_command=command,
        env_vars={},
        runner=None,
    )


def test_a_container_that_fails_at_once_has_always_failed(lock: dict[str, LockedImage], tmp_path: Path) -> None:
    """kfp.local's own handler calls some of them successes: the container is gone before it looks."""
    image = lock["rankone-data"].reference
    ear = Ear()
    states = [task(image, "raise SystemExit(3)", tmp_path, ear).run() for _ in range(10)]
    assert states == [status.Status.FAILURE] * 10
    assert ear.heard == ["learn ended with exit status 3."] * 10


def test_a_container_that_ends_well_without_its_outputs_has_failed(
    lock: dict[str, LockedImage], tmp_path: Path
) -> None:
    ear = Ear()
    assert task(lock["rankone-data"].reference, "print('hello')", tmp_path, ear).run() == status.Status.FAILURE
    assert ear.heard == ["hello", "learn ended well and did not report its output 'model'."]


def test_an_image_that_is_not_here_is_named(tmp_path: Path) -> None:
    ear = Ear()
    assert task("rankone-data:nowhere", "pass", tmp_path, ear).run() == status.Status.FAILURE
    assert "rankone-data:nowhere cannot be run: this engine does not hold it" in ear.heard[0]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_no_installer_and_no_compiler(lock: dict[str, LockedImage], name: str) -> None:
    program = (
        "import shutil; print([name for name in ('pip', 'pip3', 'uv', 'cc', 'gcc', 'clang') if shutil.which(name)])"
    )
    assert inside(lock[name].reference, program) == "[]"
    assert inside(
        lock[name].reference, "import importlib.util as u; print(u.find_spec('pip'), u.find_spec('kfp'))"
    ) == ("None None")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_works_with_a_read_only_root_for_any_user(lock: dict[str, LockedImage], name: str) -> None:
    steps = steps_of_images()[name]
    program = f"import {', '.join(f'components.{step}.step' for step in steps)}; print('loaded')"
    assert inside(lock[name].reference, program) == "loaded"
    assert inside(lock[name].reference, program, user="12345:12345") == "loaded"
    assert inside(lock[name].reference, "import os; print(os.getuid())") == "65532"


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_what_it_is(lock: dict[str, LockedImage], name: str) -> None:
    with engine() as client:
        labels = client.images.get(lock[name].reference).labels
    assert labels["org.opencontainers.image.version"] == lock[name].content
    assert "org.opencontainers.image.source" in labels
    assert "org.opencontainers.image.revision" in labels


def inside(image: str, program: str, user: str | None = None) -> str:
    """What a program prints in an image, without a network and with a read-only root."""
    with engine() as client:
        settings: dict[str, Any] = {"user": user} if user else {}
        output = client.containers.run(
            image,
            ["python", "-c", program],
            remove=True,
            read_only=True,
            network_mode="none",
            tmpfs={"/tmp": ""},
            **settings,
        )
    return output.decode().strip()

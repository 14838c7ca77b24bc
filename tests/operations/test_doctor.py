"""The doctor: each thing good, and broken in the ways in which it breaks; then all of them at once."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import pytest

from operations import cluster_commands, doctor
from operations.doctor import BAD, GOOD, UNKNOWN, Finding
from operations.profiles import load_profile
from tests.kfp_server import IMAGES, Stub

pytest_plugins = ["tests.cluster_fixtures"]


@pytest.fixture
def bucket(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "key-of-the-house",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-house",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "RANKONE_BUCKET": "s3://models/probes",
    }.items():
        monkeypatch.setenv(name, value)
    place = {"LocationConstraint": "eu-central-1"}
    client = boto3.session.Session().client("s3")
    if "models" not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="models", CreateBucketConfiguration=place)
    return "models"


class MLflow:
    """What the doctor asks of an MLflow server."""

    def __init__(self) -> None:
        self.version, self.status, self.body = version("mlflow"), 200, {"experiments": []}
        self.seen: list[str] = []


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[MLflow]:
    told = MLflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.seen.append(self.headers.get("authorization", ""))
            text = told.version if self.path == "/version" else json.dumps(told.body)
            if told.status != 200:
                text = "Invalid Host header"
            self.send_response(told.status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


def kubectl(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Put a program in the place of kubectl."""
    (folder / "bin").mkdir()
    (folder / "bin" / "kubectl").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "bin" / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def nodes(*allocatable: dict[str, str]) -> str:
    return json.dumps({"items": [{"status": {"allocatable": entry}} for entry in allocatable]})


def test_kubeflow_that_answers(stub: Stub) -> None:
    reached, versions = doctor.examine_pipelines()
    assert (reached.state, versions.state) == (GOOD, GOOD)
    assert "version 2.17.0, one user; there is no run yet" in reached.found


def test_kubeflow_that_does_not(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.token = "secret"
    (finding,) = doctor.examine_pipelines()
    assert finding.state == BAD
    assert "RANKONE_KFP_TOKEN" in finding.found
    monkeypatch.setenv("RANKONE_KFP_HOST", "http://127.0.0.1:1")
    assert "does not answer" in doctor.examine_pipelines()[0].found


@pytest.mark.parametrize(
    ("server", "client", "state"),
    [
        ("2.17.0", "2.17.0", GOOD),
        ("v2.18.1", "2.17.0", GOOD),
        ("2.16.0", "2.17.0", BAD),
        ("3.0.0", "2.17.0", BAD),
        ("1.8.22", "2.17.0", BAD),
        ("unknown", "2.17.0", UNKNOWN),
        ("", "2.17.0", UNKNOWN),
    ],
)
def test_versions_of_server_and_client(server: str, client: str, state: str) -> None:
    finding = doctor.examine_version(server, client)
    assert finding.state == state
    assert bool(finding.mend) == (state != GOOD)


def test_mlflow_that_answers_is_told_who_asks(mlflow: MLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.examine_mlflow().state == GOOD
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert doctor.examine_mlflow().state == GOOD
    assert mlflow.seen[-1] == "Basic YWRhOnNlY3JldA=="
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    doctor.examine_mlflow()
    assert mlflow.seen[-1] == "Bearer token"


def test_a_password_in_mlflows_address_is_used_and_not_shown(mlflow: MLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    address = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", "://ada:secret@"))
    finding = doctor.examine_mlflow()
    assert (finding.state, mlflow.seen[-1]) == (GOOD, "Basic YWRhOnNlY3JldA==")
    assert "secret" not in finding.found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:1")
    finding = doctor.examine_mlflow()
    assert finding.found.startswith("http://127.0.0.1:1 does not answer")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ada:secret@127.0.0.1:1")
    assert doctor.examine_mlflow().found == "MLFLOW_TRACKING_URI is '127.0.0.1:1'"


@pytest.mark.parametrize(
    ("status", "mend"), [(401, "MLFLOW_TRACKING_USERNAME"), (403, "--allowed-hosts"), (500, "server's log")]
)
def test_mlflow_that_refuses(mlflow: MLflow, status: int, mend: str) -> None:
    mlflow.status = status
    finding = doctor.examine_mlflow()
    assert finding.state == BAD
    assert f"refused ({status}): Invalid Host header" in finding.found
    assert mend in finding.mend


def test_mlflow_of_another_version_something_else_and_nothing(mlflow: MLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.version = "3.1.0"
    assert doctor.examine_mlflow().state == UNKNOWN
    mlflow.body = {"hello": "world"}
    assert "not as MLflow" in doctor.examine_mlflow().found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert "does not answer" in doctor.examine_mlflow().found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert "MLFLOW_TRACKING_URI is 'sqlite:///mlflow.db'" in doctor.examine_mlflow().found


def test_a_bucket_that_can_be_used_is_left_as_it_was(bucket: str) -> None:
    finding = doctor.examine_bucket()
    assert finding.state == GOOD, finding
    assert boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_bucket_that_is_missing_and_a_store_that_is(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_BUCKET", "s3://elsewhere")
    finding = doctor.examine_bucket()
    assert (finding.state, "bucket 'elsewhere' answered NoSuchBucket" in finding.found) == (BAD, True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    finding = doctor.examine_bucket()
    assert "put at http://127.0.0.1:1: no answer for bucket 'elsewhere' (EndpointConnectionError)" in finding.found
    monkeypatch.setenv("RANKONE_BUCKET", "elsewhere")
    assert "RANKONE_BUCKET is 'elsewhere'" in doctor.examine_bucket().found


def test_no_credentials_and_no_key_in_what_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_BUCKET", "s3://elsewhere")
    told = str(doctor.examine_bucket())
    assert "key-of-the-house" not in told
    assert "secret-of-the-house" not in told
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    assert "no credentials for bucket 'elsewhere'" in doctor.examine_bucket().found


def test_images() -> None:
    assert doctor.needed_images() == set(IMAGES)
    assert doctor.examine_images(lambda: IMAGES).state == GOOD
    some = {name: IMAGES[name] for name in list(IMAGES)[1:]}
    assert "lacks rankone-data" in doctor.examine_images(lambda: some).found
    movable = IMAGES | {"rankone-data": "registry.example/rankone-data:latest"}
    assert "no registry holds rankone-data" in doctor.examine_images(lambda: movable).found


def test_without_an_image_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(tmp_path / "images.json"))
    finding = doctor.examine_images(cluster_commands.locked_images)
    assert finding.state == BAD
    assert "There is no image lock" in finding.found
    assert "make images" in finding.mend


def test_nodes_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl(
        tmp_path,
        monkeypatch,
        f"""echo "$@" >> {tmp_path}/asked; echo '{nodes({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "0"}, {})}'""",
    )
    accelerated, plain = doctor.examine_profile("h200")
    assert (accelerated.state, plain.state) == (GOOD, GOOD)
    assert "1 of 3 nodes; it asks for nvidia.com/gpu.product=NVIDIA-H200 and 1 nvidia.com/gpu" in accelerated.found
    assert "3 of 3 nodes" in plain.found
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first == "get nodes -o json -l nvidia.com/gpu.product=NVIDIA-H200"
    assert second == "get nodes -o json"


def test_no_node_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl(tmp_path, monkeypatch, f"echo '{nodes({'cpu': '4'})}'")
    finding = doctor.examine_nodes("profile mig, accelerated", load_profile("mig").accelerated)
    assert finding.state == BAD
    assert "none of 1 nodes has" in finding.found
    assert "-p accelerated_node_selector='{}'" in finding.mend


@pytest.mark.parametrize("program", ["exit 1", "echo nonsense"])
def test_nodes_that_nobody_may_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    kubectl(tmp_path, monkeypatch, program)
    assert [finding.state for finding in doctor.examine_profile("h200")] == [UNKNOWN, UNKNOWN]


def test_no_kubectl_and_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert [finding.state for finding in doctor.examine_profile("h200")] == [UNKNOWN, UNKNOWN]
    assert doctor.examine_profile("h100")[0].state == BAD


def test_the_command_says_all_and_its_exit_status_what_it_comes_to(
    stub: Stub,
    rankone: Any,
    mlflow: MLflow,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kubectl(tmp_path, monkeypatch, f"echo '{nodes({'cpu': '4'})}'")
    well = rankone("doctor")
    assert well.status == 0, well.out
    assert well.out.count("good") == 7
    mlflow.status = 403
    ill = rankone("doctor")
    assert ill.status == 1
    assert "--allowed-hosts" in ill.out
    told = [Finding(**finding) for finding in json.loads(rankone("doctor", "--json").out)]
    assert [finding.what for finding in told if finding.state == BAD] == ["MLflow"]

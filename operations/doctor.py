"""What a run on a cluster needs, looked at one by one: what is there, what is not, and what to mend."""

import base64
import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.table import Table
from rich.text import Text

from operations.cluster import HOST, Client, ClusterError, address, connect
from operations.image_lock import not_pushed
from operations.profiles import Hardware, load_profile
from retrieval.object_store import clear_errors, s3_client
from retrieval.redaction import without_credentials

GOOD, BAD, UNKNOWN = "good", "bad", "unknown"
BUCKET = "RANKONE_BUCKET"  # s3://bucket/prefix: where the probe is written
SECONDS = 15.0
COLOURS = {GOOD: "green", BAD: "bold red", UNKNOWN: "yellow"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: good; bad: a run would fail; unknown: it could not be looked at from here.
        found: what is there, in one sentence.
        mend: what to do; empty when it is good.
    """

    what: str
    state: str
    found: str
    mend: str = ""


def examine(profile: str, locked_images: Callable[[], Mapping[str, str]]) -> list[Finding]:
    """Look at everything; one thing's fault hides no other.

    Args:
        profile: whose nodes are looked for.
        locked_images: reads the image lock.
    """
    return [
        *examine_pipelines(),
        examine_mlflow(),
        examine_bucket(),
        examine_images(locked_images),
        *examine_profile(profile),
    ]


def examine_pipelines() -> list[Finding]:
    """Whether Kubeflow Pipelines answers, knows who asks, and is of a version that runs what we compile."""
    try:
        client = connect()
        version = str(client.health().get("tag_name", ""))
        namespace = client.get_user_namespace()
        whose = f"namespace {namespace}" if namespace else "one user"
        runs = _permission(client)
    except ClusterError as error:
        return [Finding("Kubeflow Pipelines", BAD, str(error), f"Mend {HOST} or the credentials.")]
    return [
        Finding("Kubeflow Pipelines", GOOD, f"{address()} answers, version {version or 'unknown'}, {whose}; {runs}"),
        examine_version(version, importlib.metadata.version("kfp")),
    ]


def examine_version(server: str, client: str) -> Finding:
    """Whether a server of one version runs what a client of another compiles."""
    what = "versions"
    numbers, ours = _numbers(server), _numbers(client)
    if numbers is None or ours is None:
        return Finding(what, UNKNOWN, f"server '{server}', client {client}", "Compare the two yourself.")
    if numbers < ours or numbers[0] != ours[0]:
        mend = f"Serve Kubeflow Pipelines {ours[0]}.{ours[1]} or a later {ours[0]}.x; another may not know all we ask."
        return Finding(what, BAD, f"server {server}, client {client}", mend)
    return Finding(what, GOOD, f"server {server}, client {client}")


def examine_mlflow() -> Finding:
    """Whether MLflow answers, lets us in, and is of the version that the images have."""
    what, name = "MLflow", "MLFLOW_TRACKING_URI"
    uri = os.environ.get(name, "").rstrip("/")
    if not uri.startswith(("http://", "https://")):
        mend = f"Set {name} to the server's address, http://... or https://..."
        return Finding(what, BAD, f"{name} is '{without_credentials(uri)}'", mend)
    parts, uri = urlsplit(uri), without_credentials(uri)
    inside = (unquote(parts.username or ""), unquote(parts.password or ""))
    try:
        version = _fetch(f"{uri}/version", inside).decode().strip()
        experiments = json.loads(_fetch(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", inside))
    except urllib.error.HTTPError as error:
        return Finding(what, BAD, f"{uri} refused ({error.code}): {_start_of(error)}", _mend_mlflow(error.code))
    except (OSError, ValueError) as error:
        return Finding(
            what, BAD, f"{uri} does not answer as MLflow: {_line(error)}", f"Mend {name}, or start the server."
        )
    if "experiments" not in experiments and experiments:
        return Finding(what, BAD, f"{uri} answers, and not as MLflow", f"Mend {name}.")
    ours = importlib.metadata.version("mlflow")
    if version != ours:
        mend = f"Serve the registry image of this version: MLflow {ours} in the server as in the steps."
        return Finding(what, UNKNOWN, f"{uri} answers, version {version}; the steps have {ours}", mend)
    return Finding(what, GOOD, f"{uri} answers, version {version}")


def examine_bucket() -> Finding:
    """Whether an object can be written to the bucket, read back and removed."""
    what, location = "bucket", os.environ.get(BUCKET, "")
    parts = urlsplit(location)
    if parts.scheme != "s3" or not parts.netloc:
        return Finding(what, BAD, f"{BUCKET} is '{location}'", f"Set {BUCKET}=s3://bucket/prefix.")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "Amazon S3")
    key = "/".join(filter(None, [parts.path.strip("/"), f"rankone-doctor-{uuid.uuid4().hex}"]))
    failure = probe(parts.netloc, key)
    if failure:
        return Finding(what, BAD, failure, "Mend AWS_ENDPOINT_URL, the credentials or the bucket's policy.")
    return Finding(what, GOOD, f"{parts.netloc} at {endpoint}: an object was written, read and removed")


def probe(bucket: str, key: str) -> str:
    """Write an object, read it back, remove it; what failed, without any credentials, or nothing."""
    try:
        store = s3_client(seconds_to_outlast=0)
        with clear_errors(store, bucket, "put"):
            store.put_object(Bucket=bucket, Key=key, Body=key.encode())
        with clear_errors(store, bucket, "get"):
            content = store.get_object(Bucket=bucket, Key=key)["Body"].read()
        with clear_errors(store, bucket, "delete"):
            store.delete_object(Bucket=bucket, Key=key)
    except ValueError as error:
        return str(error)
    return "" if content == key.encode() else f"get from bucket '{bucket}' gave back other bytes than put was given"


def examine_images(locked_images: Callable[[], Mapping[str, str]]) -> Finding:
    """Whether every image that a step names is locked, by digest."""
    what, build = "images", "`make images REGISTRY=registry.example/team PUSH=1` builds, pushes and locks them."
    try:
        images = locked_images()
    except (OSError, ValueError) as error:
        return Finding(what, BAD, _line(error), build)
    missing = sorted(needed_images() - set(images))
    if missing:
        return Finding(what, BAD, f"the image lock lacks {', '.join(missing)}", build)
    here = not_pushed(images)
    if here:
        return Finding(what, BAD, f"no registry holds {', '.join(here)}: locked without a digest", build)
    return Finding(what, GOOD, f"{len(images)} images, each by digest")


def needed_images() -> set[str]:
    """Names of the images that the pipeline's steps run in."""
    import pipeline

    return {step.component_spec.implementation.container.image for step in pipeline.STEPS}


def examine_profile(name: str) -> list[Finding]:
    """Whether the profile can be read, and whether the cluster has nodes for it."""
    try:
        profile = load_profile(name)
    except ValueError as error:
        return [Finding(f"profile {name}", BAD, _line(error), "Mend the file, or choose another profile.")]
    return [examine_nodes(f"profile {name}, {part}", hardware) for part, hardware in map(profile.part, (True, False))]


def examine_nodes(what: str, hardware: Hardware) -> Finding:
    """Whether a node has the labels and the accelerator that steps of this hardware ask for; `kubectl` is asked."""
    labels = ",".join(f"{label}={value}" for label, value in sorted(hardware.node_selector.items()))
    accelerators = f"{hardware.accelerators} {hardware.accelerator}" if hardware.accelerator else ""
    asked = " and ".join(filter(None, [labels, accelerators])) or "nothing in particular"
    kubectl = shutil.which("kubectl")
    if not kubectl:
        return Finding(what, UNKNOWN, f"asks for {asked}; no kubectl here", "Look at `kubectl get nodes`.")
    command = [kubectl, "get", "nodes", "-o", "json", *(["-l", labels] if labels else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        nodes = json.loads(done.stdout)["items"] if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError):
        nodes = None
    if nodes is None:
        mend = "Give kubectl a context that may list nodes, or ask who may."
        return Finding(what, UNKNOWN, f"asks for {asked}; kubectl could not list nodes", mend)
    fitting = [node for node in nodes if _allocatable(node, hardware.accelerator) >= hardware.accelerators]
    if not fitting:
        mend = f"Label or add nodes, or give other settings, e.g. -p {what.split(', ')[1]}_node_selector='{{}}'."
        return Finding(what, BAD, f"none of {len(nodes)} nodes has {asked}", mend)
    return Finding(what, GOOD, f"{len(fitting)} of {len(nodes)} nodes; it asks for {asked}")


def findings_table(findings: list[Finding]) -> Table:
    """The findings, a row each, with what to mend under what is not good."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.mend:
            text.append(f"\n{finding.mend}", style="cyan")
        table.add_row(Text(finding.state, style=COLOURS[finding.state]), finding.what, text)
    return table


def _permission(client: Client) -> str:
    from operations.cluster_runs import list_runs

    return "runs can be listed" if list_runs(client, 1) else "there is no run yet"


def _numbers(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def _fetch(url: str, inside: tuple[str, str] = ("", "")) -> bytes:
    """What is at an address of MLflow; user and password are those of the environment, or were inside its address."""
    request = urllib.request.Request(url)
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    user, password = (user, password) if user else inside
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.read()


def _mend_mlflow(status: int) -> str:
    if status == 401:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
    if status == 403:
        return "Add the address's host, with and without its port, to the server's --allowed-hosts; or ask for a role."
    return "Look at the server's log."


def _start_of(error: urllib.error.HTTPError) -> str:
    with error:
        return " ".join(error.read(200).decode(errors="replace").split())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _allocatable(node: Mapping[str, Any], accelerator: str) -> int:
    return int(node["status"]["allocatable"].get(accelerator, 0)) if accelerator else 0

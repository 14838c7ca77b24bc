"""Runs on a cluster: submit one, watch its steps, list, read what a step said, stop, try again."""

import contextlib
import dataclasses
import datetime
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kfp_server_api
from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from operations.cluster import Client, ClusterError, answered, page
from operations.compile import content_digest
from operations.parameters import step_names

PIPELINE = "rankone"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
CONFLICT = 409
SECONDS_TO_OUTLAST = 300.0  # of a server that does not answer while a run is watched: it restarts, a laptop sleeps
LATEST = "latest"
STARTERS = ("-driver",)  # tasks of Kubeflow Pipelines itself


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A run that was created.

    Attributes:
        run: its id.
        name: as the page shows it.
        page: its address.
        version: of the pipeline, the digest of its content.
        uploaded: whether this version was not on the server yet.
    """

    run: str
    name: str
    page: str
    version: str
    uploaded: bool


@dataclasses.dataclass(frozen=True)
class StepState:
    """How far one step of a run is.

    Attributes:
        step: its name.
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELED, ...; as the server says it.
        seconds: that it has taken; None before its start.
        error: what the server says of a failure.
    """

    step: str
    state: str
    seconds: float | None
    error: str


def submit(
    client: Client,
    package: Path,
    values: Mapping[str, Any],
    name: str,
    experiment: str = PIPELINE,
    service_account: str | None = None,
) -> Submitted:
    """Create a run of a compiled pipeline, uploading it where the server does not have it yet.

    Args:
        client: from `connect`.
        package: the compiled pipeline.
        values: parameters that differ from its defaults.
        name: of the run.
        experiment: that the run belongs to; made when missing.
        service_account: that its pods run as; the server's own choice when None.

    Raises:
        ClusterError: the server refused.
    """
    with answered(), silent():
        pipeline = find_or_make_pipeline(client)
        version, uploaded = find_or_upload_version(client, pipeline, package)
        belongs_to = client.create_experiment(experiment, namespace=client.get_user_namespace() or None)
        run = client.run_pipeline(
            experiment_id=belongs_to.experiment_id,
            job_name=name,
            params={key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
            pipeline_id=pipeline,
            version_id=version.pipeline_version_id,
            service_account=service_account,
        )
    return Submitted(run.run_id, name, page_of(run.run_id), version.display_name, uploaded)


def find_pipeline(client: Client, name: str) -> str | None:
    """The id of a pipeline in our namespace; None where there is none of this name."""
    found = client.list_pipelines(filter=named(name), namespace=client.get_user_namespace() or None).pipelines
    return found[0].pipeline_id if found else None


def find_or_make_pipeline(client: Client, name: str = PIPELINE) -> str:
    """The id of a pipeline in our namespace; two who make it at once get the same."""
    namespace = client.get_user_namespace() or None
    for _ in range(2):
        if found := find_pipeline(client, name):
            return found
        made = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=namespace)
        with unless_another_did():
            return (
                kfp_server_api.PipelineServiceApi(client.api_client).pipeline_service_create_pipeline(made).pipeline_id
            )
    raise ClusterError(f"The pipeline '{name}' exists and is not shown in this namespace; ask who made it.")


def find_or_upload_version(
    client: Client, pipeline: str, package: Path
) -> tuple[kfp_server_api.V2beta1PipelineVersion, bool]:
    """The version whose name is the digest of the package's content, and whether it had to be uploaded."""
    digest = content_digest(package)
    for _ in range(2):
        found = client.list_pipeline_versions(pipeline, filter=named(digest)).pipeline_versions
        if found:
            return found[0], False
        with unless_another_did():
            return client.upload_pipeline_version(str(package), digest, pipeline_id=pipeline), True
    raise ClusterError(f"Version {digest} of '{PIPELINE}' exists and is not shown; ask who uploaded it.")


def page_of(run: str) -> str:
    """The address of a run's page."""
    return f"{page()}/#/runs/details/{run}"


def list_runs(client: Client, limit: int) -> list[V2beta1Run]:
    """The latest runs, newest first."""
    runs: list[V2beta1Run] = []
    following = ""
    with answered():
        while len(runs) < limit:
            answer = client.list_runs(
                page_token=following,
                page_size=min(limit - len(runs), 100),
                sort_by="created_at desc",
                namespace=client.get_user_namespace() or None,
            )
            runs += answer.runs or []
            following = answer.next_page_token
            if not following:
                break
    return runs[:limit]


def get_run(client: Client, run: str) -> V2beta1Run:
    """A run by its id; "latest" is the one created last.

    Raises:
        ClusterError: there is none.
    """
    if run == LATEST:
        found = list_runs(client, 1)
        if not found:
            raise ClusterError("There is no run yet; `rankone submit` makes one.")
        run = found[0].run_id
    with answered():
        return client.get_run(run)


def steps_of(run: V2beta1Run) -> list[StepState]:
    """The state of each step, in the order in which they started; those that wait for their turn are PENDING."""
    found = {_step(task): task for task in _tasks(run) if _step(task) in step_names()}
    states = [
        StepState(step, task.state or "PENDING", _seconds(task.start_time, task.end_time), _message(task.error))
        for step, task in sorted(found.items(), key=lambda item: str(item[1].create_time or item[1].start_time))
    ]
    return states + [StepState(step, "PENDING", None, "") for step in step_names() if step not in found]


def watch(
    client: Client, run: str, seconds: float, show: Callable[[V2beta1Run], None], say: Callable[[str], None]
) -> V2beta1Run:
    """Look at a run every so many seconds until it has ended.

    Args:
        client: from `connect`.
        run: its id.
        seconds: between two looks.
        show: called with the run after every look.
        say: called with a sentence when the server does not answer, which is outlasted for a while.

    Returns:
        The run as it ended.

    Raises:
        ClusterError: the server refused, or was away for too long; the run goes on.
    """
    silent_since: float | None = None
    while True:
        try:
            current = get_run(client, run)
        except ClusterError as error:
            now = time.monotonic()
            silent_since = silent_since or now
            if not error.passing or now - silent_since > SECONDS_TO_OUTLAST:
                raise ClusterError(f"{error} The run itself goes on: {page_of(run)}") from None
            say(f"{error} Trying again.")
        else:
            silent_since = None
            show(current)
            if current.state in ENDED:
                return current
        time.sleep(seconds)


def logs_of(client: Client, run: V2beta1Run, step: str) -> Iterator[tuple[str, str]]:
    """What the pods of a step said: pairs of pod and text, one for each that left a log.

    Asked of the page's server first, which also finds archived logs, then of the API's.

    Raises:
        ClusterError: the run has no such step yet, or no log of it is left.
    """
    tasks = _tasks(run)
    mine = [task for task in tasks if _step(task) == step]
    if not mine:
        raise ClusterError(f"{step} has not started in this run; `rankone logs {run.run_id}` lists the steps.")
    found = False
    for pod in _pods(mine, tasks):
        for path, query in _log_places(client, run.run_id, pod):
            text = _log_at(client, path, query)
            if text is not None:
                found = True
                yield pod, text
                break
    if not found:
        raise ClusterError(f"No log of {step} is left on the cluster; its page may show one: {page_of(run.run_id)}")


def cancel(client: Client, run: str) -> None:
    """Stop a run; its pods are ended."""
    with answered():
        client.terminate_run(run)


def retry(client: Client, run: V2beta1Run) -> None:
    """Run the steps again that failed or were stopped; those that succeeded are kept.

    Raises:
        ClusterError: there is nothing to try again.
    """
    if run.state not in ("FAILED", "CANCELED"):
        raise ClusterError(f"Run {run.run_id} is {run.state}; only a run that failed or was stopped is tried again.")
    with answered():
        kfp_server_api.RunServiceApi(client.api_client).run_service_retry_run(run.run_id)


def run_facts(run: V2beta1Run) -> dict[str, Any]:
    """What programs want to know of a run, as JSON has it."""
    return {
        "run": run.run_id,
        "name": run.display_name,
        "state": run.state,
        "created": run.created_at.isoformat() if run.created_at else None,
        "seconds": _seconds(run.created_at, run.finished_at),
        "error": _message(run.error),
        "page": page_of(run.run_id),
    }


def named(name: str) -> str:
    """The server's filter for what is shown under a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


@contextlib.contextmanager
def unless_another_did() -> Iterator[None]:
    """Pass over a refusal because the name exists: somebody else was quicker, and a second look finds it."""
    try:
        yield
    except kfp_server_api.ApiException as error:
        if error.status != CONFLICT:
            raise


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep kfp's links from the output, where --json has to stand alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _tasks(run: V2beta1Run) -> list[V2beta1PipelineTaskDetail]:
    return (run.run_details.task_details or []) if run.run_details else []


def _step(task: V2beta1PipelineTaskDetail) -> str:
    return (task.display_name or "").replace("-", "_")


def _pods(tasks: list[V2beta1PipelineTaskDetail], among: list[V2beta1PipelineTaskDetail]) -> list[str]:
    """Names of the pods of some tasks and of all below them, drivers left out, each once."""
    by_id = {task.task_id: task for task in among if task.task_id}
    pods: dict[str, None] = {}
    seen = set[str]()
    waiting = list(tasks)
    while waiting:
        task = waiting.pop(0)
        if task.task_id in seen or (task.display_name or "").endswith(STARTERS):
            continue
        seen.add(task.task_id)
        if task.pod_name:
            pods[task.pod_name] = None
        for child in task.child_tasks or []:
            if child.task_id in by_id:
                waiting.append(by_id[child.task_id])
            elif child.pod_name:
                pods[child.pod_name] = None
        waiting += [other for other in among if other.parent_task_id and other.parent_task_id == task.task_id]
    return list(pods)


def _log_places(client: Client, run: str, pod: str) -> list[tuple[str, list[tuple[str, str]]]]:
    namespace = client.get_user_namespace() or "kubeflow"
    return [
        ("/k8s/pod/logs", [("podname", pod), ("runid", run), ("podnamespace", namespace)]),
        (f"/apis/v1alpha1/runs/{run}/nodes/{pod}/log", []),
    ]


def _log_at(client: Client, path: str, query: list[tuple[str, str]]) -> str | None:
    """The log at a place; None where there is none. The page's server answers unknown paths with the page itself."""
    try:
        with answered():
            text = client.raw("GET", path, query)
    except ClusterError as error:
        if error.status in (0, 401, 403):
            raise
        return None
    return None if text.lstrip().lower().startswith(("<!doctype html", "<html")) else text


def _seconds(start: datetime.datetime | None, end: datetime.datetime | None) -> float | None:
    """Seconds from a start to an end, or to now; the server writes the year 1970 for what has not happened yet."""
    if start is None or start.year <= 1970:
        return None
    until = end if end is not None and end.year > 1970 else datetime.datetime.now(start.tzinfo)
    return round(max(0.0, (until - start).total_seconds()), 1)


def _message(error: kfp_server_api.GoogleRpcStatus | None) -> str:
    return " ".join((error.message or "").split()) if error else ""

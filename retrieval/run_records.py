"""What the steps of one pipeline run left in MLflow: how each ended, and what it said of itself."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retrieval.tracking import LEFT_OPEN, PIPELINE_RUN, client, experiment_id, open_channel, server_address

STATUS_OF = {
    "SUCCEEDED": "FINISHED",
    "FAILED": "FAILED",
    "CANCELLED": "KILLED",
    "CANCELED": "KILLED",
}  # of a run's state
MOST_RUNS = 1_000  # of one pipeline run: every attempt of every step


@dataclass(frozen=True)
class StepRecord:
    """The last attempt of one step.

    Attributes:
        step: its name.
        status: FINISHED, FAILED, KILLED, or RUNNING: it is at work, or its process was gone before it could say more.
        tags: what it said of itself, `rankone.error` among them where it failed.
        started: in milliseconds since 1970.
    """

    step: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    started: int = 0


@dataclass(frozen=True)
class RunRecords:
    """One pipeline run.

    Attributes:
        key: that ties its runs together.
        run_id: MLflow's id of the run that its steps nest under.
        name: of that run.
        tags: of that run.
        page: address of that run's page; empty where MLflow has none.
        steps: in the order in which they started.
    """

    key: str
    run_id: str
    name: str
    tags: dict[str, str]
    page: str
    steps: tuple[StepRecord, ...]

    def step(self, name: str) -> StepRecord | None:
        """The record of one step; None where it left none."""
        return next((record for record in self.steps if record.step == name), None)


def records_of(key: str) -> RunRecords | None:
    """The records of a pipeline run; None where there are none.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    found = _ask("records_of", key=key, injected_run=os.environ.get("MLFLOW_RUN_ID", ""))
    if found is None:
        return None
    return RunRecords(**found | {"steps": tuple(StepRecord(**step) for step in found["steps"])})


def tag_run(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run that may have ended.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    _ask("tag_run", run_id=run_id, tags=dict(tags))


def end_records(key: str, state: str) -> list[str]:
    """End what is still open of a pipeline run that is over: steps that were gone before they could say so, and itself.

    A run that MLFLOW_RUN_ID gave is left to whoever made it.

    Args:
        key: of the pipeline run.
        state: of it, a name of STATUS_OF.

    Returns:
        The steps that were open.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    return _ask("end_records", key=key, status=STATUS_OF[state], injected_run=os.environ.get("MLFLOW_RUN_ID", ""))


def pipeline_page(key: str) -> str:
    """Address of a pipeline run's page: RANKONE_PIPELINE_ADDRESS, with the key for "{run}" in it; or empty."""
    return os.environ.get("RANKONE_PIPELINE_ADDRESS", "").replace("{run}", key)


def page_of_run(experiment: str, run_id: str) -> str:
    """Address of a run in MLflow's pages, without the credentials that may be part of its own; or empty."""
    server = server_address()
    return f"{server}/#/experiments/{experiment}/runs/{run_id}" if server else ""


def _ask(action: str, **arguments: Any) -> Any:
    channel = open_channel()
    try:
        return channel.ask(action, **arguments)
    finally:
        channel.close()


def _records_of(key: str, injected_run: str) -> dict[str, Any] | None:
    given = client().get_run(injected_run) if injected_run else None
    experiment = given.info.experiment_id if given else experiment_id()
    runs = _runs_of(key, experiment)
    parent = given or next((run for run in runs if "rankone.step" not in run.data.tags), None)
    if parent is None:
        return None
    steps = [_step_record(run) for run in runs if "rankone.step" in run.data.tags]
    last = {step.step: step for step in steps}.values()  # of each step the last attempt
    in_order = tuple(sorted(last, key=lambda step: step.started))
    info, page = parent.info, page_of_run(experiment, parent.info.run_id)
    return asdict(RunRecords(key, info.run_id, info.run_name or "", dict(parent.data.tags), page, in_order))


def _runs_of(key: str, experiment: str) -> list[Any]:
    """MLflow's runs that carry the key, the oldest first."""
    query, oldest = f"tags.`{PIPELINE_RUN}` = '{key}'", ["attributes.start_time ASC"]
    return list(client().search_runs([experiment], query, max_results=MOST_RUNS, order_by=oldest))


def _end_records(key: str, status: str, injected_run: str) -> list[str]:
    experiment = client().get_run(injected_run).info.experiment_id if injected_run else experiment_id()
    runs = _runs_of(key, experiment)
    left = [run for run in runs if "rankone.step" in run.data.tags and run.info.status == "RUNNING"]
    for run in left:
        _tag_run(run.info.run_id, {"rankone.error": LEFT_OPEN})
        client().set_terminated(run.info.run_id, "KILLED")
    for run in runs:
        if run.data.tags.get("rankone.kind") == "pipeline" and run.info.run_id != injected_run:
            client().set_terminated(run.info.run_id, status)
    return [run.data.tags["rankone.step"] for run in left]


def _step_record(run: Any) -> StepRecord:
    return StepRecord(run.data.tags["rankone.step"], run.info.status, dict(run.data.tags), run.info.start_time)


def _tag_run(run_id: str, tags: dict[str, str]) -> None:
    for name, text in tags.items():
        client().set_tag(run_id, name, text)


ACTIONS: dict[str, Callable[..., Any]] = {"records_of": _records_of, "end_records": _end_records, "tag_run": _tag_run}

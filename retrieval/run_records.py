"""What the steps of one pipeline run left in MLflow: how each ended, and what it said of itself."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retrieval.tracking import PIPELINE_RUN, client, experiment_id, open_channel, server_address

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
    query, oldest = f"tags.`{PIPELINE_RUN}` = '{key}'", ["attributes.start_time ASC"]
    runs = client().search_runs([experiment], query, max_results=MOST_RUNS, order_by=oldest)
    parent = given or next((run for run in runs if "rankone.step" not in run.data.tags), None)
    if parent is None:
        return None
    steps = [_step_record(run) for run in runs if "rankone.step" in run.data.tags]
    last = {step.step: step for step in steps}.values()  # of each step the last attempt
    in_order = tuple(sorted(last, key=lambda step: step.started))
    info, page = parent.info, page_of_run(experiment, parent.info.run_id)
    return asdict(RunRecords(key, info.run_id, info.run_name or "", dict(parent.data.tags), page, in_order))


def _step_record(run: Any) -> StepRecord:
    return StepRecord(run.data.tags["rankone.step"], run.info.status, dict(run.data.tags), run.info.start_time)


def _tag_run(run_id: str, tags: dict[str, str]) -> None:
    for name, text in tags.items():
        client().set_tag(run_id, name, text)


ACTIONS: dict[str, Callable[..., Any]] = {"records_of": _records_of, "tag_run": _tag_run}

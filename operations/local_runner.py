"""The adapter that lets kfp.local run container components: as processes of this machine, or in containers.

kfp.local runs container components in Docker only, and now and then calls a container that failed a success. So each
task is ours and everything else (order, inputs, cache) stays kfp.local's. A step is an ordinary Python program: its
command line runs as it stands, as a process of this environment (step_processes.py) or in the step's image
(container_task.py). What a step leaves is checked: a task succeeds when its program did and every output that it
declares was reported and exists.
"""

import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from kfp import components, dsl, local
from kfp.local import docker_task_handler, status, subprocess_task_handler
from kfp.local.orchestrator import task_executor

from operations.step_processes import StepProcesses, stop

if TYPE_CHECKING:
    from operations.container_task import Containers


class Observer(Protocol):
    """Hears what a run does."""

    def step_started(self, step: str) -> None:
        """A step's turn has come."""

    def step_said(self, step: str, line: str) -> None:
        """A running step printed a line."""

    def step_ended(self, result: "StepResult") -> None:
        """A step succeeded, failed, or came from the cache."""


@dataclass(frozen=True)
class StepResult:
    """How one step of a run ended.

    Attributes:
        step: its name.
        succeeded: whether its outputs can be used.
        cached: whether an earlier run's outputs were taken.
        seconds: wall time, start of the process included.
        artifacts: output artifacts by name, with uri and metadata.
    """

    step: str
    succeeded: bool
    cached: bool
    seconds: float
    artifacts: dict[str, dsl.Artifact]


def run_compiled(
    pipeline: Path,
    values: dict[str, Any],
    artifacts: Path,
    cache: Path,
    observer: Observer,
    containers: "Containers | None" = None,
) -> bool:
    """Run a compiled pipeline here, one process or one container a step.

    Args:
        pipeline: the YAML.
        values: pipeline parameters; the rest keep their defaults.
        artifacts: folder under which each run's artifacts are kept.
        cache: folder of the step cache.
        observer: told of every step and every line that a step prints.
        containers: how containers are run; processes when None.

    Returns:
        Whether every step succeeded.
    """
    local.init(
        local.DockerRunner() if containers else local.SubprocessRunner(use_venv=False),
        pipeline_root=str(artifacts),
        workspace_root=tempfile.mkdtemp(prefix="rankone-"),  # kfp.local deletes it at the end
        raise_on_error=False,
        enable_caching=True,
        cache_root=str(cache),
    )
    results: list[StepResult] = []
    with _quiet(), contextlib.closing(StepProcesses()) as processes, _adapted(observer, results, processes, containers):
        components.load_component_from_file(str(pipeline))(**values)
    return bool(results) and all(result.succeeded for result in results)


class StepTask:
    """Runs the command of a container component; stands where kfp.local expects its own task handler."""

    def __init__(
        self,
        observer: Observer,
        full_command: list[str],
        env_vars: dict[str, str] | None,
        image: str = "",
        **_: Any,
    ) -> None:
        self._observer, self._command, self._environment, self._image = observer, full_command, env_vars or {}, image
        self._step = full_command[full_command.index("-m") + 2]  # python -m components STEP

    def run(self) -> status.Status:
        """Run to the end; FAILURE when the program failed or an output is missing."""
        executor_input = json.loads(self._command[self._command.index("--executor-input") + 1])
        code = self._run_program()
        if code != 0:
            self._observer.step_said(self._step, f"{self._step} ended with exit status {code}.")
            return status.Status.FAILURE
        missing = missing_outputs(executor_input)
        for name in missing:
            self._observer.step_said(self._step, f"{self._step} ended well and did not report its output '{name}'.")
        return status.Status.FAILURE if missing else status.Status.SUCCESS

    def _run_program(self) -> int:
        """Run the command, tell the observer every line, and return the exit status."""
        raise NotImplementedError


class ProcessTask(StepTask):
    """Runs the command as a process of this machine."""

    def __init__(self, observer: Observer, processes: StepProcesses, **arguments: Any) -> None:
        super().__init__(observer, **arguments)
        self._processes = processes

    def _run_program(self) -> int:
        environment = self._environment
        if version := self._image.partition(":")[2]:  # of the step's code, as the pipeline was compiled
            environment = environment | {"RANKONE_CODE_VERSION": version}
        process, printed = self._processes.start(self._command, environment)
        with printed as lines:
            try:
                for line in lines:
                    self._observer.step_said(self._step, line.rstrip("\n"))
                return process.wait()
            finally:
                stop(process)


def missing_outputs(executor_input: dict[str, Any]) -> list[str]:
    """Names of the declared outputs that a task did not report or that do not exist: artifacts, and texts."""
    outputs = executor_input["outputs"]
    report = Path(outputs["outputFile"])
    reported = json.loads(report.read_text())["artifacts"] if report.is_file() else {}
    declared = outputs.get("artifacts", {})
    texts = outputs.get("parameters", {})
    missing = [name for name, text in texts.items() if not Path(text["outputFile"]).is_file()]
    return missing + [
        name for name in declared if name not in reported or not Path(reported[name]["artifacts"][0]["uri"]).exists()
    ]


@contextlib.contextmanager
def _adapted(
    observer: Observer, results: list[StepResult], processes: StepProcesses, containers: "Containers | None"
) -> Iterator[None]:
    """Put our task in the place of kfp.local's and listen to each task's beginning and end."""
    execute: Callable[..., tuple[dict[str, Any], status.Status]] = task_executor.execute_single_task
    ran: list[str] = []

    def task(**arguments: Any) -> StepTask:
        ran.append("")
        if containers is None:
            return ProcessTask(observer, processes, **arguments)
        from operations.container_task import ContainerTask  # and with it the engine's client

        return ContainerTask(observer, containers=containers, **arguments)

    def listened(*, task_name: str, **arguments: Any) -> tuple[dict[str, Any], status.Status]:
        step, started = task_name.replace("-", "_"), time.monotonic()
        ran.clear()
        observer.step_started(step)
        outputs, state = execute(task_name=task_name, **arguments)
        succeeded = state == status.Status.SUCCESS
        artifacts = {name: output for name, output in outputs.items() if isinstance(output, dsl.Artifact)}  # no texts
        result = StepResult(step, succeeded, succeeded and not ran, time.monotonic() - started, artifacts)
        results.append(result)
        observer.step_ended(result)
        return outputs, state

    with (
        _replaced(subprocess_task_handler, "SubprocessTaskHandler", task),
        _replaced(docker_task_handler, "DockerTaskHandler", task),
        _replaced(task_executor, "execute_single_task", listened),
    ):
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)  # an AttributeError here: another version of kfp than the pinned one
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence kfp.local's own log and rulers; the observer tells what happens."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)

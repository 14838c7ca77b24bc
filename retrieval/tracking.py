"""What a run leaves in MLflow: parameters, curves, files and how it ended; in an embedded store unless told otherwise.

MLflow takes seconds to import and its store seconds to open, so no step waits for them where that can be helped: while
`rankone run` is at work, one process holds MLflow open and the steps send it what they log (see tracking_process.py).
Without that process, as on a cluster, the same calls are made here.
"""

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import logging
import math
import os
import platform
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from retrieval import tracking_process
from retrieval.home import home
from retrieval.redaction import without_credentials

EXPERIMENT = "rankone"
PIPELINE_RUN = "rankone.pipeline_run"  # tag that ties the runs of one pipeline run together
EXCHANGE = "RANKONE_EXCHANGE"
IMAGE = "RANKONE_IMAGE"  # the image that a step runs in, set by what starts it: an image cannot know its own digest
LEFT_OPEN = "the process of this run ended without a word: killed, or out of memory"
LONGEST_PARAM = 6_000  # characters; MLflow truncates what is longer and does not say so
ENTRIES_PER_BATCH = 100  # params or tags that MLflow takes in one call
TrackingError = tracking_process.TrackingError


class Channel(Protocol):
    """Where what is logged goes to: MLflow in this process, or the process that holds it open."""

    def tell(self, action: str, **arguments: Any) -> None:
        """Have an action of `RunWriter` done; its failure may be reported by a later `ask`."""

    def ask(self, action: str, **arguments: Any) -> Any:
        """Have an action done after all those told before, and wait for what it returns."""

    def close(self) -> None:
        """Nothing more will come."""


class StepRun:
    """The MLflow run of one step; does nothing in the processes of torchrun that are not the first."""

    def __init__(self, channel: Channel | None) -> None:
        self._channel = channel

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty where nothing is tracked. Waits until the run is made."""
        return self._channel.ask("run_id") if self._channel else ""

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, all in one call.

        Raises:
            ValueError: one is not finite.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; only finite numbers are logged. Find out where it came from.")
        numbers = {name: float(value) for name, value in values.items()}
        self._tell("log_metrics", values=numbers, step=step or 0, milliseconds=_now())

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log what was decided; a name that is logged already keeps its value, and another value is an error."""
        self._tell("log_params", values=_texts(values))

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; the last value of a name holds."""
        self._tell("set_tags", values={name: str(value) for name, value in values.items()})

    def tag_pipeline(self, values: Mapping[str, Any]) -> None:
        """Set tags of the run that this one is nested under, where there is one: what came of the whole pipeline."""
        self._tell("tag_parent", values={name: str(value) for name, value in values.items()})

    def log_artifact(self, path: Path, folder: str | None = None, name: str | None = None) -> None:
        """Copy a file to the run's artifacts, under `folder`, as `name` if given; waits until it is there.

        Raises:
            ValueError: there is no such file.
        """
        if not path.is_file():
            raise ValueError(f"{path} is no file; write it before it is logged.")
        if self._channel:
            self._channel.ask("log_artifact", path=str(path.resolve()), folder=folder, name=name or path.name)

    def _tell(self, action: str, **arguments: Any) -> None:
        if self._channel:
            self._channel.tell(action, **arguments)


@contextlib.contextmanager
def step_run(step: str, params: Any) -> Iterator[StepRun]:
    """Track a step while its body runs: FINISHED at its end, FAILED by an error, KILLED by a signal or Ctrl-C.

    The run is nested under the run that MLFLOW_RUN_ID names, else under that of $RANKONE_PIPELINE_RUN, which is made
    when missing; with neither it stands alone.

    Args:
        step: name of the step and of its run.
        params: dataclass of its knobs, or a mapping; logged as they are.

    Raises:
        ValueError: a knob is longer than MLflow keeps.
        TrackingError: MLflow or its server refused something.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        yield StepRun(None)
        return
    knobs = dataclasses.asdict(params) if dataclasses.is_dataclass(params) else dict(params)  # type: ignore[arg-type]
    channel = open_channel()
    try:
        channel.tell(
            "start_step", step=step, params=_texts(knobs), tags=circumstances(), milliseconds=_now(), **_place()
        )
        yield StepRun(channel)
        channel.ask("end", status="FINISHED", tags={}, milliseconds=_now())
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        tags = {"rankone.error": f"{type(error).__name__}: {error}"[:1_000]}
        with contextlib.suppress(TrackingError):  # what went wrong in the step matters more
            channel.ask("end", status=status, tags=tags, milliseconds=_now())
        raise
    finally:
        channel.close()


def start_pipeline_run(name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> str:
    """Open the run that the steps of one pipeline run nest under, and the process that tracks them; returns at once.

    Sets RANKONE_PIPELINE_RUN and the process's address in this process's environment, for the steps to inherit.

    Returns:
        The key of the pipeline run, for `finish_pipeline_run`; `pipeline_run_id` gives MLflow's own id.
    """
    key = os.environ["RANKONE_PIPELINE_RUN"] = os.environ.get("RANKONE_PIPELINE_RUN") or uuid.uuid4().hex
    texts = {label: str(value) for label, value in (tags or {}).items()}
    tracking_process.start()
    channel = _pipelines[key] = open_channel()
    channel.tell(
        "start_pipeline",
        name=name,
        params=_texts(params),
        tags=circumstances() | texts,
        milliseconds=_now(),
        **_place(),
    )
    return key


def pipeline_run_id(key: str) -> str:
    """MLflow's id of a pipeline run that is open; waits until the run is made."""
    return _pipelines[key].ask("run_id")


def finish_pipeline_run(key: str, status: str, tags: Mapping[str, Any] | None = None, wait: bool = True) -> None:
    """End a pipeline run and the process that tracked it.

    Args:
        key: what `start_pipeline_run` returned.
        status: FINISHED, FAILED or KILLED.
        tags: what came of it.
        wait: until all is written; else the process writes the rest in its own time and ends by itself.
    """
    channel = _pipelines.pop(key)
    os.environ.pop("RANKONE_PIPELINE_RUN", None)
    say = channel.ask if wait else channel.tell
    try:
        texts = {label: str(value) for label, value in (tags or {}).items()}
        say("end", status=status, tags=texts, milliseconds=_now())
    finally:
        channel.close()
        tracking_process.stop(wait)


_pipelines: dict[str, Channel] = {}


def open_channel() -> Channel:
    """The process that holds MLflow open, where there is one; else MLflow in this process."""
    return tracking_process.connect() or Here()


class Here:
    """MLflow in this process."""

    def __init__(self) -> None:
        self._writer = RunWriter()

    def tell(self, action: str, **arguments: Any) -> None:
        """Do it now."""
        self.ask(action, **arguments)

    def ask(self, action: str, **arguments: Any) -> Any:
        """Do it now."""
        return perform(self._writer, action, arguments)

    def close(self) -> None:
        """Nothing is held."""


def perform(writer: "RunWriter", action: str, arguments: Mapping[str, Any]) -> Any:
    """Do one action, of a run or of the registry.

    Raises:
        TrackingError: MLflow refused it, or its server does not answer.
    """
    try:
        return _actions(writer)[action](**arguments)
    except ValueError:
        raise
    except Exception as error:
        server = server_address()
        if server and _got_no_answer(error):
            raise TrackingError(f"{server} does not answer; is MLFLOW_TRACKING_URI right?") from error
        named = "the store of MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else ""
        place = server or named or f"the embedded store in {home()}"
        said = without_credentials(str(error))
        raise TrackingError(f"MLflow could not do '{action}' in {place}: {said}") from error


def server_address() -> str:
    """Address of the MLflow server as a person may see it; empty where there is none."""
    parts = urlsplit(without_credentials(os.environ.get("MLFLOW_TRACKING_URI", "")))
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _got_no_answer(error: BaseException | None) -> bool:
    """Whether a server was not there, or was too slow: MLflow wraps what requests says in an exception of its own."""
    from requests.exceptions import ConnectionError, ProxyError, SSLError, Timeout

    while error is not None and not isinstance(error, (ConnectionError, Timeout)):
        error = error.__cause__ or error.__context__
    return error is not None and not isinstance(error, (ProxyError, SSLError))  # these say more


def _actions(writer: "RunWriter") -> dict[str, Callable[..., Any]]:
    from retrieval import promotion, registry, run_records

    own = (
        "start_step",
        "start_pipeline",
        "run_id",
        "log_metrics",
        "log_params",
        "set_tags",
        "tag_parent",
        "log_artifact",
        "end",
    )
    return {name: getattr(writer, name) for name in own} | registry.ACTIONS | promotion.ACTIONS | run_records.ACTIONS


class RunWriter:
    """Writes one run to MLflow."""

    def __init__(self) -> None:
        self._run_id, self._parent = "", ""

    def start_step(
        self,
        step: str,
        params: dict[str, str],
        tags: dict[str, str],
        milliseconds: int,
        injected_run: str,
        pipeline_run: str,
    ) -> None:
        """Make the run of a step under its parent."""
        parent = injected_run or (_pipeline_run(pipeline_run, milliseconds) if pipeline_run else "")
        above = client().get_run(parent).info if parent else None
        experiment = above.experiment_id if above else experiment_id()
        if above and above.status != "RUNNING" and not injected_run:
            client().update_run(parent, status="RUNNING")  # it is tried again
        tags = tags | {"rankone.step": step, PIPELINE_RUN: pipeline_run} | ({_PARENT: parent} if parent else {})
        run = client().create_run(experiment, milliseconds, {name: tag for name, tag in tags.items() if tag}, step)
        self._run_id, self._parent = run.info.run_id, parent
        self.log_params(params)

    def start_pipeline(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        milliseconds: int,
        injected_run: str,
        pipeline_run: str,
    ) -> None:
        """Make the run that steps nest under, or go on with the one that was given."""
        self._run_id = injected_run or _pipeline_run(pipeline_run, milliseconds, name)
        self.set_tags(tags | {PIPELINE_RUN: pipeline_run})
        self.log_params(params)

    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    def log_metrics(self, values: dict[str, float], step: int, milliseconds: int) -> None:
        """Log numbers with one call."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, milliseconds, step) for name, value in values.items()]
        client().log_batch(self._run_id, metrics=metrics, synchronous=True)

    def log_params(self, values: dict[str, str]) -> None:
        """Log what was decided, as many a call as MLflow takes."""
        from mlflow.entities import Param

        entries = [Param(name, text) for name, text in values.items()]
        for start in range(0, len(entries), ENTRIES_PER_BATCH):
            client().log_batch(self._run_id, params=entries[start : start + ENTRIES_PER_BATCH], synchronous=True)

    def set_tags(self, values: dict[str, str]) -> None:
        """Set tags, as many a call as MLflow takes."""
        self._tag(self._run_id, values)

    def tag_parent(self, values: dict[str, str]) -> None:
        """Set tags of the parent; nothing where there is none."""
        if self._parent:
            self._tag(self._parent, values)

    def _tag(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(name, text) for name, text in values.items()]
        for start in range(0, len(entries), ENTRIES_PER_BATCH):
            client().log_batch(run_id, tags=entries[start : start + ENTRIES_PER_BATCH], synchronous=True)

    def log_artifact(self, path: str, folder: str | None, name: str) -> None:
        """Copy one file."""
        with tempfile.TemporaryDirectory() as temporary:
            named = Path(temporary) / name
            named.symlink_to(path)
            client().log_artifact(self._run_id, str(named), folder)

    def end(self, status: str, tags: dict[str, str], milliseconds: int) -> None:
        """End the run, once."""
        if self._run_id:
            self.set_tags(tags)
            client().set_terminated(self._run_id, status, milliseconds)
            self._run_id = ""

    def abandon(self) -> None:
        """Whoever wrote the run is gone without ending it: killed, or out of memory."""
        self.end("KILLED", {"rankone.error": LEFT_OPEN}, _now())


def embedded_store() -> str:
    """Address of the SQLite store under `home()`, for MLflow; the store and its experiment are made on first use.

    Two processes that open a fresh SQLite file at once destroy it. So it is made aside, under a lock, and put in its
    place when it is whole.
    """
    database = home() / "mlflow.db"
    if database.exists() and not (database.is_file() and os.access(database, os.R_OK | os.W_OK)):
        raise ValueError(f"{database} is no file that this user may read and write; MLflow keeps its runs there.")
    if not database.exists():
        with (home() / "mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists():
                _make_store(database)
    return f"sqlite:///{database}"


def has_store() -> bool:
    """Whether there is a store already; without one there is nothing to find, and nothing to wait for."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (home() / "mlflow.db").exists()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or embedded_store()


def client() -> Any:
    """The `MlflowClient` of `tracking_uri()`, opened once."""
    return _client_of(tracking_uri())


def experiment_id() -> str:
    """Id of the experiment that runs go to: MLFLOW_EXPERIMENT_NAME or "rankone", made when missing."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client().get_experiment_by_name(name)
    if found is None:
        try:
            return client().create_experiment(name, artifact_location())
        except MlflowException:  # another process was first
            found = client().get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise ValueError(
            f"Experiment '{name}' was deleted in MLflow and its name is still taken; restore it, remove it with "
            "`mlflow gc`, or name another one in MLFLOW_EXPERIMENT_NAME."
        )
    return found.experiment_id


def error_code(error: Exception) -> str:
    """MLflow's code of an error; empty where it is of another make."""
    return str(getattr(error, "error_code", ""))


def artifact_location() -> str | None:
    """Where an experiment made here keeps its files: the embedded store names it, a server knows by itself."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else _artifact_location()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Keep quiet what MLflow says of itself: telemetry, bars, a line a migration, deprecations of its own making."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow.store", "mlflow.pyfunc", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # warns that uv's environments have no pip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)  # by SQLAlchemy 2.1
        warnings.filterwarnings(
            "ignore", ".*Any type hint is inferred as AnyType", UserWarning
        )  # mlflow.types.responses
        yield


def circumstances() -> dict[str, str]:
    """What a run ran on and with, as tags: host, platform, image, versions. Imports nothing."""
    versions = {}
    for package in ("rankone", "torch", "torchvision", "numpy", "mlflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[f"rankone.version.{package}"] = importlib.metadata.version(package)
    image = os.environ.get(IMAGE, "")
    versions |= {"rankone.image": image} if image else {}
    return versions | {
        "rankone.version.python": platform.python_version(),
        "rankone.code_version": code_version(),
        "rankone.platform": platform.platform(),
        "rankone.host": socket.gethostname(),
    }


def code_version() -> str:
    """What code runs: RANKONE_CODE_VERSION, which an image or `rankone run` sets, or else the package's version."""
    given = os.environ.get("RANKONE_CODE_VERSION")
    if given:
        return given
    try:
        return importlib.metadata.version("rankone")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def exchange_folder() -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder for files that go to MLflow or come from there.

    The process that holds MLflow may not see a step's own: RANKONE_EXCHANGE names a folder that both see.
    """
    return tempfile.TemporaryDirectory(dir=os.environ.get(EXCHANGE) or None)


def pipeline_run() -> str:
    """Key of the pipeline run that this process belongs to: $RANKONE_PIPELINE_RUN, set by the launcher; or empty."""
    return os.environ.get("RANKONE_PIPELINE_RUN", "")


_PARENT = "mlflow.parentRunId"


@functools.cache
def _client_of(uri: str) -> Any:
    with loading():
        from mlflow.tracking import MlflowClient

        opened = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        opened.search_experiments(max_results=1)  # opens the store
    return opened


def _make_store(database: Path) -> None:
    making = database.with_suffix(".making")
    making.unlink(missing_ok=True)  # left by a process that was killed
    with loading():
        try:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        except ImportError as error:
            raise ValueError(
                f"the embedded store needs all of MLflow and this image holds its client ({error}); "
                "name a server in MLFLOW_TRACKING_URI."
            ) from None
        store = SqlAlchemyStore(f"sqlite:///{making}", _artifact_location())
        store.create_experiment(EXPERIMENT, _artifact_location(), [])
        store._dispose_engine()
    making.rename(database)


def _artifact_location() -> str:
    return (home() / "mlflow-artifacts").as_uri()


_looking = threading.Lock()  # a thread that finds no run makes one before another looks


def _pipeline_run(key: str, milliseconds: int, name: str = "pipeline") -> str:
    """The run that carries the key of a pipeline run; of several made at once, the first holds and the others go.

    The first is the one that began first. So of two threads the later one must not look before the other has made its
    own, or each would take itself for the first.
    """
    with _looking:
        found = _runs_of(key)
        if found:
            return found[0]
        tags = {PIPELINE_RUN: key, "rankone.kind": "pipeline"}
        mine = client().create_run(experiment_id(), milliseconds, tags, name).info.run_id
        first = _runs_of(key)[0]
    if first != mine:
        client().delete_run(mine)
    return first


def _runs_of(key: str) -> list[str]:
    query = f"tags.`{PIPELINE_RUN}` = '{key}' and tags.`rankone.kind` = 'pipeline'"
    found = client().search_runs(
        [experiment_id()], query, order_by=["attributes.start_time ASC", "attributes.run_id ASC"]
    )
    return [run.info.run_id for run in found]


def _place() -> dict[str, str]:
    return {"injected_run": os.environ.get("MLFLOW_RUN_ID", ""), "pipeline_run": pipeline_run()}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: str(list(value) if isinstance(value, tuple) else value) for name, value in values.items()}
    for name, text in texts.items():
        if len(text) > LONGEST_PARAM:
            raise ValueError(
                f"{name} has {len(text):,} characters; MLflow keeps {LONGEST_PARAM:,} of a parameter. "
                "Log it as a file instead."
            )
    return texts


def _now() -> int:
    return int(time.time() * 1000)

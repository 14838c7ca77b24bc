"""One run of the pipeline on this machine: compile, execute from the YAML, resume where the last one ended."""

import contextlib
import datetime
import enum
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operations.champion import keep_parameters, with_champion
from operations.compile import compile_pipeline
from operations.parameters import step_names
from retrieval import tracking
from retrieval.announcement import announce, end_in_mlflow
from retrieval.fingerprint import named_fingerprint, source_fingerprint
from retrieval.home import home
from retrieval.manifest import FILE_NAME, digest_of
from retrieval.news import ANNOUNCING_STEP, Ending
from retrieval.object_store import is_address
from retrieval.webhook import ADDRESS

if TYPE_CHECKING:
    from operations.container_task import Containers
    from operations.display import Display
    from operations.local_runner import StepResult

FAILED, STOPPED = 1, 130
STATES = {"FINISHED": "SUCCEEDED", "FAILED": "FAILED", "KILLED": "CANCELLED"}  # as an exit handler is told of them
PATHS = ("location", "weights", "further_datasets")  # parameters that may name files of this machine
FINGERPRINTED = {"weights": "weights_fingerprint", "further_datasets": "further_fingerprint"}  # of PATHS
WORDS = ("", "none", "imagenet")  # values of theirs that name none


class Runner(enum.StrEnum):
    """What a step runs in."""

    PROCESSES = "processes"
    DOCKER = "docker"


def run_here(name: str, values: Mapping[str, Any], runner: Runner = Runner.PROCESSES) -> int:
    """Run the pipeline here; steps that an earlier run of the same kind finished are taken from the cache.

    Args:
        name: what the run is called in MLflow, e.g. the recipe.
        values: pipeline parameters that differ from their defaults.
        runner: one process a step, or one container of the step's locked image.

    Returns:
        Exit status: 0 when the pipeline went through, whatever the gate decided; 1 when a step failed; 130 if stopped.

    Raises:
        ValueError: the source cannot be listed, a file that a parameter names is not there, or the image lock is of
            other code.
        OSError: there is no image lock, or no engine.
    """
    values = with_source(values)
    refuse_missing_files(values)
    images = None
    if runner == Runner.DOCKER:
        refuse_what_images_lack(values)
        images = locked_images()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops the running step too, as Ctrl-C does
    run = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = home() / "runs" / run
    folder.mkdir(parents=True)
    os.environ["RANKONE_PIPELINE_RUN"] = run
    os.environ["RANKONE_CHECKPOINTS"] = checkpoints_of(values)
    first = not tracking.has_store()
    key = tracking.start_pipeline_run(f"{name} {run}", values)  # returns at once; kfp loads meanwhile

    from operations.display import Display, summary
    from operations.local_runner import run_compiled

    containers = containers_of(run, values) if runner == Runner.DOCKER else None
    display, status = Display(len(step_names()), folder), "FAILED"
    display.console.print(f"Run {run}: {len(step_names())} steps, everything kept in {home()}")
    try:
        values = {**values, "champion_fingerprint": ""} if first else with_champion(values, folder.parent)
        keep_parameters(folder, values)
        pipeline = compile_pipeline(folder / "pipeline.yaml", values, images=images)
        succeeded = run_compiled(pipeline, {}, home() / "artifacts", home() / "cache", display, containers)
        status = "FINISHED" if succeeded else "FAILED"
    except KeyboardInterrupt:
        status = "KILLED"
    finally:
        display.close()
        record(folder, status, display.results)
        tell(key, values, status, display)
        end_tracking(key, status, display)

    if status == "KILLED":
        display.console.print("\nStopped. The same command again resumes at the step that was stopped.")
        return STOPPED
    if status == "FAILED":
        failed = next((result.step for result in display.results.values() if not result.succeeded), "the pipeline")
        display.console.print(
            f"\n{failed} failed; what it said is in {display.log_of(failed)}.\n"
            "Mend the cause and run the same command again: it resumes at this step."
        )
        return FAILED
    keep_page(Path(display.results["detect_changes"].artifacts["changes"].path), folder / "changes.html")
    keep_page(Path(display.results["promote"].artifacts["verdict_page"].path), folder / "verdict.html")
    if (reason := skipped(display.results)) is not None:
        display.console.print(
            f"\nSkipped (unchanged): {reason}.\nNothing was trained; `-p force=true` trains all the same."
        )
        return 0
    report = keep_page(Path(display.results["evaluate"].artifacts["report"].path), folder / "report.html")
    summary(display.console, display.results, report, next_commands(report))
    return 0


def tell(key: str, values: Mapping[str, Any], status: str, display: "Display") -> None:
    """Post the outcome where the exit handler could not: Ctrl-C ends it too, and so does what goes wrong before it."""
    from operations.parameters import all_knobs

    if ANNOUNCING_STEP in display.results or not os.environ.get(ADDRESS):
        return
    webhook_format = values.get("webhook_format", all_knobs()["webhook_format"].default)
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C waits for nobody
        said = announce(key, webhook_format, Ending(STATES[status], step=display.at_work), attempts=1)
        display.console.print(f"\n{said}")


def end_tracking(key: str, status: str, display: "Display") -> None:
    """Tell MLflow how the run ended; where the process that holds it open is gone, in this one, which takes seconds."""
    try:
        cached = cached_steps(display.results)
        tracking.finish_pipeline_run(key, status, {"rankone.cached_steps": cached}, wait=False)
    except tracking.TrackingError:
        if said := end_in_mlflow(key, STATES[status]):
            display.console.print(f"\n{said}")


def with_source(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with absolute paths and fingerprints of what lies there: the cache sees data and files change."""
    from operations.parameters import all_knobs

    knobs = all_knobs()
    source = values.get("source", knobs["source"].default)
    location = str(values.get("location", knobs["location"].default))
    if location and "://" not in location:
        location = str(resolved(location))
    files = {name: absolute(str(values[name])) for name in PATHS if name in values}
    prints = {FINGERPRINTED[name]: named_fingerprint(text) for name, text in files.items() if name in FINGERPRINTED}
    prints = {name: text for name, text in prints.items() if text}
    of_source = {"location": location, "source_fingerprint": source_fingerprint(source, location)}
    return {**values, **files, **prints, **of_source}


def refuse_missing_files(values: Mapping[str, Any]) -> None:
    """Refuse before anything runs a file that a step would miss after minutes or hours.

    Raises:
        ValueError: names the parameter and what is not there, or is there twice.
    """
    weights = str(values.get("weights", ""))
    if weights not in WORDS and not is_address(weights) and not expanded(weights).is_file():
        raise ValueError(f"weights names '{weights}', which is no file here; give none, imagenet, a path or s3://.")
    folders = [part.strip() for part in str(values.get("further_datasets", "")).split(",") if part.strip()]
    for folder in folders:
        if not is_address(folder) and not (expanded(folder) / FILE_NAME).is_file():
            lacks = f"has no {FILE_NAME}" if expanded(folder).is_dir() else "is no folder here"
            raise ValueError(
                f"further_datasets names '{folder}', which {lacks}; give folders that prepare_data wrote, or their "
                "addresses (s3://bucket/prefix), separated by commas."
            )
        if folders.count(folder) > 1:
            raise ValueError(f"further_datasets names '{folder}' twice; name every dataset once.")


def absolute(texts: str) -> str:
    """Paths, separated by commas, with those that exist made absolute: a container has another current folder."""
    parts = [part.strip() for part in texts.split(",")]
    return ",".join(str(resolved(part)) if is_here(part) else part for part in parts)


def is_here(text: str) -> bool:
    """Whether a value names a file or folder of this machine."""
    return text not in WORDS and expanded(text).exists()


def resolved(text: str) -> Path:
    """A path from the root, with every link followed.

    Raises:
        ValueError: a link leads to itself, or this machine knows no such home folder.
    """
    try:
        return expanded(text).resolve()
    except RuntimeError:
        raise ValueError(f"'{text}' is a link that leads to itself; name what it was to lead to.") from None


def expanded(text: str) -> Path:
    """A path, with the home folder in place of the ~ that it begins with.

    Raises:
        ValueError: this machine knows no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"'{text}' begins with '{Path(text).parts[0]}', a home folder that this machine does not know; "
            "give the whole path."
        ) from None


def refuse_what_images_lack(values: Mapping[str, Any]) -> None:
    """Refuse before anything runs what prepare_data's image cannot do.

    Raises:
        ValueError: the source is read by torchvision.
    """
    if values.get("source") == "cifar100":
        raise ValueError(
            "source 'cifar100' is read by torchvision, which rankone-data does not hold; run it in processes, "
            "or turn the images into a folder or Parquet and name that as source."
        )


def locked_images() -> dict[str, str]:
    """What to run for each image; see `image_lock.images_of`."""
    from operations.image_lock import images_of, lock_path, read_lock

    return images_of(read_lock(lock_path()))


def containers_of(run: str, values: Mapping[str, Any]) -> "Containers":
    """How the containers of a run are made: they see the files and folders that its parameters name."""
    from operations.container_task import containers_here

    (home() / "artifacts").mkdir(exist_ok=True)  # as this user: the engine would make it as root
    os.environ["RANKONE_EXCHANGE"] = str(home() / "artifacts")  # which steps and the process that holds MLflow both see
    named = [Path(part.strip()) for name in PATHS for part in str(values.get(name, "")).split(",") if part.strip()]
    return containers_here(run, [path for path in named if path.is_absolute() and path.exists()])


def checkpoints_of(values: Mapping[str, Any]) -> str:
    """Where the steps keep the states of their trainings: a place that the same command again finds."""
    root = str(values.get("checkpoints") or home() / "checkpoints")
    root = root if is_address(root) else str(resolved(root))
    return f"{root.rstrip('/')}/{digest_of(dict(values))[:16]}"


def record(folder: Path, status: str, results: "Mapping[str, StepResult]") -> None:
    """Write `result.json`: how the run ended and, for every step, its time and the metadata of its artifacts."""
    steps = {
        step: {
            "succeeded": result.succeeded,
            "cached": result.cached,
            "seconds": round(result.seconds, 3),
            "artifacts": {
                name: {"uri": artifact.uri, "metadata": artifact.metadata}
                for name, artifact in result.artifacts.items()
            },
        }
        for step, result in results.items()
    }
    (folder / "result.json").write_text(json.dumps({"status": status, "steps": steps}, indent=2) + "\n")


def cached_steps(results: "Mapping[str, StepResult]") -> str:
    """Names of the steps that were taken from the cache, for the run's tags."""
    return ", ".join(step for step, result in results.items() if result.cached)


def skipped(results: "Mapping[str, StepResult]") -> str | None:
    """Why there was nothing to train on; None where the run went all the way."""
    return results["evaluate"].artifacts["report"].metadata.get("skipped")


def keep_page(page: Path, kept: Path) -> Path:
    """Copy a page beside the run's logs, under a name that a browser opens."""
    shutil.copyfile(page, kept)
    return kept


def next_commands(report: Path) -> list[tuple[str, str]]:
    """What a person may want after a run, with the command line as it was called."""
    program = os.path.relpath(sys.argv[0]) if os.path.isabs(sys.argv[0]) else sys.argv[0]
    if program.endswith(".py"):  # started as a module
        program = "python -m operations.command_line"
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    return [
        (f"{opener} {os.path.relpath(report)}", "look at the report"),
        (f"{program} ui", "runs, curves and models, in MLflow's page"),
        (f"{program} run --recipe folder -p location=FOLDER", "train on your own folder of images"),
    ]

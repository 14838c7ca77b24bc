"""The commands of `rankone` that talk to a cluster: submit, runs, logs, cancel, retry, doctor."""

import datetime
import json as json_format
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from operations import image_lock, parameters, profiles, recipes

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

FAILED, STOPPED = 1, 130
SERVICE_ACCOUNT = "RANKONE_SERVICE_ACCOUNT"
COLOURS = {"SUCCEEDED": "green", "SKIPPED": "cyan", "FAILED": "bold red", "CANCELED": "yellow", "RUNNING": "bold"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Run = Annotated[str, typer.Argument(help="Id of the run, or: latest.")]
Every = Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the run.")]


def submit(
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Named set of parameters, or a .yaml file.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="Set a parameter or a setting.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Hardware to ask for. `rankone profiles` lists them.")] = "cpu",
    wait: Annotated[bool, typer.Option("--wait", help="Show the steps until the run has ended.")] = False,
    every: Every = 5.0,
    experiment: Annotated[str, typer.Option(help="That the run belongs to.")] = "rankone",
    json: Json = False,
) -> None:
    """Run the pipeline on a cluster: RANKONE_KFP_HOST names it, RANKONE_KFP_TOKEN says who asks.

    The pipeline is uploaded where the cluster does not have this very version yet. With --wait the exit status says how
    the run ended: 0 when it went through, whatever the gate decided; 1 when it failed.

    Example: [cyan]rankone submit --recipe folder --profile h200 -p source=s3 -p location=s3://images/photos --wait[/]
    """
    from operations import cluster, cluster_runs
    from operations.compile import compile_pipeline

    hardware = profiles.load_profile(profile)
    settings, assignments = profiles.split_settings(hardware, param or [])
    values = parameters.resolve({} if recipe is None else recipes.load_recipe(recipe), assignments)
    values = with_readable_source(values)
    images = pushed_images()
    client = cluster.connect()
    name = f"{'rankone' if recipe is None else Path(recipe).stem} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
    with tempfile.TemporaryDirectory() as folder:
        package = compile_pipeline(Path(folder) / "pipeline.yaml", images=images, profile=hardware)
        submitted = cluster_runs.submit(
            client, package, values | settings, name, experiment, os.environ.get(SERVICE_ACCOUNT) or None
        )
    if not json:
        how = "uploaded" if submitted.uploaded else "there already"
        print(f"Run {submitted.run} of version {submitted.version} ({how})\n{submitted.page}", flush=True)
    state = _wait(client, submitted.run, every, quiet=json) if wait else None
    if json:
        facts = {**vars(submitted), **({"state": state} if state else {})}
        print(json_format.dumps(facts, indent=2))
    raise typer.Exit(FAILED if state not in (None, "SUCCEEDED") else 0)


def runs(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    json: Json = False,
) -> None:
    """List the runs on the cluster, newest first."""
    from operations import cluster, cluster_runs

    facts = [cluster_runs.run_facts(run) for run in cluster_runs.list_runs(cluster.connect(), limit)]
    if json:
        print(json_format.dumps(facts, indent=2))
        return
    table = _table("run", "name", "state", "created", "took")
    for fact in facts:
        created = (fact["created"] or "")[:19].replace("T", " ")
        table.add_row(fact["run"], fact["name"], _coloured(fact["state"]), created, _took(fact["seconds"]))
    _console().print(table)


def logs(
    run: Run,
    step: Annotated[str | None, typer.Argument(help="Name of the step; without it, how far each step is.")] = None,
) -> None:
    """Show what a step of a run said; without a step, the state of every step."""
    from operations import cluster, cluster_runs

    if step is not None and step.replace("-", "_") not in parameters.step_names():
        raise ValueError(f"Unknown step '{step}'; choose one of: {', '.join(parameters.step_names())}.")
    client = cluster.connect()
    found = cluster_runs.get_run(client, run)
    if step is None:
        _console().print(_steps_table(found))
        return
    for number, (pod, text) in enumerate(cluster_runs.logs_of(client, found, step.replace("-", "_"))):
        if number:
            print()
        print(f"{pod}:", file=sys.stderr)
        print(text.rstrip("\n"))


def cancel(run: Run) -> None:
    """Stop a run on the cluster."""
    from operations import cluster, cluster_runs

    client = cluster.connect()
    found = cluster_runs.get_run(client, run)
    if found.state in cluster_runs.ENDED:
        raise ValueError(f"Run {found.run_id} is {found.state}; there is nothing to stop.")
    cluster_runs.cancel(client, found.run_id)
    print(f"Run {found.run_id} is told to stop; `rankone retry {found.run_id}` goes on with it.")


def retry(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Show the steps until the run has ended.")] = False,
    every: Every = 5.0,
) -> None:
    """Go on with a run that failed or was stopped; steps that succeeded are not run again."""
    from operations import cluster, cluster_runs

    client = cluster.connect()
    found = cluster_runs.get_run(client, run)
    cluster_runs.retry(client, found)
    print(f"Run {found.run_id} goes on\n{cluster_runs.page_of(found.run_id)}", flush=True)
    if wait and _wait(client, found.run_id, every) != "SUCCEEDED":
        raise typer.Exit(FAILED)


def doctor(
    profile: Annotated[str, typer.Option(help="Whose nodes to look for.")] = "cpu",
    json: Json = False,
) -> None:
    """Look at all that a run on the cluster needs, and say what to mend: exit status 1 when something has to be."""
    from operations import doctor as examination

    found = examination.examine(profile, locked_images)
    if json:
        print(json_format.dumps([vars(finding) for finding in found], indent=2))
    else:
        _console().print(examination.findings_table(found))
    raise typer.Exit(FAILED if any(finding.state == examination.BAD for finding in found) else 0)


COMMANDS = (submit, runs, logs, cancel, retry, doctor)


def locked_images() -> dict[str, str]:
    """What to run for each image, by its name: by digest, so that nobody can move what a run uses.

    Raises:
        FileNotFoundError: no image lock.
        ValueError: the lock lacks an image, or has one that was built from other code than lies here.
    """
    return image_lock.images_of(image_lock.read_lock(image_lock.lock_path()))


def pushed_images() -> dict[str, str]:
    """The locked images, all of which a registry holds.

    Raises:
        FileNotFoundError: as `locked_images`.
        ValueError: as `locked_images`, or one was built and not pushed.
    """
    images = locked_images()
    if here := image_lock.not_pushed(images):
        raise ValueError(
            f"No registry holds {', '.join(here)}, so no pod can run it; "
            "`make images REGISTRY=registry.example/team PUSH=1` pushes and locks the digests."
        )
    return images


def with_readable_source(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a fingerprint of what lies at the location, unless one is given: the cache sees the data change.

    Raises:
        ValueError: the location, or another file that a parameter names, is on this machine, where no pod reads it.
    """
    from operations.run import PATHS, is_here, refuse_what_images_lack, with_source

    refuse_what_images_lack(values)
    location = str(values.get("location", ""))
    if location and "://" not in location:
        raise ValueError(
            f"location is '{location}', which is on this machine; a cluster reads a bucket. Copy it there and give "
            "-p source=s3 -p location=s3://bucket/prefix."
        )
    for name in PATHS:
        for part in str(values.get(name, "")).split(","):
            if is_here(part.strip()):
                raise ValueError(f"{name} names '{part.strip()}', which is on this machine; give an s3:// address.")
    return dict(values) if values.get("source_fingerprint") else with_source(values)


def _wait(client: Any, run: str, every: float, quiet: bool = False) -> str:
    """Show a run's steps until it has ended, live in a terminal and a line a change in a log; how it ended."""
    from operations import cluster_runs

    console, said = _console(), dict[str, str]()

    def say_nothing(_: "V2beta1Run") -> None: ...

    def say_changes(current: "V2beta1Run") -> None:
        for state in cluster_runs.steps_of(current):
            if said.get(state.step, "PENDING") != state.state:
                said[state.step] = state.state
                console.print(f"{state.step:16} {_coloured(state.state)}  {_took(state.seconds)}", soft_wrap=True)

    try:
        if console.is_terminal and not quiet:
            with Live(console=console, refresh_per_second=4) as live:
                ended = cluster_runs.watch(
                    client, run, every, lambda current: live.update(_steps_table(current)), console.print
                )
        else:
            silent = Console(quiet=True) if quiet else console
            show = say_nothing if quiet else say_changes
            ended = cluster_runs.watch(client, run, every, show, silent.print)
    except KeyboardInterrupt:
        print(f"\nThe run goes on: {cluster_runs.page_of(run)}\n`rankone cancel {run}` stops it.", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if not quiet:
        facts = cluster_runs.run_facts(ended)
        console.print(f"{_coloured(ended.state)} after {_took(facts['seconds'])}", soft_wrap=True)
        for state in cluster_runs.steps_of(ended):
            if state.state == "FAILED":
                print(f"{state.step}: {state.error or 'failed'}; `rankone logs {run} {state.step}` shows what it said.")
    return ended.state


def _steps_table(run: "V2beta1Run") -> Table:
    from operations import cluster_runs

    table = _table("step", "state", "took", "")
    for state in cluster_runs.steps_of(run):
        table.add_row(state.step, _coloured(state.state), _took(state.seconds), state.error)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    return console


def _coloured(state: str | None) -> str:
    colour = COLOURS.get(state or "")
    return f"[{colour}]{state}[/]" if colour else state or "?"


def _took(seconds: float | None) -> str:
    return "" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))

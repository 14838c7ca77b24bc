"""`rankone schedule`: keep the recurring runs of a cluster as a file says."""

import datetime
import json as json_format
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from operations import cluster_commands

if TYPE_CHECKING:
    from operations.release import Release
    from operations.schedules import Change, File, Live

DIFFERENT = 1  # exit status of `diff` where something differs
FILE_NAME = "schedules.yaml"
WIDTH_OF_A_LOG = 160  # columns of a table that no terminal shows
SIGNS = {"create": "+", "replace": "~", "pause": "~", "resume": "~", "tidy": "~", "delete": "-", "keep": " "}
DONE = {
    "create": "made",
    "replace": "made anew, then the old one deleted",
    "pause": "paused",
    "resume": "goes on",
    "tidy": "a second one of the same name deleted",
    "delete": "deleted: the file does not have it",
    "keep": "unchanged",
}
TO_DO = {
    "create": "to be made",
    "replace": "to be made anew",
    "pause": "to be paused",
    "resume": "to go on",
    "tidy": "there twice, so that one is to be deleted",
    "delete": "to be deleted: the file does not have it",
    "keep": "unchanged",
}

schedule = typer.Typer(
    help="Keep the recurring runs of a cluster as a file says.", no_args_is_help=True, rich_markup_mode="rich"
)
Source = Annotated[Path, typer.Option("--file", "-f", help="The file of schedules.")]
Name = Annotated[str, typer.Argument(help="Name of the schedule.")]
Owner = Annotated[str | None, typer.Option("--owner", help="Whose schedule it is, where others have one of that name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
NoRelease = Annotated[
    bool, typer.Option("--no-release", help="Leave the pipelines that schedules run as they are; no image is needed.")
]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Delete all schedules when the file has none.")]


@schedule.command()
def apply(
    file: Source = Path(FILE_NAME),
    no_release: NoRelease = False,
    allow_empty: AllowEmpty = False,
    json: Json = False,
) -> None:
    """Bring the cluster to what the file says: make, make anew, pause, delete. `rankone schedule diff` shows it first.

    What is unchanged is not touched. Schedules that Rankone did not make, and those of another owner, are left alone.
    """
    from operations import cluster, recurring_runs, release

    with tempfile.TemporaryDirectory() as folder:
        wanted = read_file(file)
        refuse_to_empty(wanted, file, allow_empty)
        images = {} if no_release else cluster_commands.pushed_images()
        client = cluster.connect()
        wanted = recurring_runs.settled(client, wanted)
        if no_release:
            refuse_what_was_never_released(client, wanted)
        changes, notices = compared(client, wanted)
        releases = [] if no_release else releases_of(client, wanted, images, Path(folder))
        did: list[str] = []
        for each in releases:
            if each.changes:
                name = trying(did, f"{each.pipeline} was not released", partial(release.publish, client, each))
                did.append(f"{each.pipeline}: version {name} from now on, {each.latest or 'none'} before")
                if not json:
                    print(f"~ {did[-1]}", flush=True)
        for change in changes:
            what = f"'{change.name}' was not brought to what the file says"
            trying(did, what, partial(recurring_runs.apply_change, client, wanted.owner, change))
            if change.kind != "keep":
                did.append(f"{change.name}: {DONE[change.kind]}")
            if not json:
                show_change(change, DONE)
    if json:
        print_changes(changes, releases, notices)
        return
    if not did:
        print("Nothing was to be done.")
    for notice in notices:
        print(f"Mind: {notice}")


@schedule.command()
def diff(
    file: Source = Path(FILE_NAME),
    no_release: NoRelease = False,
    json: Json = False,
) -> None:
    """Show what `apply` would do, field by field, and do nothing. Exit status 1: something differs."""
    from operations import cluster, recurring_runs

    with tempfile.TemporaryDirectory() as folder:
        wanted = read_file(file)
        images = {} if no_release else cluster_commands.pushed_images()
        client = cluster.connect()
        releases = [] if no_release else releases_of(client, wanted, images, Path(folder))
        changes, notices = compared(client, recurring_runs.settled(client, wanted))
    if json:
        print_changes(changes, releases, notices)
    else:
        for each in releases:
            now = f"{each.latest or 'none'} now, {each.digest} then" if each.changes else f"{each.latest}, unchanged"
            print(f"{'~' if each.changes else ' '} {each.pipeline}: version {now}")
        for change in changes:
            show_change(change, TO_DO)
        for notice in notices:
            print(f"Mind: {notice}")
        if not wanted.schedules:
            print(f"{file} has no schedules; `apply` deletes all of yours only with --allow-empty.")
    differs = any(change.kind != "keep" for change in changes) or any(each.changes for each in releases)
    raise typer.Exit(DIFFERENT if differs else 0)


@schedule.command(name="list")
def list_command(json: Json = False) -> None:
    """List the recurring runs of the cluster: ours and others', with their next three times in UTC."""
    from operations import cluster, recurring_runs

    rows = [row_of(live) for live in recurring_runs.list_schedules(cluster.connect())]
    if json:
        print(json_format.dumps(rows, indent=2, default=str))
        return
    if not rows:
        print("The cluster has no recurring run; `rankone schedule apply` makes those of a file.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("schedule", "owner", "state", "when (UTC)", "next (UTC)", "pipeline", "version"):
        table.add_column(column, overflow="fold")
    for row in rows:
        state = "on" if row["enabled"] else "paused"
        following = ", ".join(time[:16].replace("T", " ") for time in row["next"]) if row["enabled"] else ""
        owner = row["owner"] or "not Rankone"
        table.add_row(row["name"], owner, state, row["when"], following, row["pipeline"], row["version"])
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_LOG
    console.print(table)


@schedule.command()
def pause(name: Name, owner: Owner = None) -> None:
    """Let a schedule wait. `apply` leaves it so, unless the file says `paused: false`."""
    switch(name, owner, False)


@schedule.command()
def resume(name: Name, owner: Owner = None) -> None:
    """Let a schedule go on; a time that it missed meanwhile is made up for, the last one only."""
    switch(name, owner, True)


@schedule.command()
def delete(name: Name, owner: Owner = None) -> None:
    """Delete a schedule; its runs stay. `apply` makes it again, unless it is taken out of the file."""
    from operations import cluster, recurring_runs

    client = cluster.connect()
    for live in recurring_runs.named_ones(recurring_runs.list_schedules(client), name, owner):
        recurring_runs.delete(client, live)
    print(f"{name} is deleted; `rankone schedule apply` makes it again if the file still has it.")


def switch(name: str, owner: str | None, enabled: bool) -> None:
    """Pause or resume a schedule."""
    from operations import cluster, recurring_runs

    client = cluster.connect()
    found = recurring_runs.named_ones(recurring_runs.list_schedules(client), name, owner)
    state = "on" if enabled else "paused"
    if all(live.enabled == enabled for live in found):
        print(f"{name} is {state} already.")
        return
    for live in found:
        recurring_runs.set_enabled(client, live, enabled)
    print(f"{name} is {state} now.")


def read_file(path: Path) -> "File":
    """The file, checked; nothing is asked of the cluster."""
    from operations.cluster_commands import SERVICE_ACCOUNT
    from operations.schedules import load_schedules

    return load_schedules(path, os.environ.get(SERVICE_ACCOUNT, ""))


def refuse_to_empty(wanted: "File", path: Path, allowed: bool) -> None:
    """Refuse a file without schedules: it may be one that was cut off.

    Raises:
        ValueError: it has none, and that was not allowed.
    """
    if not wanted.schedules and not allowed:
        raise ValueError(f"{path} has no schedules, so that all would be deleted; say so with --allow-empty.")


def refuse_what_was_never_released(client: Any, wanted: "File") -> None:
    """Refuse schedules whose release pipeline is not there.

    Raises:
        ValueError: there is no version that they could run.
    """
    from operations import cluster, cluster_runs

    with cluster.answered():
        names = sorted({each.pipeline for each in wanted.schedules})
        missing = [name for name in names if not cluster_runs.find_pipeline(client, name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} was never released; leave --no-release out, once.")


def releases_of(client: Any, wanted: "File", images: Mapping[str, str], folder: Path) -> "list[Release]":
    """The release pipelines of all schedules that follow one, compiled."""
    from operations import release
    from operations.schedules import LATEST

    found = {each.pipeline: each.profile for each in wanted.schedules if each.version == LATEST}
    return [
        release.look_at_release(client, name, release.compile_release(folder / f"{name}.yaml", images, profile))
        for name, profile in sorted(found.items())
    ]


def compared(client: Any, wanted: "File") -> "tuple[list[Change], list[str]]":
    """What is to be done, and what a person has to mind: a recurring run of somebody else that has a name of ours."""
    from operations import recurring_runs
    from operations.schedules import compare

    lives = recurring_runs.list_schedules(client)
    names = {schedule.name for schedule in wanted.schedules}
    others = [live for live in lives if live.owner != wanted.owner and live.name in names and live.enabled]
    notices = [
        f"another recurring run '{live.name}' is at work, made by {f'owner {live.owner}' if live.owner else 'hand'}; "
        "it is left alone, and both start runs."
        for live in others
    ]
    return compare(wanted, lives), notices


def trying(did: Sequence[str], what: str, action: Callable[[], Any]) -> Any:
    """Do something; where it fails, say what was done before.

    Raises:
        ClusterError: it failed.
    """
    from operations.cluster import ClusterError

    try:
        return action()
    except ClusterError as error:
        before = f"Done before: {'; '.join(did)}." if did else "Nothing was done before."
        stop = "" if str(error).endswith(".") else "."
        raise ClusterError(
            f"{what}: {error}{stop} {before} Schedules that were not replaced go on as they were; "
            "the same command again does the rest.",
            error.passing,
            error.status,
        ) from None


def show_change(change: "Change", words: Mapping[str, str]) -> None:
    """Print a change: what, field by field, and the next three times."""
    print(f"{SIGNS[change.kind]} {change.name}: {words[change.kind]}")
    for field, now, then in change.fields:
        print(f"    {field}: {shown(now)} -> {shown(then)}")
    if change.schedule is not None:
        print(f"    next (UTC): {next_text(change)}")


def next_text(change: "Change") -> str:
    """The next three times of what a change leaves, for people."""
    if not change.enabled:
        return "none, it is paused"
    return ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in times_of(change)) or "none, its end has come"


def times_of(change: "Change") -> list[datetime.datetime]:
    """The next three times of what a change leaves; none where it is deleted or paused."""
    if change.schedule is None or not change.enabled:
        return []
    since = change.keep.created if change.keep else None
    return change.schedule.next_times(datetime.datetime.now(datetime.UTC), since)


def shown(value: Any) -> str:
    """A value for people."""
    return "nothing" if value is None or value == "" else json_format.dumps(value, ensure_ascii=False, default=str)


def print_changes(changes: "Sequence[Change]", releases: "Sequence[Release]", notices: Sequence[str]) -> None:
    """Print what is to be done, or was, for programs."""
    from operations.schedules import moment_text

    rows = [
        {
            "schedule": change.name,
            "change": change.kind,
            "fields": [{"field": field, "now": was, "then": then} for field, was, then in change.fields],
            "enabled": change.kind != "delete" and change.enabled,
            "next": [moment_text(time) for time in times_of(change)],
        }
        for change in changes
    ]
    released = [
        {"pipeline": each.pipeline, "now": each.latest or None, "then": each.digest, "changes": each.changes}
        for each in releases
    ]
    told = {"schedules": rows, "releases": released, "notices": list(notices)}
    print(json_format.dumps(told, indent=2, ensure_ascii=False, default=str))


def row_of(live: "Live") -> dict[str, Any]:
    """A recurring run for programs; `next` is empty where its line is not one of ours."""
    from operations.cron import parse_cron
    from operations.schedules import interval_of, moment_text, next_times

    facts, now = live.facts, datetime.datetime.now(datetime.UTC)
    cron, every = None, None
    kind, _, text = str(facts["when"]).partition(" ")
    try:
        if kind == "cron" and text.startswith("0 "):
            cron = parse_cron(text.removeprefix("0 "))
        elif kind == "every":
            every = interval_of(text)
    except ValueError:  # somebody else's line, which Kubeflow Pipelines reads in its own way
        pass
    start, end = (datetime.datetime.fromisoformat(facts[key]) if facts[key] else None for key in ("start", "end"))
    following = next_times(cron, every, now, start, end, since=live.created) if cron or every else []
    return {
        "name": live.name,
        "id": live.id,
        "owner": live.owner,
        "enabled": live.enabled,
        "when": cron.five_fields() if cron else str(facts["when"]),
        "next": [moment_text(time) for time in following],
        "pipeline": facts["pipeline"],
        "version": facts["version"],
        "experiment": facts["experiment"],
        "parameters": {
            name.removeprefix("parameters."): value for name, value in facts.items() if name.startswith("parameters.")
        },
    }

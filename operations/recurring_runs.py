"""Recurring runs on a cluster: list, make, pause, delete; and bring them to what the file of schedules says.

A recurring run cannot be edited, so one that is to be another is made anew: the new one first, then the old one goes. A
failure between the two leaves both at work, and one before leaves the old one.
"""

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from typing import Any

import kfp_server_api
from kfp_server_api import RecurringRunMode, V2beta1RecurringRun

from operations.cluster import Client, ClusterError, answered
from operations.cluster_runs import find_pipeline, silent
from operations.release import find_version, parameters_of
from operations.schedules import LATEST, Change, File, Live, Schedule, interval_text, mark_of, moment_text, read_mark

PAGE = 100
GONE = "(deleted)"
NOT_FOUND = 404
ORPHAN = "ORPHAN"
UNKNOWN = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)  # the server writes the first of January for no time


class Names:
    """Names of what recurring runs refer to by id, each asked for once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._found: dict[tuple[str, ...], str] = {}

    def pipeline(self, pipeline: str) -> str:
        """Of a pipeline."""
        return self._name(("pipeline", pipeline), lambda: self._client.get_pipeline(pipeline))

    def version(self, pipeline: str, version: str) -> str:
        """Of a version of a pipeline."""
        return self._name(("version", pipeline, version), lambda: self._client.get_pipeline_version(pipeline, version))

    def experiment(self, experiment: str) -> str:
        """Of an experiment."""
        return self._name(("experiment", experiment), lambda: self._client.get_experiment(experiment))

    def _name(self, key: tuple[str, ...], ask: Callable[[], Any]) -> str:
        if not all(key):
            return ""
        if key not in self._found:
            try:
                with answered():
                    self._found[key] = ask().display_name
            except ClusterError as error:
                if error.status != NOT_FOUND:
                    raise
                self._found[key] = GONE
        return self._found[key]


def list_schedules(client: Client) -> list[Live]:
    """All recurring runs, ours and others', oldest first."""
    names, found, following = Names(client), list[V2beta1RecurringRun](), ""
    while True:
        with answered():
            answer = client.list_recurring_runs(
                page_token=following, page_size=PAGE, namespace=client.get_user_namespace() or None
            )
        found += answer.recurring_runs or []
        following = answer.next_page_token
        if not following:
            break
    lives = [_live(run, names) for run in found]
    return sorted(lives, key=lambda live: (live.created or UNKNOWN, live.id))


def settled(client: Client, file: File) -> File:
    """The file with what a pinned version has to do with: the parameters that it knows.

    Raises:
        ClusterError: there is no such version.
        ValueError: a parameter that this version does not have.
    """
    return dataclasses.replace(file, schedules=tuple(_settled(client, schedule) for schedule in file.schedules))


def _settled(client: Client, schedule: Schedule) -> Schedule:
    if schedule.version == LATEST:
        return schedule
    known = parameters_of(find_version(client, schedule.pipeline, schedule.version))
    unknown = [name for name in schedule.parameters if name not in known]
    if unknown:
        raise ValueError(
            f"schedule {schedule.name}: version {schedule.version} of {schedule.pipeline} has no parameter "
            f"{', '.join(unknown)}; it has: {', '.join(sorted(known))}."
        )
    return dataclasses.replace(schedule, usual={key: value for key, value in schedule.usual.items() if key in known})


def apply_change(client: Client, owner: str, change: Change) -> None:
    """Do what a change says; what goes is deleted when all else is done.

    Raises:
        ClusterError: the server refused; what was there before is still there, unless the new one is.
    """
    if change.kind in ("create", "replace"):
        assert change.schedule is not None
        create(client, owner, change.schedule, change.enabled)
    elif change.keep is not None and change.keep.enabled != change.enabled:
        set_enabled(client, change.keep, change.enabled)
    for live in change.remove:
        try:
            delete(client, live)
        except ClusterError as error:
            beside = "" if change.kind == "delete" else " Its new one is at work beside it."
            raise ClusterError(f"{error}{beside}", error.passing, error.status) from None


def create(client: Client, owner: str, schedule: Schedule, enabled: bool) -> V2beta1RecurringRun:
    """Make a recurring run of a schedule."""
    with answered(), silent():
        pipeline = find_pipeline(client, schedule.pipeline)
        version = None
        if schedule.version != LATEST:
            version = find_version(client, schedule.pipeline, schedule.version).pipeline_version_id
        belongs_to = client.create_experiment(schedule.experiment, namespace=client.get_user_namespace() or None)
        api = kfp_server_api.RecurringRunServiceApi(client.api_client)  # kfp's own call cannot leave the version out
        return api.recurring_run_service_create_recurring_run(
            V2beta1RecurringRun(
                display_name=schedule.name,
                description=mark_of(owner, schedule.digest()),
                pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
                    pipeline_id=pipeline, pipeline_version_id=version
                ),
                runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=schedule.sent_parameters()),
                service_account=schedule.service_account or None,
                max_concurrency=str(schedule.max_concurrency),
                trigger=_trigger(schedule),
                mode=RecurringRunMode.ENABLE if enabled else RecurringRunMode.DISABLE,
                no_catchup=not schedule.catchup,
                experiment_id=belongs_to.experiment_id,
            )
        )


def set_enabled(client: Client, live: Live, enabled: bool) -> None:
    """Pause a recurring run, or let it go on."""
    with answered():
        if enabled:
            client.enable_recurring_run(live.id)
        else:
            client.disable_recurring_run(live.id)


def delete(client: Client, live: Live) -> None:
    """Delete a recurring run; its runs stay, and those at work go on. One that is gone already is no error."""
    api = kfp_server_api.RecurringRunServiceApi(client.api_client)
    try:
        with answered():  # kfp's own call cannot say orphan, and the runs at work would be deleted with their schedule
            api.recurring_run_service_delete_recurring_run(live.id, propagation_policy=ORPHAN)
    except ClusterError as error:
        if error.status != NOT_FOUND:
            raise


def named_ones(lives: Sequence[Live], name: str, owner: str | None = None) -> list[Live]:
    """The recurring runs of a schedule that Rankone made: two where it was replaced half way.

    Args:
        lives: all that the cluster has.
        name: of the schedule.
        owner: whose it is; where none is named, the schedules of that name must be of one owner.

    Raises:
        ClusterError: there is none, none of this owner, only one that somebody else made, or more than one owner's.
    """
    found = [live for live in lives if live.name == name and live.owner is not None]
    if not found and any(live.name == name for live in lives):
        raise ClusterError(f"'{name}' was not made by `rankone schedule`; it is left alone. Change it on its page.")
    if not found:
        listed = ", ".join(sorted({live.name for live in lives if live.owner is not None})) or "none"
        raise ClusterError(f"There is no schedule '{name}'; there is: {listed}.")
    owners = sorted({live.owner for live in found if live.owner is not None})
    if owner is None and len(owners) > 1:
        raise ClusterError(f"There are schedules '{name}' of owners {', '.join(owners)}; name yours with --owner.")
    if owner is not None and owner not in owners:
        raise ClusterError(f"Owner {owner} has no schedule '{name}'; there is one of: {', '.join(owners)}.")
    return [live for live in found if owner in (None, live.owner)]


def _trigger(schedule: Schedule) -> kfp_server_api.V2beta1Trigger:
    between = {"start_time": schedule.start, "end_time": schedule.end}
    if schedule.cron:
        cron = kfp_server_api.V2beta1CronSchedule(cron=schedule.cron.six_fields(), **between)
        return kfp_server_api.V2beta1Trigger(cron_schedule=cron)
    periodic = kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(schedule.every), **between)
    return kfp_server_api.V2beta1Trigger(periodic_schedule=periodic)


def _live(run: V2beta1RecurringRun, names: Names) -> Live:
    owner, digest = read_mark(run.description)
    return Live(
        id=run.recurring_run_id,
        name=run.display_name or "",
        owner=owner,
        digest=digest,
        enabled=(run.status or run.mode) not in ("DISABLED", RecurringRunMode.DISABLE),
        facts=_facts(run, names),
        created=run.created_at,
    )


def _facts(run: V2beta1RecurringRun, names: Names) -> dict[str, Any]:
    """What the server says of a recurring run, as `Schedule.facts` has it."""
    reference, trigger = run.pipeline_version_reference, run.trigger
    pipeline = (reference.pipeline_id if reference else "") or ""
    version = (reference.pipeline_version_id if reference else run.pipeline_version_id) or ""
    cron = trigger.cron_schedule if trigger else None
    periodic = trigger.periodic_schedule if trigger else None
    times = cron or periodic
    when = f"cron {cron.cron}" if cron else f"every {interval_text(int(periodic.interval_second))}" if periodic else ""
    parameters = (run.runtime_config.parameters if run.runtime_config else None) or {}
    return {
        "when": when,
        "pipeline": names.pipeline(pipeline),
        "version": names.version(pipeline, version) if version else LATEST,
        "experiment": names.experiment(run.experiment_id or ""),
        "max_concurrency": int(run.max_concurrency or 1),
        "catchup": not run.no_catchup,
        "start": moment_text(_time(times.start_time if times else None)),
        "end": moment_text(_time(times.end_time if times else None)),
        "service_account": run.service_account or "",
        **{f"parameters.{name}": value for name, value in sorted(parameters.items())},
    }


def _time(moment: datetime.datetime | None) -> datetime.datetime | None:
    return moment if moment and moment > UNKNOWN else None

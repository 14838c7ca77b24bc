"""`rankone status`: how registered models fare, for people and for monitors."""

import dataclasses
import datetime
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from operations.models import NOTHING, AsJson, Model, age_of, impatience, percent, print_json, share, show, the_model
from operations.prometheus import Metric, exposition
from retrieval import promotion, registry
from retrieval.ledger import Entry
from retrieval.registry import ModelVersion, TrackedRun

FINE, ATTENTION = 0, 1
PROMOTED, WAITING, REJECTED, SKIPPED = "promoted", "waiting", "rejected", "skipped"  # of retrieval/gate.py
DAY = 86_400
MADE_BY_RANKONE = "rankone.model_digest"  # tag that every version of ours has
ENDED_WELL, FAILED = "FINISHED", "FAILED"
LONGEST_ERROR = 300  # letters of it that are shown


@dataclasses.dataclass(frozen=True)
class Limits:
    """Beyond what somebody should look; None for no limit.

    Attributes:
        age_days: of the champion's data, since they were last known to be current.
        rejections: one after the other.
        idle_days: since the last run that went through.
    """

    age_days: float | None = None
    rejections: int | None = None
    idle_days: float | None = None


@dataclasses.dataclass(frozen=True)
class Status:
    """How one registered model fares.

    Attributes:
        model: its name.
        version: that is champion; None for none.
        recall_at_1: of the champion; None where it is not recorded.
        data: digest of its dataset.
        data_made: when its images were read, in seconds since 1970; None without a champion.
        data_confirmed: when a run last found the same images at their source.
        success: the last run that went through, skipped ones too.
        failure: the run after it that failed in promote; None for none.
        rejections: how many runs one after the other the gate has rejected since the champion came or was kept waiting.
        rejected: the last of them.
        notices: aliases that are not where the ledger says.
        problems: what somebody should look at, one sentence each.
    """

    model: str
    version: int | None
    recall_at_1: float | None
    data: str
    data_made: float | None
    data_confirmed: float | None
    success: TrackedRun | None
    failure: TrackedRun | None
    rejections: int
    rejected: TrackedRun | None
    notices: tuple[str, ...]
    problems: tuple[str, ...] = ()


def status_command(
    model: Model = None,
    maximum_age_days: Annotated[
        float | None, typer.Option(min=0, help="Since the champion's data were last known to be current.")
    ] = None,
    maximum_rejections: Annotated[
        int | None, typer.Option(min=0, help="That the gate may reject one after the other.")
    ] = None,
    maximum_idle_days: Annotated[
        float | None, typer.Option(min=0, help="Since the last run that went through, whatever came of it.")
    ] = None,
    as_json: AsJson = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print metrics in Prometheus' text format.")] = False,
) -> None:
    """Tell how the models fare: age of the champion's data, last run, rejections, alias against ledger.

    Exit status, for monitors: 0 all is well, 1 somebody should look, 2 bad input or MLflow does not answer.

    Example: [cyan]rankone status --maximum-age-days 14 --maximum-rejections 3[/]
    """
    if as_json and prometheus:
        raise ValueError("--json and --prometheus were both given; choose one.")
    limits = Limits(maximum_age_days, maximum_rejections, maximum_idle_days)
    now = time.time()
    with impatience():
        names = [the_model(model)] if model else registry.registered_models()
        found = [look(name, limits, now) for name in names if model or is_ours(name)]
    if as_json:
        print_json({"fine": bool(found) and not any(one.problems for one in found), "models": rows(found, now)})
    elif prometheus:
        print(exposition(metrics(found, now)), end="")
    elif found:
        show(table(found, now), [])
        for one in found:
            for problem in one.problems:
                print(f"{one.model}: {problem}")
    else:
        print(f"{NOTHING}; `rankone run` trains, judges and registers one.")
    raise typer.Exit(FINE if found and not any(one.problems for one in found) else ATTENTION)


def is_ours(name: str) -> bool:
    """Whether Rankone registered a version: a server may hold other people's models too."""
    return any(MADE_BY_RANKONE in version.tags for version in registry.versions_of(name))


def look(name: str, limits: Limits, now: float) -> Status:
    """How a registered model fares.

    Raises:
        TrackingError: MLflow does not answer.
    """
    versions, history = registry.versions_of(name), promotion.history(name)
    champion = registry.champion(name)
    judged = registry.runs_of(name, "promote")
    ended = [run for run in judged if run.status == ENDED_WELL]
    success = ended[0] if ended else None
    rejected = rejections(ended, history.champion)
    made, confirmed = (None, None)
    if champion is not None:
        made = data_made(champion, versions)
        confirmed = data_confirmed(champion, versions, ended, registry.runs_of(name, "detect_changes"), made)
    status = Status(
        model=name,
        version=champion.version if champion else None,
        recall_at_1=share(champion.tags.get("rankone.recall_at_1")) if champion else None,
        data=digest_of_data(champion),
        data_made=made,
        data_confirmed=confirmed,
        success=success,
        failure=last_failure(judged),
        rejections=len(rejected),
        rejected=rejected[0] if rejected else None,
        notices=history.notices,
    )
    return dataclasses.replace(status, problems=tuple(problems(status, limits, now)))


def problems(status: Status, limits: Limits, now: float) -> list[str]:
    """What somebody should look at."""
    found = list(status.notices)
    if status.version is None:
        found.append("no version is champion.")
    if status.failure is not None:
        error = status.failure.tags.get("rankone.error", "it does not say why")[:LONGEST_ERROR]
        found.append(f"the last run failed in promote: {error}")
    if limits.age_days is not None and status.data_confirmed is not None:
        days = (now - status.data_confirmed) / DAY
        if days > limits.age_days:
            found.append(
                f"the champion's data were last known to be current {days:.1f} days ago, more than "
                f"{limits.age_days:g}; does the schedule run (`rankone schedule list`), and do runs go through?"
            )
    if limits.rejections is not None and status.rejections > limits.rejections and status.rejected:
        rule, why = (status.rejected.tags.get(f"rankone.{key}", "") for key in ("rule", "reason"))
        found.append(
            f"{status.rejections} runs one after the other were rejected, more than {limits.rejections}; "
            f"the last by the rule {rule}: {why}"
        )
    if limits.idle_days is not None:
        idle = (now - status.success.ended) / DAY if status.success else math.inf
        if idle > limits.idle_days:
            since = f"{idle:.1f} days ago, more than {limits.idle_days:g}" if status.success else "never"
            found.append(f"the last run that went through was {since}.")
    return found


def digest_of_data(version: ModelVersion | None) -> str:
    """Of the dataset that a version was made from; empty where it is not recorded."""
    return version.tags.get("rankone.dataset_digest", "") if version else ""


def data_made(champion: ModelVersion, versions: Sequence[ModelVersion]) -> float:
    """When the images of the champion were first read, as far as it is recorded.

    That is the start of prepare_data, or the registration, of the first version that has the same data.
    """
    first = min(same_data(champion, versions), key=lambda version: version.created)
    return registry.data_read(first) or first.created


def data_confirmed(
    champion: ModelVersion,
    versions: Sequence[ModelVersion],
    judged: Sequence[TrackedRun],
    detected: Sequence[TrackedRun],
    made: float,
) -> float:
    """When the images at the source were last found to be those of the champion.

    Every run that went through has read the source. It confirms the champion's data if the version that it made, or
    that it found to be the same when it was skipped, has the same data.
    """
    same = {version.version for version in same_data(champion, versions)}
    found_same = {
        run.pipeline_run: run.tags["rankone.same_as_version"]
        for run in detected
        if run.pipeline_run and "rankone.same_as_version" in run.tags
    }
    times = [made, *(version.created for version in versions if version.version in same)]
    for run in judged:
        found = run.tags.get("rankone.version") or found_same.get(run.pipeline_run)
        if not found and run.tags.get("rankone.outcome") == SKIPPED:
            found = run.tags.get("rankone.champion_version", "")
        if found and found.isdigit() and int(found) in same:
            times.append(run.ended)
    return max(times)


def same_data(champion: ModelVersion, versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """The champion, and the other versions that were made from the same data."""
    data = digest_of_data(champion)
    others = [version for version in versions if data and digest_of_data(version) == data]
    return [champion, *(version for version in others if version.version != champion.version)]


def rejections(judged: Sequence[TrackedRun], moves: Sequence[Entry]) -> list[TrackedRun]:
    """The runs that the gate rejected, newest first, until one that it let through or until the champion was moved.

    A run that was skipped is none of them, and ends nothing.

    Args:
        judged: runs that went through, newest first.
        moves: of the champion, in order.
    """
    since = datetime.datetime.fromisoformat(moves[-1].at).timestamp() if moves else -math.inf
    found = list[TrackedRun]()
    for run in judged:
        outcome = run.tags.get("rankone.outcome", "")
        if outcome in (PROMOTED, WAITING) or run.ended < since:
            break
        if outcome == REJECTED:
            found.append(run)
    return found


def last_failure(judged: Sequence[TrackedRun]) -> TrackedRun | None:
    """The newest run of promote, if it failed; one that still works is passed over."""
    over = [run for run in judged if run.status in (ENDED_WELL, FAILED, "KILLED")]
    return over[0] if over and over[0].status != ENDED_WELL else None


def table(found: Sequence[Status], now: float) -> Table:
    """For people."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "champion", "R@1", "data of", "current as of", "last run", "it was", "rejected", "alias"):
        shown.add_column(column, overflow="fold")
    for one in found:
        outcome = one.success.tags.get("rankone.outcome", "") if one.success else ""
        shown.add_row(
            one.model,
            f"version {one.version}" if one.version else "none",
            percent(one.recall_at_1),
            ago(one.data_made, now),
            ago(one.data_confirmed, now),
            ago(one.success.ended if one.success else None, now),
            outcome,
            f"{one.rejections} in a row" if one.rejections else "0",
            "astray" if one.notices else "as the ledger says",
        )
    return shown


def ago(moment: float | None, now: float) -> str:
    """A moment, and how long ago it was."""
    return f"{text_of(moment)[:10]} ({age_of(now - moment)})" if moment is not None else ""


def text_of(moment: float) -> str:
    """A moment in UTC."""
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def rows(found: Sequence[Status], now: float) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "model": one.model,
            "fine": not one.problems,
            "problems": one.problems,
            "champion": {"version": one.version, "recall_at_1": one.recall_at_1} if one.version else None,
            "data": {"digest": one.data, "made": moment_of(one.data_made, now)}
            | {"confirmed": moment_of(one.data_confirmed, now)},
            "last_success": run_row(one.success, now),
            "failure": run_row(one.failure, now),
            "consecutive_rejections": one.rejections,
            "last_rejection": run_row(one.rejected, now),
            "notices": one.notices,
        }
        for one in found
    ]


def moment_of(moment: float | None, now: float) -> dict[str, Any] | None:
    """A moment and its age."""
    return {"at": text_of(moment), "age_seconds": round(now - moment)} if moment is not None else None


def run_row(run: TrackedRun | None, now: float) -> dict[str, Any] | None:
    """What came of a run."""
    if run is None:
        return None
    known = {key: run.tags.get(f"rankone.{key}", "") for key in ("outcome", "rule", "reason", "error")}
    return {**(moment_of(run.ended, now) or {}), **known, "mlflow_run": run.run_id, "pipeline_run": run.pipeline_run}


def metrics(found: Sequence[Status], now: float) -> list[Metric]:
    """For Prometheus; what is not known has no sample, and without models only the need to look has one."""
    champions = [one for one in found if one.version is not None]
    ran = [(one, one.success) for one in found if one.success is not None]
    return [
        Metric(
            "rankone_champion_info",
            "Always 1; labels: version that is champion, digest of its data.",
            [({"model": one.model, "version": str(one.version), "data": one.data}, 1) for one in champions],
        ),
        Metric(
            "rankone_champion_recall_at_1_ratio",
            "R@1 of the champion, as it was judged.",
            [({"model": one.model}, one.recall_at_1) for one in champions if one.recall_at_1 is not None],
        ),
        Metric(
            "rankone_champion_data_made_timestamp_seconds",
            "When the champion's data were read, since 1970.",
            [({"model": one.model}, one.data_made) for one in champions if one.data_made is not None],
        ),
        Metric(
            "rankone_champion_data_confirmed_timestamp_seconds",
            "When a run last found the same data at their source, since 1970.",
            [({"model": one.model}, one.data_confirmed) for one in champions if one.data_confirmed is not None],
        ),
        Metric(
            "rankone_champion_data_age_seconds",
            "Age of the champion's data, since they were last known to be current.",
            [({"model": one.model}, now - one.data_confirmed) for one in champions if one.data_confirmed is not None],
        ),
        Metric(
            "rankone_last_success_timestamp_seconds",
            "When the last run that went through ended, since 1970; skipped runs count.",
            [({"model": one.model}, run.ended) for one, run in ran],
        ),
        Metric(
            "rankone_last_outcome_info",
            "Always 1; labels: outcome and rule of the last run that went through.",
            [
                ({"model": one.model} | {key: run.tags.get(f"rankone.{key}", "") for key in ("outcome", "rule")}, 1)
                for one, run in ran
            ],
        ),
        Metric(
            "rankone_consecutive_rejections",
            "Runs one after the other that the gate rejected.",
            [({"model": one.model}, one.rejections) for one in found],
        ),
        Metric(
            "rankone_alias_astray",
            "1 where somebody moved an alias by hand, past the ledger.",
            [({"model": one.model}, int(bool(one.notices))) for one in found],
        ),
        Metric(
            "rankone_attention",
            "1 where somebody should look, by the limits that were given.",
            [({"model": one.model}, int(bool(one.problems))) for one in found] or [({}, 1)],  # no model is registered
        ),
    ]

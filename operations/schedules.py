"""The file of schedules, `schedules.yaml`, and what has to be done so that a cluster does what it says.

No server is asked here: `load_schedules` reads and checks the file, `compare` says what differs from the recurring runs
that a cluster has.
"""

import contextlib
import dataclasses
import datetime
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from operations import parameters, profiles, recipes
from operations.cron import Cron, parse_cron
from operations.yaml_file import as_text, read_yaml
from retrieval.manifest import digest_of

LATEST = "latest"
SHOWN_TIMES = 3
FORM = 1  # of what a digest is made of
DIGITS_OF_A_DIGEST = 16
RELEASE = "rankone-release"  # pipelines whose latest version schedules follow, one for each profile
ALWAYS = {"skip_unchanged": True}  # parameters of every schedule, where the pipeline has them and nobody set them
OF_A_MOMENT = (  # parameters that hold for one run only
    "source_fingerprint",
    "champion_fingerprint",
    "weights_fingerprint",
    "further_fingerprint",
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")
OWNER = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,38}")
MARK = re.compile(r"Kept by rankone schedule apply \(owner ([^ ,]+), digest ([0-9a-f]+)\)")
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MOST_AT_ONCE = 10  # Kubeflow Pipelines refuses more

KEYS = {
    "name": "a text",
    "cron": "a text",
    "every": "a text",
    "recipe": "a text",
    "profile": "a text",
    "parameters": "a mapping",
    "experiment": "a text",
    "version": "a text",
    "paused": "true or false",
    "catchup": "true or false",
    "max_concurrency": "a whole number",
    "start": "a time",
    "end": "a time",
    "service_account": "a text",
}
TYPES: dict[str, tuple[type, ...]] = {
    "a text": (str,),
    "a mapping": (dict,),
    "true or false": (bool,),
    "a whole number": (int,),
    "a time": (str, datetime.date),  # a datetime is a date
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One entry of the file.

    Attributes:
        name: by which it is found on the cluster.
        cron: when; None with `every`.
        every: seconds from one run to the next; None with `cron`.
        profile: hardware; with it goes the release pipeline.
        parameters: of the pipeline: those of the recipe and of the entry, and settings of the profile.
        usual: parameters that every schedule sets where its version of the pipeline has them.
        experiment: that its runs belong to.
        version: of the release pipeline; LATEST follows it.
        paused: whether it waits; None leaves that as it is on the cluster.
        catchup: whether times that were missed are made up for.
        max_concurrency: how many of its runs go on at once.
        start: before which nothing happens.
        end: after which nothing happens.
        service_account: that the pods of its runs have; the server's own choice when empty.
    """

    name: str
    cron: Cron | None
    every: int | None
    profile: profiles.Profile
    parameters: dict[str, Any]
    usual: dict[str, Any]
    experiment: str = "rankone"
    version: str = LATEST
    paused: bool | None = None
    catchup: bool = False
    max_concurrency: int = 1
    start: datetime.datetime | None = None
    end: datetime.datetime | None = None
    service_account: str = ""

    @property
    def pipeline(self) -> str:
        """The release pipeline that it runs."""
        return f"{RELEASE}-{self.profile.name}"

    def facts(self) -> dict[str, Any]:
        """All that cannot be changed on the cluster, by names for people; `facts` of what a cluster has are the same.

        Two schedules with equal facts are the same schedule.
        """
        return {
            "when": f"cron {self.cron.six_fields()}" if self.cron else f"every {interval_text(self.every or 0)}",
            "pipeline": self.pipeline,
            "version": self.version,
            "experiment": self.experiment,
            "max_concurrency": self.max_concurrency,
            "catchup": self.catchup,
            "start": moment_text(self.start),
            "end": moment_text(self.end),
            "service_account": self.service_account,
            **{f"parameters.{name}": value for name, value in sorted(self.sent_parameters().items())},
        }

    def sent_parameters(self) -> dict[str, Any]:
        """The parameters, as JSON has them."""
        values = {**self.usual, **self.parameters}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def digest(self) -> str:
        """Of the facts."""
        return digest_of([FORM, self.facts()])[:DIGITS_OF_A_DIGEST]

    def next_times(self, now: datetime.datetime, since: datetime.datetime | None = None) -> list[datetime.datetime]:
        """The next times of what was made `since`, or is made now."""
        return next_times(self.cron, self.every, now, self.start, self.end, since=since)


@dataclasses.dataclass(frozen=True)
class File:
    """The file of schedules.

    Attributes:
        owner: whose the schedules are; those of other owners are left alone.
        schedules: in the order of the file.
    """

    owner: str
    schedules: tuple[Schedule, ...]


@dataclasses.dataclass(frozen=True)
class Live:
    """A recurring run that a cluster has.

    Attributes:
        id: of the server.
        name: as the page shows it.
        owner: whose it is; None where Rankone did not make it.
        digest: of the facts that it was made from.
        enabled: whether it runs.
        facts: as `Schedule.facts`, as far as they can be read.
        created: when it was made.
    """

    id: str
    name: str
    owner: str | None
    digest: str
    enabled: bool
    facts: Mapping[str, Any]
    created: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """What is to be done about one schedule.

    Attributes:
        kind: create, replace, pause, resume, delete, tidy or keep.
        name: of the schedule.
        schedule: as the file says it; None where it is to be deleted.
        keep: the recurring run that stays.
        remove: recurring runs that go.
        enabled: whether it runs afterwards.
        fields: what differs: name, now, then; in order.
    """

    kind: str
    name: str
    schedule: Schedule | None = None
    keep: Live | None = None
    remove: tuple[Live, ...] = ()
    enabled: bool = True
    fields: tuple[tuple[str, Any, Any], ...] = ()


def load_schedules(path: Path, service_account: str = "") -> File:
    """Read and check the file.

    Args:
        path: of the YAML file.
        service_account: for entries that name none.

    Raises:
        ValueError: anything that would not run as it is meant; the message names file, schedule and key.
    """
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'; docs/schedules.md shows one.")
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("schedules"), list):
        raise ValueError(f"{path} has no list of schedules; it must have lines `schedules:` and `- name: ...`.")
    _known(f"{path}", content, ("owner", "schedules"))
    owner = content.get("owner", "rankone")
    if not isinstance(owner, str) or not OWNER.fullmatch(owner):
        raise ValueError(f"{path}: owner is {owner!r}; it is a short name of letters, digits, '-', '_' and '.'.")
    found = tuple(_schedule(path, number, entry, service_account) for number, entry in enumerate(content["schedules"]))
    names = [schedule.name for schedule in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path} has {names.count(name)} schedules of the name '{name}'; a name is there once.")
    _refuse_shared_releases(path, found)
    return File(owner, found)


def compare(file: File, lives: Sequence[Live]) -> list[Change]:
    """What has to be done, in the order in which to do it: what is deleted comes last.

    A recurring run of another owner, or of none, is as if it were not there.
    """
    ours = [live for live in lives if live.owner == file.owner]
    names = [schedule.name for schedule in file.schedules]
    changes = [_change(schedule, [live for live in ours if live.name == schedule.name]) for schedule in file.schedules]
    gone = dict.fromkeys(live.name for live in ours if live.name not in names)
    for name in gone:
        changes.append(Change("delete", name, remove=tuple(live for live in ours if live.name == name)))
    return changes


def _change(schedule: Schedule, lives: Sequence[Live]) -> Change:
    """What has to be done about a schedule that the cluster has so many times."""
    if not lives:
        return Change("create", schedule.name, schedule, enabled=not schedule.paused)
    same = [live for live in lives if live.digest == schedule.digest() and _same_pipeline(schedule, live)]
    kept = same[0] if same else lives[-1]
    enabled = kept.enabled if schedule.paused is None else not schedule.paused
    others = tuple(live for live in lives if live is not kept)
    if not same:
        return Change("replace", schedule.name, schedule, None, tuple(lives), enabled, _fields(kept, schedule))
    state = (("paused", not kept.enabled, not enabled),) if kept.enabled != enabled else ()
    kind = "tidy" if others else ("resume" if enabled else "pause") if state else "keep"
    return Change(kind, schedule.name, schedule, kept, others, enabled, state)


def _fields(live: Live, schedule: Schedule) -> tuple[tuple[str, Any, Any], ...]:
    """What differs between what is there and what is to be, as people are shown it."""
    fields = differences(live.facts, schedule.facts())
    if not schedule.service_account and len(fields) > 1:  # the server names its own, which is not why
        fields = [field for field in fields if field[0] != "service_account"]
    return tuple(fields) or (("made by", "another version of Rankone", "this one"),)


def _same_pipeline(schedule: Schedule, live: Live) -> bool:
    """Whether it still runs the pipeline of the file: one that was deleted is found no more."""
    return bool(live.facts.get("pipeline") == schedule.pipeline)


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, value now and value then of what differs; None for what is not there."""
    names = dict.fromkeys([*then, *now])
    return [(name, now.get(name), then.get(name)) for name in names if now.get(name) != then.get(name)]


def next_times(
    cron: Cron | None,
    every: int | None,
    now: datetime.datetime,
    start: datetime.datetime | None = None,
    end: datetime.datetime | None = None,
    count: int = SHOWN_TIMES,
    since: datetime.datetime | None = None,
) -> list[datetime.datetime]:
    """The next times of a schedule, fewer where it ends before.

    Args:
        cron: its line; None with `every`.
        every: its seconds; None with `cron`.
        now: times after this one.
        start: before which nothing happens.
        end: after which nothing happens.
        count: how many.
        since: from which `every` counts, where there is no start: when it was made.
    """
    first = max(now, start) if start else now
    times = list[datetime.datetime]()
    with contextlib.suppress(OverflowError):  # no time comes after the year 9999
        for time in cron.times_after(first) if cron else _steps(every or 1, first, start or since or now):
            if (end and time > end) or len(times) == count:
                break
            times.append(time)
    return times


def _steps(seconds: int, after: datetime.datetime, since: datetime.datetime) -> Iterator[datetime.datetime]:
    passed = max(0, int((after - since).total_seconds()) // seconds)
    while True:
        passed += 1
        yield since + datetime.timedelta(seconds=passed * seconds)


def moment_text(moment: datetime.datetime | None) -> str:
    """A moment in UTC; empty for none."""
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}" if moment else ""


def interval_text(seconds: int) -> str:
    """An interval in the largest unit that holds it whole, like 6h."""
    unit = max((unit for unit in UNITS if seconds % UNITS[unit] == 0), key=UNITS.__getitem__)
    return f"{seconds // UNITS[unit]}{unit}"


def interval_of(text: str) -> int:
    """Seconds of an `interval_text`."""
    return int(text[:-1]) * UNITS[text[-1]]


def mark_of(owner: str, digest: str) -> str:
    """What is written on a recurring run, so that it is known again."""
    return f"Kept by rankone schedule apply (owner {owner}, digest {digest})"


def read_mark(text: str | None) -> tuple[str | None, str]:
    """Owner and digest of a recurring run by its description; None and nothing where Rankone did not make it."""
    found = MARK.match(text or "")
    return (found[1], found[2]) if found else (None, "")


def _schedule(path: Path, number: int, entry: Any, service_account: str) -> Schedule:
    """One entry, checked."""
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"{path}, schedule {name if isinstance(name, str) else number + 1}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no mapping; it must have lines `key: value`: {', '.join(KEYS)}.")
    _known(where, entry, tuple(KEYS))
    for key, value in entry.items():
        _of_kind(where, key, value)
    try:
        return _checked(entry, service_account)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked(entry: Mapping[str, Any], service_account: str) -> Schedule:
    name = entry.get("name", "")
    if not NAME.fullmatch(name):
        raise ValueError(f"name is '{name}'; it is of small letters, digits and '-', 50 at most.")
    if ("cron" in entry) == ("every" in entry):
        raise ValueError("give cron or every, one of them: when it runs.")
    profile = _profile(entry.get("profile", "cpu"))
    values, settings = _parameters(profile, entry)
    knobs = parameters.all_knobs()
    concurrency = entry.get("max_concurrency", 1)
    if not 1 <= concurrency <= MOST_AT_ONCE:
        raise ValueError(f"max_concurrency is {concurrency}; it is from 1 to {MOST_AT_ONCE}.")
    start, end = (_moment(key, entry[key]) if key in entry else None for key in ("start", "end"))
    if start and end and end <= start:
        raise ValueError(f"end is {moment_text(end)}, not after start, {moment_text(start)}.")
    for key in ("experiment", "version"):
        if not entry.get(key, "rankone").strip():
            raise ValueError(f"{key} is empty; leave it out, or name one.")
    return Schedule(
        name=name,
        cron=parse_cron(entry["cron"]) if "cron" in entry else None,
        every=_seconds(entry["every"]) if "every" in entry else None,
        profile=profile,
        parameters=values | settings,
        usual={key: value for key, value in ALWAYS.items() if key in knobs and key not in values},
        experiment=entry.get("experiment", "rankone"),
        version=entry.get("version", LATEST),
        paused=entry.get("paused"),
        catchup=entry.get("catchup", False),
        max_concurrency=concurrency,
        start=start,
        end=end,
        service_account=entry.get("service_account", service_account),
    )


def _parameters(profile: profiles.Profile, entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of the pipeline and the settings of the profile, checked as `rankone submit` checks them."""
    from operations.cluster_commands import with_readable_source

    given = entry.get("parameters", {})
    known = profiles.settings_of(profile)
    for name, value in given.items():
        if value is None:
            raise ValueError(recipes.no_value(name))
        if name in OF_A_MOMENT:
            raise ValueError(f"{name} stands for one moment, and every run of a schedule would get the same; leave it.")
    settings = profiles.parse_settings(
        profile, {name: as_text(name, value) for name, value in given.items() if name in known}
    )
    recipe = recipes.load_recipe(entry["recipe"]) if "recipe" in entry else {}
    values = parameters.resolve({**recipe, **{key: given[key] for key in given if key not in known}}, [])
    readable = with_readable_source({**values, OF_A_MOMENT[0]: "not asked for: every run looks anew"})
    return {name: value for name, value in readable.items() if name not in OF_A_MOMENT}, settings


def _profile(name: str) -> profiles.Profile:
    """The profile of an entry; a file of one's own that has the name of a profile of Rankone is refused."""
    profile = profiles.load_profile(name)
    if profile.name in profiles.profile_names() and profile != profiles.load_profile(profile.name):
        raise ValueError(
            f"profile is '{name}', but '{profile.name}' is a profile of Rankone's own, with other hardware, and both "
            f"would share the release pipeline {RELEASE}-{profile.name}; rename the file."
        )
    return profile


def _refuse_shared_releases(path: Path, schedules: Sequence[Schedule]) -> None:
    """Refuse two profiles of one name: a release pipeline has one version at a time, so one would run as the other."""
    first = dict[str, Schedule]()
    for schedule in schedules:
        other = first.setdefault(schedule.pipeline, schedule)
        if schedule.profile != other.profile:
            raise ValueError(
                f"{path}: schedules {other.name} and {schedule.name} have different profiles of the name "
                f"'{schedule.profile.name}', which would share the release pipeline {schedule.pipeline}; "
                "rename the file of one."
            )


def _known(where: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"{where}: there is no key '{key}'{f'; did you mean {near[0]}?' if near else '.'} "
                f"These exist: {', '.join(known)}."
            )


def _of_kind(where: str, key: str, value: Any) -> None:
    kind = KEYS[key]
    wrong_bool = isinstance(value, bool) and kind != "true or false"
    if wrong_bool or not isinstance(value, TYPES[kind]):
        quoted = " Quote it." if kind == "a text" and value is not None else ""
        raise ValueError(f"{where}: {key} is {value!r}; it must be {kind}.{quoted}")


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    if not found:
        raise ValueError(f"every is '{text}'; it is like 90m, 6h or 2d.")
    return interval_of(text)


def _moment(key: str, value: Any) -> datetime.datetime:
    """A time of the file; one without a zone is in UTC."""
    try:
        moment = datetime.datetime.fromisoformat(value if isinstance(value, str) else value.isoformat())
        return moment.astimezone(datetime.UTC) if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    except ValueError:
        raise ValueError(f"{key} is '{value}'; it is a time like 2026-12-01T06:00:00Z.") from None
    except OverflowError:
        raise ValueError(f"{key} is '{value}'; in UTC it is not within the years 1 to 9999; give one within.") from None

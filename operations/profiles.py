"""Profiles: named hardware for the steps of the pipeline on a cluster, one YAML file each in `profiles/`.

A profile has two parts: `accelerated` for the steps that want a GPU, `plain` for the others. What Kubeflow Pipelines
lets a run decide (selectors, tolerations, accelerator, cpu, memory) becomes a parameter of the pipeline, with the
profile's value as its default; the rest (/dev/shm, scratch space, timeout, retries) is fixed by compiling.
"""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from components.settings import Setting
from operations.yaml_file import named_file, names_in, read_yaml

FOLDER = Path(__file__).resolve().parent.parent / "profiles"
ACCELERATED, PLAIN = "accelerated", "plain"
UNITS = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
OPERATORS = ("Exists", "Equal")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a step asks of the cluster.

    Attributes:
        cpu: processors that are kept for it, e.g. "4" or "500m"; it may use more when they are idle.
        memory: kept for it, and its limit, e.g. 16Gi.
        ephemeral_storage: limit of its scratch space under /tmp.
        shared_memory: size of /dev/shm, through which the processes that load images pass them on; part of `memory`.
        timeout_minutes: of an attempt, from when its pod has a node; a wait for one has no end of its own.
        retries: how often a failed attempt is made again.
        backoff_seconds: wait before the first retry.
        backoff_factor: by which each wait is longer than the one before.
        longest_backoff_seconds: at which it stays.
        node_selector: labels that the node must have.
        tolerations: taints of nodes that it may run on all the same, as a pod's specification has them.
        accelerator: resource that it takes, e.g. nvidia.com/gpu; empty for none.
        accelerators: how many.
    """

    cpu: str
    memory: str
    ephemeral_storage: str
    shared_memory: str
    timeout_minutes: int
    retries: int
    backoff_seconds: int
    backoff_factor: float
    longest_backoff_seconds: int
    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
    tolerations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    accelerator: str = ""
    accelerators: int = 0

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            check(name, getattr(self, name))
        for name, lowest in {"timeout_minutes": 1, "retries": 0, "backoff_seconds": 0, "accelerators": 0}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {lowest} or more.")
        if not 1 <= self.backoff_factor < math.inf:
            raise ValueError(f"backoff_factor is {self.backoff_factor}; it must be 1 or more: waits do not shrink.")
        if self.longest_backoff_seconds < self.backoff_seconds:
            raise ValueError(
                f"longest_backoff_seconds is {self.longest_backoff_seconds}, "
                f"less than backoff_seconds, {self.backoff_seconds}."
            )
        if size_of(self.shared_memory) > size_of(self.memory):
            raise ValueError(
                f"shared_memory is {self.shared_memory}, more than memory, {self.memory}, of which it is a part; "
                "a step that fills it would be killed."
            )
        if bool(self.accelerator) != (self.accelerators > 0):
            raise ValueError(
                f"accelerator is '{self.accelerator}' and accelerators {self.accelerators}; give both or neither."
            )


@dataclasses.dataclass(frozen=True)
class Profile:
    """Hardware for every step.

    Attributes:
        name: as in `--profile name`.
        accelerated: of the steps that want a GPU.
        plain: of the others, which take no accelerator.
    """

    name: str
    accelerated: Hardware
    plain: Hardware

    def __post_init__(self) -> None:
        if self.plain.accelerator:
            raise ValueError("plain has an accelerator; only the accelerated steps take one: leave it out of plain.")

    def part(self, accelerated: bool) -> tuple[str, Hardware]:
        """The name of a part, which its parameters begin with, and its hardware."""
        return (ACCELERATED, self.accelerated) if accelerated else (PLAIN, self.plain)


def profile_names() -> list[str]:
    """The profiles that exist."""
    return names_in(FOLDER)


def describe_profile(name: str) -> str:
    """The first comment line of a profile: what it is for."""
    return (FOLDER / f"{name}.yaml").read_text().partition("\n")[0].lstrip("# ")


def load_profile(name: str) -> Profile:
    """A profile by its name, or by the path of a YAML file.

    Raises:
        ValueError: there is none of that name, it is no YAML, or it has an unknown or missing key or a value that
            cannot be; the message names the file, the part and the key.
    """
    path = named_file("profile", name, FOLDER)
    parts = read_yaml(path)
    if not isinstance(parts, dict) or set(parts) != {ACCELERATED, PLAIN}:
        raise ValueError(f"{path} is no profile; it must have two parts, {ACCELERATED} and {PLAIN}, and nothing else.")
    accelerated, plain = (_hardware(f"{path}, {part}", parts[part]) for part in (ACCELERATED, PLAIN))
    try:
        return Profile(path.stem, accelerated, plain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def settings_of(profile: Profile) -> dict[str, Setting]:
    """The parameters that a pipeline of this profile has beside the knobs, by name, with the profile's defaults."""
    settings: list[Setting] = []
    for part, hardware in (profile.part(True), profile.part(False)):
        whom = "steps that want a GPU" if part == ACCELERATED else "other steps"
        settings += [
            Setting(f"{part}_node_selector", dict, hardware.node_selector, f"labels of the nodes of {whom}."),
            Setting(f"{part}_tolerations", list, hardware.tolerations, f"taints that {whom} tolerate."),
            Setting(f"{part}_cpu", str, hardware.cpu, f"processors kept for each of the {whom}."),
            Setting(f"{part}_memory", str, hardware.memory, f"memory kept for each of the {whom}, and its limit."),
        ]
        if hardware.accelerator:
            settings += [
                Setting("accelerator_type", str, hardware.accelerator, "resource that these steps take."),
                # a text: Kubernetes reads it as a quantity, and a number of a pipeline may come back as 1.0
                Setting("accelerator_count", str, str(hardware.accelerators), "how many of them each step takes."),
            ]
    return {setting.name: setting for setting in settings}


def setting_names() -> list[str]:
    """The settings that one profile or another has."""
    return list(dict.fromkeys(setting for name in profile_names() for setting in settings_of(load_profile(name))))


def parse_setting(setting: Setting, text: str) -> Any:
    """A setting's value from `-p name=value`: JSON for selectors and tolerations, the text itself else.

    Raises:
        ValueError: no value that this setting can have; says which would do.
    """
    value: Any = text
    if setting.kind in (dict, list):
        example = '{"disk": "fast"}' if setting.kind is dict else '[{"key": "gpu", "operator": "Exists"}]'
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, setting.kind):
            raise ValueError(f"{setting.name} is '{text}'; it must be JSON like {example}.")
    SETTING_CHECKS[_kind_of(setting)](setting.name, value)
    return value


def parse_settings(profile: Profile, texts: Mapping[str, str]) -> dict[str, Any]:
    """The settings that texts give by name, parsed and checked against what the profile fixes.

    Raises:
        ValueError: no value that a setting can have, or less memory than the part of it that is /dev/shm.
    """
    settings = settings_of(profile)
    values = {name: parse_setting(settings[name], text) for name, text in texts.items()}
    for part, hardware in (profile.part(True), profile.part(False)):
        memory, shared = values.get(f"{part}_memory", hardware.memory), hardware.shared_memory
        if size_of(memory) < size_of(shared):
            raise ValueError(
                f"{part}_memory is '{memory}', less than the profile's shared_memory, {shared}, which is a part of it: "
                f"a step that fills that would be killed. Give {shared} or more, or a profile of your own."
            )
    return values


def split_settings(profile: Profile | None, assignments: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings among `name=value` assignments, parsed, and the other assignments.

    Raises:
        ValueError: as `parse_settings`.
    """
    settings = settings_of(profile) if profile else {}
    texts, others = dict[str, str](), list[str]()
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if equals and name.strip() in settings:
            texts[name.strip()] = text
        else:
            others.append(assignment)
    return parse_settings(profile, texts) if profile else {}, others


def size_of(quantity: str) -> int:
    """Bytes of a quantity like 16Gi."""
    found = re.fullmatch(r"(\d+)([KMGTP]i?)?", quantity)
    assert found, f"'{quantity}' was not checked"
    return int(found[1]) * UNITS[found[2] or ""]


def _hardware(where: str, values: Any) -> Hardware:
    hints = get_type_hints(Hardware)
    required = [field.name for field in dataclasses.fields(Hardware) if _is_required(field)]
    if not isinstance(values, dict):
        raise ValueError(f"{where} is no mapping; it must have lines `key: value`: {', '.join(hints)}.")
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            raise ValueError(
                f"{where}: there is no key '{name}'{f'; did you mean {near[0]}?' if near else ''} "
                f"These exist: {', '.join(hints)}."
            )
        kind = getattr(hints[name], "__origin__", hints[name])
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            quoted = " Quote it." if kind is str else ""
            raise ValueError(f"{where}: {name} is {value!r}; it must be {KINDS[kind]}.{quoted}")
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    try:
        return Hardware(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _check_memory(name: str, value: str) -> None:
    if not re.fullmatch(r"\d+([KMGTP]i?)?", value) or size_of(value) == 0:
        raise ValueError(f"{name} is '{value}'; it must be an amount like 16Gi or 500M.")


def _check_cpu(name: str, value: str) -> None:
    if not re.fullmatch(r"\d+(\.\d+)?|\d+m", value) or float(value.rstrip("m")) == 0:
        raise ValueError(f'{name} is \'{value}\'; it must be a number of processors like "4" or "500m".')


def _check_count(name: str, value: str) -> None:
    if not re.fullmatch(r"[1-9]\d*", value):
        raise ValueError(f"{name} is '{value}'; it must be a whole number of 1 or more.")


def _check_resource(name: str, value: str) -> None:
    if value and not RESOURCE.fullmatch(value):
        raise ValueError(f"{name} is '{value}'; it must name a resource like nvidia.com/gpu.")


def _check_selector(name: str, value: Mapping[Any, Any]) -> None:
    for label, text in value.items():
        if not isinstance(label, str) or not isinstance(text, str):
            raise ValueError(f"{name} has {label!r}: {text!r}; labels are texts, so quote what YAML reads as another.")
        if not LABEL.fullmatch(label) or not LABEL_VALUE.fullmatch(text):
            raise ValueError(f"{name} has {label!r}: {text!r}, which is no label that a node can have.")


def _check_tolerations(name: str, value: list[Any]) -> None:
    for toleration in value:
        if not isinstance(toleration, dict) or not toleration or set(toleration) - set(TOLERATION):
            raise ValueError(f"{name} has {toleration!r}; each is a mapping of {', '.join(TOLERATION)}.")
        operator, effect = toleration.get("operator", "Equal"), toleration.get("effect")
        if operator not in OPERATORS:
            raise ValueError(f"{name} has the operator {operator!r}; choose one of: {', '.join(OPERATORS)}.")
        if effect is not None and effect not in EFFECTS:
            raise ValueError(f"{name} has the effect {effect!r}; choose one of: {', '.join(EFFECTS)}.")
        if operator == "Exists" and toleration.get("value"):
            raise ValueError(f"{name} has a value beside the operator Exists, which tolerates every value: leave it.")
        if operator == "Equal" and not toleration.get("key"):
            raise ValueError(f"{name} has no key; the operator Exists without a key tolerates everything.")
        if "tolerationSeconds" in toleration and effect != "NoExecute":
            raise ValueError(f"{name} has tolerationSeconds, which only the effect NoExecute heeds.")


def _kind_of(setting: Setting) -> str:
    """The end of a setting's name, which says what it holds."""
    return next(end for end in SETTING_CHECKS if setting.name.endswith(end))


KINDS = {str: "a text", int: "a whole number", float: "a number", dict: "a mapping", list: "a list"}
CHECKS: dict[str, Callable[[str, Any], None]] = {
    "cpu": _check_cpu,
    "memory": _check_memory,
    "ephemeral_storage": _check_memory,
    "shared_memory": _check_memory,
    "node_selector": _check_selector,
    "tolerations": _check_tolerations,
    "accelerator": _check_resource,
}
SETTING_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "_cpu": _check_cpu,
    "_memory": _check_memory,
    "_node_selector": _check_selector,
    "_tolerations": _check_tolerations,
    "accelerator_type": _check_resource,
    "accelerator_count": _check_count,
}

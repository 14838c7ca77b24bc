"""The parameters of the pipeline: every knob of every step, checked before anything runs."""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import components
from components.descriptions import knob_descriptions
from components.launch import parse
from operations import profiles
from operations.network import refuse_vanishing_map
from operations.yaml_file import as_text

PLACES = {"folder": "FOLDER", "parquet": "FOLDER", "s3": "s3://BUCKET/PREFIX"}  # what stands for a missing location
ALL_OF_THEM = "`rankone parameters` lists all with what each does."


@dataclasses.dataclass(frozen=True)
class Knob:
    """One parameter of the pipeline.

    Attributes:
        name: as in `-p name=value`.
        kind: type of its values.
        default: value when nothing else is said.
        description: what it does; where that differs between steps, a line each, after their names.
        steps: names of the steps that it reaches.
    """

    name: str
    kind: Any
    default: Any
    description: str
    steps: tuple[str, ...]


def step_names() -> list[str]:
    """Every step of the pipeline: the folders of `components/`."""
    return sorted(path.parent.name for path in Path(components.__path__[0]).glob("*/params.py"))


def params_type(step: str) -> type:
    """The dataclass of a step's knobs."""
    return importlib.import_module(f"components.{step}.params").Params


def all_knobs() -> dict[str, Knob]:
    """Every knob of every step by name; one that several steps share is listed once."""
    knobs: dict[str, Knob] = {}
    told: dict[str, dict[str, list[str]]] = {}  # the steps, by the text that they have for a knob
    for step in step_names():
        kind = params_type(step)
        hints = get_type_hints(kind)
        texts = knob_descriptions(kind)
        for field in dataclasses.fields(kind):
            told.setdefault(field.name, {}).setdefault(texts.get(field.name, ""), []).append(step)
            steps = tuple(sorted(step for steps in told[field.name].values() for step in steps))
            knobs[field.name] = Knob(field.name, hints[field.name], field.default, described(told[field.name]), steps)
    return knobs


def described(told: Mapping[str, Iterable[str]]) -> str:
    """One text for a knob, from the steps that have each text for it: a line each where they are several."""
    if len(told) == 1:
        return next(iter(told))
    return "\n".join(f"{', '.join(steps)}: {text}" for text, steps in told.items())


def resolve(recipe: Mapping[str, Any], assignments: Iterable[str], reads_images: bool = True) -> dict[str, Any]:
    """The values that a recipe and `name=value` assignments give, parsed and checked as the steps will check them.

    Args:
        recipe: values by name, as a recipe file has them.
        assignments: texts like "epochs=3"; they win over the recipe.
        reads_images: as in `step_params`.

    Returns:
        Only what was given; all else keeps its default.

    Raises:
        ValueError: no such parameter (the message names those of like names), no value of its type, values that a
            step refuses together, or a network of which the images would leave no map.
    """
    knobs = all_knobs()
    texts = {name: as_text(name, value) for name, value in recipe.items()}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"'{assignment}' is no assignment; write -p name=value. {ALL_OF_THEM}")
        texts[name.strip()] = text
    for name in texts:
        if name not in knobs:
            raise ValueError(unknown(name, knobs))
    values = {name: parse(name, text, knobs[name].kind) for name, text in texts.items()}
    refuse_vanishing_map(step_params(values, reads_images))
    return values


def step_params(values: Mapping[str, Any], reads_images: bool = True) -> dict[str, Any]:
    """The `Params` of every step, by its name, when the pipeline runs with these values.

    Args:
        values: by the name of the parameter; defaults for the others.
        reads_images: whether the source must have its location; without, a word stands for one that is missing.

    Raises:
        ValueError: values that a step refuses.
    """
    knobs = all_knobs()
    if not reads_images and values.get("source") in PLACES and not values.get("location"):
        values = {**values, "location": PLACES[values["source"]]}
    return {
        step: params_type(step)(**{name: value for name, value in values.items() if step in knobs[name].steps})
        for step in step_names()
    }


def unknown(name: str, knobs: Mapping[str, Knob]) -> str:
    """What to say of a name that is no parameter."""
    settings = profiles.setting_names()
    if name in settings:
        return (
            f"{name} is no parameter but a setting of a profile; name one that has it: with --profile, which "
            "`rankone submit` and `rankone compile` take, or in the schedule."
        )
    near = " or ".join(difflib.get_close_matches(name, [*knobs, *settings]))
    return f"There is no parameter '{name}'{f'; did you mean {near}?' if near else '.'} {ALL_OF_THEM}"

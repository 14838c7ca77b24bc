"""Files that people write in YAML: recipes, profiles, schedules."""

import json
from pathlib import Path
from typing import Any, NoReturn

import yaml

MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


def read_yaml(path: Path) -> Any:
    """What a file says.

    Raises:
        ValueError: no UTF-8, no YAML, or a key that is no text or is there twice; names the file and the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), StrictLoader)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: its byte {error.start + 1} is no UTF-8; save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that no calendar has is a ValueError
        raise ValueError(f"{path} cannot be read: {_problem(error)}; correct it there.") from None


def named_file(kind: str, name: str, folder: Path) -> Path:
    """The YAML file of a recipe or profile, by its name in the folder of such or by its own path.

    Raises:
        ValueError: there is none; lists those of the folder.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else folder / f"{name}.yaml"
    if path.is_file():
        return path
    known = f"one of: {', '.join(names_in(folder))}"
    if is_path:
        raise ValueError(f"There is no file '{name}'; give the path of a {kind}, or {known}.")
    raise ValueError(f"Unknown {kind} '{name}'; choose {known}, or name a .yaml file.")


def names_in(folder: Path) -> list[str]:
    """Of the YAML files in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def as_text(key: str, value: Any) -> str:
    """A value of a file as `-p key=value` would give it: a text as it is, all else as JSON.

    Raises:
        ValueError: it is or has in it what JSON lacks, like a date; names the key and that.
    """

    def refuse(part: Any) -> NoReturn:
        raise ValueError(f"{key} has {part}, which YAML reads as a {type(part).__name__}; quote it.")

    return value if isinstance(value, str) else json.dumps(value, default=refuse)


class StrictLoader(yaml.SafeLoader):
    """YAML in which keys are texts, and a key that is there twice is an error: the first one would be dropped."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key for key, _ in node.value if key.tag != MERGE]
    names = [loader.construct_object(key) for key in keys]
    for key, name in zip(keys, names, strict=True):
        if not isinstance(name, str):
            written = key.value if isinstance(key, yaml.ScalarNode) else name
            raise yaml.constructor.ConstructorError(
                problem=f"the key {written} is no text; quote it", problem_mark=key.start_mark
            )
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(
                problem=f"the key '{name}' is there twice", problem_mark=key.start_mark
            )
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _problem(error: Exception) -> str:
    """What is wrong, on one line, after the number of the line where it is."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())

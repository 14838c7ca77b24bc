"""Recipes: named sets of pipeline parameters, one YAML file each in `recipes/`."""

from pathlib import Path
from typing import Any

from operations.yaml_file import named_file, names_in, read_yaml

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def recipe_names() -> list[str]:
    """The recipes that exist."""
    return names_in(FOLDER)


def load_recipe(name: str) -> dict[str, Any]:
    """The parameters of a recipe, by its name or by the path of a YAML file.

    Raises:
        ValueError: there is none of that name, or it is no flat mapping of parameters, or no YAML, or a parameter has
            no value.
    """
    path = named_file("recipe", name, FOLDER)
    recipe = read_yaml(path)
    if not isinstance(recipe, dict) or any(isinstance(value, dict) for value in recipe.values()):
        raise ValueError(f"{path} is no recipe; it must be a flat list of lines `parameter: value`.")
    for parameter, value in recipe.items():
        if value is None:
            raise ValueError(f"{path}: {no_value(parameter)}")
    return recipe


def no_value(parameter: str) -> str:
    """What to say of a parameter that a file names and gives no value."""
    return f"the parameter {parameter} has no value; give one, or leave it out."


def describe_recipe(name: str) -> str:
    """The first comment line of a recipe: what it is for."""
    first = (FOLDER / f"{name}.yaml").read_text().partition("\n")[0]
    return first.lstrip("# ")

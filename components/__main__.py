"""A step as a program: `python -m components pretrain --dataset=PATH --classifier=resnet18 ...`.

`python -m components.pretrain.step` with the same options is the same. This one looks at the plan first: a step that is
told to do nothing imports nothing, so that a run which is skipped takes no time to load PyTorch.
`python -m components pretrain --help` lists the options of a step.

Standard library only: every image carries this file.
"""

import ast
import dataclasses
import importlib
import inspect
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from components.launch import PLAN, SKIP, InputPath, OutputPath, Outputs, launch, text_of

STEPS = Path(__file__).parent
PATHS = {"InputPath": InputPath, "OutputPath": OutputPath}
HELP = {"-h", "--help"}
OPTIONS = {  # how an argument of a step is written, by its annotation
    "InputPath": "{name}=PATH (read)",
    "OutputPath": "{name}=PATH (written)",
    "InputText": "{name}=TEXT (optional)",
    "OutputText": "{name}=PATH (written, a text)",
    "PipelineParameters": "run.NAME=TEXT ... (parameters of the pipeline run)",
}


def main(arguments: list[str]) -> None:
    """Run the step that the first argument names with the others as its options.

    Raises:
        SystemExit: no step has that name; the message lists them.
    """
    known = sorted(path.parent.name for path in STEPS.glob("*/step.py"))
    if not arguments or arguments[0] not in known:
        usage = f"python -m components STEP --name=value ..., where STEP is one of: {', '.join(known)}"
        if arguments and arguments[0] in HELP:
            print(f"{usage}. STEP --help lists the options of one.")
            return
        given = f"'{arguments[0]}' is no step" if arguments else "No step is named"
        sys.exit(f"{given}; write {usage}.")
    step, options = arguments[0], arguments[1:]
    declared = declared_arguments(step)
    if HELP & set(options):
        print("\n".join([f"python -m components {step} --name=value ...", "", *option_lines(step, declared)]))
    elif PLAN not in declared and any(option.startswith(f"--{PLAN}={SKIP}") for option in options):
        params = importlib.import_module(f"components.{step}.params").Params
        launch(without_work(step, declared), params, arguments=options)
    else:
        sys.argv[1:] = options
        runpy.run_module(f"components.{step}.step", run_name="__main__", alter_sys=True)


def option_lines(step: str, declared: dict[str, str]) -> list[str]:
    """A line for every option of a step: its artifacts and texts, then its knobs with their defaults."""
    options = [f"  --{OPTIONS[kind].format(name=name)}" for name, kind in declared.items() if kind in OPTIONS]
    knobs = dataclasses.fields(importlib.import_module(f"components.{step}.params").Params)
    return [
        *options,
        "",
        *(f"  --{knob.name}={text_of(knob.default)}" for knob in knobs),
        "",
        "Knobs are shown with their defaults; `rankone parameters` says what each does.",
    ]


def declared_arguments(step: str) -> dict[str, str]:
    """The arguments of a step and how each is annotated, as its source says."""
    tree = ast.parse((STEPS / step / "step.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == step)
    return {each.arg: ast.unparse(each.annotation) for each in function.args.args if each.annotation}


def without_work(step: str, declared: dict[str, str]) -> Callable[..., Outputs]:
    """A function with the artifacts of a step, for a launcher that is not going to call it."""

    def never(**_: object) -> Outputs:
        raise AssertionError(f"{step} was to be skipped")

    artifacts = {name: PATHS[kind] for name, kind in declared.items() if kind in PATHS}
    never.__name__ = step
    never.__annotations__ = dict(artifacts)
    never.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in artifacts.items()]
    )
    return never


if __name__ == "__main__":
    main(sys.argv[1:])

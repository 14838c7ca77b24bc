"""From a command line to a step and back: reads the knobs and paths, runs the step, reports its outputs to KFP.

Standard library only: every image carries this file.
"""

import inspect
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any, NewType, NoReturn, get_args, get_origin, get_type_hints

from components.freed_memory import keep_freed_memory

InputPath = NewType("InputPath", Path)
OutputPath = NewType("OutputPath", Path)
FinalStatus = NewType("FinalStatus", dict[str, Any])  # how the steps ended that an exit handler waited for, by KFP
InputText = NewType("InputText", str)  # a text that an earlier step wrote
OutputText = NewType("OutputText", Path)  # where a step writes a text
PipelineParameters = NewType("PipelineParameters", dict[str, str])  # every parameter of the pipeline, as a text
Scalar = str | int | float | bool
Outputs = Mapping[str, Mapping[str, Scalar]]  # metadata of each output artifact, by its name

RESERVED = {"executor-input", "pipeline-run", "pipeline-task"}  # options of the launcher itself
PARAMETER = "run."  # begins the options that are parameters of the pipeline and no knobs of the step
PLAN = "plan"  # the option; how its value is or begins:
TRAIN, WITH, AGAIN, SKIP = "train", "train with ", "train again: ", "skip: "
LARGEST_WHOLE_NUMBER = 2**53  # up to which floating point holds every whole number
LISTED = "python -m components STEP --help lists the options of a step"
SKIPPED_KIND, SKIPPED_FORMAT = "skipped", 1  # of the folders that stand for what was not made
SKIPPED_PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Skipped</title>
<p style="font: 15px/1.55 system-ui, sans-serif; margin: 40px">Skipped: {reason}.</p>
"""


def launch(
    step: Callable[..., Outputs], params_type: type, every_rank: bool = False, arguments: list[str] | None = None
) -> None:
    """Run a step as a program: `python -m components STEP --dataset=PATH --epochs=3 ...`.

    The step's signature names its artifacts: `InputPath` and `OutputPath` arguments are paths on the command line,
    `InputText` and `OutputText` ones texts that steps hand on; `PipelineParameters` is given all `--run.name=value`.
    All other options are fields of `params_type`. Under KFP the outputs are reported in `executor_output.json`; in a
    shell their metadata is printed. The launcher adds what the step took: `step_seconds` by the clock and
    `step_cpu_seconds` of this process and its finished children. Bad input ends in one clear line and exit status 1;
    RANKONE_TRACEBACK=1 shows the rest.

    With `--plan="skip: <reason>"` a step that has no argument `plan` does nothing: its outputs are folders and pages
    that say why, which later steps need not understand. `train`, `train with <what>` and `train again: <what>` are the
    same to a step; to a cache they are other texts.

    Args:
        step: takes `params`, one path an artifact and its texts; returns the metadata of every output.
        params_type: frozen dataclass of the knobs.
        every_rank: under torchrun, run the step in every process; else the first one works and the others end.
        arguments: the command line; that of the process when None.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    if not (first or every_rank):
        return
    handler = signal.signal(signal.SIGTERM, _stop)
    try:
        options = _options(arguments if arguments is not None else sys.argv[1:])
        executor_input = json.loads(options.pop("executor-input", "null"))
        os.environ.setdefault("RANKONE_PIPELINE_RUN", options.pop("pipeline-run", ""))
        os.environ["RANKONE_PIPELINE_TASK"] = options.pop("pipeline-task", step.__name__)
        paths, texts = artifact_arguments(step), _take_texts(step, options)
        plan = TRAIN if PLAN in texts else check_plan(options.pop(PLAN, TRAIN))
        knobs = {name: text for name, text in options.items() if name not in paths}
        params = params_from(params_type, knobs)
        artifacts = _artifact_paths(paths, options)
        if first:
            _clear(artifacts, paths, under_kfp=executor_input is not None)
        started, cpu_started = time.monotonic(), _cpu_seconds()
        if plan.startswith(SKIP):
            made = {name: path for name, path in artifacts.items() if paths[name] is OutputPath}
            outputs: Outputs = _skip(plan.removeprefix(SKIP), made, executor_input) if first else {}
        else:
            keep_freed_memory()
            outputs = step(params, **artifacts, **texts, **final_status(step, executor_input))
        seconds = {  # the step's own work, without its start
            "step_seconds": round(time.monotonic() - started, 3),
            "step_cpu_seconds": round(_cpu_seconds() - cpu_started, 3),
        }
        if first:
            timed = {name: {**metadata, **seconds} for name, metadata in outputs.items()}
            _report(step.__name__, timed, artifacts, paths, executor_input)
    except (ValueError, OSError) as error:
        if os.environ.get("RANKONE_TRACEBACK"):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}; RANKONE_TRACEBACK=1 shows the whole way"
        print(f"{step.__name__}: {error}\n  ({where})", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, handler)


def artifact_arguments(step: Callable[..., Outputs]) -> dict[str, type]:
    """The artifacts of a step, by name: each is InputPath or OutputPath."""
    hints = get_type_hints(step)
    return {
        name: hints[name] for name in inspect.signature(step).parameters if hints.get(name) in (InputPath, OutputPath)
    }


def final_status(step: Callable[..., Outputs], executor_input: dict[str, Any] | None) -> dict[str, FinalStatus]:
    """The argument of an exit handler that takes how the steps ended; empty in a shell. KFP gives it to no other."""
    values = ((executor_input or {}).get("inputs") or {}).get("parameterValues") or {}
    hints = get_type_hints(step)
    names = [name for name in inspect.signature(step).parameters if hints.get(name) is FinalStatus]
    return {name: FinalStatus(values.get(name) or {}) for name in names}


def text_arguments(step: Callable[..., Outputs]) -> dict[str, type]:
    """The texts of a step, by name: each is InputText, OutputText or PipelineParameters."""
    hints = get_type_hints(step)
    kinds = (InputText, OutputText, PipelineParameters)
    return {name: hints[name] for name in inspect.signature(step).parameters if hints.get(name) in kinds}


def check_plan(plan: str) -> str:
    """The plan, if it is one.

    Raises:
        ValueError: it is none; says what would be.
    """
    if plan != TRAIN and not plan.startswith((WITH, AGAIN, SKIP)):
        starts = f"'{TRAIN}', '{WITH}...', '{AGAIN}...' or '{SKIP}...'"
        raise ValueError(f"plan is '{plan}'; it must be {starts}, with a reason.")
    return plan


def params_from(params_type: type, texts: Mapping[str, str]) -> Any:
    """Build the dataclass of knobs from texts, as a command line or a pipeline parameter gives them.

    Raises:
        ValueError: an unknown name or a text that is no value of the field's type; says which would do.
    """
    hints = get_type_hints(params_type)
    unknown = sorted(set(texts) - set(hints))
    if unknown:
        raise ValueError(f"Unknown option '{unknown[0]}'; choose from: {', '.join(sorted(hints))}.")
    return params_type(**{name: parse(name, text, hints[name]) for name, text in texts.items()})


def parse(name: str, text: str, kind: Any) -> Any:
    """One value from its text; lists are JSON, e.g. "[64, 128]". KFP writes a whole number as "3" or "3.0".

    Raises:
        ValueError: no value of its type, or a whole number that KFP would hand on as another.
    """
    try:
        value = _read(text, kind)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is '{text}'; it must be {_describe(kind)}.") from None
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and abs(number) > LARGEST_WHOLE_NUMBER:
            raise ValueError(
                f"{name} is '{text}'; Kubeflow Pipelines keeps numbers as floating point, which holds no larger whole "
                f"numbers exactly: give one from -{LARGEST_WHOLE_NUMBER} to {LARGEST_WHOLE_NUMBER}."
            )
    return value


def text_of(value: Any) -> str:
    """A knob's value as `parse` reads it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return json.dumps(value)
    return str(value)


def _read(text: str, kind: Any) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind is int:
        return _whole_number(text)
    if get_origin(kind) is tuple:
        return tuple(_read(str(item), get_args(kind)[0]) for item in json.loads(text))
    return kind(text)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _describe(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list like [1, 2]"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def _options(arguments: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("--"):
            raise ValueError(f"'{argument}' stands alone; write every option as --name=value; {LISTED}.")
        name, equals, text = argument[2:].partition("=")
        if not equals and name in RESERVED:
            text = next(remaining, "null")
        elif not equals:
            raise ValueError(f"Option '--{name}' has no value; write --{name}=value; {LISTED}.")
        if name in options:
            raise ValueError(f"Option '--{name}' is given twice.")
        options[name] = text
    return options


def _take_texts(step: Callable[..., Outputs], options: dict[str, str]) -> dict[str, Any]:
    """The texts of a step; what they need is taken out of the options."""
    texts: dict[str, Any] = {}
    for name, kind in text_arguments(step).items():
        if kind is PipelineParameters:
            given = [option for option in options if option.startswith(PARAMETER)]
            texts[name] = {option.removeprefix(PARAMETER): options.pop(option) for option in given}
        elif kind is OutputText:
            if not options.get(name):
                raise ValueError(f"No path for '{name}'; give --{name}=PATH.")
            texts[name] = Path(options.pop(name))
            texts[name].parent.mkdir(parents=True, exist_ok=True)
        else:
            texts[name] = check_plan(options.pop(name, TRAIN)) if name == PLAN else options.pop(name, "")
    return texts


def _skip(reason: str, outputs: dict[str, Path], executor_input: dict[str, Any] | None) -> Outputs:
    """Write what stands for the outputs of a step that has nothing to do: a page where KFP shows one, or a folder."""
    print(f"Skipped: {reason}", flush=True)
    listed = executor_input["outputs"].get("artifacts", {}) if executor_input else {}
    facts = {"kind": SKIPPED_KIND, "format_version": SKIPPED_FORMAT, "reason": reason}
    for name, path in outputs.items():
        if name in listed and listed[name]["artifacts"][0].get("type", {}).get("schemaTitle") == "system.HTML":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(SKIPPED_PAGE.format(reason=escape(reason)), encoding="utf-8")
        else:
            path.mkdir(parents=True)
            (path / "manifest.json").write_text(json.dumps(facts, indent=2) + "\n")
    return {name: {"skipped": reason} for name in outputs}


def _artifact_paths(paths: dict[str, type], options: dict[str, str]) -> dict[str, Path]:
    missing = [name for name in paths if not options.get(name)]
    if missing:
        raise ValueError(f"No path for '{missing[0]}'; give --{missing[0]}=PATH.")
    artifacts = {name: Path(options[name]) for name in paths}
    for name, kind in paths.items():
        if kind is InputPath and not artifacts[name].exists():
            raise ValueError(f"--{name}={artifacts[name]} does not exist; name what an earlier step wrote.")
    return artifacts


def _clear(artifacts: dict[str, Path], paths: dict[str, type], under_kfp: bool) -> None:
    """Make room for the outputs: under KFP what lies there is left from a failed attempt; a person's files are kept."""
    for name, path in artifacts.items():
        if paths[name] is OutputPath and path.exists():
            if not under_kfp:
                raise ValueError(f"--{name}={path} exists already; remove it or name another place.")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _report(
    step: str, outputs: Outputs, artifacts: dict[str, Path], paths: dict[str, type], executor_input: dict[str, Any]
) -> None:
    declared = {name for name, kind in paths.items() if kind is OutputPath}
    assert set(outputs) == declared, f"{step} reports {sorted(outputs)}; its signature declares {sorted(declared)}"
    for name in declared:
        assert artifacts[name].exists(), f"{step} reports '{name}' and did not write {artifacts[name]}"
    if executor_input is None:
        print(json.dumps({name: dict(metadata) for name, metadata in outputs.items()}, indent=2))
        return
    report = {}
    for name, listed in executor_input["outputs"].get("artifacts", {}).items():
        artifact = listed["artifacts"][0]
        report[name] = {"artifacts": [artifact | {"metadata": dict(outputs[name])}]}
    path = Path(executor_input["outputs"]["outputFile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"artifacts": report}))


def _cpu_seconds() -> float:
    """What this process and those of its children that have ended took of the processors so far."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _stop(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)

"""From an artifact signature and a dataclass of knobs to a KFP container component."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.descriptions import knob_descriptions
from components.launch import PARAMETER
from components.settings import Setting


def container_component(
    image: str, params: type, every_parameter: bool = False
) -> Callable[[Callable[..., None]], BaseComponent]:
    """Declare the step in whose folder this is called; its knobs come from `params`, its artifacts from the signature.

        @container_component(image="training", params=Params)
        def pretrain(dataset: Input[Dataset], backbone: Output[Model], plan: str): ...

    The component runs `python -m components pretrain` with one `--name=value` for every artifact path, text and
    knob.

    Args:
        image: name of the image; `rankone compile` pins it to a tag or digest.
        params: frozen dataclass; each field becomes an input with its default and the text under `Attributes:`.
        every_parameter: give it the knobs of all other steps too, as `--run.name=value`.
    """

    def decorate(declaration: Callable[..., None]) -> BaseComponent:
        passed = list(inspect.signature(declaration).parameters.values())
        knobs, texts = knob_parameters(params), knob_descriptions(params)
        others = knobs_beside(params) if every_parameter else {}
        further = [knob for knob, _ in others.values()]
        texts |= {name: text for name, (_, text) in others.items()}

        def container(*values: Any, **named: Any) -> dsl.ContainerSpec:
            given = inspect.Signature([*passed, *knobs, *further]).bind(*values, **named).arguments
            told = [each for each in passed if each.annotation is not dsl.PipelineTaskFinalStatus]  # it is in {{$}}
            options = [f"--{each.name}={getattr(given[each.name], 'path', given[each.name])}" for each in told]
            options += [f"--{knob.name}={given[knob.name]}" for knob in knobs]
            options += [f"--{PARAMETER}{knob.name}={given[knob.name]}" for knob in further]
            options += [f"--pipeline-run={dsl.PIPELINE_JOB_ID_PLACEHOLDER}"]
            options += [f"--pipeline-task={dsl.PIPELINE_TASK_NAME_PLACEHOLDER}", "--executor-input", "{{$}}"]
            command = ["python", "-m", "components", declaration.__name__]
            return dsl.ContainerSpec(image=image, command=command, args=options)

        described = _disguise(container, declaration, [*passed, *knobs, *further], texts)
        return dsl.container_component(described)

    return decorate


def knob_parameters(params: type) -> list[inspect.Parameter]:
    """The knobs of a step as parameters with KFP's types; tuples become lists."""
    hints = get_type_hints(params)
    kinds = {name: list if get_origin(kind) is tuple else kind for name, kind in hints.items()}
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=list(field.default) if isinstance(field.default, tuple) else field.default,
            annotation=kinds[field.name],
        )
        for field in dataclasses.fields(params)
    ]


def knobs_beside(params: type) -> dict[str, tuple[inspect.Parameter, str]]:
    """The knobs of every step that are not in `params`, by name: each as a parameter, and what it does."""
    own = {field.name for field in dataclasses.fields(params)}
    found: dict[str, tuple[inspect.Parameter, str]] = {}
    for path in sorted(Path(__file__).parent.glob("*/params.py")):
        kind = importlib.import_module(f"components.{path.parent.name}.params").Params
        texts = knob_descriptions(kind)
        for knob in knob_parameters(kind):
            if knob.name not in own:
                found.setdefault(knob.name, (knob, texts.get(knob.name, "")))
    return found


def with_knobs_of(
    *steps: BaseComponent, settings: Sequence[Setting] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a pipeline every knob of its steps as a parameter; a name that several steps share is one parameter.

    The decorated function receives `knobs`: called with a step, it returns that step's arguments; and the settings, by
    name.

    Args:
        steps: of the pipeline.
        settings: further parameters, that belong to no step.

    Raises:
        ValueError: two steps spell a knob alike and mean another type or default, or a setting is called as a knob.
    """

    def decorate(pipeline: Callable[..., None]) -> Callable[..., None]:
        parameters: dict[str, inspect.Parameter] = {}
        descriptions: dict[str, str] = {}
        for step in steps:
            for knob in knobs_of(step):
                known = parameters.setdefault(knob.name, knob)
                if known != knob:
                    raise ValueError(f"{step.name} has the knob '{knob}'; another step has '{known}'. Rename one.")
                descriptions[knob.name] = step.component_spec.inputs[knob.name].description or ""
        for setting in settings:
            if setting.name in parameters:
                raise ValueError(f"The setting '{setting.name}' is called as a knob of a step. Rename one.")
            parameters[setting.name] = inspect.Parameter(
                setting.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=setting.default,
                annotation=setting.kind,
            )
            descriptions[setting.name] = setting.description

        def body(*values: Any, **named: Any) -> None:
            given = inspect.Signature(list(parameters.values())).bind(*values, **named).arguments
            pipeline(
                lambda step: {knob.name: given[knob.name] for knob in knobs_of(step)},
                {setting.name: given[setting.name] for setting in settings},
            )

        return _disguise(body, pipeline, list(parameters.values()), descriptions)

    return decorate


def knobs_of(step: BaseComponent) -> list[inspect.Parameter]:
    """The knobs of a declared step: its inputs but the artifacts."""
    signature = inspect.signature(step.pipeline_func)
    return [parameter for parameter in signature.parameters.values() if parameter.default is not parameter.empty]


def _disguise(
    function: Callable[..., Any],
    original: Callable[..., Any],
    parameters: list[inspect.Parameter],
    texts: dict[str, str],
) -> Callable[..., Any]:
    """Let KFP see `function` under the name and text of `original`, with these parameters and their descriptions."""
    function.__name__ = function.__qualname__ = original.__name__
    arguments = "".join(f"    {name}: {text}\n" for name, text in texts.items())
    function.__doc__ = f"{inspect.getdoc(original)}\n\nArgs:\n{arguments}"
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function

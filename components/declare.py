"""From an artifact signature and a dataclass of knobs to a KFP container component."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_origin, get_type_hints

import docstring_parser
from kfp import dsl
from kfp.dsl.base_component import BaseComponent


def container_component(image: str, params: type) -> Callable[[Callable[..., None]], BaseComponent]:
    """Declare the step in whose folder this is called; its knobs come from `params`, its artifacts from the signature.

        @container_component(image="training", params=Params)
        def pretrain(dataset: Input[Dataset], backbone: Output[Model]): ...

    The component runs `python -m components.pretrain.step` with one `--name=value` for every artifact path and knob.

    Args:
        image: name of the image; `rankone compile` pins it to a tag or digest.
        params: frozen dataclass; each field becomes an input with its default and the text under `Attributes:`.
    """

    def decorate(declaration: Callable[..., None]) -> BaseComponent:
        artifacts = list(inspect.signature(declaration).parameters.values())
        knobs = knob_parameters(params)

        def container(*values: Any, **named: Any) -> dsl.ContainerSpec:
            given = inspect.Signature(artifacts + knobs).bind(*values, **named).arguments
            options = [f"--{artifact.name}={given[artifact.name].path}" for artifact in artifacts]
            options += [f"--{knob.name}={given[knob.name]}" for knob in knobs]
            options += [f"--pipeline-run={dsl.PIPELINE_JOB_ID_PLACEHOLDER}", "--executor-input", "{{$}}"]
            command = ["python", "-m", f"components.{declaration.__name__}.step"]
            return dsl.ContainerSpec(image=image, command=command, args=options)

        container.__name__ = container.__qualname__ = declaration.__name__
        container.__doc__ = f"{inspect.getdoc(declaration)}\n\nArgs:\n" + "".join(
            f"    {name}: {text}\n" for name, text in knob_descriptions(params).items()
        )
        container.__signature__ = inspect.Signature(artifacts + knobs)  # type: ignore[attr-defined]
        container.__annotations__ = {parameter.name: parameter.annotation for parameter in artifacts + knobs}
        return dsl.container_component(container)

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


def knob_descriptions(params: type) -> dict[str, str]:
    """What each knob does, from the `Attributes:` of the dataclass's docstring."""
    described = docstring_parser.parse(inspect.getdoc(params) or "", style=docstring_parser.DocstringStyle.GOOGLE)
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in described.params}

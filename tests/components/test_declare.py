import dataclasses

import pytest
from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output, OutputPath

from components.declare import container_component, with_knobs_of
from components.settings import Setting
from operations.parameters import all_knobs


@dataclasses.dataclass(frozen=True)
class Params:
    """Knobs.

    Attributes:
        epochs: passes over
            the images.
        channels: of each layer.
    """

    epochs: int = 3
    channels: tuple[int, ...] = (64, 128)


@container_component(image="an-image", params=Params)
def learn(dataset: Input[Dataset], model: Output[Model]):
    """Learns a model."""


def test_a_component_has_the_artifacts_and_every_knob_once() -> None:
    specification = learn.component_spec
    assert set(specification.inputs) == {"dataset", "epochs", "channels"}
    assert set(specification.outputs) == {"model"}
    assert specification.inputs["epochs"].default == 3
    assert specification.inputs["epochs"].description == "passes over the images."
    assert specification.inputs["channels"].type == "List"
    assert specification.description == "Learns a model."


def test_the_command_line_is_that_of_the_step() -> None:
    container = learn.component_spec.implementation.container
    assert container.image == "an-image"
    assert container.command == ["python", "-m", "components", "learn"]
    assert container.args[:4] == [
        "--dataset={{$.inputs.artifacts['dataset'].path}}",
        "--model={{$.outputs.artifacts['model'].path}}",
        "--epochs={{$.inputs.parameters['epochs']}}",
        "--channels={{$.inputs.parameters['channels']}}",
    ]
    assert container.args[-2:] == ["--executor-input", "{{$}}"]


@container_component(image="an-image", params=Params, every_parameter=True)
def compare(model: Input[Model], plan: OutputPath(str), note: str):  # type: ignore[valid-type]
    """Compares."""


def test_a_text_is_passed_as_it_is_and_as_a_path_where_it_is_written() -> None:
    specification = compare.component_spec
    assert specification.inputs["note"].type == "String"
    assert (specification.outputs["plan"].type, set(specification.outputs)) == ("String", {"plan"})
    assert specification.implementation.container.args[:3] == [
        "--model={{$.inputs.artifacts['model'].path}}",
        "--plan={{$.outputs.parameters['plan'].output_file}}",
        "--note={{$.inputs.parameters['note']}}",
    ]


def test_a_step_may_be_given_the_knobs_of_all_others_beside_its_own() -> None:
    found = {argument.partition("=")[0] for argument in compare.component_spec.implementation.container.args}
    own = {"epochs", "channels"}
    assert {f"--{name}" for name in own} < found
    assert {f"--run.{name}" for name in all_knobs() if name not in own} < found
    assert not {f"--run.{name}" for name in own} & found
    assert compare.component_spec.inputs["minimum_gain"].description


@dataclasses.dataclass(frozen=True)
class OtherDefault:
    epochs: int = 4
    channels: tuple[int, ...] = (64,)


@container_component(image="an-image", params=OtherDefault)
def learn_otherwise(model: Output[Model]):
    """Learns with another default."""


def test_a_pipeline_takes_every_knob_of_its_steps() -> None:
    @dsl.pipeline(name="a-pipeline")
    @with_knobs_of(learn_otherwise)
    def pipeline(knobs, settings):
        assert not settings
        learn_otherwise(**knobs(learn_otherwise))

    assert pipeline.component_spec.inputs["epochs"].default == 4
    assert pipeline.component_spec.inputs["channels"].default == [64]
    task = pipeline.pipeline_spec.root.dag.tasks["learn-otherwise"]
    assert task.inputs.parameters["epochs"].component_input_parameter == "epochs"


def test_one_name_cannot_mean_two_things() -> None:
    with pytest.raises(
        ValueError, match="learn-otherwise has the knob 'epochs: int = 4'; another step has 'epochs: int = 3'"
    ):
        with_knobs_of(learn, learn_otherwise)(lambda knobs, settings: None)


def test_a_setting_is_a_parameter_that_belongs_to_no_step() -> None:
    colour = Setting("colour", dict, {"red": "1"}, "of the nodes.")

    @dsl.pipeline(name="a-pipeline")
    @with_knobs_of(learn_otherwise, settings=[colour])
    def pipeline(knobs, settings):
        assert list(settings) == ["colour"]
        assert "colour" not in knobs(learn_otherwise)
        learn_otherwise(**knobs(learn_otherwise))

    assert pipeline.component_spec.inputs["colour"].default == {"red": "1"}
    assert pipeline.component_spec.inputs["colour"].description == "of the nodes."


def test_a_setting_cannot_be_called_as_a_knob() -> None:
    with pytest.raises(ValueError, match="'epochs' is called as a knob"):
        with_knobs_of(learn, settings=[Setting("epochs", int, 3, "")])(lambda knobs, settings: None)

"""detect_changes, as KFP sees it."""

from kfp.dsl import HTML, Dataset, Input, Output, OutputPath

from components.declare import container_component
from components.detect_changes.params import Params


@container_component(image="rankone-evaluation", params=Params, every_parameter=True)
def detect_changes(
    dataset: Input[Dataset],
    changes: Output[HTML],
    plan: OutputPath(str),  # type: ignore[valid-type]
    made_from: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Compares data, parameters and code with those of the champion: is there anything to train on?

    What it finds is the plan of all later steps. Where they have nothing to do, they end in seconds.
    """

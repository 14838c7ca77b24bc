"""What evaluate takes and gives, told to KFP."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.declare import container_component
from components.evaluate.params import Params


@container_component(image="rankone-evaluation", params=Params)
def evaluate(
    dataset: Input[Dataset],
    features: Input[Artifact],
    clusters: Input[Artifact],
    model: Input[Model],
    tuned_model: Input[Model],
    evaluation: Output[Artifact],
    report: Output[HTML],
    plan: str,
) -> None:
    """Measures the test images after every stage, finds the similarity to trust, and writes the report.

    The only step that looks at test images.
    """

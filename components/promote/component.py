"""promote, as KFP sees it."""

from kfp.dsl import HTML, Artifact, Input, Model, Output

from components.declare import container_component
from components.promote.params import Params


@container_component(image="rankone-registry", params=Params)
def promote(
    tuned_model: Input[Model],
    evaluation: Input[Artifact],
    report: Input[HTML],
    decision: Output[Artifact],
    verdict_page: Output[HTML],
    plan: str,
    made_from: str,
) -> None:
    """Register the model in MLflow, and move the alias `champion` to it if it earns it.

    A model that is refused is registered as well, without the alias, so that a person can decide otherwise.
    """

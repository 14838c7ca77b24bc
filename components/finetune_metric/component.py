"""What finetune_metric consumes and produces."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.declare import container_component
from components.finetune_metric.params import Params


@container_component(image="rankone-training", params=Params)
def finetune_metric(dataset: Input[Dataset], clusters: Input[Artifact], model: Output[Model], plan: str) -> None:
    """Draw the embedding network to the adjusted features, then train it with the loss that suits the classes."""

"""What finetune_softmax consumes and produces."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.declare import container_component
from components.finetune_softmax.params import Params


@container_component(image="rankone-training", params=Params)
def finetune_softmax(
    dataset: Input[Dataset],
    backbone: Input[Model],
    features: Input[Artifact],
    model: Input[Model],
    tuned_model: Output[Model],
    plan: str,
) -> None:
    """Put a softmax layer over the classes on the embedding and fine-tune the whole network."""

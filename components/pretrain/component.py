"""What pretrain consumes and produces."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.declare import container_component
from components.pretrain.params import Params


@container_component(image="rankone-training", params=Params)
def pretrain(dataset: Input[Dataset], backbone: Output[Model], features: Output[Artifact], plan: str) -> None:
    """Fine-tune an image classifier on the training images, and integrate its features into one vector an image."""

"""What co_cluster consumes and produces."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components.co_cluster.params import Params
from components.declare import container_component


@container_component(image="rankone-evaluation", params=Params)
def co_cluster(dataset: Input[Dataset], features: Input[Artifact], clusters: Output[Artifact], plan: str) -> None:
    """Group images and feature dimensions together and draw similar features closer: what the network learns from."""

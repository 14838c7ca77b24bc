"""What prepare_data takes and gives, told to KFP."""

from kfp.dsl import HTML, Dataset, Output

from components.declare import container_component
from components.prepare_data.params import Params


@container_component(image="rankone-data", params=Params)
def prepare_data(dataset: Output[Dataset], data_report: Output[HTML]) -> None:
    """Reads images from a source, checks them, splits them, and writes the store that every later step reads.

    What is unfit is counted, named in the report and left out.
    """

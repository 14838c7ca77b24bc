"""announce, as KFP sees it."""

from kfp.dsl import PipelineTaskFinalStatus

from components.announce.params import Params
from components.declare import container_component


@container_component(image="rankone-registry", params=Params)
def announce(status: PipelineTaskFinalStatus) -> None:
    """Tell one receiver, by a webhook, how the run ended, failures too, and end its records in MLflow.

    The exit handler of the pipeline: it runs whatever became of the steps, and its own failure is none of the run's.
    """

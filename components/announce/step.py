"""announce: tells one receiver, and MLflow, how the run ended."""

from components.announce.params import Params
from components.launch import FinalStatus, Outputs, launch
from retrieval import announcement
from retrieval.news import Ending
from retrieval.tracking import pipeline_run


def announce(params: Params, status: FinalStatus) -> Outputs:
    """Post one message, and end the run's records, or say why not; neither fails anything."""
    ending = Ending(str(status.get("state") or ""), str((status.get("error") or {}).get("message") or ""))
    key = pipeline_run()
    for listener, told in (
        ("The receiver", lambda: announcement.announce(key, params.webhook_format, ending)),
        ("MLflow", lambda: announcement.end_in_mlflow(key, ending.state)),
    ):
        try:
            if said := told():
                print(said, flush=True)
        except Exception as error:  # of any kind: the run has ended, and its models are where they belong
            print(f"{listener} was not told, for {type(error).__name__} came in between.", flush=True)
    return {}


if __name__ == "__main__":
    launch(announce, Params)

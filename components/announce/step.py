"""announce: tells one receiver how the run ended."""

from components.announce.params import Params
from components.launch import FinalStatus, Outputs, launch
from retrieval import announcement
from retrieval.news import Ending
from retrieval.tracking import pipeline_run


def announce(params: Params, status: FinalStatus) -> Outputs:
    """Post one message, or say why not; a message that is not taken fails nothing."""
    ending = Ending(str(status.get("state") or ""), str((status.get("error") or {}).get("message") or ""))
    try:
        print(announcement.announce(pipeline_run(), params.webhook_format, ending), flush=True)
    except Exception as error:  # of any kind: the run has ended, and its models are where they belong
        print(f"The receiver was not told, for {type(error).__name__} came in between.", flush=True)
    return {}


if __name__ == "__main__":
    launch(announce, Params)

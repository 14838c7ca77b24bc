"""Tells MLflow and one receiver how a pipeline run ended: once, and never at the run's expense."""

import os

from retrieval.news import FORMATS, Ending, news_of
from retrieval.run_records import STATUS_OF, end_records, pipeline_page, records_of, tag_run
from retrieval.tracking import TrackingError
from retrieval.webhook import ADDRESS, ATTEMPTS, DeliveryError, deliver

ANNOUNCED = "rankone.announced"  # tag of the pipeline run: the outcome that was posted


def end_in_mlflow(key: str, state: str) -> str:
    """End the records of a pipeline run, which no step of it can: a step that was killed could not say so.

    Args:
        key: of the pipeline run.
        state: of it, by whoever ran it; empty where nobody says, and nothing is done.

    Returns:
        One sentence on what was left open, or on the error; empty where all was as it should be.
    """
    if not key or state not in STATUS_OF:
        return ""
    try:
        left = end_records(key, state)
    except (TrackingError, ValueError) as error:
        return f"MLflow was not told how the run ended, and shows it as running: {error}"
    return f"Left open in MLflow and ended there as KILLED: {', '.join(left)}." if left else ""


def announce(key: str, webhook_format: str, ending: Ending, attempts: int = ATTEMPTS) -> str:
    """Post the outcome of a pipeline run to RANKONE_WEBHOOK_URL; nothing where that is empty.

    The outcome that was posted is a tag of the pipeline run, so that a second attempt posts nothing. A run that failed,
    was tried again and went well is posted twice: the first message is not true any more.

    Args:
        key: of the pipeline run.
        webhook_format: a name of news.FORMATS.
        ending: what whoever ran it says.
        attempts: at most.

    Returns:
        One sentence on what became of it; errors are in it too, and the address is not.
    """
    address = os.environ.get(ADDRESS, "").strip()
    if not address:
        return f"Nobody is told of it: {ADDRESS} is not set."
    records, trouble = None, ""
    try:
        records = records_of(key) if key else None
    except (TrackingError, ValueError) as error:
        trouble = f"the run's records in MLflow cannot be read: {error}"
    news = news_of(key, records, ending, pipeline_page(key), trouble)
    if records and records.tags.get(ANNOUNCED) == news.outcome:
        return f"The receiver was told before that this run ended as {news.outcome}."
    try:
        deliver(address, FORMATS[webhook_format](news), attempts)
    except (DeliveryError, ValueError) as error:
        return f"The receiver was not told that this run ended as {news.outcome}: {error}."
    try:
        if records:
            tag_run(records.run_id, {ANNOUNCED: news.outcome})
    except (TrackingError, ValueError) as error:
        return f"The receiver was told: {news.headline}. It is told again if this is tried again: {error}"
    return f"The receiver was told: {news.headline}."

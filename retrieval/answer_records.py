"""Where the answers of a registered model are found again: with the run that registered it, one file an evaluation."""

from pathlib import Path

from retrieval.answers import Answers, load_answers, save_answers
from retrieval.registry import ModelVersion, fetch_file, keep_file
from retrieval.tracking import exchange_folder


def record_answers(found: ModelVersion, answers: Answers) -> None:
    """Keep the answers of a version's model; those of another evaluation stay.

    Raises:
        TrackingError: MLflow refused it.
    """
    with exchange_folder() as temporary:
        path = Path(temporary) / "answers.parquet"
        save_answers(path, answers)
        keep_file(found, path, _name(answers.evaluation_digest))


def find_answers(found: ModelVersion, evaluation_digest: str) -> Answers | None:
    """The recorded answers of a version's model to the queries of one evaluation.

    None where none are recorded, or where what is recorded cannot be read or is of another model: they can be had again
    by scoring the model.
    """
    with exchange_folder() as temporary:
        path = fetch_file(found, _name(evaluation_digest), Path(temporary))
        if path is None:
            return None
        try:
            answers = load_answers(path)
        except ValueError as error:
            print(f"The recorded answers of version {found.version} are left aside: {error}", flush=True)
            return None
    fits = answers.evaluation_digest == evaluation_digest and found.model_digest in ("", answers.model_digest)
    return answers if fits else None


def _name(evaluation_digest: str) -> str:
    return f"answers/{evaluation_digest}.parquet"

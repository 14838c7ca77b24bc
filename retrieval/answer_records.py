"""Where the answers of a registered model, and pictures of what it was asked, are found again.

With the run that registered it, one file an evaluation each.
"""

from pathlib import Path

from retrieval.answers import Answers, load_answers, save_answers
from retrieval.pictures import load_pictures
from retrieval.registry import ANSWERS, PICTURES, ModelVersion, fetch_file, keep_file, kept_files
from retrieval.tracking import exchange_folder

SUFFIX = ".parquet"


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


def evaluations_of(found: ModelVersion) -> list[str]:
    """Digests of the evaluations for which answers of a version are recorded, sorted."""
    files = (Path(file) for file in kept_files(found, ANSWERS))
    return sorted(file.stem for file in files if file.suffix == SUFFIX)


def record_pictures(found: ModelVersion, evaluation_digest: str, path: Path) -> None:
    """Keep a file of pictures with a version.

    Raises:
        TrackingError: MLflow refused it.
    """
    keep_file(found, path, f"{PICTURES}/{evaluation_digest}{SUFFIX}")


def find_pictures(found: ModelVersion, evaluation_digest: str) -> dict[str, bytes]:
    """The pictures that are kept with a version of an evaluation's test images, by sha256; none where they are gone."""
    with exchange_folder() as temporary:
        path = fetch_file(found, f"{PICTURES}/{evaluation_digest}{SUFFIX}", Path(temporary))
        try:
            return load_pictures(path) if path else {}
        except ValueError as error:
            print(f"The pictures of version {found.version} are left aside: {error}", flush=True)
            return {}


def _name(evaluation_digest: str) -> str:
    return f"{ANSWERS}/{evaluation_digest}{SUFFIX}"

"""The evaluation artifact: what was measured of a model on the test images. Read by the gate, so it needs no torch."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.manifest import Manifest, digest_of, read_manifest, write_manifest

KIND, FORMAT_VERSION = "evaluation", 1
EVALUATION, QUERIES = "evaluation.json", "queries.parquet"
NEIGHBOURS = 8  # kept of each query
QUERY_SCHEMA = pa.schema(
    {
        "query": pa.int64(),  # id of the test image in the dataset's index
        "label": pa.int64(),
        "class_name": pa.string(),
        "nearest": pa.int64(),  # id of the most similar other test image
        "nearest_label": pa.int64(),
        "similarity": pa.float32(),  # cosine of the two
        "correct": pa.bool_(),
        "neighbours": pa.list_(pa.int64()),  # ids, most similar first; NEIGHBOURS of them or all there are
        "neighbour_similarities": pa.list_(pa.float32()),
    }
)


@dataclass(frozen=True)
class Stage:
    """How well the images are found by what one step made.

    Attributes:
        name: the step.
        recall_at_1: test images among test images, the image itself excluded.
        recall_at_1_low: lower end of its 95 % interval, resampled by class.
        recall_at_1_high: upper end.
        recall_at_1_to_train: test images against the training images; None when they share no class.
        map_at_r: test among test.
        dimension: length of a vector.
    """

    name: str
    recall_at_1: float
    recall_at_1_low: float
    recall_at_1_high: float
    recall_at_1_to_train: float | None
    map_at_r: float
    dimension: int


@dataclass(frozen=True)
class CurvePoint:
    """What accepting every answer at least this similar would mean: how many are right, and how many are accepted."""

    similarity: float
    precision: float
    coverage: float


@dataclass(frozen=True)
class Acceptance:
    """The similarity from which an answer may be trusted: chosen on validation queries, then measured on test queries.

    Attributes:
        level: the precision asked for.
        reached: whether some similarity gives it on the validation queries.
        value: that similarity; None when not reached.
        validation_queries: how many it was chosen on.
        validation_precision: share of right answers among those accepted there; None when not reached.
        validation_coverage: share of queries accepted there; 0 when not reached.
        precision: the same on the test queries; None when nothing is accepted.
        coverage: the same on the test queries.
        validation_curve: the trade on the validation queries, by rising similarity.
        test_curve: the trade on the test queries; nothing is chosen by it.
    """

    level: float
    reached: bool
    value: float | None
    validation_queries: int
    validation_precision: float | None
    validation_coverage: float
    precision: float | None
    coverage: float
    validation_curve: tuple[CurvePoint, ...] = ()
    test_curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class ClassRecall:
    """R@1 of the queries of one class."""

    class_name: str
    queries: int
    recall_at_1: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model. Test images are searched among the other test images unless a name says `to_train`.

    Attributes:
        evaluation_digest: of the task; see `evaluation_digest`. Only numbers of one digest may be compared.
        protocol: the split and the gallery in words.
        queries: test images that were searched for.
        queries_without_positive: test images left out because no other image of their class is in the gallery.
        classes: classes among the queries.
        recall_at_1: share of queries whose nearest other test image is of their class; likewise at 2, 4 and 8.
        recall_at_1_low: lower end of its 95 % interval, resampled by class.
        recall_at_1_high: upper end.
        map_at_r: mean average precision at R (Musgrave et al., ECCV 2020).
        r_precision: share of right ones among the nearest R, R being the other images of the class.
        macro_recall_at_1: R@1 averaged by class.
        pessimistic_recall_at_1: R@1 were every tie decided wrongly.
        ties: queries whose nearest images tie.
        threshold: the similarity from which an answer may be trusted.
        stages: R@1 after each step, in their order; the last is the model.
        recall_by_class: worst class first.
        model_digest: of the model measured.
        dataset_digest: of the dataset.
        versions: of what computed it.
    """

    evaluation_digest: str
    protocol: str
    queries: int
    queries_without_positive: int
    classes: int
    recall_at_1: float
    recall_at_1_low: float
    recall_at_1_high: float
    recall_at_2: float
    recall_at_4: float
    recall_at_8: float
    map_at_r: float
    r_precision: float
    macro_recall_at_1: float
    pessimistic_recall_at_1: float
    ties: int
    threshold: Acceptance
    stages: tuple[Stage, ...]
    recall_by_class: tuple[ClassRecall, ...]
    model_digest: str
    dataset_digest: str
    versions: dict[str, str]


def evaluation_digest(protocol: str, images: Iterable[tuple[str, str]]) -> str:
    """Digest of a retrieval task: equal for the same images, classes and protocol, whatever the model or image size.

    Args:
        protocol: the split and the gallery in words.
        images: sha256 of the full-size pixels and class name of every test image; their order does not matter.
    """
    return digest_of({"protocol": protocol, "images": sorted([sha256, name] for sha256, name in images)})


def save_evaluation(
    folder: Path, evaluation: Evaluation, queries: pa.Table, made_from: dict[str, str] | None = None
) -> Manifest:
    """Write an evaluation folder.

    Args:
        folder: made when missing.
        evaluation: the numbers.
        queries: table of QUERY_SCHEMA, one row a query.
        made_from: digest of each artifact it was measured on, by name.

    Raises:
        ValueError: the table does not have one row a query, or a number is not finite.
    """
    if len(queries) != evaluation.queries:
        raise ValueError(f"{len(queries)} rows for {evaluation.queries} queries; the table needs one row a query.")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(evaluation), indent=2, sort_keys=True, allow_nan=False)
    (folder / EVALUATION).write_text(text + "\n", encoding="utf-8")
    pq.write_table(queries.select(QUERY_SCHEMA.names).cast(QUERY_SCHEMA), folder / QUERIES)
    return write_manifest(folder, KIND, FORMAT_VERSION, made_from)


def load_evaluation(folder: Path) -> Evaluation:
    """Read the numbers of an evaluation folder.

    Raises:
        ValueError: it is no evaluation, of another format, or damaged; the file is named.
    """
    read_manifest(folder, KIND, FORMAT_VERSION)
    try:
        return _evaluation_from(json.loads((folder / EVALUATION).read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / EVALUATION} cannot be read: {error}. Run evaluate again.") from error


def load_queries(folder: Path) -> pa.Table:
    """Read the table of QUERY_SCHEMA of an evaluation folder, one row a query.

    Raises:
        ValueError: it is no evaluation, of another format, or damaged; the file is named.
    """
    read_manifest(folder, KIND, FORMAT_VERSION)
    return pq.read_table(folder / QUERIES)


def installed_versions() -> dict[str, str]:
    """Versions of what decides the numbers: Python, torch, numpy, faiss and rankone itself."""
    found = {"python": python_version()}
    for name, packages in {
        "torch": ("torch",),
        "numpy": ("numpy",),
        "faiss": ("faiss-cpu", "faiss-gpu"),
        "rankone": ("rankone",),
    }.items():
        found[name] = next((text for text in map(_version, packages) if text), "not installed")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _evaluation_from(values: dict[str, Any]) -> Evaluation:
    threshold = dict(values["threshold"])
    for curve in ("validation_curve", "test_curve"):
        threshold[curve] = tuple(CurvePoint(**point) for point in threshold[curve])
    return Evaluation(
        **values
        | {
            "threshold": Acceptance(**threshold),
            "stages": tuple(Stage(**stage) for stage in values["stages"]),
            "recall_by_class": tuple(ClassRecall(**recall) for recall in values["recall_by_class"]),
        }
    )

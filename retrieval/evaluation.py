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

from retrieval.answers import Answers, save_answers
from retrieval.manifest import Manifest, digest_of, read_manifest, write_manifest
from retrieval.pictures import save_pictures
from retrieval.thresholds import Trials

KIND, FORMAT_VERSION = "evaluation", 3
EVALUATION, QUERIES = "evaluation.json", "queries.parquet"
ANSWERS, CHAMPION_ANSWERS, PICTURES = "answers.parquet", "champion_answers.parquet", "pictures.parquet"
IMAGES, REFERENCE = "images.parquet", "reference.parquet"  # for the runs to come: what is new, what has drifted
NEIGHBOURS = 8  # kept of each query
NO_THRESHOLD = "no threshold"
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
        recall_at_1_low: lower end of its 95 % interval, the wider by class and by query.
        recall_at_1_high: upper end.
        recall_at_1_to_train: test images against the training images; None when they share no class.
        map_at_r: test among test.
        dimension: length of a vector.
        accuracy: share of test images nearest to the mean direction of their class's training images; over those whose
            class was trained on, None when there are none.
    """

    name: str
    recall_at_1: float
    recall_at_1_low: float
    recall_at_1_high: float
    recall_at_1_to_train: float | None
    map_at_r: float
    dimension: int
    accuracy: float | None = None


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
        reached: whether some similarity gives it in half of the trials on the validation queries or more.
        value: that similarity, the median of the trials; None when not reached.
        validation_queries: how many it was chosen on.
        distractors: training images that these were searched among besides, see validation.distractors.
        validation_precision: share of right answers among those accepted there; None when not reached.
        validation_coverage: share of queries accepted there; 0 when not reached.
        precision: the same on the test queries; None when nothing is accepted.
        coverage: the same on the test queries.
        validation_curve: the trade on the validation queries, by rising similarity.
        test_curve: the trade on the test queries; nothing is chosen by it.
        trials: the threshold of resampled validation queries, with its interval, and that of all of them at once; None
            without validation queries.
        precision_low: one-sided 95 % Wilson lower bound of the precision on the test queries; None without it.
        verdict: whether the test queries reach the level: "accepted", "not accepted", or "inconclusive" when the
            interval straddles it; "no threshold" when none was found.
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
    trials: Trials | None = None
    precision_low: float | None = None
    verdict: str = NO_THRESHOLD
    distractors: int = 0


@dataclass(frozen=True)
class ClassRecall:
    """R@1 of the queries of one class."""

    class_name: str
    queries: int
    recall_at_1: float


@dataclass(frozen=True)
class Mistaken:
    """How many queries of a class have a nearest image of another class."""

    class_name: str
    queries: int


@dataclass(frozen=True)
class Confusion:
    """The classes that a class is taken for.

    Attributes:
        class_name: of the queries.
        queries: of the class.
        wrong: of them, those whose nearest image is of another class.
        taken_for: the most frequent of the other classes first.
    """

    class_name: str
    queries: int
    wrong: int
    taken_for: tuple[Mistaken, ...]


@dataclass(frozen=True)
class MissingParts:
    """R@1 of the model when a part of the query image is hidden; the images searched are whole.

    Attributes:
        shape: of what is hidden, a name of occlusion.SHAPES.
        share: of the query image that is hidden; 0 for the same queries whole.
        queries: measured, some or all of the test images.
        recall_at_1: test among test.
    """

    shape: str
    share: float
    queries: int
    recall_at_1: float


@dataclass(frozen=True)
class Speed:
    """How fast a stage is, on the machine that ran it; numbers of two machines do not compare.

    Attributes:
        stage: the step.
        training_images_per_second: as the step says of itself; of co_cluster that of grouping the training images. None
            where it does not say it, or trained nothing.
        embedding_images_per_second: of the models measured while the test images were embedded; of pretrain, which
            embeds all images, and co_cluster, which places and adjusts them, as the step says of itself. None where
            it does not say it, or co_cluster left the features as they are.
        search_queries_per_second: exact nearest neighbours of all test images among the test images.
    """

    stage: str
    training_images_per_second: float | None
    embedding_images_per_second: float | None
    search_queries_per_second: float


@dataclass(frozen=True)
class FurtherDataset:
    """The model on images of another dataset, searched among each other.

    Attributes:
        name: as it was asked for.
        images: of its test split, or all where it has none, less those left out.
        whole: whether all images were taken.
        classes: among the queries.
        queries: images that have another one of their class.
        recall_at_1: of the model.
        recall_at_1_low: lower end of its 95 % interval, the wider by class and by query.
        recall_at_1_high: upper end.
        pixels_recall_at_1: of the pixels themselves, shrunk to 32 px where they are more.
        image_size: of the stored images, in pixels; they were brought to the model's size where it is another.
        model_image_size: what the model was made for.
        dataset_digest: of the dataset.
        left_out: images neither searched for nor found, for the model was trained on them or chosen by them.
    """

    name: str
    images: int
    whole: bool
    classes: int
    queries: int
    recall_at_1: float
    recall_at_1_low: float
    recall_at_1_high: float
    pixels_recall_at_1: float
    image_size: int
    model_image_size: int
    dataset_digest: str
    left_out: int = 0


@dataclass(frozen=True)
class Kept:
    """How much of one similarity another one keeps; 1 is all of it.

    Attributes:
        linear_cka: centred alignment of the two sets of products, in [0, 1] (Kornblith et al., ICML 2019).
        neighbour_overlap: mean share of the 10 nearest images that are the same, in [0, 1].
        rank_correlation: Spearman's, of the cosines of random pairs, in [-1, 1].
    """

    linear_cka: float
    neighbour_overlap: float
    rank_correlation: float


@dataclass(frozen=True)
class FeatureLearning:
    """What a model's embeddings keep of the similarity of the features that it learned from.

    Attributes:
        images: compared; none of them was trained on.
        feature_dimension: of the features.
        dimension: of the embeddings.
        projection: the embeddings against the features.
        null: the features against themselves in another order: what chance keeps.
        ceiling: against the features, what their `dimension` leading directions on the training images keep: no linear
            map to so few dimensions keeps their products better.
    """

    images: int
    feature_dimension: int
    dimension: int
    projection: Kept
    null: Kept
    ceiling: Kept

    def ratios(self) -> dict[str, float | None]:
        """The projection's share of the ceiling by measure; None where the ceiling is no higher than 0."""
        pairs = {name: (value, getattr(self.ceiling, name)) for name, value in vars(self.projection).items()}
        return {name: value / most if most > 0 else None for name, (value, most) in pairs.items()}


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
        recall_at_1_low: lower end of its 95 % interval, the wider by class and by query.
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
        confusion: the worst classes by R@1 and what they are taken for.
        speeds: of the stages, in their order.
        feature_learning: what the embeddings keep of the similarity of the features; None when it was not measured.
        missing_parts: R@1 by hidden part; empty when it was not measured.
        further_datasets: in the order asked for.
        training_images: of the dataset; 0 when it was not counted.
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
    confusion: tuple[Confusion, ...] = ()
    speeds: tuple[Speed, ...] = ()
    feature_learning: FeatureLearning | None = None
    missing_parts: tuple[MissingParts, ...] = ()
    further_datasets: tuple[FurtherDataset, ...] = ()
    training_images: int = 0

    @property
    def ahead(self) -> Stage | None:
        """The best earlier stage whose interval of R@1 lies above the model's; None where no stage is clearly ahead."""
        best = max(self.stages, key=lambda stage: stage.recall_at_1)
        return best if best.recall_at_1_low > self.recall_at_1_high else None


def evaluation_digest(protocol: str, images: Iterable[tuple[str, str]]) -> str:
    """Digest of a retrieval task: equal for the same images, classes and protocol, whatever the model or image size.

    Args:
        protocol: the split and the gallery in words.
        images: sha256 (as Picture has it) and class name of every test image; their order does not matter.
    """
    return digest_of({"protocol": protocol, "images": sorted([sha256, name] for sha256, name in images)})


def save_evaluation(
    folder: Path,
    evaluation: Evaluation,
    queries: pa.Table,
    made_from: dict[str, str] | None = None,
    answers: Answers | None = None,
    champion: Answers | None = None,
    pictures: dict[str, bytes] | None = None,
) -> Manifest:
    """Write an evaluation folder.

    Args:
        folder: made when missing.
        evaluation: the numbers.
        queries: table of QUERY_SCHEMA, one row a query.
        made_from: digest of each artifact it was measured on, by name.
        answers: of the model, for the gate.
        champion: answers of the champion to the same queries; None where there is none or it could not be scored.
        pictures: small ones of test images, by sha256, for the galleries of fixed and broken queries.

    Raises:
        ValueError: the table does not have one row a query, or a number is not finite.
    """
    if len(queries) != evaluation.queries:
        raise ValueError(f"{len(queries)} rows for {evaluation.queries} queries; the table needs one row a query.")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(evaluation), indent=2, sort_keys=True, allow_nan=False)
    (folder / EVALUATION).write_text(text + "\n", encoding="utf-8")
    pq.write_table(queries.select(QUERY_SCHEMA.names).cast(QUERY_SCHEMA), folder / QUERIES)
    for name, given in {ANSWERS: answers, CHAMPION_ANSWERS: champion}.items():
        if given is not None:
            save_answers(folder / name, given)
    if pictures:
        save_pictures(folder / PICTURES, pictures)
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
    threshold, learning = dict(values["threshold"]), values["feature_learning"]
    for curve in ("validation_curve", "test_curve"):
        threshold[curve] = tuple(CurvePoint(**point) for point in threshold[curve])
    if threshold["trials"] is not None:
        threshold["trials"] = Trials(**threshold["trials"])
    if learning is not None:
        kept = {name: Kept(**learning[name]) for name in ("projection", "null", "ceiling")}
        learning = FeatureLearning(**learning | kept)
    return Evaluation(
        **values
        | {
            "threshold": Acceptance(**threshold),
            "stages": tuple(Stage(**stage) for stage in values["stages"]),
            "recall_by_class": tuple(ClassRecall(**recall) for recall in values["recall_by_class"]),
            "confusion": tuple(map(_confusion_from, values["confusion"])),
            "speeds": tuple(Speed(**speed) for speed in values["speeds"]),
            "feature_learning": learning,
            "missing_parts": tuple(MissingParts(**part) for part in values["missing_parts"]),
            "further_datasets": tuple(FurtherDataset(**further) for further in values["further_datasets"]),
        }
    )


def _confusion_from(values: dict[str, Any]) -> Confusion:
    return Confusion(**values | {"taken_for": tuple(Mistaken(**mistaken) for mistaken in values["taken_for"])})

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.co_cluster.params import Params
from components.co_cluster.step import co_cluster, purity
from retrieval.cluster_map import CLUSTER_MAP, ClusterMap
from retrieval.clusters import Clusters, load_clusters
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.features import load_features, save_features
from retrieval.k_means import normalised
from retrieval.tracking import client

pytestmark = pytest.mark.usefixtures("mlflow_home")

CLASSES, IMAGES, SIZE = 4, 160, 8
SPLIT = np.array(["train", "train", "validation", "test"] * (IMAGES // 4))
LABELS = np.arange(IMAGES) // 4 % CLASSES
SPEEDS = {"seconds", "images_per_second", "embedding_images_per_second"}  # what of the metadata differs between runs


def write_dataset(
    folder: Path, labels: np.ndarray = LABELS, split: np.ndarray = SPLIT, shown: np.ndarray | None = None
) -> Dataset:
    """Images in the colour of their class, or of the one that is shown."""
    colours = np.random.default_rng(0).integers(0, 256, (CLASSES, 1, 1, 3), np.uint8)
    images = np.broadcast_to(colours[(labels if shown is None else shown) % CLASSES], (len(labels), SIZE, SIZE, 3))
    columns = {
        "id": np.arange(len(labels)),
        "label": labels,
        "class_name": [str(label) for label in labels],
        "split": split,
        "source": [f"{i}.png" for i in range(len(labels))],
        "sha256": ["0" * 64] * len(labels),
        "width": [SIZE] * len(labels),
        "height": [SIZE] * len(labels),
    }
    names = [str(label) for label in range(labels.max() + 1)]
    return save_dataset(folder, [images], pa.table(columns).cast(INDEX_SCHEMA), names, {})


def features_of(labels: np.ndarray = LABELS, spread: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(1)
    centres = random.standard_normal((CLASSES, 12))
    return (centres[labels % CLASSES] + spread * random.standard_normal((len(labels), 12))).astype(np.float32)


def run(folder: Path, features: np.ndarray, data: Dataset | None = None, **knobs: object) -> tuple[dict, Clusters]:
    folder.mkdir(exist_ok=True)
    data = data or write_dataset(folder / "dataset")
    save_features(folder / "features", features, data.digest, {})
    given = {"dataset": data.folder, "features": folder / "features", "clusters": folder / "clusters"}
    outputs = co_cluster(Params(**knobs), **given)  # type: ignore[arg-type]
    return dict(outputs["clusters"]), load_clusters(folder / "clusters")


def test_every_image_and_dimension_gets_its_cluster_and_every_image_its_target(tmp_path: Path) -> None:
    metadata, clusters = run(tmp_path, features_of(spread=0.3), co_clusters=4)
    assert clusters.targets.shape == (IMAGES, 12)
    np.testing.assert_allclose(np.linalg.norm(clusters.targets, axis=1), 1, rtol=1e-5)
    assert clusters.dimension_clusters.shape == (12,)
    assert purity(clusters.image_clusters, LABELS) == 1, "images of validation and test are placed as well"
    assert metadata["purity"] == metadata["nmi"] == pytest.approx(1)
    assert metadata["clusters"] == 4
    assert metadata["leading_singular_value"] == pytest.approx(1, abs=1e-5)
    assert clusters.manifest.facts["adjusted_by_why"]
    assert clusters.manifest.facts["images_per_second"] == metadata["images_per_second"] > 0
    features = load_features(tmp_path / "features")
    assert clusters.manifest.made_from["features"] == features.manifest.digest


def test_the_map_in_the_artifact_places_every_image_where_the_step_did(tmp_path: Path) -> None:
    features = features_of()
    _, clusters = run(tmp_path, features, co_clusters=4)
    kept = ClusterMap.load(tmp_path / "clusters" / CLUSTER_MAP)
    assert kept.assign(features).tolist() == clusters.image_clusters.tolist()
    assert CLUSTER_MAP in clusters.manifest.files


def test_what_is_chosen_has_the_most_recall_on_validation(tmp_path: Path) -> None:
    metadata, _ = run(tmp_path, features_of(), co_clusters=4)
    recalls = {
        way: metadata[f"validation_recall_at_1_{way.replace('-', '_')}"] for way in ("none", "co-clustering", "k-means")
    }
    assert recalls[metadata["adjusted_by"]] == max(recalls.values())
    assert (metadata["shrinkage"] == metadata["block_gamma"] == 0) == (metadata["adjusted_by"] == "none")


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dataset")
    digests = [run(tmp_path / name, features_of(), data)[1].manifest.digest for name in ("one", "other")]
    assert digests[0] == digests[1]


def test_only_training_images_are_fitted(tmp_path: Path) -> None:
    data, features = write_dataset(tmp_path / "dataset"), features_of()
    _, one = run(tmp_path / "one", features, data, shrinkage="0.2")
    changed = features.copy()
    changed[data.rows("validation", "test")] = features_of(spread=9)[data.rows("validation", "test")]
    _, other = run(tmp_path / "other", changed, data, shrinkage="0.2")
    train = data.rows("train")
    assert one.targets[train].tobytes() == other.targets[train].tobytes()
    assert one.image_clusters[train].tobytes() == other.image_clusters[train].tobytes()
    assert one.dimension_clusters.tobytes() == other.dimension_clusters.tobytes()


def test_test_images_have_no_say_in_the_choice(tmp_path: Path) -> None:
    data, features = write_dataset(tmp_path / "dataset"), features_of()
    one, _ = run(tmp_path / "one", features, data)
    features[data.rows("test")] = 1
    other, _ = run(tmp_path / "other", features, data)
    assert {name: value for name, value in one.items() if name not in SPEEDS} == {
        name: value for name, value in other.items() if name not in SPEEDS
    }


def test_unseen_validation_classes_are_searched_among_as_many_as_are_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(IMAGES) % 8
    split = np.where(labels < 3, "train", np.where(labels < 5, "validation", "test"))
    data, features = write_dataset(tmp_path / "dataset", labels, split), features_of(labels)
    metadata, _ = run(tmp_path / "run", features, data, co_clusters=4)
    first = data.rows("train")[data.labels[data.rows("train")] == 0]
    rows = np.concatenate([data.rows("validation"), first])
    similarity = normalised(features[rows]) @ normalised(features[rows]).T
    np.fill_diagonal(similarity, -1)
    queries = labels[data.rows("validation")]
    right = labels[rows][similarity[: len(queries)].argmax(1)] == queries
    assert metadata["validation_recall_at_1_none"] == pytest.approx(right.mean())
    assert (
        "searched among themselves and 20 training images of 1 other class(es); 3 are tested" in capsys.readouterr().out
    )


def test_a_given_strength_is_taken_and_zero_leaves_the_features(tmp_path: Path) -> None:
    data, features = write_dataset(tmp_path / "dataset"), features_of()
    metadata, _ = run(tmp_path / "given", features, data, shrinkage="0.2")
    assert (metadata["adjusted_by"], metadata["shrinkage"]) == ("co-clustering", 0.2)
    assert "validation_recall_at_1_k_means" in metadata, "the controls are measured all the same"
    metadata, clusters = run(tmp_path / "zero", features, data, shrinkage="0")
    assert (metadata["adjusted_by"], metadata["shrinkage"]) == ("none", 0)
    np.testing.assert_array_equal(clusters.targets, normalised(features))


def test_the_speed_of_adjusting_is_told_where_something_is_adjusted(tmp_path: Path) -> None:
    data, features = write_dataset(tmp_path / "dataset"), features_of()
    for strength in ("0.2", "0"):
        metadata, clusters = run(tmp_path / strength, features, data, shrinkage=strength)
        rate = metadata.get("embedding_images_per_second")
        assert rate == clusters.manifest.facts.get("embedding_images_per_second")
        assert (rate is None) == (strength == "0"), "0 leaves the features as they are"
        assert rate is None or rate > 0


def noisy_blocks() -> np.ndarray:
    """Six dimensions that tell the classes, six as loud that tell nothing and move together."""
    random = np.random.default_rng(2)
    noise = random.standard_normal((IMAGES, 1)) * np.array([2.0, -2.0, 2.0, 2.0, -2.0, 2.0])
    return np.concatenate([features_of(spread=0.7)[:, :6], noise], axis=1).astype(np.float32)


def test_blocks_that_tell_the_classes_apart_weigh_more_where_validation_gains(tmp_path: Path) -> None:
    data, features = write_dataset(tmp_path / "dataset"), noisy_blocks()
    metadata, clusters = run(tmp_path / "given", features, data, co_clusters=4)
    assert metadata["block_gamma"] > 0
    recalls = {way: metadata[f"validation_recall_at_1_{way}"] for way in ("none", "co_clustering", "k_means")}
    assert recalls[metadata["adjusted_by"].replace("-", "_")] > recalls["none"]
    louder = np.linalg.norm(normalised(features)[:, 6:]) / np.linalg.norm(np.asarray(clusters.targets)[:, 6:])
    assert louder > 1.1, "the noise is weighted down"


def test_without_labels_no_class_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, data = noisy_blocks(), write_dataset(tmp_path / "dataset")
    permuted = np.random.default_rng(3).permutation(LABELS)
    permuted[::5] = CLASSES  # one class more, too
    renamed = write_dataset(tmp_path / "renamed", permuted, shown=LABELS)
    metadata, one = run(tmp_path / "one", features, data, labels="none")
    renamed_metadata, other = run(tmp_path / "other", features, renamed, labels="none")
    assert one.manifest.digest == other.manifest.digest, "the same bytes in every file"
    assert {**metadata, **dict.fromkeys(SPEEDS)} == {**renamed_metadata, **dict.fromkeys(SPEEDS)}
    assert (metadata["adjusted_by"], metadata["shrinkage"], metadata["block_gamma"]) == ("co-clustering", 0.1, 0)
    assert not {"purity", "nmi", "validation_recall_at_1_none"} & set(metadata)
    shown = capsys.readouterr().out
    assert "of unknown classes" in shown
    assert "labels=none, nothing to choose by: co-clustering at 0.1" in shown
    assert one.manifest.facts["adjusted_by_why"] == "labels=none, nothing to choose by: co-clustering at 0.1"


def test_without_labels_a_given_strength_is_taken(tmp_path: Path) -> None:
    metadata, clusters = run(tmp_path, features_of(), labels="none", shrinkage="0")
    assert (metadata["adjusted_by"], metadata["shrinkage"]) == ("none", 0)
    np.testing.assert_array_equal(clusters.targets, normalised(features_of()))


@pytest.mark.parametrize("validation", [[], [2, 18, 34]])  # none, and three images of one class
def test_where_validation_can_measure_nothing_nothing_is_adjusted_and_it_is_said(
    tmp_path: Path, validation: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    split = np.array(["train", "train", "train", "test"] * (IMAGES // 4), dtype="<U10")
    split[validation] = "validation"
    data = write_dataset(tmp_path / "dataset", split=split)
    metadata, _ = run(tmp_path, features_of(), data)
    assert metadata["adjusted_by"] == "none"
    assert not [name for name in metadata if name.startswith("validation")]
    assert "the validation images have no two classes, or no two images of one: none at 0" in capsys.readouterr().out


def test_the_pictures_are_part_of_the_artifact_and_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pictures")  # which has this run alone
    _, clusters = run(tmp_path, features_of(), co_clusters=4)
    said = capsys.readouterr().out
    for name in ("block_matrix.png", "cluster_sheet_01.jpeg"):
        assert f"{tmp_path / 'clusters' / name}\n" in said
        assert name in clusters.manifest.files
        with Image.open(tmp_path / "clusters" / name) as picture:
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 3
    tracked = client().search_runs([client().get_experiment_by_name("pictures").experiment_id])[0]
    listed = {file.path for file in client().list_artifacts(tracked.info.run_id, "clusters")}
    assert listed == {"clusters/block_matrix.png", "clusters/cluster_sheet_01.jpeg"}


def test_the_tables_have_a_row_an_image_and_a_row_a_dimension(tmp_path: Path) -> None:
    run(tmp_path, features_of())
    assert pq.read_table(tmp_path / "clusters" / "assignments.parquet")["id"].to_pylist() == list(range(IMAGES))
    assert pq.read_table(tmp_path / "clusters" / "dimensions.parquet")["dimension"].to_pylist() == list(range(12))


def test_features_of_another_dataset_are_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dataset")
    save_features(tmp_path / "features", features_of(), "0" * 64, {})
    given = {"dataset": data.folder, "features": tmp_path / "features", "clusters": tmp_path / "clusters"}
    with pytest.raises(ValueError, match="features of another dataset"):
        co_cluster(Params(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"co_clusters": 1}, "co_clusters is 1; give 2 or more, or 0"),
        ({"co_clusters": -2}, "co_clusters is -2"),
        ({"shrinkage": "1.5"}, "shrinkage is '1.5'; give auto or a number from 0 to 1"),
        ({"shrinkage": "nan"}, "shrinkage is 'nan'"),
        ({"shrinkage": "much"}, "shrinkage is 'much'"),
        ({"labels": "some"}, "Unknown labels 'some'; choose one of: given, none"),
        ({"nonnegative": "rleu"}, "Unknown nonnegative 'rleu'; choose one of: auto, root"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Params(**knobs)

import tracemalloc
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralCoclustering
from sklearn.metrics import adjusted_rand_score

from retrieval import co_clustering
from retrieval.cluster_map import ClusterMap
from retrieval.clusters import load_clusters, save_clusters
from retrieval.co_clustering import CoClustering, choose_clusters, co_cluster
from retrieval.devices import has_fast_int8
from retrieval.k_means import normalised, spherical_k_means
from retrieval.nonnegative import NONNEGATIVE
from retrieval.spectrum import ROWS_PER_PRODUCT, Sums, spectrum, sums

NEEDS_INT8 = pytest.mark.skipif(not has_fast_int8(), reason="this processor has no fast products of int8")
ROUNDED = ["bfloat16", pytest.param("int8", marks=NEEDS_INT8)]
PRODUCTS = ["float32", *ROUNDED]


def blocks(
    images: int = 240, columns: int = 48, clusters: int = 8, background: float = 0.02, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A nonnegative matrix with blocks, and the block of every row and column."""
    random = np.random.default_rng(seed)
    rows, places = random.permutation(np.arange(images) % clusters), random.permutation(np.arange(columns) % clusters)
    values = random.random((images, columns)) * np.where(rows[:, None] == places, 1, background)
    return values.astype(np.float32), rows, places


def uneven(images: int = 60, columns: int = 16, seed: int = 0) -> np.ndarray:
    """A nonnegative matrix whose singular values lie apart: a few factors of falling strength over a background."""
    random = np.random.default_rng(seed)
    factors = [np.outer(random.random(images) ** 4, random.random(columns) ** 4) * 8 / (i + 1) for i in range(6)]
    return (sum(factors) + 0.1 + 0.02 * random.random((images, columns))).astype(np.float32)


def oracle(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors of D1^-1/2 A D2^-1/2 by numpy in float64."""
    exact = matrix.astype(np.float64)
    scaled = exact / np.sqrt(exact.sum(1))[:, None] / np.sqrt(exact.sum(0))
    left, values, right = np.linalg.svd(scaled, full_matrices=False)
    return left, values, right.T


def degrees(first: np.ndarray, second: np.ndarray) -> float:
    """Largest principal angle between the spans of two sets of columns."""
    first, second = np.linalg.qr(first.astype(np.float64))[0], np.linalg.qr(second.astype(np.float64))[0]
    apart = np.linalg.norm(second - first @ (first.T @ second), 2)  # the sine: the cosine is blind to small angles
    return float(np.degrees(np.arcsin(min(apart, 1))))


def as_multiplied(scaled: np.ndarray, products: str) -> torch.Tensor:
    """The rows that stand for nonnegative float32 ones in one product, float64."""
    if products == "int8":
        steps = scaled.max(0) / 254
        return torch.from_numpy(np.rint(scaled * (1 / steps)) * steps.astype(np.float64))
    rows = torch.from_numpy(scaled)
    return (rows.bfloat16() if products == "bfloat16" else rows).double()


def everything(features: np.ndarray, clusters: int = 8, **options: object) -> CoClustering:
    return co_cluster(features, np.arange(len(features)), clusters, classes=2, seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("matrix", [uneven(), blocks()[0], blocks(background=0)[0]], ids=["uneven", "blocks", "apart"])
def test_the_leading_singular_value_is_one(matrix: np.ndarray, products: str) -> None:
    assert spectrum(sums([matrix], products), 5).leading_singular_value == pytest.approx(1, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(20, 80), columns=st.integers(8, 24), shards=st.integers(1, 4))
def test_the_subspace_is_that_of_a_float64_svd(seed: int, images: int, columns: int, shards: int) -> None:
    matrix = uneven(images, columns, seed)
    left, values, right = oracle(matrix)
    cut = int(np.argmax(values[1:5] - values[2:6])) + 1  # where the next singular value is far
    found = spectrum(sums(np.array_split(matrix, shards), "float32"), cut)
    weights = matrix.sum(0, dtype=np.float64)[:, None] ** 0.5
    assert degrees(found.column_coordinates * weights, right[:, 1 : cut + 1]) < 0.001
    weights = matrix.sum(1, dtype=np.float64)[:, None] ** 0.5
    assert degrees(found.row_coordinates(matrix) * weights, left[:, 1 : cut + 1]) < 0.001
    np.testing.assert_allclose(found.singular_values, values[1 : cut + 1], rtol=1e-4)


@pytest.mark.parametrize("columns", [64, 600])  # one block of the product, and two of different widths
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("products", ROUNDED)
def test_rounded_products_turn_the_subspace_by_less_than_a_fifth_of_a_degree(
    products: str, columns: int, seed: int
) -> None:
    matrix = uneven(500, columns, seed)
    _, values, right = oracle(matrix)
    cut = int(np.argmax(values[1:5] - values[2:6])) + 1
    found = spectrum(sums(np.array_split(matrix, 3), products), cut)
    apart = degrees(found.column_coordinates * matrix.sum(0, dtype=np.float64)[:, None] ** 0.5, right[:, 1 : cut + 1])
    assert 1e-5 < apart < 0.2, "0 would be another product"
    assert found.leading_singular_value == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.singular_values, values[1 : cut + 1], rtol=5e-3)


@pytest.mark.parametrize("products", PRODUCTS)
def test_what_is_added_up_belongs_to_one_matrix_near_the_given_one(products: str) -> None:
    matrix = uneven(50, 700)
    added = sums([matrix], products)
    scaled = as_multiplied(matrix / np.sqrt(matrix.sum(1))[:, None], products)
    rows = scaled * scaled.sum(1, keepdim=True)  # the matrix: row i has the sum t_i^2
    loop = sum(torch.outer(row, row) / row.sum() for row in rows)
    np.testing.assert_allclose(added.gram, loop, rtol=2e-6)
    np.testing.assert_allclose(added.columns, rows.sum(0), rtol=2e-6)
    coarsest = {"float32": 0, "bfloat16": 0, "int8": float(matrix.max()) / 254}[products]
    np.testing.assert_allclose(rows, matrix, rtol=2**-7 if products == "bfloat16" else 1e-5, atol=coarsest)
    np.testing.assert_array_equal(added.gram, added.gram.T)
    assert added.rounded == (products != "float32")


@pytest.mark.parametrize("products", PRODUCTS)
def test_memory_does_not_grow_with_the_images(products: str) -> None:
    def held_at_most(batches: int) -> int:
        tracemalloc.start()
        sums((np.ones((256, 64), np.float32) for _ in range(batches)), products)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    assert held_at_most(200) < 1.2 * held_at_most(5)


def test_memory_for_placing_does_not_grow_with_the_images_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(co_clustering, "MOST_K_MEANS_ROWS", 2_000)
    monkeypatch.setattr(co_clustering, "CACHED_BYTES", 2**14)
    matrix = uneven(40_000, 16)

    def held_at_most(rows: int) -> int:
        few = matrix[:rows]
        everything(few, clusters=8)
        tracemalloc.start()
        everything(few, clusters=8)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held - rows * (8 + 16)  # the numbers of all rows, and of their clusters: of batches, then together

    assert held_at_most(40_000) < 1.2 * held_at_most(10_000)


@pytest.mark.parametrize("columns", [600, 1_024])  # wide enough for products of float32
def test_products_in_float32_turn_many_vectors_by_less_than_a_thousandth_of_a_degree(columns: int) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((100, columns))[random.integers(100, size=6_000)]
    matrix = np.sqrt(normalised(np.maximum(0.5 * centres + random.standard_normal(centres.shape), 0)))
    weights = matrix.sum(0, dtype=np.float64)[:, None] ** 0.5
    exact = matrix / np.sqrt(matrix.sum(1, dtype=np.float64))[:, None] / weights.T
    values, right = np.linalg.eigh(exact.T @ exact)
    values, right = values[::-1] ** 0.5, right[:, ::-1]
    cut = 60 + int(np.argmax(values[60:100] - values[61:101]))  # where the next singular value is far
    found = spectrum(sums([matrix], "float32"), cut)
    apart = degrees(found.column_coordinates * weights, right[:, 1 : cut + 1])
    assert 1e-7 < apart < 0.001, "0 would be another product"


def test_disconnected_blocks_keep_the_trivial_vector_apart() -> None:
    matrix, rows, _ = blocks(clusters=4, background=0)
    found = spectrum(sums([matrix]), 3)
    np.testing.assert_allclose(found.singular_values, 1, atol=1e-6)
    assert adjusted_rand_score(rows, spherical_k_means(found.row_coordinates(matrix), 4, seed=0).assign(
        found.row_coordinates(matrix)
    )) == 1  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), shards=st.integers(1, 7))
def test_shards_add_up_to_the_whole(seed: int, shards: int) -> None:
    matrix = uneven(seed=seed).astype(np.float64)
    whole = sums([matrix])
    parts = reduce(add, (sums([shard]) for shard in np.array_split(matrix, shards)))
    loop = sum(np.outer(row, row) / row.sum() for row in matrix)
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-13)
    np.testing.assert_allclose(whole.gram, loop, rtol=1e-13)
    np.testing.assert_allclose(parts.columns, matrix.sum(0), rtol=1e-13)
    assert (parts.rows, parts.zero_rows) == (whole.rows, whole.zero_rows) == (len(matrix), 0)


@pytest.mark.parametrize("products", PRODUCTS)
def test_rows_wait_for_a_product_in_any_batches(products: str) -> None:
    matrix = np.random.default_rng(0).random((ROWS_PER_PRODUCT + 700, 6), np.float32)
    whole = sums([matrix], products)
    scaled = matrix / np.sqrt(matrix.sum(1))[:, None]
    parts_scaled = [as_multiplied(part, products) for part in np.split(scaled, [ROWS_PER_PRODUCT])]
    np.testing.assert_allclose(whole.gram, sum(part.T @ part for part in parts_scaled), rtol=1e-5)
    of_other_steps = 1e-3 if products == "int8" else 1e-5  # a product's greatest values set its steps
    for rows in (1_000, ROWS_PER_PRODUCT, 2_500):
        parts = sums((matrix[start : start + rows] for start in range(0, len(matrix), rows)), products)
        np.testing.assert_allclose(parts.gram, whole.gram, rtol=of_other_steps)
        np.testing.assert_allclose(parts.columns, whole.columns, rtol=of_other_steps)
        assert parts.rows == len(matrix)


def test_the_sums_of_whole_numbers_add_up_exactly() -> None:
    matrix = np.random.default_rng(0).integers(0, 4, (64, 8)).astype(np.float64)
    matrix[:, 0] += 16 - matrix.sum(1) % 16 - 16 * (matrix.sum(1) > 16)  # row sums 16 or 32
    matrix = np.abs(matrix)
    matrix = matrix[matrix.sum(1) == 16]  # the root of 16 is whole: nothing is rounded
    parts, whole = sums([matrix[:5]]) + sums([matrix[5:]]), sums([matrix])
    assert len(matrix) > 10
    assert np.array_equal(parts.gram, whole.gram)
    assert np.array_equal(parts.columns, whole.columns)


def test_rows_and_columns_of_zeros_are_counted_and_belong_nowhere() -> None:
    matrix, rows, _ = blocks()
    matrix[7], matrix[:, 3] = 0, 0
    fitted = everything(matrix)
    assert (fitted.zero_rows, fitted.zero_columns) == (1, 1)
    assert fitted.cluster_map.spectrum.leading_singular_value == pytest.approx(1, abs=1e-5)
    assigned = fitted.cluster_map.assign(matrix)
    assert np.flatnonzero(assigned == -1).tolist() == [7]
    assert np.flatnonzero(fitted.dimension_clusters == -1).tolist() == [3]
    kept = np.arange(len(rows)) != 7
    assert adjusted_rand_score(rows[kept], assigned[kept]) == 1


def test_clear_blocks_give_the_clusters_of_scikit_learn() -> None:
    matrix, rows, columns = blocks(images=400, columns=96, background=0.002)
    peer = SpectralCoclustering(8, random_state=0).fit(NONNEGATIVE["root"](normalised(matrix)))
    fitted = everything(matrix)
    assert adjusted_rand_score(peer.row_labels_, fitted.cluster_map.assign(matrix)) >= 0.99
    assert adjusted_rand_score(peer.column_labels_, fitted.dimension_clusters) >= 0.99
    assert adjusted_rand_score(rows, fitted.cluster_map.assign(matrix)) == 1
    assert adjusted_rand_score(columns, fitted.dimension_clusters) == 1
    for cluster in range(8):  # a row cluster and its column cluster carry the same number
        assert len(np.unique(np.concatenate([
            fitted.cluster_map.assign(matrix)[rows == cluster], fitted.dimension_clusters[columns == cluster]
        ]))) == 1  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_inertia_is_no_worse_than_scikit_learns(seed: int) -> None:
    matrix, _, _ = blocks(images=500, columns=60, clusters=10, background=0.5, seed=seed)
    fitted = everything(matrix, clusters=10)
    made = fitted.cluster_map.matrix(matrix)
    peer = SpectralCoclustering(10, random_state=seed).fit(made)
    places = normalised(
        np.concatenate([fitted.cluster_map.spectrum.row_places(made), fitted.cluster_map.spectrum.column_places])
    )
    theirs = np.concatenate([peer.row_labels_, peer.column_labels_])
    assert inertia(places, fitted.cluster_map.k_means.assign(places)) <= inertia(places, theirs) * (1 + 1e-6)
    assert fitted.cluster_map.k_means.inertia == pytest.approx(
        inertia(places, fitted.cluster_map.k_means.assign(places)), rel=1e-2
    )


def inertia(places: np.ndarray, labels: np.ndarray) -> float:
    """Of spherical k-means: squared distances to the direction of the cluster's mean."""
    total = 0.0
    for label in np.unique(labels):
        members = places[labels == label].astype(np.float64)
        total += 2 * len(members) - 2 * float(np.linalg.norm(members.sum(0)))
    return total


def test_blind_to_the_order_of_rows() -> None:
    matrix, _, _ = blocks(background=0.1)
    order = np.random.default_rng(1).permutation(len(matrix))
    one, other = everything(matrix), everything(matrix[order])
    np.testing.assert_allclose(
        one.cluster_map.spectrum.singular_values, other.cluster_map.spectrum.singular_values, rtol=1e-5
    )
    assert adjusted_rand_score(one.cluster_map.assign(matrix), other.cluster_map.assign(matrix)) == 1


def test_the_map_of_new_images_gives_fitted_ones_their_own_coordinates() -> None:
    matrix = uneven()
    left, values, right = oracle(matrix)
    found = spectrum(sums([matrix]), 4)
    expected = left[:, 1:5] / np.sqrt(matrix.sum(1, dtype=np.float64))[:, None]
    coordinates = found.row_coordinates(matrix)
    signs = np.sign((coordinates * expected).sum(0))
    np.testing.assert_allclose(coordinates, expected * signs, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.row_coordinates(matrix[5:6]), coordinates[5:6], atol=1e-7)
    places = right[:, 1:5] / np.sqrt(matrix.sum(0, dtype=np.float64))[:, None]
    np.testing.assert_allclose(found.column_coordinates, places * signs, rtol=0, atol=1e-4 * np.abs(places).max())
    assert values[0] == pytest.approx(1, abs=1e-5)


def test_the_inner_product_of_places_is_the_association() -> None:
    matrix = uneven(30, 12)
    found = spectrum(sums([matrix.astype(np.float64)]), 11)
    left, values, right = oracle(matrix)
    weights = np.sqrt(np.outer(matrix.sum(1), matrix.sum(0)))
    association = (left[:, 1:] * values[1:]) @ right[:, 1:].T / weights
    np.testing.assert_allclose(
        found.row_places(matrix) @ found.column_places.T, association, atol=1e-5 * association.max()
    )


def test_the_same_seed_gives_the_same_bytes() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    one, other = everything(matrix, 12), everything(matrix, 12)
    assert one.cluster_map.k_means.centres.tobytes() == other.cluster_map.k_means.centres.tobytes()
    assert one.cluster_map.assign(matrix).tobytes() == other.cluster_map.assign(matrix).tobytes()


def test_other_rows_do_not_influence_the_fit() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    train = np.arange(0, 300, 2)
    one = co_cluster(matrix, train, 12, classes=3, seed=0)
    changed = matrix.copy()
    changed[1::2] = 1e6
    other = co_cluster(changed, train, 12, classes=3, seed=0)
    assert one.cluster_map.assign(matrix).tobytes() == other.cluster_map.assign(matrix).tobytes()


def test_only_a_bounded_sample_of_rows_goes_into_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, rows, _ = blocks(images=3_000)
    monkeypatch.setattr(co_clustering, "MOST_K_MEANS_ROWS", 1)
    monkeypatch.setattr(co_clustering, "ROWS_PER_BATCH", 700)
    seen: list[int] = []
    monkeypatch.setattr(
        co_clustering,
        "spherical_k_means",
        lambda *given, **how: seen.append(len(given[0])) or spherical_k_means(*given, **how),
    )
    fitted = everything(matrix)
    assert seen == [256 * 8 + 48]
    assert adjusted_rand_score(rows, fitted.cluster_map.assign(matrix)) == 1


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_every_way_to_nonnegative_is_nonnegative_and_fits(name: str) -> None:
    features = np.random.default_rng(0).standard_normal((100, 10)).astype(np.float32)
    features = np.abs(features) if name == "root" else features
    made = NONNEGATIVE[name](features)
    assert made.min() >= 0
    assert made.dtype == np.float32
    fitted = everything(features, 5, nonnegative=name)
    assert fitted.cluster_map.nonnegative == name
    assert fitted.dimension_clusters.shape == (10,)
    assert fitted.cluster_map.spectrum.leading_singular_value == pytest.approx(1, abs=1e-5)


def test_auto_splits_signed_features_and_takes_the_root_of_others() -> None:
    features = np.random.default_rng(0).standard_normal((100, 10)).astype(np.float32)
    assert everything(features, 5).cluster_map.nonnegative == "split"
    assert everything(np.abs(features), 5).cluster_map.nonnegative == "root"
    np.testing.assert_array_equal(NONNEGATIVE["split"](np.array([[1.0, -2.0]])), [[1, 0, 0, 2]])


def test_a_split_dimension_belongs_to_the_cluster_of_its_heavier_half() -> None:
    features = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32) + np.linspace(
        -1, 1, 10, dtype=np.float32
    )
    fitted = everything(features, 4)
    made = fitted.cluster_map.matrix(features)
    for dimension in range(10):
        heavier = dimension + 10 * int(made[:, dimension + 10].sum() > made[:, dimension].sum())
        assert fitted.dimension_clusters[dimension] == fitted.column_clusters[heavier]


def test_the_number_of_clusters_follows_the_spectrum_or_the_classes() -> None:
    assert everything(blocks(background=0.02)[0], clusters=0).clusters == 8
    smooth = np.linspace(0.4, 0.1, 50)
    assert choose_clusters(smooth, rows=10_000, classes=10)[0] == 40
    assert choose_clusters(smooth, rows=100, classes=10)[0] == 12
    assert choose_clusters(smooth, rows=10_000, classes=0) == (100, "the spectrum shows no gap: 100 images a cluster")
    assert choose_clusters(smooth, rows=20, classes=0)[0] == 2
    assert choose_clusters(np.array([0.2, 0.01]), rows=10_000, classes=3)[0] == 12, "the tail is no gap"
    assert "blocks" in choose_clusters(np.array([0.9, 0.8, 0.1]), rows=10_000, classes=3)[1]


@pytest.mark.parametrize("images", [8, 12, 20])
@pytest.mark.parametrize("classes", [0, 2])
def test_the_end_of_the_rank_of_few_images_is_no_end_of_blocks(images: int, classes: int) -> None:
    features = np.random.default_rng(images).standard_normal((images, 64), np.float32)
    found = co_cluster(features, np.arange(images), clusters=0, classes=classes, seed=0)
    assert found.clusters == 2
    assert "the spectrum shows no gap" in found.why
    falls_off = np.array([0.9, 0.8, 0.7, 0.1])
    assert choose_clusters(falls_off, rows=32, classes=2)[1].startswith("the spectrum falls off after 4 blocks")
    assert "no gap" in choose_clusters(falls_off, rows=31, classes=2)[1]


def test_images_without_features_do_not_raise_the_number_of_clusters() -> None:
    features = np.zeros((60, 8), np.float32)
    features[[3, 7]] = np.random.default_rng(0).random((2, 8))
    found = co_cluster(features, np.arange(60), clusters=0, classes=5, seed=0)
    assert (found.clusters, found.zero_rows) == (2, 58)
    assert sorted(found.row_clusters[[3, 7]]) == [0, 1]


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_an_image_whose_features_are_not_finite_is_refused_and_not_placed(name: str) -> None:
    features = np.abs(np.random.default_rng(0).standard_normal((100, 10)).astype(np.float32))
    fitted = everything(features, 5, nonnegative=name)
    features[7, 3] = np.nan
    wanted = "1 of 100 rows hold values that are not finite, the first at place 7"
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=wanted):
        fitted.cluster_map.assign(features)
    with pytest.raises(ValueError, match="1 of 100 rows hold values that are not finite"):
        spherical_k_means(features[20:], 4, seed=0).assign(features)


@pytest.mark.parametrize("classes", [0, 5])
def test_blocks_without_any_noise_are_counted_too(classes: int) -> None:
    """Their spectrum has no value beyond the gap."""
    block = np.repeat(np.arange(5), 40)
    features = (block[:, None] == np.repeat(np.arange(5), 8)).astype(np.float32)
    found = co_cluster(features, np.arange(200), clusters=0, classes=classes, seed=0)
    assert found.clusters == 5
    assert adjusted_rand_score(block, found.row_clusters) == 1
    assert not found.cluster_map.spectrum.first(2).ends


def test_features_that_are_all_alike_are_refused() -> None:
    features = np.linspace(1, 3, 50, dtype=np.float32)[:, None] * np.array([[1, 2, 3, 4]], np.float32)
    with pytest.raises(ValueError, match="All 50 rows have the same features but for their length"):
        co_cluster(features, np.arange(50), clusters=0, classes=2, seed=0)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([[1.0, -1.0]], np.float32), "negative"),
        (np.array([[1.0, np.nan]], np.float32), "non-finite"),
        (np.zeros((3, 2), np.float32), "All 3 rows are zero"),
        (np.array([[1.0], [2.0]], np.float32), "All 2 rows have one column, .* nonnegative=split"),
    ],
)
def test_what_cannot_be_co_clustered_is_refused(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectrum(sums([matrix]), 2)


def test_bad_requests_are_refused() -> None:
    matrix, _, _ = blocks(images=20)
    with pytest.raises(ValueError, match="Unknown nonnegative 'rleu'; choose one of: auto, root"):
        everything(matrix, nonnegative="rleu")
    with pytest.raises(ValueError, match="co_clusters is 70 and 20 training images have features; give at most"):
        everything(matrix, clusters=70)
    with pytest.raises(ValueError, match="No rows"):
        sums([])
    with pytest.raises(ValueError, match="Unknown products 'int4'; choose one of: auto, float32, bfloat16, int8"):
        sums([matrix], "int4")
    with pytest.raises(ValueError, match="choose nonnegative=split"):
        everything(-matrix, nonnegative="root")


@pytest.mark.parametrize("most", [1, 10_000])
def test_the_clusters_of_fitted_rows_are_those_they_are_assigned(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((3_000, 20)).astype(np.float32)
    matrix[5] = 0
    monkeypatch.setattr(co_clustering, "MOST_K_MEANS_ROWS", most)
    monkeypatch.setattr(co_clustering, "ROWS_PER_BATCH", 700)
    rows = np.arange(3_000)
    fitted = co_cluster(matrix, rows, 8, classes=3, seed=0)
    np.testing.assert_array_equal(fitted.row_clusters, fitted.cluster_map.assign(matrix))
    assert fitted.row_clusters[5] == -1


@pytest.mark.parametrize("rows", [[], [3], [1, 2, 3, 4, 5], [0, 2, 4], [5, 4, 3], [2, 3, 3, 4, 7]])
def test_batches_are_the_given_rows(monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    monkeypatch.setattr(co_clustering, "ROWS_PER_BATCH", 2)
    values = np.arange(16.0).reshape(8, 2)
    found = [*co_clustering.batches_of(values, np.array(rows, np.int64))]
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 2)), *found]), values[rows])
    assert all(batch.dtype == np.float32 and len(batch) <= 2 for batch in found)


def test_sums_are_plain_numbers() -> None:
    zero = Sums(np.zeros((2, 2)), np.zeros(2), 1, 1)
    assert (zero + zero).zero_rows == 2
    assert zero.zero_columns == 2


def test_the_map_is_saved_and_places_new_images_as_the_fitted_ones(tmp_path: Path) -> None:
    matrix, _, _ = blocks()
    fitted = everything(matrix[:200])
    path = tmp_path / "map.safetensors"
    fitted.cluster_map.save(path)
    loaded = ClusterMap.load(path)
    np.testing.assert_array_equal(loaded.assign(matrix[:200]), fitted.row_clusters)
    np.testing.assert_array_equal(loaded.assign(matrix), fitted.cluster_map.assign(matrix))
    assert (loaded.spectrum.ends, loaded.nonnegative) == (fitted.cluster_map.spectrum.ends, "root")
    assert loaded.k_means.inertia == fitted.cluster_map.k_means.inertia
    replace(fitted.cluster_map, nonnegative="cube").save(path)
    with pytest.raises(ValueError, match="makes features nonnegative by 'cube'; known: root, "):
        ClusterMap.load(path)
    path.write_bytes(b"a picture")
    with pytest.raises(ValueError, match="holds no map of co-clusters"):
        ClusterMap.load(path)


def test_clusters_are_saved_and_loaded(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    targets, images, dimensions = random.random((7, 3), np.float32), np.arange(7) - 1, np.array([1, -1, 0])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "picture.png").write_bytes(b"picture")
    written = save_clusters(
        tmp_path / "a", [targets[:4], targets[4:]], images, dimensions, {"features": "f" * 64}, {"clusters": 6}
    )
    loaded = load_clusters(tmp_path / "a")
    np.testing.assert_array_equal(loaded.targets, targets)
    np.testing.assert_array_equal(loaded.image_clusters, images)
    np.testing.assert_array_equal(loaded.dimension_clusters, dimensions)
    assert loaded.image_clusters.dtype == loaded.dimension_clusters.dtype == np.int64
    assert loaded.manifest == written
    assert "picture.png" in written.files
    assert (written.made_from, written.facts) == ({"features": "f" * 64}, {"clusters": 6})
    for batches in ([targets[:4]], [targets, targets]):
        with pytest.raises(ValueError, match="targets for 7 images"):
            save_clusters(tmp_path / "b", batches, images, dimensions, {}, {})

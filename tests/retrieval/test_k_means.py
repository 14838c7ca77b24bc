import tracemalloc

import numpy as np
import pytest
from sklearn.cluster import KMeans as PeerKMeans
from sklearn.metrics import adjusted_rand_score

from retrieval.k_means import normalised, spherical_k_means


def directions(clusters: int, each: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), each)
    centres = random.standard_normal((clusters, 16))
    rows = centres[labels] + spread * random.standard_normal((len(labels), 16))
    return (rows * random.uniform(0.1, 10, (len(labels), 1))).astype(np.float32), labels


def test_groups_that_lie_apart_are_found_whatever_their_scale() -> None:
    rows, labels = directions(12, 20, spread=0.1)
    assert adjusted_rand_score(labels, spherical_k_means(rows, 12, seed=0).assign(rows)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_inertia_is_no_worse_than_that_of_scikit_learn(seed: int) -> None:
    rows, _ = directions(20, 30, spread=1.5, seed=seed)
    ours = spherical_k_means(rows, 20, seed)
    peer = PeerKMeans(20, n_init=3, random_state=seed).fit(normalised(rows))
    theirs = 2 - 2 * np.max(normalised(rows) @ normalised(peer.cluster_centers_).T, axis=1)
    assert ours.inertia <= theirs.sum() * 1.01
    expected = 2 - 2 * np.max(normalised(rows) @ ours.centres.T, axis=1)
    assert ours.inertia == pytest.approx(expected.sum(), rel=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_centres_are_directions() -> None:
    rows, _ = directions(5, 40, spread=2)
    one, other = spherical_k_means(rows, 5, seed=3), spherical_k_means(rows, 5, seed=3)
    assert one.centres.tobytes() == other.centres.tobytes()
    np.testing.assert_allclose(np.linalg.norm(one.centres, axis=1), 1, rtol=1e-5)


def test_rows_that_may_be_overwritten_are_held_once_and_give_the_same_bytes() -> None:
    rows, _ = directions(5, 4_000, spread=2)
    expected, given = spherical_k_means(rows, 5, seed=3), rows.copy()
    tracemalloc.start()
    found = spherical_k_means(given, 5, seed=3, overwrite=True)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.centres.tobytes() == expected.centres.tobytes()
    np.testing.assert_array_equal(given, normalised(rows))
    assert held < 0.9 * rows.nbytes, "beside the rows, for seeding and the clusters of the rows"


def test_rows_of_zeros_are_left_out_and_belong_nowhere() -> None:
    rows, labels = directions(3, 10, spread=0.1)
    with_zeros = np.concatenate([np.zeros((4, 16), np.float32), rows])
    found = spherical_k_means(with_zeros, 3, seed=0).assign(with_zeros)
    assert (found[:4] == -1).all()
    assert adjusted_rand_score(labels, found[4:]) == 1


def test_as_many_clusters_as_rows_and_rows_that_are_equal() -> None:
    rows, _ = directions(6, 1, spread=0)
    assert len(np.unique(spherical_k_means(rows, 6, seed=0).assign(rows))) == 6
    equal = spherical_k_means(np.ones((9, 4), np.float32), 3, seed=0)
    assert equal.inertia == pytest.approx(0, abs=1e-4)
    assert np.isfinite(equal.centres).all()


@pytest.mark.parametrize("clusters", [0, 7])
def test_more_clusters_than_rows_are_refused(clusters: int) -> None:
    rows, _ = directions(6, 1, spread=0)
    with pytest.raises(ValueError, match=f"{clusters} clusters of 6 rows that are not zero; choose from 1 to 6"):
        spherical_k_means(rows, clusters, seed=0)

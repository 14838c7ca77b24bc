"""Drift: none where images are alike, found where they are not; the reference is read as it was written."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.drift import (
    LEAST_OF_A_CLASS,
    MOST_IMAGES,
    Reference,
    class_shifts,
    drift,
    load_reference,
    save_reference,
)

CENTRES = np.random.default_rng(0).normal(size=(6, 16))


def drawn(images: int, seed: int, moved: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around six centres, of which the fourth may have moved, and their classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 6, images)
    values = CENTRES[labels] + generator.normal(size=(images, 16))
    values[labels == 3] += moved
    names = np.asarray([f"class {label}" for label in labels], object)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), names


def reference(threshold: float | None = 0.7, images: int = 400) -> Reference:
    return Reference("digest", *drawn(images, seed=1), threshold)


def test_shares_and_similarities_are_those_of_a_loop() -> None:
    known = reference(images=60)
    values, names = drawn(40, seed=2)
    found = drift(known, values, names)
    best = [max(float(row @ other) for other in known.embeddings) for row in values.astype(np.float64)]
    own = [
        max(float(row @ other) for place, other in enumerate(known.embeddings) if place != number)
        for number, row in enumerate(known.embeddings.astype(np.float64))
    ]
    np.testing.assert_allclose(found.similarities, sorted(best), atol=1e-6)
    np.testing.assert_allclose(found.usual_similarities, sorted(own), atol=1e-6)
    assert found.far == pytest.approx(np.mean([value < 0.7 for value in best]))
    assert found.far_usually == pytest.approx(np.mean([value < 0.7 for value in own]))
    assert (found.images, found.reference_images, found.from_threshold) == (40, 60, True)


def test_images_of_the_same_make_have_not_drifted() -> None:
    found = drift(reference(), *drawn(400, seed=3))
    assert abs(found.excess) < 0.05
    assert len(found.shifted) <= 1
    assert found.unseen_classes == {}


def test_other_images_have_drifted() -> None:
    values = np.random.default_rng(4).normal(size=(200, 16)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = drift(reference(), values, np.asarray(["class 0"] * 100 + ["boats"] * 100, object))
    assert found.excess > 0.3
    assert found.unseen_classes == {"boats": 100}
    assert [shift.class_name for shift in found.shifted] == ["class 0"]


def test_the_class_that_has_moved_is_found_and_the_others_are_not() -> None:
    found = drift(reference(), *drawn(400, seed=5, moved=1.5))
    assert found.shifts[0].class_name == "class 3"
    assert found.shifts[0].shift > 5 * found.shifts[0].by_chance
    assert len(found.shifted) <= 2


def test_chance_seldom_moves_a_class() -> None:
    shifts = [shift for seed in range(20) for shift in class_shifts(reference(), *drawn(120, seed=10 + seed), seed)]
    assert len(shifts) == 120
    assert np.mean([shift.p_value <= 0.1 for shift in shifts]) < 0.2


def test_a_class_of_few_images_is_left_out() -> None:
    values, names = drawn(LEAST_OF_A_CLASS - 1, seed=6)
    names[:] = "class 1"
    assert drift(reference(), values, names).shifts == ()


def test_without_a_threshold_one_in_twenty_of_the_reference_is_far() -> None:
    found = drift(reference(threshold=None), *drawn(100, seed=7))
    assert not found.from_threshold
    assert found.far_usually == pytest.approx(0.05, abs=0.005)


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    for threshold in (None, 0.1 + 0.2):
        known = reference(threshold)
        save_reference(tmp_path / "reference.parquet", known)
        found = load_reference(tmp_path / "reference.parquet")
        assert (found.model_digest, found.threshold) == (known.model_digest, known.threshold)
        assert np.array_equal(found.embeddings, known.embeddings)
        assert found.classes.tolist() == known.classes.tolist()


def test_a_reference_is_bounded(tmp_path: Path) -> None:
    save_reference(tmp_path / "reference.parquet", reference(images=MOST_IMAGES + 100))
    assert len(load_reference(tmp_path / "reference.parquet").embeddings) == MOST_IMAGES


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.parquet"
    path.write_text("nonsense")
    with pytest.raises(ValueError, match=r"reference\.parquet is no reference of format 1"):
        load_reference(path)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="a comparison needs 2 and 1"):
        drift(reference(images=1), *drawn(3, seed=8))

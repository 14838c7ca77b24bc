"""Drift: none where images are alike, found where they are not; the reference is read as it was written."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from retrieval import drift as drifting
from retrieval.drift import (
    FALSE_DISCOVERIES,
    LEAST_OF_A_CLASS,
    MOST_IMAGES,
    ClassShift,
    Drift,
    Reference,
    Share,
    class_shifts,
    difference_interval,
    drift,
    load_reference,
    save_reference,
    some_of,
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


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real images, (1797, 64) of length 1 and their classes; in the order in which 43 people wrote them."""
    found = load_digits()
    values = found.data.astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True), np.asarray(found.target.astype(str), object)


def test_shares_and_similarities_are_those_of_a_loop() -> None:
    known, far = reference(threshold=0.6, images=60), 0.6
    values, names = drawn(40, seed=2)
    names[:10], names[10:15] = "new", "trained on"
    found = drift(known, values, names, known={"trained on", "class 1"})
    best = [max(float(row @ other) for other in known.embeddings) for row in values.astype(np.float64)]
    own = [
        max(float(row @ other) for place, other in enumerate(known.embeddings) if place != number)
        for number, row in enumerate(known.embeddings.astype(np.float64))
    ]
    np.testing.assert_allclose(found.similarities, sorted(best[:10] + best[15:]), atol=1e-6)
    np.testing.assert_allclose(found.usual_similarities, sorted(own), atol=1e-6)
    assert found.unseen == Share(10, sum(value < far for value in best[:10]))
    assert found.seen == Share(25, sum(value < far for value in best[15:]))
    assert found.usual == Share(60, sum(value < far for value in own))
    assert found.excess == pytest.approx(found.seen.far / 25 - found.usual.far / 60)
    assert (found.images, found.left_out, found.from_threshold) == (35, 5, True)
    assert found.unseen_classes == {"new": 10}


def test_a_shift_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drifting, "PERMUTATIONS", 200)
    known = reference(images=60)
    values, names = drawn(50, seed=2)
    (shift,) = [shift for shift in class_shifts(known, values, names, 0) if shift.class_name == "class 2"]
    now = values[names == "class 2"].astype(np.float64)
    before = known.embeddings[known.classes == "class 2"].astype(np.float64)

    def distance(left: np.ndarray, right: np.ndarray) -> float:
        one, other = left.mean(0), right.mean(0)
        return 1 - float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other))

    together, generator, random = np.concatenate([now, before]), np.random.default_rng(99), []
    for _ in range(2_000):
        order = generator.permutation(len(together))
        random.append(distance(together[order[: len(now)]], together[order[len(now) :]]))
    assert shift.shift == pytest.approx(distance(now, before))
    assert shift.p_value == pytest.approx(np.mean(np.array(random) >= shift.shift), abs=0.1)
    assert shift.by_chance == pytest.approx(np.quantile(random, 0.95), rel=0.15)


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    # Newcombe 1998, table II, method 10, examples (a), (b) and (g)
    for one, other, ends in [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090)),
                             ((10, 10), (0, 20), (0.6791, 1.0))]:  # fmt: skip
        found = difference_interval(Share(one[1], one[0]), Share(other[1], other[0]))
        assert found == pytest.approx(ends, abs=5e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.one_of(st.none(), st.floats(0.3, 0.99)))
def test_the_same_images_again_have_nothing_in_excess(seed: int, threshold: float | None) -> None:
    known = Reference("digest", *drawn(80, seed), threshold)
    found = drift(known, known.embeddings, known.classes)
    assert found.excess is not None
    assert found.excess <= 0
    assert found.shifted == ()
    assert found.unseen_classes == {}


def test_images_of_the_same_make_have_not_drifted() -> None:
    found = drift(reference(), *drawn(400, seed=3))
    assert found.excess_interval is not None
    assert found.excess_interval[0] < 0 < found.excess_interval[1]
    assert found.shifted == ()


def test_other_images_have_drifted() -> None:
    values = np.random.default_rng(4).normal(size=(200, 16)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = drift(reference(), values, np.asarray(["class 0"] * 100 + ["boats"] * 100, object))
    assert found.excess_interval is not None
    assert found.excess_interval[0] > 0.3
    assert found.unseen_classes == {"boats": 100}
    assert [shift.class_name for shift in found.shifted] == ["class 0"]


def test_real_images_drift_when_their_colours_are_inverted_and_not_when_others_wrote_them_too() -> None:
    values, classes = digits()
    mixed = np.random.default_rng(0).permutation(len(values))
    before, now = mixed[:900], mixed[900:]
    known = Reference("digest", values[before], classes[before], None)
    same = drift(known, values[now], classes[now])
    assert same.excess_interval is not None
    assert same.excess_interval[0] < 0 < same.excess_interval[1]
    assert len(same.shifted) <= 1
    inverted = 16 - load_digits().data[now].astype(np.float32)
    other = drift(known, inverted / np.linalg.norm(inverted, axis=1, keepdims=True), classes[now])
    assert other.seen.value == 1.0
    assert len(other.shifted) == 10


def test_the_class_that_has_moved_is_found_and_the_others_are_not() -> None:
    found = drift(reference(), *drawn(400, seed=5, moved=1.5))
    assert [shift.class_name for shift in found.shifted] == ["class 3"]
    assert found.shifts[0].shift > 3 * found.shifts[0].by_chance


def test_chance_seldom_moves_a_class_and_seldom_any_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drifting, "PERMUTATIONS", 299)
    found = [drift(reference(), *drawn(60, seed=10 + seed), seed=seed) for seed in range(60)]
    values = [shift.p_value for each in found for shift in each.shifts]
    assert len(values) > 250
    assert np.mean([value <= 0.1 for value in values]) < 0.15
    assert np.mean([len(each.shifted) > 0 for each in found]) <= 0.12, "5 % are expected"


def test_of_many_classes_those_have_moved_that_the_step_up_rule_finds() -> None:
    def moved(values: list[float]) -> int:
        shifts = tuple(ClassShift(str(number), 9, 0.1, 0.05, value) for number, value in enumerate(sorted(values)))
        share = Share(1, 0)
        empty = np.zeros(1)
        return len(Drift(0.5, True, share, share, share, 0, empty, empty, shifts, {}).shifted)

    generator = np.random.default_rng(0)
    for _ in range(200):
        values = list(generator.random(int(generator.integers(1, 30))) ** generator.integers(1, 9))
        expected = 0
        for rank, value in enumerate(sorted(values), start=1):
            if value <= FALSE_DISCOVERIES * rank / len(values):
                expected = rank
        assert moved(values) == expected
    assert moved([]) == 0


def test_of_many_images_of_a_class_those_that_come_first_do_not_stand_for_it() -> None:
    """In each class come those of one camera, then those of another; new images are of both."""

    def of_two_cameras(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        values, names = drawn(images, seed)
        order = np.argsort(names, kind="stable")
        values, names = values[order], names[order]
        for name in set(names):
            rows = np.flatnonzero(names == name)
            values[rows[: len(rows) // 2], 0] += 0.5
        return values, names

    known = Reference("digest", *of_two_cameras(8_000, seed=1), None)
    shifts = class_shifts(known, *of_two_cameras(1_200, seed=2), 0)
    assert len(shifts) == 6
    assert min(shift.p_value for shift in shifts) > 0.01


def test_a_class_of_few_images_is_left_out() -> None:
    values, names = drawn(LEAST_OF_A_CLASS - 1, seed=6)
    names[:] = "class 1"
    assert drift(reference(), values, names).shifts == ()


@pytest.mark.parametrize("threshold", [None, 0.98])
def test_without_a_threshold_that_half_of_the_reference_reach_one_in_twenty_is_far(threshold: float | None) -> None:
    known = reference(threshold)
    found = drift(known, *drawn(100, seed=7))
    assert not found.from_threshold
    assert found.usual.value == pytest.approx(0.05, abs=0.005)
    moved = drift(known, *drawn(100, seed=7, moved=3.0))
    assert moved.excess > 0.05, "a threshold that calls nearly all far would hide it"
    middle = float(np.median(found.usual_similarities))
    assert drift(replace(known, threshold=middle), *drawn(100, seed=7)).far_below == middle


def test_a_reference_is_read_as_it_was_written_but_for_rounding(tmp_path: Path) -> None:
    for threshold in (None, 0.1 + 0.2):
        known = reference(threshold)
        save_reference(tmp_path / "reference.parquet", known, digests(400))
        found = load_reference(tmp_path / "reference.parquet")
        assert (found.model_digest, found.threshold) == (known.model_digest, known.threshold)
        assert found.embeddings.dtype == np.float32
        assert np.abs(found.embeddings - known.embeddings).max() <= 2**-11
        assert found.classes.tolist() == known.classes.tolist()


def test_the_length_of_embeddings_does_not_matter(tmp_path: Path) -> None:
    """float16 has nothing above 65,504."""
    values, names = drawn(120, seed=2)
    lengths = np.random.default_rng(0).uniform(1, 1e6, (len(values), 1)).astype(np.float32)
    known = reference()
    longer = Reference("digest", known.embeddings * 1e6, known.classes, known.threshold)
    one, other = drift(known, values, names), drift(longer, values * lengths, names)
    assert [shift.p_value for shift in one.shifts] == [shift.p_value for shift in other.shifts]
    assert (one.seen, one.usual) == (other.seen, other.usual)
    save_reference(tmp_path / "reference", longer, digests(len(known.classes)))
    kept = load_reference(tmp_path / "reference").embeddings
    assert np.allclose(np.linalg.norm(kept, axis=1), 1, atol=1e-2)


def test_a_reference_is_bounded_and_chosen_whatever_the_order(tmp_path: Path) -> None:
    many = reference(images=MOST_IMAGES + 100)
    save_reference(tmp_path / "reference.parquet", many, digests(MOST_IMAGES + 100))
    assert len(load_reference(tmp_path / "reference.parquet").embeddings) == MOST_IMAGES
    named = digests(50)
    chosen = {named[place] for place in some_of(named, 20)}
    mixed = [named[place] for place in np.random.default_rng(0).permutation(50)]
    assert {mixed[place] for place in some_of(mixed, 20)} == chosen == set(sorted(named)[:20])
    assert list(some_of(mixed, 20)) == sorted(some_of(mixed, 20))


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.parquet"
    path.write_text("nonsense")
    with pytest.raises(ValueError, match=r"reference\.parquet is no reference of format 1"):
        load_reference(path)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="a comparison needs 2 and 1"):
        drift(reference(images=1), *drawn(3, seed=8))
    values, names = drawn(3, seed=8)
    names[:] = "trained on"
    with pytest.raises(ValueError, match="0 of them of classes that can be compared"):
        drift(reference(), values, names, known={"trained on"})

"""Splits: seeded, honest, and blind to the order of the images."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.splits import (
    CLASS_ORDERS,
    SPLITTERS,
    Labelled,
    Shares,
    assign_splits,
    can_measure,
    check_measurable,
    held_out_count,
    what_validation_lacks,
)

SHARES = Shares(test=0.2, validation=0.1, seed=0)


def images(per_class: dict[str, int], own: str = "") -> Labelled:
    classes = [name for name, count in per_class.items() for _ in range(count)]
    return Labelled(classes, [f"{name}{place}" for place, name in enumerate(classes)], [own] * len(classes))


def joined(*parts: Labelled) -> Labelled:
    return Labelled(
        *([value for part in parts for value in getattr(part, name)] for name in ("classes", "keys", "own"))
    )


def counts(splits: list[str]) -> dict[str, int]:
    return dict(Counter(splits))


def test_closed_holds_out_a_share_of_each_class():
    given_images = images({"a": 100, "b": 50})
    splits = assign_splits("closed", given_images, SHARES)
    by_class = Counter(zip(given_images.classes, splits, strict=True))
    assert by_class == {
        ("a", "test"): 20,
        ("a", "validation"): 8,
        ("a", "train"): 72,
        ("b", "test"): 10,
        ("b", "validation"): 4,
        ("b", "train"): 36,
    }


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 2), (11, 2), (13, 3), (1000, 200)]
)
def test_small_classes_keep_pairs_on_both_sides(count, expected):
    assert held_out_count(count, 0.2) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 0, 2)), (5, (3, 0, 2)), (6, (2, 2, 2)), (10, (6, 2, 2))],
)
def test_of_a_small_class_none_is_held_out_for_validation(count, expected):
    splits = Counter(assign_splits("closed", images({"a": count, "b": 50}), SHARES)[:count])
    assert tuple(splits[split] for split in ("train", "validation", "test")) == expected


@pytest.mark.parametrize("sizes", [{"a": 3, "b": 3, "c": 2}, {"a": 40, "b": 3}])
def test_a_test_part_that_cannot_be_measured_is_refused(sizes):
    given_images = images(sizes)
    splits = assign_splits("closed", given_images, SHARES)
    with pytest.raises(ValueError, match=r"class\(es\) of two images or more; .* Give more images of a class"):
        check_measurable(splits, given_images.classes, "closed")


def test_what_helps_an_own_test_part_is_said_without_test_fraction():
    own = [*["train"] * 8, "test", "test", "test"]
    classes = [*"aaaabbbb", *"aab"]
    with pytest.raises(ValueError, match=r"images of a class in the source's test \(2 or more\), .* split=closed") as e:
        check_measurable(own, classes, "own")
    assert "test_fraction" not in str(e.value)
    check_measurable([*own, "test"], [*classes, "b"], "own")
    check_measurable(assign_splits("closed", Labelled(classes, [*map(str, range(11))], own), SHARES), classes, "closed")


def test_a_test_part_of_two_pairs_can_be_measured_and_so_can_none():
    for split in SPLITTERS:
        check_measurable(["test"] * 4 + ["train"], ["a", "b", "a", "b", "c"], split)
        check_measurable(["train"] * 4, ["a", "b", "a", "b"], split)


@given(st.integers(2, 2000), st.floats(0.001, 0.999))
def test_something_is_left_on_both_sides(count, share):
    held_out = held_out_count(count, share)
    assert 1 <= held_out <= count - 1
    if count >= 4:
        assert 2 <= held_out <= count - 2


def test_disjoint_shares_no_class():
    given_images = images({f"class {number}": 4 for number in range(20)})
    splits = assign_splits("disjoint", given_images, SHARES)
    of = {
        split: {name for name, its in zip(given_images.classes, splits, strict=True) if its == split}
        for split in ("train", "validation", "test")
    }
    assert {split: len(names) for split, names in of.items()} == {"test": 4, "validation": 2, "train": 14}
    assert not of["train"] & of["test"] | of["train"] & of["validation"] | of["validation"] & of["test"]


def classes_of(splits: list[str], given_images: Labelled) -> dict[str, list[str]]:
    pairs = set(zip(splits, given_images.classes, strict=True))
    return {split: sorted(name for its, name in pairs if its == split) for split in ("train", "validation", "test")}


@pytest.mark.parametrize("seed", range(3))
def test_listed_classes_go_by_name_and_numbers_by_value(seed):
    given_images = images({f"class {number}": 2 for number in range(12)})
    splits = assign_splits("disjoint", given_images, Shares(0.5, 0.3, seed, class_order="listed"))
    assert classes_of(splits, given_images) == {
        "train": [f"class {number}" for number in (0, 1, 2, 3)],
        "validation": ["class 4", "class 5"],
        "test": sorted(f"class {number}" for number in range(6, 12)),
    }


@pytest.mark.parametrize("class_order", CLASS_ORDERS)
@given(seed=st.integers(0, 3), groups=st.integers(5, 9), each=st.integers(1, 4))
def test_no_group_is_in_two_splits(class_order, seed, groups, each):
    given_images = images({f"group {group}/{letter}": 2 for group in range(groups) for letter in "abcd"[:each]})
    splits = assign_splits("disjoint", given_images, Shares(0.3, 0.2, seed, class_order, "group"))
    of_group: dict[str, set[str]] = {}
    for name, split in zip(given_images.classes, splits, strict=True):
        of_group.setdefault(name.split("/")[0], set()).add(split)
    assert all(len(found) == 1 for found in of_group.values())
    counted = Counter(next(iter(found)) for found in of_group.values())
    test = max(round(groups * 0.3), 1)
    enough = 2 if each == 1 else 1  # groups that hold two classes
    validation = max(round((groups - test) * 0.2), enough) if groups - test - enough >= 2 else 0
    expected = {"test": test, "validation": validation, "train": groups - test - validation}
    assert counted == {split: count for split, count in expected.items() if count}


@pytest.mark.parametrize(
    ("classes", "test", "expected"),
    [
        (10, 0.2, {"train": 6, "validation": 2, "test": 2}),
        (6, 0.34, {"train": 2, "validation": 2, "test": 2}),
        (5, 0.4, {"train": 3, "validation": 0, "test": 2}),  # with two for validation one were left to train
        (4, 0.5, {"train": 2, "validation": 0, "test": 2}),
    ],
)
@pytest.mark.parametrize("class_order", CLASS_ORDERS)
def test_validation_has_two_classes_or_none(classes, test, expected, class_order):
    given_images = images({f"class {number}": 4 for number in range(classes)})
    splits = assign_splits("disjoint", given_images, Shares(test, 0.1, 0, class_order))
    assert {split: len(names) for split, names in classes_of(splits, given_images).items()} == expected
    told = what_validation_lacks(splits, given_images.classes, "disjoint")
    assert bool(told) == (not expected["validation"])
    if told:
        assert told.startswith("0 validation images of 0 class(es): R@1 takes two classes")
        assert "give more classes" in told
        assert "a smaller test_fraction" in told


def test_one_group_of_many_classes_is_enough_and_groups_of_one_class_are_taken_by_two():
    shares = Shares(0.2, 0.1, 0, "listed", "group")
    many = images({f"{group}/{letter}": 4 for group in range(6) for letter in "ab"})
    assert classes_of(assign_splits("disjoint", many, shares), many)["validation"] == ["4/a", "4/b"]
    alone = images({f"{group}/a": 4 for group in range(6)})
    assert classes_of(assign_splits("disjoint", alone, shares), alone)["validation"] == ["3/a", "4/a"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("", False), ("a", False), ("aaa", False), ("abc", False), ("aab", True), ("aabb", True)],
)
def test_r_at_1_takes_two_classes_and_two_images_of_one(labels, expected):
    assert can_measure(list(labels)) == expected
    assert can_measure(np.array([ord(letter) for letter in labels])) == expected


def test_a_source_whose_validation_is_one_class_is_told():
    splits, classes = ["validation"] * 3 + ["train"] * 4, ["a"] * 3 + ["a", "a", "b", "b"]
    told = what_validation_lacks(splits, classes, "own", asked=False)
    assert told.startswith("3 validation images of 1 class(es)")
    assert "images of a class in the source's validation" in told
    assert what_validation_lacks([*splits, "validation"], [*classes, "b"], "own") == ""
    assert what_validation_lacks(["train", "test"], ["a", "a"], "own", asked=False) == ""


@pytest.mark.parametrize(
    ("few", "enough", "tested"), [("aaabbb", "aaaabbbb", "aabb"), ("aaaabbbbcccc", "aabbccdd", "xxyy")]
)
def test_what_helps_to_carve_validation_from_the_own_train_is_said_without_test_fraction(few, enough, tested):
    def told(train: str) -> str:
        own = ["train"] * len(train) + ["test"] * len(tested)
        given_images = Labelled([*train, *tested], [*map(str, range(len(own)))], own)
        return what_validation_lacks(assign_splits("own", given_images, SHARES), given_images.classes, "own")

    assert "give more classes or more images of a class in the source's validation, or where it" in told(few)
    assert "in its train (4 or more), or use split=closed" in told(few)
    assert "test_fraction" not in told(few)
    assert told(enough) == ""


def test_groups_need_nested_names():
    with pytest.raises(ValueError, match="class 'b' lies in none: its name is not nested"):
        assign_splits("disjoint", images({"x/a": 4, "b": 4, "y/a": 4}), Shares(0.3, 0.0, 0, disjoint_by="group"))


@pytest.mark.parametrize("option", [{"class_order": "random"}, {"disjoint_by": "family"}])
def test_unknown_order_and_unit(option):
    with pytest.raises(ValueError, match=f"Unknown {next(iter(option))} .* choose one of"):
        Shares(0.2, 0.1, 0, **option)


def test_disjoint_needs_classes_to_train_on():
    with pytest.raises(ValueError, match="3 classes are left and 2 would go to test"):
        assign_splits("disjoint", images({"a": 5, "b": 5, "c": 5}), Shares(0.6, 0.1, 0))


def test_own_carves_validation_from_train_by_images():
    splits = assign_splits("own", joined(images({"a": 20, "b": 20}, "train"), images({"a": 5}, "test")), SHARES)
    assert counts(splits) == {"train": 36, "validation": 4, "test": 5}
    assert splits[40:] == ["test"] * 5


def test_own_carves_validation_by_classes_when_test_classes_are_unseen():
    train = images({f"class {number}": 3 for number in range(10)}, "train")
    splits = assign_splits("own", joined(train, images({"unseen": 5}, "test")), SHARES)
    by_class: dict[str, set[str]] = {}
    for name, split in zip(train.classes, splits, strict=False):
        by_class.setdefault(name, set()).add(split)
    assert sorted(map(sorted, by_class.values())) == [["train"]] * 8 + [["validation"]] * 2


@pytest.mark.parametrize("option", [{"class_order": "listed"}, {"disjoint_by": "group"}])
def test_own_refuses_an_order_of_classes_that_are_not_held_out(option):
    train, unseen = images({f"g{number % 3}/{number}": 3 for number in range(9)}, "train"), images({"h/a": 5}, "test")
    parts = {
        "carved by images": (joined(train, images({"g0/0": 5}, "test")), 0.2),
        "of the source": (joined(train, unseen, images({"g0/0": 5}, "validation")), 0.2),
        "none": (joined(train, unseen), 0.0),
    }
    for own_parts, validation in parts.values():
        with pytest.raises(ValueError, match="only where no test class is in train and validation is carved from it"):
            assign_splits("own", own_parts, Shares(0.2, validation, 0, **option))
    assert "validation" in assign_splits("own", joined(train, unseen), Shares(0.2, 0.2, 0, **option))


def test_own_keeps_the_validation_of_the_source():
    parts = joined(images({"a": 4}, "train"), images({"a": 2}, "validation"), images({"a": 3}, "test"))
    assert assign_splits("own", parts, SHARES) == list(parts.own)


def test_no_validation_where_none_is_asked_for():
    for split in ("closed", "disjoint"):
        splits = assign_splits(split, images(dict.fromkeys("abcdef", 8)), Shares(0.2, 0.0, 0))
        assert set(splits) == {"train", "test"}


@pytest.mark.parametrize("own", ["", "train"])
def test_own_needs_the_splits_of_the_source(own):
    with pytest.raises(ValueError, match="split=own needs train and test"):
        assign_splits("own", images({"a": 4}, own), SHARES)


def test_own_needs_a_split_for_every_image():
    with pytest.raises(ValueError, match="images without one"):
        assign_splits("own", joined(images({"a": 3}, "train"), images({"a": 3}, "test"), images({"a": 1})), SHARES)


def test_unknown_split():
    with pytest.raises(ValueError, match="Unknown split 'opened'; choose one of: own, closed, disjoint"):
        assign_splits("opened", images({"a": 4}), SHARES)


@pytest.mark.parametrize("split", SPLITTERS)
@given(order=st.permutations(range(60)), seed=st.integers(0, 3))
def test_order_does_not_matter(split, order, seed):
    parts = joined(*(images({f"c{number}": 8}, "train") for number in range(6)), images({"x": 12}, "test"))
    parts = Labelled(parts.classes, [f"key {place}" for place in range(60)], parts.own)
    shuffled = Labelled(*([getattr(parts, name)[place] for place in order] for name in ("classes", "keys", "own")))
    shares = Shares(0.2, 0.2, seed)
    straight = assign_splits(split, parts, shares)
    assert assign_splits(split, shuffled, shares) == [straight[place] for place in order]


def test_the_seed_decides():
    chosen = {tuple(assign_splits("closed", images({"a": 40}), Shares(0.2, 0.1, seed))) for seed in range(4)}
    assert len(chosen) == 4


def test_one_more_class_moves_no_other():
    few, more = images({"a": 30}), images({"a": 30, "b": 30})
    assert assign_splits("closed", more, SHARES)[:30] == assign_splits("closed", few, SHARES)

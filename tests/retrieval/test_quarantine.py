"""The rules of what does not enter the dataset."""

import pytest

from retrieval.quarantine import REASONS, check_fraction, quarantine
from retrieval.sources import Record
from retrieval.staging import Seen


def judged(*images: tuple[str, str, str, str]) -> dict[str, str]:
    """Reasons by name; an image is name, class, split and content (or the decoder's reason after "!")."""
    records = [Record(name, class_name, split, None) for name, class_name, split, _ in images]
    seen = [
        Seen(reason=content[1:], detail="damaged") if content[0] == "!" else Seen(content, 10, 10)
        for *_, content in images
    ]
    return {image.name: image.reason for image in quarantine(records, seen)}


def test_sound_images_stay():
    assert judged(("1", "a", "", "x"), ("2", "a", "", "y")) == {}


def test_what_cannot_be_decoded():
    assert judged(("1", "a", "", "x"), ("2", "a", "", "y"), ("3", "a", "", "!corrupt")) == {"3": "corrupt"}


def test_a_duplicate_keeps_the_first():
    assert judged(("1", "a", "", "x"), ("2", "a", "", "x"), ("3", "a", "", "y")) == {"2": "duplicate"}


def test_two_labels_lose_every_copy():
    found = judged(("1", "a", "", "x"), ("2", "b", "", "x"), *((f"{n}", "ab"[n % 2], "", f"{n}") for n in range(3, 9)))
    assert found == {"1": "two_labels", "2": "two_labels"}


def test_two_labels_across_splits():
    rest = [(f"{n}", "ab"[n % 2], "train", f"{n}") for n in range(3, 9)]
    assert judged(("1", "a", "train", "x"), ("2", "b", "test", "x"), *rest) == {"1": "two_labels", "2": "two_labels"}


def test_the_training_copy_of_a_test_picture_goes():
    images = [
        ("1", "a", "train", "x"),
        ("2", "a", "test", "x"),
        ("3", "a", "train", "y"),
        ("4", "a", "validation", "x"),
    ]
    assert judged(*images) == {"1": "train_and_test", "4": "train_and_test"}


def test_the_same_bytes_of_another_shape_are_another_picture():
    records = [Record(name, "a", "", None) for name in "12"]
    assert quarantine(records, [Seen("x", 10, 20), Seen("x", 20, 10)]) == []


def test_the_only_image_of_a_class_counted_after_the_others_went():
    found = judged(("1", "a", "", "x"), ("2", "a", "", "y"), ("3", "b", "", "z"), ("4", "b", "", "!truncated"))
    assert found == {"3": "single_image_class", "4": "truncated"}


def test_every_reason_is_explained():
    records = [Record(f"{n}", "a", "", None) for n in range(3)]
    for image in quarantine(records, [Seen("x", 9, 9), Seen("x", 9, 9), Seen(reason="too_small", detail="3x3")]):
        assert image.reason in REASONS
        assert image.detail


def test_too_many_are_an_error_that_names_them():
    records = [Record(f"a/{n}.jpg", "a", "", None) for n in range(10)]
    seen = [Seen(reason="truncated", detail="ends early")] * 5 + [Seen(f"{n}", 9, 9) for n in range(5)]
    left_out = quarantine(records, seen)
    check_fraction(left_out, 10, 0.5)
    with pytest.raises(ValueError, match=r"5 of 10 images are unfit \(50\.0%\)") as caught:
        check_fraction(left_out, 10, 0.49)
    assert "5 x truncated" in str(caught.value)
    assert "a/0.jpg (ends early), a/1.jpg" in str(caught.value)


def test_none_left_is_an_error_whatever_is_allowed():
    left_out = quarantine([Record("1", "a", "", None)], [Seen("x", 9, 9)])
    with pytest.raises(ValueError, match="1 of 1 images"):
        check_fraction(left_out, 1, 1.0)

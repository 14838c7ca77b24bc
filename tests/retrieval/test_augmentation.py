import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from retrieval.augmentation import AUGMENTATIONS, choose_augmentation, erase, named_augmentation, recolour, shift


def images(count: int = 6, size: int = 16) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_bytes_in_numbers_out(name: str) -> None:
    batch = images()
    before = batch.clone()
    state = torch.random.get_rng_state()
    result = AUGMENTATIONS[name](batch, Generator().manual_seed(1))
    assert result.shape == batch.shape
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(batch, before)
    assert torch.equal(result, AUGMENTATIONS[name](batch, Generator().manual_seed(1)))
    assert name == "none" or not torch.equal(result, AUGMENTATIONS[name](batch, Generator().manual_seed(2)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_none_changes_nothing() -> None:
    assert torch.equal(AUGMENTATIONS["none"](images(), Generator()).mul(255).round().byte(), images())


@pytest.mark.parametrize("mirror", [False, True])
def test_a_shift_is_a_crop_of_the_image_padded_with_its_border(mirror: bool) -> None:
    batch = images(12)
    moved = shift(batch, Generator().manual_seed(0), mirror)
    padded = torch.nn.functional.pad(batch.float(), (2, 2, 2, 2), mode="replicate").byte()
    seen = set()
    for image, original in zip(moved, padded, strict=True):
        found = [
            (down, right, turned)
            for down in range(5)
            for right in range(5)
            for turned in ([False, True] if mirror else [False])
            if torch.equal(image.flip(2) if turned else image, original[:, down : down + 16, right : right + 16])
        ]
        assert found
        seen.add(found[0])
    assert len(seen) > 5


def test_colours_change_by_image_and_shapes_stay() -> None:
    flat = torch.full((4, 3, 4, 4), 0.5)
    changed = recolour(flat, Generator().manual_seed(0))
    assert changed.flatten(1).std(1).max() < 1e-6  # flat stays flat
    assert len(changed[:, 0, 0, 0].unique()) == 4


def test_erasing_hides_one_rectangle_in_half_of_the_images() -> None:
    batch = torch.rand((400, 3, 16, 16), generator=Generator().manual_seed(1))
    hidden = (erase(batch, Generator().manual_seed(0)) != batch).all(1)  # (b, h, w)
    touched = hidden.flatten(1).any(1)
    assert 0.4 < touched.float().mean() < 0.6
    for mask in hidden[touched]:
        rectangle = mask.any(1)[:, None] & mask.any(0)[None]
        assert torch.equal(mask, rectangle)
    shares = hidden[touched].flatten(1).float().mean(1)
    assert 0.08 < shares.mean() < 0.2
    assert shares.max() < 0.4


def letters(mirrored_too: bool) -> tuple[Tensor, Tensor]:
    """Two classes in noise: a bar at the left or right, or at the top or bottom."""
    pixels = np.random.default_rng(0).integers(0, 80, (200, 3, 16, 16))
    labels = np.arange(200) % 2
    for image, label in zip(pixels, labels, strict=True):
        part = slice(0, 5) if label else slice(11, 16)
        image[(slice(None), part) if mirrored_too else (slice(None), slice(None), part)] += 150
    return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)


def test_auto_mirrors_what_stays_nearest_to_its_class() -> None:
    choice = choose_augmentation(*letters(mirrored_too=True))
    assert choice.value == "crop_flip"
    assert "100.0% of 100 images and 100.0% of their mirrors" in choice.why


def test_auto_never_mirrors_what_would_become_another_class() -> None:
    choice = choose_augmentation(*letters(mirrored_too=False))
    assert choice.value == "shift"
    assert choice.facts["mirrored_accuracy"] == 0


def test_auto_does_not_mirror_without_evidence() -> None:
    labels = torch.from_numpy(np.random.default_rng(3).integers(0, 5, 60))
    choice = choose_augmentation(images(60), labels)
    assert choice.value == "shift"
    assert "no evidence" in choice.why


def test_auto_does_not_mirror_real_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * 15).astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
    choice = choose_augmentation(pixels, torch.from_numpy(digits.target))
    assert choice.value == "shift"
    assert choice.facts["mirrored_accuracy"] < 0.5 * choice.facts["upright_accuracy"]


def test_what_is_asked_for_is_taken() -> None:
    assert choose_augmentation(*letters(mirrored_too=False), "crop_flip").value == "crop_flip"
    with pytest.raises(ValueError, match="Unknown augmentation 'flop'; choose one of: none, shift"):
        choose_augmentation(*letters(mirrored_too=False), "flop")
    with pytest.raises(ValueError, match="Unknown augmentation 'auto'"):
        named_augmentation("auto")

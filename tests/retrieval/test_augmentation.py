import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from retrieval.augmentation import (
    AUGMENTATIONS,
    FILTERS,
    GEOMETRIES,
    IMAGES_TO_JUDGE,
    ROBUST,
    choose_augmentation,
    erase,
    evenly_spaced,
    hide_parts,
    move,
    named_augmentation,
    patch,
    rand_augment,
    recolour,
    refilter,
    shift,
    warp,
)
from retrieval.choices import Choice


def images(count: int = 6, size: int = 16) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("robust", ROBUST)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_bytes_in_numbers_out(name: str, robust: str) -> None:
    batch = images()
    before = batch.clone()
    state = torch.random.get_rng_state()
    augment = named_augmentation(name, robust)
    result = augment(batch, Generator().manual_seed(1))
    assert result.shape == batch.shape
    assert torch.isfinite(result).all()
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(batch, before)
    assert torch.equal(result, augment(batch, Generator().manual_seed(1)))
    assert name == robust == "none" or not torch.equal(result, augment(batch, Generator().manual_seed(2)))
    assert augment(batch[:1], Generator().manual_seed(1)).shape == (1, 3, 16, 16)
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


def test_a_patch_shows_another_image_of_the_batch_at_the_same_place() -> None:
    batch = torch.rand((60, 3, 16, 16), generator=Generator().manual_seed(1))
    patched = patch(batch, Generator().manual_seed(0))
    foreign = (patched != batch).all(1)  # (b, h, w)
    touched = [number for number in range(60) if foreign[number].any()]
    assert 15 < len(touched) < 45
    donors = set()
    for number in touched:
        mask = foreign[number]
        assert mask.float().mean() < 0.4
        fits = [other for other in range(60) if torch.equal(patched[number][:, mask], batch[other][:, mask])]
        assert len(fits) == 1
        assert fits != [number]
        donors.add(fits[0] - number)
    assert len(donors) > 5  # no fixed neighbour, which in a balanced batch would be of the same class


def as_torchvision(name: str, image: Tensor, strength: float) -> Tensor:
    """The operation by torchvision, an outside oracle, on one image; its shears go the other way and round an edge."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as outside

    if name in ("shear_x", "shear_y"):
        rows, columns = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
        sheared = 0.3 * strength * (rows if name == "shear_x" else columns)
        places = (columns + sheared, rows) if name == "shear_x" else (columns, rows + sheared)
        return torch.nn.functional.grid_sample(image[None], torch.stack(places, -1)[None] / 8, align_corners=False)[0]
    if name in GEOMETRIES:
        angle = -30 * strength if name == "rotate" else 0.0
        across = [-0.2 * 16 * strength] * 2 if name == "translate" else [0.0, 0.0]
        bilinear = InterpolationMode.BILINEAR
        return outside.affine(image[None], angle, across, 1.0, [0.0], interpolation=bilinear)[0]  # type: ignore[arg-type]
    if name == "posterize":
        return outside.posterize(image.mul(255).round().byte(), round(4 + 3 * abs(strength))).float() / 255
    if name == "solarize":
        return outside.solarize(image, abs(strength))
    return getattr(outside, f"adjust_{name}")(image, 1 + 0.9 * strength)


@pytest.mark.parametrize("strength", [-0.8, 0.3, 1.0])
@pytest.mark.parametrize("name", [*GEOMETRIES, *FILTERS])
def test_every_operation_is_what_torchvision_calls_so(name: str, strength: float) -> None:
    pixels = images(2).float() / 255
    smooth = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1) if name in GEOMETRIES else pixels
    strengths = torch.full((2,), strength)
    if name in GEOMETRIES:
        geometry = torch.full((2,), GEOMETRIES.index(name))
        result = move(smooth, geometry, strengths.expand(2, 2))
    else:
        result = refilter(smooth, torch.full((2,), FILTERS.index(name)), strengths)
    inner = (slice(None), slice(5, 11), slice(5, 11))  # borders are filled, and blurred, in other ways
    for image, original in zip(result, smooth, strict=True):
        torch.testing.assert_close(image[inner], as_torchvision(name, original, strength)[inner], atol=2e-4, rtol=0)
        assert not torch.allclose(image, original, atol=1e-3)


def test_a_warp_moves_no_pixel_far_and_every_image_its_own_way() -> None:
    """A spot at the middle of a black image stays near it, whatever the warp does."""
    batch = torch.zeros((200, 3, 33, 33))
    batch[:, :, 15:18, 15:18] = 1
    warped = warp(batch, Generator().manual_seed(0))[:, 0]
    places = torch.arange(33.0) - 16
    mass = warped.sum(dim=(1, 2))
    rows, columns = ((warped.sum(dim=axis) * places).sum(1) / mass for axis in (2, 1))
    moved = torch.stack([rows, columns])
    assert moved.abs().max() < 33 * 0.15
    assert moved.std() > 33 * 0.02
    assert moved.mean().abs() < 33 * 0.01
    assert (mass / 9).std() > 0.05, "some grow, some shrink"
    assert moved[0].unique().numel() == 200


def test_each_image_gets_its_own_operation_and_no_strength_changes_nothing() -> None:
    batch = torch.rand((4, 3, 16, 16), generator=Generator().manual_seed(1))
    order, strengths = torch.tensor([3, 0, 2, 1]), torch.tensor([0.9, -0.5, 0.2, -1.0])
    together = move(batch, order, strengths.expand(2, 4))
    filtered = refilter(batch, order, strengths)
    for number in range(4):
        one = slice(number, number + 1)
        torch.testing.assert_close(together[one], move(batch[one], order[one], strengths[one].expand(2, 1)))
        torch.testing.assert_close(filtered[one], refilter(batch[one], order[one], strengths[one]))
    torch.testing.assert_close(move(batch, order, torch.zeros(2, 4)), batch, atol=1e-5, rtol=0)
    torch.testing.assert_close(refilter(batch, torch.full((4,), -1), strengths), batch, atol=1e-6, rtol=0)


def test_every_image_is_changed_and_a_third_keeps_its_colours() -> None:
    flat = torch.rand((600, 3, 1, 1), generator=Generator().manual_seed(0)).expand(-1, -1, 8, 8)
    result = rand_augment(flat, Generator().manual_seed(0))
    assert result.flatten(2).std(2).max() < 1e-6  # flat stays flat
    recoloured = (result - flat).abs().amax((1, 2, 3)) > 0.005
    assert 0.35 < recoloured.float().mean() < 2 / 3
    noise = torch.rand((600, 3, 8, 8), generator=Generator().manual_seed(0))
    changed = (rand_augment(noise, Generator().manual_seed(0)) - noise).abs().amax((1, 2, 3)) > 0.005
    assert changed.float().mean() > 0.95


def test_hidden_parts_are_a_block_a_strip_or_cells_of_a_grid_in_an_eighth_of_the_images() -> None:
    batch = torch.rand((1_800, 3, 16, 16), generator=Generator().manual_seed(1))
    result = hide_parts(batch, Generator().manual_seed(0))
    hidden = (result != batch).all(1)  # (b, h, w)
    touched = hidden.flatten(1).any(1)
    assert 0.1 < touched.float().mean() < 0.15
    colour = batch.mean((0, 2, 3))
    torch.testing.assert_close(result.permute(0, 2, 3, 1)[hidden], colour.expand(int(hidden.sum()), 3))
    shares = hidden[touched].flatten(1).float().mean(1)
    assert shares.max() < 0.68  # HIDDEN_SHARE, and whole rows and cells
    assert 0.25 < shares.mean() < 0.35
    found = {"block": 0, "strip": 0, "cells": 0}
    for mask in hidden[touched]:
        cells = mask.view(4, 4, 4, 4).transpose(1, 2).flatten(2)  # (4, 4, 16 pixels)
        rectangle = torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None])
        if rectangle and (mask.all(0).any() or mask.all(1).any()):
            found["strip"] += 1
        elif rectangle:
            found["block"] += 1
        else:
            assert int((cells.any(-1) & ~cells.all(-1)).sum()) <= 1  # the last one, cut to the share
            found["cells"] += 1
    assert min(found.values()) > 60


def chosen(images: Tensor, labels: Tensor, asked: str = "auto") -> Choice:
    return choose_augmentation(lambda positions: images[positions], labels, asked)


def letters(mirrored_too: bool) -> tuple[Tensor, Tensor]:
    """Two classes in noise: a bar at the left or right, or at the top or bottom."""
    pixels = np.random.default_rng(0).integers(0, 80, (200, 3, 16, 16))
    labels = np.arange(200) % 2
    for image, label in zip(pixels, labels, strict=True):
        part = slice(0, 5) if label else slice(11, 16)
        image[(slice(None), part) if mirrored_too else (slice(None), slice(None), part)] += 150
    return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)


def test_auto_mirrors_what_stays_nearest_to_its_class() -> None:
    choice = chosen(*letters(mirrored_too=True))
    assert choice.value == "crop_flip"
    assert "100.0% of 100 images and 100.0% of their mirrors" in choice.why


def test_auto_never_mirrors_what_would_become_another_class() -> None:
    choice = chosen(*letters(mirrored_too=False))
    assert choice.value == "shift"
    assert choice.facts["mirrored_accuracy"] == 0


def test_auto_does_not_mirror_without_evidence() -> None:
    labels = torch.from_numpy(np.random.default_rng(3).integers(0, 5, 60))
    choice = chosen(images(60), labels)
    assert choice.value == "shift"
    assert "no evidence" in choice.why


def test_auto_does_not_mirror_real_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * 15).astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
    choice = chosen(pixels, torch.from_numpy(digits.target))
    assert choice.value == "shift"
    assert choice.facts["mirrored_accuracy"] < 0.5 * choice.facts["upright_accuracy"]


def test_auto_does_not_mirror_characters_of_many_classes_with_few_images() -> None:
    """Strokes of a pen as in Omniglot: 60 characters, each drawn ten times by a shaking hand."""
    random = np.random.default_rng(0)
    pixels = np.full((600, 3, 28, 28), 255, np.uint8)
    labels = np.repeat(np.arange(60), 10)
    ends = random.uniform(4, 23, (60, 3, 2, 2))
    for image, label in zip(pixels, labels, strict=True):
        for start, end in ends[label] + random.normal(scale=0.7, size=(3, 2, 2)):
            rows, columns = np.linspace(start, end, 60).round().astype(int).T.clip(0, 26)
            image[:, rows, columns] = image[:, rows + 1, columns] = image[:, rows, columns + 1] = 0
    choice = chosen(torch.from_numpy(pixels), torch.from_numpy(labels))
    assert choice.value == "shift"
    assert choice.facts["upright_accuracy"] > 0.5
    assert choice.facts["mirrored_accuracy"] < 0.5 * choice.facts["upright_accuracy"]


def test_what_is_asked_for_is_taken() -> None:
    choose_augmentation(lambda _: pytest.fail("no image need be read"), torch.arange(4), "none")
    assert chosen(*letters(mirrored_too=False), "crop_flip").value == "crop_flip"
    with pytest.raises(ValueError, match="Unknown augmentation 'flop'; choose one of: none, shift"):
        chosen(*letters(mirrored_too=False), "flop")
    with pytest.raises(ValueError, match="Unknown augmentation 'auto'"):
        named_augmentation("auto")
    with pytest.raises(ValueError, match="Unknown robust 'holes'; choose one of: none, missing"):
        named_augmentation("shift", "holes")


@pytest.mark.parametrize("count", [1, 7, IMAGES_TO_JUDGE, 2 * IMAGES_TO_JUDGE - 1, 3 * IMAGES_TO_JUDGE, 1_000_003])
def test_all_of_few_images_are_judged_and_some_of_many_from_the_first_to_the_last(count: int) -> None:
    some = evenly_spaced(count)
    assert min(count, IMAGES_TO_JUDGE // 2) <= len(some) <= IMAGES_TO_JUDGE
    assert some.diff().unique().numel() <= 1
    assert some[0] == 0
    assert count - 1 - some[-1] < -(-count // IMAGES_TO_JUDGE)

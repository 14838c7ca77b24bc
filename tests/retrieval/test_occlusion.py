"""What is hidden: how much, in which shape, with which colour."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.occlusion import GRID, SHAPES, hide

FILL = torch.tensor([7, 8, 9], dtype=torch.uint8)


def images(count, height, width):
    """None of their pixels has a value of FILL."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def hidden(whole, shape, share, seed=0):
    """(b, h, w) bool, what `hide` replaced; checks that it put the fill there and left the rest alone."""
    found = hide(whole, shape, share, FILL, torch.Generator().manual_seed(seed))
    assert (found.dtype, found.shape) == (torch.uint8, whole.shape)
    filled = (found == FILL.view(1, 3, 1, 1)).all(1)
    assert torch.equal(torch.where(filled.unsqueeze(1), FILL.view(1, 3, 1, 1), whole), found)
    return filled


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(SHAPES)), st.floats(0, 1), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1)
)
def test_the_share_is_hidden_to_within_a_row_or_column(shape, share, height, width, seed):
    counts = hidden(images(5, height, width), shape, share, seed).sum((1, 2))
    assert ((counts - share * height * width).abs() <= max(height, width)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_shares_of_the_report_are_exact_on_32_pixels(shape, share):
    counts = hidden(images(40, 32, 32), shape, share).sum((1, 2))
    assert counts.unique().numel() == 1
    assert ((counts - share * 1024).abs() <= 32).all()


def test_a_block_is_one_filled_square():
    for filled in hidden(images(40, 32, 32), "block", 0.25):
        rows, columns = filled.any(1).nonzero()[:, 0], filled.any(0).nonzero()[:, 0]
        assert (len(rows), len(columns)) == (16, 16)
        assert filled.sum() == 16 * 16
        assert (rows[-1] - rows[0], columns[-1] - columns[0]) == (15, 15)


def test_half_an_image_is_one_of_its_four_halves():
    halves = {tuple(filled.flatten().tolist()) for filled in hidden(images(60, 8, 8), "side", 0.5)}
    down, across = torch.arange(8).view(8, 1).expand(8, 8), torch.arange(8).expand(8, 8)
    expected = [down < 4, down >= 4, across < 4, across >= 4]
    assert halves == {tuple(half.flatten().tolist()) for half in expected}


def test_patches_are_cells_of_the_grid_and_at_most_one_is_cut():
    for share in (0.1, 0.25, 0.5):
        for filled in hidden(images(20, 32, 32), "patches", share):
            cells = filled.view(GRID, 8, GRID, 8).sum((1, 3)).flatten()  # hidden pixels of each cell
            assert int(((cells > 0) & (cells < 64)).sum()) <= 1
            assert int((cells == 64).sum()) == int(share * GRID * GRID)


@pytest.mark.parametrize("shape", SHAPES)
def test_places_differ_by_image_and_not_by_run(shape):
    whole = images(30, 16, 16)
    first = hidden(whole, shape, 0.25, seed=4)
    assert torch.equal(first, hidden(whole, shape, 0.25, seed=4))
    assert len({tuple(filled.flatten().tolist()) for filled in first}) > 3
    assert torch.equal(whole, images(30, 16, 16))


def test_the_memory_format_is_kept():
    whole = images(4, 8, 8).contiguous(memory_format=torch.channels_last)
    found = hide(whole, "block", 0.5, FILL, torch.Generator())
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "share", "kind", "message"),
    [
        ("square", 0.5, torch.uint8, "Unknown shape 'square'; choose one of: block, side, patches"),
        ("block", 50, torch.uint8, "share is 50"),
        ("block", 0.5, torch.float32, "torch.float32"),
    ],
)
def test_bad_input_is_refused(shape, share, kind, message):
    with pytest.raises(ValueError, match=message):
        hide(images(2, 4, 4).to(kind), shape, share, FILL, torch.Generator())

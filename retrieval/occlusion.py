"""Hides parts of images, as things in front of a camera do: by how much, and in which shape.

To measure a model (retrieval/robustness.py) and to train one (augmentation.hide_parts) the same shapes are drawn.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

GRID = 4  # cells a side that scattered patches fall into

# (b,) float shares, height, width, generator -> (b, h, w) bool; all on the generator's device
Mask = Callable[[Tensor, int, int, Generator], Tensor]


def block(shares: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """One square anywhere in each image (a rectangle of its proportions where the image is none): (b, h, w) bool."""
    rows = (height * shares.sqrt()).round()
    columns = (shares * height * width / rows.clamp(min=1)).round().clamp(max=width) * (rows > 0)
    down, across = torch.rand((2, len(shares)), generator=generator, device=generator.device)
    in_rows = _interval(height, (down * (height - rows + 1)).floor(), rows)
    in_columns = _interval(width, (across * (width - columns + 1)).floor(), columns)
    return in_rows.unsqueeze(2) & in_columns.unsqueeze(1)


def side(shares: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """From the left, the right, the top or the bottom of each image on, a share of it; of 0.5, half: (b, h, w) bool."""
    drawn = torch.randint(4, (len(shares),), generator=generator, device=generator.device)
    vertical, from_end = drawn < 2, drawn % 2
    rows = (height * torch.where(vertical, shares, 1)).round()
    columns = (width * torch.where(vertical, 1, shares)).round()
    in_rows = _interval(height, from_end * (height - rows), rows)
    in_columns = _interval(width, from_end * (width - columns), columns)
    return in_rows.unsqueeze(2) & in_columns.unsqueeze(1)


def patches(shares: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """Cells of a 4 x 4 grid, drawn for each image; of the last one only as much as the share wants: (b, h, w) bool."""
    device = generator.device
    row_cell, column_cell = (torch.arange(length, device=device) * GRID // length for length in (height, width))
    cell = (row_cell.unsqueeze(1) * GRID + column_cell).flatten()  # (h w)
    pixels = torch.bincount(cell, minlength=GRID * GRID)
    within = cell.argsort(stable=True).argsort() - (pixels.cumsum(0) - pixels)[cell]  # number of a pixel in its cell
    order = torch.rand((len(shares), GRID * GRID), generator=generator, device=device).argsort(1)
    before = pixels[order].cumsum(1) - pixels[order]  # pixels of the cells that are hidden before
    first = torch.empty_like(before).scatter_(1, order, before)  # (b, cells)
    hidden = first[:, cell] + within < (shares * height * width).round().unsqueeze(1)
    return hidden.view(-1, height, width)


def _interval(length: int, start: Tensor, extent: Tensor) -> Tensor:
    """Which rows or columns lie from `start`, (b,), on, so many of them: (b, length) bool."""
    place = torch.arange(length, device=start.device)
    return (place >= start.unsqueeze(1)) & (place < (start + extent).unsqueeze(1))


SHAPES: dict[str, Mask] = {"block": block, "side": side, "patches": patches}


def hide(images: Tensor, shape: str, share: float, fill: Tensor, generator: Generator) -> Tensor:
    """Hide a share of every image, at a place of its own.

    Args:
        images: (b, 3, h, w) uint8; not changed.
        shape: a name of SHAPES.
        share: of the pixels, from 0 to 1; kept to within one row or column of pixels.
        fill: (3,) uint8, the colour put there.
        generator: on the CPU: the same seed hides the same pixels on every device.

    Returns:
        (b, 3, h, w) uint8, in the memory format and on the device of `images`.

    Raises:
        ValueError: unknown shape, a share out of range, or images of another type.
    """
    if shape not in SHAPES:
        raise ValueError(f"Unknown shape '{shape}'; choose one of: {', '.join(SHAPES)}.")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be from 0 to 1.")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {tuple(images.shape)} of {images.dtype}; need (b, 3, h, w) of torch.uint8.")
    shares = torch.full((len(images),), share, device=generator.device)
    mask = SHAPES[shape](shares, images.shape[2], images.shape[3], generator).to(images.device)
    return torch.where(mask.unsqueeze(1), fill.to(images.device).view(1, 3, 1, 1), images)

"""Hides parts of images, as things in front of a camera do: by how much, and in which shape."""

from collections.abc import Callable

import torch
from torch import Tensor

GRID = 4  # cells a side that scattered patches fall into

Mask = Callable[[int, int, int, float, torch.Generator], Tensor]  # images, height, width, share -> (b, h, w) bool


def block(images: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """One square anywhere in each image (a rectangle of its proportions where the image is none): (b, h, w) bool."""
    rows = round(height * share**0.5)
    columns = min(width, round(share * height * width / rows)) if rows else 0
    top = torch.randint(height - rows + 1, (images, 1), generator=generator)
    left = torch.randint(width - columns + 1, (images, 1), generator=generator)
    down, across = torch.arange(height), torch.arange(width)
    in_rows = (down >= top) & (down < top + rows)  # (b, h)
    in_columns = (across >= left) & (across < left + columns)  # (b, w)
    return in_rows.unsqueeze(2) & in_columns.unsqueeze(1)


def side(images: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """From the left, the right, the top or the bottom of each image on, a share of it; of 0.5, half: (b, h, w) bool."""
    rows, columns = round(height * share), round(width * share)
    down, across = torch.arange(height).view(-1, 1), torch.arange(width)
    whole = torch.zeros(height, width, dtype=torch.bool)
    parts = [down < rows, down >= height - rows, across < columns, across >= width - columns]
    sides = torch.stack([whole | part for part in parts])  # (4, h, w)
    return sides[torch.randint(4, (images,), generator=generator)]


def patches(images: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Cells of a 4 x 4 grid, drawn for each image; of the last one only as much as the share wants: (b, h, w) bool."""
    down, across = torch.arange(height) * GRID // height, torch.arange(width) * GRID // width
    cell = (down.view(-1, 1) * GRID + across).flatten()  # (h w)
    turn = torch.rand(images, GRID * GRID, generator=generator).argsort(1)  # when each cell is hidden
    first = (turn[:, cell] * cell.numel() + torch.arange(cell.numel())).argsort(1)
    hidden = torch.zeros(images, cell.numel(), dtype=torch.bool)
    hidden.scatter_(1, first[:, : round(share * cell.numel())], True)
    return hidden.view(images, height, width)


SHAPES: dict[str, Mask] = {"block": block, "side": side, "patches": patches}


def hide(images: Tensor, shape: str, share: float, fill: Tensor, generator: torch.Generator) -> Tensor:
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
    mask = SHAPES[shape](len(images), images.shape[2], images.shape[3], share, generator).to(images.device)
    return torch.where(mask.unsqueeze(1), fill.to(images.device).view(1, 3, 1, 1), images)

"""Rotation, cropping and tiling of image batches on their device: one call per batch, own numbers per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.transforms.image import to_float
from adbench.types import UserError


def inscribed_square(side: float, degrees: Tensor) -> Tensor:
    """Side of the largest upright square inside a square of `side` turned by `degrees`, about the same centre.

    side / (|sin| + |cos|): all of it at 0 and 90 degrees, 0.707 of it at 45.

    Args:
        side: of the turned square.
        degrees: (B,) any angle.

    Returns:
        (B,) float in [0.707 side, side].
    """
    angle = degrees.deg2rad()
    return side / (angle.sin().abs() + angle.cos().abs())


def turned_clockwise(image: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image clockwise about its centre, bilinear, the border's pixels continued outwards.

    Args:
        image: (B, C, H, W) float.
        degrees: (B,) one angle per image.

    Returns:
        (B, C, H, W), in the range of the image.
    """
    height, width = image.shape[-2:]
    top_left = torch.zeros(len(image), 2, device=image.device)
    grid = _turned_grid(image, degrees, top_left, height, width).to(image.dtype)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def rotated_crop(image: Tensor, degrees: Tensor, position: Tensor, size: int) -> Tensor:
    """Turn each square image clockwise, cut away the empty corners and take one crop of what is left.

    Equal to `turned_clockwise`, then a central crop to `inscribed_square`, then a crop at a whole pixel, in one
    sampling which touches only the crop's pixels. At 0 degrees the pixels are the image's own. Bytes become float after
    the crop.

    Args:
        image: (B, C, S, S) float, or uint8 0..255.
        degrees: (B,) one angle per image.
        position: (B, 2) in [0, 1), row and column, uniform for a uniform crop.
        size: side of the crop.

    Returns:
        (B, C, size, size) float, in the range of the image; of bytes in [0, 1].

    Raises:
        UserError: the images are not square.
    """
    height, width = image.shape[-2:]
    if height != width:
        raise UserError(f"rotated crops are taken of square images, got {height}x{width}; choose a square image size")
    # The tolerance keeps rounding at 0 and 90 degrees from costing a row; beyond it no crop looks past the edge.
    margin = ((height - inscribed_square(height, degrees)) / 2 - 1e-3).ceil().clamp_min(0)
    free = (height - 2 * margin - size + 1).clamp_min(1)  # number of places for the crop along a side
    top_left = margin[:, None] + (position * free[:, None]).floor().minimum(free[:, None] - 1)
    return _bilinear(image, _turned_grid(image, degrees, top_left, size, size))


def _bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """`grid_sample` with the border continued, which takes no bytes: it reads four pixels of (B, C, H, W) for each of
    (B, h, w, 2), and bytes become float only then."""
    height, width = image.shape[-2:]
    x = ((grid[..., 0] + 1) * (width / 2) - 0.5).clamp(0, width - 1)
    y = ((grid[..., 1] + 1) * (height / 2) - 0.5).clamp(0, height - 1)
    left, above = x.floor(), y.floor()
    across, down = (x - left)[:, None], (y - above)[:, None]
    columns = left.long(), (left.long() + 1).clamp(max=width - 1)
    rows = above.long(), (above.long() + 1).clamp(max=height - 1)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, image.shape[1], -1)
        values = image.flatten(2).gather(2, index).unflatten(2, row.shape[1:])
        return to_float(values) if values.dtype == torch.uint8 else values

    of_rows, of_columns = (1 - down, down), (1 - across, across)
    parts = [pixels(rows[i], columns[j]) * (of_rows[i] * of_columns[j]) for i in (0, 1) for j in (0, 1)]
    return parts[0] + parts[1] + parts[2] + parts[3]


def _turned_grid(image: Tensor, degrees: Tensor, top_left: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width, 2) where the window at top_left (in rows and columns) of each turned image comes from, in the
    coordinates of `grid_sample`."""
    full_height, full_width = image.shape[-2:]
    rows = torch.arange(height, device=image.device) + 0.5 - full_height / 2  # pixel centres, measured from the centre
    columns = torch.arange(width, device=image.device) + 0.5 - full_width / 2
    y = (top_left[:, 0, None] + rows)[:, :, None]
    x = (top_left[:, 1, None] + columns)[:, None, :]
    cosine, sine = (f(degrees.deg2rad()).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    source_x = (cosine * x + sine * y) * (2 / full_width)
    source_y = (cosine * y - sine * x) * (2 / full_height)
    return torch.stack([source_x, source_y], -1)


def tile(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut images into tiles that do not overlap, in raster order.

    Args:
        image: (B, C, H, W), H and W multiples of a tile's height and width.
        size: (height, width) of a tile, or its side.

    Returns:
        (B, N, C, h, w), N = (H / h) (W / w).

    Raises:
        UserError: the images do not divide into tiles.
    """
    h, w = (size, size) if isinstance(size, int) else size
    height, width = image.shape[-2:]
    if height % h or width % w:
        side = f"{h}" if h == w else f"{h}x{w}"
        raise UserError(
            f"images are cut into tiles of {side}, so their sides are multiples of it; got {height}x{width}"
        )
    grid = image.unflatten(3, (-1, w)).unflatten(2, (-1, h))  # (B, C, rows, h, columns, w)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def untile(tiles: Tensor, height: int, width: int) -> Tensor:
    """Put tiles back where `tile` took them from.

    Args:
        tiles: (B, N, C, h, w).
        height, width: of the whole image.

    Returns:
        (B, C, height, width).
    """
    h, w = tiles.shape[-2:]
    grid = tiles.unflatten(1, (height // h, width // w)).permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, h, columns, w)
    return grid.flatten(4, 5).flatten(2, 3)

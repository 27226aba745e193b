"""Sliding windows over an image, and the way back from per-window maps to one map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def windows(image: Tensor, side: int, stride: int) -> Tensor:
    """A view of every window: (B, C, H, W) -> (B, C, rows, columns, side, side), rows = (H - side) / stride + 1."""
    return image.unfold(2, side, stride).unfold(3, side, stride)


def all_windows(image: Tensor, side: int, stride: int) -> Tensor:
    """(B, C, H, W) -> (B * n, C, side, side), the windows of an image together and in row-major order."""
    return windows(image, side, stride).permute(0, 2, 3, 1, 4, 5).reshape(-1, image.shape[1], side, side)


def chosen_windows(image: Tensor, side: int, stride: int, chosen: Tensor) -> Tensor:
    """Some windows of each image: chosen (B, k) int64 row-major -> (k * B, C, side, side), image by image in turn.

    Neighbours in the result come from different images (where the batch holds several).
    """
    view = windows(image, side, stride)
    rows, columns = chosen.T // view.shape[3], chosen.T % view.shape[3]  # (k, B)
    batch = torch.arange(image.shape[0], device=image.device).expand_as(rows)
    picked = view.permute(0, 2, 3, 1, 4, 5)[batch, rows, columns]  # (k, B, C, side, side)
    return picked.flatten(0, 1)


def fold_windows(maps: Tensor, height: int, width: int, stride: int, *, average: bool) -> Tensor:
    """Put per-window maps back in place: (B, n, side, side) -> (B, 1, H, W), overlaps summed or averaged.

    Args:
        maps: row-major windows as `all_windows` orders them.
        height, width: H and W of the image.
        stride: of its windows.
        average: divide each pixel by the number of windows that hold it; else the plain sum (1, 2 or 4 times at
            corners, borders and inside for a stride of half a side).
    """
    side = maps.shape[-1]

    def fold(columns: Tensor) -> Tensor:
        return F.fold(columns.flatten(2).transpose(1, 2), (height, width), side, stride=stride)

    total = fold(maps)
    return total / fold(torch.ones_like(maps[:1])) if average else total

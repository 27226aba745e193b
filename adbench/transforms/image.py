"""Images as tensors: from bytes to numbers, and from one size to another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def to_float(image: Tensor) -> Tensor:
    """uint8 0..255 of any shape -> float32 in [0, 1]."""
    return torch.div(image, 255.0)  # one pass: half the time of a conversion followed by a division


def to_rgb(image: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W): grey is repeated."""
    return image if image.shape[1] == 3 else image.expand(-1, 3, -1, -1).contiguous()


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) float -> (B, C, *size) float: bilinear, with antialias where it shrinks.

    Unlike an 8-bit resize it does not round in between, so an exported graph that calls it sees what training saw.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)


def resize_nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) bool -> (B, 1, *size) bool: each pixel takes the value under its center."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    return F.interpolate(mask.to(torch.uint8), size=tuple(size), mode="nearest-exact").bool()


def to_bytes(image: Tensor) -> Tensor:
    """float in [0, 1] -> uint8 0..255, rounded."""
    return image.mul(255.0).round_().clamp_(0, 255).to(torch.uint8)

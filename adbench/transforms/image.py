"""Images as tensors: from bytes to numbers, and from one size to another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

TIE = 2.0**-20  # of a grey level: more than float64's error in a weighted mean of bytes


def to_float(image: Tensor) -> Tensor:
    """uint8 0..255 of any shape -> float32 in [0, 1]."""
    return torch.div(image, 255.0)  # one pass: half the time of a conversion followed by a division


def to_rgb(image: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W): grey is repeated."""
    return image if image.shape[1] == 3 else image.expand(-1, 3, -1, -1).contiguous()


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) float -> (B, C, *size) float: bilinear, with antialias where it shrinks. `size` is (height, width).

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


def resize_by_products(image: Tensor, size: tuple[int, int], crop: int | None = None) -> Tensor:
    """What `resize` computes, as two matrix products: (B, C, H, W) float -> (B, C, *size) float.

    H and W may be symbols: an exported graph has no other way to resize images of any size with antialias. With `crop`,
    only the central square of that side, or as much of it as there is, is resized.
    """
    down, across = (_weights(image.shape[axis], out, crop, image) for axis, out in zip((-2, -1), size, strict=True))
    return down @ (image @ across.T)


def _weights(length: int, out: int, crop: int | None, like: Tensor) -> Tensor:
    """(out, length): row i holds the triangle that weighs the input's pixels for output pixel i."""
    pixel = torch.arange(length, dtype=torch.float64, device=like.device) + 0.5
    used = pixel[-1:] + 0.5  # the length, as a tensor where it is a symbol
    inside: Tensor | float = 1.0
    if crop is not None:
        pixel = pixel - ((used - crop) / 2).floor().clamp(min=0)
        used = used.clamp(max=crop)
        inside = ((pixel > 0) & (pixel < used)).double()
    center = (torch.arange(out, dtype=torch.float64, device=like.device) + 0.5)[:, None] * (used / out)
    triangle = (1 - (pixel - center).abs() / (used / out).clamp(min=1)).clamp(min=0) * inside
    return (triangle / triangle.sum(1, keepdim=True)).to(like.dtype)


def resized_bytes(image: Tensor, size: tuple[int, int], by: Callable[..., Tensor] = resize) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, *size) uint8: resized in float64 with antialias, rounded once, halves up.

    The bytes are the same everywhere: simple ratios leave many pixels exactly half way between two bytes, where
    float32's error, which differs between processors and runtimes, would decide. `by` stands in for `resize`.
    """
    return by(image.to(torch.float64), size).add_(0.5 + TIE).floor_().clamp_(0, 255).to(torch.uint8)


def resized_large(image: Tensor, size: tuple[int, int], rows: int) -> Tensor:
    """`resized_bytes` of (B, C, H, W) uint8 of any size, with a float64 copy of only `rows` of its rows at a time.

    The bytes are the same: the antialias is separable, and `resize` too goes along the rows first.
    """
    parts = [
        resize(image[..., top : top + rows, :].to(torch.float64), (min(rows, image.shape[-2] - top), size[1]))
        for top in range(0, image.shape[-2], rows)
    ]
    return resize(torch.cat(parts, dim=-2), size).add_(0.5 + TIE).floor_().clamp_(0, 255).to(torch.uint8)


def to_bytes(image: Tensor) -> Tensor:
    """float in [0, 1] -> uint8 0..255, rounded."""
    return image.mul(255.0).round_().clamp_(0, 255).to(torch.uint8)

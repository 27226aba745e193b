"""The symmetries of a square as per-image augmentation, and crops at per-image positions."""

from __future__ import annotations

import torch
from torch import Tensor

from adbench.types import UserError

#: Codes 0..7: bit 0 mirrors left and right, bit 1 top and bottom, bit 2 then swaps the axes.
SYMMETRIES: dict[str, tuple[int, ...]] = {
    "none": (0,),
    "horizontal": (0, 1),
    "grain": (0, 1, 2, 3),  # flips and the half turn: for a texture with a direction
    "rotations": (0, 3, 5, 6),  # quarter turns without mirroring
    "all": tuple(range(8)),
}


def symmetry_codes(group: str, square: bool = True) -> tuple[int, ...]:
    """The codes of a named group of symmetries; images that are not square keep those that do not swap the axes.

    Raises:
        UserError: there is no such group.
    """
    if group not in SYMMETRIES:
        raise UserError(f"there are no symmetries called {group!r}; take one of {', '.join(SYMMETRIES)}")
    return tuple(code for code in SYMMETRIES[group] if square or code < 4)


def apply_symmetry(image: Tensor, code: Tensor) -> Tensor:
    """Mirror and turn each image by its own code.

    Args:
        image: (B, C, H, W).
        code: (B,) int64 in 0..7, see `SYMMETRIES`, or (1,) for all; in 0..3 if H and W differ.

    Returns:
        (B, C, H, W).
    """
    bit = [(code & value).bool()[:, None, None, None] for value in (1, 2, 4)]
    image = torch.where(bit[0], image.flip(-1), image)
    image = torch.where(bit[1], image.flip(-2), image)
    return torch.where(bit[2], image.transpose(-1, -2), image) if image.shape[-1] == image.shape[-2] else image


def undo_symmetry(image: Tensor, code: Tensor) -> Tensor:
    """The inverse of `apply_symmetry` with the same codes: (B, C, H, W) and (B,) or (1,) -> (B, C, H, W).

    The two only differ where a code swaps the axes.
    """
    left, top = code & 1, code >> 1 & 1
    swaps = code >= 4
    return apply_symmetry(image, torch.where(swaps, top + 2 * left + 4, code))


def crop(image: Tensor, height: int, width: int, position: Tensor) -> Tensor:
    """Cut a window from each image at its own place.

    Args:
        image: (B, C, H, W).
        height, width: of the window, at most H and W.
        position: (B, 2) in [0, 1), from the topmost and leftmost window to the last.

    Returns:
        (B, C, height, width).
    """
    full_height, full_width = image.shape[-2:]
    if (height, width) == (full_height, full_width):
        return image
    top = (position[:, 0] * (full_height - height + 1)).long().clamp(max=full_height - height)
    left = (position[:, 1] * (full_width - width + 1)).long().clamp(max=full_width - width)
    rows = top[:, None] + torch.arange(height, device=image.device)
    cols = left[:, None] + torch.arange(width, device=image.device)
    index = (rows[:, :, None] * full_width + cols[:, None, :]).flatten(1)[:, None].expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, index).unflatten(2, (height, width))

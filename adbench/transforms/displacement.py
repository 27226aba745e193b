"""ESAD's φ: the image that a known anomaly is reconstructed as, in place of itself. Random numbers come in as tensors.

Source: Huang et al. 2021 (ESAD), section 3.3 ("adding Gaussian noise or a random permutation between various
dimensions; for the image data, a noised and rotated version of the original images").
"""

from __future__ import annotations

import torch
from torch import Tensor


def quarter_turned(image: Tensor, draw: Tensor) -> Tensor:
    """Each image turned by 90, 180 or 270 degrees, never by 0.

    Args:
        image: (B, C, S, S).
        draw: (B,) in [0, 1).

    Returns:
        (B, C, S, S).

    Raises:
        ValueError: the images are not square.
    """
    if image.shape[-1] != image.shape[-2]:
        raise ValueError(f"only square images stay in shape when turned by 90 degrees, got {tuple(image.shape)}")
    turns = torch.stack([image.rot90(k, (-2, -1)) for k in (1, 2, 3)])
    return turns[(draw * 3).long().clamp(0, 2), torch.arange(len(image), device=image.device)]


def permuted(features: Tensor, draw: Tensor) -> Tensor:
    """Each row's features in another order that leaves none in place: one random cycle through all of them.

    Args:
        features: (B, D).
        draw: (B, D) in [0, 1); its order is the cycle.

    Returns:
        (B, D).
    """
    cycle = draw.argsort(1)
    return torch.zeros_like(features).scatter(1, cycle, features.gather(1, cycle.roll(1, 1)))


def other_rows(rows: Tensor, wanted: Tensor, draw: Tensor) -> Tensor:
    """For each row one of the wanted rows, at random; any row where none is wanted.

    Source: Huang et al. 2021 (ESAD), section 3.3, the strategy that the paper tries and rejects: known anomalies are
    reconstructed as normal data.

    Args:
        rows: (B, ...).
        wanted: (B,) bool.
        draw: (B,) in [0, 1).

    Returns:
        (B, ...).
    """
    first = (~wanted).to(torch.uint8).argsort(stable=True)  # the wanted ones come first
    return rows[first[(draw * wanted.sum()).long().clamp(max=len(rows) - 1)]]

"""ESAD (Huang et al. 2021): the losses of an encoder-decoder-encoder with known anomalies, and its score.

Symbols: x input, x̂ = Dec(Enc1(x)), z = Enc1(x), ẑ = Enc2(x̂), Φ(x) = x or, for known anomalies, φ(x) ≠ x. The paper
writes ‖.‖², a sum over elements; `reduction="mean"` divides it by their number.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def squared_norm(x: Tensor, reduction: Reduction) -> Tensor:
    """‖x‖² of each row, (B, ...) -> (B,), as a sum or a mean over the row's elements."""
    over = tuple(range(1, x.ndim))
    return x.square().mean(over) if reduction == "mean" else x.square().sum(over)


def group_mean(value: Tensor, member: Tensor) -> Tensor:
    """Mean of the (B,) values whose row is a (B,) bool member, 0 if there is none: ()."""
    member = member.to(value.dtype)
    return value @ member / member.sum().clamp_min(1)


def reconstruction(x_hat: Tensor, target: Tensor, semi_label: Tensor, reduction: Reduction) -> Tensor:
    """Mean of ‖x̂ - Φ(x)‖² over the unlabelled rows, plus its mean over the labelled ones.

    Source: Huang et al. 2021 (ESAD), Eq. 5.

    Args:
        x_hat, target: (B, ...) float; target is Φ(x).
        semi_label: (B,) int, +1 known normal, 0 unlabelled, -1 known anomalous.

    Returns:
        () float, >= 0; a group that is not in the batch adds 0.
    """
    error = squared_norm(x_hat - target, reduction)
    return group_mean(error, semi_label == 0) + group_mean(error, semi_label != 0)


def norm(z_hat: Tensor, semi_label: Tensor, reduction: Reduction, eps: float = 1e-3) -> Tensor:
    """Mean of ‖ẑ‖² over the unlabelled rows, plus the mean of (‖ẑ‖²)^y over the labelled ones.

    Source: Huang et al. 2021 (ESAD), Eq. 6.

    Args:
        z_hat: (B, ...) float.
        semi_label: (B,) int, y where it is not 0.
        eps: added to ‖ẑ‖² where y = -1: bounds the term by 1 / eps and leaves it a gradient.

    Returns:
        () float, >= 0.
    """
    energy = squared_norm(z_hat, reduction)
    labelled = torch.where(semi_label < 0, 1 / (energy + eps), energy)
    return group_mean(energy, semi_label == 0) + group_mean(labelled, semi_label != 0)


def assistance(z: Tensor, z_hat: Tensor, reduction: Reduction) -> Tensor:
    """Mean of ‖ẑ - z‖² over all rows: ().

    Source: Huang et al. 2021 (ESAD), Eq. 7.
    """
    return squared_norm(z_hat - z, reduction).mean()


def score(x: Tensor, x_hat: Tensor, z_hat: Tensor, lambda_1: float, reduction: Reduction) -> Tensor:
    """‖x̂ - x‖² + λ1 ‖ẑ‖² of each row: (B,), >= 0.

    Source: Huang et al. 2021 (ESAD), Eq. 9.
    """
    return squared_norm(x_hat - x, reduction) + lambda_1 * squared_norm(z_hat, reduction)

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
    """‖x‖², which Eqs. 5 to 9 are made of, of each row: (B, ...) -> (B,), a sum or a mean over the row's elements."""
    over = tuple(range(1, x.ndim))
    return x.square().mean(over) if reduction == "mean" else x.square().sum(over)


def group_mean(value: Tensor, member: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of the (B,) values whose row is a (B,) bool member, 0 if there is none: ().

    Args:
        value, member: the rows of this device.
        count: () what to divide by; None for the members among these rows.
    """
    member = member.to(value.dtype)
    count = member.sum() if count is None else count
    return value @ member / torch.where(count > 0, count, 1)


def _both_means(value: Tensor, semi_label: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The means over unlabelled and over labelled rows: () twice."""
    unlabelled, labelled = (None, None) if counts is None else counts
    return group_mean(value, semi_label == 0, unlabelled), group_mean(value, semi_label != 0, labelled)


def reconstruction(
    x_hat: Tensor, target: Tensor, semi_label: Tensor, reduction: Reduction, counts: Tensor | None = None
) -> Tensor:
    """Mean of ‖x̂ - Φ(x)‖² over the unlabelled rows, plus its mean over the labelled ones.

    Source: Huang et al. 2021 (ESAD), Eq. 5.

    Args:
        x_hat, target: (B, ...) float; target is Φ(x).
        semi_label: (B,) int, +1 known normal, 0 unlabelled, -1 known anomalous.
        reduction: of ‖.‖² over a row's elements, "sum" or "mean".
        counts: (2,) float, what the sums over unlabelled and labelled rows are divided by; None for their numbers
            here. With 1 / d of their numbers in a batch over d devices, the mean over devices is that of the batch.

    Returns:
        () float, >= 0; a group that is not in the batch adds 0.
    """
    unlabelled, labelled = _both_means(squared_norm(x_hat - target, reduction), semi_label, counts)
    return unlabelled + labelled


def norm(
    z_hat: Tensor, semi_label: Tensor, reduction: Reduction, eps: float = 1e-3, counts: Tensor | None = None
) -> Tensor:
    """Mean of ‖ẑ‖² over the unlabelled rows, plus the mean of (‖ẑ‖²)^y over the labelled ones.

    Source: Huang et al. 2021 (ESAD), Eq. 6.

    Args:
        z_hat: (B, ...) float.
        semi_label: (B,) int, y where it is not 0.
        eps: added to ‖ẑ‖² where y = -1: bounds the term by 1 / eps and leaves it a gradient.
        reduction, counts: see `reconstruction`.

    Returns:
        () float, >= 0.
    """
    energy = squared_norm(z_hat, reduction)
    unlabelled, labelled = _both_means(torch.where(semi_label < 0, 1 / (energy + eps), energy), semi_label, counts)
    return unlabelled + labelled


def assistance(
    z: Tensor,
    z_hat: Tensor,
    reduction: Reduction,
    semi_label: Tensor | None = None,
    labelled_share: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Mean of ‖ẑ - z‖² over all n + m rows: ().

    Source: Huang et al. 2021 (ESAD), Eq. 7.

    Args:
        z, z_hat: (B, ...) float.
        semi_label, labelled_share: (B,) int and () float, m / (n + m): a batch that holds labelled rows more often than
            the training rows do counts its groups by that share. None takes the rows of the batch as they are.
        reduction, counts: see `reconstruction`.
    """
    gap = squared_norm(z_hat - z, reduction)
    if semi_label is None or labelled_share is None:
        return gap.mean()
    unlabelled, labelled = _both_means(gap, semi_label, counts)
    return (1 - labelled_share) * unlabelled + labelled_share * labelled


def score(
    x: Tensor,
    x_hat: Tensor,
    z_hat: Tensor,
    lambda_1: float,
    reduction: Reduction,
    code_reduction: Reduction | None = None,
) -> Tensor:
    """‖x̂ - x‖² + λ1 ‖ẑ‖² of each row.

    Source: Huang et al. 2021 (ESAD), Eq. 9.

    Args:
        x, x_hat: (B, ...) float.
        z_hat: (B, ...) float.
        lambda_1: λ1, weight of the code.
        reduction: see `reconstruction`.
        code_reduction: that of ‖ẑ‖² where it is another than that of ‖x̂ - x‖².

    Returns:
        (B,) float, >= 0.
    """
    return squared_norm(x_hat - x, reduction) + lambda_1 * squared_norm(z_hat, code_reduction or reduction)


def unsquared_score(x: Tensor, x_hat: Tensor, z_hat: Tensor, lambda_1: float) -> Tensor:
    """‖x̂ - x‖ + λ1 ‖ẑ‖ of each row: (B,), >= 0. A reading of Eq. 9 without its squares, not what the paper prints.

    Arguments as for `score`.
    """
    return squared_norm(x_hat - x, "sum").sqrt() + lambda_1 * squared_norm(z_hat, "sum").sqrt()

"""Equations of SSAE: both objectives, and how a reconstruction becomes an anomaly map and a score.

Source: Bauer, Nakajima, Müller, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection".

Symbols: X clean image, X̂ corrupted image, F network, M soft mask of the corruption, M̄ = 1 - M, ⊙ elementwise product,
G_k mean filter of side k. Norms run over pixels and channels of one image. Each equation's weight (1 - λ or λ) is
multiplied in the method.

The paper prints ‖·‖_2 unsquared although it divides by ‖M‖_1; `squared=True`, the default, is the masked mean squared
error that the division suggests, `squared=False` is the print (see docs/departures.md).

Shapes: images (B, C, H, W) float; masks (B, 1, H, W) or (B, C, H, W) in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.losses.similarity import ssim_maps
from adbench.types import UserError


def _per_mask_unit(weighted: Tensor, mask: Tensor, squared: bool) -> Tensor:
    """‖weighted‖_2 (or its square) / max(‖M‖_1, 1), mean over the batch.

    Both norms count every channel. An empty mask gives 0, with gradient 0, for either norm.
    """
    energy = weighted.square().sum(dim=(1, 2, 3))
    if not squared:  # sqrt has an infinite slope at 0
        energy = torch.where(energy > 0, energy.clamp_min(1e-30).sqrt(), energy)
    amount = mask.expand_as(weighted).sum(dim=(1, 2, 3))
    return (energy / amount.clamp_min(1)).mean()


def normal_region(reconstruction: Tensor, clean: Tensor, mask: Tensor, squared: bool = True) -> Tensor:
    """‖M̄ ⊙ (F(X̂) - X)‖ / ‖M̄‖_1: the error where nothing was changed.

    Source: Eq. 1 and Eq. 4, first term.

    Args:
        reconstruction: F(X̂).
        clean: X.
        mask: M.
        squared: the squared norm (default) or the norm as printed.

    Returns:
        () float, >= 0.
    """
    kept = 1 - mask
    return _per_mask_unit(kept * (reconstruction - clean), kept, squared)


def corrupted_region(reconstruction: Tensor, clean: Tensor, mask: Tensor, squared: bool = True) -> Tensor:
    """‖M ⊙ (F(X̂) - X)‖ / ‖M‖_1: the error of repairing what was changed.

    Source: Eq. 1, second term. Arguments and result as for `normal_region`; 0 for an empty mask.
    """
    return _per_mask_unit(mask * (reconstruction - clean), mask, squared)


def amplification(
    reconstruction: Tensor, clean: Tensor, corrupted: Tensor, mask: Tensor, squared: bool = True
) -> Tensor:
    """‖ |X̂ - X| ⊙ (F(X̂) - X) ‖ / ‖M‖_1: how far the reconstruction leaves X, where the corruption did.

    Source: Eq. 4, second term, which enters the objective with a minus sign. It is weighted by the real change |X̂ - X|,
    so a pixel of the mask that was not changed earns nothing.

    Args:
        reconstruction, clean, mask, squared: see `normal_region`.
        corrupted: X̂.

    Returns:
        () float, >= 0.
    """
    return _per_mask_unit((corrupted - clean).abs() * (reconstruction - clean), mask, squared)


# -- from a reconstruction to scores ------------------------------------------------------------------------------


def squared_difference(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Diff(X̂, F(X̂)): the squared difference averaged over channels, (B, 1, H, W) in [0, 1].

    Source: Eq. 2.
    """
    return (image - reconstruction).square().mean(dim=1, keepdim=True)


def ssim_difference(image: Tensor, reconstruction: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """(1 - SSIM) / 2 averaged over channels, (B, 1, H, W) in [0, 1].

    Source: Section 4.1, "the so-called similarity index SSIM as a distance measure before the smoothing step". The
    paper gives no form: window, range 1 and reflection at the border are ours.
    """
    border = (window // 2,) * 4
    x, y = (F.pad(t, border, mode="reflect") for t in (image, reconstruction))
    similarity, _ = ssim_maps(x, y, data_range=1.0, window=window, sigma=sigma)
    return ((1 - similarity) / 2).mean(dim=1, keepdim=True)


def logit_difference(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared difference of the log-odds ln(x / (1 - x)), averaged over channels, (B, 1, H, W) in [0, 1].

    1 is the difference of black and white. Ours, for objective (4): the network paints over what it takes for a defect,
    black or white, and a squared difference hardly sees a dark defect turn black. In log-odds that is a long way.
    Values are kept half a grey level of eight bits away from 0 and 1.
    """
    least = 0.5 / 255
    logits = [torch.logit(t, eps=least) for t in (image, reconstruction)]
    longest = 2 * math.log((1 - least) / least)
    return ((logits[0] - logits[1]) / longest).square().mean(dim=1, keepdim=True)


def mean_filter(maps: Tensor, k: int, n: int) -> Tensor:
    """G_k^n: n-fold k x k mean filter with reflection at the border; n = 0 is the identity.

    Source: Eq. 3.

    Args:
        maps: (B, 1, H, W).
        k: side of the filter, odd, at most 2 min(H, W) - 1.
        n: number of applications, >= 0.

    Raises:
        UserError: k is even or below 1, n is negative, or the filter is too wide for the map.
    """
    if k < 1 or k % 2 == 0 or n < 0:
        raise UserError(f"the mean filter needs an odd k >= 1 and n >= 0, got k={k} and n={n}")
    if n and k // 2 >= min(maps.shape[-2:]):
        raise UserError(f"a mean filter of {k} px does not fit a map of {tuple(maps.shape[-2:])}")
    for _ in range(n if k > 1 else 0):
        # One axis after the other: 2 k additions per pixel instead of k^2.
        maps = F.avg_pool2d(F.pad(maps, (0, 0, k // 2, k // 2), mode="reflect"), (k, 1), stride=1)
        maps = F.avg_pool2d(F.pad(maps, (k // 2, k // 2, 0, 0), mode="reflect"), (1, k), stride=1)
    return maps


def discount_habitual_error(maps: Tensor, average: Tensor, t: float) -> Tensor:
    """anomap ⊙ (1 - avgmap)^t: where normal images are reconstructed badly too, an error counts less.

    Source: Eq. 14; avgmap, Eq. 13, is the mean anomaly map of the validation images.

    Args:
        maps: (B, 1, H, W), >= 0.
        average: (1, H, W) in [0, 1].
        t: >= 0; 0 leaves the maps as they are.
    """
    return maps if t == 0 else maps * (1 - average).pow(t)


def total(maps: Tensor) -> Tensor:
    """Image score: the sum of the map over its pixels, (B, 1, H, W) -> (B,).

    Source: Section 3.1, below Eq. 3.
    """
    return maps.flatten(1).sum(dim=1)

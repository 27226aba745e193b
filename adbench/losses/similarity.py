"""Structural similarity, with the data range always passed: the one wrapper that every method uses.

Windows are Gaussian and *valid* (no padding): an H x W image gives an (H - w + 1) x (W - w + 1) map. Everything is
computed in float32 or better whatever autocast says, because variances are small differences of large numbers.

The package pytorch-msssim computes the same equations where it runs: tests hold this file equal to it, gradients
included, and `bench/igd_step.py` times a step with it. Methods do not call it, for three reasons. It refuses sides that
the presets have (of at most 160 px with five scales and its 11 px window, of 32 px with four and 3 px). It gives one
number an image, where IGD's map and SSAE's need one a position. And it sums in another order, so that a preset that
changed to it above some size would change its scores in the last digits.

Symbols: mu mean, sigma^2 variance, L data range, C1 = (K1 L)^2, C2 = (K2 L)^2, C3 = C2 / 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.types import UserError

K1, K2 = 0.01, 0.03

#: Exponents of the scales, finest first. Source: Wang et al. 2003 (five scales), IGD's released code (four scales).
FIVE_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
FOUR_SCALES = (0.0516, 0.3295, 0.3463, 0.2726)


def gaussian_window(side: int, window: int, sigma: float, like: Tensor) -> Tensor:
    """The Gaussian window as a band matrix: (side, side - window + 1), every column sums to 1.

    A valid convolution along the last axis is `x @ matrix`. Made on the device of `like` without a host copy. Matrix
    products stay in full float32 where cuDNN's convolutions would by default drop to TF32, which variances do not bear.
    """
    rows = torch.arange(side, device=like.device, dtype=like.dtype).unsqueeze(1)
    columns = torch.arange(side - window + 1, device=like.device, dtype=like.dtype)
    offset = rows - columns
    weights = torch.exp(-((offset - (window - 1) / 2) ** 2) / (2 * sigma**2))
    weights = weights * ((offset >= 0) & (offset < window))
    return weights / weights.sum(dim=0)


def _blur(x: Tensor, window: int, sigma: float) -> Tensor:
    """Separable valid convolution of every channel: (B, C, H, W) -> (B, C, H - w + 1, W - w + 1)."""
    across = x @ gaussian_window(x.shape[-1], window, sigma, x)
    return gaussian_window(x.shape[-2], window, sigma, x).T @ across


def ssim_maps(
    x: Tensor, y: Tensor, *, data_range: float, window: int = 11, sigma: float = 1.5
) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure factor at every position of the window.

    Source: Wang et al. 2004, Eq. 13 (with C3 = C2 / 2 the contrast and structure terms collapse into one).

    Args:
        x, y: (B, C, H, W) float, H and W >= window.
        data_range: L, largest minus smallest possible value of a pixel, > 0.
        window: side of the Gaussian window, odd.
        sigma: its standard deviation in pixels.

    Returns:
        (ssim, cs), both (B, C, H - window + 1, W - window + 1), in [-1, 1]; ssim = luminance * cs.

    Raises:
        UserError: the shapes differ or the window does not fit.
    """
    if x.shape != y.shape:
        raise UserError(f"SSIM compares images of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(x.shape[-2:]) < window:
        raise UserError(f"an SSIM window of {window} px needs sides of at least that, got {tuple(x.shape[-2:])}")
    with torch.autocast(x.device.type, enabled=False):
        x, y = (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in (x, y))
        c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
        moments = torch.cat([x, y, x * x + y * y, x * y])
        mu_x, mu_y, squares, product = _blur(moments, window, sigma).chunk(4)
        mu_xy, mu_squares = mu_x * mu_y, mu_x * mu_x + mu_y * mu_y
        cs = (2 * (product - mu_xy) + c2) / (squares - mu_squares + c2)
        return (2 * mu_xy + c1) / (mu_squares + c1) * cs, cs


def ssim(x: Tensor, y: Tensor, *, data_range: float, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Mean SSIM of each image: (B, C, H, W) twice -> (B,), at most 1. See `ssim_maps`."""
    return ssim_maps(x, y, data_range=data_range, window=window, sigma=sigma)[0].mean(dim=(1, 2, 3))


def downsample(x: Tensor) -> Tensor:
    """2 x 2 mean, the step between two scales of Wang et al. 2003: (B, C, H, W) -> half the sides, odd ones rounded up.

    An odd side begins with a row of zeros that counts, as in pytorch-msssim.
    """
    return F.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[-2:]])


def ms_ssim(
    x: Tensor, y: Tensor, *, data_range: float, window: int, weights: Sequence[float], sigma: float = 1.5
) -> Tensor:
    """Multi-scale SSIM of each image.

    The contrast-structure term of every scale but the coarsest, and the full SSIM of the coarsest, each averaged over
    its map, clamped at 0 and raised to its weight; their product, averaged over channels.

    Source: Wang, Simoncelli and Bovik 2003, Eq. 7.

    Args:
        x, y: (B, C, H, W) float; the coarsest scale must still hold the window: H, W >= window * 2^(scales - 1).
        data_range, window, sigma: see `ssim_maps`.
        weights: exponents, finest scale first; one per scale.

    Returns:
        (B,) float in [0, 1].

    Raises:
        UserError: the shapes differ, or the window does not fit the coarsest scale.
    """
    levels = ssim_pyramid(x, y, data_range=data_range, window=window, scales=len(weights), sigma=sigma)
    return ms_ssim_of(levels, weights)


def ssim_pyramid(
    x: Tensor, y: Tensor, *, data_range: float, window: int, scales: int, sigma: float = 1.5
) -> list[tuple[Tensor, Tensor]]:
    """`ssim_maps` of two images and of their halves, quarters, ...: `scales` pairs (ssim, cs), finest first.

    Arguments and errors as for `ms_ssim`.
    """
    levels = []
    for scale in range(scales):
        levels.append(ssim_maps(x, y, data_range=data_range, window=window, sigma=sigma))
        if scale < scales - 1:
            x, y = downsample(x), downsample(y)
    return levels


def ms_ssim_of(levels: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> Tensor:
    """`ms_ssim` from an `ssim_pyramid` with as many levels as weights: (B,) float in [0, 1]."""
    product: Tensor | float = 1.0
    for scale, ((full, cs), weight) in enumerate(zip(levels, weights, strict=True)):
        level = (full if scale == len(weights) - 1 else cs).mean(dim=(2, 3))  # (B, C)
        # the slope of 0^w is infinite: a level clamped at 0 passes no gradient instead of a NaN
        product = product * torch.where(level > 0, level.clamp_min(1e-30).pow(weight), 0.0)
    assert isinstance(product, Tensor)
    return product.mean(dim=1)


def scale_weights(side: int, window: int = 11, scales: int = 5) -> tuple[float, ...]:
    """Exponents of as many scales, up to `scales`, as an image of this side holds with this window.

    Five and four scales have published weights; fewer take the first ones, rescaled to the sum 1.

    Raises:
        UserError: not even one scale fits.
    """
    fitting = 0
    while fitting < scales and side // 2**fitting >= window:
        fitting += 1
    if fitting == 0:
        raise UserError(f"an SSIM window of {window} px needs an image side of at least that, got {side}")
    if fitting >= 4:
        return FIVE_SCALES if fitting == 5 else FOUR_SCALES
    total = sum(FIVE_SCALES[:fitting])
    return tuple(w / total for w in FIVE_SCALES[:fitting])

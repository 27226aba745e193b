"""What autoencoders minimise and score by: per-pixel maps, and the divergence of a variational one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from adbench.losses.similarity import ssim_maps


def squared_error_map(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean over channels of (x - x̂)²: (B, C, H, W) twice -> (B, 1, H, W), >= 0."""
    return (x - x_hat).square().mean(1, keepdim=True)


def ssim_error_map(x: Tensor, x_hat: Tensor, data_range: float, window: int = 11) -> Tensor:
    """1 - SSIM at every pixel, mean over channels: (B, C, H, W) twice -> (B, 1, H, W), in [0, 2].

    Where the window does not fit around a border pixel, the nearest pixel where it does stands in.

    Source: Bergmann et al. 2019 (Improving unsupervised defect segmentation by applying SSIM to autoencoders), Eq. 8.
    """
    similarity, _ = ssim_maps(x, x_hat, data_range=data_range, window=window)
    border = window // 2
    return F.pad(1 - similarity.mean(1, keepdim=True), [border] * 4, mode="replicate")


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) of each row: (B, Z), (B, Z) -> (B,), >= 0, nats.

    Source: Kingma and Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def sampled(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z = μ + σ ε: three (B, Z) -> (B, Z).

    Source: Kingma and Welling 2014, section 2.4 (reparameterisation).
    """
    return mean + torch.exp(0.5 * log_variance) * noise

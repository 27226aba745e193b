"""Equations of IGD, the interpolated Gaussian descriptor.

Source: Chen, Tian, Pang and Carneiro, "Deep One-Class Classification via Interpolated Gaussian Descriptor", AAAI 2022.

Symbols: z = f(x) embedding, mu center and sigma^2 mean squared distance of the normal embeddings, x_hat = g(z)
reconstruction, x_hat_alpha = g(alpha z1 + (1 - alpha) z2), d critic, rho weight of the absolute error, L data range.
Constants with no equation number are the released code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.losses.similarity import ms_ssim_of, ssim_pyramid

#: Mean and standard deviation of the pixels that IGD's networks see, and the range that a normalised pixel can span.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA_RANGE = 4.7579  # 2.1179 + 2.6400
LUMA = (0.2989, 0.587, 0.114)  # colour residual -> grey map


# -- E-step ---------------------------------------------------------------------------------------------------------


def moments(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, sum and sum of squares of a batch, enough for its distances to any center: (B, Z) -> (), (Z,), ().

    float64. Eq. 3's mean and variance are sums of these.
    """
    z = z.double()
    return z.new_full((), len(z)), z.sum(dim=0), (z * z).sum()


def distance_sums(count: Tensor, total: Tensor, squares: Tensor, center: Tensor) -> Tensor:
    """Sum over each batch of ||z - mu||^2 from its moments: (n,), (n, Z), (n,) and mu (Z,) -> (n,) float64, >= 0."""
    mu = center.double()
    return (squares - 2 * total @ mu + count * (mu @ mu)).clamp_min(0)


def feature_moments(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, sum and second moments of a batch of features, enough for the moments of any linear map of them.

    Args:
        features: (B, F).

    Returns:
        (), (F,) and sum of f f^T (F, F), float64.
    """
    f = features.double()
    return f.new_full((), len(f)), f.sum(dim=0), f.T @ f


def projected_moments(
    count: Tensor, total: Tensor, second: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`moments` of z = W f + b from the `feature_moments` of f.

    Args:
        count, total, second: (), (F,) and (F, F).
        weight: W, (Z, F). bias: b, (Z,).

    Returns:
        (), (Z,) and sum of |z|^2 (), float64.
    """
    w, b = weight.double(), bias.double()
    mapped = w @ total
    squares = ((w @ second) * w).sum() + 2 * b @ mapped + count * (b @ b)
    return count, mapped + count * b, squares


def floored_center(mean: Tensor, floor: float = 0.1) -> Tensor:
    """mu with every component of 0 < |mu_i| < floor moved out to +-floor; exact zeros stay.

    Source: Eq. 3 (mu is the mean embedding); the floor is the released code's, against collapse.

    Args:
        mean: (Z,) float, the mean embedding of the training samples.
        floor: least size of a component that is not 0, >= 0.

    Returns:
        (Z,) float.
    """
    return torch.where(mean.abs() < floor, mean.sign() * floor, mean)


def floored_variance(distance_sum: Tensor, count: Tensor, floor: float = 1.0, *, per_batch: bool = False) -> Tensor:
    """sigma^2, the mean of ||z - mu||^2, at least `floor`.

    Source: Eq. 3; the floor is the released code's, which applies it to every batch and averages over batches.

    Args:
        distance_sum, count: (n,) float, of each batch.
        floor: >= 0, in squared units of the embedding.
        per_batch: floor each batch's mean, then average (released); else floor the mean over all samples.

    Returns:
        () float.
    """
    if per_batch:
        return (distance_sum / count).clamp_min(floor).mean()
    return (distance_sum.sum() / count.sum()).clamp_min(floor)


# -- M-step ---------------------------------------------------------------------------------------------------------


def gaussian(z: Tensor, center: Tensor, variance: Tensor) -> Tensor:
    """l_h = 1 - exp(-||z - mu||^2 / sigma^2), the probability of being anomalous.

    Source: Eqs. 5 and 8, with omega(2)^2 = sigma^2, the mean squared distance of Eq. 3 (no root is taken).

    Args:
        z: (B, Z) embeddings.
        center: (Z,). variance: () > 0.

    Returns:
        (B,) float in [0, 1).
    """
    return one_minus_exp((z.float() - center).square().sum(dim=1), variance)


def one_minus_exp(distance: Tensor, variance: Tensor | float) -> Tensor:
    """1 - exp(-d / sigma^2) of squared distances (B,), accurate also where d is tiny."""
    return -torch.expm1(-distance / variance)


def pyramid(x: Tensor, x_hat: Tensor, *, window: int, weights: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """The similarity of two images at every scale, which `reconstruction` and `residual_map` both need.

    Args:
        x, x_hat: (B, C, H, W), normalised pixels.
        window, weights: see `similarity.ms_ssim`.

    Returns:
        a pair (ssim, cs) for each weight, see `similarity.ssim_maps`.
    """
    return ssim_pyramid(x, x_hat, data_range=DATA_RANGE, window=window, scales=len(weights))


def reconstruction(
    x: Tensor,
    x_hat: Tensor,
    *,
    rho: float,
    window: int,
    weights: Sequence[float],
    signed: bool = False,
    printed: bool = False,
    levels: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """l_r = rho mean|x - x_hat| / L + (1 - rho) (1 - MS-SSIM).

    Source: Eq. 12, as a mean over pixels where the paper prints a sum (the released code's scale).

    Args:
        x, x_hat: (B, C, H, W), normalised pixels.
        rho: weight of the absolute error, in [0, 1].
        window, weights: see `similarity.ms_ssim`.
        signed: average x - x_hat without the absolute value (what the released local test code does).
        printed: Eq. 12 to the letter: the sum over the H W pixels of rho |x - x_hat| + (1 - rho) (1 - m), the error a
            mean over channels and not divided by L, m the image's MS-SSIM at every pixel.
        levels: `pyramid(x, x_hat)` where it is known already.

    Returns:
        (B,) float; in [0, 1] for pixels inside the data range (unless signed or printed).
    """
    residual = x.float() - x_hat.float()
    error = (residual if signed else residual.abs()).mean(dim=(1, 2, 3))
    similarity = ms_ssim_of(levels or pyramid(x, x_hat, window=window, weights=weights), weights)
    if printed:
        return x.shape[-2] * x.shape[-1] * (rho * error + (1 - rho) * (1 - similarity))
    return rho * (error / DATA_RANGE) + (1 - rho) * (1 - similarity)


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of each image, "MSE" in Table 5: (B, C, H, W) twice -> (B,), >= 0."""
    return (x.float() - x_hat.float()).square().mean(dim=(1, 2, 3))


def interpolate(z1: Tensor, z2: Tensor, alpha: Tensor) -> Tensor:
    """alpha z1 + (1 - alpha) z2. Source: below Eq. 9.

    Args:
        z1, z2: (B, Z). alpha: (B, 1), drawn from U(0, 1/2) in training.

    Returns:
        (B, Z).
    """
    return alpha * z1 + (1 - alpha) * z2


def blend(x: Tensor, x_hat: Tensor, zeta: Tensor | float) -> Tensor:
    """x_hat_zeta = zeta x + (1 - zeta) x_hat. Source: below Eq. 10. Two (B, C, H, W) and a number or (B, 1, 1, 1)."""
    return zeta * x + (1 - zeta) * x_hat


def coefficient(prediction: Tensor, alpha: Tensor, *, broadcast: bool = False) -> Tensor:
    """mean (d(x_hat_alpha) - alpha)^2, the first term of l_d. Source: Eq. 10.

    Args:
        prediction: (B,). alpha: (B, 1).
        broadcast: compare every prediction with every alpha, as a shape error in the released whole-image code does;
            the critic then learns mean(alpha).

    Returns:
        () float.
    """
    target = alpha if broadcast else alpha.squeeze(1)
    return (prediction.float() - target).square().mean()


def zero_prediction(prediction: Tensor) -> Tensor:
    """mean d(.)^2: (B,) -> ().

    Source: Eq. 10, second term (on x_hat_zeta), and Eq. 11, the adversarial term of l_fg (on x_hat_alpha).
    """
    return prediction.float().square().mean()


# -- scores and maps ------------------------------------------------------------------------------------------------


def residual_map(
    x: Tensor,
    x_hat: Tensor,
    *,
    rho: float,
    window: int,
    weights: Sequence[float],
    released: bool = False,
    printed: bool = False,
    levels: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """The reconstruction terms at every pixel, as one grey map.

    Source: Eq. 17. The paper's m is a product of scales whose maps differ in size and is not defined per pixel; here,
    as in the released code, 1 - m is the weighted sum over scales of 1 - SSIM, each map resized to the image.

    Args:
        x, x_hat: (B, 3, H, W) normalised pixels.
        rho, window, weights: see `reconstruction`.
        released: resize by nearest neighbour and leave the structural part without its factor 1 - rho, as the released
            code does; else bilinear, with the factor.
        printed: the absolute error is not divided by L, as in Eq. 17.
        levels: `pyramid(x, x_hat)` where it is known already.

    Returns:
        (B, 1, H, W) float, >= 0; 0 where the reconstruction is perfect.
    """
    resized = _nearest if released else partial(F.interpolate, mode="bilinear", align_corners=False)
    x, x_hat = x.float(), x_hat.float()
    structure = torch.zeros_like(x)
    for (full, _), weight in zip(levels or pyramid(x, x_hat, window=window, weights=weights), weights, strict=True):
        structure = structure + weight * resized(1 - full.clamp_min(0), size=x.shape[-2:])
    structural_weight = 1.0 if released else 1 - rho
    error = rho * (x - x_hat).abs() / (1.0 if printed else DATA_RANGE)
    return grey((error + structural_weight * structure).clamp_min(0))


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbour by index, as F.interpolate picks: ONNX rounds at whole ratios the other way."""
    for axis, out in zip((-2, -1), size, strict=True):
        ratio = torch.tensor(x.shape[axis] / out, dtype=torch.float32, device=x.device)
        x = x.index_select(axis, (torch.arange(out, device=x.device) * ratio).long())
    return x


def grey(x: Tensor) -> Tensor:
    """Luma of three channels, as the released code weighs them: (B, 3, H, W) -> (B, 1, H, W)."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def scale_score(residual: Tensor, anomalous: Tensor | None, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Weighted sum of a sample's l_r and l_h: (B,) each -> (B,). Source: Eqs. 14 and 15, whose weights are 1 and 1."""
    return residual if anomalous is None else weights[0] * residual + weights[1] * anomalous


def worst_patch(patch_score: Tensor) -> Tensor:
    """The largest score of an image's patches: (B, n) -> (B,). Source: Eq. 15."""
    return patch_score.amax(dim=1)

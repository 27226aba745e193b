"""The equations of P-WAE (Zhang et al., "P-WAE: Generalized Patch-Wasserstein Autoencoder for Anomaly Screening").

Symbols: m samples of a batch, K = n^2 tiles of an image, d numbers in the code z^k of tile k, theta a direction.
Every λ of Eq. 20 is multiplied in the method. Because the λ's depend on how sums are written, here: means over pixels,
over samples and over directions; a sum over tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# -- prior and divergence ----------------------------------------------------------------------------------------------


def student_t(uniform: Tensor, nu: float, location: Tensor | float = 0.0, scale: float = 1.0) -> Tensor:
    """Student-t samples from pairs of uniform numbers, exact for every nu > 0.

    Source: Eq. 11 and section IV-A, T(nu, mu, sigma^2) with nu = 5, mu = k, sigma = 1. The transform is Bailey's polar
    method (Math. Comp. 62, 1994): t = sqrt(nu (u^(-2 / nu) - 1)) cos(2 pi v).

    Args:
        uniform: (..., 2) in [0, 1).
        nu: degrees of freedom, > 0; the variance is sigma^2 nu / (nu - 2) for nu > 2.
        location: broadcasts against (...).
        scale: sigma, > 0.

    Returns:
        (...) float of uniform's dtype.
    """
    u, v = 1.0 - uniform[..., 0], uniform[..., 1]  # u in (0, 1]: a uniform 0 must not become infinite
    return location + scale * (nu * (u.pow(-2.0 / nu) - 1.0)).sqrt() * torch.cos(2.0 * math.pi * v)


def prior_moments(prior: Literal["student_t", "gaussian"], nu: float, location: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of a number of a code whose tile is not known: the mixture of all tiles' priors.

    Source: ours, from Eq. 11 by the law of total variance. T(nu, mu, 1) has the variance nu / (nu - 2); where that is
    infinite (nu <= 2) the scale 1 stands in.

    Args:
        prior: "student_t" or "gaussian".
        nu: degrees of freedom of the former.
        location: (K, ...) the priors' locations.

    Returns:
        two floats, the second > 0.
    """
    within = nu / (nu - 2.0) if prior == "student_t" and nu > 2 else 1.0
    between = location.double().var(unbiased=False)
    return float(location.double().mean()), math.sqrt(within + float(between))


def sliced_wasserstein(z: Tensor, prior: Tensor, directions: Tensor, root: bool = False) -> Tensor:
    """Sliced 2-Wasserstein distance between codes and prior samples, for all tiles at once.

    Source: Eqs. 17, 18. The order p is not given there; p = 2. In one dimension the optimal transport plan between two
    samples of equal size pairs them in sorted order.

    Args:
        z: (m, K, d) codes, tile k of sample i at [i, k].
        prior: (m, K, d) samples of the K priors.
        directions: (K, P, d) unit vectors.
        root: W_2 of each direction as Eq. 9 defines it, in place of its square.

    Returns:
        (K,) >= 0: mean over the P directions. Eq. 18 is its sum.
    """
    projected = torch.einsum("smkd,kpd->skpm", torch.stack((z, prior)), directions)
    ours, theirs = projected.sort(dim=-1).values
    squared = (ours - theirs).square().mean(dim=2)
    if root:  # an infinite slope at 0
        squared = torch.where(squared > 0, squared.clamp_min(1e-30).sqrt(), squared)
    return squared.mean(dim=1)


def gaussian_kl(mean: Tensor, log_variance: Tensor, location: Tensor | float) -> Tensor:
    """KL(N(mean, variance) || N(location, 1)) per tile, per dimension of the code: what Eq. 18 replaces.

    Source: Eqs. 3, 12; closed form of two Gaussians. The Student-t prior has none. It is a mean over dimensions, as the
    sliced distance is (a shift by v costs |v|^2 / d there and |v|^2 / (2 d) here), so that one λ2 serves both.

    Args:
        mean, log_variance: (m, K, d) of the posterior q(z^k | x^k).
        location: broadcasts against (m, K, d).

    Returns:
        (K,) >= 0.
    """
    kl = 0.5 * ((mean - location).square() + log_variance.exp() - 1.0 - log_variance)
    return kl.mean(dim=(0, 2))


# -- HSIC bottleneck ---------------------------------------------------------------------------------------------------


def centred_gram(x: Tensor, sigma: float | Literal["median"]) -> Tensor:
    """H K H for the Gaussian kernel exp(-|x_i - x_j|^2 / (2 sigma^2)), in double precision.

    Source: below Eq. 14; H of Eq. 8.

    Args:
        x: (m, d).
        sigma: > 0, or "median" for the root of the median squared distance of two different samples (no gradient).

    Returns:
        (m, m) float64, positive semi-definite, rows sum to 0.
    """
    x = x.double()
    difference = x - x.mean(0)  # distances do not change, rounding does
    squared = difference.square().sum(1)
    distance = (squared[:, None] + squared - 2.0 * difference @ difference.T).clamp_min(0.0)
    if sigma == "median":
        m = len(x)
        away = distance.detach()[~torch.eye(m, dtype=torch.bool, device=x.device)]
        width = away.median().clamp_min(torch.finfo(x.dtype).tiny) if m > 1 else distance.new_ones(())
    else:
        width = distance.new_tensor(float(sigma) ** 2)
    kernel = torch.exp(-0.5 * distance / width)
    kernel = kernel - kernel.mean(0, keepdim=True)
    return kernel - kernel.mean(1, keepdim=True)


def nhsic(gram_x: Tensor, gram_z: Tensor, epsilon: float) -> Tensor:
    """Normalised HSIC, tr(K~_X K~_Z) with K~ = K (K + epsilon m I)^-1.

    Source: Eq. 14.

    Args:
        gram_x, gram_z: (m, m) centred Gram matrices.
        epsilon: > 0; towards 0 every pair of samples without ties approaches m - 1, dependent or not.

    Returns:
        () in [0, m - 1].
    """
    grams = torch.stack((gram_x, gram_z))
    m = grams.shape[-1]
    shift = epsilon * m * torch.eye(m, dtype=grams.dtype, device=grams.device)
    normalised = torch.linalg.solve(grams + shift, grams)  # K and (K + c I)^-1 commute
    return (normalised[0] * normalised[1].T).sum()


def kernel_alignment(gram_x: Tensor, gram_z: Tensor) -> Tensor:
    """Centred kernel alignment tr(K_X K_Z) / (|K_X| |K_Z|): HSIC (Eq. 8) on a scale from 0 to 1.

    Source: Cortes et al. 2012, in place of Eq. 14, whose value hardly depends on the dependence.

    Args:
        gram_x, gram_z: (m, m) centred Gram matrices.

    Returns:
        () in [0, 1]; 0 if a variable is constant.
    """
    norm = (gram_x.square().sum() * gram_z.square().sum()).clamp_min(1e-24).sqrt()
    return (gram_x * gram_z).sum() / norm


def hsic_bottleneck(prior_dependence: Tensor, input_dependence: Tensor, beta: float) -> Tensor:
    """nHSIC(Z', Z) - β nHSIC(X, Z): dependence on the input is rewarded.

    Source: Eq. 15, sign as printed (the usual HSIC bottleneck has the opposite one).

    Args:
        prior_dependence, input_dependence: () float, of `nhsic` or `kernel_alignment`.
        beta: β, weight of the dependence on the input.

    Returns:
        () float, any sign.
    """
    return prior_dependence - beta * input_dependence


# -- jigsaw and reconstruction -----------------------------------------------------------------------------------------


def jigsaw(logits: Tensor, permutation_class: Tensor) -> Tensor:
    """Cross-entropy of the permutation in which the tiles came; ln |S| for uniform logits.

    Source: Eq. 19, p(S) being one-hot.

    Args:
        logits: (m, |S|).
        permutation_class: (m,) int64 in [0, |S|).

    Returns:
        () >= 0, mean over the batch.
    """
    return F.cross_entropy(logits, permutation_class)


def reconstruction(image: Tensor, x_hat: Tensor, form: Literal["squared", "absolute_and_squared"]) -> Tensor:
    """Mean squared error per pixel and channel; "absolute_and_squared" adds the mean absolute error, as released.

    Source: Eq. 20's L_AE.

    Args:
        image, x_hat: (B, C, H, W) in [0, 1].
        form: "squared" or "absolute_and_squared".

    Returns:
        () >= 0.
    """
    residual = image - x_hat
    error = residual.square().mean()
    return error + residual.abs().mean() if form == "absolute_and_squared" else error


# -- scores ------------------------------------------------------------------------------------------------------------


def tile_errors(image: Tensor, x_hat: Tensor, n: int, form: Literal["norm", "released"] = "norm") -> Tensor:
    """Reconstruction error of the whole image and of each of its n x n tiles.

    Source: Eqs. 22, 23: |x - x_hat|_2. "released" is 100 (mean |r| + mean r^2), as the published script measures it.

    Args:
        image, x_hat: (B, C, H, W). Sides that n does not divide: the last row and column of tiles are smaller.
        n: tiles along a side.
        form: "norm" or "released".

    Returns:
        (B, 1 + n^2) >= 0, the whole image first, then tiles in raster order.
    """
    residual = image - x_hat
    height, width = residual.shape[-2:]
    below, right = -height % n, -width % n

    def sums(values: Tensor) -> Tensor:
        padded = F.pad(values.sum(1), (0, right, 0, below))
        tiles = padded.unflatten(2, (n, -1)).unflatten(1, (n, -1)).sum(dim=(2, 4)).flatten(1)
        return torch.cat((tiles.sum(1, keepdim=True), tiles), dim=1)

    if form == "norm":
        return sums(residual.square()).sqrt()
    count = sums(torch.ones_like(residual[:1]))
    return 100.0 * (sums(residual.abs()) + sums(residual.square())) / count


def two_threshold_score(errors: Tensor, maxima: Tensor, tau_whole: float, tau_tile: float) -> Tensor:
    """max(E_0 / (M_0 τ_0), max_k E_k / (M_k τ_k)): at most 1 exactly where the whole image and every tile pass.

    Source: Eq. 21 with "after normalizing, the error and the threshold are from 0 to 1"; the maximum turns the rule
    into one number, so that a sweep of its threshold gives a curve.

    Args:
        errors: (B, 1 + K) of `tile_errors`.
        maxima: (1 + K,) > 0, the largest error of each column over normal training images.
        tau_whole, tau_tile: > 0; released: 0.3 and 0.8.

    Returns:
        (B,) >= 0.
    """
    tau = torch.full_like(maxima, tau_tile)
    tau[0] = tau_whole
    return (errors / (maxima.clamp_min(torch.finfo(maxima.dtype).tiny) * tau)).amax(dim=1)


def summed_score(errors: Tensor) -> Tensor:
    """E_0 + sum of E_k: "the algebraic sum of the entire image and each patch tile reconstruction error".

    Source: section III-E, above Eq. 21.

    Args:
        errors: (B, 1 + K).

    Returns:
        (B,) >= 0.
    """
    return errors.sum(dim=1)


def released_metrics(
    errors: Tensor, label: Tensor, folder: Tensor | None = None, tau_whole: float = 0.3, tau_tile: float = 0.8
) -> Mapping[str, float | None]:
    """The numbers that the published script prints for a test set, under the names that it gives them.

    It differs from the definitions: columns are divided by their maximum over the *test* images; "auroc" is computed
    from hard 0/1 predictions and so equals (TPR + TNR) / 2 at one operating point; "tpr" is TN / (TN + FN) and "tnr" is
    TP / (TP + FP), predictive values; and each folder's rows carry the tile errors of the folder's last image.
    Not comparable with any other method's numbers.

    Source: released code, not the paper.

    Args:
        errors: (N, 1 + K), `tile_errors(..., form="released")` of the test images in their order.
        label: (N,) 0 normal, 1 anomalous.
        folder: (N,) int, the folder of each image (its defect kind); None keeps every image's own tile errors.
        tau_whole, tau_tile: see `two_threshold_score`.

    Returns:
        auroc, tpr, tnr, balanced_accuracy (their mean); None where a denominator is 0.
    """
    errors, label = errors.detach().double().cpu(), label.cpu().bool()
    if folder is not None:
        last = {int(name): row for row, name in enumerate(folder.tolist())}
        rows = torch.tensor([last[int(name)] for name in folder.tolist()], dtype=torch.long)
        errors = torch.cat((errors[:, :1], errors[rows, 1:]), dim=1)
    maxima = errors.amax(0) if len(errors) else errors.new_ones(errors.shape[1])
    predicted = two_threshold_score(errors, maxima, tau_whole, tau_tile) > 1.0
    true_anomalous, true_normal = (predicted & label).sum().item(), (~predicted & ~label).sum().item()

    def ratio(part: float, of: float) -> float | None:
        return part / of if of else None

    recall, specificity = ratio(true_anomalous, label.sum().item()), ratio(true_normal, (~label).sum().item())
    npv, precision = ratio(true_normal, (~predicted).sum().item()), ratio(true_anomalous, predicted.sum().item())
    mean = lambda a, b: None if a is None or b is None else (a + b) / 2  # noqa: E731
    return {"auroc": mean(recall, specificity), "tpr": npv, "tnr": precision, "balanced_accuracy": mean(npv, precision)}

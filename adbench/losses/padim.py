"""PaDiM's equations. Source: Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework"."""

from __future__ import annotations

import torch
from torch import Tensor


def regularised_covariance(total: Tensor, products: Tensor, count: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance at each position, from sums over the training images.

    Source: Eq. 1: the sample covariance (divided by N - 1) plus epsilon times the identity.

    Args:
        total: (P, D) sum of the embeddings.
        products: (P, D, D) sum of their outer products.
        count: N, at least 2.
        epsilon: 0.01 in the paper.

    Returns:
        (P, D) and (P, D, D).
    """
    mean = total / count
    covariance = (products - count * mean[:, :, None] * mean[:, None, :]) / (count - 1)
    return mean, covariance + epsilon * torch.eye(total.shape[1], dtype=total.dtype, device=total.device)


def whitening(covariance: Tensor) -> Tensor:
    """(P, D, D) positive definite -> (P, D, D) W with W^T W = covariance^-1: Eq. 2 is ||W (x - mean)||.

    Raises:
        torch.linalg.LinAlgError: a covariance is not positive definite.
    """
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)


def mahalanobis(embedding: Tensor, mean: Tensor, white: Tensor) -> Tensor:
    """(B, P, D), (P, D), (P, D, D) -> (B, P): sqrt((x - mean)^T covariance^-1 (x - mean)).

    Source: Eq. 2.
    """
    centered = (embedding - mean).transpose(0, 1)  # (P, B, D)
    return torch.bmm(centered, white.transpose(1, 2)).square().sum(2).sqrt().T

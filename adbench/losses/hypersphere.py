"""Deep SVDD (Ruff et al. 2018) and Deep SAD (Ruff et al. 2020): distances from a fixed center in embedding space.

Symbols: φ(x) embedding, c center, d = ‖φ(x) - c‖², R radius, ν share of rows outside the sphere, η weight of labels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distance(embedding: Tensor, center: Tensor) -> Tensor:
    """d = ‖φ(x) - c‖² of each row: (B, E), (E,) -> (B,), >= 0.

    Source: Ruff et al. 2018 (Deep SVDD), Eq. 5.
    """
    return (embedding - center).square().sum(1)


def one_class(distance: Tensor) -> Tensor:
    """Mean distance: (B,) -> ().

    Source: Ruff et al. 2018 (Deep SVDD), Eq. 4 without weight decay, which is the optimizer's.
    """
    return distance.mean()


def soft_boundary(distance: Tensor, radius: Tensor, nu: float) -> Tensor:
    """R² + (1/ν) mean max(0, d - R²): ().

    Source: Ruff et al. 2018 (Deep SVDD), Eq. 3 without weight decay.

    Args:
        distance: (B,) float, d.
        radius: () float, R.
        nu: in (0, 1].
    """
    return radius.square() + (distance - radius.square()).clamp_min(0).mean() / nu


def radius(distance: Tensor, nu: float) -> Tensor:
    """R, the (1 - ν)-quantile of √d: about a share ν of the (B,) rows lies outside. Returns ().

    Source: Ruff et al. 2018 (Deep SVDD), section 3.3.
    """
    return torch.quantile(distance.detach().sqrt(), 1 - nu)


def kept_off_zero(center: Tensor, floor: float) -> Tensor:
    """The (E,) center with every component of size below `floor` moved to ±floor; 0 goes to +floor.

    A component at 0 could be matched by weights of 0, which is a collapse.

    Source: the published code of Ruff et al. 2018 and 2020, which leaves exact zeros where they are.
    """
    side = torch.where(center < 0, -1.0, 1.0).to(center.dtype)
    return torch.where(center.abs() < floor, side * floor, center)


def semi_supervised(distance: Tensor, semi_label: Tensor, eta: float, eps: float = 1e-6) -> Tensor:
    """Mean over the batch of d (unlabelled) or η (d + eps)^s (labelled).

    Source: Ruff et al. 2020 (Deep SAD), Eq. 7. Weight decay, that equation's last term, is the optimizer's.

    Args:
        distance: (B,) float, >= 0, squared embedding units.
        semi_label: (B,) int, s: +1 known normal, 0 unlabelled, -1 known anomalous.
        eta: weight of a labelled row relative to an unlabelled one, > 0.
        eps: keeps 1/d finite for an anomaly lying on the center.

    Returns:
        () float.
    """
    labelled = eta * (distance + eps).pow(semi_label.to(distance.dtype))
    return torch.where(semi_label == 0, distance, labelled).mean()

"""Learning another network's features, or one's own under augmentation."""

from __future__ import annotations

from torch import Tensor


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of the squared l2 distance between two networks' features.

    Source: Chen et al. 2022 (IGD), "Implementation Details" (knowledge distillation); Bergmann et al. 2020, Eq. 2.

    Args:
        student, teacher: (B, F) float.

    Returns:
        () float, >= 0.
    """
    return (student.float() - teacher.float()).square().sum(dim=1).mean()

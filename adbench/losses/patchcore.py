"""PatchCore's equations. Source: Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.losses.neighbours import squared_distances


def locally_averaged(maps: Sequence[Tensor], window: int = 3) -> Tensor:
    """Patch features: each map's mean over windows, at the finest map's resolution, one above the other.

    Source: Eqs. 1 to 3, with the mean as the aggregation; coarser maps are enlarged bilinearly (section 3.1).

    Args:
        maps: (B, C_i, h_i, w_i), the finest first.
        window: side of the neighbourhood, odd; stride 1. At the border the mean is over what lies inside.

    Returns:
        (B, sum of C_i, h_0, w_0).
    """
    means = [F.avg_pool2d(one, window, 1, window // 2, count_include_pad=False) for one in maps]
    size = means[0].shape[-2:]
    alike = [means[0], *(F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in means[1:])]
    return torch.cat(alike, dim=1)


def reweighted(distance: Tensor, patch: Tensor, member: Tensor, bank: Tensor, neighbours: int) -> Tensor:
    """Image scores: a patch's distance counts less where the bank's members around its nearest one are near as well.

    s = (1 - exp(d(p, m*)) / sum over m in N_b(m*) of exp(d(p, m))) d(p, m*), where m* is the member nearest to p and
    N_b(m*) the b members nearest to m*, itself included. With b = 1 the weight would be 0: the distance is returned.

    Source: Eq. 7.

    Args:
        distance: (B,) d(p, m*) of each image's most anomalous patch.
        patch: (B, D) that patch.
        member: (B,) int64 place of m* in the bank.
        bank: (n, D).
        neighbours: b.
    """
    b = min(neighbours, len(bank))
    if b <= 1:
        return distance
    around = squared_distances(bank[member], bank).topk(b, dim=1, largest=False).indices
    others = (bank[around] - patch[:, None]).square().sum(2).sqrt()
    # A common factor of all exponentials cancels.
    largest = others.max(1).values
    weight = 1 - (distance - largest).exp() / (others - largest[:, None]).exp().sum(1)
    return weight * distance

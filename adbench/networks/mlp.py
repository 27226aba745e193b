"""Networks of tabular data: bias-free perceptrons, and the scaling of features.

Source: Ruff et al. 2020 (Deep SAD), its published MLP; Huang et al. 2021 (ESAD) uses the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from adbench.types import UserError

SCALINGS = ("min_max", "standardised", "clipped", "none")
Scaling = Literal["min_max", "standardised", "clipped", "none"]


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """(B, widths[0]) -> (B, widths[-1]): Linear - BN - LeakyReLU for every width but the last, then Linear.

    No layer has a bias and BN has no affine part: conditions against the collapse of a hypersphere.
    """
    *hidden, last = pairwise(widths)
    layers: list[nn.Module] = []
    for inputs, outputs in hidden:
        layers += [
            nn.Linear(inputs, outputs, bias=False),
            nn.BatchNorm1d(outputs, eps=1e-4, affine=False),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(*last, bias=False))


class FeatureScaling(nn.Module):
    """Features of very different units brought to one scale, by what the training rows show: (B, D) -> (B, D).

    Args:
        features: D.
        scaling: "min_max" maps the training rows to [0, 1] (others may leave it); "standardised" gives them the mean 0
            and the deviation 1; "clipped" clips these to ±3, which heavy tails and columns that are constant in
            training need; "none" leaves them.

    Raises:
        UserError: another scaling.
    """

    LIMIT = 3.0

    def __init__(self, features: int, scaling: Scaling) -> None:
        super().__init__()
        if scaling not in SCALINGS:
            raise UserError(f"method.scaling is one of {', '.join(SCALINGS)}; got {scaling!r}")
        self.scaling, self.fitted = scaling, scaling != "none"
        self.register_buffer("offset", torch.zeros(features))
        self.register_buffer("unit", torch.ones(features))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take offset and unit from the (n, D) training rows; a constant column gets the unit 1."""
        if not self.fitted:
            return
        rows = torch.cat(list(batches)).double()
        if self.scaling == "min_max":
            offset, unit = rows.amin(0), rows.amax(0) - rows.amin(0)
        else:
            offset, unit = rows.mean(0), rows.std(0, correction=0)
        self.offset.copy_(offset)
        self.unit.copy_(torch.where(unit > 0, unit, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.offset) / self.unit
        return x.clamp(-self.LIMIT, self.LIMIT) if self.scaling == "clipped" else x

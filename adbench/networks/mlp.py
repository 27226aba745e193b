"""Networks of tabular data: bias-free perceptrons, and the scaling of features.

Source: Ruff et al. 2020 (Deep SAD), its published MLP; Huang et al. 2021 (ESAD) uses the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from adbench.types import UserError

SCALINGS = ("min_max", "standardised", "clipped", "none")
SIZES = {"hidden": [32, 16], "embedding": 8}  # the usual widths of a perceptron for tables


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

    Features come in float64 and are scaled there: seconds since 1970 differ by less than float32 can tell. What is
    scaled is float32, as networks are.

    Raises:
        UserError: another scaling.
    """

    offset: Tensor  # (D,) float64
    unit: Tensor  # (D,) float64
    LIMIT = 3.0
    LOSS = 1e-3  # the rounding error of float32 that "none" takes, as a share of a column's standard deviation

    def __init__(self, features: int, scaling: str) -> None:
        super().__init__()
        if scaling not in SCALINGS:
            raise UserError(f"method.scaling is one of {', '.join(SCALINGS)}; got {scaling!r}")
        self.scaling, self.fitted = scaling, scaling != "none"
        self.far = 1e18  # what float32 can square; methods that square nothing may set more
        self.register_buffer("offset", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("unit", torch.ones(features, dtype=torch.float64))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take offset and unit from the training rows; a constant column gets the unit 1.

        Args:
            batches: (n_i, D) each, in any float type.

        Raises:
            UserError: nothing is scaled, and float32 cannot tell the values of a column apart.
        """
        rows = torch.cat(list(batches)).double()
        if not self.fitted:
            lost = (rows - rows.float()).square().mean(0).sqrt() > self.LOSS * rows.std(0, correction=0)
            lost &= ~self._constant(rows)
            if lost.any():
                column = int(lost.nonzero()[0])
                low, high = rows[:, column].min(), rows[:, column].max()
                raise UserError(
                    f"column {column} (counted from 0) holds values from {low:.15g} to {high:.15g}, which cannot be "
                    "told apart in float32 as they are; take method.scaling=min_max"
                )
            return
        if self.scaling == "min_max":
            offset, unit = rows.amin(0), rows.amax(0) - rows.amin(0)
        else:
            offset, unit = rows.mean(0), rows.std(0, correction=0)
        self.offset.copy_(offset)
        self.unit.copy_(torch.where(self._constant(rows), 1.0, unit))

    @staticmethod
    def _constant(rows: Tensor) -> Tensor:
        """(D,) bool: columns whose values differ by no more than float64 rounds them."""
        return rows.amax(0) - rows.amin(0) <= 1e-12 * rows.abs().amax(0)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.double() - self.offset) / self.unit
        return (x.clamp(-self.LIMIT, self.LIMIT) if self.scaling == "clipped" else x).float()

    def too_far(self, rows: Tensor, training: Tensor) -> Tensor:
        """(k, 2): row and column of the values that, scaled by what the training rows show, are `far` or beyond.

        Args:
            rows: (N, D) to score.
            training: (n, D).
        """
        scaling = copy.deepcopy(self)
        scaling.fit([training])
        return (~(scaling(rows).abs() < self.far)).nonzero()


def refuse_far_rows(method: nn.Module, features: Tensor, training: Tensor, scored: Tensor) -> None:
    """Find out before the training that a row cannot be scored after it.

    Args:
        method: one whose features a `FeatureScaling` scales, or another, which takes any.
        features: (N, D) float64.
        training, scored: rows.

    Raises:
        UserError: naming the first value that is too far from those of the training rows.
    """
    for scaling in (module for module in method.modules() if isinstance(module, FeatureScaling)):
        for row, column in scaling.too_far(features[scored], features[training])[:1].tolist():
            seen, value = features[training][:, column], float(features[scored[row], column])
            raise UserError(
                f"row {int(scored[row])}, column {column} (counted from 0) holds {value:.6g}, and the training rows "
                f"lie between {float(seen.min()):.6g} and {float(seen.max()):.6g}: its score would overflow; correct "
                "or remove the row, or take method.scaling=clipped where the method has it"
            )

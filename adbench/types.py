"""The types that cross package borders."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from adbench.errors import UserError as UserError


class Batch(NamedTuple):
    """Rows of one data set. Loaders deliver uint8 images; the datamodule makes them float on the device."""

    image: Tensor  # (B, C, H, W) float32 in [0, 1], or (B, D) features for tabular data
    label: Tensor  # (B,) int64, 0 normal, 1 anomalous; -1 (withheld) while training
    semi_label: Tensor  # (B,) int64, +1 known normal, 0 unlabelled, -1 known anomalous: all that training may see
    mask: Tensor  # (B, 1, H, W) bool, True where anomalous; absent data: all False plus a datamodule flag
    index: Tensor  # (B,) int64, row of the record table


class Scores(NamedTuple):
    """What a detector says of a batch."""

    image: Tensor  # (B,) float32, higher = more anomalous, any range
    maps: Tensor | None  # (B, 1, H, W) float32 at the input's H and W

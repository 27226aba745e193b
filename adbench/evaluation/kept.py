"""Rows of a test that are kept on its device because their keys are the highest so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adbench.types import Batch, Scores


class Kept(NamedTuple):
    """K rows. A key of -inf marks a row that is not eligible."""

    key: Tensor  # (K,) float
    index: Tensor  # type: ignore[assignment]  # (K,); hides tuple.index
    label: Tensor  # (K,)
    score: Tensor  # (K,)
    image: Tensor  # (K, 3, H, W)
    mask: Tensor  # (K, 1, H, W)
    maps: Tensor | None  # (K, 1, H, W)

    @classmethod
    def of(cls, batch: Batch, scores: Scores) -> Kept:
        """All rows of a batch; their keys are their scores."""
        score, maps = scores.image.detach(), None if scores.maps is None else scores.maps.detach()
        return cls(score, batch.index, batch.label, score, batch.image, batch.mask, maps)

    def best(self, number: int) -> Kept:
        """The `number` rows of the highest keys."""
        rows = self.key.topk(min(number, len(self.key))).indices
        return Kept._make(None if column is None else column[rows] for column in self)

    def with_rows_of(self, other: Kept) -> Kept:
        """These rows, then the other's; without maps if either has none."""
        pairs = zip(self, other, strict=True)
        return Kept._make(None if a is None or b is None else torch.cat((a, b)) for a, b in pairs)

    def eligible(self) -> Kept:
        """The rows whose key is not -inf."""
        rows = self.key > -torch.inf
        return Kept._make(None if column is None else column[rows] for column in self)

    def on_host(self) -> Kept:
        """The rows in the host's memory."""
        return Kept._make(None if column is None else column.cpu() for column in self)

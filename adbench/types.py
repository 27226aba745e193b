"""The types that cross package borders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from adbench.errors import UserError as UserError


class Batch(NamedTuple):
    """Rows of one data set. Loaders deliver uint8 images; the datamodule makes them float on the device."""

    image: Tensor  # (B, C, H, W) float32 in [0, 1], or (B, D) features for tabular data
    label: Tensor  # (B,) int64, 0 normal, 1 anomalous; -1 (withheld) while training
    semi_label: Tensor  # (B,) int64, +1 known normal, 0 unlabelled, -1 known anomalous: all that training may see
    mask: Tensor  # (B, 1, H, W) bool, True where anomalous; absent data: all False plus a datamodule flag
    index: Tensor  # type: ignore[assignment]  # (B,) int64, row of the record table; hides tuple.index

    @classmethod
    def unlabelled(cls, image: Tensor) -> Batch:
        """A training batch of images of which nothing else is known.

        Args:
            image: (B, 3, H, W) bytes, or floats in [0, 1].

        Returns:
            the images with labels -1 (withheld), semi-labels 0, empty masks and the numbers 0 .. B - 1.
        """
        rows = torch.zeros(len(image), dtype=torch.int64)
        mask = torch.zeros(len(image), 1, *(image.shape[2:] or (1, 1)), dtype=torch.bool)
        return cls(image, rows - 1, rows, mask, torch.arange(len(image)))


class Scores(NamedTuple):
    """What a detector says of a batch, a row for each image."""

    image: Tensor  # (B,) float32, higher = more anomalous, any range
    maps: Tensor | None  # (B, 1, H, W) float32 at the input's H and W
    extras: Mapping[str, Tensor] | None = None  # of a test: further scores by name, (B,) or (B, n)
    codes: Tensor | None = None  # of a test: (B, tiles, D), what `codes` of the method gives


def chunk_sizes(rows: int, size: int) -> list[int]:
    """Sizes of the pieces in which so many rows go through a network in training mode: `size`, and what is left.

    No piece has one row, which batch normalisation cannot take, unless there is but one: the piece before it lends one
    of its own, or, of a size of two or less, takes it in. A size of 1 counts as 2.

    Args:
        rows: how many, from 0.
        size: of a piece.
    """
    size = max(size, 2)
    full, rest = divmod(rows, size)
    sizes = [size] * full + [rest] * (rest > 0)
    if rest == 1 and full:
        sizes[-2:] = [size - 1, 2] if size > 2 else [3]
    return sizes

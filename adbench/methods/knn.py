"""Nearest neighbours of the pooled feature (Bergman et al. 2020, "Deep Nearest Neighbor Anomaly Detection")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from adbench.errors import UserError
from adbench.losses.neighbours import squared_distances
from adbench.methods.reference import Reference
from adbench.types import Batch, Scores


class Knn(Reference):
    """Score: mean distance of an image's pooled feature to those of its k nearest training images.

    Args:
        backbone, image_size: see `Reference`.
        neighbours: k, at least 1; of fewer training rows all are taken.

    Raises:
        UserError: k is below 1, or timm has no such model.
    """

    has_maps = False
    fitted = ("bank", "center")

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        image_size: int | Sequence[int] = 224,
        neighbours: int = 2,
    ) -> None:
        super().__init__(backbone, (0,), image_size)
        if neighbours < 1:
            raise UserError(f"method.neighbours is at least 1, got {neighbours}")
        self.neighbours = neighbours

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Keep the feature of every training row."""
        rows = torch.cat([self.backbone.pooled(batch.image) for batch in batches])
        self.center = rows.mean(0)
        self.bank = rows - self.center

    def score(self, image: Tensor) -> Scores:
        distance = squared_distances(self.backbone.pooled(image) - self.center, self.bank).sqrt()
        k = min(self.neighbours, len(self.bank))
        return Scores(distance.topk(k, dim=1, largest=False).values.mean(1).float(), None)

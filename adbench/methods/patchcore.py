"""PatchCore (Roth et al. 2022): nearest neighbours in a small bank of patch features of normal images.

| equation | function |
|---|---|
| Eqs. 1 to 3, patch features | losses.patchcore.locally_averaged |
| Algorithm 1, coreset | losses.neighbours.greedy_coreset |
| Eq. 6, distance to the bank | losses.neighbours.nearest |
| Eq. 7, image score | losses.patchcore.reweighted |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from adbench.errors import UserError
from adbench.losses.neighbours import greedy_coreset, joined, nearest
from adbench.losses.patchcore import locally_averaged, reweighted
from adbench.methods.reference import Reference, smoothed
from adbench.streams import torch_stream
from adbench.types import Batch, Scores


class PatchCore(Reference):
    """A bank of patch features that covers those of the training images.

    Args:
        backbone, stages, image_size: see `Reference`.
        coreset: share of the patches that the bank keeps, in (0, 1]; at least one.
        neighbours: b of Eq. 7.
        sigma: of the Gaussian that smooths the map, in pixels.

    Raises:
        UserError: the share is out of its range, timm has no such model, or the model no such stage.
    """

    fitted = ("bank", "center")

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        stages: Sequence[int] = (2, 3),
        image_size: int | Sequence[int] = 224,
        coreset: float = 0.1,
        neighbours: int = 9,
        sigma: float = 4.0,
    ) -> None:
        super().__init__(backbone, stages, image_size)
        if not 0 < coreset <= 1:
            raise UserError(f"method.coreset is a share of the patches in (0, 1], got {coreset}")
        self.coreset, self.neighbours, self.sigma = coreset, neighbours, sigma

    def _patches(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B h w, D) features, image by image, and (h, w)."""
        features = locally_averaged(self.backbone(image))
        return features.permute(0, 2, 3, 1).flatten(0, 2), (features.shape[2], features.shape[3])

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Fill the bank from the training rows."""
        rows = joined([self._patches(batch.image)[0] for batch in batches])
        count = max(1, round(self.coreset * len(rows)))
        first = int(torch.randint(len(rows), (), generator=torch_stream(self.seed, "coreset")))
        chosen = rows[greedy_coreset(rows, count, first)]
        self.center = chosen.mean(0)  # distances to features about 0 lose less to rounding
        self.bank = chosen - self.center

    def score(self, image: Tensor) -> Scores:
        patches, (height, width) = self._patches(image)
        patches = patches - self.center
        distance, member = nearest(patches, self.bank)
        maps = distance.view(-1, 1, height, width)
        largest, place = maps.flatten(1).max(1)
        # By image and place, not by row: an exported graph takes any number of images.
        by_image = patches.view(-1, height * width, patches.shape[1])
        patch = by_image.gather(1, place[:, None, None].expand(-1, 1, patches.shape[1]))[:, 0]
        member = member.view(-1, height * width).gather(1, place[:, None])[:, 0]
        scores = reweighted(largest, patch, member, self.bank, self.neighbours)
        return Scores(scores.float(), smoothed(maps, image.shape[-2:], self.sigma).float())

"""PaDiM (Defard et al. 2021): a Gaussian of features for each position of the image.

| equation | function |
|---|---|
| section III-A, embedding vectors | PaDiM._embedding |
| Eq. 1, Gaussians | losses.padim.regularised_covariance |
| Eq. 2, Mahalanobis distance | losses.padim.mahalanobis |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.errors import UserError
from adbench.losses.padim import mahalanobis, regularised_covariance, whitening
from adbench.methods.reference import Reference, smoothed
from adbench.streams import torch_stream
from adbench.types import Batch, Scores

BLOCK = 128  # positions whose covariances are inverted at once: the paper's size has gigabytes of them


class PaDiM(Reference):
    """Gaussians of a random choice of channels, one for each position of the finest map.

    Args:
        backbone, stages, image_size: see `Reference`.
        dimensions: how many channels are drawn, with the run's seed; all of them where there are no more.
        epsilon: added to the diagonal of the covariances, > 0.
        sigma: of the Gaussian that smooths the map, in pixels.

    Raises:
        UserError: a value is out of its range, timm has no such model, or the model no such stage.
    """

    fitted = ("channels", "mean", "white")

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        stages: Sequence[int] = (1, 2, 3),
        image_size: int | Sequence[int] = 224,
        dimensions: int = 550,
        epsilon: float = 0.01,
        sigma: float = 4.0,
    ) -> None:
        super().__init__(backbone, stages, image_size)
        if dimensions < 1 or epsilon <= 0:
            raise UserError(f"method.dimensions is at least 1 and method.epsilon above 0, got {dimensions}, {epsilon}")
        self.dimensions, self.epsilon, self.sigma = dimensions, epsilon, sigma

    def _embedding(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, h w, D) features of the chosen channels and (h, w); coarser maps are repeated."""
        maps = self.backbone(image)
        size = maps[0].shape[-2:]
        alike = [maps[0], *(F.interpolate(one, size=tuple(size), mode="nearest") for one in maps[1:])]
        features = torch.cat(alike, dim=1)[:, self.channels.long()]
        return features.flatten(2).transpose(1, 2), (size[0], size[1])

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Mean and covariance at every position, from sums over the training rows in float64.

        Raises:
            UserError: there are fewer than two training rows.
        """
        total = sum(self.backbone.channels)
        order = torch.randperm(total, generator=torch_stream(self.seed, "channels"))
        self.channels = order[: self.dimensions].sort().values.to(self.device)
        count, summed, products = 0, None, None
        for batch in batches:
            rows = self._embedding(batch.image)[0].transpose(0, 1).double()  # (P, B, D)
            if summed is None or products is None:
                summed, products = (
                    rows.new_zeros(len(rows), rows.shape[2]),
                    rows.new_zeros(len(rows), *[rows.shape[2]] * 2),
                )
            count += rows.shape[1]
            summed += rows.sum(1)
            products.baddbmm_(rows.transpose(1, 2), rows)
        if summed is None or products is None or count < 2:
            raise UserError(f"padim needs at least 2 training rows, got {count}; use method=knn")
        self.mean = torch.empty(summed.shape, device=summed.device)
        self.white = torch.empty(products.shape, device=products.device)
        for first in range(0, len(summed), BLOCK):
            some = slice(first, first + BLOCK)
            mean, covariance = regularised_covariance(summed[some], products[some], count, self.epsilon)
            self.mean[some], self.white[some] = mean.float(), whitening(covariance).float()

    def score(self, image: Tensor) -> Scores:
        rows, (height, width) = self._embedding(image)
        distance = mahalanobis(rows, self.mean, self.white)
        maps = smoothed(distance.reshape(-1, 1, height, width), image.shape[-2:], self.sigma)
        return Scores(maps.flatten(1).max(1).values.float(), maps.float())

"""Detectors that learn next to nothing. Where a method does not beat them, the data may have a shortcut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from adbench.methods.base import Method
from adbench.types import Batch, Scores


class Brightness(Method):
    """Score = |mean brightness of the image - mean brightness of the training images|, in [0, 1]. It draws no maps."""

    has_maps = False
    mean: Tensor  # () float64

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

    def prepare(self, batches: Iterable[Batch]) -> None:
        means = [batch.image.double().flatten(1).mean(1) for batch in batches]
        self.mean.copy_(torch.cat(means).mean())

    def score(self, image: Tensor) -> Scores:
        return Scores((image.double().flatten(1).mean(1) - self.mean).abs().float(), None)


class PCAResidual(Method):
    """Score = mean squared residual after projection on the leading principal components of the training pixels.

    Args:
        components: how many; at most the number of training rows minus one are used.
        image_size: side of the images in pixels, or [height, width].
    """

    mean: Tensor  # (D,)
    basis: Tensor  # (components, D)

    def __init__(self, components: int = 30, image_size: int | Sequence[int] = 64) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.components = components
        self.register_buffer("mean", torch.zeros(3 * height * width))
        self.register_buffer("basis", torch.zeros(components, 3 * height * width))

    def prepare(self, batches: Iterable[Batch]) -> None:
        rows = torch.cat([batch.image.flatten(1) for batch in batches])
        self.mean.copy_(rows.mean(0))
        rows = rows - self.mean
        # The Gram matrix is small (rows x rows); its eigenvectors give the components of the pixels.
        vectors = torch.linalg.eigh((rows @ rows.T).double()).eigenvectors
        keep = min(self.components, len(rows) - 1)
        leading = vectors[:, -keep:].T.flip(0).to(rows.dtype) @ rows
        self.basis.zero_()
        self.basis[:keep] = torch.nn.functional.normalize(leading, dim=1)

    def _project(self, image: Tensor) -> Tensor:
        row = image.flatten(1) - self.mean
        return (row @ self.basis.T @ self.basis + self.mean).view_as(image)

    def score(self, image: Tensor) -> Scores:
        residual = (image - self._project(image)).square().mean(1, keepdim=True)
        return Scores(residual.flatten(1).mean(1), residual)

    def reconstruct(self, image: Tensor) -> Tensor:
        return self._project(image).clamp(0, 1)

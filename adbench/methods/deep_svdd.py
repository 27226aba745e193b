"""Deep SVDD (Ruff et al. 2018) and Deep SAD (Ruff et al. 2020): embeddings drawn to a center.

| equation | function |
|---|---|
| Deep SVDD Eq. 3, soft boundary | losses.hypersphere.soft_boundary, .radius |
| Deep SVDD Eq. 4, one class | losses.hypersphere.one_class |
| Deep SVDD Eq. 5, score | losses.hypersphere.distance |
| Deep SAD Eq. 7 | losses.hypersphere.semi_supervised |

The papers train an autoencoder first: `pretraining=autoencoder`. The center is the mean embedding after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adbench.losses import hypersphere
from adbench.methods.base import OptimizerFactory, Schedule, Terms, step_decay
from adbench.methods.several_steps import SeveralSteps
from adbench.networks import esad as deep
from adbench.networks import lenet
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.mlp import SIZES, FeatureScaling, mlp
from adbench.types import Batch, Scores, UserError

OPTIMIZER = partial(torch.optim.Adam, lr=1e-4, weight_decay=5e-7)
SCHEDULE = step_decay([0.33333333], 0.1)


class _Contrast(nn.Module):
    """Contrast normalisation, then the range of the training rows to [0, 1]: (B, C, H, W) -> the same."""

    low: Tensor  # ()
    high: Tensor  # ()

    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self.normalise = self.fitted = normalise
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def fit(self, batches: Iterable[Tensor]) -> None:
        ranges = torch.stack([torch.stack(lenet.contrast_normalised(x).aminmax()) for x in batches])
        self.low.copy_(ranges[:, 0].min())
        self.high.copy_(ranges[:, 1].max())

    def forward(self, x: Tensor) -> Tensor:
        return (lenet.contrast_normalised(x) - self.low) / (self.high - self.low) if self.normalise else x


class _Hypersphere(SeveralSteps):
    """The networks, the center and the score that both methods share.

    Args:
        kind: data.kind; "tabular" takes a perceptron on scaled features.
        image_size: side of the images, or the number of features.
        network: of images: "mnist", "fashion_mnist" (28 px), "cifar10" (32 px) or "esad" (a multiple of 16 px).
        mlp: of tabular data: `hidden` widths and `embedding` width.
        scaling: of tabular data, see `FeatureScaling`.
        contrast: whether images are contrast-normalised (Deep SVDD's published code does, Deep SAD's does not).
        center_floor: smallest size of a component of the center.
        optimizer, schedule, rows_per_step: see `SeveralSteps`.
    """

    has_maps = False
    center: Tensor  # (E,)

    def __init__(
        self,
        kind: str,
        image_size: int,
        network: str,
        mlp: Mapping[str, Any],
        scaling: str,
        contrast: bool,
        center_floor: float,
        optimizer: OptimizerFactory,
        schedule: Schedule | None,
        rows_per_step: int | None,
    ) -> None:
        super().__init__(optimizer, schedule, rows_per_step)
        self.tabular, self.center_floor = kind == "tabular", center_floor
        self.image_size, self.network, self.sizes = image_size, network, mlp
        self.input: FeatureScaling | _Contrast
        self.input = FeatureScaling(image_size, scaling) if self.tabular else _Contrast(contrast)
        self.encoder, embedding = self._encoder()
        self.register_buffer("center", torch.zeros(embedding))

    def _encoder(self) -> tuple[nn.Module, int]:
        if self.tabular:
            return mlp([self.image_size, *self.sizes["hidden"], self.sizes["embedding"]]), self.sizes["embedding"]
        if self.network == "esad":
            deep.check_side(self.image_size)
            code = deep.encoder(plain=True, code_bn=True)
            return nn.Sequential(code, nn.Flatten()), deep.WIDTHS[-1] * (self.image_size // 16) ** 2
        return lenet.encoder(self.network, self.image_size), lenet.embedding_width(self.network)

    def _decoder(self) -> nn.Module:
        """Of the autoencoder that the papers train first."""
        if self.tabular:
            widths = [self.sizes["embedding"], *self.sizes["hidden"][::-1], self.image_size]
            return nn.Sequential(mlp(widths), *[nn.Sigmoid()] * (self.input.scaling == "min_max"))
        if self.network == "esad":
            side = self.image_size // 16
            return nn.Sequential(nn.Unflatten(1, (deep.WIDTHS[-1], side, side)), deep.decoder(plain=True))
        return lenet.decoder(self.network, self.image_size)

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """The encoder that pretraining may fill; the decoder is new at each call and no part of the method."""
        side = None if self.tabular else self.image_size
        return {
            "encoder": PretrainableEncoder(self.encoder, len(self.center), side, self.input, decoder=self._decoder())
        }

    def before_pretraining(self, batches: Iterable[Batch]) -> None:
        if self.tabular or self.input.fitted:
            self.input.fit(batch.image for batch in batches)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """The input's range, then the center; both once, over the rows that train (after any pretraining)."""
        rows: Iterable[Tensor] = (batch.image for batch in batches)
        if self.tabular or self.input.fitted:
            rows = list(rows)
            self.input.fit(rows)
        embedding = torch.cat([self.encoder(self.input(x)) for x in rows])
        self.center.copy_(hypersphere.kept_off_zero(embedding.mean(0), self.center_floor))

    def codes(self, image: Tensor) -> Tensor:
        """The embedding of the whole image: (B, 1, E). Source: Huang et al. 2021 (ESAD), Figure 3 (a)."""
        return self.encoder(self.input(image)).float()[:, None]

    def distance(self, image: Tensor) -> Tensor:
        """Squared distance from the center of (B, 3, H, W) images in [0, 1], or (B, D) features: (B,), >= 0."""
        return hypersphere.distance(self.encoder(self.input(image)), self.center)


class DeepSVDD(_Hypersphere):
    """Unsupervised: one-class or soft-boundary. Score = squared distance from the center, minus the squared radius.

    Args:
        soft_boundary: whether a radius is learnt.
        nu: share of training rows outside the sphere, in (0, 1].
        warm_up: share of the training before the radius leaves 0.
        others: see `_Hypersphere`.

    Raises:
        UserError: nu is out of its range, there is no such network or scaling, or the network takes another side.
    """

    radius: Tensor  # ()

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 32,
        network: str = "cifar10",
        mlp: Mapping[str, Any] = SIZES,
        scaling: str = "min_max",
        contrast: bool = True,
        center_floor: float = 0.1,
        soft_boundary: bool = False,
        nu: float = 0.1,
        warm_up: float = 0.06666666,
        optimizer: OptimizerFactory = OPTIMIZER,
        schedule: Schedule | None = SCHEDULE,
        rows_per_step: int | None = None,
    ) -> None:
        super().__init__(
            kind, image_size, network, mlp, scaling, contrast, center_floor, optimizer, schedule, rows_per_step
        )
        if not 0 < nu <= 1:
            raise UserError(f"method.nu is the share of rows outside the sphere, in (0, 1], got {nu}")
        self.soft_boundary, self.nu, self.warm_up = soft_boundary, nu, warm_up
        self.register_buffer("radius", torch.zeros(()))

    def objective(self, batch: Batch) -> Terms:
        distance = self.distance(batch.image)
        if not self.soft_boundary:
            return {"distance": hypersphere.one_class(distance)}
        self._latest = distance.detach()
        return {"soft_boundary": hypersphere.soft_boundary(distance, self.radius, self.nu)}

    def after_step(self) -> None:
        if self.soft_boundary and self.progress >= self.warm_up:
            self.radius.copy_(hypersphere.radius(self._latest, self.nu))

    def score(self, image: Tensor) -> Scores:
        return Scores(self.distance(image) - self.radius.square(), None)


class DeepSAD(_Hypersphere):
    """Semi-supervised: known anomalies are pushed away from the center. Score = squared distance from it.

    Args:
        eta: weight of a labelled row relative to an unlabelled one, > 0.
        others: see `_Hypersphere`.

    Raises:
        UserError: there is no such network or scaling, or the network takes another side.
    """

    supervision = "semi"

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 32,
        network: str = "cifar10",
        mlp: Mapping[str, Any] = SIZES,
        scaling: str = "min_max",
        contrast: bool = False,
        center_floor: float = 0.1,
        eta: float = 1.0,
        optimizer: OptimizerFactory = OPTIMIZER,
        schedule: Schedule | None = SCHEDULE,
        rows_per_step: int | None = None,
    ) -> None:
        super().__init__(
            kind, image_size, network, mlp, scaling, contrast, center_floor, optimizer, schedule, rows_per_step
        )
        self.eta = eta

    def objective(self, batch: Batch) -> Terms:
        return {"distance": hypersphere.semi_supervised(self.distance(batch.image), batch.semi_label, self.eta)}

    def score(self, image: Tensor) -> Scores:
        return Scores(self.distance(image), None)

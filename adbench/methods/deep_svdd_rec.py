"""DSVDD+REC, the baseline of Chen et al. 2022 (IGD): Deep SVDD with IGD's networks and reconstruction beside it.

| equation | function |
|---|---|
| Deep SVDD Eq. 4 and 5, distance | losses.hypersphere.distance |
| IGD Eq. 12, reconstruction | losses.igd.reconstruction |
| IGD Eq. 17, map | losses.igd.residual_map |
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adbench.losses import hypersphere
from adbench.losses import igd as losses
from adbench.losses.similarity import scale_weights
from adbench.methods.base import OptimizerFactory, Schedule, SingleObjective, Terms
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.igd import Descriptor
from adbench.types import Batch, Scores

OPTIMIZER = partial(torch.optim.Adam, lr=1e-4, weight_decay=1e-6)


class DeepSVDDRec(SingleObjective):
    """Loss and score = distance from a fixed center + reconstruction residual, both with weight 1.

    Args:
        image_size: side of the images.
        trunk, width, latent: see `networks.igd.Descriptor`.
        rho: weight of the absolute error in the residual.
        freeze: whether a pretrained trunk is held fixed.
        center_floor: smallest size of a component of the center.
        optimizer, schedule: see `SingleObjective`.

    Raises:
        UserError: there is no such trunk, or the networks do not take this side.
    """

    pretrained: Tensor  # () bool
    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        image_size: int = 256,
        trunk: str = "resnet18",
        width: float = 1.0,
        latent: int = 128,
        rho: float = 0.15,
        freeze: bool = True,
        center_floor: float = 0.1,
        optimizer: OptimizerFactory = OPTIMIZER,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.networks = Descriptor(image_size, trunk=trunk, latent=latent, width=width, critic=False)
        # A bias of the last layer could put every image on the center.
        self.networks.encoder.projection = nn.Linear(self.networks.encoder.trunk.features, latent, bias=False)
        window, scales = (3, 4) if image_size == 32 else (11, 5)
        weights = scale_weights(image_size, window, scales)
        self.residual: dict[str, Any] = {"rho": rho, "window": window, "weights": weights}
        self._freeze, self.center_floor = freeze, center_floor
        self.register_buffer("pretrained", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean", torch.tensor(losses.MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(losses.STD).view(1, 3, 1, 1), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        """Normalised image -> embedding."""
        return self.networks.encoder

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ImageNet-normalised pixels of the same shape."""
        return (image - self.mean) / self.std

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """The trunk, which pretraining may fill."""
        return {"trunk": self.networks.pretrainable(self.normalize)}

    def on_pretrained(self) -> None:
        """Called once the trunk is filled."""
        self.pretrained.fill_(True)
        if self._freeze:
            self.networks.encoder.trunk.requires_grad_(False)
            self.train(self.training)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if bool(checkpoint["state_dict"]["pretrained"]):
            self.on_pretrained()  # before the optimizer is made

    def train(self, mode: bool = True) -> DeepSVDDRec:
        """Training mode, but for the statistics of a trunk that is held fixed."""
        super().train(mode)
        trunk = self.networks.encoder.trunk
        if not any(p.requires_grad for p in trunk.parameters()):
            trunk.eval()
        return self

    def prepare(self, batches: Iterable[Batch]) -> None:
        """The center: the mean embedding of the training rows before the first step."""
        embedding = torch.cat([self.encoder(self.normalize(batch.image)) for batch in batches])
        self.networks.center.copy_(hypersphere.kept_off_zero(embedding.mean(0), self.center_floor))

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance (B,), residual (B,) and reconstruction of normalised images."""
        z = self.encoder(x)
        x_hat = self.networks.decoder(z)
        return hypersphere.distance(z, self.networks.center), losses.reconstruction(x, x_hat, **self.residual), x_hat

    def objective(self, batch: Batch) -> Terms:
        distance, residual, _ = self._terms(self.normalize(batch.image))
        return {"distance": hypersphere.one_class(distance), "reconstruction": residual.mean()}

    def score(self, image: Tensor) -> Scores:
        x = self.normalize(image)
        distance, residual, x_hat = self._terms(x)
        return Scores((distance + residual).float(), losses.residual_map(x, x_hat.float(), **self.residual))

    def reconstruct(self, image: Tensor) -> Tensor:
        return (self._terms(self.normalize(image))[2] * self.std + self.mean).clamp(0, 1)

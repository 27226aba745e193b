"""Autoencoders, plain and variational: what cannot be reconstructed is anomalous.

| equation | function |
|---|---|
| squared error | losses.reconstruction.squared_error_map |
| 1 - SSIM (Bergmann et al. 2019, Eq. 8) | losses.reconstruction.ssim_error_map |
| divergence of a VAE (Kingma and Welling 2014, appendix B) | losses.reconstruction.gaussian_divergence |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adbench.losses import reconstruction as losses
from adbench.methods.base import OptimizerFactory, Schedule, Terms
from adbench.methods.several_steps import SeveralSteps
from adbench.networks import convolutional
from adbench.networks.mlp import SIZES, FeatureScaling, mlp
from adbench.types import Batch, Scores, UserError

OPTIMIZER = partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-5)


class Autoencoder(SeveralSteps):
    """Score = mean error of the reconstruction; map = error of each pixel.

    Args:
        kind: data.kind; "tabular" takes perceptrons on scaled features and has no map.
        image_size: side of the images, or the number of features.
        latent: width of the code of images.
        width: channels after the first convolution.
        mlp: of tabular data: `hidden` widths and `embedding` width.
        scaling: of tabular data, see `FeatureScaling`.
        error: "squared", or "ssim" (images).
        window: of SSIM, in pixels.
        optimizer, schedule, rows_per_step: see `SeveralSteps`.
        norm: batch normalisation in the networks of images.

    Raises:
        UserError: there is no such error or scaling, or the images cannot be halved down to 8 px or less.
    """

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 128,
        latent: int = 128,
        width: int = 32,
        mlp: Mapping[str, Any] = SIZES,
        scaling: str = "min_max",
        error: str = "squared",
        window: int = 11,
        optimizer: OptimizerFactory = OPTIMIZER,
        schedule: Schedule | None = None,
        rows_per_step: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__(optimizer, schedule, rows_per_step)
        self.norm = norm
        self.tabular = kind == "tabular"
        self.has_maps = not self.tabular
        if error not in ("squared", "ssim") or (self.tabular and error == "ssim"):
            raise UserError(f"method.error is squared, or for images ssim; got {error} for data of kind {kind}")
        self.error, self.window = error, window
        self.input: nn.Module = FeatureScaling(image_size, scaling) if self.tabular else nn.Identity()
        self._build(image_size, latent, width, mlp, codes=1)

    def _build(self, size: int, latent: int, width: int, sizes: Mapping[str, Any], codes: int) -> None:
        """The networks; the encoder gives `codes` times the width of the latent."""
        if self.tabular:
            hidden, code = list(sizes["hidden"]), sizes["embedding"]
            squash = [nn.Sigmoid()] * (self.input.scaling == "min_max")
            self.encoder: nn.Module = mlp([size, *hidden, code * codes])
            self.decoder: nn.Module = nn.Sequential(mlp([code, *hidden[::-1], size]), *squash)
        else:
            self.encoder = convolutional.encoder(size, latent * codes, width, self.norm)
            self.decoder = convolutional.decoder(size, latent, width, self.norm)

    def prepare(self, batches: Iterable[Batch]) -> None:
        if isinstance(self.input, FeatureScaling):
            self.input.fit(batch.image for batch in batches)

    def errors(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """The error of each pixel, (B, 1, H, W), or of each feature, (B, D): >= 0.

        Args:
            x, x_hat: (B, 3, H, W) in [0, 1], or (B, D) scaled features.
        """
        if self.tabular:
            return (x - x_hat).square()
        if self.error == "ssim":
            return losses.ssim_error_map(x, x_hat, data_range=1.0, window=self.window)
        return losses.squared_error_map(x, x_hat)

    def objective(self, batch: Batch) -> Terms:
        x = self.input(batch.image)
        return {"reconstruction": self.errors(x, self.decoder(self.encoder(x))).mean()}

    def _code(self, x: Tensor) -> Tensor:
        """The code whose reconstruction scores."""
        return self.encoder(x)

    def _decoded(self, x: Tensor) -> Tensor:
        """The reconstruction that scores."""
        return self.decoder(self._code(x))

    def codes(self, image: Tensor) -> Tensor:
        """(B, 1, latent): the code of each image or row, of a variational autoencoder its mean."""
        return self._code(self.input(image))[:, None]

    @property
    def decodes(self) -> bool:
        """Whether `decode` draws pictures: not of tables."""
        return not self.tabular

    def decode(self, codes: Tensor) -> Tensor:
        """(B, 1, latent) codes -> (B, 3, H, W) in [0, 1]."""
        return self.decoder(codes[:, 0])

    def score(self, image: Tensor) -> Scores:
        x = self.input(image)
        errors = self.errors(x, self._decoded(x))
        return Scores(errors.flatten(1).mean(1), None if self.tabular else errors)

    def reconstruct(self, image: Tensor) -> Tensor | None:
        return None if self.tabular else self._decoded(self.input(image)).clamp(0, 1)


class VariationalAutoencoder(Autoencoder):
    """Score = error of the mean code's reconstruction, plus `divergence_weight` times the code's divergence.

    Args:
        divergence_weight: of the divergence in nats per element of the input, in training and in the score. With a
            decoder of unit variance 2 is the evidence lower bound (times -2); smaller values blur less.
        others: see `Autoencoder`.
    """

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 128,
        latent: int = 128,
        width: int = 32,
        mlp: Mapping[str, Any] = SIZES,
        scaling: str = "min_max",
        error: str = "squared",
        window: int = 11,
        divergence_weight: float = 0.1,
        optimizer: OptimizerFactory = OPTIMIZER,
        schedule: Schedule | None = None,
        rows_per_step: int | None = None,
        norm: bool = True,
    ) -> None:
        self.divergence_weight = divergence_weight
        super().__init__(
            kind, image_size, latent, width, mlp, scaling, error, window, optimizer, schedule, rows_per_step, norm
        )

    def _build(self, size: int, latent: int, width: int, sizes: Mapping[str, Any], codes: int) -> None:
        super()._build(size, latent, width, sizes, codes=2)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the code."""
        return self.encoder(x).chunk(2, dim=1)

    def _code(self, x: Tensor) -> Tensor:
        return self._posterior(x)[0]

    def _divergence(self, x: Tensor) -> Tensor:
        return self.divergence_weight * losses.gaussian_divergence(*self._posterior(x)) / x[0].numel()

    def objective(self, batch: Batch) -> Terms:
        x = self.input(batch.image)
        mean, log_variance = self._posterior(x)
        z = losses.sampled(mean, log_variance, self.randn("code", len(x), mean.shape[1]))
        divergence = losses.gaussian_divergence(mean, log_variance).mean() / x[0].numel()
        return {
            "reconstruction": self.errors(x, self.decoder(z)).mean(),
            "divergence": self.divergence_weight * divergence,
        }

    def score(self, image: Tensor) -> Scores:
        plain = super().score(image)
        return Scores(plain.image + self._divergence(self.input(image)), plain.maps)

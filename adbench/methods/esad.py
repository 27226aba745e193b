"""ESAD: end-to-end semi-supervised anomaly detection (Huang et al. 2021).

| equation | function |
|---|---|
| Eq. 5, L_rec with Φ | losses.esad.reconstruction; φ: transforms.displacement |
| Eq. 6, L_norm | losses.esad.norm |
| Eq. 7, L_ass | losses.esad.assistance |
| Eq. 8, their sum | `ESAD.objective` |
| Eq. 9, score | losses.esad.score |

One optimizer trains both encoders and the decoder end to end: no gradient is stopped, there is no center and no
pretraining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adbench.losses import esad as losses
from adbench.methods.base import OptimizerFactory, Schedule, Terms
from adbench.methods.several_steps import SeveralSteps
from adbench.networks import esad as deep
from adbench.networks import lenet
from adbench.networks.mlp import FeatureScaling, mlp
from adbench.transforms.displacement import permuted, quarter_turned
from adbench.types import Batch, Scores


class ESAD(SeveralSteps):
    """Encoder, decoder and a second encoder of the reconstruction, whose code is small for normal data.

    Args:
        kind: data.kind; "tabular" takes perceptrons on scaled features.
        image_size: side of the images, or the number of features.
        network: of images: "deep" (the paper's) or the name of a LeNet (Table 5, shallow).
        mlp: of tabular data: `hidden` widths and `embedding` width.
        scaling: of tabular data, see `FeatureScaling`; min_max ends the decoder in a sigmoid, the others do not.
        widths: channels of the deep network.
        batch_norm, code_bn: of the deep network, see `networks.esad.encoder`.
        pad: border of zeros around images, in pixels.
        lambda_1, lambda_2: Eq. 8.
        phi: `turn` (images), `permutation` (features) and `noise` (standard deviation); all off leaves Φ(x) = x.
        reduction: of ‖.‖² over elements, "mean" or "sum".
        inverse_eps: bounds the inverse norm, see `losses.esad.norm`.
        second_encoder: False leaves it out, and z takes the place of ẑ (Table 4, vanilla autoencoder).
        optimizer, schedule, rows_per_step, clip: see `SeveralSteps`.
    """

    supervision: ClassVar[str] = "semi"
    has_maps: ClassVar[bool] = False

    def __init__(
        self,
        kind: str,
        image_size: int,
        network: str,
        mlp: Mapping[str, Any],
        scaling: str,
        widths: list[int],
        batch_norm: bool,
        code_bn: bool,
        pad: int,
        lambda_1: float,
        lambda_2: float,
        phi: Mapping[str, Any],
        reduction: losses.Reduction,
        inverse_eps: float,
        second_encoder: bool,
        optimizer: OptimizerFactory,
        schedule: Schedule | None,
        rows_per_step: int | None,
        clip: float | None,
    ) -> None:
        super().__init__(optimizer, schedule, rows_per_step, clip)
        self.tabular, self.pad = kind == "tabular", 0 if kind == "tabular" else pad
        self.lambda_1, self.lambda_2, self.reduction, self.inverse_eps = lambda_1, lambda_2, reduction, inverse_eps
        self.phi = dict(phi)
        self.scaling: nn.Module = FeatureScaling(image_size, scaling) if self.tabular else nn.Identity()
        build = self._perceptrons if self.tabular else self._deep if network == "deep" else self._shallow
        self.encoder, self.decoder, other = build(image_size + 2 * self.pad, network, mlp, widths, batch_norm, code_bn)
        self.second_encoder: nn.Module | None = other if second_encoder else None
        # A bias in front of batch norm is subtracted again: its gradient is rounding error.
        self.gradient_free = tuple(
            f"{network}.{i}.bias"
            for network in ("encoder", "decoder", "second_encoder")
            for i, (layer, after) in enumerate(pairwise(getattr(self, network) or ()))
            if getattr(layer, "bias", None) is not None and isinstance(after, nn.BatchNorm2d)
        )

    def _perceptrons(self, features: int, network: str, sizes: Mapping[str, Any], *_: Any) -> tuple[nn.Module, ...]:
        widths = [features, *sizes["hidden"], sizes["embedding"]]
        squash = [nn.Sigmoid()] if self.scaling.scaling == "min_max" else []
        return mlp(widths), nn.Sequential(mlp(widths[::-1]), *squash), mlp(widths)

    @staticmethod
    def _deep(
        side: int, network: str, sizes: Any, widths: list[int], norm: bool, code_bn: bool
    ) -> tuple[nn.Module, ...]:
        deep.check_side(side)
        encoder = lambda: deep.encoder(tuple(widths), norm, code_bn)  # noqa: E731
        return encoder(), deep.decoder(tuple(widths), norm), encoder()

    @staticmethod
    def _shallow(side: int, network: str, *_: Any) -> tuple[nn.Module, ...]:
        return lenet.encoder(network, side), lenet.decoder(network, side), lenet.encoder(network, side)

    def _input(self, image: Tensor) -> Tensor:
        """What the networks see: scaled features, or images with their border."""
        return self.scaling(image) if self.tabular else F.pad(image, [self.pad] * 4)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z, x̂, ẑ); without a second encoder ẑ is z."""
        z = self.encoder(x)
        x_hat = self.decoder(z)
        return z, x_hat, z if self.second_encoder is None else self.second_encoder(x_hat)

    def displaced(self, x: Tensor) -> Tensor:
        """φ(x), redrawn at every visit of a row: (B, ...) -> the same shape."""
        rows = len(x)
        if self.tabular:
            moved = permuted(x, self.rand("phi order", rows, *x.shape[1:])) if self.phi["permutation"] else x
        else:
            moved = quarter_turned(x, self.rand("phi turn", rows)) if self.phi["turn"] else x
        if self.phi["noise"]:
            moved = moved + self.phi["noise"] * self.randn("phi noise", rows, *x.shape[1:])
        return moved if self.tabular else moved.clamp(0, 1)

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.tabular:
            self.scaling.fit(batch.image for batch in batches)

    def at_once(self, batch: Batch) -> tuple[Tensor, ...]:
        """(x, Φ(x)): what the networks see, and what they are to reconstruct."""
        x = self._input(batch.image)
        anomalous = (batch.semi_label < 0).view(-1, *[1] * (x.ndim - 1))
        return x, torch.where(anomalous, self.displaced(x), x)

    def objective(self, batch: Batch, *both: Tensor) -> Terms:
        x, target = both or self.at_once(batch)
        z, x_hat, z_hat = self._codes(x)
        terms = {
            "reconstruction": losses.reconstruction(x_hat, target, batch.semi_label, self.reduction),
            "norm": self.lambda_1 * losses.norm(z_hat, batch.semi_label, self.reduction, self.inverse_eps),
        }
        if self.second_encoder is not None:
            terms["assistance"] = self.lambda_2 * losses.assistance(z, z_hat, self.reduction)
        return terms

    def score(self, image: Tensor) -> Scores:
        x = self._input(image)
        _, x_hat, z_hat = self._codes(x)
        return Scores(losses.score(x, x_hat, z_hat, self.lambda_1, self.reduction), None)

    def reconstruct(self, image: Tensor) -> Tensor | None:
        if self.tabular:
            return None
        x_hat = self.decoder(self.encoder(self._input(image)))
        return F.pad(x_hat, [-self.pad] * 4).clamp(0, 1)

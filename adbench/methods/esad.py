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

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adbench.losses import esad as losses
from adbench.methods.base import OptimizerFactory, Schedule, Terms, step_decay
from adbench.methods.several_steps import SeveralSteps
from adbench.networks import esad as deep
from adbench.networks import lenet
from adbench.networks.mlp import SIZES, FeatureScaling, mlp
from adbench.transforms.displacement import other_rows, permuted, quarter_turned
from adbench.types import Batch, Scores, UserError

PHI = {"turn": True, "permutation": True, "noise": 0.1, "normal": False}
OPTIMIZER = partial(torch.optim.SGD, lr=0.1)
SCHEDULE = step_decay([0.25, 0.5, 0.75], 0.5)


class ESAD(SeveralSteps):
    """Encoder, decoder and a second encoder of the reconstruction, whose code is small for normal data.

    Args:
        kind: data.kind; "tabular" takes perceptrons on scaled features.
        image_size: side of the images, or the number of features.
        network: of images: "deep" (the paper's) or the name of a LeNet (Table 5, shallow).
        mlp: of tabular data: `hidden` widths and `embedding` width.
        scaling: of tabular data, see `FeatureScaling`; min_max ends the decoder in a sigmoid, the others do not.
        labelled_stream: every step has labelled rows, from a stream of their own (the datamodule reads this, too), so
            that Eqs. 5 and 6 have their weights; False mixes them with the others, and a step may have none.
        widths: channels of the deep network.
        batch_norm, code_bn: of the deep network, see `networks.esad.encoder`.
        pad: border of zeros around images, in pixels.
        lambda_1, lambda_2: Eq. 8.
        phi: `turn` (images), `permutation` (features), `noise` (standard deviation) and `normal` (a random unlabelled
            row in place of the known anomaly); all off leaves Φ(x) = x.
        reduction, code_reduction: of ‖.‖² over elements, of inputs and of codes, "mean" or "sum".
        squared_score: Eq. 9; False scores with ‖x̂ - x‖ + λ1 ‖ẑ‖.
        inverse_eps: bounds the inverse norm, see `losses.esad.norm`.
        second_encoder: False leaves it out, and z takes the place of ẑ (Table 4, vanilla autoencoder).
        optimizer, schedule, rows_per_step, clip: see `SeveralSteps`.

    Raises:
        UserError: there is no such reduction, scaling or network, or the network takes another side.
    """

    supervision = "semi"
    has_maps = False
    labelled_share: Tensor  # ()

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 64,
        network: str = "deep",
        mlp: Mapping[str, Any] = SIZES,
        scaling: str = "min_max",
        widths: Sequence[int] = deep.WIDTHS,
        batch_norm: bool = True,
        code_bn: bool = False,
        pad: int = 0,
        lambda_1: float = 1.0,
        lambda_2: float = 1.0,
        phi: Mapping[str, Any] = PHI,
        reduction: losses.Reduction = "sum",
        code_reduction: losses.Reduction = "sum",
        squared_score: bool = True,
        labelled_stream: bool = True,
        inverse_eps: float = 1e-3,
        second_encoder: bool = True,
        optimizer: OptimizerFactory = OPTIMIZER,
        schedule: Schedule | None = SCHEDULE,
        rows_per_step: int | None = None,
        clip: float | None = 5.0,
    ) -> None:
        super().__init__(optimizer, schedule, rows_per_step, clip)
        self.tabular, self.pad = kind == "tabular", 0 if kind == "tabular" else pad
        for name, value in (("reduction", reduction), ("code_reduction", code_reduction)):
            if value not in ("mean", "sum"):
                raise UserError(f"method.{name} is mean or sum, got {value!r}")
        self.lambda_1, self.lambda_2, self.inverse_eps = lambda_1, lambda_2, inverse_eps
        self.reduction, self.code_reduction, self.squared_score = reduction, code_reduction, squared_score
        self.phi, self.labelled_stream = dict(phi), labelled_stream
        self.register_buffer("labelled_share", torch.zeros(()))  # m / (n + m)
        self.scaling: nn.Module = FeatureScaling(image_size, scaling) if self.tabular else nn.Identity()
        self.side = image_size + 2 * self.pad if network == "deep" and not self.tabular else None  # of a map of codes
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
        side: int, network: str, sizes: Any, widths: Sequence[int], norm: bool, code_bn: bool
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
        """The features' scaling, and the labelled share of the training rows."""
        if not (self.tabular or self.labelled_stream):
            return
        rows, labels = zip(
            *((batch.image if self.tabular else None, batch.semi_label) for batch in batches), strict=True
        )
        if isinstance(self.scaling, FeatureScaling):
            self.scaling.fit(rows)
        self.labelled_share.copy_((torch.cat(labels) != 0).float().mean())

    def shared_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """(x, Φ(x)): what the networks see, and what they are to reconstruct; both (B, 3, H, W) or (B, D)."""
        x = self._input(batch.image)
        anomalous = (batch.semi_label < 0).view(-1, *[1] * (x.ndim - 1))
        source = x
        if self.phi["normal"]:
            source = other_rows(x, batch.semi_label == 0, self.rand("phi normal", len(x)))
        return x, torch.where(anomalous, self.displaced(source), x)

    def _counts(self, semi_label: Tensor) -> Tensor | None:
        """See `losses.esad.reconstruction`: (2,), None where this device has all rows of the step."""
        if self.world == 1:
            return None
        counts = torch.stack([(semi_label == 0).sum(), (semi_label != 0).sum()]).float()
        return self.mean_over_ranks(counts)

    def objective(self, batch: Batch, *both: Tensor) -> Terms:
        x, target = both or self.shared_inputs(batch)
        z, x_hat, z_hat = self._codes(x)
        semi, counts = batch.semi_label, self._counts(batch.semi_label)
        norm = losses.norm(z_hat, semi, self.code_reduction, self.inverse_eps, counts)
        terms = {
            "reconstruction": losses.reconstruction(x_hat, target, semi, self.reduction, counts),
            "norm": self.lambda_1 * norm,
        }
        if self.second_encoder is not None:
            groups = (semi, self.labelled_share, counts) if self.labelled_stream else ()
            terms["assistance"] = self.lambda_2 * losses.assistance(z, z_hat, self.code_reduction, *groups)
        return terms

    def score(self, image: Tensor) -> Scores:
        x = self._input(image)
        _, x_hat, z_hat = self._codes(x)
        return Scores(self._score(x, x_hat, z_hat), None)

    def test_scores(self, image: Tensor) -> Scores:
        x = self._input(image)
        z, x_hat, z_hat = self._codes(x)
        return Scores(self._score(x, x_hat, z_hat), None, self._extra_scores(x, x_hat, z_hat), _joined(z, z_hat))

    def _score(self, x: Tensor, x_hat: Tensor, z_hat: Tensor) -> Tensor:
        if self.squared_score:
            return losses.score(x, x_hat, z_hat, self.lambda_1, self.reduction, self.code_reduction)
        return losses.unsquared_score(x, x_hat, z_hat, self.lambda_1)

    def extra_scores(self, image: Tensor) -> dict[str, Tensor]:
        """Both terms of the score alone, and other readings of Eq. 9 from the same networks: each (B,)."""
        x = self._input(image)
        _, x_hat, z_hat = self._codes(x)
        return self._extra_scores(x, x_hat, z_hat)

    def _extra_scores(self, x: Tensor, x_hat: Tensor, z_hat: Tensor) -> dict[str, Tensor]:
        return {
            "reconstruction": losses.squared_norm(x_hat - x, self.reduction),
            "norm": losses.squared_norm(z_hat, self.code_reduction),
            "unsquared": losses.unsquared_score(x, x_hat, z_hat, self.lambda_1),
            "means": losses.score(x, x_hat, z_hat, self.lambda_1, "mean", "mean"),
            "sums": losses.score(x, x_hat, z_hat, self.lambda_1, "sum", "sum"),
        }

    code_names: ClassVar[tuple[str, ...]] = ("z", "z_hat")

    def codes(self, image: Tensor) -> Tensor:
        """z and ẑ, as vectors: (B, 2, D). Source: Huang et al. 2021 (ESAD), Figures 1 (b) and 3."""
        z, _, z_hat = self._codes(self._input(image))
        return _joined(z, z_hat)

    @property
    def decodes(self) -> bool:
        """Whether `decode` can draw codes: those of images."""
        return not self.tabular

    def decode(self, codes: Tensor) -> Tensor:
        """z of (B, 1, D) -> x̂ without its border, (B, 3, H, W)."""
        z = codes[:, 0]
        if self.side is not None:
            z = z.unflatten(1, (-1, self.side // 16, self.side // 16))
        return F.pad(self.decoder(z), [-self.pad] * 4)

    def reconstruct(self, image: Tensor) -> Tensor | None:
        if self.tabular:
            return None
        x_hat = self.decoder(self.encoder(self._input(image)))
        return F.pad(x_hat, [-self.pad] * 4).clamp(0, 1)


def _joined(z: Tensor, z_hat: Tensor) -> Tensor:
    """Both codes as vectors: (B, 2, D)."""
    return torch.stack([z.flatten(1), z_hat.flatten(1)], dim=1).float()

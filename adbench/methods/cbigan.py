"""CBiGAN (Carrara et al. 2020) and, with alpha = 0, EGBAD as the same paper trains it.

| paper                                      | function in adbench.losses.cbigan            |
|--------------------------------------------|----------------------------------------------|
| Eq. 5, L_{E,G}                             | encoder_generator_loss                       |
| Eq. 6, L_D                                 | critic_loss                                  |
| section III-B, gradient penalty            | interpolated_pairs, gradient_penalty         |
| Eqs. 8, 9, 11, 12, the L1 norms            | l1_distance                                  |
| Eq. 10, L_C                                | consistency, encoder_generator_terms         |
| Eq. 13, L*_{E,G}                           | encoder_generator_terms                      |
| Eq. 7, A(x)                                | anomaly_score                                |

Networks: adbench.networks.residual_bigan. Rotations, crops and tiles (section V-B): adbench.transforms.geometry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from adbench.losses import cbigan as loss
from adbench.methods.base import (
    Adversarial,
    OptimizerFactory,
    Phase,
    Schedule,
    Terms,
    refuse_other_words,
    sides,
)
from adbench.networks.averaging import WeightAverage
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.residual_bigan import Critic, Encoder, Generator
from adbench.transforms.geometry import rotated_crop, tile, turned_clockwise, untile
from adbench.transforms.image import to_rgb
from adbench.types import Batch, Scores, UserError

_ADAM = partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.9))
OPTIMIZERS = {"critic": _ADAM, "encoder_generator": _ADAM}


class CBiGAN(Adversarial):
    """Encoder, generator and critic of a Wasserstein BiGAN whose encoder and generator are held to invert each other.

    Textures are seen through square tiles: random turned crops while training, all tiles of the grid when scoring.

    Args:
        kind: what the data are: `object` and `small` are seen whole, `texture` in tiles.
        image_size: side of the (square) images, or [height, width].
        tile: side of a texture's tiles, a multiple of 32; the images' sides are multiples of it.
        rotation: [from, to] in degrees clockwise, uniform per image in training.
        latent, width, hidden_bias, kernels: see adbench.networks.residual_bigan.
        alpha: weight of the consistency in [0, 1]; 0 is EGBAD, 1 a double autoencoder.
        consistency_reduction: of the consistency over the batch.
        penalty_weight, penalty_pairing: of the critic's gradient penalty.
        critic_steps, encoder_generator_steps: batches given to the players in turn.
        average_decay, average_every, average_corrected: average of the encoder's and the generator's weights, which
            scores; updated at the first of every so many of their steps.
        lambda_: weight of the features in the score, in [0, 1].
        features: `first_conv` (the released program's) or `penultimate` (depends on the latent as Eq. 9 says).
        map_sigma: standard deviation in pixels of a Gaussian that smooths the anomaly map; 0 leaves it as it is.
        tiles_per_chunk: how many tiles or images are scored at once; bounds memory, does not change scores.
        optimizers: for `critic` and `encoder_generator`.
        schedule: learning-rate multiplier as a function of the budget spent, for both.

    Raises:
        UserError: a value is out of its range, or the images are not square or no multiple of what the networks take.
    """

    gradient_free = ("critic.output.bias",)  # it cancels in the difference of Eq. 6 and in the penalty

    def __init__(
        self, *, kind: Literal["object", "texture", "small"] = "object", image_size: int | Sequence[int] = 128,
        tile: int = 64, rotation: Sequence[float] = (0.0, 0.0),
        latent: int = 64, width: int = 16, hidden_bias: bool = True,
        kernels: Literal["glorot_uniform", "he_normal"] = "glorot_uniform",
        alpha: float = 1e-4, consistency_reduction: Literal["mean", "sum"] = "sum",
        penalty_weight: float = 10.0, penalty_pairing: Literal["joint", "crossed"] = "joint",
        critic_steps: int = 1, encoder_generator_steps: int = 1,
        average_decay: float = 0.999, average_every: int = 10, average_corrected: bool = True,
        lambda_: float = 0.1, features: Literal["first_conv", "penultimate"] = "first_conv",
        map_sigma: float = 0.0, tiles_per_chunk: int = 128,
        optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS, schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        super().__init__(optimizers, schedule)
        refuse_other_words(CBiGAN.__init__, locals())
        self.is_texture = kind == "texture"
        self.takes_bytes = self.is_texture  # crops show a 64th of a texture's pixels; only these become float
        self.rotation = (float(rotation[0]), float(rotation[1]))
        self.side = self._side(image_size, tile)
        self.alpha, self.lambda_ = _in_unit_interval(alpha, "alpha"), _in_unit_interval(lambda_, "lambda_")
        self.consistency_reduction, self.features = consistency_reduction, features
        self.penalty_weight, self.penalty_pairing = penalty_weight, penalty_pairing
        self.critic_steps, self.encoder_generator_steps = critic_steps, encoder_generator_steps
        self.average_every = average_every
        self.map_sigma, self.tiles_per_chunk = map_sigma, tiles_per_chunk
        self.latent = latent

        sizes: dict[str, Any] = {
            "side": self.side, "width": width, "latent": latent, "hidden_bias": hidden_bias, "kernels": kernels
        }  # fmt: skip
        self.encoder, self.generator, self.critic = Encoder(**sizes), Generator(**sizes), Critic(**sizes)
        self.to(memory_format=torch.channels_last)  # convolutions on a CPU took 0.6 of the time of the other layout
        self.average_encoder = WeightAverage(self.encoder, average_decay, average_corrected)
        self.average_generator = WeightAverage(self.generator, average_decay, average_corrected)

    def _side(self, image_size: int | Sequence[int], tile: int) -> int:
        """Side in pixels of what the networks see."""
        height, width = sides(image_size)
        if height != width:
            raise UserError(f"CBiGAN takes square images, got {height}x{width}; set data.image_size=128")
        if not self.is_texture:
            return height
        _check_texture(height, tile, turned=any(self.rotation))
        return tile

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """What pretraining may fill: the convolutions below the latent. They train on afterwards."""
        trunk = self.encoder.trunk
        return {"encoder": PretrainableEncoder(trunk, trunk.out_features, self.side, _signed, windows=self.is_texture)}

    def prepare(self, batches: Iterable[Batch]) -> None:
        self.average_encoder.restart(self.encoder)  # pretraining may have changed it since it was built
        self.average_generator.restart(self.generator)

    # -- training -------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Batches go to the critic and to encoder and generator in turn, `critic_steps` : `encoder_generator_steps`."""
        cycle = self.critic_steps + self.encoder_generator_steps
        order = tuple(range(cycle))
        return [
            Phase("critic", [self.critic], self.critic_objective, cycle, order[: self.critic_steps]),
            Phase(
                "encoder_generator",
                [self.encoder, self.generator],
                self.encoder_generator_objective,
                cycle,
                order[self.critic_steps :],
            ),
        ]

    def view(self, image: Tensor) -> Tensor:
        """The encoder's view in training: turned, cropped, scaled.

        Args:
            image: (B, 3, H, W) in [0, 1]; of textures also (B, 1 or 3, H, W) bytes.

        Returns:
            (B, 3, side, side) in [-1, 1].
        """
        low, high = self.rotation
        degrees = low + (high - low) * self.rand("rotation", len(image))
        if self.is_texture:
            image = to_rgb(rotated_crop(image, degrees, self.rand("crop", len(image), 2), self.side))
        elif high > low:
            image = turned_clockwise(image, degrees)
        return _signed(image)

    def critic_objective(self, batch: Batch) -> Terms:
        """L_D and the weighted gradient penalty. Source: CBiGAN, Eq. 6 and section III-B."""
        x, z = self.view(batch.image), self.randn("latent", len(batch.image), self.latent)
        with torch.no_grad():
            encoded, generated = self.encoder(x).float(), self.generator(z).float()
        real, fake = self.critic(torch.cat([x, generated]), torch.cat([encoded, z])).chunk(2)
        between = loss.interpolated_pairs(
            x, encoded, generated, z, self.rand("interpolation", len(x)), self.penalty_pairing
        )
        critic = partial(Critic.forward, self.critic)  # never the compiled one: that has no second derivative
        return {
            "wasserstein": loss.critic_loss(real, fake),
            "gradient_penalty": self.penalty_weight * loss.gradient_penalty(critic, *between),
        }

    def encoder_generator_objective(self, batch: Batch) -> Terms:
        """The summands of L*_{E,G}. Source: CBiGAN, Eq. 13."""
        x, z = self.view(batch.image), self.randn("latent", len(batch.image), self.latent)
        encoded = self.encoder(x).float()
        # Both halves of the batch in one pass: small convolutions cost their call more than their arithmetic.
        images = self.generator(torch.cat([z, encoded]) if self.alpha > 0 else z).float()
        generated, x_hat = images[: len(z)], images[len(z) :]
        adversarial = of_image = of_latent = x.new_zeros(())
        if self.alpha < 1:
            real, fake = self.critic(torch.cat([x, generated]), torch.cat([encoded, z])).chunk(2)
            adversarial = loss.encoder_generator_loss(real, fake)
        if self.alpha > 0:
            # Gradients are averaged over ranks, so a sum over the joined batch is this rank's times their number.
            ranks = self.world if self.consistency_reduction == "sum" else 1
            of_image = loss.consistency(loss.l1_distance(x, x_hat), self.consistency_reduction)
            of_latent = loss.consistency(loss.l1_distance(z, self.encoder(generated)), self.consistency_reduction)
            of_image, of_latent = ranks * of_image, ranks * of_latent
        return loss.encoder_generator_terms(adversarial, of_image, of_latent, self.alpha)

    def after_phase(self, phase: Phase) -> None:
        if phase.name != "encoder_generator":
            return
        cycles, within = divmod(self.batches_seen, phase.cycle)
        step = cycles * self.encoder_generator_steps + within - self.critic_steps
        if step % self.average_every == 0:
            self.average_encoder.update(self.encoder)
            self.average_generator.update(self.generator)

    # -- scoring --------------------------------------------------------------------------------------------------

    def score(self, image: Tensor) -> Scores:
        tiles = self._tiles(image)
        rows = tiles.flatten(0, 1)
        chunks = [rows] if torch.compiler.is_exporting() else rows.split(self.tiles_per_chunk)
        parts = [self._score_tiles(_signed(chunk)) for chunk in chunks]
        score, residual = (torch.cat(part) for part in zip(*parts, strict=True))
        maps = untile(residual.unflatten(0, tiles.shape[:2]), *image.shape[-2:])
        if self.map_sigma > 0:
            window = 2 * math.ceil(3 * self.map_sigma) + 1
            maps = gaussian_blur2d(maps, window, (self.map_sigma, self.map_sigma))
        return Scores(score.view(tiles.shape[:2]).amax(1), maps)

    def reconstruct(self, image: Tensor) -> Tensor:
        tiles = self._tiles(image)
        chunks = tiles.flatten(0, 1).split(self.tiles_per_chunk)
        x_hat = torch.cat([self.average_generator(self.average_encoder(_signed(chunk))) for chunk in chunks])
        return (untile(x_hat.unflatten(0, tiles.shape[:2]), *image.shape[-2:]) + 1) / 2

    def _tiles(self, image: Tensor) -> Tensor:
        """(B, N, 3, side, side) in [0, 1]; an object is its own only tile."""
        if image.shape[-2:] != (self.side, self.side) and not self.is_texture:
            raise UserError(f"the network was built for {self.side}x{self.side} images, got {tuple(image.shape[-2:])}")
        return tile(image, self.side)

    def _score_tiles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A(x) of (n, 3, side, side) in [-1, 1], and the residual (n, 1, side, side), a sum over the channels."""
        encoded = self.average_encoder(x)
        x_hat = self.average_generator(encoded)
        if self.features == "first_conv":
            feature = loss.l1_distance(self.critic.first_convolution(x), self.critic.first_convolution(x_hat))
        else:
            feature = loss.l1_distance(self.critic.penultimate(x, encoded), self.critic.penultimate(x_hat, encoded))
        score = loss.anomaly_score(loss.l1_distance(x, x_hat), feature, self.lambda_)
        return score, (x - x_hat).abs().sum(1, keepdim=True)


def _signed(image: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1], in the layout of the networks' weights."""
    return (2 * image - 1).contiguous(memory_format=torch.channels_last)


def _in_unit_interval(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"CBiGAN's {name} lies in [0, 1], got {value}; set method.{name}=0.1 for instance")
    return float(value)


def _check_texture(side: int, size: int, turned: bool) -> None:
    if side % size:
        raise UserError(
            f"textures are cut into tiles of {size}, so the image size is a multiple of it, got {side}; "
            f"set data.image_size={max(1, round(side / size)) * size}"
        )
    if turned and side < size * 2**0.5:
        raise UserError(
            f"a crop of {size} does not fit an image of {side} that was turned; "
            f"set data.image_size={2 * size} or turn the rotation off"
        )

"""Residual encoder, generator and critic of a bidirectional GAN, for square images whose side is a multiple of 32.

Five average pools take a side of 32 m to a feature side of m. The generator starts from m x m (from m/2 x m/2 with one
more upsampling where m is even and above 2) and so mirrors the encoder:

    side    feature side    generator starts from    upsamplings
      32               1                    1 x 1              5
      64               2                    2 x 2              5
     128               4                    2 x 2              6

Widths are `width` times 1, 2, 3, 4, 8, 16. There is no normalisation. Biases start at zero.

Source: Carrara et al. 2020 (CBiGAN), section V-B and Fig. 3; details of the block from the authors' released program.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adbench.types import UserError

MULTIPLES = (1, 2, 3, 4, 8, 16)
SLOPE = 0.2
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot_uniform": nn.init.xavier_uniform_,
    "he_normal": nn.init.kaiming_normal_,
}


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _feature_side(side: int) -> int:
    if side < 32 or side % 32:
        raise UserError(
            f"this network takes square images whose side is a multiple of 32, got {side}; "
            "choose another size, e.g. method.recipe.input.object=128"
        )
    return side // 32


def _initialise(module: nn.Module, kernels: str) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            KERNELS[kernels](part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class ResidualBlock(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W): three convolutions beside a 1x1 one.

    Args:
        inputs, outputs: channels.
        hidden_bias: biases on all but the last 1x1 convolution, which always has one.
    """

    def __init__(self, inputs: int, outputs: int, hidden_bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=hidden_bias)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=hidden_bias)
        self.third = nn.Conv2d(outputs, outputs, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=hidden_bias)

    def forward(self, x: Tensor) -> Tensor:
        main = self.third(_leaky(self.second(_leaky(self.first(x)))))
        return _leaky(main + self.skip(x))


class ImageTrunk(nn.Module):
    """(B, 3, 32 m, 32 m) -> (B, 16 width m^2): six residual blocks, a 2x2 average pool after each but the last."""

    def __init__(self, side: int, width: int, hidden_bias: bool = True) -> None:
        super().__init__()
        channels = [3, *(width * m for m in MULTIPLES)]
        self.blocks = nn.ModuleList(ResidualBlock(i, o, hidden_bias) for i, o in itertools.pairwise(channels))
        self.out_features = channels[-1] * _feature_side(side) ** 2

    def forward(self, image: Tensor) -> Tensor:
        *pooled, last = self.blocks
        for block in pooled:
            image = F.avg_pool2d(block(image), 2)
        return last(image).flatten(1)


class Encoder(nn.Module):
    """Image (B, 3, S, S) in [-1, 1] -> latent (B, latent), unbounded. `trunk` is what pretraining may replace.

    Args:
        side: S, a multiple of 32.
        width: see the module's header.
        latent: size of the latent.
        hidden_bias: False leaves out the biases that the authors' released program lacks.
        kernels: how they start, `glorot_uniform` or `he_normal`.

    Raises:
        UserError: S is no multiple of 32.
    """

    def __init__(
        self, side: int, width: int, latent: int, hidden_bias: bool = True, kernels: str = "glorot_uniform"
    ) -> None:
        super().__init__()
        self.trunk = ImageTrunk(side, width, hidden_bias)
        self.hidden = nn.Linear(self.trunk.out_features, 16 * width, bias=hidden_bias)
        self.output = nn.Linear(16 * width, latent)
        _initialise(self, kernels)

    def forward(self, image: Tensor) -> Tensor:
        return self.output(_leaky(self.hidden(self.trunk(image))))


class Generator(nn.Module):
    """Latent (B, latent) -> image (B, 3, S, S) in (-1, 1). Arguments as for `Encoder`."""

    def __init__(
        self, side: int, width: int, latent: int, hidden_bias: bool = True, kernels: str = "glorot_uniform"
    ) -> None:
        super().__init__()
        feature_side = _feature_side(side)
        self.first_doubles = feature_side > 2 and feature_side % 2 == 0
        self.start = (16 * width, *2 * (feature_side // 2 if self.first_doubles else feature_side,))
        self.input = nn.Linear(latent, 16 * width * self.start[1] ** 2, bias=hidden_bias)
        channels = [16 * width, *(width * m for m in reversed(MULTIPLES))]
        self.blocks = nn.ModuleList(ResidualBlock(i, o, hidden_bias) for i, o in itertools.pairwise(channels))
        self.output = nn.Conv2d(width, 3, 1)
        _initialise(self, kernels)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.input(latent).unflatten(1, self.start)  # channels first: the dense units fill (16 width, side, side)
        for number, block in enumerate(self.blocks):
            if number or self.first_doubles:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(x)
        return self.output(x).tanh()


class Critic(nn.Module):
    """Image (B, 3, S, S) and latent (B, latent) -> value (B,), unbounded. Arguments as for `Encoder`."""

    def __init__(
        self, side: int, width: int, latent: int, hidden_bias: bool = True, kernels: str = "glorot_uniform"
    ) -> None:
        super().__init__()
        self.trunk = ImageTrunk(side, width, hidden_bias)
        self.latent_path = nn.ModuleList(nn.Linear(i, 512, bias=hidden_bias) for i in (latent, 512, 512))
        self.hidden = nn.Linear(self.trunk.out_features + 512, 16 * width, bias=hidden_bias)
        self.output = nn.Linear(16 * width, 1)
        _initialise(self, kernels)

    def first_convolution(self, image: Tensor) -> Tensor:
        """(B, width, S, S): the first 3x3 convolution before its activation; linear in the image, blind to z."""
        return cast(ResidualBlock, self.trunk.blocks[0]).first(image)

    def penultimate(self, image: Tensor, latent: Tensor) -> Tensor:
        """(B, 16 width): the activations before the last dense layer."""
        for layer in self.latent_path:
            latent = _leaky(layer(latent))
        return _leaky(self.hidden(torch.cat([self.trunk(image), latent], 1)))

    def forward(self, image: Tensor, latent: Tensor) -> Tensor:
        return self.output(self.penultimate(image, latent)).squeeze(1)

"""The LeNet-type networks of Deep SVDD and Deep SAD: no biases, batch norm without affine part, leaky ReLU.

Source: Ruff et al. 2018 (Deep SVDD), section 4.2, and Ruff et al. 2020 (Deep SAD), appendix; sizes from their
published code.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from adbench.types import UserError

SLOPE = 0.01
#: name: (side, image channels, channels of the blocks, hidden width or None, embedding)
SIZES: dict[str, tuple[int, int, tuple[int, ...], int | None, int]] = {
    "mnist": (28, 1, (8, 4), None, 32),
    "fashion_mnist": (28, 1, (16, 32), 128, 64),
    "cifar10": (32, 3, (32, 64, 128), None, 128),
}


def _size(name: str, image_size: int) -> tuple[int, int, tuple[int, ...], int | None, int]:
    if name not in SIZES:
        raise UserError(f"there is no network '{name}'; choose one of {', '.join(SIZES)}")
    if SIZES[name][0] != image_size:
        raise UserError(
            f"the network '{name}' takes images of {SIZES[name][0]} px, got {image_size}; say "
            f"data.image_size={SIZES[name][0]} or choose another method.network"
        )
    return SIZES[name]


def embedding_width(name: str) -> int:
    """E, how many numbers the encoder of a name in `SIZES` gives."""
    return SIZES[name][-1]


class Grey(nn.Module):
    """(B, 3, H, W) -> (B, 1, H, W): the mean of the channels, which are equal in grey images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class Rgb(nn.Module):
    """(B, 1, H, W) -> (B, 3, H, W), repeated."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-4, affine=False)


def encoder(name: str, image_size: int) -> nn.Sequential:
    """(B, 3, S, S) in any range -> (B, E): 5x5 convolutions, each halved by a max-pool, then linear.

    Args:
        name: a key of `SIZES`.
        image_size: S, in pixels.

    Raises:
        UserError: there is no such network, or it takes another side.
    """
    side, channels, blocks, hidden, embedding = _size(name, image_size)
    layers: list[nn.Module] = [] if channels == 3 else [Grey()]
    for inputs, outputs in pairwise((channels, *blocks)):
        layers += [
            nn.Conv2d(inputs, outputs, 5, padding=2, bias=False),
            _norm(outputs),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.MaxPool2d(2),
        ]
    layers.append(nn.Flatten())
    flat = blocks[-1] * (side // 2 ** len(blocks)) ** 2
    if hidden is not None:
        layers += [
            nn.Linear(flat, hidden, bias=False),
            nn.BatchNorm1d(hidden, eps=1e-4, affine=False),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
        flat = hidden
    return nn.Sequential(*layers, nn.Linear(flat, embedding, bias=False))


def decoder(name: str, image_size: int) -> nn.Sequential:
    """(B, E) -> (B, 3, S, S) in [0, 1], for the autoencoder that comes before: nearest doubling and transposed 5x5.

    Arguments and errors as for `encoder`.
    """
    side, channels, _, hidden, embedding = _size(name, image_size)
    layers: list[nn.Module] = []
    if hidden is not None:
        layers += [nn.Linear(embedding, hidden, bias=False), nn.BatchNorm1d(hidden, eps=1e-4, affine=False)]
    narrow = (embedding if hidden is None else hidden) // 16
    layers += [nn.Unflatten(1, (narrow, 4, 4)), nn.LeakyReLU(SLOPE)]
    # 28 = ((4 * 2) * 2 - 2) * 2: the second convolution of the 28-px networks cuts one pixel off each side.
    paddings = (2, 3, 2) if side == 28 else (2,) * 4
    outputs = _decoder_channels(name)
    for number, (a, b) in enumerate(pairwise((narrow, *outputs, channels))):
        if number:
            layers += [_norm(a), nn.LeakyReLU(SLOPE), nn.Upsample(scale_factor=2, mode="nearest")]
        elif side == 28:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        convolution = nn.ConvTranspose2d(a, b, 5, padding=paddings[number], bias=False)
        layers.append(convolution)
        if name == "cifar10":
            nn.init.xavier_uniform_(convolution.weight, gain=nn.init.calculate_gain("leaky_relu", SLOPE))
    layers.append(nn.Sigmoid())
    if channels == 1:
        layers.append(Rgb())
    return nn.Sequential(*layers)


def _decoder_channels(name: str) -> tuple[int, ...]:
    return {"mnist": (4, 8), "fashion_mnist": (32, 16), "cifar10": (128, 64, 32)}[name]


def contrast_normalised(image: Tensor) -> Tensor:
    """Each image minus its mean, divided by the mean size of what is left: (B, C, H, W) -> the same.

    Source: the published code of Ruff et al. 2018 (global contrast normalisation with the L1 scale).
    """
    centered = image - image.mean((1, 2, 3), keepdim=True)
    return centered / centered.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(image.dtype).eps)

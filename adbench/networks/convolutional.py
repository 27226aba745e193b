"""A plain convolutional autoencoder for square images. Ours, of no paper."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from adbench.types import UserError


def _channels(side: int, width: int) -> list[int]:
    """From the side of the image to 4 px: doubled at each halving, up to eight times the width."""
    halvings = 0
    while side % 2 == 0 and side > 4:
        side, halvings = side // 2, halvings + 1
    if side > 8 or halvings == 0:
        raise UserError(
            f"the convolutional autoencoder halves images down to 8 px or less, which {side * 2**halvings} px does not "
            "allow; set data.image_size to a power of two, or to 28"
        )
    return [width * min(2**n, 8) for n in range(halvings)]


def _bottom(side: int, halvings: int) -> int:
    return side // 2**halvings


def encoder(side: int, latent: int, width: int, norm: bool = True) -> nn.Sequential:
    """(B, 3, S, S) -> (B, latent): 4x4 convolutions of stride 2 with batch norm and leaky ReLU, then linear.

    Args:
        side: S, in pixels.
        latent: size of the code.
        width: channels after the first convolution; they double at each halving, up to eight times this.
        norm: whether there is batch norm.

    Raises:
        UserError: the side cannot be halved down to 8 px or less.
    """
    channels = _channels(side, width)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, *channels)):
        layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] * norm + [nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * _bottom(side, len(channels)) ** 2, latent))


def decoder(side: int, latent: int, width: int, norm: bool = True) -> nn.Sequential:
    """(B, latent) -> (B, 3, S, S) in [0, 1], the encoder's reverse. Arguments and errors as for `encoder`."""
    channels = _channels(side, width)[::-1]
    bottom = _bottom(side, len(channels))
    layers: list[nn.Module] = [
        nn.Linear(latent, channels[0] * bottom**2),
        nn.Unflatten(1, (channels[0], bottom, bottom)),
    ]
    for inputs, outputs in pairwise((*channels, 3)):
        layers += [nn.BatchNorm2d(inputs)] * norm
        layers += [nn.LeakyReLU(0.2, True), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
    return nn.Sequential(*layers, nn.Sigmoid())

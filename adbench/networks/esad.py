"""ESAD's networks for images: a VGG-like encoder to 1/16 of the side and its reverse, without skip connections.

Source: Huang et al. 2021 (ESAD), Table 6, which lists kernels only; batch norm and ReLU follow every convolution but
the last of each network (and, with `code_bn=False`, the one that gives the code: ReLU and BN would fix the variance of
a code that the loss wants to shrink).
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from adbench.types import UserError

WIDTHS = (64, 128, 256, 512, 512)


def check_side(side: int) -> None:
    """Refuse a side, in pixels, that cannot be halved four times.

    Raises:
        UserError: it is no multiple of 16.
    """
    if side < 16 or side % 16:
        raise UserError(
            f"ESAD's networks halve the image four times: its side must be a multiple of 16, got {side}; "
            "set data.image_size, or method.pad to add a border"
        )


def _convolution(inputs: int, outputs: int, norm: bool, plain: bool, last: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not plain)]
    if not last:
        layers += [nn.BatchNorm2d(outputs, affine=not plain)] * norm + [nn.ReLU(inplace=True)]
    return layers


def encoder(
    widths: tuple[int, ...] = WIDTHS, norm: bool = True, code_bn: bool = False, plain: bool = False
) -> nn.Sequential:
    """(B, 3, S, S) -> code (B, widths[-1], S / 16, S / 16).

    Args:
        widths: channels at S, S/2, S/4, S/8 and S/16.
        norm: whether convolutions are followed by batch norm.
        code_bn: whether the convolution that gives the code is followed by batch norm and ReLU like the others.
        plain: no biases and no affine part of BN, as Deep SAD needs.
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise((3, *widths))):
        if number:
            layers.append(nn.MaxPool2d(2))
        layers += _convolution(inputs, outputs, norm, plain)
        layers += _convolution(outputs, outputs, norm, plain, last=number == len(widths) - 1 and not code_bn)
    return nn.Sequential(*layers)


def decoder(widths: tuple[int, ...] = WIDTHS, norm: bool = True, plain: bool = False) -> nn.Sequential:
    """Code (B, widths[-1], S / 16, S / 16) -> (B, 3, S, S) in [0, 1]. Arguments as for `encoder`."""
    layers: list[nn.Module] = []
    outward = (widths[-1], *widths[2::-1], widths[0])
    for inputs, outputs in pairwise(outward):
        layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        layers += _convolution(inputs, outputs, norm, plain) + _convolution(outputs, outputs, norm, plain)
    return nn.Sequential(*layers, *_convolution(widths[0], 3, norm, plain, last=True), nn.Sigmoid())

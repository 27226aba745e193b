"""The networks of P-WAE: one encoder shared by all tiles, a decoder of the tiles' maps, a jigsaw head.

Source: Zhang et al., P-WAE, section IV-A; layer sizes from the released code, the paper printing none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adbench.networks.backbone import pixel_constants, published_name, timm_model
from adbench.types import UserError

#: ResNets, whose width can be chosen, and the published weights that fit them at width 1.
RESNETS = {"resnet50": "resnet50.tv_in1k", "resnet18": "resnet18.tv_in1k"}
STRIDE = 32  # of the last map
CHANNELS = (512, 256, 128, 64, 32)  # of the decoder's five enlargements
MAP = 4  # side of the map that becomes a code: what a 100-px tile gives


def map_side(pixels: int) -> int:
    """Side of the backbone's last map: five halvings, rounded up each time. 100 -> 4, 336 -> 11."""
    for _ in range(5):
        pixels = -(-pixels // 2)
    return pixels


class TileEncoder(nn.Module):
    """A backbone without its classifier, and the linear map from its last feature map to a code.

    Args:
        backbone: "resnet50" (the paper's), "resnet18", or another timm model whose last map has a stride of 32.
        width: multiplies the channels of a ResNet's four stages; 1 takes published weights. Others have their own.
        latent: d, length of a code.
        posterior: give mean and log-variance (2 d numbers) instead of a code, for the KL ablation.
        normalize: subtract first the mean of the pixels that the published weights were trained on, and divide by
            their deviation.

    Raises:
        UserError: timm has no such model, or its last map has another stride.
    """

    backbone: Any  # a timm model
    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(self, backbone: str, width: float, latent: int, posterior: bool, normalize: bool) -> None:
        super().__init__()
        self.published: str | None
        if backbone in RESNETS:
            channels = tuple(max(8, round(c * width)) for c in (64, 128, 256, 512))
            # pretrained=False: weights come from the pretraining group, never from here
            self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, channels=channels)
            self.published = RESNETS[backbone] if width == 1 else None
        else:
            self.backbone = timm_model(backbone, "method.backbone")
            self.published = published_name(self.backbone)
            stride, form = self.backbone.feature_info[-1]["reduction"], getattr(self.backbone, "output_fmt", "NCHW")
            if stride != STRIDE or str(form) != "NCHW":
                raise UserError(
                    f"P-WAE takes a backbone whose last map has a stride of {STRIDE} and its channels first; "
                    f"method.backbone={backbone} has a stride of {stride}, {form}"
                )
        self.features = self.backbone.num_features
        self.mapper = nn.Linear(self.features * (MAP - 2) ** 2, latent * (2 if posterior else 1))
        self.posterior = posterior
        mean, std = pixel_constants(self.backbone) if normalize else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def normalized(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> pixels as the backbone takes them, in the same shape."""
        return (image - self.mean) / self.std

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) in [0, 1] -> last maps (N, features, h, w) and codes (N, d), or (N, 2 d) for a posterior.

        A map of another size than 4 x 4 is pooled to it (or, from small tiles, repeated up to it) before the code.
        """
        maps = self.backbone.forward_features(self.normalized(tiles))
        pooled = F.avg_pool2d(F.adaptive_avg_pool2d(maps, MAP), 3, stride=1)
        return maps, self.mapper(pooled.flatten(1))


class CodeToMap(nn.Module):
    """A linear map from a code to a feature map: (N, d) -> (N, channels, h, w). The decoder then sees nothing but z."""

    def __init__(self, latent: int, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        self.shape = (channels, *size)
        self.linear = nn.Linear(latent, channels * size[0] * size[1])

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).unflatten(1, self.shape)


class Decoder(nn.Module):
    """Mosaic of feature maps to image: (B, inputs, gh, gw) -> (B, 3, H, W) in the range of `output`.

    "released": enlargements by conv1x1 after bilinear interpolation, other convolutions without padding; a map of
    side g gives 32 g - 84 pixels (12 -> 300). "padded": five times bilinear, conv3x3, so 32 g pixels. What comes out is
    resized bilinearly to `size` if it differs.

    Args:
        inputs: channels of the maps.
        width: multiplies the channels 512, 256, 128, 64, 32.
        size: [H, W].
        layout: "released" or "padded".
        output: "sigmoid" or "tanh" (as released; its range is [-1, 1]).
    """

    def __init__(
        self,
        inputs: int,
        width: float,
        size: Sequence[int],
        layout: Literal["released", "padded"],
        output: Literal["sigmoid", "tanh"],
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        c1, c2, c3, c4, c5 = (max(8, round(c * width)) for c in CHANNELS)
        layers: list[nn.Module]
        if layout == "released":
            layers = [
                *_enlarge(inputs, c1, 1), *_valid(c1, 3),
                *_enlarge(c1, c2, 1), *_valid(c2, 7),
                *_enlarge(c2, c3, 1), *_enlarge(c3, c4, 1), *_enlarge(c4, c5, 1),
                *_valid(c5, 3), nn.Conv2d(c5, 3, 3),
            ]  # fmt: skip
        else:
            sizes = [inputs, c1, c2, c3, c4, c5]
            layers = [layer for i, o in pairwise(sizes) for layer in _enlarge(i, o, 3)]
            layers += [nn.Conv2d(c5, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.output = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[output]

    def forward(self, maps: Tensor) -> Tensor:
        image = self.output(self.layers(maps))
        if image.shape[-2:] != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", align_corners=False)
        return image

    def idle_biases(self) -> list[str]:
        """Names of the convolutions' biases that batch normalisation subtracts again, so that nothing moves them."""
        layers = list(self.layers)
        before = [i for i, layer in enumerate(layers[1:]) if isinstance(layer, nn.BatchNorm2d)]
        return [f"layers.{i}.bias" for i in before]


def _enlarge(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _valid(channels: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, kernel), nn.BatchNorm2d(channels), nn.ReLU()]

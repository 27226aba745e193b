"""IGD's networks: residual encoder, decoder and critic for 32-px patches and for whole images of any power of two.

A block that convolves and then halves, or doubles and then convolves, is computed as one strided (transposed)
convolution with a kernel folded from the block's 3x3 (5x5) weights: the same function of the same parameters with 4/9
(9/25) of the multiplications, and without the intermediate image at the larger size.

Source: Chen et al. 2022 (IGD), "Implementation Details" (Z = 128, "ResNet-18 and its reverse"); layer tables from the
released code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adbench.networks.backbone import TimmTrunk
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.resnet import ResNet18
from adbench.types import UserError


def _folding_matrix(kernel: int) -> Tensor:
    """(k^2, (k + 1)^2): a k x k kernel followed by a 2 x 2 mean, as a linear map of the flattened kernel."""
    spread = torch.zeros(kernel, kernel + 1)
    for tap in range(kernel):
        spread[tap, tap : tap + 2] = 0.5
    return torch.kron(spread, spread)


class _Folded(nn.Conv2d):
    """A same-size convolution with odd kernel k whose weights are used folded to k + 1."""

    fold: Tensor  # (k^2, (k + 1)^2)

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.margin = kernel // 2
        self.register_buffer("fold", self.make_fold(kernel), persistent=False)

    @staticmethod
    def make_fold(kernel: int) -> Tensor:
        raise NotImplementedError

    def folded(self) -> Tensor:
        """(outputs, inputs, k + 1, k + 1), summed in float32 also under autocast."""
        side = self.kernel_size[0] + 1
        with torch.autocast(self.weight.device.type, enabled=False):
            flat = self.weight.reshape(self.out_channels * self.in_channels, -1)
            return (flat @ self.fold).view(self.out_channels, self.in_channels, side, side)


class ConvThenHalve(_Folded):
    """conv k x k, then 2 x 2 mean: (B, i, H, W) -> (B, o, H / 2, W / 2)."""

    @staticmethod
    def make_fold(kernel: int) -> Tensor:
        """(k^2, (k + 1)^2)."""
        return _folding_matrix(kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.folded(), self.bias, stride=2, padding=self.margin)


class DoubleThenConv(_Folded):
    """Nearest-neighbour doubling, then conv k x k: (B, i, H, W) -> (B, o, 2H, 2W)."""

    @staticmethod
    def make_fold(kernel: int) -> Tensor:
        """(k^2, (k + 1)^2)."""
        return 4 * _folding_matrix(kernel).flip(1)  # doubling sums where halving averages; transposition flips

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.folded().transpose(0, 1), self.bias, stride=2, padding=self.margin)


class ImageNorm(nn.Module):
    """Layer normalisation over a whole activation, one gain and one shift per element: (B, C, S, S) -> the same."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        # laid out as channels-last activations are
        self.weight = nn.Parameter(torch.ones(side, side, channels).permute(2, 0, 1))
        self.bias = nn.Parameter(torch.zeros(side, side, channels).permute(2, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.permute(1, 2, 0), self.bias.permute(1, 2, 0)
        return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias).permute(0, 3, 1, 2)


class Down(nn.Module):
    """Pre-activation residual block that halves the side: (B, i, H, W) -> (B, o, H / 2, W / 2)."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.main = nn.Sequential(
            norm(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            norm(inputs),
            nn.ReLU(),
            ConvThenHalve(inputs, outputs, 3),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class Up(nn.Module):
    """Pre-activation residual block that doubles the side: (B, i, H, W) -> (B, o, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            DoubleThenConv(inputs, outputs, 3, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        # a 1x1 convolution and nearest-neighbour doubling commute; the small side first costs a quarter
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Upsample(scale_factor=2, mode="nearest"))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


def _channels(width: float, *numbers: int) -> list[int]:
    return [max(8, round(n * width)) for n in numbers]


class ResidualTrunk(nn.Module):
    """The 32-px encoder below its projection: (B, 3, 32, 32) -> (B, 512 width)."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c = _channels(width, 64, 128, 256, 512)
        self.features = c[3]
        downs = [Down(i, o, nn.BatchNorm2d) for i, o in pairwise(c)]
        self.layers = nn.Sequential(
            nn.Conv2d(3, c[0], 3, padding=1), *downs, nn.Flatten(), nn.Linear(c[3] * 16, self.features)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """A trunk, which pretraining may fill and freeze, and the projection that IGD trains: (B, 3, S, S) -> (B, Z)."""

    def __init__(self, trunk: ResidualTrunk | ResNet18 | TimmTrunk, latent: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Linear(trunk.features, latent)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.trunk(x))


def patch_decoder(latent: int, width: float = 1.0) -> nn.Sequential:
    """(B, Z) -> (B, 3, 32, 32), unbounded."""
    c = _channels(width, 512, 256, 128, 64)
    return nn.Sequential(
        nn.Linear(latent, c[0] * 16),
        nn.Unflatten(1, (c[0], 4, 4)),
        *[Up(i, o) for i, o in pairwise(c)],
        nn.BatchNorm2d(c[-1]),
        nn.ReLU(),
        nn.Conv2d(c[-1], 3, 3, padding=1),
    )


class ReverseBlock(nn.Module):
    """ResNet's basic block run backwards: (B, i, H, W) -> (B, o, H, W), or (B, o, 2H, 2W) with `double`."""

    def __init__(self, inputs: int, outputs: int, double: bool) -> None:
        super().__init__()
        enlarge = [nn.Upsample(scale_factor=2, mode="nearest")] if double else []
        self.main = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            *enlarge,
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and not double
        projection = [*enlarge, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


def reverse_resnet18(side: int, latent: int, width: float = 1.0) -> nn.Sequential:
    """ResNet-18 backwards, stage by stage: (B, Z) -> (B, 3, S, S), unbounded; S a multiple of 32.

    Source: "Resnet18 and its reverse architecture" (Implementation Details), which says no more. Here a linear layer
    makes the last stage's map from the embedding, strides and pooling become nearest-neighbour doubling, and the stem's
    7 x 7 convolution ends the network.

    Raises:
        UserError: S is no multiple of 32.
    """
    if side % 32:
        raise UserError(f"a reversed ResNet-18 makes images whose side is a multiple of 32, got {side}")
    c, start = _channels(width, 512, 256, 128, 64), side // 32
    stages = [(i, o, True) for i, o in pairwise(c)] + [(c[-1], c[-1], False)]  # ResNet's first stage does not stride
    blocks = [block for i, o, double in stages for block in (ReverseBlock(i, i, False), ReverseBlock(i, o, double))]
    return nn.Sequential(
        nn.Linear(latent, c[0] * start**2),
        nn.Unflatten(1, (c[0], start, start)),
        *blocks,
        nn.Upsample(scale_factor=4, mode="nearest"),  # the stem's pooling and stride
        nn.Conv2d(c[-1], 3, 7, padding=3),
    )


def patch_critic(width: float = 1.0, sigmoid: bool = False) -> nn.Sequential:
    """(B, 3, 32, 32) -> (B,), unbounded; in (0, 1) with the sigmoid."""
    c = _channels(width, 64, 128, 256, 512)
    sides = (32, 16, 8)
    return nn.Sequential(
        nn.Conv2d(3, c[0], 3, padding=1),
        *[Down(i, o, partial(ImageNorm, side=s)) for i, o, s in zip(c, c[1:], sides, strict=False)],
        nn.Flatten(),
        nn.Linear(c[3] * 16, 1),
        *([nn.Sigmoid()] if sigmoid else []),
        nn.Flatten(0),
    )


def _stages(side: int, width: float) -> list[int]:
    """Channels of a whole-image network from its largest to its smallest stage: log2(side) - 3 of them."""
    stages = side.bit_length() - 4
    if side < 64 or side & (side - 1):
        raise UserError(
            f"IGD's whole-image networks need a side that is a power of two and at least 64, got {side}; "
            "choose one with method.recipe.input or run the patches alone with method.scales=[local]"
        )
    return _channels(width, *[min(64 * 2**n, 512) for n in range(stages)])


def image_decoder(side: int, latent: int, width: float = 1.0) -> nn.Sequential:
    """(B, Z) -> (B, 3, S, S), unbounded.

    Raises:
        UserError: S is no power of two, or below 64.
    """
    first = _channels(width, 512)[0]
    c = [first, *reversed(_stages(side, width)[:-1])]
    return nn.Sequential(
        nn.Linear(latent, first * 16),
        nn.Unflatten(1, (first, 4, 4)),
        DoubleThenConv(first, first, 3),
        *[Up(i, o) for i, o in pairwise(c)],
        nn.BatchNorm2d(c[-1]),
        nn.ReLU(),
        DoubleThenConv(c[-1], 3, 5),
    )


def image_critic(side: int, width: float = 1.0, sigmoid: bool = False) -> nn.Sequential:
    """(B, 3, S, S) -> (B,), unbounded; in (0, 1) with the sigmoid.

    Raises:
        UserError: S is no power of two, or below 64.
    """
    c = _stages(side, width)
    last = _channels(width, 512)[0]
    sides = [side // 2 ** (n + 1) for n in range(len(c))]
    return nn.Sequential(
        nn.Conv2d(3, c[0], 5, stride=2, padding=2),
        *[Down(i, o, partial(ImageNorm, side=s)) for i, o, s in zip(c, c[1:], sides, strict=False)],
        nn.Conv2d(c[-1], last, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(last * 16, 1),
        *([nn.Sigmoid()] if sigmoid else []),
        nn.Flatten(0),
    )


TRUNKS: dict[str, Callable[[float], ResidualTrunk | ResNet18]] = {
    "resnet18": lambda width: ResNet18(width),
    "resnet18_cifar": lambda width: ResNet18(width, stem="cifar"),
    "residual": ResidualTrunk,
}


class Descriptor(nn.Module):
    """One scale's networks with the center and the mean squared distance of its normal embeddings.

    Args:
        side: of the images or patches that it sees; 32 takes the patch networks, more the whole-image networks.
        trunk: "resnet18", "resnet18_cifar", "residual" (32 px only), or another timm model.
        latent: Z.
        width: multiplies every number of channels, but for those of a timm model.
        critic: whether it has one (interpolation is trained).
        sigmoid: whether the critic ends in one.
        decoder: "residual", or "resnet18", the trunk's architecture reversed.

    Raises:
        UserError: there is no such trunk, or a network does not take this side.
    """

    center: Tensor  # (Z,)
    variance: Tensor  # ()

    def __init__(
        self,
        side: int,
        *,
        trunk: str,
        latent: int,
        width: float = 1.0,
        critic: bool = True,
        sigmoid: bool = False,
        decoder: Literal["residual", "resnet18"] = "residual",
    ) -> None:
        super().__init__()
        if trunk == "residual" and side != 32:
            raise UserError(f"the trunk 'residual' takes 32-px images, got {side}; choose resnet18")
        self.side = side
        self.encoder = Encoder(self._trunk(trunk, width, side), latent)
        #: the weights that can be had for the trunk
        self.published = getattr(self.encoder.trunk, "published", None)
        if trunk == "resnet18" and width == 1:
            self.published = "resnet18.tv_in1k"
        if decoder == "resnet18":
            self.decoder = reverse_resnet18(side, latent, width)
        else:
            self.decoder = patch_decoder(latent, width) if side == 32 else image_decoder(side, latent, width)
        self.critic = None
        if critic:
            self.critic = patch_critic(width, sigmoid) if side == 32 else image_critic(side, width, sigmoid)
        self.register_buffer("center", torch.zeros(latent))
        self.register_buffer("variance", torch.ones(()))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, _Folded):
                module.to(memory_format=torch.channels_last)

    @staticmethod
    def _trunk(name: str, width: float, side: int) -> ResidualTrunk | ResNet18 | TimmTrunk:
        if name in TRUNKS:
            return TRUNKS[name](width)
        try:
            return TimmTrunk(name, "the trunk", side)
        except UserError as error:
            raise UserError(f"{error}, and IGD's own are {', '.join(TRUNKS)}") from None

    def pretrainable(self, normalize: Callable[[Tensor], Tensor], windows: bool = False) -> PretrainableEncoder:
        """The trunk as a pretraining fills it.

        Args:
            normalize: from (B, 3, S, S) images in [0, 1] to what the encoder takes.
            windows: whether it sees windows cut from larger images.
        """
        trunk = self.encoder.trunk
        network: nn.Module = trunk
        if isinstance(trunk, TimmTrunk):
            network, normalize = trunk.network, trunk.normalize
        return PretrainableEncoder(
            network, trunk.features, self.side, normalize, windows=windows, published=self.published
        )

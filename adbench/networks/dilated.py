"""The autoencoder with stacked dilated convolutions (SDC) of SSAE.

Source: Bauer, Nakajima, Müller, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection", Table 1 and
the text after it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adbench.types import UserError

DILATIONS = (1, 2, 4, 8, 16, 32)
STRIDE = 8  # three poolings
SPREAD = 0.3  # size of the random taps around a dilated stack's rotation, see `DilatedAutoencoder.start_linear`


def _normalised(conv: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return _normalised(nn.Conv2d(inputs, outputs, 3, padding=1), outputs)


def _upsampling(inputs: int, outputs: int) -> nn.Sequential:
    return _normalised(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1), outputs)


class DilatedConv2d(nn.Conv2d):
    """A convolution that keeps the side and leaves out the taps that can only ever meet zero padding.

    On a map of side s a tap further than s - 1 from the centre sees padding at every position, so dropping it changes
    neither the output nor any gradient (its own is 0). On small maps that is most of the work of a large dilation.

    Shapes: (B, inputs, H, W) -> (B, outputs, H, W).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        half, dilation = self.kernel_size[0] // 2, self.dilation[0]
        reach = [min(half, (side - 1) // dilation) for side in x.shape[-2:]]
        rows, cols = (slice(half - r, half + r + 1) for r in reach)
        padding = [r * dilation for r in reach]
        return F.conv2d(x, self.weight[:, :, rows, cols], self.bias, padding=padding, dilation=dilation)


class StackedDilatedConv(nn.Module):
    """Six parallel dilated convolutions side by side, then one 3x3 convolution; each with batch norm and ReLU.

    Shapes: (B, inputs, H, W) -> (B, 6 * filters, H, W).
    """

    def __init__(self, inputs: int, filters: int, kernel: int) -> None:
        super().__init__()
        channels = len(DILATIONS) * filters
        self.branches = nn.ModuleList(DilatedConv2d(inputs, filters, kernel, dilation) for dilation in DILATIONS)
        # Batch norm works channel by channel: one over the six stacked outputs is six over one output each.
        self.norm = nn.BatchNorm2d(channels)
        self.mix = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.cat([branch(x) for branch in self.branches], dim=1)
        return self.mix(F.relu(self.norm(stacked), inplace=True))


class DilatedAutoencoder(nn.Module):
    """F of the paper: (B, 3, H, W) in [0, 1] -> (B, 3, H, W) in (0, 1), for any H and W divisible by 8.

    There are no skip connections; at width 1 the 384-channel code is larger than the image, so what keeps the network
    from copying defects is the corruption it is trained with, not its capacity.

    Args:
        kernel: side f of the dilated kernels; the paper uses 3 and 5.
        width: multiplies every number of filters; 1 is the paper's 64, 128, 256 and 6 x 64.

    Raises:
        UserError: the kernel is even, the width leaves no filter, or (at the call) a side is not divisible by 8.
    """

    def __init__(self, kernel: int = 3, width: float = 1.0) -> None:
        super().__init__()
        base = round(64 * width)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"the kernel of the dilated convolutions must be odd, got {kernel}; the paper uses 3 and 5")
        if base < 1:
            raise UserError(f"width {width} leaves no filters; 1.0 is the paper's network, 0.25 has 16 filters")
        code = len(DILATIONS) * base
        self.encoder = nn.Sequential(
            *(_conv(3, base), _conv(base, base), nn.MaxPool2d(2)),
            *(_conv(base, 2 * base), _conv(2 * base, 2 * base), nn.MaxPool2d(2)),
            *(_conv(2 * base, 4 * base), _conv(4 * base, 4 * base), nn.MaxPool2d(2)),
            StackedDilatedConv(4 * base, base, kernel),
            *(StackedDilatedConv(code, base, kernel) for _ in range(3)),
        )
        self.decoder = nn.Sequential(
            *(_upsampling(code, 4 * base), _conv(4 * base, 4 * base), _conv(4 * base, 4 * base)),
            *(_upsampling(4 * base, 2 * base), _conv(2 * base, 2 * base), _conv(2 * base, 2 * base)),
            *(_upsampling(2 * base, base), _conv(base, base), _conv(base, base)),
        )
        self.head = nn.Linear(base, 3)  # Table 1's last 1x1 convolution, as the matrix product that it is
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

    def start_linear(self) -> None:
        """Draw weights anew so that the network starts as a nearly linear map, which finds the identity sooner.

        Every filter w stands beside -w, and the next layer weighs the two oppositely: relu(a) - relu(-a) = a, so that
        convolution, batch norm and ReLU begin as one linear layer (Balduzzi et al. 2017, "The Shattered Gradients
        Problem", looks-linear initialization). The dilated stacks begin near a rotation of the channels at each
        position (Xiao et al. 2018, delta-orthogonal initialization). Ours: the paper says nothing of initialization.
        """
        self.apply(_start_linear)
        pairs = torch.randn(3, math.ceil(self.head.in_features / 2)) * (0.5 / self.head.in_features) ** 0.5
        self.head.weight.data.copy_(_opposed(pairs, dim=1)[:, : self.head.in_features])

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise UserError(
                f"the network halves an image three times, so its sides must be divisible by {STRIDE}; "
                f"got {height} x {width}. Try data.image_size={max(STRIDE, height // STRIDE * STRIDE)}"
            )
        hidden = self.decoder(self.encoder(image.contiguous(memory_format=torch.channels_last)))
        # The last layer stays in float32: an anomaly map is a small difference of numbers near each other.
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.sigmoid(self.head(hidden.float().permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def _opposed(half: Tensor, dim: int) -> Tensor:
    """Every slice along `dim` followed by its negative."""
    return torch.stack([half, -half], dim + 1).flatten(dim, dim + 1)


def _pairs(channels: int) -> int:
    return math.ceil(channels / 2)  # an odd last channel stays without its partner


@torch.no_grad()
def _start_linear(module: nn.Module) -> None:
    """The weights of one layer for `DilatedAutoencoder.start_linear`; a parent comes after its children."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        colours = module.in_channels == 3
        outputs, inputs = _pairs(module.out_channels), 3 if colours else _pairs(module.in_channels)
        half = torch.randn(outputs, inputs, *module.kernel_size) / (inputs * math.prod(module.kernel_size)) ** 0.5
        _set_mirrored(module, half, colours)
    elif isinstance(module, StackedDilatedConv):
        convs = [part for part in (*module.branches, module.mix[0]) if isinstance(part, nn.Conv2d)]
        sizes, entering = [_pairs(conv.out_channels) for conv in convs], _pairs(convs[0].in_channels)
        stacked = sum(sizes[:-1])
        turns = [*_orthogonal(stacked, entering).split(sizes[:-1]), _orthogonal(sizes[-1], stacked)]
        for conv, turn in zip(convs, turns, strict=True):
            taps = math.prod(conv.kernel_size)
            half = SPREAD * torch.randn(*turn.shape, *conv.kernel_size) / (turn.shape[1] * taps) ** 0.5
            half[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += turn
            _set_mirrored(conv, half, colours=False)


def _orthogonal(rows: int, columns: int) -> Tensor:
    """(rows, columns) with orthonormal rows or columns, whichever are fewer."""
    return nn.init.orthogonal_(torch.empty(rows, columns))


def _set_mirrored(conv: nn.Conv2d | nn.ConvTranspose2d, half: Tensor, colours: bool) -> None:
    full = _opposed(half, dim=0)
    full = full if colours else _opposed(full, dim=1)
    full = full[: conv.out_channels, : conv.in_channels]
    conv.weight.copy_(full.transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else full)

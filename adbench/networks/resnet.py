"""ResNet-18 as torchvision and timm name its parameters, so that published weights fit strictly.

Source: He et al. 2016, Table 1 (18 layers, projection shortcuts where the shape changes).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus the shortcut, then ReLU: (B, i, H, W) -> (B, o, H / s, W / s)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """Stem to the fourth stage and global mean: (B, 3, H, W) -> (B, features), ImageNet-normalised input.

    Args:
        width: multiplies the 64, 128, 256 and 512 channels; published weights exist for 1 only.
        stem: "imagenet" (conv7x7 of stride 2 and a max-pool) or "cifar" (conv3x3 of stride 1, for small images).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, width: float = 1.0, stem: str = "imagenet") -> None:
        super().__init__()
        channels = [max(8, round(c * width)) for c in (64, 128, 256, 512)]
        self.features, self.stem = channels[-1], stem
        imagenet = stem == "imagenet"
        self.conv1 = nn.Conv2d(
            3, channels[0], 7 if imagenet else 3, 2 if imagenet else 1, 3 if imagenet else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels[0])
        previous = channels[0]
        for number, outputs in enumerate(channels, start=1):
            blocks = nn.Sequential(
                BasicBlock(previous, outputs, stride=1 if number == 1 else 2), BasicBlock(outputs, outputs, stride=1)
            )
            self.add_module(f"layer{number}", blocks)
            previous = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))

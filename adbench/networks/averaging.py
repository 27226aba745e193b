"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """A copy of a network whose weights follow a moving average; it is called like the network and never trained.

    After n updates with weights w_1 ... w_n the average is proportional to sum_i decay^(n - i) w_i (`corrected`, the
    starting weights have no part), or it is the plain recursion a <- decay a + (1 - decay) w from the starting weights.
    decay 0 follows the network; decay 1 stays where it started. The copy and n are part of the state dictionary.

    `torch.optim.swa_utils.AveragedModel` has no corrected form and copies its count to the host at every update.

    Args:
        network: what is averaged; its parameters and no buffers.
        decay: in [0, 1].
        corrected: whether the starting weights are left out.

    Raises:
        ValueError: the decay is out of its range.
    """

    updates: Tensor

    def __init__(self, network: nn.Module, decay: float, corrected: bool = True) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a weight average lies in [0, 1], got {decay}")
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.corrected = decay, corrected
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, network: nn.Module) -> None:
        """Start again from the network's present weights."""
        self.average.load_state_dict(network.state_dict())
        self.updates.zero_()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        self.updates += 1
        share = torch.as_tensor(1 - self.decay, device=self.updates.device)
        if self.corrected and 0 < self.decay < 1:
            share = -share / torch.expm1(self.updates * math.log(self.decay))  # (1 - decay) / (1 - decay^n)
        for mean, new in zip(self.average.parameters(), network.parameters(), strict=True):
            mean.lerp_(new, share.to(mean.dtype))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.average(*inputs)

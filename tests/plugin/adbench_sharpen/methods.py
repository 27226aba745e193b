"""A small network learns to sharpen blurred normal images; what it sharpens badly is anomalous."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adbench.methods.base import SingleObjective
from adbench.types import Batch, Scores


class Sharpen(SingleObjective):
    """Score: mean squared difference between an image and what the network makes of its blurred self.

    Args:
        optimizer: factory from parameters to an optimizer.
        width: channels of the hidden layer.
        blur: side of the box that blurs, odd, in pixels.
    """

    def __init__(self, optimizer, width: int = 8, blur: int = 5) -> None:
        super().__init__(optimizer)
        self.blur = blur
        self.network = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def reconstruct(self, image: Tensor) -> Tensor:
        blurred = F.avg_pool2d(image, self.blur, stride=1, padding=self.blur // 2, count_include_pad=False)
        return (blurred + self.network(blurred)).clamp(0, 1)

    def objective(self, batch: Batch) -> dict[str, Tensor]:
        return {"residual": F.mse_loss(self.reconstruct(batch.image), batch.image)}

    def score(self, image: Tensor) -> Scores:
        maps = (self.reconstruct(image) - image).square().mean(1, keepdim=True)
        return Scores(maps.flatten(1).mean(1), maps)


class Lion(torch.optim.Optimizer):
    """Steps of one size against the sign of the gradient: an optimizer that torch does not have."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:  # which computes the gradients
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])

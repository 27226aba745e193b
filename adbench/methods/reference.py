"""What the reference detectors share: a frozen backbone, statistics that one pass over the training rows fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

from adbench.methods.base import Method
from adbench.networks.backbone import Backbone
from adbench.networks.encoder import PretrainableEncoder


class Reference(Method):
    """A detector on a backbone's features. It has no training step.

    Args:
        backbone: name of a timm model.
        stages: places among its feature maps, see `Backbone`.
        image_size: side, or [height, width].

    Raises:
        UserError: timm has no such model, or the model no such stage.
    """

    #: Buffers whose size depends on the training rows.
    fitted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: str, stages: Sequence[int], image_size: int | Sequence[int]) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, stages, image_size)
        for name in self.fitted:
            self.register_buffer(name, torch.zeros(0))

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """The backbone, for pretraining."""
        return {"backbone": self.backbone.encoder()}

    def on_pretrained(self) -> None:
        """Freeze the backbone again."""
        self.backbone.requires_grad_(False).eval()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.fitted:
            if prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name], device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def smoothed(maps: Tensor, size: Sequence[int], sigma: float) -> Tensor:
    """(B, 1, h, w) -> (B, 1, *size): enlarged bilinearly, then blurred with a Gaussian of `sigma` pixels (0: not)."""
    maps = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    if sigma <= 0:
        return maps
    reach = min(round(4 * sigma), min(size) - 1)  # a reflected border is narrower than the image
    return gaussian_blur2d(maps, (2 * reach + 1, 2 * reach + 1), (sigma, sigma), border_type="reflect")

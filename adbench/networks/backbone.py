"""A frozen timm model that shows the feature maps of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.networks.encoder import PretrainableEncoder


class Backbone(nn.Module):
    """Feature maps of chosen stages of a timm model, whose weights never change after pretraining.

    Batch normalisation always uses its stored statistics, so a row never sees another.

    Args:
        name: of a timm model, with or without the tag of its weights.
        stages: places in the model's list of feature maps, 0 for the finest. In ResNets and EfficientNets map i has a
            stride of 2^(i + 1).
        image_size: side, or [height, width], of the images.

    Raises:
        UserError: timm has no such model, or the model no such stage.
    """

    network: Any  # a timm model

    def __init__(self, name: str, stages: Sequence[int], image_size: int | Sequence[int]) -> None:
        super().__init__()
        import timm

        try:
            self.network = timm.create_model(name, pretrained=False, num_classes=0)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"method.backbone={name} is no timm model: {error}; timm.list_models() lists them"
            ) from None
        maps = [(info["num_chs"], info["reduction"]) for info in self.network.feature_info]
        if not stages or any(stage not in range(len(maps)) for stage in stages):
            shown = ", ".join(f"{i}: {channels} channels, stride {stride}" for i, (channels, stride) in enumerate(maps))
            raise UserError(f"method.stages={list(stages)} are places among the maps of {name} ({shown})")
        self.stages, self.channels = sorted(stages), [maps[stage][0] for stage in sorted(stages)]
        self.side = image_size if isinstance(image_size, int) else min(image_size)
        config = self.network.pretrained_cfg
        hub = str(config.get("hf_hub_id") or "")
        self.published = hub.removeprefix("timm/") if hub.startswith("timm/") else None
        for constant in ("mean", "std"):
            self.register_buffer(constant, torch.tensor(config[constant]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)

    def normalize(self, image: Tensor) -> Tensor:
        """From [0, 1] to what the published weights were trained on."""
        return (image - self.get_buffer("mean")) / self.get_buffer("std")

    def pooled(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, features): the mean over the last map."""
        return self.network(self.normalize(image))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> one map (B, C, h, w) for each stage, the finest first."""
        return self.network.forward_intermediates(
            self.normalize(image), indices=self.stages, intermediates_only=True, stop_early=True
        )

    def encoder(self) -> PretrainableEncoder:
        """What pretraining may fill."""
        return PretrainableEncoder(
            self.network, self.network.num_features, self.side, self.normalize, published=self.published
        )

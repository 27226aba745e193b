"""timm models as parts of detectors: a frozen one that shows its feature maps, and one as the trunk of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.networks.encoder import PretrainableEncoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timm_model(name: str, option: str, size: Sequence[int] | None = None) -> nn.Module:
    """A timm model without classifier, with random weights: those of a pretraining come from the group of that name.

    Args:
        name: of the model, with or without the tag of its weights.
        option: what a message calls it.
        size: [height, width] of its images, for models that are built for one size; None takes their own.

    Raises:
        UserError: timm has no such model, or none with that tag.
    """
    import timm

    name = tagged(name, option)
    config = timm.models.get_pretrained_cfg(name) if size is not None else None
    options: dict[str, Any] = {"img_size": tuple(size or ())} if config is not None and config.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"{option}={name} cannot be built for images of {size or 'its own size'}: {error}") from None


def tagged(name: str, option: str) -> str:
    """A timm model's name with the tag of its weights: as it is, or with the tag of those that timm takes.

    Raises:
        UserError: timm has no such model, or none with that tag.
    """
    from timm.models import get_pretrained_cfg, is_model

    try:
        config = get_pretrained_cfg(name, allow_unregistered=False) if is_model(name) else None
    except RuntimeError as error:
        raise UserError(f"{option}={name} is no timm model: {error}; timm.list_models() lists them") from None
    if config is None:
        raise UserError(f"{option}={name} is no timm model; timm.list_models() lists them")
    return f"{config.architecture}.{config.tag}" if config.tag else name


def pooled_features(network: Any) -> int:
    """How many numbers a timm model without classifier gives for an image; some end in a layer above their last map."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def published_name(network: Any) -> str | None:
    """Name and tag of the published weights that fit a timm model strictly; None where there are none."""
    hub = str(network.pretrained_cfg.get("hf_hub_id") or "")
    return hub.removeprefix("timm/") if hub.startswith("timm/") else None


def pixel_constants(network: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation, each (3, 1, 1), of the pixels in [0, 1] that a timm model's weights were trained on."""
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    return mean, std


class TimmTrunk(nn.Module):
    """A timm model as the trunk of a network that normalises its images with ImageNet's constants: (B, 3, S, S) ->
    (B, features). The model sees pixels as its own weights want them.

    Args:
        name: of the model, with or without the tag of its weights.
        option: what a message calls it.
        side: S.

    Raises:
        UserError: timm has no such model.
    """

    def __init__(self, name: str, option: str, side: int) -> None:
        super().__init__()
        self.network = timm_model(name, option, (side, side))
        self.features, self.published = pooled_features(self.network), published_name(self.network)
        mean, std = pixel_constants(self.network)
        usual_mean, usual_std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
        for key, value in (
            ("mean", mean), ("std", std), ("factor", usual_std / std), ("shift", (usual_mean - mean) / std)
        ):  # fmt: skip
            self.register_buffer(key, value, persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> pixels as the published weights were trained on, in the same shape."""
        return (image - self.get_buffer("mean")) / self.get_buffer("std")

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * self.get_buffer("factor") + self.get_buffer("shift"))


class Backbone(nn.Module):
    """Feature maps of chosen stages of a timm model, whose weights never change after pretraining.

    Batch normalisation always uses its stored statistics, so a row never sees another.

    Args:
        name: of a timm model, with or without the tag of its weights.
        stages: places in the model's list of feature maps, 0 for the finest. In ResNets and EfficientNets map i has a
            stride of 2^(i + 1).
        image_size: side, or [height, width], of the images.
        option: what a message calls the name.

    Raises:
        UserError: timm has no such model, or the model no such stage.
    """

    network: Any  # a timm model

    def __init__(
        self, name: str, stages: Sequence[int], image_size: int | Sequence[int], option: str = "method.backbone"
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.network = timm_model(name, option, size)
        maps = [(info["num_chs"], info["reduction"]) for info in self.network.feature_info]
        if not stages or any(stage not in range(len(maps)) for stage in stages):
            places = ", ".join(
                f"{i}: {channels} channels, stride {stride}" for i, (channels, stride) in enumerate(maps)
            )
            raise UserError(f"method.stages={list(stages)} are places among the maps of {name} ({places})")
        self.stages, self.channels = sorted(stages), [maps[stage][0] for stage in sorted(stages)]
        self.side = min(size)
        self.published = published_name(self.network)
        for name, value in zip(("mean", "std"), pixel_constants(self.network), strict=True):
            self.register_buffer(name, value[None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> pixels as the published weights were trained on, in the same shape."""
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
            self.network, pooled_features(self.network), self.side, self.normalize, published=self.published
        )

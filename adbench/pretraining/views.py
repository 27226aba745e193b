"""Random views of training images on the device, made by kornia from seeded generators."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adbench.networks.encoder import PretrainableEncoder
from adbench.pretraining.base import Images, seeded


class Views:
    """Batches of images cut or resized to what an encoder sees, then augmented.

    Args:
        images: the training images.
        encoder: whose views are made.
        augmentation: kornia module on images in [0, 1] of the encoder's side.
        seed: of everything random.
    """

    def __init__(self, images: Images, encoder: PretrainableEncoder, augmentation: nn.Module, seed: int) -> None:
        self.images, self.encoder, self.augmentation, self.seed = images, encoder, augmentation, seed

    def crops(self, k: int, size: int) -> Tensor:
        """(B, C, S, S) in [0, 1]: whole images resized to S, or for an encoder of windows one random window each."""
        from kornia.augmentation import RandomCrop

        image, side = self.images.batch(k, size, self.seed), self.encoder.image_side
        if image.shape[-2:] == (side, side):
            return image
        if self.encoder.windows and min(image.shape[-2:]) >= side:
            with seeded(self.seed, "window", k, image.device):
                return RandomCrop((side, side), cropping_mode="resample")(image)
        return F.interpolate(image, size=(side, side), mode="bilinear", antialias=True, align_corners=False)

    def __call__(self, image: Tensor, k: int, which: int) -> Tensor:
        """One augmented view of every image."""
        with seeded(self.seed, f"view/{which}", k, image.device):
            return self.augmentation(image)

"""Contrastive pretraining on the training images (SimCLR).

Source: Chen et al. 2020 (SimCLR), Eq. 1 and Fig. 2; IGD states SGD, lr 0.01, weight decay 0.1, batch 32, 2,000 epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from adbench.networks.encoder import PretrainableEncoder
from adbench.pretraining.base import Images, Loop, Trained
from adbench.pretraining.views import Views
from adbench.types import UserError


def projection_head(features: int, hidden: int, outputs: int) -> nn.Sequential:
    """The two-layer head that is dropped afterwards: (B, features) -> (B, outputs)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy of two views of each image.

    Source: Chen et al. 2020 (SimCLR), Eq. 1. Computed by pytorch-metric-learning.

    Args:
        first, second: (B, D) outputs of the head, B >= 2; row i of both is of image i.
        temperature: > 0.

    Returns:
        () float.
    """
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature))(first.float(), second.float())


def _without_decay(modules: Sequence[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay (matrices, kernels) and without (biases, norms)."""
    parameters = [p for module in modules for p in module.parameters()]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


class SimCLR(Trained):
    """Two augmented views of an image attract each other, those of other images repel.

    Args:
        epochs: passes over the training images.
        batch_size: images; each gives two views.
        lr, momentum, weight_decay: of SGD; decay acts on kernels and matrices only.
        temperature: of NT-Xent.
        hidden, outputs: sizes of the head that is dropped.
        crop: smallest and largest share of the image's area that a view holds.
        jitter: strengths of brightness, contrast, saturation and hue; `jitter_p` how often.
        grey_p, flip_p: how often a view is grey, mirrored. Turn flips off where left and right mean something.
        save_every: batches between two partial files.
    """

    name = "simclr"

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        temperature: float,
        hidden: int,
        outputs: int,
        crop: Sequence[float],
        jitter: Sequence[float],
        jitter_p: float,
        grey_p: float,
        flip_p: float,
        save_every: int,
    ) -> None:
        self.epochs, self.batch_size = epochs, batch_size
        self.lr, self.momentum, self.weight_decay, self.temperature = lr, momentum, weight_decay, temperature
        self.hidden, self.outputs = hidden, outputs
        self.crop, self.jitter = list(crop), list(jitter)
        self.jitter_p, self.grey_p, self.flip_p, self.save_every = jitter_p, grey_p, flip_p, save_every

    def check_encoder(self, name: str, encoder: PretrainableEncoder) -> None:
        if encoder.side is None:
            raise UserError(
                f"pretraining=simclr augments images, and the encoder '{name}' takes vectors; "
                "use pretraining=autoencoder or none"
            )

    def augmentation(self, side: int) -> nn.Module:
        """Crop, flip, colour jitter and grey, on images in [0, 1]: (B, 3, H, W) -> (B, 3, side, side)."""
        from kornia import augmentation as A

        return nn.Sequential(
            A.RandomResizedCrop((side, side), scale=tuple(self.crop), p=1.0, cropping_mode="resample"),
            A.RandomHorizontalFlip(p=self.flip_p),
            A.ColorJitter(*self.jitter, p=self.jitter_p),
            A.RandomGrayscale(p=self.grey_p),
        )

    def length(self, rows: int) -> int:
        return self.epochs * (rows // min(self.batch_size, rows))

    def train(
        self, encoder: PretrainableEncoder, images: Images, *, seed: int, max_batches: int | None, partial: Path
    ) -> None:
        if len(images) < 2:
            raise UserError(f"pretraining=simclr contrasts images and needs at least two, got {len(images)}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = projection_head(encoder.features, self.hidden, self.outputs).to(images.device)
        network = encoder.network
        decayed, free = _without_decay([network, head])
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        views = Views(images, encoder, self.augmentation(encoder.image_side), seed)

        def loss(k: int) -> Tensor:
            image = views.crops(k, self.batch_size)
            both = torch.cat([views(image, k, 0), views(image, k, 1)])
            first, second = head(network(encoder.normalize(both))).chunk(2)
            return nt_xent(first, second, self.temperature)

        steps = self.length(len(images))
        loop = Loop({"encoder": network, "head": head}, optimizer, partial, self.save_every)
        loop.run(min(steps, max_batches or steps), loss, "pretraining (simclr)")

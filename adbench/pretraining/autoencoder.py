"""Pretraining as the lower half of an autoencoder on the training images.

Source: Ruff et al. 2018 (Deep SVDD), section 4.1: Adam at lr 1e-4, a tenth of it for the last epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.igd import Up
from adbench.pretraining.base import Images, Loop, Trained
from adbench.pretraining.views import Views
from adbench.types import UserError


def image_decoder(features: int, side: int, width: int = 16) -> nn.Sequential:
    """Any encoder's mirror: (B, features) -> (B, 3, S, S), unbounded; S may be any number.

    Args:
        features: of the encoder.
        side: S, in pixels.
        width: channels at the full size; they double at each halving of the side, up to 128.
    """
    start, ups = side, 0
    while start % 2 == 0 and start > 4:
        start, ups = start // 2, ups + 1
    channels = [min(width * 2 ** (ups - n), 128) for n in range(ups + 1)]
    return nn.Sequential(
        nn.Linear(features, channels[0] * start * start),
        nn.Unflatten(1, (channels[0], start, start)),
        *[Up(i, o) for i, o in pairwise(channels)],
        nn.BatchNorm2d(channels[-1]),
        nn.ReLU(),
        nn.Conv2d(channels[-1], 3, 3, padding=1),
    )


def vector_decoder(features: int, outputs: int) -> nn.Sequential:
    """(B, features) -> (B, outputs)."""
    return nn.Sequential(nn.Linear(features, 2 * features), nn.LeakyReLU(), nn.Linear(2 * features, outputs))


class Autoencoder(Trained):
    """The encoder learns to be decoded again; the decoder is the method's own where it shows one.

    Args:
        epochs: passes over the training images.
        milestones: epochs after which the learning rate falls to a tenth.
        batch_size: images.
        lr, weight_decay: of Adam.
        reduction: the squared errors of an image are summed ("sum") or averaged ("mean").
        save_every: batches between two partial files.

    Raises:
        UserError: another reduction.
    """

    name = "autoencoder"

    def __init__(
        self,
        epochs: int,
        milestones: Sequence[int],
        batch_size: int,
        lr: float,
        weight_decay: float,
        reduction: Literal["sum", "mean"],
        save_every: int,
    ) -> None:
        if reduction not in ("sum", "mean"):
            raise UserError(f"pretraining.reduction is sum or mean, got {reduction!r}")
        self.epochs, self.milestones, self.batch_size = epochs, list(milestones), batch_size
        self.lr, self.weight_decay, self.reduction, self.save_every = lr, weight_decay, reduction, save_every

    def length(self, rows: int) -> int:
        return self.epochs * (rows // min(self.batch_size, rows))

    def train(
        self, encoder: PretrainableEncoder, images: Images, *, seed: int, max_batches: int | None, partial: Path
    ) -> None:
        network, decoder = encoder.network, encoder.decoder
        if decoder is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                if images.vectors:
                    decoder = vector_decoder(encoder.features, images.rows.shape[1])
                else:
                    decoder = image_decoder(encoder.features, encoder.image_side)
        decoder = decoder.to(images.device)
        parameters = [p for module in (network, decoder) for p in module.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        views = Views(images, encoder, nn.Identity(), seed)

        def loss(k: int) -> Tensor:
            row = images.batch(k, self.batch_size, seed) if images.vectors else views.crops(k, self.batch_size)
            target = encoder.normalize(row)
            error = (decoder(network(target)) - target).square().flatten(1)
            return (error.sum(dim=1) if self.reduction == "sum" else error.mean(dim=1)).mean()

        per_epoch = images.batches_per_epoch(self.batch_size)
        steps = self.length(len(images))
        loop = Loop({"encoder": network, "decoder": decoder}, optimizer, partial, self.save_every)
        milestones = [m * per_epoch for m in self.milestones]
        loop.run(min(steps, max_batches or steps), loss, "pretraining (autoencoder)", milestones)

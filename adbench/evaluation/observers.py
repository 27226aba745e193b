"""What watches a test: the base of the callbacks that measure it and draw it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer

from adbench.types import Batch, Scores


class Subject(NamedTuple):
    """What is tested, in columns of the record table (N rows, of which some are test rows)."""

    defects: NDArray[np.str_]  # (N,) defect kind, "good" for normal rows
    paths: NDArray[np.str_]  # (N,) relative to the data set's root
    rows: NDArray[np.int64]  # (n,), the test rows
    has_masks: bool  # whether the data set has ground-truth masks

    @classmethod
    def of(cls, datamodule: Any) -> Subject:
        """The test rows of a data module that is set up."""
        records = datamodule.records
        return cls(np.asarray(records.defect), np.asarray(records.path), datamodule.split.test, datamodule.has_masks)


class Observer(Callback):
    """Sees every batch of a test on its own rank, and what all ranks saw when the test ends.

    A subclass overrides what it needs of `begin`, `observe`, `share`, `finish` and `draw`, which are called in this
    order. The shares of the ranks are gathered here and nowhere else.
    """

    def begin(self, method: LightningModule) -> None:
        """Forget the test before."""

    def observe(self, batch: Batch, scores: Scores, method: LightningModule) -> None:
        """Look at a batch and its scores, without gradients.

        Waiting for the device costs every batch: leave tensors where they are until `share`.

        Args:
            batch: of the test: images (B, 3, H, W) float in [0, 1] or (B, D) features, with labels and masks.
            scores: what `test_scores` of the method gave.
            method: that is tested.
        """

    def share(self) -> Any:
        """What this rank has seen: on the host, and of a type that can be pickled."""

    def finish(self, shares: list[Any], method: LightningModule) -> None:
        """Put the shares of all ranks together, which come in the order of the ranks; called on every rank."""

    def draw(self, trainer: Trainer, method: LightningModule) -> None:
        """Write pictures and files; called on rank 0, once every observer has finished."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # Scores
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        with torch.no_grad():
            self.observe(batch, outputs, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shares: list[Any] = [self.share()]
        if trainer.world_size > 1:
            mine, shares = shares[0], [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, mine)
        self.finish(shares, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with torch.no_grad():
                self.draw(trainer, pl_module)

"""Scores that a method computes beside its main one: their AUROC as `ablation/...`, a published program's numbers as
`released/...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from adbench.evaluation.metrics import image_auroc
from adbench.types import Batch, Scores


class ExtraScores(Callback):
    """Reads `extra_scores(image) -> {name: (B,) or (B, n)}` of methods that have it, and asks nothing of the others.

    Columns of one number per image are ranked by AUROC. All columns go to the method's `extra_metrics(columns, label)
    -> {name: number}` and `released_metrics(columns, label, folder) -> {name: number}`, if it has them.

    Args:
        defects: defect kind of each row of the record table, "good" for normal rows: a released program's folders.
    """

    def __init__(self, defects: Sequence[str] | NDArray[np.str_]) -> None:
        self.defects = np.asarray(defects)
        self._rows: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        self._results: dict[str, float | None] = {}

    def results(self) -> dict[str, float | None]:
        """`ablation/<name>_image_auroc`, `ablation/<extra metric>` and `released/<name>` of the last test; empty for
        methods without."""
        return dict(self._results)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._results = [], {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Scores,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if hasattr(pl_module, "extra_scores"):
            with torch.no_grad():
                self._rows.append((batch.index, batch.label, pl_module.extra_scores(batch.image)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self._rows = [_on_host(row) for row in self._rows], []
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not rows:
            return
        _, first = np.unique(torch.cat([index for index, _, _ in rows]).numpy(), return_index=True)
        order = torch.from_numpy(first)  # rows in the order of the record table, each once
        index = torch.cat([index for index, _, _ in rows])[order]
        label = torch.cat([label for _, label, _ in rows])[order]
        columns = {name: torch.cat([column[name] for _, _, column in rows])[order] for name in rows[0][2]}
        self._results = {
            f"ablation/{name}_image_auroc": image_auroc(column, label)
            for name, column in columns.items()
            if column.ndim == 1
        }
        if hasattr(pl_module, "extra_metrics"):
            self._results |= {f"ablation/{k}": number for k, number in pl_module.extra_metrics(columns, label).items()}
        if hasattr(pl_module, "released_metrics"):
            folder = torch.from_numpy(np.unique(self.defects[index.numpy()], return_inverse=True)[1])
            numbers = pl_module.released_metrics(columns, label, folder)
            self._results |= {f"released/{name}": number for name, number in numbers.items()}


def _on_host(row: tuple[Tensor, Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    index, label, columns = row
    return index.cpu(), label.cpu(), {name: column.detach().float().cpu() for name, column in columns.items()}

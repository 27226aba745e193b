"""Scores that a method computes beside its main one: their AUROC as `ablation/...`, a published program's numbers as
`released/...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from adbench.evaluation.metrics import image_auroc
from adbench.evaluation.observers import Observer, Subject
from adbench.types import Batch, Scores

Row = tuple[Tensor, Tensor, Mapping[str, Tensor]]  # of a batch: index and label (B,), scores by name (B,) or (B, n)


class ExtraScores(Observer):
    """Takes the `extras` that came with the scores, or calls `extra_scores(image) -> {name: (B,) or (B, n)}` of methods
    that have it.

    Columns of one number per image are ranked by AUROC. All columns go to the method's `extra_metrics(columns, label)
    -> {name: number}` and `released_metrics(columns, label, folder) -> {name: number}`, if it has them.

    Args:
        subject: what is tested; its defect kinds are a released program's folders.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._rows: list[Row] = []
        self._results: dict[str, float | None] = {}

    def results(self) -> dict[str, float | None]:
        """`ablation/<name>_image_auroc`, `ablation/<extra metric>` and `released/<name>` of the last test; empty for
        methods without."""
        return dict(self._results)

    def begin(self, method: LightningModule) -> None:
        self._rows, self._results = [], {}

    def observe(self, batch: Batch, scores: Scores, method: Any) -> None:
        extras = scores.extras
        if extras is None and hasattr(method, "extra_scores"):
            extras = method.extra_scores(batch.image)
        if extras is not None:
            self._rows.append((batch.index, batch.label, extras))

    def share(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return [_on_host(row) for row in rows]

    def finish(self, shares: list[list[Row]], method: Any) -> None:
        rows = [row for share in shares for row in share]
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
        if hasattr(method, "extra_metrics"):
            self._results |= {f"ablation/{k}": number for k, number in method.extra_metrics(columns, label).items()}
        if hasattr(method, "released_metrics"):
            folder = torch.from_numpy(np.unique(self.subject.defects[index.numpy()], return_inverse=True)[1])
            numbers = method.released_metrics(columns, label, folder)
            self._results |= {f"released/{name}": number for name, number in numbers.items()}


def _on_host(row: Row) -> Row:
    index, label, columns = row
    return index.cpu(), label.cpu(), {name: column.detach().float().cpu() for name, column in columns.items()}

"""The callback that turns a test into metrics; methods do not know it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from adbench.evaluation.metrics import (
    PIXEL_METRICS,
    PixelMetrics,
    bootstrap_auroc,
    curve,
    image_metrics,
)
from adbench.types import Batch, Scores

Table = dict[str, NDArray[Any]]


class Evaluator(Callback):
    """Collects image scores and counts pixel scores while testing; knows the metrics afterwards, on every rank.

    Args:
        has_masks: whether the data set has ground-truth masks; without them there are no pixel metrics.
        threshold: what `thresholds.held_out_threshold` returns, or a number, or None; may be set until the test ends.
        offset: subtracted from maps before pixels are binned (`metrics.histogram_offset` of held-out maps).
    """

    def __init__(
        self, has_masks: bool, threshold: Mapping[str, Any] | float | None = None, offset: float = 0.0
    ) -> None:
        self.has_masks = has_masks
        self.threshold = threshold
        self.offset = offset
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pixels: PixelMetrics | None = None
        self._table: Table | None = None
        self._results: dict[str, float | None] = {}
        self._curves: dict[str, list[float]] = {}

    @property
    def threshold(self) -> dict[str, Any] | None:
        """`value`, `quantile`, `n` and `origin`, or None."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: Mapping[str, Any] | float | None) -> None:
        if threshold is None or isinstance(threshold, Mapping):
            self._threshold = None if threshold is None else dict(threshold)
        else:
            self._threshold = {"value": float(threshold), "quantile": None, "n": None, "origin": "given"}

    # -- after the test -----------------------------------------------------------------------------------------------

    def results(self) -> dict[str, float | None]:
        """Metric name -> fraction in 0..1, or None where undefined; pixel metrics only where masks and maps exist."""
        self.table()
        return dict(self._results)

    def table(self) -> Table:
        """`index`, `label` and `score` of every test row, sorted by index.

        Raises:
            RuntimeError: no test has been run.
        """
        if self._table is None:
            raise RuntimeError("the evaluator has seen no finished test; call trainer.test with it among the callbacks")
        return self._table

    def per_defect(self, defects: Sequence[str] | NDArray[np.str_]) -> dict[str, float]:
        """Image AUROC of each defect kind's rows against all normal rows.

        Args:
            defects: defect kind of each row of the record table (the test rows' indices look it up).

        Returns:
            Kinds in alphabetical order; empty where the test has no normal or no anomalous rows.
        """
        table = self.table()
        normal = table["label"] == 0
        kinds = np.asarray(defects)[table["index"]]
        results = {}
        for kind in np.unique(kinds[~normal]) if normal.any() else ():
            rows = normal | (~normal & (kinds == kind))
            results[str(kind)] = curve(table["score"][rows], table["label"][rows]).auroc()  # type: ignore[union-attr]
        return results

    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the image AUROC, or None where it is undefined."""
        return bootstrap_auroc(self.table()["score"], self.table()["label"])

    def curves(self) -> dict[str, list[float]]:
        """Points of the pixel curves (`fpr`, `tpr`, `precision`, `pro`) for plots; empty where undefined."""
        return self._curves

    # -- while testing ------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._table, self._results, self._pixels, self._curves = [], None, {}, None, {}
        if self.has_masks and getattr(pl_module, "has_maps", True):
            device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device  # no float64 on mps
            self._pixels = PixelMetrics(self.offset).to(device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Scores,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Rows stay on the device until the test ends: no waiting for it here.
        self._rows.append((batch.index.detach(), batch.label.detach(), outputs.image.detach().float()))
        if self._pixels is not None and outputs.maps is not None:
            self._pixels.update(outputs.maps, batch.mask)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = [torch.cat(column).cpu().numpy() for column in zip(*self._rows, strict=True)] or [np.zeros(0)] * 3
        self._rows = []
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [np.concatenate(column) for column in zip(*gathered, strict=True)]
        index, first = np.unique(rows[0].astype(np.int64), return_index=True)
        repeated = len(rows[0]) - len(index)
        self._table = {
            "index": index,
            "label": rows[1][first].astype(np.int64),
            "score": rows[2][first].astype(np.float32),
        }
        threshold = None if self.threshold is None else self.threshold["value"]
        self._results = image_metrics(self._table["score"], self._table["label"], threshold)
        if self._pixels is None:
            return
        pixels = self._pixels.compute()  # every rank takes part in the sum
        with self._pixels.sync_context():
            self._curves = {} if repeated else self._pixels.curves(points=200)
        if repeated:
            warnings.warn(
                f"{repeated} test rows were scored more than once; image metrics count them once, pixel metrics cannot "
                "and are null. Let no sampler pad the test set (use_distributed_sampler=False).",
                stacklevel=2,
            )
            pixels = dict.fromkeys(PIXEL_METRICS)
        self._results |= pixels

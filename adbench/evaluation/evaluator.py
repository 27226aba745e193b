"""The callback that turns a test into metrics; methods do not know it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor

from adbench.evaluation.metrics import (
    PIXEL_METRICS,
    PixelMetrics,
    bootstrap_auroc,
    curve,
    image_metrics,
)
from adbench.evaluation.observers import Observer, Subject
from adbench.evaluation.thresholds import Decisions, Threshold
from adbench.types import Batch, Scores

Table = dict[str, NDArray[Any]]


class Evaluator(Observer):
    """Collects image scores and counts pixel scores while testing; knows the metrics afterwards, on every rank.

    Args:
        subject: what is tested; without masks there are no pixel metrics.
        threshold: what `thresholds.held_out_threshold` returns, or a number, or None.
        offset: subtracted from maps before pixels are binned (`metrics.histogram_offset` of held-out maps).
    """

    def __init__(self, subject: Subject, threshold: Threshold | float | None = None, offset: float = 0.0) -> None:
        self.subject = subject
        self.threshold: Threshold | None = _given(threshold) if isinstance(threshold, int | float) else threshold
        self.offset = offset
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pixels: PixelMetrics | None = None
        self._table: Table | None = None
        self._results: dict[str, float | None] = {}
        self._curves: dict[str, list[float]] = {}

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

    def per_defect(self) -> dict[str, float]:
        """Image AUROC of each defect kind's rows against all normal rows, kinds in alphabetical order; empty where the
        test has no normal or no anomalous rows."""
        table = self.table()
        normal = table["label"] == 0
        kinds = self.subject.defects[table["index"]]
        results = {}
        for kind in np.unique(kinds[~normal]) if normal.any() else ():
            rows = normal | (~normal & (kinds == kind))
            results[str(kind)] = curve(table["score"][rows], table["label"][rows]).auroc()  # type: ignore[union-attr]
        return results

    def decisions(self) -> Decisions | None:
        """Test rows above the threshold: `found` of the `anomalous` ones, `false_alarms` among the `normal` ones; None
        without a threshold."""
        if self.threshold is None:
            return None
        label, above = self.table()["label"] == 1, self.table()["score"].astype(np.float64) > self.threshold["value"]
        return {
            "found": int((above & label).sum()), "anomalous": int(label.sum()),
            "false_alarms": int((above & ~label).sum()), "normal": int((~label).sum()),
        }  # fmt: skip

    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the image AUROC, or None where it is undefined."""
        return bootstrap_auroc(self.table()["score"], self.table()["label"])

    def curves(self) -> dict[str, list[float]]:
        """Points of the pixel curves (`fpr`, `tpr`, `precision`, `pro`) for plots; empty where undefined."""
        return self._curves

    # -- while testing ------------------------------------------------------------------------------------------------

    def begin(self, method: LightningModule) -> None:
        self._rows, self._table, self._results, self._pixels, self._curves = [], None, {}, None, {}
        if self.subject.has_masks and getattr(method, "has_maps", True):
            device = torch.device("cpu") if method.device.type == "mps" else method.device  # no float64 on mps
            self._pixels = PixelMetrics(self.offset).to(device)

    def observe(self, batch: Batch, scores: Scores, method: LightningModule) -> None:
        # Rows stay on the device until the test ends: no waiting for it here.
        self._rows.append((batch.index.detach(), batch.label.detach(), scores.image.detach().float()))
        if self._pixels is not None and scores.maps is not None:
            self._pixels.update(scores.maps, batch.mask)

    def share(self) -> list[NDArray[Any]]:
        rows, self._rows = self._rows, []
        return [torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True)] or [np.zeros(0)] * 3

    def finish(self, shares: list[list[NDArray[Any]]], method: LightningModule) -> None:
        rows = [np.concatenate(column) for column in zip(*shares, strict=True)]
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


def _given(value: float) -> Threshold:
    return Threshold(value=float(value), quantile=None, n=None, origin="given", false_alarm_rate=None)

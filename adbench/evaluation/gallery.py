"""The callback that keeps a test's best, worst and borderline images: what the report's gallery shows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from adbench.evaluation.evaluator import Evaluator
from adbench.evaluation.kept import Kept
from adbench.evaluation.observers import Observer
from adbench.evaluation.overlay import map_scale
from adbench.evaluation.panels import draw_strip, panels_of
from adbench.files import whole, write_json
from adbench.types import Batch, Scores


def keys(score: Tensor, label: Tensor, threshold: float | None) -> dict[str, Tensor]:
    """For each role a key (B,) that is highest for the rows it is about, -inf for rows it is not about.

    `found` and `missed` are anomalous rows of the highest and the lowest score, `false_alarm` and `passed` normal
    ones, `borderline` rows nearest to the threshold.

    Args:
        score: (B,), any range.
        label: (B,) 0 normal, 1 anomalous.
        threshold: None leaves no row borderline.
    """
    score = score.float()
    out = torch.full_like(score, -torch.inf)
    normal, anomalous = label == 0, label == 1
    return {
        "found": torch.where(anomalous, score, out),
        "passed": torch.where(normal, -score, out),
        "missed": torch.where(anomalous, -score, out),
        "false_alarm": torch.where(normal, score, out),
        "borderline": out if threshold is None else -(score - threshold).abs(),
    }


class Gallery(Observer):
    """Writes `gallery-<role>-<k>.jpg` and `gallery.json` when a test ends, `number` images for each role.

    The rows are chosen while testing, on the device and without waiting for it; `number` images for each role are all
    that is ever held.

    Args:
        folder: where the pictures go.
        evaluator: the one of the same trainer; it knows what is tested, and the threshold.
        number: images for each role; 0 writes nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], evaluator: Evaluator, number: int = 3) -> None:
        self.folder, self.evaluator, self.number = Path(folder), evaluator, number
        self._kept: dict[str, Kept] = {}

    def begin(self, method: LightningModule) -> None:
        self._kept = {}

    def observe(self, batch: Batch, scores: Scores, method: LightningModule) -> None:
        if batch.image.ndim != 4 or not self.number:
            return
        threshold = self.evaluator.threshold
        level = None if threshold is None else threshold["value"]
        score = scores.image.detach()
        rows = Kept.of(batch, scores)
        for role, key in keys(score, batch.label, level).items():
            here = rows._replace(key=key).best(self.number)
            before = self._kept.get(role)
            self._kept[role] = here if before is None else before.with_rows_of(here).best(self.number)

    def share(self) -> dict[str, Kept]:
        return {role: kept.on_host() for role, kept in self._kept.items()}

    def finish(self, shares: list[dict[str, Kept]], method: LightningModule) -> None:
        self._kept = {}
        for kept in shares:
            for role, rows in kept.items():
                before = self._kept.get(role)
                self._kept[role] = rows if before is None else before.with_rows_of(rows).best(self.number)

    def draw(self, trainer: Trainer, method: LightningModule) -> None:
        subject, kept, self._kept = self.evaluator.subject, self._kept, {}
        if not kept:
            return
        panels = {role: panels_of(rows, method, subject) for role, rows in kept.items()}
        maps = [panel.map for images in panels.values() for _, panel in images if panel.map is not None]
        scale = map_scale(maps) if maps else None
        entries = []
        for role, images in panels.items():
            for k, (row, panel) in enumerate(images):
                name = f"gallery-{role}-{k}.jpg"
                with whole(self.folder / name) as temporary:
                    Image.fromarray(draw_strip(panel, scale)).save(temporary, quality=88)
                entries.append({
                    "role": role, "file": name, "index": row, "path": str(subject.paths[row]),
                    "defect": panel.kind,
                    "score": panel.score if np.isfinite(panel.score) else None,
                })  # fmt: skip
        write_json(self.folder / "gallery.json", entries)

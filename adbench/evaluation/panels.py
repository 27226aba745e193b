"""The callback that draws a test: a few images of each defect kind, the ROC curve, the histogram of scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from pytorch_lightning import LightningModule, Trainer

from adbench.evaluation.curves import Curve
from adbench.evaluation.evaluator import Evaluator
from adbench.evaluation.metrics import curve
from adbench.evaluation.observers import Observer
from adbench.evaluation.overlay import COLOURS, map_scale, overlay
from adbench.files import whole
from adbench.types import Batch, Scores

NORMAL, ANOMALOUS, INK, FAINT = "#2f6db5", "#c8442e", "#222222", "#8a8a8a"
CONTOUR = "#35f0ff"
DPI = 130


class Panel(NamedTuple):
    """One test image and what the method says of it."""

    kind: str  # "good" or the defect kind
    score: float
    image: NDArray[np.float32]  # (H, W, 3) in [0, 1]
    reconstruction: NDArray[np.float32] | None  # (H, W, 3)
    map: NDArray[np.float32] | None  # (H, W)
    mask: NDArray[np.bool_] | None  # (H, W)


class Panels(Observer):
    """Draws `panels.png`, `roc.png` and `histogram.png` when a test ends, and hands them to the loggers.

    Args:
        folder: where the pictures go.
        evaluator: the one of the same trainer; it knows what is tested, and the scores.
        per_defect: images shown of each defect kind.
        normals: normal images shown.
        at_most: images shown in all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        evaluator: Evaluator,
        per_defect: int = 2,
        normals: int = 4,
        at_most: int = 24,
    ) -> None:
        self.folder = Path(folder)
        self.evaluator = evaluator
        self.defects = evaluator.subject.defects
        self.rows = frozenset(chosen_rows(self.defects, evaluator.subject.rows, per_defect, normals, at_most))
        self._panels: dict[int, Panel] = {}

    def begin(self, method: LightningModule) -> None:
        self._panels = {}

    def observe(self, batch: Batch, scores: Scores, method: LightningModule) -> None:
        if batch.image.ndim != 4 or len(self._panels) == len(self.rows):
            return
        here = {row: at for at, row in enumerate(batch.index.tolist()) if row in self.rows}
        if not here:
            return
        picked = torch.tensor(list(here.values()), device=batch.image.device)
        image = batch.image[picked]
        reconstruction = method.reconstruct(image) if hasattr(method, "reconstruct") else None
        maps = None if scores.maps is None else _pixels(scores.maps[picked])[..., 0]
        masks = batch.mask[picked, 0].cpu().numpy() if self.evaluator.subject.has_masks else None
        image_scores = scores.image[picked].tolist()
        images = _pixels(image)
        reconstructions = None if reconstruction is None else _pixels(reconstruction)
        for k, row in enumerate(here):
            self._panels[row] = Panel(
                str(self.defects[row]),
                image_scores[k],
                images[k],
                None if reconstructions is None else reconstructions[k],
                None if maps is None else maps[k],
                None if masks is None else masks[k],
            )

    def share(self) -> dict[int, Panel]:
        return self._panels

    def finish(self, shares: list[dict[int, Panel]], method: LightningModule) -> None:
        self._panels = {row: panel for panels in shares for row, panel in panels.items()}

    def draw(self, trainer: Trainer, method: LightningModule) -> None:
        table, threshold = self.evaluator.table(), self.evaluator.threshold
        level = None if threshold is None else threshold["value"]
        figures = {"histogram": draw_histogram(table["score"], table["label"], level)}
        if (points := curve(table["score"], table["label"])) is not None:
            figures["roc"] = draw_roc(points, self.evaluator.interval(), level)
        if self._panels:
            panels = sorted(self._panels.items(), key=lambda item: (item[1].kind == "good", item[1].kind, item[0]))
            figures["panels"] = draw_panels([panel for _, panel in panels])
        publish(figures, self.folder, trainer)
        self._panels = {}


def publish(figures: dict[str, Figure], folder: Path, trainer: Trainer) -> None:
    """Save each figure as `<name>.png` and hand it to every logger that takes pictures."""
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        save(figure, path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key=f"figures/{name}", images=[str(path)])
            elif hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(f"figures/{name}", rendered(figure), trainer.global_step, dataformats="HWC")


def chosen_rows(
    defects: NDArray[np.str_], test_rows: NDArray[np.int64], per_defect: int, normals: int, at_most: int
) -> list[int]:
    """Rows to draw: of each defect kind and of the normal rows some that are evenly spread over the sorted rows."""
    test_rows = np.sort(test_rows)
    kinds = defects[test_rows]
    chosen: list[int] = []
    for kind in sorted(set(kinds.tolist()), key=lambda kind: (kind == "good", kind)):
        chosen += _spread(test_rows[kinds == kind], normals if kind == "good" else per_defect)
    return _spread(np.array(chosen, dtype=np.int64), at_most)


def _spread(rows: NDArray[np.int64], number: int) -> list[int]:
    if len(rows) > number:
        rows = rows[((np.arange(number) + 0.5) * len(rows) / number).astype(np.int64)]
    return rows.tolist()


def _pixels(images: torch.Tensor) -> NDArray[np.float32]:
    """(B, C, H, W) on any device -> (B, H, W, C) on the host."""
    return images.detach().float().movedim(1, -1).cpu().numpy()


# -- drawing ----------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Where the cells of `draw_panels` lie, in inches."""

    columns: list[str]
    rows: int
    blocks: int
    cell: tuple[float, float]  # width, height
    block: float  # width
    bar: float  # width of the colour bar's place
    width: float
    height: float

    def place(self, at: int, column: int = 0) -> tuple[float, float]:
        """Left and bottom of a column's cell of panel `at`."""
        block, row = divmod(at, self.rows)
        left = MARGIN + block * (self.block + BETWEEN) + column * (self.cell[0] + GAP)
        return left, self.height - HEAD - (row + 1) * (self.cell[1] + LABEL)


GAP, LABEL, BETWEEN, MARGIN, HEAD = 0.06, 0.27, 0.4, 0.25, 0.3  # inches


def _layout(panels: Sequence[Panel]) -> _Layout:
    """Columns that no image has are left out; many images are set in blocks beside each other."""
    mapped = any(panel.map is not None for panel in panels)
    reconstructed = any(panel.reconstruction is not None for panel in panels)
    columns = ["image", *["reconstruction"] * reconstructed, *["anomaly map", "overlay"] * mapped]
    if not mapped and any(panel.mask is not None for panel in panels):
        columns.append("mask")
    blocks = min(1 + (len(panels) > 4) + (len(panels) > 18), len(panels))
    rows = -(-len(panels) // blocks)
    height, width = panels[0].image.shape[:2]
    cell_width = 1.5 if len(columns) > 2 else 2.0
    cell = (cell_width, cell_width * height / width)
    block = len(columns) * (cell_width + GAP) - GAP
    bar = 0.75 if mapped else 0.0
    whole_width = 2 * MARGIN + blocks * block + (blocks - 1) * BETWEEN + bar
    whole_height = HEAD + rows * (cell[1] + LABEL) + MARGIN
    return _Layout(columns, rows, blocks, cell, block, bar, whole_width, whole_height)


def draw_panels(panels: Sequence[Panel]) -> Figure:
    """Each image in a row: image, reconstruction, anomaly map, map over the image with the mask's outline.

    All maps share one colour scale.
    """
    layout = _layout(panels)
    width, height = layout.width, layout.height
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    maps = [panel.map for panel in panels if panel.map is not None]
    scale = map_scale(maps) if maps else None
    for at, panel in enumerate(panels):
        for column, name in enumerate(layout.columns):
            x, y = layout.place(at, column)
            axes = figure.add_axes((x / width, y / height, layout.cell[0] / width, layout.cell[1] / height))
            axes.set_axis_off()
            _draw_cell(axes, name, panel, scale)
            if at % layout.rows == 0:
                middle = (x + layout.cell[0] / 2) / width
                figure.text(middle, (height - HEAD * 0.6) / height, name, ha="center", fontsize=8, color=FAINT)
        x, y = layout.place(at)
        figure.text(
            x / width, (y + layout.cell[1] + 0.05) / height, f"{panel.kind.replace('_', ' ')}   {panel.score:.4g}",
            fontsize=9, fontweight="bold", color=NORMAL if panel.kind == "good" else ANOMALOUS,
        )  # fmt: skip
    if scale is not None:
        _draw_bar(figure, layout, scale)
    return figure


def _draw_bar(figure: Figure, layout: _Layout, scale: Normalize) -> None:
    """The colour bar at the right."""
    width, height = layout.width, layout.height
    tall = min(height - 2 * MARGIN - HEAD, 4.0)
    left = width - MARGIN - layout.bar + 0.15
    axes = figure.add_axes((left / width, (height - HEAD - LABEL - tall) / height, 0.13 / width, tall / height))
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), cax=axes, extend="max")
    bar.set_label("anomaly score of a pixel", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)


def _draw_cell(axes: Axes, column: str, panel: Panel, scale: Normalize | None) -> None:
    image = panel.image.clip(0, 1)
    if column == "reconstruction":
        if panel.reconstruction is not None:
            axes.imshow(panel.reconstruction.clip(0, 1))
    elif column == "anomaly map":
        if panel.map is not None:
            axes.imshow(panel.map, cmap=COLOURS, norm=scale)
    elif column == "image":
        axes.imshow(image)
    else:
        axes.imshow(_overlay(panel, scale))
        if panel.mask is not None and panel.mask.any():
            edge = np.pad(panel.mask, 1).astype(float)  # a defect at the border is outlined too
            across = np.arange(-1, panel.mask.shape[1] + 1)
            down = np.arange(-1, panel.mask.shape[0] + 1)
            axes.contour(across, down, edge, levels=[0.5], colors=CONTOUR, linewidths=1.1)
            axes.set(xlim=(-0.5, panel.mask.shape[1] - 0.5), ylim=(panel.mask.shape[0] - 0.5, -0.5))


def _overlay(panel: Panel, scale: Normalize | None) -> NDArray[np.uint8]:
    """(H, W, 3): the grey image under the map's colours; without a map the grey image."""
    image = (panel.image.clip(0, 1) * 255).round().astype(np.uint8)
    if panel.map is None or scale is None:
        return np.repeat(image.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    return overlay(image, panel.map, scale)


STRIP = 128  # pixels of the longer side of a strip's cells


def draw_strip(panel: Panel, scale: Normalize | None) -> NDArray[np.uint8]:
    """(h, w, 3): image, reconstruction, map over the image with the mask's outline, side by side at a small size."""
    image = panel.image.clip(0, 1)
    cells = [image]
    if panel.reconstruction is not None:
        cells.append(panel.reconstruction.clip(0, 1))
    if panel.map is not None or panel.mask is not None:
        cells.append(_overlay(panel, scale).astype(np.float32) / 255)
    height, width = (max(1, round(STRIP * side / max(image.shape[:2]))) for side in image.shape[:2])
    small = [_resized(cell, (height, width)) for cell in cells]
    if panel.mask is not None and panel.mask.any():
        inside = np.pad(_resized(panel.mask.astype(np.float32), (height, width)) > 0.5, 1)
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        small[-1][inside[1:-1, 1:-1] & ~core] = to_rgb(CONTOUR)
    gap = np.ones((height, 2, 3), dtype=np.float32)
    parts = [part for cell in small for part in (gap, cell)][1:]
    return (np.concatenate(parts, axis=1).clip(0, 1) * 255).round().astype(np.uint8)


def _resized(pixels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.array(pixels, dtype=np.float32)).reshape(1, *pixels.shape[:2], -1).movedim(-1, 1)
    antialias = size[0] < pixels.shape[0]
    mode = {"mode": "bilinear", "antialias": True} if antialias else {"mode": "nearest"}
    return (
        torch.nn.functional.interpolate(tensor, size, **mode)[0]
        .movedim(0, -1)
        .numpy()
        .reshape(*size, *pixels.shape[2:])
    )


def draw_roc(c: Curve, interval: tuple[float, float] | None = None, threshold: float | None = None) -> Figure:
    """ROC curve of the images, AUROC in the title; the threshold is a point on it."""
    figure = Figure(figsize=(4.6, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.fill_between(c.fpr, c.tpr, color=NORMAL, alpha=0.12, linewidth=0)
    axes.plot(c.fpr, c.tpr, color=NORMAL, linewidth=1.8)
    if threshold is not None:
        at = int((c.threshold > threshold).sum()) - 1
        label = f"threshold {threshold:.4g}"
        axes.plot(c.fpr[at], c.tpr[at], "o", color=ANOMALOUS, markersize=7, clip_on=False, label=label)
        axes.legend(frameon=False, loc="lower right", fontsize=8, labelcolor=INK)
    title = f"image AUROC {c.auroc():.3f}"
    if interval is not None:
        title += f"   (95 % {interval[0]:.3f} – {interval[1]:.3f})"
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _finish(axes, title, "false positive rate", "true positive rate")
    return figure


def draw_histogram(score: ArrayLike, label: ArrayLike, threshold: float | None = None) -> Figure:
    """Scores of normal and anomalous test images, with the threshold where there is one."""
    values, labels = np.asarray(score, dtype=float), np.asarray(label)
    labels, values = labels[np.isfinite(values)], values[np.isfinite(values)]
    figure = Figure(figsize=(6.4, 3.6), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    shown = values if threshold is None or not np.isfinite(threshold) else np.append(values, threshold)
    count = int(np.clip(2 * len(values) ** 0.5, 10, 60)) + 1
    bins: Any = np.linspace(shown.min(), shown.max(), count) if len(shown) else 10
    for value, name, colour in ((0, "normal", NORMAL), (1, "anomalous", ANOMALOUS)):
        chosen = values[labels == value]
        axes.hist(chosen, bins, color=colour, alpha=0.3)
        axes.hist(chosen, bins, color=colour, histtype="step", linewidth=1.4, label=f"{name} ({len(chosen)})")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.4g}")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    _finish(axes, "scores of the test images", "anomaly score", "images")
    return figure


def _finish(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(up, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name and rename it, so that a picture that exists is whole."""
    with whole(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)

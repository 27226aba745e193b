"""The callback that draws a test: a few images of each defect kind, the ROC curve, the histogram of scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from PIL.Image import Resampling
from pytorch_lightning import LightningModule, Trainer
from scipy.ndimage import binary_erosion

from adbench.evaluation.curves import Curve
from adbench.evaluation.evaluator import Evaluator
from adbench.evaluation.kept import Kept
from adbench.evaluation.metrics import curve
from adbench.evaluation.observers import Observer, Subject
from adbench.evaluation.overlay import COLOURS, in_colours, map_scale, overlay
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

    The rows are chosen while testing, on the device and without waiting for it; those that are drawn are all that is
    ever held.

    Args:
        folder: where the pictures go.
        evaluator: the one of the same trainer; it knows what is tested, and the scores.
        anomalous: anomalous images drawn at most; of more those with the lowest scores, which are missed first.
        normals: normal images drawn, evenly spread over the test rows.
    """

    def __init__(
        self, folder: str | os.PathLike[str], evaluator: Evaluator, anomalous: int = 48, normals: int = 4
    ) -> None:
        self.folder, self.evaluator = Path(folder), evaluator
        rows = np.sort(evaluator.subject.rows)
        self.normals = torch.tensor(spread(rows[evaluator.subject.defects[rows] == "good"], normals))
        self.numbers = {"anomalous": anomalous, "normal": len(self.normals)}
        self._kept: dict[str, Kept] = {}

    def begin(self, method: LightningModule) -> None:
        self._kept = {}

    def observe(self, batch: Batch, scores: Scores, method: LightningModule) -> None:
        if batch.image.ndim != 4:
            return
        rows, out = Kept.of(batch, scores), torch.full_like(scores.image.float(), -torch.inf)
        lowest_first = (-scores.image.float()).clamp(min=torch.finfo(torch.float32).min)  # an infinite score is drawn
        self.normals = self.normals.to(batch.index.device)
        self._keep({
            "anomalous": rows._replace(key=torch.where(batch.label == 1, lowest_first, out)),
            "normal": rows._replace(key=torch.where(torch.isin(batch.index, self.normals), torch.zeros_like(out), out)),
        })  # fmt: skip

    def _keep(self, rows: dict[str, Kept]) -> None:
        for role, number in self.numbers.items():
            if role in rows and number:
                before, here = self._kept.get(role), rows[role].best(number)
                self._kept[role] = here if before is None else before.with_rows_of(here).best(number)

    def share(self) -> dict[str, Kept]:
        return {role: kept.on_host() for role, kept in self._kept.items()}

    def finish(self, shares: list[dict[str, Kept]], method: LightningModule) -> None:
        self._kept = {}
        for kept in shares:
            self._keep(kept)

    def draw(self, trainer: Trainer, method: LightningModule) -> None:
        table, threshold = self.evaluator.table(), self.evaluator.threshold
        level = None if threshold is None else threshold["value"]
        figures = {"histogram": draw_histogram(table["score"], table["label"], level)}
        if (points := curve(table["score"], table["label"])) is not None:
            figures["roc"] = draw_roc(points, self.evaluator.interval(), level)
        kept, self._kept = self._kept, {}
        anomalous, normal = (
            panels_of(kept[role], method, self.evaluator.subject) if role in kept else [] for role in self.numbers
        )
        panels = sorted(anomalous, key=lambda item: (item[1].score, item[0]))
        panels += sorted(normal, key=lambda item: (-item[1].score, item[0]))
        if panels:
            figures["panels"] = draw_panels([panel for _, panel in panels])
        publish(figures, self.folder, trainer)


RECONSTRUCTIONS = 16  # computed together


def panels_of(rows: Kept, method: Any, subject: Subject) -> list[tuple[int, Panel]]:
    """The eligible rows as panels, each with its row in the record table; reconstructions are computed here."""
    rows = rows.eligible()
    if not len(rows.key):
        return []
    parts: list[Any] = []
    if hasattr(method, "reconstruct"):  # which gives None where a method of features alone has it
        parts = [method.reconstruct(part.to(method.device)) for part in rows.image.split(RECONSTRUCTIONS)]
    reconstruction = _pixels(torch.cat(parts)) if parts and parts[0] is not None else None
    image = _pixels(rows.image)
    maps = None if rows.maps is None else _pixels(rows.maps)[..., 0]
    masks = _pixels(rows.mask)[..., 0] > 0.5 if subject.has_masks else None
    return [
        (
            row,
            Panel(
                str(subject.defects[row]),
                score,
                image[k],
                None if reconstruction is None else reconstruction[k],
                None if maps is None else maps[k],
                None if masks is None else masks[k],
            ),
        )
        for k, (row, score) in enumerate(zip(rows.index.tolist(), rows.score.tolist(), strict=True))
    ]


def publish(figures: dict[str, Figure], folder: Path, trainer: Trainer) -> None:
    """Save each figure as `<name>.png` and hand it to every logger that takes pictures."""
    loggers: list[Any] = trainer.loggers
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        save(figure, path)
        for logger in loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key=f"figures/{name}", images=[str(path)])
            elif hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(f"figures/{name}", rendered(figure), trainer.global_step, dataformats="HWC")


def spread(rows: NDArray[np.int64], number: int) -> list[int]:
    """`number` of the (n,) rows, evenly spread over them; all where there are no more."""
    if len(rows) > number:
        rows = rows[((np.arange(number) + 0.5) * len(rows) / number).astype(np.int64)]
    return rows.tolist()


def _pixels(images: torch.Tensor) -> NDArray[np.float32]:
    """(B, C, H, W) on any device -> (B, H, W, C) on the host."""
    return images.detach().float().movedim(1, -1).cpu().numpy()


# -- drawing ----------------------------------------------------------------------------------------------------------


GAP, LABEL, BETWEEN, MARGIN, HEAD = 0.06, 0.27, 0.4, 0.25, 0.3  # inches


SMALL = 64  # pixels: smaller images have nothing to show at a larger size, and their sheets take long to draw


class _Layout(NamedTuple):
    """Where the cells of `draw_panels` lie, in inches from the left and from the top."""

    columns: list[str]
    rows: int
    cell: tuple[float, float]  # width, height
    block: float  # width
    bar: float  # width of the colour bar's place
    size: tuple[float, float]  # width, height of the figure

    def place(self, at: int, column: int = 0) -> tuple[float, float]:
        """Left and top of a column's cell of panel `at`."""
        block, row = divmod(at, self.rows)
        left = MARGIN + block * (self.block + BETWEEN) + column * (self.cell[0] + GAP)
        return left, HEAD + row * (self.cell[1] + LABEL) + LABEL


def _layout(panels: Sequence[Panel]) -> _Layout:
    """Columns that no image has are left out; many images are set in blocks beside each other."""
    has_maps = any(panel.map is not None for panel in panels)
    has_reconstructions = any(panel.reconstruction is not None for panel in panels)
    columns = ["image", *["reconstruction"] * has_reconstructions, *["anomaly map", "overlay"] * has_maps]
    if not has_maps and any(panel.mask is not None for panel in panels):
        columns.append("mask")
    blocks = min(1 + (len(panels) > 4) + (len(panels) > 18), len(panels))
    rows = -(-len(panels) // blocks)
    height, width = panels[0].image.shape[:2]
    cell_width = (1.5 if len(columns) > 2 else 2.0) * (1 if max(height, width) > SMALL else 0.5)
    cell = (cell_width, cell_width * height / width)
    block = len(columns) * (cell_width + GAP) - GAP
    bar = 0.75 if has_maps else 0.0
    size = (2 * MARGIN + blocks * block + (blocks - 1) * BETWEEN + bar, HEAD + rows * (cell[1] + LABEL) + MARGIN)
    return _Layout(columns, rows, cell, block, bar, size)


def draw_panels(panels: Sequence[Panel]) -> Figure:
    """Each image in a row: image, reconstruction, anomaly map, map over the image with the mask's outline.

    All maps share one colour scale.
    """
    layout = _layout(panels)
    width, height = layout.size
    figure = Figure(figsize=layout.size, dpi=DPI, facecolor="white")
    maps = [panel.map for panel in panels if panel.map is not None]
    scale = map_scale(maps) if maps else None
    sheet = np.full((int(height * DPI), int(width * DPI), 3), 255, np.uint8)  # as the canvas rounds
    side = (max(1, round(layout.cell[1] * DPI)), max(1, round(layout.cell[0] * DPI)))
    for at, panel in enumerate(panels):
        for column, name in enumerate(layout.columns):
            x, y = layout.place(at, column)
            cell = draw_cell(name, panel, scale, side)
            if cell is not None:
                left, top = round(x * DPI), round(y * DPI)
                sheet[top : top + side[0], left : left + side[1]] = cell
            if at % layout.rows == 0:
                middle = (x + layout.cell[0] / 2) / width
                figure.text(
                    middle,
                    1 - HEAD * 0.6 / height,
                    name,
                    ha="center",
                    fontsize=8 if layout.cell[0] > 1 else 6,
                    color=FAINT,
                )
        x, y = layout.place(at)
        figure.text(
            x / width, 1 - (y - 0.05) / height, f"{panel.kind.replace('_', ' ')}   {panel.score:.4g}",
            fontsize=9, fontweight="bold", color=NORMAL if panel.kind == "good" else ANOMALOUS,
        )  # fmt: skip
    figure.add_artist(_Sheet(sheet))
    if scale is not None:
        _draw_bar(figure, layout, scale)
    return figure


class _Sheet(Artist):
    """Pixels (H, W, 3) that fill the figure as they are: hundreds of axes, or resampling, would take seconds."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        super().__init__()
        self.pixels = pixels
        self.set_zorder(-1)

    def draw(self, renderer: Any) -> None:
        opaque = np.full((*self.pixels.shape[:2], 1), 255, np.uint8)
        context = renderer.new_gc()
        renderer.draw_image(context, 0, 0, np.concatenate([self.pixels, opaque], axis=-1)[::-1])
        context.restore()


def _draw_bar(figure: Figure, layout: _Layout, scale: Normalize) -> None:
    """The colour bar at the right."""
    width, height = layout.size
    tall = min(height - 2 * MARGIN - HEAD, 4.0)
    left = width - MARGIN - layout.bar + 0.15
    axes = figure.add_axes((left / width, (height - HEAD - LABEL - tall) / height, 0.13 / width, tall / height))
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), cax=axes, extend="max")
    bar.set_label("anomaly score of a pixel", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)


def draw_cell(name: str, panel: Panel, scale: Normalize | None, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """One picture of a panel.

    Args:
        panel: of a test image.
        name: image, reconstruction, anomaly map, overlay or mask (the grey image with the mask's outline).
        scale: of the maps' colours.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8, or None if the panel has no such picture.
    """
    image = _as_bytes(panel.image)
    if name == "image":
        return _at_size(image, size)
    if name == "reconstruction":
        return None if panel.reconstruction is None else _at_size(_as_bytes(panel.reconstruction), size)
    if name == "anomaly map":
        return None if panel.map is None or scale is None else _at_size(in_colours(panel.map, scale), size)
    if panel.map is not None and scale is not None:
        picture = _at_size(overlay(image, panel.map, scale), size)
    else:
        picture = _at_size(np.repeat(image.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1), size)
    if panel.mask is not None and panel.mask.any():
        inside = _at_size(panel.mask.astype(np.uint8) * 255, size) > 0  # a defect smaller than a pixel is seen too
        core = binary_erosion(inside, iterations=max(1, round(max(size) / 128)))  # at the border outlined as well
        picture = np.where((inside & ~core)[..., None], OUTLINE, picture)
    return picture


OUTLINE = (np.array(to_rgb(CONTOUR)) * 255).round().astype(np.uint8)


def _as_bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)


def _at_size(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w) or (h, w, 3) -> the size: averaged where it shrinks, with its pixels visible where it grows."""
    shrinks = size[0] < pixels.shape[0]
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Resampling.BOX if shrinks else Resampling.NEAREST))


STRIP = 128  # pixels of the longer side of a strip's cells


def draw_strip(panel: Panel, scale: Normalize | None) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: image, reconstruction and the map over the image with the mask's outline, side by side.

    The longer side of each is `STRIP` pixels.
    """
    names = ["image", *["reconstruction"] * (panel.reconstruction is not None)]
    names += ["overlay"] * (panel.map is not None or panel.mask is not None)
    longest = max(panel.image.shape[:2])
    height, width = (max(1, round(STRIP * side / longest)) for side in panel.image.shape[:2])
    cells = [draw_cell(name, panel, scale, (height, width)) for name in names]
    gap = np.full((height, 2, 3), 255, np.uint8)
    parts = [part for cell in cells if cell is not None for part in (gap, cell)][1:]
    return np.concatenate(parts, axis=1)


def draw_roc(c: Curve, interval: tuple[float, float] | None = None, threshold: float | None = None) -> Figure:
    """ROC curve of the images, AUROC in the title; the threshold is a point on it.

    Args:
        c: of the test images.
        interval: of the AUROC, (low, high).
        threshold: a score.
    """
    figure, axes = _plot(4.6, 4.6)
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
    """Scores of normal and anomalous test images, with the threshold where there is one.

    Args:
        score: (N,), any range; those that are not finite are left out.
        label: (N,) 0 normal, 1 anomalous.
        threshold: a score.
    """
    values, labels = np.asarray(score, dtype=float), np.asarray(label)
    labels, values = labels[np.isfinite(values)], values[np.isfinite(values)]
    figure, axes = _plot(6.4, 3.6)
    span = values if threshold is None or not np.isfinite(threshold) else np.append(values, threshold)
    count = int(np.clip(2 * len(values) ** 0.5, 10, 60)) + 1
    bins: Any = np.linspace(span.min(), span.max(), count) if len(span) else 10
    for value, name, colour in ((0, "normal", NORMAL), (1, "anomalous", ANOMALOUS)):
        chosen = values[labels == value]
        axes.hist(chosen, bins, color=colour, histtype="stepfilled", alpha=0.3)
        axes.hist(chosen, bins, color=colour, histtype="step", linewidth=1.4, label=f"{name} ({len(chosen)})")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.4g}")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    _finish(axes, "scores of the test images", "anomaly score", "images")
    return figure


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches and its axes, with room for what `_finish` writes around them.

    Margins are set rather than looked for: a layout engine draws the whole figure twice more to find them.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    left, below, right, above = 0.62, 0.52, 0.12, 0.32  # inches
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - above / height)
    return figure, figure.add_subplot()


def _finish(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left", y=1.0)  # else every tick is measured to place it
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(up, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name and rename it, so that a picture that exists is whole."""
    with whole(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, pil_kwargs={"compress_level": 3})

"""Pictures of the codes of a method that has them: t-SNE of the tiles, interpolation, density and diversity.

A method has codes if it offers `codes(image) -> (B, tiles, D)` (one tile for methods of whole images). If its attribute
`decodes` is true, `decode(codes) -> (B, 3, H, W)` draws them. A method with several codes of one image in place of
tiles names them in `code_names`; they are drawn apart, and the first can be decoded. Source: P-WAE, Figures 5 to 7;
ESAD, Figure 3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from scipy.stats import gaussian_kde

from adbench.evaluation.observers import Observer, Subject
from adbench.evaluation.panels import ANOMALOUS, DPI, FAINT, INK, NORMAL, publish
from adbench.files import whole
from adbench.types import Batch, Scores, UserError

Floats = NDArray[np.float32]
TILE_COLOURS = "tab10"


class CodePanels(Observer):
    """Draws `codes_tsne.png`, `codes_density.png` and, where codes can be decoded, `codes_interpolation.png` when a
    test ends, and keeps the codes in `codes.npz` for comparisons between runs. Nothing for methods without codes. Codes
    with names have a `codes_tsne_<name>.png` each.

    Args:
        folder: where the pictures go.
        subject: what is tested.
        at_most: test images whose codes are kept, per process, in the order of the test; 0 draws nothing.
        seed: of t-SNE.
        steps: pictures along an interpolation, both ends included.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        subject: Subject,
        at_most: int = 150,
        seed: int = 0,
        steps: int = 7,
    ) -> None:
        self.folder, self.subject = Path(folder), subject
        self.at_most, self.seed, self.steps = at_most, seed, steps
        self._codes: dict[int, Floats] = {}

    def begin(self, method: LightningModule) -> None:
        self._codes = {}

    def observe(self, batch: Batch, scores: Scores, method: LightningModule) -> None:
        room = self.at_most - len(self._codes)
        encode = getattr(method, "codes", None)
        if room <= 0 or not callable(encode):
            return
        codes = encode(batch.image[:room]) if scores.codes is None else scores.codes[:room]
        self._codes.update(zip(batch.index[:room].tolist(), codes.float().cpu().numpy(), strict=True))

    def share(self) -> dict[int, Floats]:
        return self._codes

    def finish(self, shares: list[dict[int, Floats]], method: LightningModule) -> None:
        self._codes = {row: codes for share in shares for row, codes in share.items()}

    def draw(self, trainer: Trainer, method: LightningModule) -> None:
        if len(self._codes) < 4:  # fewer points have neither neighbours nor a density
            return
        rows = sorted(self._codes)
        codes, kinds = np.stack([self._codes[row] for row in rows]), self.subject.defects[rows]
        self._codes = {}
        save_codes(self.folder / "codes.npz", Codes(codes, kinds, np.array(rows)))
        if not np.isfinite(codes).all():  # nothing to draw; the numbers themselves are there
            return
        names = getattr(method, "code_names", ())
        apart = {f"_{name}": codes[:, [k]] for k, name in enumerate(names)} or {"": codes}
        figures = {f"codes_tsne{name}": draw_tsne(tsne(one, self.seed), kinds) for name, one in apart.items()}
        normal = np.flatnonzero(kinds == "good")
        rows_of_density = normal if len(normal) > 3 else np.arange(len(codes))
        title = type(method).__name__
        figures["codes_density"] = draw_density(
            {title + name.replace("_", " ", 1): c[rows_of_density] for name, c in apart.items()}
        )
        codes = next(iter(apart.values()))
        if getattr(method, "decodes", False) and len(normal) > 1:
            path = interpolations(codes[normal[0]], codes[normal[-1]], self.steps)
            pictures = [_decoded(method, row) for row in path.values()]
            figures["codes_interpolation"] = draw_interpolations(dict(zip(path, pictures, strict=True)))
        publish(figures, self.folder, trainer)


def _decoded(method: Any, codes: Floats) -> Floats:
    image = method.decode(torch.from_numpy(codes).to(method.device))
    return image.clamp(0, 1).movedim(1, -1).float().cpu().numpy()


class Codes(NamedTuple):
    """The codes of some test images."""

    codes: Floats  # (N, tiles, D)
    kinds: NDArray[np.str_]  # (N,) defect kinds
    rows: NDArray[np.int64]  # (N,) rows of the record table


def save_codes(path: Path, kept: Codes) -> None:
    """One file, whole from the moment it exists."""
    with whole(path) as temporary:
        np.savez_compressed(temporary, codes=kept.codes, kinds=kept.kinds.astype(str), rows=kept.rows)


def load_codes(path: str | os.PathLike[str]) -> Codes:
    """What `save_codes` wrote.

    Raises:
        UserError: the file is torn, or of a version that did not write the rows.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Codes(file["codes"], file["kinds"], file["rows"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} cannot be used ({error}); train the run again with its own command") from None


# -- numbers ----------------------------------------------------------------------------------------------------------


def tsne(codes: Floats, seed: int) -> Floats:
    """Two-dimensional neighbours of all tiles' codes together: (N, tiles, D) -> (N, tiles, 2); zeros for codes that are
    all alike (a collapse), on which scikit-learn's t-SNE crashes."""
    from sklearn.manifold import TSNE

    points = codes.reshape(-1, codes.shape[-1]).astype(np.float64)
    points = points - points.mean(0)
    spread = points.std()
    if not spread:
        return np.zeros((*codes.shape[:2], 2), np.float32)
    points /= spread
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points).reshape(*codes.shape[:2], 2)


def interpolations(first: Floats, last: Floats, steps: int) -> dict[str, Floats]:
    """Codes on the straight way from `first` to `last`, both (tiles, D): of all tiles, and of each tile alone while the
    others stay at `first`. By the name of what moves, (steps, tiles, D) each; the ends are included."""
    share = np.linspace(0, 1, steps, dtype=np.float32)[:, None, None]
    whole = (1 - share) * first + share * last
    path = {"all tiles": whole}
    for k in range(len(first) if len(first) > 1 else 0):
        alone = np.repeat(first[None], steps, axis=0)
        alone[:, k] = whole[:, k]
        path[f"tile {k + 1}"] = alone
    return path


def normalised(codes: Floats) -> NDArray[np.float64]:
    """One vector of length 1 per image: (N, tiles, D) -> (N, tiles D)."""
    flat = codes.reshape(len(codes), -1).astype(np.float64)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def plane(codes: Floats) -> NDArray[np.float64]:
    """Normalised codes on their two principal components: (N, tiles, D) -> (N, 2). The paper does not say how it comes
    to two dimensions."""
    flat = normalised(codes)
    u, s, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    points = u[:, :2] * s[:2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def effective_dimensions(codes: Floats) -> float:
    """In how many directions normalised codes (N, tiles, D) vary, (sum of variances)^2 / sum of squared variances: 1
    for codes on a line, n for equal variances in n directions; 0 if nothing varies."""
    flat = normalised(codes)
    variances = np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum()) if variances.max() > 1e-20 else 0.0


def density(points: NDArray[np.float64], side: int, extent: float) -> NDArray[np.float64]:
    """Gaussian kernel density by Scott's rule of (N, 2) points on a (side, side) lattice over [-extent, extent]^2, rows
    upwards. Points on a line get a hair of width across it."""
    across = np.linspace(-extent, extent, side)
    jitter = np.random.default_rng(0).normal(0, 1e-6 + 1e-3 * points.std(), points.shape)
    lattice = np.stack(np.meshgrid(across, across)).reshape(2, -1)
    return gaussian_kde((points + jitter).T, bw_method="scott")(lattice).reshape(side, side)


# -- drawing ----------------------------------------------------------------------------------------------------------


def draw_tsne(points: Floats, kinds: NDArray[np.str_]) -> Figure:
    """One plot per defect kind, six at most, over the faint cloud of all; colours are tiles.

    Args:
        points: (N, tiles, 2) of `tsne`.
        kinds: (N,) defect kinds.
    """
    names = sorted(set(kinds.tolist()), key=lambda kind: (kind != "good", kind))[:6]
    figure = Figure(figsize=(2.6 * len(names) + 0.4, 3.1), dpi=DPI, facecolor="white", layout="constrained")
    tiles = np.broadcast_to(np.arange(points.shape[1]), points.shape[:2])
    for axes, kind in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        here = kinds == kind
        axes.scatter(*points.reshape(-1, 2).T, s=2, color="#dddddd", linewidths=0)
        axes.scatter(
            *points[here].reshape(-1, 2).T, s=7, c=tiles[here].ravel(), cmap=TILE_COLOURS, vmin=0, vmax=9, linewidths=0
        )
        colour = NORMAL if kind == "good" else ANOMALOUS
        axes.set_title(f"{kind.replace('_', ' ')} ({here.sum()})", fontsize=9, color=colour, loc="left")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(FAINT)
    what = "codes of the tiles, one colour per place" if points.shape[1] > 1 else "codes"
    figure.suptitle(f"t-SNE of the {what}", fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def draw_interpolations(pictures: Mapping[str, Floats]) -> Figure:
    """A row of pictures (steps, H, W, 3) in [0, 1] for each name."""
    steps, height, width = next(iter(pictures.values())).shape[:3]
    cell = 1.0
    figure = Figure(
        figsize=(steps * cell + 0.8, len(pictures) * cell * height / width + 0.4),
        dpi=DPI,
        facecolor="white",
        layout="constrained",
    )
    rows = figure.subplots(len(pictures), steps, squeeze=False)
    for row, (name, images) in zip(rows, pictures.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=8, color=INK)
    figure.suptitle("decoded codes between two normal images", fontsize=9, color=INK, x=0.01, ha="left")
    return figure


def draw_density(codes: Mapping[str, Floats]) -> Figure:
    """Kernel density of normalised codes (N, tiles, D), one plot per name on one scale; darker is denser."""
    points = {name: plane(values) for name, values in codes.items()}
    extent = 1.3 * max(max(np.abs(p).max() for p in points.values()), 1e-6)
    figure = Figure(figsize=(2.9 * len(points) + 0.3, 3.3), dpi=DPI, facecolor="white", layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        axes.imshow(density(values, 80, extent), origin="lower", extent=[-extent, extent] * 2, cmap="Blues")
        axes.plot(*values.T, ".", color=INK, markersize=1.5, alpha=0.5)
        title = f"{name}: {effective_dimensions(codes[name]):.1f} effective dimensions"
        axes.set_title(title, fontsize=8, color=INK, loc="left")
        axes.tick_params(labelsize=7, colors=INK)
        axes.spines[:].set_color(FAINT)
    figure.suptitle("density of normalised codes on two principal components", fontsize=9, color=INK, x=0.01, ha="left")
    return figure

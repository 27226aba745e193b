"""`python -m adbench.orthogonality RUN`: how nearly a trained network projects orthogonally onto normal images.

Source: Bauer, Nakajima, Müller, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection", Section 4.2
and Figure 9. A square of each training image X is replaced by the same square of another one, giving X̂. As a function
of the square's width relative to the image's, sqrt(|S| / N): how often X is the nearest training image to X̂, how often
it is the nearest to F(X̂), and the distance of F(X̂) from X. Beside them what the theory asks of the images: Figure 8's
moments of pixels, at the run's image size with windows of half its side, and footnote 7's pairs.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench.errors import command
from adbench.files import whole, write_text
from adbench.streams import torch_stream
from adbench.transforms.corruption import Draws, swap_patch
from adbench.types import UserError

WIDTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HALF = 0.5**0.5  # the width at which |S| = |S̄|, Figure 9's dotted line


@dataclass(frozen=True)
class Point:
    """The three curves at one width."""

    width: float  # sqrt(|S| / N), of the square that was really swapped
    corrupted_nearest: float  # share of X̂ whose nearest training image is X
    reconstruction_nearest: float  # share of F(X̂) whose nearest training image is X
    distance_mean: float  # of ‖F(X̂) - X‖
    distance_std: float


@torch.no_grad()
def orthogonality(
    reconstruct: Callable[[Tensor], Tensor],
    images: Tensor,
    widths: Sequence[float] = WIDTHS,
    repeats: int = 1,
    seed: int = 0,
    rows: int = 16,
) -> list[Point]:
    """The three curves of Figure 9.

    Args:
        reconstruct: F, (B, C, H, W) -> (B, C, H, W).
        images: (N, C, H, W), the training images D, N >= 2.
        widths: of the swapped squares, as shares of the shorter side; in (0, 1].
        repeats: corruptions of each image at each width.
        seed: of positions and partners.
        rows: images worked on at a time.

    Raises:
        UserError: fewer than two images, or a width outside (0, 1].
    """
    count = len(images)
    if count < 2:
        raise UserError(f"patches are swapped between images, so at least 2 are needed, got {count}")
    if not all(0 < width <= 1 for width in widths) or repeats < 1:
        raise UserError(f"widths must lie in (0, 1] and repeats be at least 1, got {list(widths)} and {repeats}")
    height, breadth = images.shape[-2:]
    curves = []
    for width in widths:
        side = max(1, round(width * min(height, breadth)))
        hits, distances = torch.zeros(2, device=images.device), []
        for repeat in range(repeats):
            for first in range(0, count, rows):
                source = torch.arange(first, min(first + rows, count), device=images.device)
                stream = torch_stream(seed, "swap", side, repeat, first, device=images.device)
                draws = Draws(stream, len(source))
                partner = (source + draws.integers(low=1, high=count - 1)) % count  # never the image itself
                clean = images[source]
                corrupted, _ = swap_patch(clean, images[partner], side, draws)
                repaired = reconstruct(corrupted)
                for i, image in enumerate((corrupted, repaired)):
                    hits[i] += (_nearest(image, images) == source).sum()
                distances.append((repaired - clean).flatten(1).norm(dim=1))
        distance = torch.cat(distances)
        share = (hits / (count * repeats)).tolist()
        spread = distance.std(correction=0)
        width = side / (height * breadth) ** 0.5
        curves.append(Point(width, share[0], share[1], float(distance.mean()), float(spread)))
    return curves


def _nearest(queries: Tensor, images: Tensor) -> Tensor:
    """(B,) index of the image nearest to each query."""
    # Not by ‖a‖² + ‖b‖² - 2ab: the distances compared are small differences of large norms.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(queries.flatten(1), images.flatten(1), compute_mode=exact).argmin(dim=1)


def write_curves(points: Sequence[Point], folder: Path) -> list[Path]:
    """orthogonality.csv and orthogonality.png in a folder."""
    text = io.StringIO()
    table = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
    table.writeheader()
    table.writerows({k: f"{v:.6g}" for k, v in asdict(point).items()} for point in points)
    write_text(folder / "orthogonality.csv", text.getvalue())

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    width = [p.width for p in points]
    panels = figure.subplots(1, 3)
    panels[0].plot(width, [p.corrupted_nearest for p in points], marker=".")
    panels[0].set_title("X is nearest to X̂")
    panels[1].plot(width, [p.reconstruction_nearest for p in points], marker=".")
    panels[1].set_title("X is nearest to F(X̂)")
    panels[2].errorbar(
        width, [p.distance_mean for p in points], [p.distance_std for p in points], marker=".", capsize=2
    )
    panels[2].set_title("‖F(X̂) - X‖")
    for panel in panels:
        panel.axvline(HALF, color="red", linestyle=":")
        panel.set_xlabel("width of the swapped square, sqrt(|S| / N)")
    for panel in panels[:2]:
        panel.set_ylim(-0.03, 1.03)
    with whole(folder / "orthogonality.png") as path:
        figure.savefig(path, format="png", dpi=120)
    return [folder / "orthogonality.csv", folder / "orthogonality.png"]


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m adbench.orthogonality", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run whose method reconstructs images")
    parser.add_argument("--widths", type=float, nargs="+", default=WIDTHS, help="shares of the image's side")
    parser.add_argument("--repeats", type=int, default=1, help="corruptions of each image at each width (1)")
    parser.add_argument("--out", type=Path, help="folder for the table and the figure (the run's figures)")
    options = parser.parse_args(arguments)
    try:
        images, reconstruct, cfg = _of_run(options.run)
        points = orthogonality(reconstruct, images, options.widths, options.repeats, seed=cfg.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from adbench.evaluation.pixel_statistics import draw_moments, pixel_moments, violating_pairs
    from adbench.experiment.folder import RunFolder

    folder = options.out or RunFolder(options.run).path / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for point in points:
        print(
            f"width {point.width:.3f}: nearest to X̂ {point.corrupted_nearest:.3f}, "
            f"to F(X̂) {point.reconstruction_nearest:.3f}, distance {point.distance_mean:.3f} ± {point.distance_std:.3f}"
        )
    found = violating_pairs(images, seed=cfg.seed)
    print(
        f"squares of up to {found.largest} px, |S| <= 2σ²|S̄| with σ² = {found.variance:.4f}: {found.violating} of "
        f"{found.pairs} pairs differ more inside than outside"
    )
    mean, std = pixel_moments([images], min(images.shape[-2:]) // 2)
    moments = draw_moments(mean, std, middle_line=cfg.data.kind != "texture")
    with whole(folder / "pixel_moments.png") as path:
        moments.savefig(path, format="png")
    print(" ".join(str(path) for path in (*write_curves(points, folder), folder / "pixel_moments.png")))
    return 0


def _of_run(run: Path) -> tuple[Tensor, Callable[[Tensor], Tensor], Any]:
    """The training images of a run, its reconstruction and its configuration."""
    from adbench.experiment.build import load_method, stored_datamodule
    from adbench.experiment.folder import RunFolder

    cfg = RunFolder(run).config()
    method = load_method(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method.to(device)
    datamodule = stored_datamodule(cfg, method.supervision, run)
    datamodule.setup()
    images = torch.cat([batch.image for batch in datamodule.training_batches(device)])
    with torch.no_grad():
        if images.ndim != 4 or method.reconstruct(images[:1]) is None:
            raise UserError(f"{cfg.method._target_} does not reconstruct images; give the folder of an SSAE run")
    return images, method.reconstruct, cfg


if __name__ == "__main__":
    sys.exit(main())

"""What SSAE's theory asks of normal images: pixels that are distributed alike everywhere, and images that differ more
outside a small region than inside it.

Source: Bauer, Nakajima, Müller, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection", Section 4.2
and Figure 8 (moments), Section 3.3, Eqs. 11, 12 and footnote 7 (pairs).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from adbench.evaluation.panels import DPI, FAINT, INK
from adbench.streams import torch_stream
from adbench.types import UserError

STRIP = 32  # rows of pixels that are compared at a time


@torch.no_grad()
def pixel_moments(batches: Iterable[Tensor], window: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel of a window over all its positions in all images.

    Source: SSAE, Section 4.2, Figure 8 (windows of 256 px in images of 512 px). The values of all channels count alike;
    the paper does not say how it joins them.

    Args:
        batches: images (B, C, H, W), all of one size.
        window: side in pixels, at most min(H, W).

    Returns:
        two (window, window) float64.

    Raises:
        UserError: no image, or a window that does not fit.
    """
    first = second = None
    count = 0
    for image in batches:
        # A pixel of the window takes the values of a rectangle of places, so the sum over images can come first.
        values = image.double()
        sums = [values.mean(1).sum(0), values.square().mean(1).sum(0)]
        first, second = sums if first is None or second is None else (first + sums[0], second + sums[1])
        count += len(image)
    if first is None or second is None or not 1 <= window <= min(first.shape):
        size = "no image" if first is None else f"images of {first.shape[0]}x{first.shape[1]}"
        raise UserError(f"a window of {window} pixels needs images of at least its side, got {size}")
    places = [side - window + 1 for side in first.shape]
    mean, square = (F.avg_pool2d((m / count)[None, None], places, stride=1)[0, 0] for m in (first, second))
    return mean, (square - mean.square()).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Violations:
    """Pairs of images that differ more inside a square S than outside it."""

    variance: float  # σ² of all pixel values
    largest: int  # side in pixels of the largest square with |S| <= 2 σ² |S̄|
    pairs: int  # that were compared, over all squares
    violating: int


@torch.no_grad()
def violating_pairs(images: Tensor, squares: int = 10, seed: int = 0) -> Violations:
    """How many pairs of images violate ‖x_S - y_S‖ <= ‖x_S̄ - y_S̄‖ where |S| <= 2 σ² |S̄|.

    Source: SSAE, Eqs. 11, 12 and footnote 7, which found none on MVTec AD's textures. The paper does not say which
    regions it took: here squares at random places, the first of the largest side and the others of random ones.

    Args:
        images: (N, C, H, W) in [0, 1], N >= 2.
        squares: how many squares, >= 1.
        seed: of their sides and places.

    Raises:
        UserError: fewer than two images, or no square.
    """
    count, _, height, width = images.shape
    if count < 2 or squares < 1:
        raise UserError(f"pairs need at least 2 images and 1 square, got {count} and {squares}")
    variance = float(images.double().var(unbiased=False))
    share = 2 * variance / (1 + 2 * variance)  # of |S| + |S̄|
    largest = max(1, min(int((share * height * width) ** 0.5), height, width))
    everywhere = _squared_distances(images)
    draws = torch.rand(squares, 3, generator=torch_stream(seed, "squares"))
    upper = torch.ones(count, count, dtype=torch.bool, device=images.device).triu(1)
    violating = 0
    for k, (size, row, column) in enumerate(draws.tolist()):
        side = largest if k == 0 else 1 + int(size * largest)
        side = min(side, largest)
        top, left = int(row * (height - side + 1)), int(column * (width - side + 1))
        inside = _squared_distances(images[:, :, top : top + side, left : left + side])
        violating += int(((inside > everywhere - inside) & upper).sum())
    return Violations(variance, largest, squares * count * (count - 1) // 2, violating)


def _squared_distances(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, N) float64."""
    gram = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for strip in images.split(STRIP, dim=2):
        rows = strip.flatten(1).double()
        gram += rows @ rows.T
    norm = gram.diagonal()
    return (norm[:, None] + norm - 2 * gram).clamp_min(0)


def draw_moments(mean: Tensor, std: Tensor, middle_line: bool) -> Figure:
    """Figure 8: mean and standard deviation over the position of a pixel.

    Args:
        mean, std: (window, window) each, of `pixel_moments`.
        middle_line: draw the pixels on the horizontal line through the middle alone, as the paper does for objects.
    """
    rows = [values[len(values) // 2] if middle_line else values.flatten() for values in (mean.cpu(), std.cpu())]
    figure = Figure(figsize=(5, 3), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for values, name in zip(rows, ("mean", "standard deviation"), strict=True):
        axes.plot(values.numpy(), label=name, linewidth=0.8)
    axes.set(
        ylim=(0, 1), ylabel="pixel value", xlabel="pixel of the middle line" if middle_line else "pixel, flattened"
    )
    axes.legend(fontsize=8)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(labelsize=7, colors=INK)
    return figure

"""Anomaly maps as pictures: one colour scale, and one overlay on the image, for every command that draws maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from PIL import Image

COLOURS = "inferno"
HEAT = 0.75  # share of the hottest colour over the image


def map_range(pixels: NDArray[np.float32]) -> list[float] | None:
    """[median, 99.8 % quantile] of normal images' map values, None without any: what an overlay need not colour.

    Args:
        pixels: of maps, in any shape; values that are not finite do not count.
    """
    values = pixels[np.isfinite(pixels)]
    return [float(value) for value in np.quantile(values, [0.5, 0.998])] if len(values) else None


def map_scale(
    maps: Sequence[NDArray[np.float32]] | NDArray[np.float32], normal: Sequence[float] | None = None
) -> Normalize:
    """The colour scale that several maps share, clipped to [0, 1].

    Args:
        maps: (h, w) each, any range.
        normal: `map_range` of held-out normal images, if it is known.

    Returns:
        From the median of normal images (else from the maps' 1 % quantile) to the maps' 99.8 % quantile, and at least
        to that of normal images: a map like theirs stays cold.
    """
    values = np.concatenate([one.ravel() for one in maps]) if len(maps) else np.zeros(0)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.01, 0.998]) if len(values) else (0.0, 1.0)
    if normal is not None:
        low, high = normal[0], max(high, normal[1])
    return Normalize(float(low), float(high if high > low else low + 1.0), clip=True)


def in_colours(values: NDArray[np.float32], scale: Normalize) -> NDArray[np.uint8]:
    """(h, w) -> (h, w, 3) uint8: the map in the scale's colours."""
    return _table()[(_shares(values, scale) * 255).astype(np.uint8)].astype(np.uint8)


def _shares(values: NDArray[np.float32], scale: Normalize) -> NDArray[np.float32]:
    """(h, w) in [0, 1]: the place on the scale; what is no number is hot."""
    return np.nan_to_num(np.asarray(scale(values), dtype=np.float32), nan=1.0)


def _table() -> NDArray[np.float32]:
    return (colormaps[COLOURS](np.arange(256))[:, :3] * 255).astype(np.float32)


def overlay(image: NDArray[np.uint8], values: NDArray[np.float32], scale: Normalize) -> NDArray[np.uint8]:
    """The map's colours over the grey image: where the map is cold the image stays visible.

    Args:
        image: (H, W, 3) uint8.
        values: (h, w), the anomaly map, resized to the image.
        scale: of the map's values.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    share = np.asarray(Image.fromarray(_shares(values, scale)).resize((width, height), Image.Resampling.BILINEAR))
    grey = image.mean(axis=-1, keepdims=True, dtype=np.float32)
    strength = HEAT * share[..., None]
    mixed = (1 - strength) * grey + strength * _table()[(share * 255).astype(np.uint8)]
    return mixed.clip(0, 255).astype(np.uint8)

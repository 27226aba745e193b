"""Texture inspection without a download: crops of the photographs that scikit-image ships, with generated defects.

A photograph is cut into quadrants. Training crops come from two that touch at a corner, test crops from the other two,
so both parts see the photograph's near and far, left and right, and share no pixel. Half of the test crops, in a
chessboard over the positions, carry one defect each. Everything is drawn from the data set's own seed, not the run's.

512 x 512 pixels do not hold 120 separate crops: neighbouring test crops overlap, and so do training and held-out crops.
An interval over the test crops is therefore narrower than one over independent photographs would be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import skimage.data
from scipy import ndimage
from skimage.color import rgb2gray

from adbench.data.records import Records
from adbench.types import UserError

PHOTOGRAPHS = ("brick", "grass", "gravel")
FOREIGN = (*PHOTOGRAPHS, "coins", "page")  # where foreign texture may come from: any but the crop's own
NOTICEABLE = 12.0  # grey levels by which a pixel's neighbourhood must have changed to count as anomalous


class Textures:
    """Crops of one photograph.

    Args:
        photograph: brick, grass or gravel.
        size: side of a crop in pixels, 16 to 128.
        train: number of training crops, all normal.
        test: number of test crops, half of them defective; 2 to 1000.
        seed: of positions and defects.

    Raises:
        UserError: there is no such photograph, or a number is out of its range.
    """

    has_masks = True
    features: ClassVar[np.ndarray | None] = None
    cache_dir: Path | str | None = None

    def __init__(self, photograph: str, size: int = 128, train: int = 256, test: int = 120, seed: int = 0) -> None:
        if photograph not in PHOTOGRAPHS:
            raise UserError(f"data=textures/{photograph} does not exist; take one of {', '.join(PHOTOGRAPHS)}")
        if not 16 <= size <= 128:
            raise UserError(f"textures: size must lie in 16..128 (crops of quadrants of 256 px), got {size}")
        if train < 2 or not 2 <= test <= 1000:
            raise UserError(f"textures: at least 2 training crops and 2 to 1000 test crops, got {train} and {test}")
        rng = np.random.default_rng([seed, *photograph.encode()])
        image = _photograph(photograph)
        half = image.shape[0] // 2
        span = half - size + 1  # positions along one side of a quadrant

        crops, masks, rows = [], [], []
        for i in range(train):
            top, left = rng.integers(span, size=2) + np.array([(0, 0), (half, half)][i % 2])
            crops.append(image[top : top + size, left : left + size])
            masks.append(np.zeros((size, size), dtype=bool))
            rows.append({"split": "train", "label": 0, "defect": "good", "path": f"train/{i:03d}"})

        kinds, damaged = list(DEFECTS), 0
        for i, (top, left, defective) in enumerate(_spread(test, span, half)):
            crop = image[top : top + size, left : left + size]
            mask, kind = np.zeros((size, size), dtype=bool), "good"
            if defective:
                kind = kinds[damaged % len(kinds)]
                crop, mask = _damage(crop, kind, photograph, rng)
                damaged += 1
            crops.append(crop)
            masks.append(mask)
            path, label = f"test/{i:03d}", int(defective)
            rows.append({"split": "test", "label": label, "defect": kind, "path": path, "mask": path * label})
        self.records = Records.of(rows)
        self.array = np.stack(crops)[..., None]
        self._masks = np.stack(masks)

    def read_image(self, row: int) -> np.ndarray:
        """(size, size, 3) uint8."""
        return np.repeat(self.array[row], 3, axis=-1)

    def read_mask(self, row: int) -> np.ndarray:
        """(size, size) bool, True where anomalous."""
        return self._masks[row]

    def fingerprint(self) -> str:
        """Of the crops and masks."""
        digest = hashlib.sha256(str(self.array.shape).encode())
        digest.update(self.array.data)
        digest.update(self._masks.data)
        return digest.hexdigest()[:32]


def _photograph(name: str) -> np.ndarray:
    """(H, W) uint8."""
    image = getattr(skimage.data, name)()
    return image if image.ndim == 2 else np.rint(rgb2gray(image) * 255).astype(np.uint8)


def _spread(count: int, span: int, half: int) -> list[tuple[int, int, bool]]:
    """Corners of `count` crops, as far apart as an even grid in the two test quadrants allows, and which to damage."""
    per_quadrant = [(count + 1) // 2, count // 2]
    places = []
    for quadrant, (top, left) in enumerate([(0, half), (half, 0)]):
        wanted = per_quadrant[quadrant]
        side = int(np.ceil(np.sqrt(wanted)))
        line = np.linspace(0, span - 1, side).round().astype(int)
        grid = [(top + y, left + x, (i + j) % 2 == quadrant) for i, y in enumerate(line) for j, x in enumerate(line)]
        # Where the grid has more places than asked for, leave some out evenly, as many of each kind.
        for defective in (False, True):
            kind = [place for place in grid if place[2] is bool(defective)]
            share = wanted // 2 + (wanted % 2) * int(defective is not bool(quadrant))
            places += [kind[k] for k in np.linspace(0, len(kind) - 1, share).round().astype(int)]
    return places


# -- defects ----------------------------------------------------------------------------------------------------------


def _damage(crop: np.ndarray, kind: str, photograph: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A damaged copy of a crop and the exact mask: outside it the copy equals the crop, byte for byte.

    A defect too faint or too small to be seen at a glance is drawn again.
    """
    while True:
        x = crop / 255.0
        damaged = _foreign(x, rng, photograph) if kind == "foreign" else DEFECTS[kind](x, rng)
        damaged = np.rint(damaged.clip(0, 1) * 255).astype(np.uint8)
        change = np.abs(damaged.astype(float) - crop)
        mask = ndimage.gaussian_filter(change, 1.0) > NOTICEABLE
        touched = ndimage.binary_closing(change > 0, iterations=2)
        mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask, iterations=3)) & touched
        regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
        area = np.bincount(regions.ravel(), minlength=count + 1)
        mask &= area[regions] >= max(12, 0.1 * area[1:].max(initial=0))  # specks go back to what they were
        if 0.012 <= mask.mean() <= 0.20 and change[mask].mean() >= 22:
            return np.where(mask, damaged, crop), mask


def _scratch(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three bent lines, dark or bright."""
    size = len(x)
    yy, xx = np.mgrid[:size, :size]
    angle = rng.uniform(0, np.pi)
    value = rng.choice([0.03, 0.97])
    for _ in range(rng.integers(1, 4)):
        center = rng.uniform(0.3, 0.7, 2) * size
        turned = angle + rng.normal(0, 0.25)
        along, across = np.array([np.sin(turned), np.cos(turned)]), np.array([np.cos(turned), -np.sin(turned)])
        t = np.linspace(-1, 1, 160)[:, None]
        line = center + t * along * rng.uniform(0.25, 0.42) * size + (t**2 - 0.5) * across * rng.normal(0, 0.10) * size
        distance = np.full(x.shape, np.inf)
        for y0, x0 in line:
            np.minimum(distance, np.hypot(yy - y0, xx - x0), out=distance)
        width = rng.uniform(1.0, 1.8)
        x = _blend(x, value, np.clip(width - distance + 0.5, 0, 1) * 0.85)
    return x


def _stain(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A spill, dark or pale, through which the texture still shows, with a rim of the other sign as it dries."""
    blob = _blob(x, rng, (0.10, 0.17))
    inside = ndimage.gaussian_filter(blob.astype(float), 1.0)
    rim = np.clip(inside - ndimage.gaussian_filter(ndimage.binary_erosion(blob, iterations=4).astype(float), 1.0), 0, 1)
    tone, other = rng.permutation([0.06, 0.94])
    x = _blend(x, tone, inside * rng.uniform(0.40, 0.55))
    return _blend(x, other, rim * 0.75)


def _foreign(x: np.ndarray, rng: np.random.Generator, photograph: str) -> np.ndarray:
    """A piece of another photograph, as bright on average as what it covers but clearly rougher or smoother."""
    while True:
        other = _photograph(rng.choice([name for name in FOREIGN if name != photograph])) / 255.0
        top, left = (rng.integers(n - len(x) + 1) for n in other.shape)
        piece = other[top : top + len(x), left : left + len(x)]
        blob = _blob(x, rng, (0.14, 0.21))
        rough, covered = (ndimage.gaussian_gradient_magnitude(image, 1.0)[blob].mean() for image in (piece, x))
        if not 1 / 1.5 < rough / covered < 1.5:
            piece = piece - piece[blob].mean() + x[blob].mean()
            return _blend(x, piece, ndimage.gaussian_filter(blob.astype(float), 0.7))


def _brightness(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch where the light is missing, or where there is far too much of it."""
    weight = ndimage.gaussian_filter(_blob(x, rng, (0.11, 0.17)).astype(float), 2.0)
    dark = rng.random() < 0.5
    return x * (1 - weight * rng.uniform(0.5, 0.65)) if dark else 1 - (1 - x) * (1 - weight * rng.uniform(0.42, 0.55))


def _warp(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The texture is wound up around a point, or blown up as under a drop of water."""
    size = len(x)
    radius = rng.uniform(0.20, 0.27) * size
    cy, cx = rng.uniform(radius, size - radius, 2)
    dy, dx = np.mgrid[:size, :size] - np.array([cy, cx])[:, None, None]
    r = np.hypot(dy, dx) / radius
    fade = np.clip(1 - r, 0, 1)
    if rng.random() < 0.5:
        turn = rng.choice([-1, 1]) * rng.uniform(3.0, 4.5) * fade
        dy, dx = np.cos(turn) * dy - np.sin(turn) * dx, np.sin(turn) * dy + np.cos(turn) * dx
    else:
        zoom = np.where(r < 1, np.clip(r, 1e-3, 1) ** rng.uniform(1.2, 1.8), 1.0)
        dy, dx = dy * zoom, dx * zoom
    return np.where(r < 1, ndimage.map_coordinates(x, [cy + dy, cx + dx], order=1, mode="nearest"), x)


#: In the order in which defective crops receive them. `_foreign` also has to know the crop's photograph.
DEFECTS: dict[str, Callable[..., np.ndarray]] = {
    "scratch": _scratch,
    "stain": _stain,
    "foreign": _foreign,
    "brightness": _brightness,
    "warp": _warp,
}


def _blob(x: np.ndarray, rng: np.random.Generator, radius: tuple[float, float]) -> np.ndarray:
    """(S, S) bool: a rounded, uneven patch wholly inside the crop; `radius` as shares of its side."""
    size = len(x)
    mean = rng.uniform(*radius) * size
    cy, cx = rng.uniform(1.45 * mean, size - 1.45 * mean, 2)
    dy, dx = np.mgrid[:size, :size] - np.array([cy, cx])[:, None, None]
    angle = np.arctan2(dy, dx)
    edge = sum(rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 5))
    return np.hypot(dy, dx) < mean * np.clip(1 + edge, 0.6, 1.45)


def _blend(x: np.ndarray, over: np.ndarray | float, weight: np.ndarray) -> np.ndarray:
    return x * (1 - weight) + over * weight

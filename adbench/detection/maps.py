"""Anomaly maps of a user's own images: as files of numbers, and as overlays on the images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.colors import Normalize
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adbench.errors import UserError
from adbench.evaluation.overlay import overlay
from adbench.files import whole

LONGEST_SIDE = 1024  # pixels of an overlay


def thumbnail(image: np.ndarray, longest: int = LONGEST_SIDE) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3) uint8: resized if the longer side has more than `longest` pixels."""
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def draw(out: Path, name: str, values: np.ndarray, image: np.ndarray, kind: str, scale: Normalize) -> None:
    """Write `maps/<name>.<kind>` and `overlays/<name>.jpg`.

    Args:
        out: the folder.
        name: of both files, without suffix.
        values: (h, w) float32.
        image: (H, W, 3) uint8.
        kind: png (16 bits, `write_map`) or npy (float32).
        scale: of the overlay's colours.
    """
    of_map, of_overlay = places_of(out, name, kind)
    with whole(of_map) as path:
        if kind == "npy":
            np.save(path, values)
        else:
            write_map(path, values)
    with whole(of_overlay) as path:
        Image.fromarray(overlay(image, values, scale)).save(path, quality=90)


def refuse_unwritable(folder: Path, option: str) -> None:
    """Make a folder and write a file in it, before any work is done for it.

    Args:
        folder: that results are to be written to.
        option: that names it on the command line.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".written-") as file:
            file.write(b"written")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {option} {folder}: {reason}; choose another folder") from error


def places_of(out: Path, name: str, *kinds: str) -> list[Path]:
    """Where the maps of an image lie, of these kinds (any if none is given), and then its overlay."""
    return [*(out / "maps" / f"{name}.{kind}" for kind in kinds or ("png", "npy")), out / "overlays" / f"{name}.jpg"]


def write_map(path: Path | BinaryIO, values: np.ndarray) -> None:
    """Write (h, w) floats as a 16-bit PNG; the scores of its 0 and 65535 stand in its text chunks `low` and `high`.

    These are the least and the largest finite values. NaN and inf are 65535, -inf is 0, as an overlay colours them.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    span = high - low or 1.0
    note = PngInfo()
    note.add_text("low", repr(low))
    note.add_text("high", repr(low + span))
    shares = np.nan_to_num((values.astype(np.float64) - low) / span, nan=1.0, posinf=1.0, neginf=0.0)
    steps = np.rint(shares * 65535).astype(np.uint16)
    Image.fromarray(steps).save(path, format="PNG", pnginfo=note, compress_level=3)


def read_map(path: Path | str) -> np.ndarray:
    """(h, w) float32 of a map that `write_map` wrote, exact to 1 / 131070 of its range."""
    with Image.open(path) as file:
        low, high = float(file.info["low"]), float(file.info["high"])
        return (low + np.asarray(file).astype(np.float64) / 65535 * (high - low)).astype(np.float32)

"""Image files: of any usual format, size and mode, to bytes."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
from kornia_rs import io as rust
from PIL import Image, ImageOps

from adbench.data.contents import hashes
from adbench.data.records import Records
from adbench.types import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DECODER = 1  # raise when `decode` or `decode_mask` gives other bytes for the same file


def decode(path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8. Grey is repeated, alpha dropped, 16-bit values are divided by 257, EXIF rotation is applied.

    Raises:
        UserError: the file cannot be read as an image; the message names it.
    """
    plain = _plain_png(path)
    if plain is not None:
        return plain
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return to_rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise UserError(f"cannot read the image {path}: {error}; replace or remove the file") from error


def center_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of (H, W, C), or as much of it as there is."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def decode_mask(path: Path | str) -> np.ndarray:
    """(H, W) bool: True where a mask file is not zero (above half in a JPEG, whose zeros are noisy)."""
    try:
        with Image.open(path) as file:
            file.load()
            image: Image.Image = file
            lossy = file.format in ("JPEG", "WEBP")
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F"):
                image = image.convert("RGB")
            values = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the mask {path}: {error}; replace or remove the file") from error
    values = values.max(axis=-1) if values.ndim == 3 else values
    return values > 127 if lossy else values != 0


def _plain_png(path: Path | str) -> np.ndarray | None:
    """An 8-bit grey or RGB PNG by the Rust decoder, three times as fast as Pillow's; None for anything else."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(26)
        if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 26 or head[24] != 8 or head[25] not in (0, 2):
            return None
        image = np.asarray(rust.read_image_png_u8(str(path), "mono" if head[25] == 0 else "rgb"))
    except Exception:  # whatever it is that is wrong or unusual, Pillow reads it or says what it is
        return None
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an image of any mode; see `decode`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
    elif image.mode == "I":  # 16 bits that Pillow has widened
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit values outside 0..65535 ({values.min()}..{values.max()})")
        grey = np.rint(values / 257).astype(np.uint8)
    elif image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"float values outside [0, 1] ({values.min()}..{values.max()})")
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
    return np.repeat(grey[..., None], 3, axis=-1)


def listed(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name; hidden ones (".DS_Store", "._copy.png") are none."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


class ImageFiles:
    """A source whose rows are files below `root`."""

    array: ClassVar[np.ndarray | None] = None
    features: ClassVar[np.ndarray | None] = None
    cache_dir: Path | str | None = None  # where the hashes of files are remembered; the data module says where

    def __init__(self, root: Path, records: Records) -> None:
        self.root, self.records = root, records
        self.has_masks = bool((records.mask != "").any())

    def read_image(self, row: int) -> np.ndarray:
        return decode(self.root / str(self.records.path[row]))

    def read_mask(self, row: int) -> np.ndarray:
        return decode_mask(self.root / str(self.records.mask[row]))

    def fingerprint(self) -> str:
        """Of what the files hold, of their names below the root and of the decoder; where the root lies is no part."""
        pairs = list(zip(self.records.path.tolist(), self.records.mask.tolist(), strict=True))
        found = hashes(self.root, (name for pair in pairs for name in pair if name), self.cache_dir)
        digest = hashlib.sha256(f"decoder {DECODER}".encode())
        for path, mask in pairs:
            line = f"\n{path}\0{found[path]}\0{mask}\0{found.get(mask, '')}"
            digest.update(line.encode(errors="surrogateescape"))  # a name need not be text
        return digest.hexdigest()[:32]

"""Small image files of every format and mode, turned by every kind of metadata."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ORIENTATION = 0x0112


def colour(height: int = 6, width: int = 10) -> np.ndarray:
    """(H, W, 3) uint8 in which no two turns look alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) * 255 // (height + width)], axis=-1).astype(np.uint8)


def shape(height: int = 6, width: int = 10) -> np.ndarray:
    """(H, W) bool in which no two turns look alike."""
    mask = np.zeros((height, width), dtype=bool)
    mask[: height // 2, : width // 5] = mask[0, : width // 2] = True
    return mask


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found.tobytes()


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png: bytes, kind: bytes, content: bytes, late: bool = False) -> bytes:
    """A PNG with one more chunk, behind its head or, `late`, behind its pixels."""
    place = len(png) - 12 if late else 33
    return png[:place] + chunk(kind, content) + png[place:]


def _png(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="PNG", exif=exif(orientation))


def _png_late(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="PNG")
    path.write_bytes(with_chunk(path.read_bytes(), b"eXIf", exif(orientation)[6:], late=True))


def _png_profile(path: Path, image: Image.Image, orientation: int) -> None:
    text, content = PngInfo(), exif(orientation)
    text.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    image.save(path, format="PNG", pnginfo=text)


def _png_xmp(path: Path, image: Image.Image, orientation: int) -> None:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    image.save(path, format="PNG", pnginfo=text)


def _jpeg(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="JPEG", quality=95, exif=exif(orientation))


def _jpeg_xmp(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="JPEG", quality=95, xmp=xmp(orientation))


def _webp(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="WEBP", lossless=True, exif=exif(orientation))


def _webp_xmp(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="WEBP", quality=95, xmp=xmp(orientation))


def _tiff(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="TIFF", tiffinfo={ORIENTATION: orientation})


def _tiff_lzw(path: Path, image: Image.Image, orientation: int) -> None:
    image.save(path, format="TIFF", compression="tiff_lzw", tiffinfo={ORIENTATION: orientation})


Save = Callable[[Path, Image.Image, int], None]

#: Ways to say how an image is turned: (writer, suffix, modes that the format has).
CARRIERS: dict[str, tuple[Save, str, tuple[str, ...]]] = {
    "png": (_png, ".png", ("L", "RGB", "P", "1", "RGBA", "LA", "I;16")),
    "png behind the pixels": (_png_late, ".PNG", ("L", "RGB", "P", "I;16")),
    "png text profile": (_png_profile, ".png", ("L", "RGB")),
    "png xmp": (_png_xmp, ".Png", ("L", "RGB")),
    "jpeg": (_jpeg, ".jpg", ("L", "RGB", "CMYK")),
    "jpeg xmp": (_jpeg_xmp, ".JPEG", ("RGB",)),
    "webp": (_webp, ".webp", ("RGB", "RGBA")),
    "webp xmp": (_webp_xmp, ".WebP", ("RGB",)),
    "tiff": (_tiff, ".tif", ("L", "RGB", "P", "1", "RGBA", "I;16", "F")),
    "tiff lzw": (_tiff_lzw, ".TIFF", ("L", "RGB", "I;16")),
}
GRID = [(name, mode) for name, (_, _, modes) in CARRIERS.items() for mode in modes]


def in_mode(array: np.ndarray, mode: str) -> Image.Image:
    """(H, W, 3) uint8 as an image of a mode."""
    grey = Image.fromarray(array).convert("L")
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    if mode in ("L", "LA", "1"):
        return grey.convert(mode)
    return Image.fromarray(array).convert(mode)

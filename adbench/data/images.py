"""Image files: of any usual format, size and mode, to bytes, as a person sees them.

One way for training data, masks, `predict` and `Detector.score`: `decode`, `decode_mask` and `pixels_of` share their
rules.

- The EXIF orientation applies, of images and masks, wherever a format keeps it (Pillow's `exif_transpose`).
- Broken metadata cost no pixel: what can be read of them counts, and the file's name is noted.
- Grey is repeated, alpha dropped, 16-bit grey is divided by 257 (or scaled by `bits`), float lies in [0, 1]. Colour
  files of 16 bits give their high byte.
- Masks go by colour: black is normal. See `decode_mask`.
- Of several frames the first is read, and the file's name is noted.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
from kornia_rs import io as rust
from PIL import Image, UnidentifiedImageError

from adbench.data.contents import hashes
from adbench.data.listing import printable, refuse_names
from adbench.data.notes import KINDS, Notes
from adbench.data.records import Records
from adbench.types import UserError

DECODER = 2  # raise when `decode` or `decode_mask` gives other bytes for the same file
MAX_PIXELS = 200_000_000  # of one image; a file of a few bytes can claim any size
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # what is read, whatever a file is called
BAND = 2**22  # pixels of a large image that are copied at once
ORIENTATION = 0x0112  # the EXIF tag
FLAT = 16  # a black JPEG is one grey level of at most this: half of the coarsest quantisation, 255 / 8
NO_IMAGE = "it is no PNG, JPEG, BMP, TIFF, WEBP, PPM or GIF"

#: What each EXIF orientation asks for, as an operation on (H, W, ...).
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


class Unreadable(UserError):
    """A file that cannot be read. `reason` says why, without the file's name."""

    def __init__(self, what: str, path: Path | str, reason: str) -> None:
        self.what, self.path, self.reason = what, printable(path), reason
        super().__init__(f"cannot read the {what} {self.path}: {reason}; replace or remove the file")

    def __reduce__(self) -> tuple[Any, ...]:
        return Unreadable, (self.what, self.path, self.reason)


class Read(NamedTuple):
    """What was in a file: its pixels, and what was odd about it, as (kind, detail) of `notes.KINDS`."""

    pixels: np.ndarray
    odd: list[tuple[str, str]]
    peak: int | None = None  # the largest value, of a file of 16 bits


# -- the two ways in -------------------------------------------------------------------------------------------------


def decode(path: Path | str, bits: int = 16, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W, 3) uint8 of an image file, by the rules above; what is odd about the file is a warning with its name.

    Args:
        path: of the file.
        bits: of what a file of 16-bit values holds, 8 to 31: 2^bits - 1 is white. 12 for a 12-bit camera.
        max_pixels: larger images are refused.

    Raises:
        UserError: the file cannot be read as an image; the message names it.
    """
    read = read_image(path, bits, max_pixels)
    for kind, _ in read.odd:
        warnings.warn(f"{printable(path)} is one of the {KINDS[kind]}", stacklevel=2)
    return read.pixels


def decode_mask(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) bool, True where a mask file is not black.

    - Palette images go by their palette's colours, whatever their numbers.
    - JPEG and lossy WEBP, whose black is noisy, are anomalous above half. If no pixel lies above half the file is
      refused: a mask of 0 and 1 does not survive these formats. One flat level up to 16 is an empty mask.
    - Where transparency varies, what cannot be seen is normal. If nothing anomalous remains the file is refused: black
      on transparent says nothing of which is meant.

    Args:
        path: of the file.
        max_pixels: larger masks are refused.

    Raises:
        UserError: the file cannot be read as a mask; the message names it.
    """
    return read_mask(path, max_pixels).pixels


def read_image(path: Path | str, bits: int = 16, max_pixels: int = MAX_PIXELS) -> Read:
    """`decode` with what is odd about the file; arguments and errors as there."""
    with _named("image", path), Path(path).open("rb") as file:
        head = _png_head(file)
        if head is not None and _is_plain(head, file):
            _refuse_size(head.width, head.height, max_pixels)
            plain = _by_rust(path, "mono" if head.colour == 0 else "rgb")
            if plain is not None:
                return Read(plain, [])
        deep = _deep_colour(head, path) if bits != 16 else None
        image, turn, odd = _loaded(file, max_pixels)
        peak = None
        if deep is not None:
            pixels, peak = scaled(deep, bits), int(deep.max())
        elif image.mode == "I" or image.mode.startswith("I;16"):
            values = np.asarray(image)
            pixels = scaled(values, 16 if image.format == "PPM" else bits)  # Pillow has scaled a PPM to 16 bits
            peak = int(values.max()) if image.format != "PPM" else None
        else:
            if _is_deep_colour(head, image):
                if bits != 16:
                    raise ValueError(
                        f"a colour file of 16 bits gives 8 of them; data.bits={bits} needs grey or RGB PNG"
                    )
                odd.append(("high_byte", ""))
            pixels = _bytes(image)
        image.close()
        del image
        return Read(_three(TURNS[turn](pixels)), odd, peak)


def read_mask(path: Path | str, max_pixels: int = MAX_PIXELS) -> Read:
    """`decode_mask` with what is odd about the file; arguments and errors as there."""
    with _named("mask", path), Path(path).open("rb") as file:
        head = _png_head(file)
        image, turn, odd = _loaded(file, max_pixels)
        deep = _deep_colour(head, path)
        if deep is not None:
            pixels = (deep != 0).any(axis=-1)
        else:
            pixels = _anomalous(image, _is_lossy(image, file))
            if _is_deep_colour(head, image) and not pixels.any():
                raise ValueError("a colour file of 16 bits, all black in its high byte; save it with 8 bits")
        return Read(np.ascontiguousarray(TURNS[turn](pixels)), odd)


def pixels_of(image: Image.Image, bits: int = 16) -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image, by the same rules.

    Args:
        image: of any mode.
        bits: see `decode`.

    Raises:
        UserError: its values are no image's, or its file is broken.
    """
    with _named("image", getattr(image, "filename", "") or "that was given as a PIL image"):
        # Pillow maps an uncompressed TIFF into memory by its name, which mixes up the rows of one that is to be turned.
        if image.format == "TIFF" and getattr(image, "tile", None) and image.filename and not image.tell():  # type: ignore[attr-defined]
            return decode(image.filename, bits)  # type: ignore[attr-defined]
        image.load()
        turn, whole = _orientation(image)
        if not whole:
            warnings.warn("a PIL image has broken metadata, which may have said how it is turned", stacklevel=3)
        deep = image.mode == "I" or image.mode.startswith("I;16")
        pixels = scaled(np.asarray(image), bits) if deep and image.format != "PPM" else _bytes(image)
        return _three(TURNS[turn](pixels))


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers 0 .. 2^bits - 1 of any shape -> uint8 0..255, rounded.

    Raises:
        ValueError: a value lies outside.
    """
    white = 2**bits - 1
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(f"values outside 0..{white} ({low}..{high}); data.bits={max(high, 1).bit_length()} fits them")
    return np.rint(values.astype(np.float32 if bits <= 16 else np.float64) / (white / 255)).astype(np.uint8)


def center_crop(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, C) -> (side, side, C): the central square, or as much of it as there is."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


# -- modes -----------------------------------------------------------------------------------------------------------


def _bytes(image: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of an image of any mode but 16-bit ones."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ValueError(f"float values outside [0, 1] ({values.min()}..{values.max()})")
        return np.rint(values * 255).astype(np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return scaled(np.asarray(image), 16)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return _array(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _array(image: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, C) of an image; of a large one in bands, which spares Pillow two more copies of it."""
    width, height = image.size
    if width * height <= BAND:
        return np.asarray(image)
    rows = max(1, BAND // width)
    first = np.asarray(image.crop((0, 0, width, rows)))
    whole = np.empty((height, *first.shape[1:]), first.dtype)
    for top in range(0, height, rows):
        whole[top : top + rows] = np.asarray(image.crop((0, top, width, min(top + rows, height))))
    return whole


def _three(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> (H, W, 3) in one piece that can be written."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    return np.array(pixels, order="C")


def _anomalous(image: Image.Image, lossy: bool) -> np.ndarray:
    """(H, W) bool of a mask of any mode; see `decode_mask`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are no numbers")
        return values != 0
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return _above_half(_array(image), image.format) if lossy else _array(image) != 0
    index = np.asarray(image) if image.mode == "P" else None
    see_through = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    channels = np.asarray(image.convert("RGBA" if see_through else "RGB"))
    brightest = channels[..., :3].max(axis=-1)
    shape = _above_half(brightest, image.format) if lossy else brightest != 0
    varies = index is not None and index.min() != index.max()
    if see_through:
        alpha = channels[..., 3]
        if alpha.min() != alpha.max():
            shape, varies = shape & (alpha > (127 if lossy else 0)), True
    if varies and not shape.any():
        raise ValueError(
            "all that can be seen in it is black, and transparency or palette numbers alone differ; save it with the "
            "anomaly in white on black"
        )
    return shape


def _above_half(brightest: np.ndarray, name: str | None) -> np.ndarray:
    top = int(brightest.max())
    if top > 127:
        return brightest > 127
    if top <= FLAT and top == brightest.min():
        return np.zeros(brightest.shape, dtype=bool)
    raise ValueError(
        f"its brightest value is {top} of 255, and {name} does not keep so small differences; save the mask as PNG"
    )


def _is_lossy(image: Image.Image, file: BinaryIO) -> bool:
    if image.format == "WEBP":
        file.seek(0)
        content = file.read()
        place, lossless = 12, False
        while place + 8 <= len(content):
            lossless |= content[place : place + 4] == b"VP8L"
            place += 8 + (struct.unpack_from("<I", content, place + 4)[0] + 1) // 2 * 2
        return not lossless
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


# -- opening ---------------------------------------------------------------------------------------------------------

_pillow = threading.Lock()
_limits: list[int | None] = []  # Pillow's limit of pixels, once for each file that is being read


@contextmanager
def _unlimited() -> Iterator[None]:
    """Pillow's limit, which some of its decoders warn of, some refuse by and some do not know, out of the way."""
    with _pillow:
        _limits.append(_limits[0] if _limits else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _pillow:
            limit = _limits.pop()
            if not _limits:
                Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _named(what: str, path: Path | str) -> Iterator[None]:
    """Whatever a decoder raises names the file. The limit of pixels is ours, not Pillow's."""
    try:
        with _unlimited():
            yield
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable(what, path, NO_IMAGE) from None
    except FileNotFoundError:
        link = Path(path).is_symlink()
        raise Unreadable(
            what, path, "a link to a file that is not there" if link else "there is no such file"
        ) from None
    except Exception as error:  # decoders raise struct.error, KeyError, OverflowError, zlib.error, ...
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise Unreadable(what, path, reason) from error


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Pillow's warnings, which name no file, as a list."""
    with _pillow, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _loaded(file: BinaryIO, max_pixels: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
    """(image with its pixels, orientation 1..8, what is odd). Metadata that break a decoder are taken out."""
    file.seek(0)
    try:
        image = _opened(file, max_pixels)
        image.load()
        turn, whole = _orientation(image)
    except (MemoryError, TooLarge):
        raise
    except Exception:
        found = _without_metadata(file, max_pixels)
        if found is None:
            raise
        (image, turn), whole = found, False
    odd = [] if whole else [("broken_metadata", "")]
    if getattr(image, "is_animated", False):
        odd.append(("multi_frame", ""))
    return image, turn, odd


class TooLarge(ValueError):
    """More pixels than are allowed."""


def _refuse_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(
            f"{width}x{height} pixels are more than the limit of {max_pixels:,}; data.max_pixels={width * height} "
            "(--max-pixels of predict) reads it"
        )


def _opened(file: BinaryIO, max_pixels: int) -> Image.Image:
    with _quiet():
        image = Image.open(file, formats=FORMATS)
    _refuse_size(*image.size, max_pixels)
    return image


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """(EXIF orientation 1..8 of an image that is loaded, whether the metadata could be read)."""
    keys = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
    if not any(key in image.info for key in keys) and image.format != "TIFF" and not image.getexif():
        return 1, True
    with _quiet() as caught:
        whole = True
        try:
            if "exif" in image.info:
                exif = Image.Exif()  # `getexif` says nothing of what has broken before
                exif.load(image.info["exif"])
                exif.tobytes()
        except Exception:
            whole = False
        try:
            value = image.getexif().get(ORIENTATION, 1)
        except Exception:
            return 1, False
    known = [turn for turn in TURNS if turn == value]
    return (known[0] if known else 1), whole and not caught


def _without_metadata(file: BinaryIO, max_pixels: int) -> tuple[Image.Image, int] | None:
    """(image, orientation) of a PNG, JPEG or TIFF with no more than its pixels need; None where that fails as well."""
    file.seek(0)
    content = file.read()
    try:
        if content.startswith(PNG):
            image = _opened(io.BytesIO(_bare_png(content)), max_pixels)
        elif content.startswith(b"\xff\xd8"):
            image = _opened(io.BytesIO(_bare_jpeg(content)), max_pixels)
        else:
            image = _opened(io.BytesIO(content), max_pixels)
            if image.format != "TIFF":
                return None
            # Pillow turns a TIFF as the last step of loading it, where broken tags stop it.
            value: Any = image.tag_v2.get(ORIENTATION, 1)  # type: ignore[attr-defined]
            image.load_end = lambda: None  # type: ignore[attr-defined]
            image._size = image._tile_size  # type: ignore[attr-defined]
            image.load()
            return image, value if value in TURNS else 1
        image.load()
    except MemoryError:
        raise
    except Exception:
        return None
    return image, 1


# -- PNG and JPEG, piece by piece ------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that change neither pixels nor orientation, in the Rust decoder as in Pillow's.
HARMLESS = (b"IHDR", b"IDAT", b"IEND", b"PLTE", b"pHYs", b"tIME", b"sRGB", b"cHRM", b"gAMA", b"iCCP", b"bKGD", b"sBIT",
            b"hIST", b"cICP", b"mDCV", b"cLLI")  # fmt: skip
TEXT = (b"tEXt", b"zTXt", b"iTXt")


class _PngHead(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int
    interlaced: int


def _png_head(file: BinaryIO) -> _PngHead | None:
    file.seek(0)
    head = file.read(29)
    if len(head) < 29 or not head.startswith(PNG) or head[12:16] != b"IHDR":
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", head, 16)
    return _PngHead(width, height, depth, colour, interlaced)


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte, end) of each chunk of a PNG that is there in full."""
    place = len(PNG)
    while place + 12 <= len(content):
        end = place + 12 + struct.unpack_from(">I", content, place)[0]
        if end > len(content):
            return
        yield content[place + 4 : place + 8], place, end
        place = end


def _is_plain(head: _PngHead, file: BinaryIO) -> bool:
    """Whether the Rust decoder, three times as fast as Pillow's, gives what Pillow gives: 8-bit grey or RGB, nothing
    else in the file that could turn it or change a colour."""
    if head.depth != 8 or head.colour not in (0, 2) or head.interlaced:
        return False
    file.seek(0)
    content = file.read()
    for kind, start, end in _chunks(content):
        if kind in TEXT:
            keyword = content[start + 8 : min(end, start + 88)].split(b"\0", 1)[0].lower()
            if b"exif" in keyword or b"xmp" in keyword or keyword.startswith(b"raw profile"):
                return False
        elif kind not in HARMLESS:
            return False
    return True


def _by_rust(path: Path | str, mode: str, deep: bool = False) -> np.ndarray | None:
    """(H, W, 3) of a PNG by the Rust decoder; None for what it does not read."""
    read = rust.read_image_png_u16 if deep else rust.read_image_png_u8
    try:
        image = np.asarray(read(str(path), mode))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # its panics are no Exception; Pillow reads the file or says what is wrong
        return None
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _deep_colour(head: _PngHead | None, path: Path | str) -> np.ndarray | None:
    """(H, W, 3) uint16 of an RGB PNG of 16 bits, of which Pillow gives the high byte alone."""
    if head is None or (head.depth, head.colour, head.interlaced) != (16, 2, 0):
        return None
    return _by_rust(path, "rgb", deep=True)


def _is_deep_colour(head: _PngHead | None, image: Image.Image) -> bool:
    """Whether Pillow has read the high byte alone."""
    if head is not None:
        return head.depth == 16 and head.colour != 0
    if image.format != "TIFF":
        return False
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    return image.mode not in ("I", "F") and not image.mode.startswith("I;16") and max(np.atleast_1d(bits)) > 8


def _bare_png(content: bytes) -> bytes:
    """A PNG without its ancillary chunks but transparency."""
    kept = [content[start:end] for kind, start, end in _chunks(content) if kind[:1].isupper() or kind == b"tRNS"]
    return PNG + b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes:
    """A JPEG without its comments and application segments but those that say what its colours mean."""
    kept, place = [content[:2]], 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a filling byte
            place += 1
            continue
        if marker == 0xDA:  # the pixels
            break
        end = place + 2 + struct.unpack_from(">H", content, place + 2)[0]
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(content[place:end])
        place = end
    return b"".join([*kept, content[place:]])


# -- a data set of files ---------------------------------------------------------------------------------------------


class ImageFiles:
    """A source whose rows are files below `root`.

    Args:
        root: the folder.
        records: the rows, with paths relative to it.
        bits, max_pixels: see `decode`.
        unreadable: "refuse" or "skip": whether files that cannot be read stop the run, all of them named at once, or
            are left out and counted.
        notes: what was odd while the folder was listed.

    Raises:
        UserError: a word or number is out of its range, or a file's name is no UTF-8.
    """

    array: ClassVar[np.ndarray | None] = None
    features: ClassVar[np.ndarray | None] = None
    cache_dir: Path | str | None = None  # where the hashes of files are remembered; the data module says where

    def __init__(
        self,
        root: Path,
        records: Records,
        bits: int = 16,
        max_pixels: int = MAX_PIXELS,
        unreadable: str = "refuse",
        notes: Notes | None = None,
    ) -> None:
        if unreadable not in ("refuse", "skip"):
            raise UserError(f"data.unreadable is refuse or skip, got {unreadable}")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 8 <= bits <= 31:
            raise UserError(f"data.bits is a whole number from 8 to 31, got {bits}")
        if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
            raise UserError(f"data.max_pixels is a whole number of at least 1, got {max_pixels}")
        self.root, self.bits, self.max_pixels, self.unreadable = root, bits, max_pixels, unreadable
        self.notes = Notes()  # of what is read
        self._listing = notes or Notes()
        self._use(records)

    def _use(self, records: Records) -> None:
        refuse_names([*records.path, *records.mask], self.root)
        self.records = records
        self.has_masks = bool((records.mask != "").any())

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The reasons for which files of the folder have no part, and their names."""
        return self._listing.left_out()

    def read_image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8, see `decode`; what is odd about the file goes into `notes`.

        Raises:
            Unreadable: the file cannot be read as an image.
        """
        name = str(self.records.path[row])
        read = read_image(self.root / name, self.bits, self.max_pixels)
        if read.peak is not None and self.bits == 16:
            self.notes.add_peak(read.peak)
        return self._noted(name, read)

    def read_mask(self, row: int) -> np.ndarray:
        """(H, W) bool, True where anomalous, see `decode_mask`; what is odd about the file goes into `notes`.

        Raises:
            Unreadable: the file cannot be read as a mask.
        """
        name = str(self.records.mask[row])
        return self._noted(name, read_mask(self.root / name, self.max_pixels))

    def _noted(self, name: str, read: Read) -> np.ndarray:
        for kind, detail in read.odd:
            self.notes.add(kind, name, detail)
        return read.pixels

    def report(self) -> dict[str, Any]:
        """What was odd while the folder was listed; empty if nothing was."""
        return self._listing.report()

    def leave_out(self, unreadable: Mapping[str, str]) -> np.ndarray:
        """Go on without some images.

        Args:
            unreadable: path in the records -> reason.

        Returns:
            (n,) int64: of each row that is kept, the number that it had.

        Raises:
            UserError: no image is left, or the rest makes no data set.
        """
        before = {str(path): row for row, path in enumerate(self.records.path)}
        self._use(self._without(self.records, unreadable))
        for path, reason in unreadable.items():
            self._listing.add("unreadable", path, reason)
        return np.array([before[str(path)] for path in self.records.path], dtype=np.int64)

    def _without(self, records: Records, left_out: Mapping[str, str]) -> Records:
        """The records that a folder without these images would have."""
        records = records.of_rows(np.flatnonzero(~np.isin(records.path, list(left_out))))
        if not len(records):
            raise UserError(f"no image in {printable(self.root)} can be read")
        return records

    def fingerprint(self) -> str:
        """Of what the files hold, of their names below the root, and of how they are decoded; where the root lies is no
        part."""
        pairs = list(zip(self.records.path.tolist(), self.records.mask.tolist(), strict=True))
        found = hashes(self.root, (name for pair in pairs for name in pair if name), self.cache_dir)
        reading = "".join(
            f" {name} {value}"
            for name, value, default in (("bits", self.bits, 16), ("max_pixels", self.max_pixels, MAX_PIXELS))
            if value != default
        )
        digest = hashlib.sha256(f"decoder {DECODER}{reading}".encode())
        for path, mask in pairs:
            line = f"\n{path}\0{found[path]}\0{mask}\0{found.get(mask, '')}"
            digest.update(line.encode(errors="surrogateescape"))  # a name need not be text
        return digest.hexdigest()[:32]

"""Images decoded and resized once, kept as bytes in a file that all jobs and loader workers map into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from scipy import ndimage
from torch.nn import functional as F
from tqdm import tqdm

from adbench.data.images import Unreadable
from adbench.data.notes import Notes
from adbench.data.records import Source
from adbench.transforms.image import resize_nearest, resized_bytes, resized_large
from adbench.types import UserError

VERSION = 3  # raise when the same source and size would give other bytes
HASH = 16  # bytes of the hash of an image's pixels
NAMED = 20  # files that a message names
LARGE = 2**24  # values of an image that are held as float64 at once: 128 MiB
CHUNK = 256  # rows resized together where a source lies in memory

Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # of the arrays by name


class Rows:
    """The rows of an array in a .npy file, mapped into memory where they are first read.

    It travels to a loader's worker as a path, not as the gigabytes behind it.

    Args:
        path: of the file.
        places: the file's rows that count, in order; None for all.
    """

    def __init__(self, path: Path, places: np.ndarray | None = None) -> None:
        self.path, self.places = path, places
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "places": self.places, "_array": None}

    @property
    def array(self) -> np.ndarray:
        if self._array is None:
            self._array = np.asarray(np.load(self.path, mmap_mode="r"))
        return self._array

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows if self.places is None else self.places[rows]]

    def __len__(self) -> int:
        return len(self.array if self.places is None else self.places)


class Entry(NamedTuple):
    """All of a source at one size."""

    images: Rows  # (N, C, H, W) uint8, C 1 or 3
    masks: Rows | None  # (M, H, W) bool of the M rows that have one, in order of rows; None without masks
    pixels: Rows  # (N, 16) uint8: a hash of each image's pixels as they were read, before any resizing


def cached(source: Source, size: tuple[int, int], cache_dir: Path | str) -> tuple[Rows, Rows | None]:
    """All of a source's images and masks at one size; see `entry`."""
    found = entry(source, size, cache_dir)
    return found.images, found.masks


def entry(source: Source, size: tuple[int, int], cache_dir: Path | str) -> Entry:
    """All of a source's images, masks and hashes of pixels at one size, from the cache or into it.

    The key is the source's content: data that moved, or that lie in two places, are read once.
    What was odd about the files is added to the source's `report`; files that it is to skip leave its records.

    Raises:
        UserError: a file is broken or changes while it is read, a mask does not fit its image, or the cache cannot be
            written.
    """
    source.cache_dir = cache_dir
    folder = Path(cache_dir).expanduser() / "images"
    fingerprint = source.fingerprint()
    masked = np.flatnonzero(source.records.mask != "")
    shapes = _shapes(source, size)
    key, paths, meta = _files(folder, fingerprint, size, shapes)
    if not _whole(meta, paths, shapes):
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{key}.lock"):
                if not _whole(meta, paths, shapes):  # another job may have written it while this one waited
                    _build(source, fingerprint, size, masked, paths, shapes, meta)
    noted = json.loads(meta.read_text())
    found = Entry(Rows(paths["images"]), Rows(paths["masks"]) if len(masked) else None, Rows(paths["pixels"]))
    source.read_report = noted.get("report", {})
    if noted.get("unreadable"):
        if not _skips(source):
            raise _refusal([f"{path}: {reason}" for path, reason in noted["unreadable"].items()])
        found.images.places = found.pixels.places = source.leave_out(noted["unreadable"])
        if found.masks is not None:
            kept = found.images.places[source.records.mask != ""]
            found.masks.places = np.searchsorted(masked, kept)
    return found


def missing(source: Source, size: tuple[int, int], cache_dir: Path | str) -> int:
    """Bytes that `entry` would write: 0 where it is there already. Nothing is written.

    Args:
        source: its own `cache_dir` is where the hashes of its files are remembered.
        size, cache_dir: see `entry`.
    """
    shapes = _shapes(source, size)
    folder = Path(cache_dir).expanduser() / "images"
    if folder.is_dir():
        _, paths, meta = _files(folder, source.fingerprint(), size, shapes)
        if _whole(meta, paths, shapes):
            return 0
    return sum(int(np.prod(shape)) for shape, _ in shapes.values())


def _shapes(source: Source, size: tuple[int, int]) -> Shapes:
    rows, channels = len(source.records), 3 if source.array is None else source.array.shape[-1]
    masked = int(np.count_nonzero(source.records.mask != ""))
    shapes: Shapes = {
        "images": ((rows, channels, *size), np.dtype(np.uint8)),
        "pixels": ((rows, HASH), np.dtype(np.uint8)),
    }
    return shapes | ({"masks": ((masked, *size), np.dtype(bool))} if masked else {})


def _files(folder: Path, fingerprint: str, size: tuple[int, int], shapes: Shapes) -> tuple[str, dict[str, Path], Path]:
    """An entry's key, its arrays' files by name, and the file that tells that they are whole."""
    key = hashlib.blake2b(f"{fingerprint} {size} {VERSION}".encode(), digest_size=12).hexdigest()
    return key, {name: folder / f"{key}.{name}.npy" for name in shapes}, folder / f"{key}.json"


def _whole(meta: Path, paths: dict[str, Path], shapes: Shapes) -> bool:
    """Whether the files are there, of the right shape and type, and hold the bytes that were written."""
    try:
        written = json.loads(meta.read_text())
        for name, path in paths.items():
            array = np.load(path, mmap_mode="r")
            if (array.shape, array.dtype) != shapes[name] or written[name] != _sample(path):
                return False
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return False
    return True


def _sample(path: Path) -> list[int]:
    """Size and a checksum of the ends and of 64 places between them: cheap for any size, and a hole is noticed."""
    size, checksum, block = path.stat().st_size, 0, 4096
    with path.open("rb") as file:
        for place in range(65):
            file.seek(max(0, size - block) * place // 64)
            checksum = zlib.crc32(file.read(block), checksum)
    return [size, checksum]


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the image cache in {folder}: {error.strerror or error}; free space there, or choose another "
            "place with cache_dir=DIR or ADBENCH_CACHE"
        ) from error


def _build(
    source: Source,
    fingerprint: str,
    size: tuple[int, int],
    masked: np.ndarray,
    paths: dict[str, Path],
    shapes: Shapes,
    meta: Path,
) -> None:
    needed = sum(int(np.prod(shape)) for shape, _ in shapes.values())
    free = shutil.disk_usage(meta.parent).free
    if needed > free:
        raise UserError(
            f"the image cache needs {needed / 2**20:,.0f} MiB in {meta.parent} and {free / 2**20:,.0f} MiB are free; "
            "free space there, or choose another place with cache_dir=DIR or ADBENCH_CACHE"
        )
    # The names are fixed and the lock is held, so what a killed job has left is overwritten, not added to.
    temporary = {name: path.with_suffix(".part") for name, path in paths.items()}
    meta.unlink(missing_ok=True)
    notes = Notes()
    try:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(path.open("wb")) for name, path in temporary.items()}
            starts = {name: _header(files[name], *shapes[name]) for name in files}

            def put(name: str, place: int, rows: np.ndarray) -> None:
                """Write rows where they belong; unlike a store to mapped memory it can report a full disk."""
                rows = np.ascontiguousarray(rows)
                content = rows.data.cast("B")
                offset = starts[name] + place * (rows.nbytes // len(rows))
                while content:
                    done = os.pwrite(files[name].fileno(), content, offset)
                    content, offset = content[done:], offset + done

            unreadable = _fill(source, size, masked, put, notes)
            if source.fingerprint() != fingerprint:
                raise UserError(
                    f"files below {getattr(source, 'root', 'the data root')} changed while they were read; wait until "
                    "they are all there, then type the same command again"
                )
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        samples = {name: _sample(path) for name, path in temporary.items()}
        for name, path in temporary.items():
            path.replace(paths[name])
        part = meta.with_suffix(".part")
        part.write_text(json.dumps({**samples, "report": notes.report(), "unreadable": unreadable}))
        part.replace(meta)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    return file.tell()


def _fill(source: Source, size: tuple[int, int], masked: np.ndarray, put: Any, notes: Notes) -> dict[str, str]:
    """Read and write every row; returns what could not be read where the source skips that, by path with the reason."""
    place_of_mask = {int(row): place for place, row in enumerate(masked)}
    total = len(source.records)
    source.notes = notes

    def whole_image(row: int) -> None:
        image = source.read_image(row)
        put("images", row, resized(image[None], size))
        put("pixels", row, pixel_hashes(image[None]))
        if row in place_of_mask:
            put_mask(row, image.shape[:2])

    def put_mask(row: int, expected: tuple[int, ...]) -> None:
        mask = source.read_mask(row)
        if mask.shape != tuple(expected):
            path, of = source.records.mask[row], source.records.path[row]
            raise UserError(
                f"the mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels and its image {of} is "
                f"{expected[1]}x{expected[0]}; a mask must have its image's size (below {getattr(source, 'root', '')})"
            )
        small = resize_nearest(torch.from_numpy(np.array(mask))[None, None], size)[0].numpy()
        if source.records.label[row]:
            _note_mask(notes, str(source.records.mask[row]), mask, small[0])
        put("masks", place_of_mask[row], small)

    bar = tqdm(total=total, desc="Reading images", unit="image", delay=2, leave=False, disable=None)
    with bar:
        if source.array is not None:
            for start in range(0, total, CHUNK):
                chunk = source.array[start : start + CHUNK]
                put("images", start, resized(chunk, size))
                put("pixels", start, pixel_hashes(chunk))
                bar.update(len(chunk))
            for row in place_of_mask:
                put_mask(row, source.array.shape[1:3])
            return {}
        failed: dict[int, UserError] = {}
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(_cores(), initializer=torch.set_num_threads, initargs=(1,))
        try:
            for row, future in enumerate([pool.submit(whole_image, row) for row in range(total)]):
                try:
                    future.result()
                except UserError as error:
                    failed[row] = error.with_traceback(None)  # which would keep the file's content in memory
                bar.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # in builds without OpenMP the number is the process's
    return _skipped(source, failed, size, place_of_mask, put)


def _skipped(
    source: Source, failed: dict[int, UserError], size: tuple[int, int], place_of_mask: dict[int, int], put: Any
) -> dict[str, str]:
    """Paths and reasons of rows that a source skips, which become black in the file.

    Raises:
        UserError: naming all files that are not to be skipped.
    """
    refused = [error for error in failed.values() if not (_skips(source) and isinstance(error, Unreadable))]
    if len(refused) == 1:
        hint = "; data.unreadable=skip leaves it out" if isinstance(refused[0], Unreadable) else ""
        raise UserError(f"{refused[0]}{hint}")
    if refused:
        raise _refusal([f"{e.path}: {e.reason}" if isinstance(e, Unreadable) else str(e) for e in refused])
    for row in failed:
        put("images", row, np.zeros((1, 3, *size), np.uint8))
        if row in place_of_mask:
            put("masks", place_of_mask[row], np.zeros((1, *size), bool))
    return {
        str(source.records.path[row]): error.reason if error.what == "image" else f"its {error.what}: {error.reason}"
        for row, error in failed.items()
        if isinstance(error, Unreadable)
    }


def _skips(source: Source) -> bool:
    return getattr(source, "unreadable", "refuse") == "skip"


def _refusal(files: list[str]) -> UserError:
    more = f"; and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return UserError(
        f"{len(files)} files cannot be used: {'; '.join(files[:NAMED])}{more}. Replace or remove them; "
        "data.unreadable=skip leaves out those that cannot be read"
    )


def _note_mask(notes: Notes, name: str, mask: np.ndarray, small: np.ndarray) -> None:
    """Note what the working size does to a mask of an anomalous image: (H, W) bool before and after."""
    if not mask.any():
        notes.add("masks_empty", name)
        return
    if not small.any():
        notes.add("masks_empty_at_working_size", name)
    neighbours = np.ones((3, 3))
    regions, before = ndimage.label(mask, neighbours)
    rows, columns = (
        F.interpolate(torch.arange(was, dtype=torch.float64)[None, None], size=now, mode="nearest-exact")[0, 0].long()
        for was, now in zip(mask.shape, small.shape, strict=True)
    )
    left = np.unique(regions[np.ix_(rows.numpy(), columns.numpy())])
    after = ndimage.label(small, neighbours)[1]
    notes.add_regions(name, before, after, before - int((left > 0).sum()))


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(B, H, W, C) uint8 -> (B, C, *size) uint8, resized with antialias and rounded once."""
    image = torch.from_numpy(images if images.flags.writeable else np.array(images)).permute(0, 3, 1, 2)
    if tuple(image.shape[-2:]) != size:
        rows = max(1, LARGE // image[:, :, 0].numel())
        image = resized_large(image, size, rows) if rows < image.shape[-2] else resized_bytes(image.contiguous(), size)
    return image.contiguous().numpy()


def pixel_hashes(images: np.ndarray) -> np.ndarray:
    """(B, H, W, C) uint8 -> (B, 16) uint8: the same for the same pixels in the same shape."""
    shape = str(images.shape[1:]).encode()
    digests = [hashlib.sha256(shape + image.tobytes()).digest()[:HASH] for image in images]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, HASH)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

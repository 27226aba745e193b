"""Where decoded rows go while a data set is read: into files that a killed job leaves for the next, or into memory."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np

from adbench.data.notes import Notes
from adbench.files import sync

Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # of the arrays by name
Spans = dict[str, tuple[int, int]]  # of each array, its first row and the one behind its last
BLOCK = 2**20  # bytes that are read at once to be checked


class Store(Protocol):
    """What takes rows, from several threads at once."""

    def put(self, name: str, place: int, rows: np.ndarray) -> None:
        """Keep rows (n, ...) of the array of that name, from row `place` on."""

    def done(self, spans: Spans, notes: Notes) -> None:
        """These rows are complete, and `notes` are what was odd about them."""

    def known(self, spans: Spans) -> Notes | None:
        """What was odd about rows that are there already; None for rows that are to be read."""


class Memory:
    """Arrays of this process, see `Store`. Rows of arrays that it lacks are dropped."""

    def __init__(self, shapes: Shapes) -> None:
        self.arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def put(self, name: str, place: int, rows: np.ndarray) -> None:
        if name in self.arrays:
            self.arrays[name][place : place + len(rows)] = rows

    def done(self, spans: Spans, notes: Notes) -> None: ...

    def known(self, spans: Spans) -> Notes | None:
        return None


class Files:
    """A `Store`: one .npy file for each array, beside its final place, and a journal of the rows that are complete.

    A job that is killed, or stopped by a signal, leaves both, and the next job of the same data goes on. It believes
    the journal only where the bytes in the files have the checksums that stand there, so that nothing need be forced to
    the disk before the end. Whatever else ends the writing removes them. The caller holds a lock.

    Args:
        paths: the final places.
        shapes: of the arrays; they are the same whenever the paths are.
    """

    def __init__(self, paths: Mapping[str, Path], shapes: Shapes) -> None:
        self.paths, self.shapes = paths, shapes
        self.parts = {name: path.with_suffix(".part") for name, path in paths.items()}
        first = next(iter(paths.values()))
        self.journal = first.with_name(f"{first.name.partition('.')[0]}.journal.part")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Files:
        self._known = {tuple(line["spans"].items()): line for line in self._lines()}
        self._files: dict[str, BinaryIO] = {}
        for name, path in self.parts.items():
            mode = "r+b" if self._known and path.exists() else "w+b"
            self._files[name] = self._stack.enter_context(path.open(mode))  # type: ignore[assignment]
        self._starts = {name: _header(file, *self.shapes[name]) for name, file in self._files.items()}
        self._journal = self._stack.enter_context(self.journal.open("a", encoding="utf-8"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()
        if kind is not None and not issubclass(kind, Exception):
            return  # stopped by a signal
        for path in (*self.parts.values(), self.journal):
            path.unlink(missing_ok=True)

    def written(self) -> int:
        """Bytes of the disk that a job which was killed has taken already."""
        if not self.journal.exists():
            return 0
        return sum(path.stat().st_blocks * 512 for path in self.parts.values() if path.exists())

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The journal of a job that was killed, up to where it is torn."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            for text in self.journal.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                line["spans"] = {name: tuple(span) for name, span in line["spans"].items()}
                yield {key: line[key] for key in ("spans", "sums", "notes")}

    def put(self, name: str, place: int, rows: np.ndarray) -> None:
        """Write rows (n, ...) where they belong; unlike a store to mapped memory it can report a full disk.

        Raises:
            OSError: the disk is full.
        """
        rows = np.ascontiguousarray(rows)
        content = rows.data.cast("B")
        offset = self._starts[name] + place * (rows.nbytes // len(rows))
        while content:
            written = os.pwrite(self._files[name].fileno(), content, offset)
            content, offset = content[written:], offset + written

    def done(self, spans: Spans, notes: Notes) -> None:
        line = {"spans": spans, "sums": self._sums(spans), "notes": notes.state()}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def known(self, spans: Spans) -> Notes | None:
        line = self._known.get(tuple(spans.items()))
        if line is None or line["sums"] != self._sums(spans):
            return None
        try:
            return Notes.of_state(line["notes"])
        except (KeyError, TypeError, ValueError):
            return None

    def _sums(self, spans: Spans) -> dict[str, int]:
        return {name: self._sum(name, *span) for name, span in spans.items()}

    def _sum(self, name: str, first: int, stop: int) -> int:
        """Checksum of rows as they are in the file; of as many as there are."""
        shape, dtype = self.shapes[name]
        row = int(np.prod(shape[1:])) * dtype.itemsize
        place, end = (self._starts[name] + row * number for number in (first, stop))
        checksum = 0
        while place < end:
            block = os.pread(self._files[name].fileno(), min(BLOCK, end - place), place)
            if not block:
                return -1
            checksum, place = zlib.crc32(block, checksum), place + len(block)
        return checksum

    def finish(self) -> None:
        """Bring everything to the disk and to its final place."""
        for file in self._files.values():
            file.flush()
            sync(file.fileno())
        for name, path in self.parts.items():
            path.replace(self.paths[name])


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    return file.tell()

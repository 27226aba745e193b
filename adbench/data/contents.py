"""Which bytes files hold: hashed once, remembered beside the image cache, and read again only when they may differ.

A file counts as unchanged while its size, modification time, change time, inode and device are those at which it was
hashed. The change time is the system's own: `mv`, `cp -p` and unpacking with old times set it, whatever they do to the
modification time. (Windows has none; there a file is as old as its modification time.)

A change within the same tick of the file system's clock as the hashing would leave all of these as they are, so a file
that had changed just before it was hashed is hashed again the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from adbench.files import Lock, write_text

VERSION = 1  # raise when an index of before must not be trusted
SECOND = 1_000_000_000
TOGETHER = 64  # files that a thread takes at once
UNREADABLE = "unreadable"  # stands for the hash of a file that cannot be opened: decoding it says what is wrong


class Entry(NamedTuple):
    """A file as it was when it was hashed. All times are nanoseconds since 1970."""

    size: int
    modified: int
    changed: int
    inode: int
    device: int
    hashed: int  # when the reading began
    digest: str  # sha256, hexadecimal

    def holds(self, state: os.stat_result) -> bool:
        """Whether a file in this state holds the bytes that were hashed."""
        clock = self.modified if os.name == "nt" else self.changed
        tick = 2 * SECOND if clock % SECOND == 0 else SECOND // 10  # whole seconds: a coarse file system
        return self[:5] == _state(state) and clock + tick < self.hashed


def hashes(root: Path, names: Iterable[str], cache_dir: Path | str | None) -> dict[str, str]:
    """The sha256 of each file below `root`, by name.

    Args:
        root: the folder that the names are relative to.
        names: of files; a file that cannot be opened gets `UNREADABLE`.
        cache_dir: where hashes are remembered, one file for each root; None reads every file.

    Returns:
        name -> 64 hexadecimal digits, or `UNREADABLE`.
    """
    names = list(dict.fromkeys(names))
    if cache_dir is None:
        return {name: entry.digest for name, entry in _hashed(root, names).items()}
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    path = Path(cache_dir).expanduser() / "contents" / f"{place}.json"
    found = _unchanged(root, names, _read(path))
    if len(found) < len(names):
        with _lock(path):
            known = _read(path)  # another job may have hashed the files while this one waited
            found = _unchanged(root, names, known)
            new = _hashed(root, [name for name in names if name not in found])
            found |= {name: entry.digest for name, entry in new.items()}
            new = {name: entry for name, entry in new.items() if entry.digest != UNREADABLE}
            if new:
                _write(path, root, known | new)
    return found


def _state(state: os.stat_result) -> tuple[int, int, int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev


def _unchanged(root: Path, names: Sequence[str], known: dict[str, Entry]) -> dict[str, str]:
    """The digests of the files that are as they were; one that cannot be looked at is left out."""
    folder, found = os.fspath(root), {}
    for name in names:
        entry = known.get(name)
        with contextlib.suppress(OSError):
            if entry is not None and entry.holds(os.stat(f"{folder}{os.sep}{name}")):  # noqa: PTH116 - thousands a start
                found[name] = entry.digest
    return found


def _hashed(root: Path, names: Sequence[str]) -> dict[str, Entry]:
    """Read files in threads; hashing releases the interpreter."""
    if not names:
        return {}

    def read(name: str) -> Entry:
        now = time.time_ns()
        try:
            with (root / name).open("rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                return Entry(*_state(state), now, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError:
            return Entry(0, 0, 0, 0, 0, now, UNREADABLE)

    parts = [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
    found: dict[str, Entry] = {}
    bar = tqdm(total=len(names), desc="Looking at files", unit="file", delay=2, leave=False, disable=None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with bar, ThreadPoolExecutor(cores) as pool:
        for part, entries in zip(parts, pool.map(lambda part: [read(name) for name in part], parts), strict=True):
            found |= zip(part, entries, strict=True)
            bar.update(len(part))
    return found


def _read(path: Path) -> dict[str, Entry]:
    """What is remembered; nothing where there is no index, or one that is damaged."""
    try:
        index = json.loads(path.read_text())
        if index["version"] != VERSION:
            return {}
        return {name: Entry(*values) for name, values in index["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, root: Path, entries: dict[str, Entry]) -> None:
    kept = {name: entry for name, entry in entries.items() if os.path.lexists(root / name)}
    try:
        write_text(path, json.dumps({"version": VERSION, "root": str(root.resolve()), "files": kept}))
    except OSError as error:
        warnings.warn(
            f"the hashes of the files in {root} cannot be kept in {path.parent} ({error.strerror or error}): every "
            "start reads all files again; free space there, or choose another place with cache_dir=DIR",
            stacklevel=2,
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One job at a time hashes the files of a root; without a place to write each does so for itself."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(path.with_suffix(".lock")))
        yield

"""How long a run on images that were read before takes to have them: listing, fingerprint and the cache, opened.

The baseline is the same start with the fingerprint by size and time of each file, as it was before content decided: a
stat of every file, and nothing remembered. Both are measured in turns on the same 1,000 PNGs.

    python -m bench warm_start
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adbench.data.cache import entry
from adbench.data.contents import hashes
from adbench.data.folder import Folder
from bench.loader import photographs

IMAGES, DIFFERENT, SIZE, TURNS = 1000, 100, (256, 256), 15


class ByTime(Folder):
    """The same files, known by their sizes and times."""

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self.root.resolve()}".encode(), digest_size=16)
        for name in (*self.records.path, *self.records.mask):
            if name:
                stat = (self.root / str(name)).stat()
                digest.update(f"\n{name} {stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()


def measure() -> list[dict[str, object]]:
    """Seconds of a warm and of a cold start."""
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name) / "images", Path(name) / "cache"
        files = _files(root)
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        time.sleep(0.2)  # the files are older than a tick of the clock, as a user's are
        clock = time.perf_counter()
        hashes(root, [path.relative_to(root).as_posix() for path in files], None)
        hashing = time.perf_counter() - clock
        cold = {kind: _start(kind, root, cache) for kind in (ByTime, Folder)}
        warm: dict[Callable[..., Folder], list[float]] = {ByTime: [], Folder: []}
        for _ in range(TURNS):
            for kind, spent in warm.items():
                spent.append(_start(kind, root, cache))
    before, after = (statistics.median(warm[kind]) for kind in (ByTime, Folder))
    note = (
        f"{IMAGES} PNGs of 1024 px ({megabytes:,.0f} MB) to {SIZE[0]} px on {os.cpu_count()} cores; listing, "
        "fingerprint, cache; baseline: fingerprint by size and time; "
    )
    return [
        {"name": "warm start", "value": round(1000 * after, 1), "unit": "ms", "baseline": round(1000 * before, 1),
         "ratio": round(after / before, 3),
         "note": f"{note}median of {TURNS} turns; at most 1.2"},
        {"name": "cold start", "value": round(cold[Folder], 1), "unit": "s", "baseline": round(cold[ByTime], 1),
         "ratio": round(cold[Folder] / cold[ByTime], 3),
         "note": f"{note}every image decoded; hashing the files alone takes {hashing:.1f} s"},
    ]  # fmt: skip


def _files(root: Path) -> list[Path]:
    """Photographs, and copies of them: what is timed does not depend on which bytes files hold."""
    files = photographs(root, DIFFERENT, DIFFERENT // 20)
    copies = [path.with_name(f"{path.stem}_{k}.png") for path in files for k in range(1, IMAGES // DIFFERENT)]
    for copy in copies:
        shutil.copyfile(copy.with_name(f"{copy.stem[:3]}.png"), copy)
    return files + copies


def _start(kind: Callable[..., Folder], root: Path, cache: Path) -> float:
    clock = time.perf_counter()
    entry(kind(root), SIZE, cache)
    return time.perf_counter() - clock

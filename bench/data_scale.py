"""Many images: what a start, a first batch, an epoch and memory cost, and what of it grows with their number.

    python -m bench data_scale [images=100000] [large=200]

`images` of 32 px in a class layout are hard links to 2,000 different files, `large` ones of 2,048 px to 20: names,
stats, hashes and decoding are paid for each link, only the disk's own reading is not. They lie below the folder for
temporary files. Each start is a process of its own. Times are of the processor, all threads together, so that a busy
machine counts little; the wall's stand in the notes. "Listing" is `os.walk` with an `os.stat` of each file: what no
program on files can do without.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FEW, BATCH = 1000, 64
BEFORE = {"listing": 24.6}  # of 6.9 s against 0.28 s, when paths were compared part by part
#: Where in the cold start the killed job dies, as a share of its images.
KILLED = 0.5


def measure(images: int = 100_000, large: int = 200) -> list[dict[str, Any]]:
    """Rows of starts, epochs, memory and resuming."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        rows = _many(place, images)
        rows += _kept(place, min(images, 4000))
        return rows + _large(place, large)


# -- the rows ---------------------------------------------------------------------------------------------------------


def _many(place: Path, images: int) -> list[dict[str, Any]]:
    root, few = written(place / "many", images, 32, 2000), written(place / "few", FEW, 32, 500)
    time.sleep(0.2)  # the files are older than a tick of the clock, as a user's are
    bare, bare_few = _start("bare", root, place), _start("bare", few, place)
    cold, cold_few = _start("disk", root, place, epochs=3), _start("disk", few, place)
    warm, warm_few = _start("disk", root, place, epochs=3), _start("disk", few, place)
    size = sum(path.stat().st_size for path in (place / "cache" / "images").glob("*.npy"))
    what = f"{images:,} PNGs of 32 px, hard links to 2,000 files"
    per_image = lambda more, less: 1e6 * (more - less) / (images - FEW)  # noqa: E731
    growth = per_image(warm["cpu"], warm_few["cpu"])
    bare_growth = per_image(bare["cpu"], bare_few["cpu"])
    return [
        _row(f"{images:,} images: first batch, cold", cold["cpu"], "s", bare["cpu"],
             f"{what}; every file hashed and decoded; wall {cold['wall']:.1f} s; baseline: listing; "
             f"{FEW:,} images: {cold_few['cpu']:.2f} s"),
        _row(f"{images:,} images: first batch, warm", warm["cpu"], "s", bare["cpu"],
             f"{what}; of it {warm['listing']:.2f} s to list and understand the names; wall {warm['wall']:.1f} s; "
             f"baseline: listing; {FEW:,} images: {warm_few['cpu']:.2f} s"),
        _row(f"{images:,} images: listing and names", warm["listing"], "s", bare["cpu"],
             "adbench.data.folder.Folder; baseline: listing", before=BEFORE["listing"]),
        _row(f"{images:,} images: growth of the warm start", growth, "µs/image", bare_growth,
             f"from {FEW:,} to {images:,} images; baseline: growth of listing"),
        _row(f"{images:,} images: first epoch", warm["epochs"][0], "images/s", warm["epochs"][-1],
             f"to float batches of {BATCH}, after a warm start; baseline: the third epoch"),
        _row(f"{images:,} images: memory of the process", warm["anonymous_mib"], "MiB", warm_few["anonymous_mib"],
             f"anonymous, after three epochs; beside it {warm['file_mib']:.0f} MiB of mapped files, which the system "
             f"may drop; peak of the cold start {cold['peak_mib']:.0f} MiB; baseline: {FEW:,} images"),
        _row(f"{images:,} images: cache", size / 2**20, "MiB", images * 32 * 32 * 3 / 2**20,
             "the files of both sets below cache_dir/images; baseline: the bytes of the pixels of the larger"),
        _row(f"{images:,} images: pages of the cache in memory after one epoch", warm["resident_mib"], "MiB",
             size / 2**20,
             f"by mincore; {warm['minor']:,} minor and {warm['major']:,} major faults of the first epoch; baseline: "
             "the cache"),
        _resumed(place, root, images, cold),
    ]  # fmt: skip


def _resumed(place: Path, root: Path, images: int, cold: dict[str, Any]) -> dict[str, Any]:
    """A cold start after one that was killed in its middle."""
    cache = place / "killed"
    if _child(killed, root, cache, int(images * KILLED))[1] != -signal.SIGKILL:
        raise RuntimeError("the job that was to be killed ended otherwise")
    again = _start("disk", root, cache, where=cache)
    return _row(
        f"{images:,} images: cold start after one that was killed", again["cpu"], "s", cold["cpu"],
        f"killed after {100 * KILLED:.0f} % of the images; wall {again['wall']:.1f} s; baseline: a whole cold start; "
        "before: nothing of the killed job was used", before=1.0,
    )  # fmt: skip


def _kept(place: Path, images: int) -> list[dict[str, Any]]:
    root = written(place / "kept", images, 32, 500)
    time.sleep(0.2)
    found = {
        keep: _start(keep, root, place / keep, epochs=2, where=place / keep) for keep in ("disk", "memory", "none")
    }
    note = f"{images:,} PNGs of 32 px; baseline: data.cache=disk"
    return [
        _row(f"data.cache={keep}: second epoch", found[keep]["epochs"][-1], "images/s", found["disk"]["epochs"][-1],
             f"{note}; anonymous memory {found[keep]['anonymous_mib']:.0f} MiB (disk: "
             f"{found['disk']['anonymous_mib']:.0f})")
        for keep in ("memory", "none")
    ]  # fmt: skip


def _large(place: Path, images: int) -> list[dict[str, Any]]:
    root = written(place / "large", images, 2048, 20)
    time.sleep(0.2)
    cold = _start("disk", root, place / "l", epochs=2, side=256, where=place / "l")
    warm = _start("disk", root, place / "l", epochs=2, side=256, where=place / "l")
    what = f"{images:,} PNGs of 2,048 px, hard links to 20 files, to 256 px"
    return [
        _row("2,048-px images: first batch, cold", cold["cpu"] / images, "s/image", warm["cpu"] / images,
             f"{what}; processor seconds of an image, hash and decoding; wall {cold['wall']:.1f} s in all; peak memory "
             f"{cold['peak_mib']:.0f} MiB; baseline: the warm start"),
        _row("2,048-px images: later epochs", warm["epochs"][-1], "images/s", images / cold["cpu"],
             f"{what}; baseline: images of the cold start in a processor second"),
    ]  # fmt: skip


def _row(name: str, value: float, unit: str, baseline: float, note: str, before: float | None = None) -> dict[str, Any]:
    row = {"name": name, "value": round(value, 4), "unit": unit, "baseline": round(baseline, 4),
           "ratio": round(value / baseline, 3) if baseline else None, "note": note}  # fmt: skip
    return row if before is None else row | {"before": before}


# -- images -----------------------------------------------------------------------------------------------------------


def written(root: Path, images: int, side: int, different: int) -> Path:
    """`good` and `bad` images, nine to one, of smooth noise: PNGs as small as photographs'."""
    rng = np.random.default_rng(0)
    for folder in ("good", "bad"):
        (root / folder).mkdir(parents=True)
    originals = []
    for number in range(min(different, images)):
        coarse = rng.integers(0, 256, (max(4, side // 16), max(4, side // 16), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        noise = rng.integers(-4, 5, smooth.shape, dtype=np.int16)
        originals.append(_path(root, number))
        Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(originals[-1], compress_level=1)
    for number in range(len(originals), images):
        os.link(originals[number % different], _path(root, number))
    return root


def _path(root: Path, number: int) -> Path:
    return root / ("bad" if number % 10 == 0 else "good") / f"{number:07d}.png"


# -- one start in a process of its own --------------------------------------------------------------------------------


def _start(
    what: str, root: Path, place: Path, epochs: int = 1, side: int = 32, where: Path | None = None
) -> dict[str, Any]:
    cache = where or place / "cache"
    found, _ = _child(bare, root) if what == "bare" else _child(start, what, root, cache, epochs, side)
    if found is None:
        raise RuntimeError(f"a start on {root} failed")
    return found


def _child(function: Callable[..., dict[str, Any]], *arguments: Any) -> tuple[dict[str, Any] | None, int | None]:
    """(what a function returns in a process of its own, exit code). The process has its imports from this one."""
    import adbench.data.datamodule  # noqa: F401

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(function(*arguments)))
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = None
    child.join()
    return found, child.exitcode


def bare(root: Path) -> dict[str, Any]:
    """Listing alone."""
    clock, cpu = time.perf_counter(), time.process_time()
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(f"{folder}{os.sep}{name}")  # noqa: PTH116
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - clock}


def start(keep: str, root: Path, cache: Path, epochs: int, side: int) -> dict[str, Any]:
    """From nothing to the first batch, and then epochs of all training images."""
    from adbench.data.datamodule import DataModule
    from adbench.data.folder import Folder
    from adbench.data.protocols import one_class

    clock, cpu = time.perf_counter(), time.process_time()
    source = Folder(root)
    listing = time.process_time() - cpu
    data = DataModule(
        source, partial(one_class, holdout=0.05), image_size=side, batch_size=BATCH, eval_batch_size=BATCH, workers=0,
        seed=0, cache_dir=cache, supervision="unsupervised", cache=keep,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that images are there more than once
        data.setup()
    count = data.batches_per_epoch
    data.set_budget(count * epochs)
    batches = iter(data.train_dataloader())
    data.on_after_batch_transfer(next(batches))
    found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - clock, "listing": listing}
    before, speeds = _faults(), []
    for epoch in range(epochs):
        spent, number = time.process_time(), count - (epoch == 0)
        for _ in range(number):
            data.on_after_batch_transfer(next(batches))
        speeds.append(number * BATCH / (time.process_time() - spent))
        if epoch == 0:
            minor, major = (now - then for now, then in zip(_faults(), before, strict=True))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return found | {
        "epochs": speeds, "minor": minor, "major": major, "resident_mib": _resident(cache),
        "anonymous_mib": int(status["RssAnon"].split()[0]) / 1024, "file_mib": int(status["RssFile"].split()[0]) / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def _faults() -> tuple[int, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt, usage.ru_majflt


def _resident(cache: Path) -> float:
    """MiB of the cache's files that lie in the system's memory."""
    import ctypes
    import mmap

    libc, pages = ctypes.CDLL(None, use_errno=True), 0
    for path in (cache / "images").glob("*.npy"):
        array = np.memmap(path, dtype=np.uint8, mode="r")
        length = -(-len(array) // mmap.PAGESIZE)
        there = (ctypes.c_ubyte * length)()
        address = ctypes.c_void_p(array.ctypes.data)
        if libc.mincore(address, ctypes.c_size_t(len(array)), there) == 0:
            pages += sum(one & 1 for one in there)
    return pages * mmap.PAGESIZE / 2**20


def killed(root: Path, cache: Path, images: int) -> dict[str, Any]:
    """A cold start that dies when so many images are read."""
    from adbench.data.cache import entry
    from adbench.data.folder import Folder

    source, read = Folder(root), []
    original = source.read_image

    def dying(row: int) -> np.ndarray:
        read.append(row)
        if len(read) > images:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(row)

    source.read_image = dying  # type: ignore[method-assign]
    entry(source, (32, 32), cache)
    return {}

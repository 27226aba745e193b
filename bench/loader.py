"""How fast images are loaded: 1024-px PNGs to float batches at 256 px, first epoch and later ones.

The baseline is the usual way: a data set that decodes and resizes one image per item with Pillow, behind a DataLoader
with one worker per core. It pays for every image in every epoch.

    python bench/loader.py
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from adbench.data.datamodule import DataModule
from adbench.data.folder import Folder
from adbench.data.protocols import one_class
from adbench.types import Batch

IMAGES, SIDE, SIZE, BATCH, LATER_EPOCHS = 104, 1024, 256, 32, 10
TRAINED = IMAGES - 8  # the others are test images: a whole number of batches remains


def measure() -> list[dict[str, object]]:
    """Images per second, ours and the baseline's: a list of {name, value, unit, baseline, ratio, note}."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = photographs(root / "images", IMAGES, IMAGES - TRAINED)
        usual = _usual(files)
        first, later = _ours(root)
    note = (
        f"{IMAGES} RGB PNGs of {SIDE} px to float batches of {BATCH} at {SIZE} px on {os.cpu_count()} cores; "
        "baseline: Pillow per item in every epoch, one worker per core"
    )
    return [
        {"name": f"loader, {epoch} epoch", "value": round(value, 1), "unit": "images/s", "baseline": round(usual, 1),
         "ratio": round(value / usual, 2), "note": note}
        for epoch, value in (("first", first), ("second", later))
    ]  # fmt: skip


def photographs(folder: Path, count: int, tested: int) -> list[Path]:
    """Pieces of real photographs, enlarged, with a sensor's noise, in MVTec layout; the last are test images."""
    names = ("astronaut", "coffee", "chelsea", "brick", "grass", "gravel")
    sources = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in names]
    parts = ["train"] * (count - tested) + ["test"] * tested
    files = [folder / part / "good" / f"{i:03d}.png" for i, part in enumerate(parts)]

    def write(i: int) -> None:
        rng = np.random.default_rng(i)
        photograph = sources[i % len(sources)]
        side = int(min(photograph.size) * rng.uniform(0.7, 1.0))
        left, top = (int(rng.integers(n - side + 1)) for n in photograph.size)
        piece = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        noisy = np.asarray(piece) + rng.normal(0, 2, (SIDE, SIDE, 3))
        files[i].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(files[i])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(count)))
    return files


def _ours(root: Path) -> tuple[float, float]:
    """Images per second in the first epoch, everything included, and the median of the later ones."""
    start = time.perf_counter()
    data = DataModule(
        Folder(root / "images"),
        partial(one_class, holdout=0),
        image_size=SIZE,
        batch_size=BATCH,
        eval_batch_size=BATCH,
        workers="auto",
        seed=0,
        cache_dir=root / "cache",
        supervision="unsupervised",
    )
    data.setup()
    per_epoch = data.batches_per_epoch
    data.set_budget(per_epoch * (1 + LATER_EPOCHS))
    batches: Iterator[Batch] = iter(data.train_dataloader())
    spent = []
    for _ in range(1 + LATER_EPOCHS):
        for _ in range(per_epoch):
            batch = data.on_after_batch_transfer(next(batches))
            assert batch.image.shape == (BATCH, 3, SIZE, SIZE) and batch.image.dtype == torch.float32
        spent.append(time.perf_counter() - start)
        start = time.perf_counter()
    # The first epoch also decodes the test images, once and for all.
    return IMAGES / spent[0], per_epoch * BATCH / statistics.median(spent[1:])


class _PerItem(Dataset[torch.Tensor]):
    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = Image.open(self.files[i]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _usual(files: list[Path]) -> float:
    loader = DataLoader(_PerItem(files), batch_size=BATCH, shuffle=True, num_workers=os.cpu_count() or 1)
    start = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    for row in measure():
        print(json.dumps(row))

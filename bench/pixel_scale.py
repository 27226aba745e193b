"""Pixel metrics of many maps: the memory that they take must not grow with the number.

    python -m bench pixel_scale [maps=100000]

Maps of 64 px with defects are made batch by batch and forgotten, as a test makes them. Peak memory is that of a process
that has done nothing else, above what it held before its first batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from bench.metrics import _peak_mib

SIDE, BATCH, FEW, DIFFERENT = 64, 32, 1000, 50


def measure(maps: int = 100_000) -> list[dict[str, Any]]:
    """Rows of peak memory and of time."""
    few, many = (_in_a_process(number) for number in (FEW, maps))
    note = f"maps of {SIDE} px, half of them with defects: AUROC, AP, F1max, PRO and per-image AUROC"
    return [
        {"name": f"pixel metrics, {maps:,} maps: peak memory", "value": round(many["mib"], 1), "unit": "MiB",
         "baseline": round(few["mib"], 1), "ratio": round(many["mib"] / few["mib"], 3),
         "note": f"{note}; above what the process held before; baseline: {FEW:,} maps; all scores as float32 would be "
                 f"{maps * SIDE * SIDE * 4 / 2**20:,.0f} MiB"},
        {"name": f"pixel metrics, {maps:,} maps: time", "value": round(1e6 * many["cpu"] / maps, 1), "unit": "µs/map",
         "baseline": round(1e6 * few["cpu"] / FEW, 1), "ratio": round(many["cpu"] / maps / (few["cpu"] / FEW), 3),
         "note": f"{note}; processor time; baseline: {FEW:,} maps"},
    ]  # fmt: skip


def _in_a_process(maps: int) -> dict[str, Any]:
    # Freed arrays go back to the system at once, so that the peak is what was held and not how the heap was cut.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}
    command = [sys.executable, "-m", "bench.pixel_scale", str(maps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)  # noqa: S603
    return json.loads(done.stdout)


def batches(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of maps (B, 1, H, W) and masks; a defect is a square that is found in part."""
    made = []
    for _ in range(DIFFERENT):
        maps = rng.lognormal(size=(BATCH, 1, SIDE, SIDE)).astype(np.float32)
        mask = np.zeros(maps.shape, dtype=bool)
        for image in range(0, BATCH, 2):
            y, x = rng.integers(0, SIDE - 16, 2)
            mask[image, 0, y : y + 12, x : x + 12] = True
            maps[image, 0, y : y + 16, x : x + 8] += rng.uniform(0.5, 3)
        made.append((maps, mask))
    return made


def run(maps: int) -> dict[str, Any]:
    """Measure in this process. Maps come again with other scores: each batch's are scaled by a factor of its own."""
    import torch

    from adbench.evaluation.metrics import PixelMetrics

    rng = np.random.default_rng(0)
    made = batches(rng)
    warm = PixelMetrics()
    warm.update(*map(torch.from_numpy, made[0]))  # what torch holds from its first use on is not the metrics'
    del warm
    base, spent = _peak_mib(), 0.0
    metrics = PixelMetrics()
    for number in range(-(-maps // BATCH)):
        scores, mask = made[number % DIFFERENT]
        count = min(BATCH, maps - number * BATCH)
        scores = torch.from_numpy(scores[:count]) * float(rng.uniform(0.8, 1.2))
        clock = time.process_time()
        metrics.update(scores, torch.from_numpy(mask[:count]))
        spent += time.process_time() - clock
    clock = time.process_time()
    values = metrics.compute()
    return {"mib": _peak_mib() - base, "cpu": spent + time.process_time() - clock, "auroc": values["pixel_auroc"]}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))

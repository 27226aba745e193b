"""A sweep of hundreds of small jobs: what two workers of joblib bring over one.

    python -m bench sweep_scale [jobs=200]

Jobs are smoke runs of `esad/small` on digits, which differ in the seed. Both sweeps run after each other, each in a
process of its own with one thread a job; the imports of the sweep and of its workers are in the figures. On a machine
that others use the wall's rate says little: the row of processor seconds says what a job costs with one worker and with
two, and so what the rate would be on two cores of one's own.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ASKED = 0.9


def measure(jobs: int = 200) -> list[dict[str, Any]]:
    """Rows of the rate and of a job's cost."""
    with tempfile.TemporaryDirectory() as place:
        one, two = (_sweep(Path(place), jobs, workers) for workers in (1, 2))
    note = f"{jobs} smoke runs of esad/small on digits under joblib, {os.cpu_count()} cores, one thread a job"
    return [
        {"name": "sweep of small jobs: rate of two workers", "value": round(jobs / two["wall"], 3), "unit": "jobs/s",
         "baseline": round(2 * jobs / one["wall"], 3), "ratio": round(one["wall"] / two["wall"] / 2, 3),
         "note": f"{note}; by the wall; baseline: twice one worker's rate; at least {ASKED}"},
        {"name": "sweep of small jobs: processor seconds of a job", "value": round(two["cpu"] / jobs, 3), "unit": "s",
         "baseline": round(one["cpu"] / jobs, 3), "ratio": round(one["cpu"] / two["cpu"], 3),
         "note": f"{note}; two workers; baseline: one worker; ratio: the share of twice one worker's rate on two cores "
                 f"of one's own; at least {ASKED}"},
    ]  # fmt: skip


def _sweep(place: Path, jobs: int, workers: int) -> dict[str, float]:
    """Wall and processor seconds of a sweep, those of its workers included."""
    words = [
        "-m", "adbench.run", "-m", "method=esad/small", "data=digits", f"seed=range({jobs})", "trainer=smoke",
        "trainer.threads=1", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}",
        f"results={place / f'results{workers}-{jobs}'}", f"cache_dir={place / 'cache'}",
    ]  # fmt: skip
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)  # noqa: S603
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - clock
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}

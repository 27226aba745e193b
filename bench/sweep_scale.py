"""A sweep of hundreds of small jobs: what two workers of joblib bring over one.

    python -m bench sweep_scale [jobs=200]

Jobs are smoke runs of `esad/small` on digits, which differ in the seed. Sweeps of two jobs and of `jobs` are run with
one worker and with two, each in a process of its own with one thread a job: their difference is what a job costs, what
is left is the start, the imports of the command and of its workers. On a machine that others use the wall's rate says
little, so the rate of 200 jobs is worked out from processor seconds: with two workers, the command composes the jobs
one after the other, and the workers share the rest.
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

ASKED, FEW, WHOLE = 0.9, 2, 200
BEFORE = 0.842  # while a worker looked through its imports for garbage after every job


def measure(jobs: int = WHOLE) -> list[dict[str, Any]]:
    """Rows of the rate and of a job's cost."""
    with tempfile.TemporaryDirectory() as place:
        few = [_sweep(Path(place), FEW, workers) for workers in (1, 2)]
        many = [_sweep(Path(place), jobs, workers) for workers in (1, 2)]
    job = [(more["cpu"] - less["cpu"]) / (jobs - FEW) for more, less in zip(many, few, strict=True)]
    driver = (many[1]["driver"] - few[1]["driver"]) / (jobs - FEW)
    start = [less["cpu"] - FEW * each for less, each in zip(few, job, strict=True)]
    one = start[0] + WHOLE * job[0]
    two = start[1] / 2 + WHOLE * (driver + (job[1] - driver) / 2)
    note = (
        f"smoke runs of esad/small on digits, joblib, {os.cpu_count()} cores, one thread a job; {jobs} less {FEW} jobs"
    )
    walls = f"walls of {jobs} jobs: {many[0]['wall']:.0f} s and {many[1]['wall']:.0f} s"
    return [
        {"name": "sweep of small jobs: processor seconds of a job, two workers", "value": round(job[1], 3), "unit": "s",
         "baseline": round(job[0], 3), "ratio": round(job[0] / job[1], 3),
         "note": f"{note}; of it the command's own part {driver:.3f} s; baseline: one worker"},
        {"name": f"sweep of {WHOLE} small jobs: rate of two workers", "value": round(WHOLE / two, 3), "unit": "jobs/s",
         "baseline": round(2 * WHOLE / one, 3), "ratio": round(one / two / 2, 3),
         "before": BEFORE,
         "note": f"{note}; worked out for two cores of one's own from processor seconds, imports "
                 f"included; {walls}; baseline: twice one worker's rate; at least {ASKED}"},
    ]  # fmt: skip


#: Run as the command: prints what its own process has used, without its workers'.
COMMAND = """
import resource, sys
from adbench.run import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print("driver", used.ru_utime + used.ru_stime)
sys.exit(code)
"""


def _sweep(place: Path, jobs: int, workers: int) -> dict[str, float]:
    """Wall and processor seconds of a sweep, those of its workers included; `driver`: of the command's own process."""
    words = [
        "-m", "method=esad/small", "data=digits", f"seed=range({jobs})", "trainer=smoke", "trainer.threads=1",
        "hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}", f"results={place / f'results{workers}-{jobs}'}",
        f"cache_dir={place / 'cache'}",
    ]  # fmt: skip
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", COMMAND, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - clock
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    driver = float(done.stdout.split("driver ")[-1].split()[0])
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "driver": driver}

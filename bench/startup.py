"""What a user waits for before and around the work: start-up, small runs, the second job of a sweep.

Each command is a process of its own, in turns with `python -c "import torch, pytorch_lightning"`, which is what any
program on Lightning waits for. Times are of the processor (user and system, of the whole process), on one thread, so
that a busy machine does not count; the data are in the cache.

    python -m bench startup
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

TURNS = 3
IMPORTS = "import torch, pytorch_lightning"
STARTED: list[float] = []  # when first batches began, in processor seconds
BEFORE = {"a run of pca on digits": 1.37}  # of 6.57 s against 4.78 s of imports, before start-up was looked at


def measure() -> list[dict[str, Any]]:
    """A row of each command: processor seconds, those of the imports as the baseline."""
    with tempfile.TemporaryDirectory() as place:
        commands = _commands(Path(place))
        for words in commands.values():
            seconds_of(words)  # fills caches: of the data, of files
        taken: dict[str, list[float]] = {name: [] for name in (IMPORTS, *commands)}
        for _ in range(TURNS):
            taken[IMPORTS].append(seconds_of(["-c", IMPORTS]))
            for name, words in commands.items():
                taken[name].append(seconds_of(words))
    imports = statistics.median(taken.pop(IMPORTS))
    note = f"processor seconds, one thread, median of {TURNS} turns; baseline: {IMPORTS}"
    rows = [
        {"name": f"start-up, {name}", "value": round(value := statistics.median(seconds), 3), "unit": "s",
         "baseline": round(imports, 3), "ratio": round(value / imports, 3), "note": note}
        | ({"before": BEFORE[name]} if name in BEFORE else {})
        for name, seconds in taken.items()
    ]  # fmt: skip
    return [*rows, second_job()]


def _commands(place: Path) -> dict[str, list[str]]:
    """name -> words of the interpreter; the first is the run that the others read."""
    results = place / "results"
    run = ["-m", "adbench.run", "method=pca", "data=digits", f"results={results}", "trainer.threads=1"]
    images = place / "images"
    images.mkdir()
    _write_images(images)
    folder = str(results / "pca/digits/0/one_class/none/seed0")
    return {
        "a run of pca on digits": [*run, "overwrite=true"],
        "the same command, finished already": run,
        "predict, ten images by that run": ["-m", "adbench.predict", folder, str(images), "--out", str(place / "out")],
        "report of that run": ["-m", "adbench.report", str(results)],
        "--help": ["-m", "adbench.run", "--help"],
    }


def _write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def seconds_of(words: list[str]) -> float:
    """Processor seconds of one Python process, those that it starts included.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr or done.stdout}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Begun(Callback):
    """Says when the first training batch of a job begins."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            STARTED.append(time.process_time())


def second_job() -> dict[str, Any]:
    """From the end of a sweep's job to the first training batch of the next, in one process."""
    from adbench import run
    from adbench.experiment import job

    ended: list[float] = []
    execute = job.execute

    def timed(cfg: Any) -> Any:
        outcome = execute(cfg)
        ended.append(time.process_time())
        return outcome

    STARTED.clear()
    job.execute = timed
    try:
        with tempfile.TemporaryDirectory() as place:
            callbacks = Path(place) / "conf" / "callbacks"
            callbacks.mkdir(parents=True)
            (callbacks / "begun.yaml").write_text("begun: {_target_: bench.startup.Begun}\n")
            code = run.main([
                "-m", "method=esad/small", "data=digits", "seed=range(4)", "budget.max_batches=2", "trainer=cpu",
                "trainer.threads=1", f"results={place}/results", "callbacks=begun", "--config-dir",
                str(callbacks.parent),
            ])  # fmt: skip
    finally:
        job.execute = execute
    if code:
        raise RuntimeError("the sweep failed")
    waits = [began - before for before, began in zip(ended, STARTED[1:], strict=False)]
    return {
        "name": "start-up, second job of a sweep", "value": round(statistics.median(waits), 3), "unit": "s",
        "baseline": 1.0, "ratio": round(statistics.median(waits), 3),
        "note": "processor seconds from the end of a job to the first training batch of the next, esad/small on "
        "digits, median of 3; baseline: one second, the most that is asked",
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

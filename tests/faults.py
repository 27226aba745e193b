"""SIGKILL at random moments: is a resumed run the run that was never interrupted, and is every file whole?

    python tests/faults.py --kills 20

Half of the kills come at a time drawn from the run's length, half a few milliseconds after a file of a drawn kind
appeared, because writing takes a small part of the time. After the second half of the kills a wrong command comes
before the right one: it must end with exit code 1 and change nothing. Prints a line per kill and a summary.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

COMMAND = ("method=autoencoder", "method.width=8", "method.latent=16", "data=npz", "data.name=digits",
           "data.batch_size=16", "trainer=cpu", "trainer.threads=1", "budget.max_batches=60",
           "budget.checkpoint_every=2")  # fmt: skip
WRITTEN = ("checkpoints/last.ckpt", "checkpoints/.last-*", "calibration.csv", ".calibration-*", "split.json",
           "figures/*", "figures/.*", "scores.csv", ".scores-*", ".metrics-*")  # fmt: skip
# What a hand slips on. The last two are other data, which a folder with nothing trained may take.
WRONG = ("trainer.accelerator=nowhere", "data.workers=many", "overwrite=maybe", "+trainer.limit_test_batches=2",
         "data.file={data}/nowhere.npz", "data.file={data}/other.npz", "data.file={data}/relabelled.npz")  # fmt: skip


def write_data(place: Path) -> None:
    """The digits as labelled arrays: digits.npz, with one pixel and with one label of the test rows changed as well."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images * 15).astype(np.uint8), digits.target
    place.mkdir(parents=True)
    for name, pixel, label in (("digits", 0, 0), ("other", 1, 0), ("relabelled", 0, 1)):
        x_test, y_test = x[1100:].copy(), y[1100:].copy()
        x_test[0, 0, 0] += pixel
        y_test[0] = (y_test[0] + label) % 10
        np.savez(place / f"{name}.npz", x_train=x[:1100], y_train=y[:1100], x_test=x_test, y_test=y_test)


def started(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """The run, in a process of its own."""
    environment = os.environ | {
        "ADBENCH_RESULTS": str(place), "ADBENCH_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }  # fmt: skip
    line = [
        sys.executable,
        "-m",
        "adbench.run",
        *COMMAND,
        *(arguments or [f"data.file={place.parent}/data/digits.npz"]),
    ]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_folder(place: Path) -> Path | None:
    """The only run's folder, once it exists."""
    return next((p.parent for p in place.glob("autoencoder/**/.lock")), None)


def torn(folder: Path) -> list[str]:
    """Files under their final names that cannot be read to the end."""
    import torch
    from PIL import Image

    readers = {
        ".json": lambda p: json.loads(p.read_text()),
        ".csv": lambda p: [float(row["score"]) for row in csv.DictReader(p.open())] or 1 / 0,
        ".ckpt": lambda p: torch.load(p, weights_only=True)["batches_seen"],
        ".png": lambda p: Image.open(p).load(),
        ".yaml": lambda p: p.read_text().index("seed"),
    }
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") and part != ".hydra" for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix in readers and not hidden and "logs" not in path.parts:
            try:
                readers[path.suffix](path)
            except Exception as error:  # each format breaks in its own way
                found.append(f"{path.relative_to(folder)}: {error}")
    return found


def worked_since(process: subprocess.Popen[str], place: Path) -> float:
    """Wait until a run owns its folder, which takes a few seconds of imports; returns the time."""
    while process.poll() is None and run_folder(place) is None:
        time.sleep(0.001)
    return time.perf_counter()


def contents(folder: Path | None) -> dict[str, bytes]:
    """Every file of a run folder but its log, its lock, and what a killed command had half written."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "run.log" and p.name[0] != "."] if folder else []
    return {str(p.relative_to(place)): p.read_bytes() for p in files for place in [folder]}


def slip(place: Path, rng: random.Random) -> str:
    """Give a wrong command; returns which, with what it did that it must not."""
    folder = run_folder(place)
    trained = folder is not None and (folder / "checkpoints/last.ckpt").exists()
    wrong = rng.choice(WRONG if trained else WRONG[:-2])
    before = contents(folder)
    argument = wrong.format(data=place.parent / "data")
    data = [] if wrong.startswith("data.file") else [f"data.file={place.parent}/data/digits.npz"]
    process = started(place, *data, argument)
    out, _ = process.communicate(timeout=600)
    after = contents(run_folder(place))
    return wrong + ("" if process.returncode == 1 and after == before else f" WENT WRONG {process.returncode} {out}")


def finish(place: Path) -> tuple[int, str, bytes]:
    """Run to the end; exit code, output and the bytes of scores.csv."""
    process = started(place)
    out, _ = process.communicate(timeout=600)
    folder = run_folder(place)
    path = folder / "scores.csv" if folder else Path()
    return process.returncode, out, path.read_bytes() if path.is_file() else b""


def phase(folder: Path | None) -> str:
    """What a run was doing, from what it has left."""
    if folder is None or not (folder / "metrics.json").exists():
        return "starting"
    status = json.loads((folder / "metrics.json").read_text())["status"]
    if status == "finished":
        return "finished"
    names = {p.name for p in folder.rglob("*")}
    if "scores.csv" in names or "histogram.png" in names:
        return "writing"
    return "testing" if "calibration.csv" in names else "training" if "last.ckpt" in names else "setting up"


def kill_once(place: Path, rng: random.Random, length: float, by_file: bool) -> str:
    """Start a run, kill it, and return what it was doing."""
    process = started(place)
    wanted, moment = rng.choice(WRITTEN), rng.uniform(0, 0.9) * length
    since = worked_since(process, place)
    while process.poll() is None:
        if by_file:
            folder = run_folder(place)
            if folder is not None and next(folder.glob(wanted), None) is not None:
                time.sleep(rng.uniform(0, 0.03))
                break
        elif time.perf_counter() - since > moment:
            break
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    return phase(run_folder(place)) + (f", at {wanted}" if by_file else f", {moment:.1f} s after it began")


def check(kills: int, seed: int, place: Path) -> list[str]:
    """Kill `kills` runs and resume each; returns what went wrong."""
    rng, wrong, seen = random.Random(seed), [], Counter()
    write_data(place / "data")
    process = started(place / "whole")
    begin = worked_since(process, place / "whole")
    out, _ = process.communicate()
    length = time.perf_counter() - begin
    code, again, wanted = finish(place / "whole")  # finished: it only says so
    if code or not wanted:
        return [f"the uninterrupted run failed: {out} {again}"]
    for k in range(kills):
        here = place / f"kill{k}"
        what = kill_once(here, rng, length, by_file=k % 2 == 1)
        folder = run_folder(here)
        broken = torn(folder) if folder else []
        slipped = slip(here, rng) if k >= kills // 2 else ""
        code, out, scores = finish(here)
        left = [p.name for p in (run_folder(here) or here).rglob(".*") if p.name not in (".hydra", ".lock")]
        same = scores == wanted
        print(
            f"{k + 1:3} killed {what}: {'same scores' if same else 'OTHER SCORES'}, torn {broken}, left {left}"
            f"{f', after {slipped}' if slipped else ''}",
            flush=True,
        )
        seen[what.split(",")[0]] += 1
        if code or not same or broken or left or "WENT WRONG" in slipped:
            wrong.append(
                f"kill {k} ({what}): exit code {code}, same {same}, torn {broken}, left {left}, {slipped}\n{out[-500:]}"
            )
        shutil.rmtree(here)
    print(
        f"{kills} kills ({', '.join(f'{n} {what}' for what, n in seen.items())}): {len(wrong)} runs differ or are torn"
    )
    return wrong


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(20)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        wrong = check(options.kills, options.seed, Path(place))
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""A report of thousands of runs: its time, its memory, and how soon its page opens in a browser.

    python -m bench report_scale [runs=2000]

Two real runs (pca on digits and on textures/brick) are copied under the names of twenty methods on ten data sets with
ten seeds, scores shifted by a little noise, pictures and curves included. The page is opened in headless Chromium, if
there is one (`chromium` on the path, driven by Playwright).
"""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("pca", "brightness", "nearest_neighbour", "cbigan", "egbad", "igd", "pwae", "ssae", "esad", "deep_svdd",
           "deep_sad", "vae", "autoencoder", "padim", "patchcore", "knn", "iforest", "ocsvm", "kde", "lof")  # fmt: skip
DATA_SETS, TARGET_S, TARGET_MIB, TARGET_PAGE_S = 10, 20, 1024, 3
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def measure(runs: int = 2000) -> list[dict[str, Any]]:
    """Rows of the report and of its page."""
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results"
        generated(Path(place) / "real", results, runs)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock = time.perf_counter()
        command = [sys.executable, "-m", "bench.report_scale", str(results)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        wall = time.perf_counter() - clock
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
        page = results / "report" / "report.html"
        size, opened = page.stat().st_size / 2**20, seconds_to_open(page)
    what = f"{runs:,} run folders, copies of two real runs under {len(METHODS)} methods and {DATA_SETS} data sets"
    rows = [
        {"name": f"report of {runs:,} runs: time", "value": round(cpu, 1), "unit": "s", "baseline": TARGET_S,
         "ratio": round(cpu / TARGET_S, 3), "note": f"{what}; processor seconds, imports included; wall {wall:.1f} s; "
         "baseline: what is asked"},
        {"name": f"report of {runs:,} runs: memory", "value": round(peak), "unit": "MiB", "baseline": TARGET_MIB,
         "ratio": round(peak / TARGET_MIB, 3), "note": f"{what}; peak of the process; baseline: what is asked"},
    ]  # fmt: skip
    if opened is not None:
        rows.append(
            {"name": f"report of {runs:,} runs: its page opens", "value": round(opened, 2), "unit": "s",
             "baseline": TARGET_PAGE_S, "ratio": round(opened / TARGET_PAGE_S, 3),
             "note": f"{size:.1f} MiB of HTML; from the address to the end of the load event and the first frame after "
                     "it, headless Chromium, median of 3; baseline: what is asked"}
        )  # fmt: skip
    return rows


def generated(real: Path, results: Path, runs: int) -> None:
    """Write `runs` run folders below `results`, from two real runs that are made below `real`."""
    made = []
    for data in ("digits", "textures/brick"):
        words = ["method=pca", f"data={data}", f"results={real}", f"cache_dir={real / 'cache'}", "trainer.threads=1"]
        subprocess.run([sys.executable, "-m", "adbench.run", *words], check=True, capture_output=True)  # noqa: S603
        made.append(next(path.parent for path in (real / "pca" / data).rglob("metrics.json")))
    rng = np.random.default_rng(0)
    for number in range(runs):
        method, rest = METHODS[number % len(METHODS)], number // len(METHODS)
        origin, data = made[rest % len(made)], f"plant/line_{rest % DATA_SETS}"
        copied(origin, results / method / data / "one_class" / "none" / f"seed{rest // DATA_SETS}", method, data, rng)


def copied(origin: Path, folder: Path, method: str, data: str, rng: np.random.Generator) -> None:
    """A copy of a run folder without its checkpoints, as of another method, data set and seed; pictures are links."""
    from adbench.evaluation.curves import auroc

    left_out = shutil.ignore_patterns("checkpoints", "*.ckpt", "logs", "run.log", "split.json", ".lock")
    shutil.copytree(origin, folder, ignore=left_out, copy_function=os.link)
    seed = int(folder.name.removeprefix("seed"))
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    score = np.array([float(row[-1]) for row in rows])
    score += rng.normal(0, 0.3 * score.std(), len(score))
    table = [head, *([*row[:-1], f"{value:.9g}"] for row, value in zip(rows, score, strict=True))]
    _written(folder / "scores.csv", "".join(f"{','.join(line)}\n" for line in table))
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    record["metrics"]["image_auroc"] = auroc(score, np.array([int(row[2]) for row in rows]))
    record |= {"method": method, "data": "plant", "seed": seed, "config_hash": f"{rng.integers(2**48):012x}"}
    _written(folder / "metrics.json", json.dumps(record))
    config = folder / ".hydra" / "config.yaml"
    lines = config.read_text(encoding="utf-8").splitlines()
    at = lines.index("data:")
    place = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("  id:"))
    lines[place] = f"  id: {data}"
    _written(config, "\n".join(lines) + "\n")


def _written(path: Path, text: str) -> None:
    """Write a file in the place of a link."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


def seconds_to_open(page: Path) -> float | None:
    """Median of three; None without a browser."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    spent = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page()
            clock = time.perf_counter()
            tab.goto(page.resolve().as_uri(), wait_until="load")
            tab.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))")
            spent.append(time.perf_counter() - clock)
            tab.close()
        browser.close()
    return sorted(spent)[1]


if __name__ == "__main__":
    from adbench.report.__main__ import main

    code = main([sys.argv[1]])
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
    sys.exit(code)

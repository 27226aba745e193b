"""Images per second of `adbench.predict`, from PNG files to scores and maps, by the method and by its ONNX graph.

The baseline of both is the loop that one would write first: one image after another, decoded with Pillow, scored alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adbench.detection.detector import Detector, load
from adbench.detection.graph import export
from adbench.detection.prediction import Options, Results, score_images
from adbench.experiment.folder import latest_run
from adbench.run import main as run
from bench.loader import IMAGES, SIDE, TRAINED, photographs

METHOD, SIZE = "cbigan/small", 128


def measure() -> list[dict[str, object]]:
    """Images per second: a list of {name, value, unit, baseline, ratio, note}."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = photographs(root / "images", IMAGES, IMAGES - TRAINED)
        folder = _trained(root)
        graph, _ = export(folder, "onnx", root / "m.onnx")
        engines = {"Python": load(folder), "ONNX": load(graph)}
        usual = _rate(lambda: _one_by_one(engines["Python"], files))
        rates = {kind: _rate(lambda d=detector: _predict(d, files, root)) for kind, detector in engines.items()}
    note = (
        f"{IMAGES} RGB PNGs of {SIDE} px, {METHOD} at {SIZE} px, {torch.get_num_threads()} threads, decoding and "
        "resizing included, maps computed and not written; baseline: one image at a time, decoded with Pillow"
    )
    return [
        {"name": f"predict, {kind}", "value": round(rate, 1), "unit": "images/s", "baseline": round(usual, 1),
         "ratio": round(rate / usual, 2), "note": note}
        for kind, rate in rates.items()
    ]  # fmt: skip


def _trained(root: Path) -> Path:
    """A run of two batches: how well it detects has no part in how fast it does."""
    arguments = [f"method={METHOD}", "data=folder", "data.name=photographs", f"data.root={root / 'images'}",
                 f"results={root / 'results'}", f"cache_dir={root / 'cache'}", "trainer=smoke"]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(arguments) == 0
    return latest_run(root / "results" / "latest")


def _rate(work: Callable[[], int]) -> float:
    """Rows per second, the better of two rounds."""
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        rows = work()
        rates.append(rows / (time.perf_counter() - start))
    return max(rates)


def _predict(detector: Detector, files: list[Path], root: Path) -> int:
    results = Results()
    score_images(detector, files, Options(root / "out", maps="none"), results)
    assert not results.unreadable
    return len(results.rows)


def _one_by_one(detector: Detector, files: list[Path]) -> int:
    for file in files:
        image = np.array(Image.open(file).convert("RGB"))
        detector.score(image)
    return len(files)


if __name__ == "__main__":
    for row in measure():
        print(json.dumps(row))

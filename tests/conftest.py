"""Small real-looking data on disk, and the run command in this process."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from adbench.testing import striped


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever an earlier test has set, a test computes on one thread: sums depend on it in their last digits."""
    torch.set_num_threads(1)


def write_mvtec(root: Path, category: str, train: int = 8, normal: int = 3, anomalous: int = 3, size: int = 40) -> Path:
    """An MVTec-shaped category whose anomalies are bright squares."""
    rng = np.random.default_rng(7)
    for folder, count in (("train/good", train), ("test/good", normal)):
        (root / category / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(striped(rng, size)).save(root / category / folder / f"{i:03}.png")
    for folder in ("test/spot", "ground_truth/spot"):
        (root / category / folder).mkdir(parents=True)
    for i in range(anomalous):
        image, mask = striped(rng, size), np.zeros((size, size), np.uint8)
        y, x = rng.integers(2, size - 12, 2)
        image[y : y + 9, x : x + 9], mask[y : y + 9, x : x + 9] = 250, 255
        Image.fromarray(image).save(root / category / f"test/spot/{i:03}.png")
        Image.fromarray(mask).save(root / category / f"ground_truth/spot/{i:03}_mask.png")
    return root


def write_mnist(root: Path) -> None:
    """The four files of MNIST, gzipped as published, with a few rows of noise of each class."""
    rng = np.random.default_rng(3)
    root.mkdir(parents=True)
    for part, count in (("train", 1200), ("t10k", 40)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        for name, magic, values in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            header = np.array([magic, *values.shape], dtype=">i4").tobytes()
            with gzip.open(root / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())


# Of the ODDS collection's sets: features, rows, anomalous rows.
ODDS = {
    "arrhythmia": (274, 452, 66),
    "cardio": (21, 1831, 176),
    "satellite": (36, 6435, 2036),
    "satimage-2": (36, 5803, 71),
    "shuttle": (9, 49097, 3511),
    "thyroid": (6, 3772, 93),
}


def write_odds(root: Path, name: str) -> None:
    """A table of a published set's size, in its published format; anomalous rows have larger values."""
    features, rows, anomalous = ODDS[name]
    y = (np.arange(rows) < anomalous).astype(float)
    x = (np.arange(rows) % 7 + y)[:, None] + np.arange(features)
    root.mkdir(parents=True, exist_ok=True)
    if name == "thyroid":
        np.savez_compressed(root / "38_thyroid.npz", X=x, y=y)
    else:
        savemat(root / f"{name}.mat", {"X": x, "y": y[:, None]}, do_compression=True)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the MVTec categories, the MNIST and the tables that the README's commands name."""
    root = tmp_path_factory.mktemp("data")
    for category in ("bottle", "screw", "carpet"):
        write_mvtec(root / "mvtec", category)
    write_mnist(root / "MNIST" / "raw")
    for name in ODDS:
        write_odds(root / "odds", name)
    return root


@pytest.fixture
def run(tmp_path: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """`run("method=...", ...)` -> (exit code, folder): the command in this process, two batches of training."""
    from adbench.experiment.folder import latest_run
    from adbench.run import main

    monkeypatch.setenv("ADBENCH_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ADBENCH_DATA", str(data_root))
    monkeypatch.setenv("ADBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))

    def call(*arguments: str, smoke: bool = True) -> tuple[int, Path]:
        code = main([*arguments, *(["trainer=smoke"] if smoke else []), "trainer.threads=1"])
        latest = tmp_path / "results" / "latest"
        return code, latest_run(latest) if latest.exists() else tmp_path

    return call


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, data_root: Path):
    """Finished smoke runs by their arguments, each made once."""
    from adbench.experiment.folder import latest_run
    from adbench.run import main

    made: dict[tuple[str, ...], Path] = {}

    def call(*arguments: str) -> Path:
        if arguments not in made:
            results = tmp_path_factory.mktemp("finished")
            cache = tmp_path_factory.getbasetemp() / "cache"
            places = (f"results={results}", f"data_root={data_root}", f"cache_dir={cache}")
            assert main([*arguments, *places, "trainer=smoke", "trainer.threads=1"]) == 0
            made[arguments] = latest_run(results / "latest")
        return made[arguments]

    return call


@pytest.fixture
def finished(_finished, tmp_path: Path):
    """`finished("method=...", ...)` -> a copy of a finished run's folder, the test's own."""

    def call(*arguments: str) -> Path:
        copy = tmp_path / "run"
        shutil.copytree(_finished(*arguments), copy)
        return copy

    return call


def metrics_of(folder: Path) -> dict:
    """metrics.json of a run folder."""
    return json.loads((folder / "metrics.json").read_text())


BROWSERS = ("chromium", "chromium-browser", "google-chrome",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
REQUIRED = bool(os.environ.get("CI") or os.environ.get("ADBENCH_REQUIRE_BROWSER") == "1")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; where there is none the test is skipped, except where it is required."""
    if CHROMIUM is None and not REQUIRED:
        pytest.skip("no Chromium here (apt-get install chromium); CI and ADBENCH_REQUIRE_BROWSER=1 require it")
    assert CHROMIUM, "no Chromium: apt-get install chromium"
    if not REQUIRED:
        pytest.importorskip("playwright", reason="playwright drives the browser: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()

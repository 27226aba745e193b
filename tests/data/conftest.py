from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def mvtec_tree(root: Path, train: int = 9, side: int = 24) -> Path:
    """A category in MVTec layout: normal images are noise around grey, a scratch is a bright square at its mask."""
    rng = np.random.default_rng(0)

    def picture() -> np.ndarray:
        return rng.integers(90, 140, (side, side, 3), dtype=np.uint8)

    for i in range(train):
        write(root / f"train/good/{i:03d}.png", picture())
    for i in range(3):
        write(root / f"test/good/{i:03d}.png", picture())
    for defect in ("dent", "scratch"):
        for i in range(2):
            image, mask = picture(), np.zeros((side, side), np.uint8)
            image[4:12, 6:14], mask[4:12, 6:14] = 250, 255
            write(root / f"test/{defect}/{i:03d}.png", image)
            write(root / f"ground_truth/{defect}/{i:03d}_mask.png", mask)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return mvtec_tree(tmp_path / "mvtec" / "bottle")


@pytest.fixture
def save() -> Callable[[Path, np.ndarray], Path]:
    return write

"""Tables of features with outlier labels, as the ODDS collection publishes them (X, y)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from adbench.data.records import Records
from adbench.streams import numpy_stream
from adbench.types import UserError


class Odds:
    """A .mat or .npz file with X (N, D) and y (N,), 0 normal and 1 anomalous.

    The collection has no split: each seed draws one, of normal and of anomalous rows alike.

    Source of the split: Ruff et al. 2020 (Deep SAD), section 4 ("random 60:40 splits while maintaining the original
    proportion of anomalies in each set"); training counts are cut to integers as in its published loader.

    Args:
        name: of the data set; the file is <root>/<name>.mat, .npz or <number>_<name>.npz.
        root: the folder of the files; or the file itself.
        seed: of the split, the run's.
        features: D, which the file must have.
        expected: rows and anomalous rows of the published set, which the file must have; None does not check.
        train_share: of the rows of each label, in (0, 1).
    """

    has_masks = False
    array: ClassVar[np.ndarray | None] = None
    cache_dir: Path | str | None = None

    def __init__(
        self,
        name: str,
        root: Path | str,
        seed: int,
        features: int,
        expected: Mapping[str, int] | None = None,
        train_share: float = 0.6,
    ) -> None:
        if not 0 < train_share < 1:
            raise UserError(f"data.train_share is a share of the rows in (0, 1), got {train_share}")
        path = _find(name, Path(root).expanduser())
        x, y = _read(path)
        if x.shape[1] != features:
            raise UserError(f"{path} has {x.shape[1]} features and {features} were expected; say data.features=N")
        found = {"rows": len(y), "anomalous": int(y.sum())}
        if expected is not None and found != dict(expected):
            raise UserError(f"{path} is not the published {name}: it has {found}, expected {dict(expected)}")
        self.features = x
        rng = numpy_stream(seed, "split", name)
        split = np.full(len(y), "test ")
        for label in (0, 1):
            rows = rng.permutation(np.flatnonzero(y == label))
            split[rows[: int(train_share * len(rows))]] = "train"
        self.records = Records(
            split=np.char.strip(split),
            label=y,
            klass=np.full(len(y), ""),
            defect=np.where(y == 1, "anomalous", "good"),
            path=np.array([f"{path.name}/{i}" for i in range(len(y))]),
            mask=np.full(len(y), ""),
        )

    def read_image(self, row: int) -> np.ndarray:
        raise LookupError("tabular data have no images")

    def read_mask(self, row: int) -> np.ndarray:
        raise LookupError("tabular data have no masks")

    def fingerprint(self) -> str:
        return hashlib.blake2b(self.features.tobytes(), digest_size=16).hexdigest()


def _find(name: str, root: Path) -> Path:
    if root.is_file():
        return root
    found = [p for p in (root / f"{name}.mat", root / f"{name}.npz") if p.is_file()]
    found += sorted(p for p in root.glob(f"*_{name}.npz") if p.name.split("_", 1)[0].isdigit())
    if not found:
        raise UserError(
            f"there is no {name}.mat or {name}.npz in {root}; fetch it from the ODDS collection, "
            "odds.cs.stonybrook.edu, into that folder, or point data_root=DIR at the folder that has odds/"
        )
    return found[0]


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) float32 and (N,) int8."""
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            arrays = loadmat(path)
            x, y = arrays["X"], arrays["y"]
        else:
            with np.load(path, allow_pickle=False) as arrays:
                x, y = arrays["X"], arrays["y"]
    except Exception as error:  # each format has its own ways to break
        raise UserError(f"cannot read X and y from {path}: {error}") from error
    y = np.asarray(y).reshape(-1)
    if x.ndim != 2 or len(x) != len(y) or not np.isin(y, (0, 1)).all():
        raise UserError(f"{path} must hold X (N, D) and y (N,) of 0 and 1; it holds {x.shape} and {y.shape}")
    x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise UserError(f"{path} has {int((~np.isfinite(x)).sum())} missing or infinite values; fill them in first")
    return x, y.astype(np.int8)

"""Tables of features with outlier labels, as the ODDS collection publishes them (X, y)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from adbench.data.records import Records
from adbench.data.tables import as_numbers, read_arrays, read_csv
from adbench.streams import numpy_stream
from adbench.types import UserError


class Odds:
    """A .mat or .npz file with X (N, D) and y (N,), 0 normal and 1 anomalous, or a CSV file with such a column.

    The collection has no split: each seed draws one, of normal and of anomalous rows alike.

    Source of the split: Ruff et al. 2020 (Deep SAD), section 4 ("random 60:40 splits while maintaining the original
    proportion of anomalies in each set"); training counts are cut to integers as in its published loader.

    Args:
        name: of the data set; the file is <root>/<name>.mat, .npz or <number>_<name>.npz.
        root: the folder of the files; or the file itself (.csv too).
        seed: of the split, the run's.
        features: D, which the file must have.
        expected: rows and anomalous rows of the published set, which the file must have; None does not check.
        train_share: of the rows of each label, in (0, 1).
        label: the column of a CSV file that holds y, by name or by number from 1; all others are features.

    Raises:
        UserError: there is no such file, or it does not hold what is expected.
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
        label: str | int | None = None,
    ) -> None:
        if not 0 < train_share < 1:
            raise UserError(f"data.train_share is a share of the rows in (0, 1), got {train_share}")
        path = _find(name, Path(root).expanduser())
        x, y = _read(path, label)
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
            path=np.array([f"row/{i}" for i in range(len(y))]),
            mask=np.full(len(y), ""),
        )

    def read_image(self, row: int) -> np.ndarray:
        """There are none.

        Raises:
            LookupError: always.
        """
        raise LookupError("tabular data have no images")

    def read_mask(self, row: int) -> np.ndarray:
        """There are none.

        Raises:
            LookupError: always.
        """
        raise LookupError("tabular data have no masks")

    def fingerprint(self) -> str:
        """Of the features alone: labels and split change none."""
        digest = hashlib.sha256(str(self.features.shape).encode())
        digest.update(self.features.data)
        return digest.hexdigest()[:32]


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


def _read(path: Path, label: str | int | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) float64 and (N,) int8."""
    if path.suffix.lower() == ".csv":
        return _read_csv(path, label)
    if label is not None:
        raise UserError(f"data.label={label} names a column of a CSV file; {path} has its labels in y: data.label=null")
    x, y = read_arrays(path, ("X", "y"))
    y = y.reshape(-1)
    if y.dtype.kind not in "fiub":
        raise UserError(
            f"{path}: y is an array of dtype {y.dtype}; labels are the numbers 0 (normal) and 1 (anomalous)"
        )
    if x.ndim != 2 or len(x) != len(y) or not np.isin(y, (0, 1)).all():
        raise UserError(f"{path} must hold X (N, D) and y (N,) of 0 and 1; it holds {x.shape} and {y.shape}")
    return as_numbers(x, f"{path}: X"), y.astype(np.int8)


def _read_csv(path: Path, label: str | int | None) -> tuple[np.ndarray, np.ndarray]:
    names, values = read_csv(path)
    width = values.shape[1]
    has = f"its columns are {', '.join(names)}" if names else f"it has {width} columns and no names"
    if label is None:
        raise UserError(f"{path}: say which column holds the labels, by name or number: data.label=COLUMN; {has}")
    if names and str(label) in names:
        column = names.index(str(label))
    elif str(label).isdigit() and 1 <= int(label) <= width:
        column = int(label) - 1
    else:
        raise UserError(f"{path} has no column data.label={label}; {has}; numbers count from 1")
    y = values[:, column]
    if not np.isin(y, (0, 1)).all():
        found = np.unique(y).tolist()[:5]
        raise UserError(f"{path}: the column data.label={label} must be 0 (normal) or 1 (anomalous), got {found}")
    return np.delete(values, column, axis=1), y.astype(np.int8)

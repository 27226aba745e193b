"""What a data set is: a table with one row per sample, and a way to read a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from adbench.data.notes import Notes


@dataclass(frozen=True)
class Records:
    """One row per sample, in columns (N,) of equal length.

    Raises:
        ValueError: the columns differ in length.
    """

    split: np.ndarray  # str: "train" or "test", as the data set's authors have it
    label: np.ndarray  # int8: 0 normal, 1 anomalous
    klass: np.ndarray  # str: the class of a class data set ("3"), else ""
    defect: np.ndarray  # str: "good" for normal rows, else the kind of defect (for class data sets the class)
    path: np.ndarray  # str: relative to the data set's root, or "test/123" where samples are not files
    mask: np.ndarray  # str: the mask's path relative to the root; "" where there is none

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of records differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, rows: list[dict[str, object]]) -> Records:
        """Records from one dict per row; `klass` and `mask` may be left out."""
        columns = {
            field.name: np.array([row.get(field.name, "") for row in rows], dtype=np.str_)
            for field in fields(cls)
            if field.name != "label"
        }
        return cls(label=np.array([row["label"] for row in rows], dtype=np.int8), **columns)

    def of_rows(self, rows: np.ndarray) -> Records:
        """The records of some rows, (n,) int64, in their order."""
        return Records(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Split:
    """Which row plays which part in one run. Rows not named are not used."""

    train: np.ndarray  # (n,) int64 rows
    semi_label: np.ndarray  # (n,) int8 per training row: +1 known normal, 0 unlabelled, -1 known anomalous
    holdout: np.ndarray  # int64 rows: normal training rows kept for thresholds and calibration
    test: np.ndarray  # int64 rows


class Source(Protocol):
    """A data set that can be read row by row. Its constructor lists the rows and raises UserError where it cannot.

    A source whose samples already lie in memory sets `array`, one of tabular data sets `features`.
    """

    records: Records
    has_masks: bool
    array: ClassVar[np.ndarray | None]  # (N, H, W, C) uint8, C 1 or 3: read at once instead of row by row
    features: ClassVar[np.ndarray | None]  # (N, D) float64: tabular data, neither resized nor cached
    cache_dir: Path | str | None  # where a source of files may remember their hashes; set before `fingerprint`
    notes: Notes  # where reading adds what is odd about a file; set before rows are read
    read_report: dict[str, Any]  # what was odd about the files, set once all have been read

    def read_image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8."""

    def read_mask(self, row: int) -> np.ndarray:
        """(H, W) bool, True where anomalous; called for rows whose `records.mask` is not ""."""

    def leave_out(self, unreadable: Mapping[str, str]) -> np.ndarray:
        """Take rows out of the records, by path with the reason. Only sources that skip have it.

        Returns:
            (n,) int64: of each row that is kept, the number that it had.
        """

    def fingerprint(self) -> str:
        """A text that changes whenever any image, mask or feature does, and with nothing else."""

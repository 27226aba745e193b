"""Medical image sets: by folders or a list file, and the NIH chest X-rays by their published table.

Each can be held against the counts of the paper that used it, so that a wrong split is noticed before training.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adbench.data.images import ImageFiles, center_crop
from adbench.data.listing import SUFFIXES, below, folders, listed
from adbench.data.notes import Notes
from adbench.data.records import Records
from adbench.types import UserError

Row = dict[str, object]
NORMAL = ("normal", "good", "non_glaucoma", "no_finding")


class ListedImages(ImageFiles):
    """Images below `root`, normal and anomalous in both splits.

    Either a list file says what each is (CSV with the columns path, split, label and optionally defect; split is train
    or test, label 0 or 1), or folders do: `<split>/<kind>/*.png`, where the kinds `normal`, `good`, `non_glaucoma` and
    `no_finding` are normal and any other name is the kind of anomaly.

    Args:
        name: of the data set, for messages.
        root: its folder.
        list_file: relative to `root`, or null for folders.
        expected: a paper's counts, of train_normal, train_anomalous, test_normal, test_anomalous; null checks none.
        reading: `bits`, `max_pixels` and `unreadable` of `ImageFiles`.

    Raises:
        UserError: the folder or a file is missing, the list is wrong, or the counts are not those that were expected.
    """

    def __init__(
        self,
        name: str,
        root: Path | str,
        list_file: str | None = None,
        expected: Mapping[str, int] | None = None,
        **reading: Any,
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(
                f"{name} is not in {root}: there is no such folder; put it there as train/normal, test/normal and "
                "test/<kind>, or point data_root=DIR or ADBENCH_DATA at the folder that has it"
            )
        notes = Notes()
        rows = _rows_of_list(root, list_file) if list_file is not None else _rows_of_folders(root, notes)
        super().__init__(root, _checked(name, root, rows, expected), notes=notes, **reading)


class ChestXrays(ImageFiles):
    """NIH chest X-rays (Wang et al. 2017), labelled by the published table; the middle of each image.

    Source: Huang et al. 2021 (ESAD), section 4.3: images without any finding are normal, all others anomalous; PA and
    AP views apart; a central crop of 768 px. The split is the published one (train_val_list.txt, test_list.txt).

    The kind of an anomalous image is its finding, or "several" where it has more than one, so that the known anomalies
    of the paper are `protocol.labelled_classes=[Infiltration]`.

    Args:
        root: the folder with Data_Entry_2017*.csv, the two lists, and the images anywhere below.
        view: "PA" or "AP".
        crop: side of the central square that is used, in pixels.
        expected, reading: see `ListedImages`.

    Raises:
        UserError: a file is missing, the view is neither, or the counts are not those that were expected.
    """

    COLUMNS = ("Image Index", "Finding Labels", "View Position")

    def __init__(
        self,
        root: Path | str,
        view: str,
        crop: int = 768,
        expected: Mapping[str, int] | None = None,
        **reading: Any,
    ) -> None:
        if view not in ("PA", "AP"):
            raise UserError(f"data.view is PA or AP, got {view}")
        root, self.crop = Path(root).expanduser(), crop
        tables = sorted(root.glob("Data_Entry_2017*.csv")) if root.is_dir() else []
        if not tables:
            raise UserError(
                f"the NIH chest X-rays are not in {root}: Data_Entry_2017.csv is missing; unpack the set there "
                "(nihcc.app.box.com/v/ChestXray-NIHCC), or point data_root=DIR at the folder that has it"
            )
        split: dict[str, str] = {}
        for part, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
            if not (root / name).is_file():
                raise UserError(f"{root / name} is missing: it is part of the published set and says who trains")
            split |= dict.fromkeys((root / name).read_text().split(), part)
        places = {p.name: p.relative_to(root).as_posix() for p in below(root, (".png",))}
        rows: list[Row] = []
        for line in _csv(tables[0], self.COLUMNS):
            name, findings = line["Image Index"], line["Finding Labels"].split("|")
            if line["View Position"] != view or name not in split:
                continue
            if name not in places:
                raise UserError(f"{tables[0].name} lists {name}, which is not below {root}; unpack all images_*.tar.gz")
            normal = findings == ["No Finding"]
            kind = "good" if normal else findings[0] if len(findings) == 1 else "several"
            rows.append({"split": split[name], "label": int(not normal), "defect": kind, "path": places[name]})
        super().__init__(root, _checked(f"NIH chest X-rays ({view})", root, rows, expected), **reading)

    def read_image(self, row: int) -> np.ndarray:
        """(crop, crop, 3) uint8, or as much of it as there is."""
        return center_crop(super().read_image(row), self.crop)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} crop {self.crop}"


def _rows_of_list(root: Path, list_file: str) -> list[Row]:
    path = root / list_file
    if not path.is_file():
        raise UserError(f"data.list: there is no file {path}; it has the columns path,split,label[,defect]")
    rows: list[Row] = []
    for number, line in enumerate(_csv(path, ("path", "split", "label")), start=2):
        if line["split"] not in ("train", "test") or line["label"] not in ("0", "1"):
            raise UserError(f"{path}, line {number}: split is train or test and label 0 or 1, got {line}")
        if not (root / line["path"]).is_file():
            raise UserError(f"{path}, line {number}: there is no file {root / line['path']}")
        kind = line.get("defect") or "anomalous" if line["label"] == "1" else "good"
        rows.append({"split": line["split"], "label": int(line["label"]), "defect": kind, "path": line["path"]})
    return rows


def _rows_of_folders(root: Path, notes: Notes) -> list[Row]:
    rows: list[Row] = []
    for split in ("train", "test"):
        for folder in folders(root / split) if (root / split).is_dir() else ():
            label = int(folder.name.lower() not in NORMAL)
            kind = folder.name if label else "good"
            rows += [
                {"split": split, "label": label, "defect": kind, "path": p.relative_to(root).as_posix()}
                for p in listed(folder, notes, root)
            ]
    return rows


def _csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        missing = [name for name in columns if name not in (lines.fieldnames or ())]
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(lines.fieldnames or ['none'])}")
        return list(lines)


def _checked(name: str, root: Path, rows: list[Row], expected: Mapping[str, int] | None) -> Records:
    """Records, once their numbers are those of the paper."""
    if not rows:
        raise UserError(
            f"{name}: no image was found in {root}; expected {', '.join(SUFFIXES)} files in train/normal, test/normal "
            "and test/<kind>"
        )
    paths = [str(row["path"]) for row in rows]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{name}: {twice} is listed more than once")
    found = {
        f"{split}_{kind}": sum(row["split"] == split and row["label"] == label for row in rows)
        for split in ("train", "test")
        for label, kind in enumerate(("normal", "anomalous"))
    }
    wrong = [f"{key} {found[key]} instead of {n}" for key, n in (expected or {}).items() if found[key] != n]
    if wrong:
        raise UserError(
            f"{name} in {root} differs from the paper's split: {', '.join(wrong)}; data.expected=null takes it"
        )
    return Records.of(rows)

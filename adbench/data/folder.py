"""Any tree of normal and anomalous images, in MVTec layout or found by patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from adbench.data.images import SUFFIXES, ImageFiles, listed
from adbench.data.records import Records
from adbench.types import UserError

Row = dict[str, object]
Patterns = str | Sequence[str] | Mapping[str, str | Sequence[str]]


class Folder(ImageFiles):
    """Images below `root`.

    Without patterns the tree is in MVTec layout: `train/good`, `test/good`, `test/<defect>` and, where there are masks,
    `ground_truth/<defect>/<name>_mask.png`. With patterns (relative to `root`, `**` allowed):

    Args:
        root: the folder.
        normal: pattern or patterns of the normal images to train on.
        anomalous: patterns of anomalous images: one, a list (the defect is then named for the image's folder), or a
            mapping from the defect's name to its pattern or patterns.
        normal_test: pattern or patterns of normal test images (images that `normal` finds too are not trained on), or
            the share of the normal images to test with, evenly spread over their sorted names.
        masks: folder of masks below `root`, or null. The mask of `a/b/07.png` is `a/b/07`, `b/07` or `07` in it, with
            or without `_mask`, of any image suffix. Every anomalous image needs one.
    """

    def __init__(
        self,
        root: Path | str,
        normal: str | Sequence[str] | None = None,
        anomalous: Patterns | None = None,
        normal_test: str | Sequence[str] | float = 0.2,
        masks: str | None = None,
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}; give the folder of your images as data.root=DIR")
        if normal is None and anomalous is None:
            rows = mvtec_rows(root, "or say where images are: data.normal='ok/*.png' data.anomalous='bad/*.png'")
        else:
            rows = _pattern_rows(root, normal, anomalous, normal_test, masks)
        super().__init__(root, Records.of(rows))


def mvtec_rows(root: Path, advice: str) -> list[Row]:
    """The rows of a tree in MVTec layout; `advice` ends the message when it is not one."""
    good = root / "train" / "good"
    if not good.is_dir():
        inside = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else ["no such folder"]
        found = ", ".join(inside) or "nothing"
        raise UserError(f"expected normal training images in {good}; in {root} there is: {found}; {advice}")
    rows: list[Row] = [_row(root, path, "train", "good") for path in listed(good)]
    if not rows:
        raise UserError(f"expected images ({', '.join(SUFFIXES)}) in {good}, found none; {advice}")
    test, truth = root / "test", root / "ground_truth"
    for folder in sorted(p for p in test.iterdir() if p.is_dir()) if test.is_dir() else []:
        for path in listed(folder):
            row = _row(root, path, "test", folder.name)
            if row["label"] and truth.is_dir():
                row["mask"] = _mask(root, truth, path, [Path(folder.name)])
            rows.append(row)
    if len(rows) == len(listed(good)):
        raise UserError(f"expected test images in {test / 'good'} and {test}/<defect>, found none; {advice}")
    return rows


def _pattern_rows(
    root: Path,
    normal: str | Sequence[str] | None,
    anomalous: Patterns | None,
    normal_test: str | Sequence[str] | float,
    masks: str | None,
) -> list[Row]:
    if normal is None:
        raise UserError("data.anomalous is given but data.normal is not; give the pattern of the normal images too")
    train = _found(root, normal, "data.normal")
    if isinstance(normal_test, (int, float)):
        if not 0 <= normal_test < 1:
            raise UserError(f"data.normal_test is a pattern or a share in [0, 1), got {normal_test}")
        count = round(normal_test * len(train))
        test = [train[i] for i in np.linspace(0, len(train), count, endpoint=False).astype(int)]
    else:
        test = _found(root, normal_test, "data.normal_test")
    chosen = set(test)
    defects: dict[Path, str] = {}
    if isinstance(anomalous, Mapping):
        for name, patterns in anomalous.items():
            defects |= dict.fromkeys(_found(root, patterns, f"data.anomalous.{name}"), str(name))
    elif anomalous is not None:
        defects = {path: path.parent.name for path in _found(root, anomalous, "data.anomalous")}
    both = sorted(defects.keys() & {*train, *test})
    if both:
        raise UserError(
            f"{both[0]} is both normal and anomalous by the patterns given ({len(both)} such images); narrow "
            "data.normal or data.anomalous"
        )
    if masks is not None and not (root / masks).is_dir():
        raise UserError(
            f"data.masks: there is no folder {root / masks}; name a folder below {root}, or data.masks=null"
        )
    rows = [_row(root, path, "train", "good") for path in train if path not in chosen]
    rows += [_row(root, path, "test", "good") for path in test]
    for path, defect in sorted(defects.items()):
        row = _row(root, path, "test", defect) | {"label": 1}
        if masks is not None:
            inside = path.relative_to(root).parent
            row["mask"] = _mask(root, root / masks, path, [inside, Path(path.parent.name), Path(defect), Path()])
        rows.append(row)
    return rows


def _row(root: Path, path: Path, split: str, defect: str) -> Row:
    return {"split": split, "label": int(defect != "good"), "defect": defect, "path": path.relative_to(root).as_posix()}


def _found(root: Path, patterns: str | Sequence[str], key: str) -> list[Path]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found = {p for pattern in patterns for p in root.glob(pattern) if p.suffix.lower() in SUFFIXES and p.is_file()}
    found = {p for p in found if not p.name.startswith(".")}
    if not found:
        raise UserError(f"{key}: no image ({', '.join(SUFFIXES)}) matches {', '.join(patterns)} in {root}")
    return sorted(found)


def _mask(root: Path, truth: Path, path: Path, folders: Sequence[Path]) -> str:
    for folder in folders:
        for name in (f"{path.stem}_mask", path.stem):
            for suffix in (".png", *SUFFIXES):
                candidate = truth / folder / f"{name}{suffix}"
                if candidate.is_file() and candidate != path:
                    return candidate.relative_to(root).as_posix()
    raise UserError(
        f"the anomalous image {path} has no mask; expected {truth / folders[0] / path.stem}_mask.png; give every "
        f"anomalous image a mask, or move {truth} away to go without masks"
    )

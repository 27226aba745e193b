"""Any tree of normal and anomalous images, in MVTec layout or found by patterns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from adbench.data.images import MAX_PIXELS, ImageFiles
from adbench.data.listing import (
    SUFFIXES,
    Masks,
    below,
    folders,
    hidden,
    is_good,
    is_image,
    listed,
    named,
    printable,
)
from adbench.data.notes import Notes
from adbench.data.records import Records
from adbench.types import UserError

Row = dict[str, object]
Patterns = str | Sequence[str] | Mapping[str, str | Sequence[str]]


class Folder(ImageFiles):
    """Images below `root`.

    Without patterns the tree is in MVTec layout: `train/good`, `test/good`, `test/<defect>` and, where there are masks,
    `ground_truth/<defect>/<name>_mask.png`, these names in any case. With patterns (relative to `root`, `**` allowed)
    it may be any tree. Hidden folders and those of systems and tools (`.ipynb_checkpoints`, `@eaDir`, `__MACOSX`) count
    as not there; what else is left out is in `report`.

    Args:
        root: the folder.
        normal: pattern or patterns of the normal images to train on.
        anomalous: patterns of anomalous images: one, a list (the defect is then named for the image's folder), or a
            mapping from the defect's name to its pattern or patterns.
        normal_test: pattern or patterns of normal test images (images that `normal` finds too are not trained on), or
            the share of the normal images to test with, evenly spread over their sorted names.
        masks: folder of masks below `root`, or null. The mask of `a/b/07.png` is `a/b/07`, `b/07` or `07` in it, with
            or without `_mask`, of any image suffix and in any case. Every anomalous image needs one of its own.
        bits, max_pixels, unreadable: see `ImageFiles`.
    """

    def __init__(
        self,
        root: Path | str,
        normal: str | Sequence[str] | None = None,
        anomalous: Patterns | None = None,
        normal_test: str | Sequence[str] | float = 0.2,
        masks: str | None = None,
        bits: int = 16,
        max_pixels: int = MAX_PIXELS,
        unreadable: str = "refuse",
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(
                f"data.root: there is no folder {printable(root)}; give the folder of your images as data.root=DIR"
            )
        notes = Notes()
        self._rows = lambda notes, left_out: (
            mvtec_rows(root, "or say where images are: data.normal='ok/*.png' data.anomalous='bad/*.png'", notes)
            if normal is None and anomalous is None
            else _pattern_rows(root, normal, anomalous, normal_test, masks, notes, left_out)
        )
        super().__init__(root, Records.of(self._rows(notes, ())), bits, max_pixels, unreadable, notes)

    def _without(self, records: Records, left_out: Mapping[str, str]) -> Records:
        # Listed anew: which normal images `normal_test=0.2` takes depends on how many there are.
        again = Records.of(self._rows(Notes(), left_out))
        return super()._without(again, left_out)


def mvtec_rows(root: Path, advice: str, notes: Notes) -> list[Row]:
    """The rows of a tree in MVTec layout; `advice` ends the message when it is not one."""
    train, truth = named(root, "train"), named(root, "ground_truth")
    good = [folder for part in train for folder in named(part, "good")]
    if not good:
        inside = sorted(printable(p.name) for p in root.iterdir())[:8] if root.is_dir() else ["no such folder"]
        raise UserError(
            f"expected normal training images in {printable(root / 'train' / 'good')}; in {printable(root)} there is: "
            f"{', '.join(inside) or 'nothing'}; {advice}"
        )
    rows: list[Row] = [_row(root, path, "train", "good") for folder in good for path in listed(folder, notes, root)]
    if not rows:
        raise UserError(f"expected images ({', '.join(SUFFIXES)}) in {printable(good[0])}, found none; {advice}")
    masks = [Masks(folder, root) for folder in truth[:1]]
    tested = 0
    for folder in (folder for part in named(root, "test") for folder in folders(part)):
        for path in listed(folder, notes, root):
            row = _row(root, path, "test", "good" if is_good(folder.name) else folder.name)
            if row["label"] and masks:
                row["mask"] = masks[0].of(path, [Path(folder.name)])
            rows.append(row)
            tested += 1
    if not tested:
        test = printable(root / "test")
        raise UserError(f"expected test images in {test}/good and {test}/<defect>, found none; {advice}")
    _note_outside(root, [*train, *named(root, "test")], good, notes)
    for name in masks[0].unused() if masks else ():
        notes.add("masks_unused", name)
    return rows


def _note_outside(root: Path, parts: Sequence[Path], good: Sequence[Path], notes: Notes) -> None:
    """Images in `train` or `test` that are in no folder where images are looked for."""
    for part in parts:
        where = part.relative_to(root).as_posix()
        for path in (path for path in listed(part) if is_image(path)):
            notes.add("left_out", f"{where}/{printable(path.name)}", f"directly in {where}, in no folder of it")
        if part.name.casefold() == "train":
            for folder in (folder for folder in folders(part) if folder not in good):
                for path in below(folder):
                    notes.add("left_out", printable(path.relative_to(root).as_posix()), f"in {where}, not in good")


def _pattern_rows(
    root: Path,
    normal: str | Sequence[str] | None,
    anomalous: Patterns | None,
    normal_test: str | Sequence[str] | float,
    masks: str | None,
    notes: Notes,
    left_out: Collection[str],
) -> list[Row]:
    if normal is None:
        raise UserError("data.anomalous is given but data.normal is not; give the pattern of the normal images too")

    def found(patterns: str | Sequence[str], key: str) -> list[Path]:
        return _found(root, patterns, key, notes, left_out)

    train = found(normal, "data.normal")
    if isinstance(normal_test, (int, float)):
        if not 0 <= normal_test < 1:
            raise UserError(f"data.normal_test is a pattern or a share in [0, 1), got {normal_test}")
        count = round(normal_test * len(train))
        test = [train[i] for i in np.linspace(0, len(train), count, endpoint=False).astype(int)]
    else:
        test = found(normal_test, "data.normal_test")
    chosen = set(test)
    defects: dict[Path, str] = {}
    if isinstance(anomalous, Mapping):
        for name, patterns in anomalous.items():
            defects |= dict.fromkeys(found(patterns, f"data.anomalous.{name}"), str(name))
    elif anomalous is not None:
        defects = {path: path.parent.name for path in found(anomalous, "data.anomalous")}
    both = sorted(defects.keys() & {*train, *test})
    if both:
        raise UserError(
            f"{both[0]} is both normal and anomalous by the patterns given ({len(both)} such images); narrow "
            "data.normal or data.anomalous"
        )
    belonging = _masks(root, masks)
    rows = [_row(root, path, "train", "good") for path in train if path not in chosen]
    rows += [_row(root, path, "test", "good") for path in test]
    for path, defect in sorted(defects.items()):
        row = _row(root, path, "test", defect) | {"label": 1}
        if belonging is not None:
            inside = path.relative_to(root).parent
            row["mask"] = belonging.of(path, [inside, Path(path.parent.name), Path(defect), Path()])
        rows.append(row)
    if belonging is not None and not left_out:
        images = {path.relative_to(root).as_posix() for path in [*train, *test, *defects]}
        for name in belonging.unused():
            if name not in images:
                notes.add("masks_unused", name)
    return rows


def _row(root: Path, path: Path, split: str, defect: str) -> Row:
    return {"split": split, "label": int(defect != "good"), "defect": defect, "path": path.relative_to(root).as_posix()}


def _found(root: Path, patterns: str | Sequence[str], key: str, notes: Notes, left_out: Collection[str]) -> list[Path]:
    """Image files that patterns find, by name, without hidden ones, unless a pattern names the hidden folder itself."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    matching: set[Path] = set()
    for pattern in patterns:
        relative = _relative(root, pattern, key)
        for path in _glob(root, relative, key):
            parts = path.relative_to(root).parts
            if not any(hidden(part) and part not in relative.parts for part in parts) and not path.is_dir():
                matching.add(path)
    images = {path for path in matching if is_image(path) and (path.is_file() or path.is_symlink())}
    for path in matching - images:
        why = f"no image by its name ({path.suffix.lower() or 'no suffix'})"
        notes.add("left_out", printable(path.relative_to(root).as_posix()), why)
    if not images:
        raise UserError(
            f"{key}: no image ({', '.join(SUFFIXES)}) matches {', '.join(map(str, patterns))} in {printable(root)}"
        )
    return sorted(path for path in images if path.relative_to(root).as_posix() not in left_out)


def _relative(root: Path, pattern: str, key: str) -> Path:
    """A pattern relative to the root; an absolute one is taken if it begins with the root."""
    relative = Path(str(pattern)).expanduser()
    for start in (root, root.resolve()):
        if relative.is_absolute() and relative.is_relative_to(start):
            relative = relative.relative_to(start)
    if relative.is_absolute() or not relative.parts:
        raise UserError(
            f"{key}={pattern}: patterns are relative to data.root={printable(root)}; write the part behind it, "
            "'ok/*.png' for instance"
        )
    return relative


def _glob(root: Path, pattern: Path, key: str) -> list[Path]:
    try:
        return list(root.glob(str(pattern)))
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{key}={pattern} cannot be searched for in {printable(root)}: {error}") from error


def _masks(root: Path, masks: str | None) -> Masks | None:
    """The masks of a folder that is named relative to the root, or by its full path if that lies below the root."""
    if masks is None:
        return None
    folder = root / Path(str(masks)).expanduser()
    if not folder.is_relative_to(root) and folder.resolve().is_relative_to(root.resolve()):
        folder = root / folder.resolve().relative_to(root.resolve())
    if not folder.is_dir() or not folder.is_relative_to(root):
        raise UserError(
            f"data.masks: there is no folder {printable(folder)} below {printable(root)}; name one there, or "
            "data.masks=null"
        )
    return Masks(folder, root)

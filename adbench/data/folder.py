"""Any tree of normal and anomalous images: by the names of its folders, in MVTec layout, or found by patterns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adbench.data.images import MAX_PIXELS, ImageFiles
from adbench.data.layout import Understanding, understand
from adbench.data.listing import (
    SUFFIXES,
    Masks,
    below,
    folders,
    folders_of,
    hidden,
    in_order,
    inside,
    is_good,
    is_image,
    listed,
    named,
    printable,
    scanned,
    uncollected,
)
from adbench.data.notes import Notes
from adbench.data.records import Records
from adbench.types import UserError

WRITTEN = ("metrics.json", "predict.json", "report.html")  # in folders that this program has written

Row = dict[str, object]
Patterns = str | Sequence[str] | Mapping[str, str | Sequence[str]]


class Folder(ImageFiles):
    """Images below `root`.

    Without patterns the names say what the images are, in any case: `good`, `ok`, `normal` or `pass` holds normal
    ones, `bad`, `nok`, `ng`, `reject`, `defect...` or `anomal...` anomalous ones (a folder in it is a kind of defect),
    `train` and `test` divide them, `ground_truth` or `masks` holds masks (`adbench.data.layout`). A tree in MVTec
    layout (`train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>/<name>_mask.png`) is read as such. Images
    in no folder are normal. Patterns relative to `root` (`**` allowed) and names of folders say it otherwise. Hidden
    folders and those of systems and tools (`.ipynb_checkpoints`, `@eaDir`, `__MACOSX`) count as not there; what else is
    left out is in `report`.

    Args:
        root: the folder.
        normal: pattern, folder or a list of them: the normal images to train on. None: see above.
        anomalous: the same of anomalous images (the kind is named for the image's folder), or a mapping from the kind
            to its patterns. None: see above; an empty list: none.
        normal_test: pattern or patterns of normal test images (images that `normal` finds too are not trained on), or
            the share of the normal images to test with, where there are anomalous ones and no folder divides them.
        masks: folder of masks below `root`. The mask of `a/b/07.png` is `a/b/07`, `b/07` or `07` in it, with or without
            `_mask`, of any image suffix and in any case. Every anomalous image needs one of its own.
        seed: the share of test images is evenly spread over the sorted names, from a place on that the seed decides.
        bits, max_pixels, unreadable: see `ImageFiles`.

    Raises:
        UserError: there is no such folder, names and patterns do not say what the images are, or an image lacks its
            mask; the message says what to type.

    Attributes:
        good_alone: whether all images are normal and none is to be tested.
        undivided: whether nothing but a share says which of the normal images are tested.
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
        seed: int = 0,
    ) -> None:
        root = Path(root).expanduser()
        if root.is_file():
            raise UserError(
                f"data.root: {printable(root)} is a file; give the folder that your images lie in as "
                f"data.root={printable(root.parent)}"
            )
        if not root.is_dir():
            raise UserError(
                f"data.root: there is no folder {printable(root)}; give the folder of your images as data.root=DIR"
            )
        notes = Notes()
        self.root, self._asked = root, (normal, anomalous, normal_test, masks, seed)
        self.undivided = False
        with uncollected():
            records = Records.of(self._rows(notes, ()))
        super().__init__(root, records, bits, max_pixels, unreadable, notes)
        self.good_alone = not records.label.any() and not (records.split == "test").any()

    def _rows(self, notes: Notes, left_out: Collection[str]) -> list[Row]:
        normal, anomalous, normal_test, masks, seed = self._asked
        if normal is None and anomalous is None and in_mvtec_layout(self.root):
            advice = "or say where images are: data.normal='ok/*.png' data.anomalous='bad/*.png'"
            return mvtec_rows(self.root, advice, notes)
        by_names = _Rows(self.root, masks, notes, left_out)
        found = by_names.of(normal, anomalous, normal_test, seed)
        self.undivided = by_names.by_share
        return found

    def _without(self, records: Records, left_out: Mapping[str, str]) -> Records:
        # Listed anew: which normal images `normal_test=0.2` takes depends on how many there are.
        again = Records.of(self._rows(Notes(), left_out))
        return super()._without(again, left_out)


def in_mvtec_layout(root: Path) -> bool:
    """Whether there are `train/good` and `test`."""
    return bool([good for part in named(root, "train") for good in named(part, "good")] and named(root, "test"))


def mvtec_rows(root: Path, advice: str, notes: Notes) -> list[Row]:
    """The rows of a tree in MVTec layout.

    Args:
        root: of the tree.
        advice: ends the message where it is no such tree.
        notes: where what is left out is written.

    Raises:
        UserError: there are no normal training images or no test images, or an anomalous image lacks its mask.
    """
    train, truth = named(root, "train"), named(root, "ground_truth")
    good = [folder for part in train for folder in named(part, "good")]
    if not good:
        there = sorted(printable(p.name) for p in root.iterdir())[:8] if root.is_dir() else ["no such folder"]
        raise UserError(
            f"expected normal training images in {printable(root / 'train' / 'good')}; in {printable(root)} there is: "
            f"{', '.join(there) or 'nothing'}; {advice}"
        )
    name = inside(root)
    rows: list[Row] = [_row(name(path), "train", "good") for folder in good for path in listed(folder, notes, root)]
    if not rows:
        raise UserError(f"expected images ({', '.join(SUFFIXES)}) in {printable(good[0])}, found none; {advice}")
    masks = [Masks(folder, root) for folder in truth[:1]]
    tested = 0
    for folder in (folder for part in named(root, "test") for folder in folders(part)):
        for path in listed(folder, notes, root):
            row = _row(name(path), "test", "good" if is_good(folder.name) else folder.name)
            if row["label"] and masks:
                row["mask"] = masks[0].of(path, [Path(folder.name)])
            rows.append(row)
            tested += 1
    if not tested:
        test = printable(root / "test")
        raise UserError(f"expected test images in {test}/good and {test}/<defect>, found none; {advice}")
    _note_outside(root, [*train, *named(root, "test")], good, notes)
    for mask in masks[0].unused() if masks else ():
        notes.add("masks_unused", mask)
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


@dataclass
class _Rows:
    """The rows of a tree by patterns, and by names where there are none.

    Args:
        root, masks: see `Folder`.
        notes: where what is left out is written.
        left_out: paths relative to the root that count as not there.
    """

    root: Path
    masks: str | None
    notes: Notes
    left_out: Collection[str]
    by_share: bool = False  # whether a share of the normal images is tested; known after `of`

    def of(
        self,
        normal: str | Sequence[str] | None,
        anomalous: Patterns | None,
        normal_test: str | Sequence[str] | float,
        seed: int,
    ) -> list[Row]:
        train = [] if normal is None else list(self.found(normal, "data.normal"))
        defects = {} if anomalous is None else self.kinds(anomalous)
        both = sorted(defects.keys() & set(train))
        if both:
            raise UserError(
                f"{both[0]} is both normal and anomalous by the patterns given ({len(both)} such images); narrow "
                "data.normal or data.anomalous"
            )
        names = Understanding()
        if normal is None or anomalous is None:
            images = users_own(self.root)
            if self.left_out:
                images = [path for path in images if self.inside(path) not in self.left_out]
            known = "" if normal is anomalous else "anomalous" if normal is None else "normal"
            names = understand(self.root, images, {*train, *defects}, known)
            self.note(names)
        train = train if normal is not None else names.train
        defects |= {path: kind for path, (kind, split) in names.anomalous.items()}
        known_defects = {path for path, (_, split) in names.anomalous.items() if split == "train"}
        test = self.tested(train, names.test, defects, normal_test, seed)
        chosen = set(test)
        name = inside(self.root)
        rows = [_row(name(path), "train", "good") for path in train if not chosen or path not in chosen]
        rows += [_row(name(path), "test", "good") for path in test]
        belonging = _masks(self.root, self.masks) if self.masks is not None else None
        if self.masks is None and names.masks is not None and defects:
            belonging = Masks(names.masks, self.root)
        for path in in_order(defects):
            defect = defects[path]
            row = _row(name(path), "train" if path in known_defects else "test", defect) | {"label": 1}
            if belonging is not None:
                its_folder = path.relative_to(self.root).parent
                row["mask"] = belonging.of(path, [its_folder, Path(path.parent.name), Path(defect), Path()])
            rows.append(row)
        if belonging is not None and not self.left_out:
            images_named = {self.inside(path) for path in [*train, *test, *defects]}
            for mask in belonging.unused():
                if mask not in images_named:
                    self.notes.add("masks_unused", mask)
        return rows

    def inside(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def note(self, names: Understanding) -> None:
        """Note what the names give no part to, and files beside images that are none by their names."""
        for path, why in names.ignored.items():
            self.notes.add("left_out", printable(self.inside(path)), why)
        for folder in folders_of([*names.train, *names.test, *names.anomalous]):
            others = [name for name in (entry.name for entry in scanned(folder)) if not name.lower().endswith(SUFFIXES)]
            for path in (folder / name for name in others):
                if not is_image(path) and not path.is_dir():
                    why = f"no image by its name ({path.suffix.lower() or 'no suffix'})"
                    self.notes.add("left_out", printable(self.inside(path)), why)

    def tested(
        self, train: list[Path], named: list[Path], defects: Collection[Path],
        normal_test: str | Sequence[str] | float, seed: int,
    ) -> list[Path]:  # fmt: skip
        """The normal images to test with."""
        if not isinstance(normal_test, (int, float)):
            test = list(self.found(normal_test, "data.normal_test"))
            wrong = sorted(set(test) & set(defects))
            if wrong:
                raise UserError(f"{wrong[0]} is both normal and anomalous by the patterns given; narrow one of them")
            return test
        if not 0 <= normal_test < 1:
            raise UserError(f"data.normal_test is a pattern or a share in [0, 1), got {normal_test}")
        if named or not defects:  # nothing can be measured without anomalous images: all train
            return named
        self.by_share = True
        return [train[i] for i in evenly(len(train), round(normal_test * len(train)), seed)]

    def kinds(self, anomalous: Patterns) -> dict[Path, str]:
        """The anomalous images that patterns find, and the kind of each."""
        if isinstance(anomalous, Mapping):
            found: dict[Path, str] = {}
            for name, patterns in anomalous.items():
                found |= dict.fromkeys(self.found(patterns, f"data.anomalous.{name}"), str(name))
            return found
        if not anomalous:
            return {}
        kinds = {}
        for path, folder in self.found(anomalous, "data.anomalous").items():
            inner = path.relative_to(folder).parts[:-1]
            kinds[path] = inner[0] if inner else folder.name if folder != self.root else "anomalous"
        return kinds

    def found(self, patterns: str | Sequence[str], key: str) -> dict[Path, Path]:
        return _found(self.root, patterns, key, self.notes, self.left_out)


def users_own(root: Path) -> list[Path]:
    """The images below a folder without those that runs, predictions and reports of this program have drawn there."""
    drawn: dict[Path, bool] = {root: False}

    def by_a_run(folder: Path) -> bool:
        if folder not in drawn:
            drawn[folder] = by_a_run(folder.parent) or any((folder / name).exists() for name in WRITTEN)
        return drawn[folder]

    found = below(root)
    by_runs = {folder: by_a_run(folder) for folder in folders_of(found)}
    return [path for path in found if not by_runs[path.parent]] if any(by_runs.values()) else found


def evenly(n: int, count: int, seed: int) -> list[int]:
    """`count` of the numbers 0 .. n - 1, evenly spread, in order; another seed begins at another place.

    Number i is the whole part of (i + u) n / count, where u is the fraction of the seed times the golden ratio.

    Args:
        n, count: 0 <= count <= n.
        seed: of the run; 0 begins with the first.
    """
    start = seed * (math.sqrt(5) - 1) / 2 % 1
    places = np.linspace(0, n, count, endpoint=False) + (start * n / count if count else 0)
    return [int(place) for place in places.astype(int)]


def _row(path: str, split: str, defect: str) -> Row:
    return {"split": split, "label": int(defect != "good"), "defect": defect, "path": path}


def _found(
    root: Path, patterns: str | Sequence[str], key: str, notes: Notes, left_out: Collection[str]
) -> dict[Path, Path]:
    """Image files that patterns or names of folders find, in order, each with the folder that its kind is named for.

    Hidden ones are not found, unless a pattern names the hidden folder itself.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    matching: dict[Path, Path] = {}
    for pattern in patterns:
        relative = _relative(root, pattern, key)
        if whole := _folders(root, relative):
            for folder in whole:
                matching |= dict.fromkeys(below(folder) if folder != root else listed(root), folder)
            continue
        hits = _glob(root, relative, key)
        seen = [path for path in hits if not _hidden(root, path, relative)]
        files = [path for path in seen if not path.is_dir()]
        matching |= {path: path.parent for path in files}
        if not files:  # "good*" may mean good_1, good_2
            matching |= {path: folder for folder in seen for path in below(folder)}
    images = {path for path in matching if is_image(path) and (path.is_file() or path.is_symlink())}
    name = inside(root)
    for path in matching.keys() - images:
        why = f"no image by its name ({path.suffix.lower() or 'no suffix'})"
        notes.add("left_out", printable(path.relative_to(root).as_posix()), why)
    if not images:
        raise UserError(
            f"{key}: no image ({', '.join(SUFFIXES)}) matches {', '.join(map(str, patterns))} in {printable(root)}"
            f"{_there(root)}"
        )
    return {path: matching[path] for path in in_order(images) if not left_out or name(path) not in left_out}


def _folders(root: Path, relative: Path) -> list[Path]:
    """The folder of that name below the root; if there is none, those of that name in another case."""
    if (root / relative).is_dir():
        return [root / relative]
    found = [root]
    for part in relative.parts:
        found = [inner for folder in found for inner in named(folder, part.casefold())]
    return found


def _hidden(root: Path, path: Path, pattern: Path) -> bool:
    return any(hidden(part) and part not in pattern.parts for part in path.relative_to(root).parts)


def _there(root: Path) -> str:
    """The folders of a root, for a message."""
    names = [printable(path.name) for path in folders(root)]
    return f", whose folders are {', '.join(names[:8])}{', ...' if names[8:] else ''}" if names else ""


def _relative(root: Path, pattern: str, key: str) -> Path:
    """A pattern relative to the root; an absolute one is taken if it begins with the root."""
    relative = Path(str(pattern)).expanduser()
    for start in (root, root.resolve()):
        if relative.is_absolute() and relative.is_relative_to(start):
            relative = relative.relative_to(start)
    if relative.is_absolute() or not str(pattern).strip():
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

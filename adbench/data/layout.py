"""What the folders of a user's images are called, and what that says of the images in them."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adbench.data.listing import SUFFIXES, folder_name, folders_of, printable
from adbench.errors import UserError

# Names without case, spaces, dashes and underscores.
NORMAL = re.compile(r"good|ok|okay|normal|pass|passed|defectfree|nodefects?")
ANOMALOUS = re.compile(r"bad|nok|notok|ng|rejects?|rejected|abnormal|(?!defectfree)defect.*|anomal.*")
MASKS = re.compile(r"groundtruth|masks?")
TRAIN = re.compile(r"train|training")
TEST = re.compile(r"test|testing")
WORD = re.compile(r"^(defect[ _-]?free|not[ _-]?ok|no[ _-]?defects?|[^\W\d_]+)(?=[\W\d_]|$)")
MANY = 8  # folders that a message names


def plain(name: str) -> str:
    """A name as it is compared: "Defect_Free" is "defectfree"."""
    return re.sub(r"[\s_-]+", "", name.casefold())


def is_normal(name: str) -> bool:
    """Whether a folder's name says that its images are normal: good, ok, normal, pass, ... in any case."""
    return NORMAL.fullmatch(plain(name)) is not None


def is_anomalous(name: str) -> bool:
    """Whether a folder's name says that its images are anomalous: bad, nok, ng, reject, defect*, ... in any case."""
    return ANOMALOUS.fullmatch(plain(name)) is not None


@dataclass
class Understanding:
    """What the names say.

    Attributes:
        train: normal images without a place of their own in a test.
        test: normal images in a folder for the test.
        anomalous: image -> (kind, "train" or "test").
        masks: the folder of masks, if there is one.
        ignored: image -> why it has no part.
    """

    train: list[Path] = field(default_factory=list)
    test: list[Path] = field(default_factory=list)
    anomalous: dict[Path, tuple[str, str]] = field(default_factory=dict)
    masks: Path | None = None
    ignored: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """What the folders above an image say: `role` is normal, anomalous, mask, beside (a mask beside its
    image), unknown (folders of other names) or open (in no folder)."""

    role: str
    split: str  # "train", "test" or "": nobody says
    named: tuple[str, ...]  # the folders down to the one that decides
    kind: str = ""


def understand(root: Path, images: Sequence[Path], taken: Collection[Path] = (), known: str = "") -> Understanding:
    """What each image below a folder is, by the names of the folders above it, and in a flat folder by its own.

    Args:
        root: of the data set.
        images: below it.
        taken: those of which patterns say what they are; nothing is said of them here.
        known: "normal" or "anomalous" if `taken` are all images of that kind.

    Raises:
        UserError: the names do not say it; the message says what to type.
    """
    base = _base(root, images)
    places = _places(base, images)
    found = Understanding(masks=_mask_folder(root, base, places))
    by_role: dict[str, list[Path]] = {role: [] for role in ("normal", "anomalous", "open", "unknown", "mask", "beside")}
    for path, place in places.items():
        if not taken or path not in taken:
            by_role[place.role].append(path)
    found.ignored |= dict.fromkeys(by_role["beside"], "the mask of the image beside it, not in a folder of masks")
    if known != "anomalous":
        found.anomalous = {path: (places[path].kind, places[path].split or "test") for path in by_role["anomalous"]}
    if known == "normal":
        others = [*by_role["normal"], *by_role["open"], *by_role["unknown"]]
        found.ignored |= dict.fromkeys(others, "data.normal does not find it")
        return found
    _normal(root, base, images, places, by_role, found, known)
    unknown = by_role["unknown"]
    if unknown and not found.anomalous and not known:
        raise UserError(_who_is_anomalous(root, base, unknown, places))
    found.ignored |= dict.fromkeys(unknown, "in a folder whose name says nothing of its images")
    return found


def _normal(root: Path, base: Path, images: Sequence[Path], places: dict[Path, _Place],
            by_role: dict[str, list[Path]], found: Understanding, known: str) -> None:  # fmt: skip
    """Find the normal images."""
    _refuse_several_normal(root, base, by_role["normal"], places)
    for path in by_role["normal"]:
        (found.test if places[path].split == "test" else found.train).append(path)
    loose = by_role["open"]
    if found.train:
        found.ignored |= dict.fromkeys(loose, "in no folder, and another one holds the normal images")
    elif loose and (known or found.anomalous or not by_role["unknown"]):
        _by_own_names(loose, found)
    if not found.train and found.test:
        place = _relative(root, base.joinpath(*places[found.test[0]].named))
        raise UserError(
            f"all normal images are for the test ({place}), none is left to train on: put some into train/good, or say "
            f"{typed('data.normal', place)}, of which data.normal_test are tested"
        )
    if not found.train:
        raise UserError(_who_is_normal(root, images, places))


def _base(root: Path, images: Iterable[Path]) -> Path:
    """The folder that the names count from: below folders that hold nothing but one other of no known name."""
    parts = sorted(folder.relative_to(root).parts for folder in folders_of(images))
    depth = 0
    while parts and all(len(p) > depth for p in parts) and len({p[depth] for p in parts}) == 1:
        name = parts[0][depth]
        if _place((name,)).role != "unknown" or TRAIN.fullmatch(plain(name)) or TEST.fullmatch(plain(name)):
            break
        if any(len(p) == depth + 1 for p in parts):  # it holds the images itself
            break
        depth += 1
    return root.joinpath(*parts[0][:depth]) if parts else root


def _places(base: Path, images: Sequence[Path]) -> dict[Path, _Place]:
    """What the folders above each image say, asked once for each folder.

    An image that is called as the mask of another one in its folder, 07_mask.png beside 07.png, is beside it.
    """
    by_folder: dict[str, list[Path]] = {}
    for path in images:
        by_folder.setdefault(folder_name(path), []).append(path)
    places = dict.fromkeys(images, _Place("unknown", "", ()))  # in their order
    for inner in by_folder.values():
        names = inner[0].parent.relative_to(base).parts
        places.update(dict.fromkeys(inner, _place(names)))
        stems = {path: path.stem.casefold() for path in inner if "_mask" in path.name.casefold()}
        if stems:
            there = {path.stem.casefold() for path in inner}
            beside = [p for p, stem in stems.items() if stem.endswith("_mask") and stem.removesuffix("_mask") in there]
            places.update(dict.fromkeys(beside, _place(names, beside=True)))
    return places


def _place(folders: tuple[str, ...], beside: bool = False) -> _Place:
    if beside and not any(MASKS.fullmatch(plain(name)) for name in folders):
        return _Place("beside", "", folders)
    split, rest = "", folders
    above: tuple[str, ...] = ()
    if folders and TRAIN.fullmatch(plain(folders[0])):
        split, rest, above = "train", folders[1:], folders[:1]
    elif folders and TEST.fullmatch(plain(folders[0])):
        split, rest, above = "test", folders[1:], folders[:1]
    for i, name in enumerate(rest):
        named = (*above, *rest[: i + 1])
        if MASKS.fullmatch(plain(name)):
            return _Place("mask", split, named)
        if is_normal(name):
            inner = rest[i + 1 : i + 2]  # good/test beside good/train
            split = split or ("test" if inner and TEST.fullmatch(plain(inner[0])) else "")
            return _Place("normal", split, named)
        if is_anomalous(name):
            inner = rest[i + 1 : i + 2]
            return _Place("anomalous", split, named, inner[0] if inner and not _is_part(inner[0]) else name)
    if split == "test" and rest:
        return _Place("anomalous", split, (*above, rest[0]), rest[0])
    if split == "train" and not rest:
        return _Place("normal", split, above)
    if split == "test" or not folders:
        return _Place("open" if not folders else "unknown", split, above)
    return _Place("unknown", split, (*above, *rest[:1]))


def _is_part(name: str) -> bool:
    return bool(TRAIN.fullmatch(plain(name)) or TEST.fullmatch(plain(name)))


def _mask_folder(root: Path, base: Path, places: dict[Path, _Place]) -> Path | None:
    found = sorted({place.named for place in places.values() if place.role == "mask"})
    if len(found) > 1:
        names = [_relative(root, base.joinpath(*named)) for named in found]
        raise UserError(f"several folders may hold the masks: {', '.join(names)}; say {typed('data.masks', names[0])}")
    return base.joinpath(*found[0]) if found else None


def _refuse_several_normal(root: Path, base: Path, normal: Iterable[Path], places: dict[Path, _Place]) -> None:
    found = sorted({place.named for place in map(places.__getitem__, normal) if place.split != "test"})
    if len(found) > 1:
        names = [_relative(root, base.joinpath(*named)) for named in found]
        both = typed("data.normal", _listed(names))
        raise UserError(
            f"several folders may hold the normal images: {', '.join(names)}; say {typed('data.normal', names[0])} for "
            f"one of them, or {both}"
        )


def _by_own_names(images: list[Path], found: Understanding) -> None:
    """Images in no named folder are normal, unless their own names say otherwise: bad_01.png beside good_01.png.

    Raises:
        UserError: some names say that their images are anomalous, and others say nothing.
    """
    words = {path: _word(path) for path in images}
    bad = [path for path in images if is_anomalous(words[path])]
    silent = [path for path in images if path not in set(bad) and not is_normal(words[path])]
    if bad and silent:
        prefix = Counter(words[path] for path in silent if words[path]).most_common(1)
        normal = f"{prefix[0][0]}*" if prefix else silent[0].name
        bad_one = Counter(words[path] for path in bad).most_common(1)[0][0]
        raise UserError(
            f"{len(bad)} images in {printable(images[0].parent)} begin with a word for anomalous ones "
            f"({printable(bad[0].name)}), {len(silent)} with none for either ({printable(silent[0].name)}); say which "
            f"are which: {typed('data.normal', normal)} {typed('data.anomalous', f'{bad_one}*')}"
        )
    for path in images:
        if path in set(bad):
            found.anomalous[path] = words[path], "test"
        else:
            found.train.append(path)


def _word(path: Path) -> str:
    """The word that a file's name begins with; empty where it begins otherwise."""
    match = WORD.match(path.stem.casefold())
    return path.stem[: match.end()] if match else ""


# -- messages ---------------------------------------------------------------------------------------------------------


def typed(key: str, value: str) -> str:
    """An argument as a shell takes it."""
    return shlex.quote(f"{key}={printable(value)}")


def _listed(names: Sequence[str]) -> str:
    """Names as one value: what Hydra's grammar does not take within a list goes into quotes."""
    if len(names) == 1:
        return names[0]
    bare = re.compile(r"[A-Za-z0-9_ ./-]+")
    return f"[{','.join(n if bare.fullmatch(n) else json.dumps(n, ensure_ascii=False) for n in names)}]"


def _relative(root: Path, path: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _counted(root: Path, images: Iterable[Path]) -> list[tuple[str, int]]:
    """The folders that hold images, and how many each."""
    counts = Counter(_relative(root, path.parent) for path in images)
    return sorted(counts.items())


def _who_is_normal(root: Path, images: Sequence[Path], places: dict[Path, _Place]) -> str:
    if not images:
        return f"data.root: there is no image ({', '.join(SUFFIXES)}) in {printable(root)} or its folders"
    counts = _counted(root, images)
    listing = ", ".join(f"{name} ({count})" for name, count in counts[:MANY]) + (", ..." if len(counts) > MANY else "")
    open_to = [path for path, place in places.items() if place.role in ("unknown", "open")]
    if not open_to:  # none of these folders is to be offered as normal
        return (
            f"no image in {printable(root)} is normal, and training needs normal ones: {listing}. Put them into "
            f"{printable(root / 'good')}, or say data.normal=NAME if a folder is called otherwise"
        )
    example = typed("data.normal", _counted(root, open_to)[0][0])
    return (
        f"which images in {printable(root)} are normal? No folder is called good, ok, normal or pass. Folders and "
        f"their images: {listing}. Say data.normal=NAME, {example} for instance, and data.anomalous=NAME if there are "
        "anomalous ones"
    )


def _who_is_anomalous(root: Path, base: Path, unknown: list[Path], places: dict[Path, _Place]) -> str:
    names = sorted({_relative(root, base.joinpath(*places[path].named)) for path in unknown})
    normal = sorted({place.named for place in places.values() if place.role == "normal"})
    choice = typed("data.normal", _relative(root, base.joinpath(*normal[0])) if normal else ".")
    listing = ", ".join(f"{name}" for name in names[:MANY]) + (", ..." if len(names) > MANY else "")
    return (
        f"are the images in {listing} anomalous? No folder is called bad, nok, ng, reject, defect... or anomal.... Say "
        f"{choice} {typed('data.anomalous', _listed(names))} to test with them, or {choice} 'data.anomalous=[]' to "
        "leave them out"
    )

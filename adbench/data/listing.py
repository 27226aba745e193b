"""Which files of a folder are images, and which mask belongs to which image."""

from __future__ import annotations

import gc
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adbench.data.notes import Notes
from adbench.types import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm",
            ".pnm")  # fmt: skip
# What systems and tools leave in folders of images: never an image, whatever is in it.
SYSTEM = ("@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")


def hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a tool's, not the user's: ".ipynb_checkpoints", "@eaDir", "._copy"."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in SYSTEM


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, in any case."""
    return path.suffix.lower() in SUFFIXES


def in_order(paths: Iterable[Path]) -> list[Path]:
    """`sorted`, without a comparison in Python for each pair of paths."""
    return sorted(paths) if os.name == "nt" else sorted(paths, key=lambda path: path.parts)


def inside(root: Path) -> Callable[[Path], str]:
    """A function that gives the name of what was found below `root`, relative to it, with slashes.

    It cuts the root off where `Path.relative_to` compares part by part, which counts with a hundred thousand files.
    """
    length = len((root / "x").as_posix()) - 1
    return lambda path: path.as_posix()[length:]


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage collection off: a list of a hundred thousand paths has none, and is looked through again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def folder_name(path: Path) -> str:
    """The folder that a path is in, as text: to ask of each folder once what many paths share."""
    return str(path).rpartition(os.sep)[0]


def folders_of(paths: Iterable[Path]) -> list[Path]:
    """The folders that paths are in, each once."""
    return [path.parent for path in {folder_name(path): path for path in paths}.values()]


def scanned(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without what is hidden. An entry knows whether it is a folder without a look at the file.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not hidden(entry.name)]
    except OSError as error:
        raise UserError(f"cannot list the folder {printable(folder)}: {error.strerror or error}") from error


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name, without what is hidden.

    Raises:
        UserError: the folder cannot be listed.
    """
    return in_order(folder / entry.name for entry in scanned(folder))


def listed(folder: Path, notes: Notes | None = None, root: Path | None = None) -> list[Path]:
    """Image files directly in a folder, by name; what else lies there is noted, named relative to `root`.

    A link to a file that is not there is listed too: reading it says so.
    """
    found, notes, root = [], notes or Notes(), root or folder
    for entry in scanned(folder):
        path = folder / entry.name
        if _is_folder(entry):
            for inner in below(path):
                notes.add("left_out", _name(inner, root), f"in a folder below {_name(folder, root)}")
        elif is_image(path) and _is_file(entry):
            found.append(path)
        else:
            notes.add("left_out", _name(path, root), f"no image by its name ({path.suffix.lower() or 'no suffix'})")
    return in_order(found)


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones."""
    return in_order(folder / entry.name for entry in scanned(folder) if _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; as `Path.is_dir`, False where that cannot be seen."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to whatever, be it there or not."""
    try:
        return entry.is_symlink() or entry.is_file()
    except OSError:
        return False


def named(folder: Path, name: str) -> list[Path]:
    """The folders in a folder that are called `name` in any case: on most disks one at most."""
    return [path for path in folders(folder) if path.name.casefold() == name] if folder.is_dir() else []


def below(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Files with these suffixes in a folder and all folders below it, by name, without what is hidden.

    Linked folders are searched as well; a folder that several links lead to is searched once, so no loop of links is
    endless.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting: list[Path] = [folder]
    links: list[Path] = []
    while waiting or links:
        place = waiting.pop() if waiting else links.pop()  # a folder's own name before those of links to it
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        deeper = []
        for entry in scanned(place):
            path = place / entry.name
            if _is_folder(entry):
                deeper.append((path, entry.is_symlink()))
            elif path.suffix.lower() in suffixes and _is_file(entry):
                found.append(path)
        for path, linked in sorted(deeper):
            (links if linked else waiting).append(path)
    return in_order(found)


def printable(path: Path | str) -> str:
    """A path as text that can be printed, whatever bytes its name is made of."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def told_apart(paths: Iterable[Path | str]) -> str:
    """Names in a row; where two of them look alike, all with their accents as codes."""
    names = [printable(path) for path in paths]
    if len({unicodedata.normalize("NFC", name) for name in names}) < len(names):
        names = [name.encode("unicode_escape").decode() for name in names]
    return " and ".join(names)


def refuse_names(paths: Iterable[str], root: Path) -> None:
    """Names that no table can hold.

    Raises:
        UserError: a name is no UTF-8.
    """
    for path in paths:
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"the name of {printable(path)} in {printable(root)} is no UTF-8, so no table can hold it; rename the "
                "file (the bytes that are wrong stand behind \\udc)"
            ) from None


class Masks:
    """The masks below a folder, found by the names of their images.

    Names are compared regardless of case and after Unicode normalisation: `Größe_mask.PNG` is the mask of `größe.png`,
    however either system writes the umlaut. A mask belongs to one image.

    Args:
        folder: of the masks.
        root: the data set's, for messages and for the names that `of` gives.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self._index: dict[tuple[str, str], list[Path]] = {}
        for path in below(folder):
            key = _plain(path.relative_to(folder).parent.as_posix()), _plain(path.stem)
            self._index.setdefault(key, []).append(path)
        self._given: dict[Path, Path] = {}

    def of(self, image: Path, places: Sequence[Path]) -> str:
        """The mask of an image, relative to the root: `<name>_mask` or `<name>` in one of the places below the folder.

        Raises:
            UserError: there is none, there are several, or it is another image's already.
        """
        for place in places:
            for stem in (f"{image.stem}_mask", image.stem):
                key = _plain(place.as_posix()), _plain(stem)
                found = [path for path in self._index.get(key, ()) if path != image]
                if found:
                    return self._give(image, _chosen(image, stem, found))
        raise UserError(
            f"the anomalous image {printable(image)} has no mask; expected "
            f"{printable(self.folder / places[0] / image.stem)}_mask.png; give every anomalous image a mask, or move "
            f"{printable(self.folder)} away to go without masks"
        )

    def _give(self, image: Path, mask: Path) -> str:
        if mask in self._given:
            raise UserError(
                f"{told_apart([self._given[mask], image])} would share the mask {printable(mask)}: masks go by the "
                "name without its suffix, and a mask belongs to one image; rename one of the two and give each its own "
                f"mask, in folders below {printable(self.folder)} as the images are"
            )
        self._given[mask] = image
        return mask.relative_to(self.root).as_posix()

    def unused(self) -> list[str]:
        """Masks that no image has asked for, but for those of good images; relative to the root."""
        left = {path for paths in self._index.values() for path in paths} - self._given.keys()
        return sorted(_name(path, self.root) for path in left if not is_good(path.parent.name))


def is_good(name: str) -> bool:
    """Whether a folder's name says that its images are normal."""
    return name.casefold() == "good"


def _chosen(image: Path, stem: str, found: list[Path]) -> Path:
    """The one of several masks whose name or suffix is the image's own."""
    for fits in (
        lambda path: path.parent.name == image.parent.name,
        lambda path: path.stem == stem,
        lambda path: path.suffix.lower() == image.suffix.lower(),
        lambda path: path.suffix == image.suffix,
    ):
        if len(found) > 1:
            found = [path for path in found if fits(path)] or found
    if len(found) > 1:
        raise UserError(f"{printable(image)} has several masks, {told_apart(found)}; leave one of them there")
    return found[0]


def _plain(name: str) -> str:
    """A name as it is compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix() if path.is_relative_to(root) else path)

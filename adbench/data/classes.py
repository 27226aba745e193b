"""Data sets of labelled classes, one of which is normal and the rest anomalous."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from adbench.data.records import Records
from adbench.data.tables import read_arrays
from adbench.types import UserError

T = TypeVar("T")


class Classes:
    """Images of several classes, in memory.

    Args:
        name: of the data set, for messages.
        train, test: (images, classes) each; images (N, H, W[, C]) uint8 or float in [0, 1], classes (N,) of anything.
        normal_class: the class that counts as normal, as text or number.

    Raises:
        UserError: the arrays are no images or do not fit each other, or no training image is of the normal class.
    """

    has_masks = False
    features: ClassVar[np.ndarray | None] = None
    cache_dir: Path | str | None = None

    def __init__(
        self,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        normal_class: str | int,
    ) -> None:
        parts = [_images(name, part, images) for part, (images, _) in (("x_train", train), ("x_test", test))]
        if parts[0].shape[1:] != parts[1].shape[1:]:
            raise UserError(f"{name}: x_train has images of shape {parts[0].shape[1:]}, x_test of {parts[1].shape[1:]}")
        klass = []
        for part, images, (_, classes) in (("train", parts[0], train), ("test", parts[1], test)):
            classes = np.asarray(classes)
            if classes.ndim == 2 and classes.shape[1] == 1:
                classes = classes[:, 0]
            if classes.shape != (len(images),):
                raise UserError(f"{name}: x_{part} has {len(images)} images, but y_{part} has shape {classes.shape}")
            klass.append(_names(classes))
        known = sorted(set(klass[0]), key=lambda text: (len(text), text))
        if str(normal_class) not in known:
            raise UserError(
                f"{name} has no training image of class {normal_class}; its classes are {', '.join(known[:20])}; "
                f"choose one as data.normal_class={known[0]}"
            )
        names = np.concatenate(klass)
        anomalous = names != str(normal_class)
        counts = [len(part) for part in parts]
        self.array = np.concatenate(parts)
        self.records = Records(
            split=np.repeat(["train", "test"], counts),
            label=anomalous.astype(np.int8),
            klass=names,
            defect=np.where(anomalous, names, "good"),
            path=np.array([f"{part}/{i}" for part, n in zip(("train", "test"), counts, strict=True) for i in range(n)]),
            mask=np.full(sum(counts), ""),
        )

    def read_image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        image = self.array[row]
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image

    def read_mask(self, row: int) -> np.ndarray:
        """There are none.

        Raises:
            LookupError: always.
        """
        raise LookupError("data sets of classes have no masks")

    def fingerprint(self) -> str:
        """Of the images alone: the choice of the normal class changes no image."""
        digest = hashlib.sha256(str(self.array.shape).encode())
        digest.update(np.ascontiguousarray(self.array).data)
        return digest.hexdigest()[:32]


def _images(name: str, part: str, images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1 or 3) uint8."""
    images = np.asarray(images)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise UserError(f"{name}: {part} must be (N, H, W) or (N, H, W, 1, 3 or 4 channels), got shape {images.shape}")
    images = images[..., :3]  # alpha says nothing of the surface
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{name}: {part} must be uint8 or float in [0, 1], got {images.dtype}; convert it to uint8")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise UserError(f"{name}: {part} of type {images.dtype} must lie in [0, 1], got {low:.4g}..{high:.4g}")
    return np.rint(images * 255).astype(np.uint8)


def _names(classes: np.ndarray) -> np.ndarray:
    """Classes as text; 3.0 is "3"."""
    if np.issubdtype(classes.dtype, np.floating) and (classes == np.rint(classes)).all():
        classes = classes.astype(np.int64)
    return classes.astype(np.str_)


class Npz(Classes):
    """A .npz file with x_train, y_train, x_test and y_test, in the shapes of `Classes`.

    Args:
        file: its path.
        normal_class: see `Classes`.

    Raises:
        UserError: there is no such file, it lacks an array, or see `Classes`.
    """

    def __init__(self, file: Path | str, normal_class: str | int) -> None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"data.file: there is no file {path}; give a .npz with x_train, y_train, x_test, y_test")
        x_train, y_train, x_test, y_test = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
        super().__init__(path.name, (x_train, y_train), (x_test, y_test), normal_class)


class Digits(Classes):
    """The 1,797 8x8 digits that scikit-learn ships, three of five of each class for training.

    Args:
        normal_class: 0..9.
        seed: of the division into training and test rows, which is the data set's and not the run's.
    """

    def __init__(self, normal_class: str | int, seed: int = 0) -> None:
        images, labels = _digits()
        rng = np.random.default_rng(seed)
        train = np.zeros(len(images), dtype=bool)
        for klass in range(10):
            rows = rng.permutation(np.flatnonzero(labels == klass))
            train[rows[: round(0.6 * len(rows))]] = True
        super().__init__("digits", (images[train], labels[train]), (images[~train], labels[~train]), normal_class)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) of bytes and labels (1797,) of the file that `sklearn.datasets.load_digits` reads.

    It is read without scikit-learn, whose import takes as long as that of torch.
    """
    package = importlib.util.find_spec("sklearn")
    folder = Path(next(iter(package.submodule_search_locations or ()), "")) if package else Path()
    file = folder / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    else:  # a scikit-learn that keeps it elsewhere
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images, labels = bunch.images, bunch.target
    return np.rint(images * (255 / 16)).astype(np.uint8), labels


class Idx(Classes):
    """MNIST or Fashion-MNIST, from the published files (`.gz` or unpacked), which are read where they lie.

    Args:
        dataset: "MNIST" or "FashionMNIST", also the folder's name below `root`.
        root: the data root.
        normal_class: 0..9.
        download: whether torchvision may fetch missing files.

    Raises:
        UserError: a file is missing or broken, the download fails, or there is no such class.
    """

    FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

    def __init__(self, dataset: str, root: Path | str, normal_class: str | int, download: bool = False) -> None:
        root = Path(root).expanduser()
        folder = root / dataset / "raw"
        missing = [name for name in self.FILES if not any(path.is_file() for path in _idx_paths(folder, name))]
        if missing and download:
            from torchvision import datasets

            _fetch(dataset, lambda: getattr(datasets, dataset)(str(root), download=True))
        elif missing:
            raise UserError(
                f"{dataset} is not in {folder}: {missing[0]}.gz is missing; put its four files there "
                f"({', '.join(self.FILES)}, each .gz or unpacked), point data_root=DIR or ADBENCH_DATA at "
                "the folder that has them, or allow the download with data.download=true"
            )
        x_train, y_train, x_test, y_test = (read_idx(folder, name) for name in self.FILES)
        super().__init__(dataset, (x_train, y_train), (x_test, y_test), normal_class)


def _idx_paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of an idx file of unsigned bytes: uint8, of the shape that stands in the file.

    The format: two zeros, the type 8, the number of axes, their big-endian lengths, the data.

    Args:
        folder: of the file.
        name: without .gz; the file may have it.

    Raises:
        UserError: the file is broken.
    """
    path = next(path for path in _idx_paths(folder, name) if path.is_file())
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as an idx file of bytes")
        axes = content[3]
        shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4).astype(int)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise UserError(f"{path} is broken: {error}; delete it and fetch it again (data.download=true)") from error


class Cifar10(Classes):
    """CIFAR-10, from the published python version (`cifar-10-batches-py`).

    Args:
        root: the data root.
        normal_class: 0..9.
        download: whether torchvision may fetch the set.

    Raises:
        UserError: the set is missing or damaged, the download fails, or there is no such class.
    """

    def __init__(self, root: Path | str, normal_class: str | int, download: bool = False) -> None:
        root = Path(root).expanduser()
        if not (root / "cifar-10-batches-py").is_dir() and not download:
            raise UserError(
                f"CIFAR-10 is not in {root / 'cifar-10-batches-py'}; unpack cifar-10-python.tar.gz from "
                "https://www.cs.toronto.edu/~kriz/cifar.html there, point data_root=DIR or ADBENCH_DATA at the folder "
                "that has it, or allow the download with data.download=true"
            )
        from torchvision.datasets import CIFAR10

        if download and not (root / "cifar-10-batches-py").is_dir():
            from torchvision.datasets.utils import download_url

            _fetch("CIFAR-10", lambda: download_url(CIFAR10.url, root, CIFAR10.filename, CIFAR10.tgz_md5))
            unpack(root / CIFAR10.filename, root)
        train, test = _fetch("CIFAR-10", lambda: [CIFAR10(str(root), train=t) for t in (True, False)])
        super().__init__("CIFAR-10", (train.data, train.targets), (test.data, test.targets), normal_class)


def _fetch(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:  # network, disk and checksum errors come in many types
        raise UserError(f"{name} could not be downloaded or is damaged: {error}") from error


def unpack(archive: Path | str, folder: Path | str) -> None:
    """Unpack a tar file (of any compression) into `folder`, and nowhere else.

    Raises:
        UserError: the archive is damaged, or a member would be written, or link, outside the folder.
    """
    try:
        with tarfile.open(archive) as file:
            members = file.getmembers()
            for member in members:
                tarfile.data_filter(member, str(folder))  # all of them before any is written
                if member.name.startswith(("/", os.sep)):
                    raise tarfile.AbsolutePathError(member)
            file.extractall(folder, members, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive} would leave {folder}: {error}; nothing was unpacked") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}; delete it and fetch it again") from error

"""Somebody's own data: a torch `Dataset` or a `LightningDataModule` as a source of rows.

Its items become uint8 images in this package's cache, so protocols, seeds, metrics and resuming work as for any set.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from adbench.data.images import pixels_of
from adbench.data.records import Records
from adbench.errors import UserError


class DatasetSource:
    """Rows of one or two `torch.utils.data.Dataset`s, or of a `LightningDataModule`.

    An item is `(image, label)` or `(image, label, mask)`, or a mapping with the keys `image`, `label` and `mask`:

    - image: a PIL image; an array (H, W), (H, W, 1, 3 or 4) or a tensor (1, 3 or 4, H, W), uint8 or float in [0, 1];
    - label: 0 normal, anything above 0 anomalous; or a text, "good" or "normal" for normal rows, else the defect;
    - mask: (H, W) of the image's size, anomalous where it is not 0; None for a normal image.

    Args:
        target: dotted name of what builds the data: a Dataset of all rows, a pair or mapping {train: ..., test: ...} of
            Datasets (from a function), or a LightningDataModule with `train_dataloader` and `test_dataloader`.
        arguments: keyword arguments of `target`.
        test_target, test_arguments: of the test rows, where `target` gives the training rows alone.
        test_share: share of the normal rows that are tested where one Dataset holds everything, in [0, 1); its
            anomalous rows are all tested. They are spread evenly, so the choice does not depend on the seed.

    Raises:
        UserError: the name cannot be imported, or an item is none of the above; the message names the item.
    """

    array: ClassVar[np.ndarray | None] = None
    features: ClassVar[np.ndarray | None] = None

    def __init__(
        self,
        *,  # by name alone: what a stored configuration would call is found by the key `target` (experiment.trust)
        target: str,
        arguments: Mapping[str, Any] | None = None,
        test_target: str | None = None,
        test_arguments: Mapping[str, Any] | None = None,
        test_share: float = 0.2,
    ) -> None:
        if not 0 <= test_share < 1:
            raise UserError(f"data.test_share is a share of the normal rows in [0, 1), got {test_share}")
        self.root = target
        found = _call("data.target", target, arguments)
        parts = _parts(found, target)
        if test_target is not None:
            if "test" in parts:
                raise UserError(f"data.test_target is given, and {target} already tells training from test rows")
            parts = {"train": parts["all"], "test": _call("data.test_target", test_target, test_arguments)}
        self._items = [(part, dataset, i) for part, dataset in parts.items() for i in range(_length(dataset, target))]
        if not self._items:
            raise UserError(f"{target} has no rows")
        rows = [self._record(number) for number in range(len(self._items))]
        if "all" in parts:
            _share_out(rows, test_share)
        self.records = Records.of(rows)
        self.has_masks = bool((self.records.mask != "").any())

    def _item(self, row: int) -> tuple[Any, Any, Any]:
        part, dataset, i = self._items[row]
        try:
            item = dataset[i]
        except Exception as error:  # somebody's own code
            raise UserError(f"item {i} of {self.root} ({part}) fails: {type(error).__name__}: {error}") from error
        if isinstance(item, Mapping) and {"image", "label"} <= item.keys():
            return item["image"], item["label"], item.get("mask")
        if isinstance(item, Sequence) and not isinstance(item, str) and len(item) in (2, 3):
            return item[0], item[1], item[2] if len(item) == 3 else None
        raise UserError(
            f"item {i} of {self.root} ({part}) is {type(item).__name__}; expected (image, label), (image, label, mask) "
            "or a mapping with the keys image, label and mask"
        )

    def _record(self, row: int) -> dict[str, object]:
        part, _, i = self._items[row]
        _, label, mask = self._item(row)
        anomalous, defect = _label(label, f"item {i} of {self.root} ({part})")
        name = f"{part}/{i}"
        has_mask = anomalous and mask is not None
        return {"split": part, "label": int(anomalous), "defect": defect, "path": name,
                "mask": f"{name}/mask" if has_mask else ""}  # fmt: skip

    def read_image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
            UserError: the item fails, or its image is none.
        """
        return _image(self._item(row)[0], f"the image of item {self.records.path[row]} of {self.root}")

    def read_mask(self, row: int) -> np.ndarray:
        """(H, W) bool, True where anomalous.

        Raises:
            UserError: the item's mask has no two axes.
        """
        mask = self._item(row)[2]
        values = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
        values = values.squeeze()
        if values.ndim == 3:
            values = values.max(axis=0 if values.shape[0] in (1, 3, 4) else -1)
        if values.ndim != 2:
            raise UserError(f"the mask of item {self.records.path[row]} of {self.root} has shape {values.shape}")
        return np.asarray(values != 0)

    def fingerprint(self) -> str:
        """Of every row's pixels, label and mask: the code that makes them may change without a word."""
        digest = hashlib.blake2b(digest_size=16)
        for row in range(len(self._items)):
            image = self.read_image(row)
            digest.update(f"\n{self.records.path[row]} {self.records.label[row]} {image.shape}".encode())
            digest.update(image.tobytes())
            if self.records.mask[row]:
                digest.update(np.packbits(self.read_mask(row)).tobytes())
        return digest.hexdigest()


def _call(key: str, target: str, arguments: Mapping[str, Any] | None) -> Any:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={target} cannot be imported ({error}); expected package.module.Name") from error
    try:
        return found(**dict(arguments or {}))
    except Exception as error:  # somebody's own code
        raise UserError(f"{key}={target} fails: {type(error).__name__}: {error}") from error


def _parts(found: Any, target: str) -> dict[str, Any]:
    """{all: Dataset} or {train: Dataset, test: Dataset} of whatever `target` gave."""
    if hasattr(found, "train_dataloader") and hasattr(found, "test_dataloader"):
        for hook in ("prepare_data", "setup"):
            if callable(getattr(found, hook, None)):
                getattr(found, hook)(*(["fit"] if hook == "setup" else []))
        train = _dataset_of(found.train_dataloader(), target)
        if callable(getattr(found, "setup", None)):
            found.setup("test")
        return {"train": train, "test": _dataset_of(found.test_dataloader(), target)}
    if isinstance(found, Mapping):
        if set(found) != {"train", "test"}:
            raise UserError(
                f"{target} gives a mapping with the keys {sorted(map(str, found))}; expected train and test"
            )
        return {"train": found["train"], "test": found["test"]}
    if isinstance(found, tuple) and len(found) == 2:
        return {"train": found[0], "test": found[1]}
    return {"all": found}


def _dataset_of(loader: Any, target: str) -> Any:
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        raise UserError(f"{target} gives {type(loader).__name__} as a loader; expected one DataLoader with a Dataset")
    return dataset


def _length(dataset: Any, target: str) -> int:
    try:
        return len(dataset)
    except TypeError:
        raise UserError(f"{target} has no length; an IterableDataset cannot be split: give a Dataset") from None


def _label(label: Any, where: str) -> tuple[bool, str]:
    """Whether a row is anomalous, and the name of its kind."""
    if isinstance(label, str):
        normal = label.strip().lower() in ("good", "normal")
        return not normal, "good" if normal else label.strip()
    one = isinstance(label, Tensor | np.ndarray | np.generic) and np.size(label) == 1
    value = label.item() if one else label
    if isinstance(value, bool | int | float) and value == int(value) and value >= 0:
        value = int(value)
        return value > 0, "good" if value == 0 else "anomalous" if value == 1 else str(value)
    raise UserError(f"{where} has the label {label!r}; expected 0 for normal, above 0 for anomalous, or a text")


def _share_out(rows: list[dict[str, object]], share: float) -> None:
    """Mark anomalous rows and an evenly spread share of the normal ones as test rows."""
    normal = [row for row in rows if not row["label"]]
    tested = set(np.linspace(0, len(normal), round(share * len(normal)), endpoint=False).astype(int).tolist())
    for place, row in enumerate(normal):
        row["split"] = "test" if place in tested else "train"
    for row in rows:
        if row["label"]:
            row["split"] = "test"


def _image(image: Any, where: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image if image.ndim == 2 else image.movedim(0, -1) if image.ndim == 3 else image).numpy()
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in values.shape:
        raise UserError(
            f"{where} has shape {np.shape(image)}; expected (H, W, 1, 3 or 4), or a tensor with channels first"
        )
    if values.dtype.kind == "f":
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise UserError(
                f"{where} has values {values.min():.4g}..{values.max():.4g}; float images lie in [0, 1]: leave a "
                "normalisation out of the transform, the methods bring their own"
            )
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise UserError(f"{where} is of type {values.dtype}; expected uint8, or float in [0, 1]")
    values = values[..., :3]
    return np.ascontiguousarray(np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values)

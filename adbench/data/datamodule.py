"""From a data set and a protocol to batches.

Batches travel as bytes and become float on the device. Which rows make training batch k depends on (seed, k) alone, so
a run that resumes at k, or loads with another number of workers, sees the batches that it would have seen.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from adbench.data.cache import Decoded, Rows, checked_keep, entry
from adbench.data.duplicates import checked_policy, found, message, same, without
from adbench.data.notes import lines
from adbench.data.protocols import HoldOut, checked
from adbench.data.records import Records, Source, Split
from adbench.streams import numpy_stream
from adbench.transforms.image import to_float, to_rgb
from adbench.types import Batch, UserError, chunk_sizes

Protocol = Callable[[Records, np.random.Generator, str], Split]


class TrainingRows(Sampler[np.ndarray]):
    """The rows of training batches start, start + 1, ...: each a pure function of (seed, k).

    A batch is made of steps. Pass e goes through permutation e of the rows in full steps, and what is left over waits
    for another pass; a pass may end within a batch, so no step is lost, however many are loaded at once. Its length
    counts the batches before `start` too: Lightning compares it with the number of batches seen in all.

    Args:
        rows: those that are passed through; with `labelled`, the unlabelled ones.
        batch_size: rows of a batch over all ranks, a multiple of `step`.
        seed, total, start: of the order; number of batches in all; the first batch that is asked for.
        rank, world: this process gets every `world`-th row of a batch, from `rank` on.
        step: rows of an optimizer step; None for a batch that is one.
        labelled: rows of a stream of their own, passed through in the same way, without any left over.
        labelled_per_step: how many of them close each step, >= 1 if there are any.
        position: gives the batches trained on so far, at the start of each epoch of `total` batches; None for a
            training of one epoch.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        total: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        step: int | None = None,
        labelled: np.ndarray | None = None,
        labelled_per_step: int = 0,
        position: Callable[[], int] | None = None,
    ) -> None:
        self.total, self.start, self.rank, self.world, self.position = total, start, rank, world, position
        step = step or batch_size
        self.steps = batch_size // step
        self.streams = [_Stream(rows, step - labelled_per_step, seed, "rows", whole_steps=True)]
        if labelled is not None and labelled_per_step:
            self.streams.append(_Stream(labelled, labelled_per_step, seed, "labelled rows", whole_steps=False))

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[np.ndarray]:
        batches = range(self.start, self.total)
        if self.position is not None:  # in the middle of an epoch the trainer takes as many of these as it lacks
            batches = range(first := self.position(), first + self.total)
        for k in batches:
            parts = [stream.taken(k * self.steps, self.steps) for stream in self.streams]
            yield np.concatenate(parts, axis=1).ravel()[self.rank :: self.world]


class _Stream:
    """Steps of `size` rows without end; `whole_steps` leaves out of a pass what does not fill a step."""

    def __init__(self, rows: np.ndarray, size: int, seed: int, purpose: str, whole_steps: bool) -> None:
        self.rows, self.size, self.seed, self.purpose = rows, size, seed, purpose
        self.length = len(rows) // size * size if whole_steps else len(rows)  # of a pass
        self._latest = (-1, rows)

    def taken(self, first: int, count: int) -> np.ndarray:
        """Steps first .. first + count - 1: (count, size) row numbers."""
        passes, places = np.divmod(np.arange(first * self.size, (first + count) * self.size), self.length)
        taken = np.empty(len(places), dtype=self.rows.dtype)
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            here = passes == number
            taken[here] = self._order(number)[places[here]]
        return taken.reshape(count, self.size)

    def _order(self, number: int) -> np.ndarray:
        if self._latest[0] != number:
            order = numpy_stream(self.seed, self.purpose, number).permutation(len(self.rows))
            self._latest = number, self.rows[order]
        return self._latest[1]


class Fetch(Dataset[Batch]):
    """Row numbers -> a batch of bytes, by one indexed read of the cache.

    Args:
        images: (N, C, H, W) uint8, or (N, D) float64.
        masks: (M, H, W) bool; None where masks are withheld.
        mask_place: (N,) int64, the place in `masks` of each record's mask, -1 where it has none.
        label, semi_label: (N,) as the batch shall show them.
    """

    def __init__(
        self,
        images: Any,
        masks: Rows | Decoded | None,
        mask_place: np.ndarray,
        label: np.ndarray,
        semi_label: np.ndarray,
    ) -> None:
        self.images, self.masks, self.mask_place = images, masks, mask_place
        self.label, self.semi_label = label.astype(np.int64), semi_label.astype(np.int64)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        image = torch.from_numpy(self.images[rows])
        # One pixel stands for an empty mask on the way to the device.
        mask = np.zeros((len(rows), 1, 1, 1), dtype=bool)
        if self.masks is not None:
            place = self.mask_place[rows]
            mask = np.zeros((len(rows), 1, *image.shape[-2:]), dtype=bool)
            mask[place >= 0, 0] = self.masks[place[place >= 0]]
        return Batch(
            image=image,
            label=torch.from_numpy(self.label[rows]),
            semi_label=torch.from_numpy(self.semi_label[rows]),
            mask=torch.from_numpy(mask),
            index=torch.from_numpy(rows.astype(np.int64)),
        )


class DataModule(LightningDataModule):
    """The loaders of one run.

    Args:
        source: the data set.
        protocol: who trains, is held out and is tested.
        image_size: side in pixels, or [height, width]; not looked at for tabular data.
        batch_size: rows of a training batch over all devices together; with fewer training rows it is all of them.
        rows_per_step: rows of an optimizer step, where a method takes several of them from a batch (tables); None for
            one step a batch. A batch is then cut to whole steps, and no step of an epoch is dropped.
        labelled_stream: labelled rows come in a stream of their own beside the unlabelled ones: to each step as many as
            their share of the training rows says, and at least one.
        eval_batch_size: rows of any other batch, per device.
        workers: loader processes, or "auto": none on two cores, where they only take turns with the training.
        seed: of the protocol's draws and of the order of rows.
        cache_dir: where decoded images are kept.
        supervision: the method's; only "semi" ones receive known anomalies.
        duplicates: what to do about rows that are there more than once: "warn"; "refuse"; or "drop" them from the
            training and the held-out rows (see `duplicates.without`).
        holdout: the protocol's rule, where it may ask for a cross-validation.
        cache: where decoded images are kept: "disk", "memory" or "none"; see `adbench.data.cache.entry`.

    Raises:
        UserError: a number or word is out of its range. What is wrong with the data is found by `setup`.
    """

    def __init__(
        self,
        source: Source,
        protocol: Protocol,
        *,
        image_size: int | Sequence[int],
        batch_size: int,
        eval_batch_size: int,
        workers: int | str,
        seed: int,
        cache_dir: Path | str,
        supervision: str,
        rows_per_step: int | None = None,
        labelled_stream: bool = False,
        duplicates: str = "warn",
        holdout: HoldOut | None = None,
        cache: str = "disk",
    ) -> None:
        super().__init__()
        source.cache_dir = cache_dir
        self.source, self.protocol, self.seed, self.supervision = source, protocol, seed, supervision
        self.records, self.has_masks = source.records, source.has_masks
        self.size = _size(image_size)
        self.batch_size = _positive("data.batch_size", batch_size)
        self.eval_batch_size = _positive("data.eval_batch_size", eval_batch_size)
        self.rows_per_step = None if rows_per_step is None else _positive("method.rows_per_step", rows_per_step)
        self.labelled_stream = labelled_stream
        self.workers, self.cache_dir = _workers(workers), cache_dir
        self.duplicates = checked_policy(duplicates)
        self.holdout, self.cache = holdout, checked_keep(cache)
        self.rank_and_world: tuple[int, int] | None = None  # (rank, number of ranks); None: as the trainer says
        self._split: Split | None = None
        self._max_batches: int | None = None
        self._start = 0

    # -- what is in it --------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Split the rows and read every image once: errors in the data come here, before any training.

        Raises:
            UserError: the protocol cannot be kept, a file is broken, the cache cannot be written, or there are
                duplicates and `duplicates` is "refuse".
        """
        if self._split is not None:
            return
        split = self._divided()
        if self.source.features is not None:
            self._images: Any = np.ascontiguousarray(self.source.features, dtype=np.float64)
            self._masks, content = None, self._images
        else:
            self._images, self._masks, pixels = entry(self.source, self.size, self.cache_dir, self.cache)
            if self.source.records is not self.records:  # without files that cannot be read
                self.records, self.has_masks = self.source.records, self.source.has_masks
                split = self._divided()
            content = pixels[np.arange(len(self.records))]
        self._content = same(content)
        self._take(self._without_duplicates(split, self._content))

    def set_up_on(self, images: Any, masks: Any) -> None:
        """Set up on stand-ins for what the data set's files hold: no file is read, and no cache is written.

        Args:
            images: (N, C, H, W) uint8 or (N, D) float64, indexed by rows of the record table.
            masks: (M, H, W) bool of the M rows that have one; None without masks.
        """
        self._images, self._masks = images, masks
        self._content = np.arange(len(self.records))
        self._duplicates: dict[str, Any] = {"policy": self.duplicates, "dropped": 0}
        self._take(self._divided())

    def _take(self, split: Split) -> None:
        masked = self.records.mask != ""
        self._mask_place = np.where(masked, np.cumsum(masked) - 1, -1)
        self._semi_label = np.zeros(len(self.records), dtype=np.int64)
        self._semi_label[split.train] = split.semi_label
        self._split = split

    def test_all(self) -> None:
        """Test every row and train on none: data that another data set's detector is tested on."""
        self._split = replace(
            self.split, train=self.split.train[:0], semi_label=self.split.semi_label[:0],
            test=np.arange(len(self.records)),
        )  # fmt: skip
        self._semi_label[:] = 0

    def _divided(self) -> Split:
        try:
            split = self.protocol(self.records, numpy_stream(self.seed, "split"), self.supervision)
        except UserError as error:  # too few rows: those that were left out may be why
            left_out = lines(self.source.report()) if hasattr(self.source, "report") else []
            raise UserError("; ".join([str(error), *left_out])) from error
        if self.supervision != "semi":
            visible = split.semi_label != -1
            split = Split(split.train[visible], split.semi_label[visible], split.holdout, split.test)
        return checked(split, self.records, not getattr(self.source, "good_alone", False))

    def _without_duplicates(self, split: Split, content: np.ndarray) -> Split:
        """The split after what the user wants done about rows that are there more than once."""
        report = found(split, self.records, content)
        text, dropped = message(report, "image" if self.source.features is None else "row"), 0
        if text and self.duplicates == "refuse":
            raise UserError(f"{text}; remove the copies, or take protocol.duplicates=drop or warn")
        if self.duplicates == "drop":
            smaller = without(split, content)
            dropped = len(split.train) + len(split.holdout) - len(smaller.train) - len(smaller.holdout)
            split = checked(smaller, self.records, len(split.test) > 0)
        self._duplicates = {"policy": self.duplicates, "dropped": dropped, **report}
        if text and (self.source.features is None or dropped):  # equal rows are usual in tables
            done = (
                f"{dropped} training and held-out rows were dropped"
                if dropped
                else "protocol.duplicates=drop trains without them, protocol.duplicates=refuse stops here"
            )
            warnings.warn(f"{text}; {done}", stacklevel=2)
        return split

    def data_report(self) -> dict[str, Any]:
        """What is odd about the data, by kind, counted and named (`adbench.data.notes`), and `duplicates`, see
        `duplicates.found`."""
        self.setup()
        listing = self.source.report() if hasattr(self.source, "report") else {}
        return listing | getattr(self.source, "read_report", {}) | {"duplicates": self._duplicates}

    @property
    def split(self) -> Split:
        """Who trains, is held out and is tested; sets up first."""
        self.setup()
        assert self._split is not None
        return self._split

    def split_table(self) -> list[dict[str, Any]]:
        """Every record and its role (train, holdout, test, unused), a row each, as it is written to split.json."""
        self.setup()
        role = np.full(len(self.records), "unused", dtype="<U7")
        for name in ("train", "holdout", "test"):
            role[getattr(self.split, name)] = name
        columns = zip(
            self.records.path.tolist(), role.tolist(), self.records.label.tolist(), self._semi_label.tolist(),
            self.records.defect.tolist(), strict=True,
        )  # fmt: skip
        keys = ("row", "path", "role", "label", "semi_label", "defect")
        return [dict(zip(keys, (row, *values), strict=True)) for row, values in enumerate(columns)]

    def overview(self) -> list[dict[str, Any]]:
        """What was understood, a row for each folder and kind: `folder`, `images`, `taken_as`, and how many of them
        train, are held out, are tested and are not used; then the folders whose files have no part."""
        counted: dict[tuple[str, str], dict[str, int]] = {}
        roles = ("train", "holdout", "test", "unused")
        for row in self.split_table():
            kind = "normal" if row["label"] == 0 else f"anomalous: {row['defect']}"
            place = counted.setdefault((row["path"].rpartition("/")[0] or ".", kind), dict.fromkeys(roles, 0))
            place[row["role"]] += 1
        table: list[dict[str, Any]] = [
            {"folder": folder, "images": sum(found.values()), "taken_as": kind, **found}
            for (folder, kind), found in sorted(counted.items(), key=lambda item: (item[0][1] != "normal", item[0]))
        ]
        for why, names in getattr(self.source, "left_out", {}).items():
            for folder in sorted({name.rpartition("/")[0] or "." for name in names}):
                files = sum((name.rpartition("/")[0] or ".") == folder for name in names)
                none = dict.fromkeys(roles, 0)
                table.append({"folder": folder, "images": files, "taken_as": f"ignored: {why}", **none})
        return table

    # -- training -------------------------------------------------------------------------------------------------

    @property
    def rows_of_a_step(self) -> int:
        """Rows of an optimizer step over all devices together.

        Raises:
            UserError: the devices do not share a batch out evenly, or outnumber the training rows.
        """
        _, world = self._rank_and_world()
        if self.batch_size % world:
            raise UserError(f"data.batch_size={self.batch_size} must be a multiple of the {world} devices")
        rows = min(self.rows_per_step or self.batch_size, self.batch_size, len(self.split.train)) // world * world
        if rows == 0:
            raise UserError(f"{len(self.split.train)} training rows are too few for {world} devices; use fewer devices")
        return rows

    @property
    def rows_per_batch(self) -> int:
        """Rows of a training batch over all devices together: whole steps."""
        step = self.rows_of_a_step
        return max(1, min(self.batch_size, len(self.split.train)) // step) * step

    @property
    def labelled_per_step(self) -> int:
        """Labelled rows that close each step; 0 where they are mixed with the others, or where there are none."""
        labelled = np.count_nonzero(self.split.semi_label)
        if not self.labelled_stream or not 0 < labelled < len(self.split.train):
            return 0
        step = self.rows_of_a_step
        return min(max(1, round(step * labelled / len(self.split.train))), step - 1)

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of one pass through the rows; see `batches_of`."""
        return self.batches_of(1)

    def batches_of(self, epochs: float) -> int:
        """Training batches of so many passes through the (unlabelled) rows; the last one is filled up with steps."""
        labelled = self.labelled_per_step
        unlabelled = len(self.split.train) - (np.count_nonzero(self.split.semi_label) if labelled else 0)
        steps = int(epochs * (unlabelled // (self.rows_of_a_step - labelled)))
        return -(-steps // (self.rows_per_batch // self.rows_of_a_step))

    def set_budget(self, max_batches: int, start: int = 0) -> None:
        """Train on batches start .. max_batches - 1; `start` is the number of batches that a checkpoint has seen."""
        self._max_batches, self._start = _positive("max_batches", max_batches), start

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._rank_and_world()
        total = self.batches_per_epoch if self._max_batches is None else self._max_batches
        train, labelled = self.split.train, None
        if per_step := self.labelled_per_step:
            known = self.split.semi_label != 0
            train, labelled = train[~known], train[known]
        rows = TrainingRows(
            train, self.rows_per_batch, self.seed, total, self._start, rank, world, self.rows_of_a_step, labelled,
            per_step, self._batches_seen if self._max_batches is None else None,
        )  # fmt: skip
        return self._loader(self._withheld(), rows)

    def _batches_seen(self) -> int:
        return getattr(getattr(self.trainer, "lightning_module", None), "batches_seen", 0)

    def training_batches(self, device: torch.device | str) -> Iterator[Batch]:
        """All training rows in order, on every rank, as float on `device`; no batch of one row (see `chunk_sizes`)."""
        return self.rows_batches(self.split.train, device)

    def holdout_batches(self, device: torch.device | str) -> Iterator[Batch]:
        """The held-out normal rows in order, on every rank, as float on `device`."""
        return self._batches(self._withheld(), _chunks(self.split.holdout, self.eval_batch_size), device)

    @property
    def folds(self) -> list[np.ndarray]:
        """The training rows of each fold of a cross-validation, (n_k,) int64 each; empty where there is none.

        Equal rows lie in one fold.
        """
        train = self.split.train
        count = self.holdout.folds(len(train)) if self.holdout is not None and not len(self.split.holdout) else 0
        if not count:
            return []
        contents, content = np.unique(self._content[train], return_inverse=True)
        count = min(count, len(contents))
        if count < 2:
            return []
        order = numpy_stream(self.seed, "folds").permutation(len(contents))
        fold = np.empty(len(contents), dtype=np.int64)
        fold[order] = np.arange(len(contents)) % count
        return [train[fold[content] == k] for k in range(count)]

    def rows_batches(self, rows: np.ndarray, device: torch.device | str) -> Iterator[Batch]:
        """Some rows, (n,) int64, in order, on every rank, as training shows them.

        No batch has one row if there are more.
        """
        ends = np.cumsum(chunk_sizes(len(rows), self.eval_batch_size))
        return self._batches(self._withheld(), np.split(rows, ends[:-1]), device)

    # -- testing --------------------------------------------------------------------------------------------------

    def test_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._rank_and_world()
        rows = self.split.test[rank::world]
        fetch = Fetch(
            self._images, self._masks, self._mask_place, self.records.label, np.zeros(len(self.records), dtype=np.int64)
        )
        return self._loader(fetch, _chunks(rows, self.eval_batch_size))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Part by part; Lightning's own looks for tensors in whatever a batch may be, which costs as much as a
        layer."""
        if device.type == "cpu":
            return batch
        return Batch(*(part.to(device, non_blocking=device.type != "mps") for part in batch))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> Batch:
        """Bytes to RGB float in [0, 1], on the device; features stay as they are, and so do the bytes that are trained
        on where the method asks for them."""
        trainer = self.trainer
        as_bytes = trainer is not None and trainer.training and getattr(trainer.lightning_module, "takes_bytes", False)
        return _shown(batch, as_bytes=as_bytes)

    # -- how ------------------------------------------------------------------------------------------------------

    def _rank_and_world(self) -> tuple[int, int]:
        """(rank, number of ranks)."""
        if self.rank_and_world is not None:
            return self.rank_and_world
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _withheld(self) -> Fetch:
        """Training rows as a method may see them: no label, no mask."""
        self.setup()
        label = np.full(len(self.records), -1, dtype=np.int64)
        return Fetch(self._images, None, self._mask_place, label, self._semi_label)

    def _loader(self, fetch: Fetch, rows: Sampler[np.ndarray] | list[np.ndarray]) -> DataLoader[Batch]:
        return DataLoader(
            fetch,
            sampler=rows,
            batch_size=None,  # a "sample" of `fetch` is a batch
            collate_fn=_as_it_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its draw for the workers' seeds stays out of the global stream
        )

    def _batches(self, fetch: Fetch, chunks: list[np.ndarray], device: torch.device | str) -> Iterator[Batch]:
        for chunk in chunks:
            yield _shown(Batch(*(part.to(device) for part in fetch[chunk])))


def _as_it_is(batch: Any) -> Any:
    return batch


def _shown(batch: Batch, as_bytes: bool = False) -> Batch:
    """A loaded batch as a method sees it."""
    image = batch.image
    if image.dtype == torch.uint8 and not as_bytes:
        image = to_float(to_rgb(image))
    size = image.shape[-2:] if image.ndim == 4 else (1, 1)
    return batch._replace(image=image, mask=batch.mask.expand(-1, -1, *size))


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _size(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise UserError(f"data.image_size is one side or [height, width], got {image_size}")
    return _positive("data.image_size", sides[0]), _positive("data.image_size", sides[1])


def _workers(workers: int | str) -> int:
    if workers == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return 0 if cores <= 2 else min(4, cores // 2)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise UserError(f"data.workers is auto or a number from 0, got {workers!r}")
    return workers

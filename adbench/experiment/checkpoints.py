"""Checkpoints that survive a kill at any moment."""

from __future__ import annotations

import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO

from adbench.files import whole

# What torch.load raises of a file that is torn, or is none of its own: the unpickler breaks in any of these ways.
UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, LookupError, ValueError,
              TypeError, AttributeError)  # fmt: skip


class Checkpoint(NamedTuple):
    """A checkpoint that has been read."""

    file: Path
    contents: dict[str, Any]

    @property
    def batches_seen(self) -> int:
        """Training batches that were finished when it was written."""
        return int(self.contents["batches_seen"])


class WholeFiles(CheckpointIO):
    """Saves through a temporary file in the same folder and keeps the checkpoint before; loads weights only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        with whole(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # how torch reports a write that failed
                raise OSError(
                    f"cannot write the checkpoint {path}, is the disk full? {str(error).splitlines()[0]}"
                ) from error
            if path.exists():
                keep = previous(path)
                link = keep.with_suffix(".link")
                link.unlink(missing_ok=True)
                try:
                    os.link(path, link)  # so that at no moment there is no checkpoint
                    link.replace(keep)
                except OSError:  # a file system without hard links: the rename below is atomic all the same
                    link.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name("previous.ckpt")


def newest_readable(path: Path, attempt: str | None = None) -> Checkpoint | None:
    """The last checkpoint, or the one before if the last cannot be read; None if there is none.

    Args:
        path: of the last one.
        attempt: the name of the training it must be of, as `SaveEvery` writes it.
    """
    for candidate in (path, previous(path)):
        if candidate.exists():
            with suppress(*UNREADABLE):
                checkpoint = WholeFiles().load_checkpoint(candidate)
                if checkpoint.get("attempt") == attempt:
                    return Checkpoint(candidate, checkpoint)
    return None


def damaged(path: Path) -> bool:
    """Whether there are checkpoints and none of them can be read: what they hold may still be had by other means."""
    there = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    for candidate in there:
        with suppress(*UNREADABLE):
            WholeFiles().load_checkpoint(candidate)
            return False
    return bool(there)


class SaveEvery(Callback):
    """Save `path` every `every` training batches and at the end of training; stop there when asked to.

    Saving happens before batch k starts, when Lightning's counters and ours agree that k batches are finished.

    Args:
        path, every: of the checkpoint, in batches.
        attempt: the name of this training, kept in the checkpoint: it tells whose weights these are.
    """

    def __init__(self, path: Path, every: int, attempt: str | None = None) -> None:
        self.path, self.every, self.attempt = path, max(1, every), attempt
        self.stop_requested = False
        self._saved_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = pl_module.batches_seen  # what was just loaded need not be written again

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["attempt"] = self.attempt

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        k = pl_module.batches_seen
        stop = self._stop(trainer, k)
        if stop or (k and k % self.every == 0 and k != self._saved_at):
            trainer.save_checkpoint(self.path)
            self._saved_at = k
        if stop:
            raise Interrupted(f"stopped before training batch {k}; the same command resumes it there")

    def _stop(self, trainer: Trainer, k: int) -> bool:
        """Whether to stop before batch k. All ranks must, or some wait for ever: they ask each other now and then."""
        if trainer.world_size == 1:
            return self.stop_requested
        return k % 10 == 0 and bool(trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM) and saved its state."""

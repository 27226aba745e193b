"""A run folder: who owns it, and what is in it."""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import Timeout
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adbench.errors import UserError
from adbench.experiment.trust import plain_values
from adbench.experiment.values import as_mapping
from adbench.files import NO_LOCKS, Lock, finite, whole, write_json, write_text

if TYPE_CHECKING:
    from adbench.experiment.checkpoints import Checkpoint


class RunFolder:
    """One run's folder. Use as a context manager to own it: a lock is held while the block runs.

    Args:
        path: of the folder, or `results/latest`, the link to it or the file that names it.
        patience: seconds to wait on entering for a process that owns it.

    Raises:
        UserError: on entering, if another process owns the folder.
    """

    def __init__(self, path: Path | str, patience: float = 0.0) -> None:
        path = Path(path)
        path = latest_run(path) if path.name == "latest" else path
        self.path, self.patience = path, patience
        self._lock = Lock(self.path / ".lock", timeout=patience)

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            held = self._lock.marker
            hint = f" (if its machine has died, remove {held}, which tells of it)" if held.exists() else ""
            raise UserError(
                f"{self.path} is being written by another process; wait for it, or use another seed{hint}"
            ) from None
        for place in (self.path, self.path / ".hydra", self.path / "checkpoints", self.path / "figures"):
            for left in place.glob(".*-*.*"):  # what `files.whole` had begun when an earlier owner was killed
                left.unlink()
        os.utime(self.path / ".lock")  # when the folder was last owned: a job that was killed before it began shows
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def owned(self) -> bool:
        """Whether a process is writing the folder at this moment."""
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR)  # a lock of filelock would truncate the file
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            try:
                with Lock(self.path / ".lock", timeout=0):
                    return False
            except Timeout:
                return True
        finally:
            os.close(descriptor)  # which releases it
        return False

    @property
    def checkpoint(self) -> Path:
        """Where the last checkpoint lies, if there is one."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def config_file(self) -> Path:
        """Where the configuration lies that the run was made with."""
        return self.path / ".hydra" / "config.yaml"

    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json; empty before the first run, and where it cannot be read."""
        try:
            record = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def newest_checkpoint(self, attempt: str | None = None) -> Checkpoint | None:
        """The newest readable checkpoint of an attempt; None if there is none.

        The checkpoint of an overwritten run may still lie there, when the process was killed in that moment.

        Args:
            attempt: `attempt` of a record; None takes the one in metrics.json.
        """
        from adbench.experiment.checkpoints import newest_readable

        return newest_readable(self.checkpoint, self.metrics().get("attempt") if attempt is None else attempt)

    def config(self, file: Path | None = None) -> DictConfig:
        """The resolved configuration that the run was made with.

        Args:
            file: another file of a configuration.

        Raises:
            UserError: there is none, or it cannot be read, or its values are not plain.
        """
        file = file or self.config_file
        if not self.path.exists():
            raise UserError(f"there is no {self.path}; give the folder of a run")
        if not file.exists():
            raise UserError(
                f"{self.path} is no run folder: {file} is missing; give the folder that the training command ended with"
            )
        try:
            cfg = OmegaConf.load(file)
        except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        plain_values(OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg, file)
        assert isinstance(cfg, DictConfig)  # which the line above has refused else
        return cfg

    def values(self) -> dict[str, Any]:
        """The configuration as plain values; see `config`."""
        return as_mapping(self.config())

    @staticmethod
    def parsed(config: Mapping[str, Any]) -> DictConfig:
        """A configuration from plain values."""
        return OmegaConf.create(dict(config))

    def clear(self) -> None:
        """Remove what an earlier run left beside metrics.json, so that nothing of it is taken for the new one's."""
        for name in ("scores.csv", "calibration.csv", "split.json", "curves.json"):
            (self.path / name).unlink(missing_ok=True)
        for folder in ("checkpoints", "figures"):
            for file in (self.path / folder).glob("*"):
                file.unlink()

    def remove_if_bare(self, results: Path | None) -> None:
        """Remove a folder in which nothing ever began, and the empty ones around it up to `results` (None: keep them).

        Another process may own it by now; then it stays.
        """
        if not self.path.is_dir() or {p.name for p in self.path.iterdir()} - {".lock", "run.log"}:
            return
        try:
            with Lock(self.path / ".lock", timeout=0):
                _close_log_in(self.path)
                (self.path / "run.log").unlink(missing_ok=True)
            (self.path / ".lock").unlink(missing_ok=True)
            self.path.rmdir()
            top = None if results is None else results.resolve()
            for parent in self.path.resolve().parents if top is not None else ():
                if parent == top or not parent.is_relative_to(str(top)):
                    break
                parent.rmdir()
        except (Timeout, OSError):  # another process's by now, or not empty
            return

    def write_config(self, cfg: DictConfig, file: Path | None = None) -> None:
        """Write a configuration, its values worked out, to `config_file` or another file."""
        resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        write_text(file or self.config_file, OmegaConf.to_yaml(resolved))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """metrics.json; a number that is not finite becomes null, because JSON has none and the status must be said."""
        write_json(self.path / "metrics.json", metrics)

    def write_latest(self, results: Path | str) -> None:
        """Make `results/latest` a link to this folder, or a file that names it where links cannot be."""
        latest, target = Path(results) / "latest", self.path.resolve()
        temporary = Path(tempfile.mktemp(prefix=".latest-", suffix=".link", dir=latest.parent))  # noqa: S306 (a link)
        try:
            with suppress(ValueError):  # on another drive
                target = Path(os.path.relpath(target, latest.parent.resolve()))
            temporary.symlink_to(target, target_is_directory=True)
            temporary.replace(latest)
        except OSError:
            temporary.unlink(missing_ok=True)
            with suppress(OSError):  # a folder of that name: no run fails for want of a shortcut
                write_text(latest, f"{self.path.resolve()}\n")

    def write_curves(self, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Points of curves for plots, five digits each."""
        short = {name: {key: [round(v, 5) for v in points] for key, points in c.items()} for name, c in curves.items()}
        write_text(self.path / "curves.json", json.dumps(finite(short), allow_nan=False) + "\n")

    def write_split(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """split.json, a line for each row of `DataModule.split_table`."""
        with whole(self.path / "split.json") as temporary:
            temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")

    def split_paths(self) -> set[str] | None:
        """The paths of all rows in split.json; None where it cannot be read."""
        try:
            return {str(row["path"]) for row in json.loads((self.path / "split.json").read_text(encoding="utf-8"))}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_scores(self, name: str, rows: Iterable[tuple[int, str, int, str, float]]) -> None:
        """scores.csv or calibration.csv: index, path, label, defect, score with nine significant digits."""
        with whole(self.path / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["index", "path", "label", "defect", "score"])
            writer.writerows((i, path, label, defect, f"{score:.9g}") for i, path, label, defect, score in rows)


def latest_run(latest: Path) -> Path:
    """The folder that `results/latest` stands for; the path itself if it is neither a link nor a file."""
    if latest.is_symlink():
        return latest.resolve()
    return Path(latest.read_text(encoding="utf-8").strip()) if latest.is_file() else latest


def _close_log_in(folder: Path) -> None:
    """Close the log file of a folder that is about to vanish; it would be opened again by the next word."""
    for logger in (logging.getLogger(), logging.getLogger("adbench")):
        for handler in list(logger.handlers):
            file = Path(handler.baseFilename) if isinstance(handler, logging.FileHandler) else None
            if file is not None and file.parent.resolve() == folder.resolve():
                logger.removeHandler(handler)
                handler.close()


def held_out_scores(folder: RunFolder) -> list[float]:
    """The scores in calibration.csv; empty, with a warning, where no row was held out.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder.path / "calibration.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            # Scores are float32; nine digits give them back exactly.
            scores = [float(np.float32(row["score"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); the run's own command writes it again") from error
    if not scores:
        warnings.warn(f"{path} has no rows: no threshold and no p-values", stacklevel=2)
    return scores

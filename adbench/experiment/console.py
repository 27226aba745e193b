"""What a run says on the console and in its log."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.errors import UserError
from adbench.experiment.advice import purpose
from adbench.experiment.own_images import kind_in_words
from adbench.experiment.precision import FLOAT32
from adbench.networks.backbone import Backbone

if TYPE_CHECKING:
    from adbench.experiment.training import Job

log = logging.getLogger("adbench")

PACKAGE = Path(__file__).parents[1]

#: Warnings of Lightning about what a run does on purpose.
EXPECTED_WARNINGS = (
    ".*does not have many workers.*", ".*You're resuming from a checkpoint that ended before.*",
    ".*Checkpoint directory .* exists.*", ".*`LightningModule.configure_optimizers` returned `None`.*",
    ".*No `test_dataloader.*", ".*isinstance\\(treespec, LeafSpec\\).*", ".*Experiment logs directory.*",
    ".*GPU available but not used.*", ".*Found .* module\\(s\\) in eval mode.*",
)  # fmt: skip


def announce(job: Job) -> None:
    """Log what is about to be trained, on what, and for how long."""
    cfg, record, counts = job.cfg, job.record, job.record.counts
    paper = cfg.method.get("recipe", {}).get("budget", {}).get("paper", {})
    folds = len(job.datamodule.folds)
    held_out = f"{folds}-fold cross-validation" if folds else f"{counts['holdout']} held-out"
    if what := purpose(str(record.method)):
        log.info(f"{record.method}: {what}")
    if isinstance(getattr(job.method, "backbone", None), Backbone) and record.pretraining == "none":
        log.warning("warning: without pretraining=imagenet the features are those of random weights")
    log.info(
        f"{record.method} on {_data_name(record.data, record.data_id)} ({counts['train']} training, {held_out}, "
        f"{counts['test_normal']} + {counts['test_anomalous']} test rows; {counts['parameters']:,} parameters)"
    )
    if "kind" in record.data_report:
        log.info(kind_in_words(record.data_report["kind"]))
    if "folders" in record.data_report:
        for line in folder_lines(record.data_report["folders"]):
            log.info(line)
    length = f"{job.total:,} batches of {cfg.data.batch_size}" if job.total else "no training steps"
    if job.total and record.precision != FLOAT32:
        length += f" in {record.precision}"
    published = f"{paper['max_batches']:,} batches" if paper.get("max_batches") else None
    published = published or (f"{paper['max_epochs']} epochs" if paper.get("max_epochs") else None)
    if cfg.budget.name != "paper" and published and job.total:
        length += f" (budget={cfg.budget.name}; the paper's is {published}: budget=paper)"
    log.info(f"{length}{f', resuming at batch {job.start}' if job.start else ''} -> {job.folder.path}")


def _data_name(data: str, data_id: str | None) -> str:
    """The name of a run's data; of a user's folder its own."""
    return str(data_id or data) if data == "folder" else data


def folder_lines(folders: Sequence[Mapping[str, Any]], most: int = 20) -> list[str]:
    """The table of `DataModule.overview`, a line each; of many folders the first."""
    heads = {"folder": "folder", "images": "images", "taken_as": "taken as", "train": "train", "holdout": "held out",
             "test": "test", "unused": "unused"}  # fmt: skip
    columns = [name for name in heads if name not in ("holdout", "unused") or any(row[name] for row in folders)]
    rows = [[heads[name] for name in columns]]
    rows += [["" if row[name] == 0 else str(row[name]) for name in columns] for row in folders[:most]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    text = [name in ("folder", "taken_as") for name in columns]
    lines = [
        "  ".join(f"{cell:<{w}}" if left else f"{cell:>{w}}" for cell, w, left in zip(row, widths, text, strict=True))
        for row in rows
    ]
    return [f"  {line}".rstrip() for line in lines] + [f"  ... {len(folders) - most} more"] * (len(folders) > most)


def summary(record: Mapping[str, Any], folder: Path) -> str:
    """A table of the metrics, the threshold, the pictures' paths, and one line with the metrics that matter and the
    folder; without a test, one that says how to score new images.

    Args:
        record: what metrics.json holds.
        folder: that it lies in.
    """
    from adbench.evaluation.thresholds import in_words

    metrics, threshold = record.get("metrics", {}), record.get("threshold") or {}
    counts = record.get("counts") or {"test_normal": None}
    tested = counts.get("test_normal") != 0 or counts.get("test_anomalous") != 0
    width = max((len(name) for name in metrics), default=0)
    texts = {name: "null" if value is None else f"{value:.4f}" for name, value in metrics.items()}
    lines = [f"  {name:<{width}}  {text}" for name, text in texts.items() if tested]
    if "false_alarm_interval_95" in threshold:
        lines.append(in_words(record["threshold"]))
    for picture in (folder / "figures" / "panels.png", folder / "figures" / "scores.png"):
        if picture.exists():
            lines.append(f"picture: {picture}")
    main = [f"{k} {metrics[k]:.3f}" for k in ("image_auroc", "pixel_auroc", "pixel_pro") if metrics.get(k) is not None]
    title = f"{record['method']} on {_data_name(record['data'], record.get('data_id'))}, seed {record['seed']}"
    if decisions := record.get("decisions"):
        lines.append(
            f"at the threshold: found {decisions['found']:,} of {decisions['anomalous']:,} defects, called "
            f"{decisions['false_alarms']:,} of {decisions['normal']:,} good rows anomalous"
        )
    if tested:
        lines.append(f"{title}: {', '.join(main) or 'no metric is defined'} -> {folder}")
        return "\n".join([*lines, _next(folder)] if record["data"] == "folder" else lines)
    if quantiles := threshold.get("score_quantiles"):
        text = ", ".join(f"{100 * float(share):g} % {value:.4g}" for share, value in quantiles.items())
        lines.insert(0, f"scores of normal images that were not trained on, by the share below: {text}")
    lines.append(f"{title}: trained on normal images alone, nothing to test -> {folder}")
    return "\n".join([*lines, _next(folder)])


def _next(folder: Path) -> str:
    return f"score new images with: python -m adbench.predict {shlex.quote(str(folder))} DIR --out scored"


def log_error(error: BaseException) -> None:
    """Log an error in one line; HYDRA_FULL_ERROR=1 adds the traceback."""
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if full or not isinstance(error, UserError):
        log.debug("", exc_info=error)
        if full:
            traceback.print_exception(error)
    log.error(f"error: {one_line(error)}")
    if not isinstance(error, UserError) and not full:
        log.error("(HYDRA_FULL_ERROR=1 shows the traceback)")


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; the type stands before it unless it is the user's to mend."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    place = _own_line(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{f' ({place})' if place else ''}"


def _own_line(error: BaseException) -> str | None:
    """Where an error arose in code that this package called and that is a user's own, such as a plug-in's method."""
    place, inside = None, False
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            inside = True
        elif inside and file.is_file() and not any(file.resolve().is_relative_to(path) for path in libraries):
            place = f"{file}, line {line}"
    return place


@contextmanager
def quietly() -> Iterator[None]:
    """While open, Lightning logs warnings alone, and warnings are lines of the run's log."""
    with (
        above(logging.INFO, "pytorch_lightning", "pytorch_lightning.utilities.rank_zero"),
        warnings.catch_warnings(),
    ):
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        warnings.showwarning = lambda message, *_, **__: log.warning(f"warning: {message}")
        yield


@contextmanager
def without_seed_message() -> Iterator[None]:
    """While open, Lightning does not print which seed it sets."""
    with above(logging.INFO, "lightning_fabric.utilities.seed"):
        yield


@contextmanager
def above(level: int, *names: str) -> Iterator[None]:
    """While open, these loggers pass on what is more serious than a level, and nothing else."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def progress_bar() -> Any:
    """Lightning's bar on a terminal; a log file gets none."""
    from pytorch_lightning.callbacks import TQDMProgressBar

    return TQDMProgressBar(refresh_rate=1 if sys.stderr.isatty() else 0)

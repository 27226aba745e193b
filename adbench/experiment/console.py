"""What a run says on the console and in its log."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.errors import UserError

if TYPE_CHECKING:
    from adbench.experiment.training import Job

log = logging.getLogger("adbench")

#: Warnings of Lightning about what a run does on purpose.
EXPECTED_WARNINGS = (
    ".*does not have many workers.*", ".*You're resuming from a checkpoint that ended before.*",
    ".*Checkpoint directory .* exists.*", ".*`LightningModule.configure_optimizers` returned `None`.*",
    ".*No `test_dataloader.*", ".*isinstance\\(treespec, LeafSpec\\).*", ".*Experiment logs directory.*",
    ".*GPU available but not used.*", ".*Found .* module\\(s\\) in eval mode.*",
)  # fmt: skip


def announce(job: Job) -> None:
    """Log what is about to be trained, and for how long."""
    cfg, record, counts = job.cfg, job.record, job.record.counts
    paper = cfg.method.get("recipe", {}).get("budget", {}).get("paper", {})
    log.info(
        f"{record.method} on {record.data} ({counts['train']} training, {counts['holdout']} held-out, "
        f"{counts['test_normal']} + {counts['test_anomalous']} test rows; {counts['parameters']:,} parameters)"
    )
    length = f"{job.total:,} batches of {cfg.data.batch_size}"
    published = f"{paper['max_batches']:,} batches" if paper.get("max_batches") else None
    published = published or (f"{paper['max_epochs']} epochs" if paper.get("max_epochs") else None)
    if cfg.budget.name != "paper" and published and job.total:
        length += f" (budget={cfg.budget.name}; the paper's is {published}: budget=paper)"
    log.info(f"{length}{f', resuming at batch {job.start}' if job.start else ''} -> {job.folder.path}")


def summary(record: Mapping[str, Any], folder: Path) -> str:
    """A table of the metrics, the picture's path, and one line with the metrics that matter and the folder.

    Args:
        record: what metrics.json holds.
        folder: that it lies in.
    """
    metrics = record.get("metrics", {})
    width = max((len(name) for name in metrics), default=0)
    texts = {name: "null" if value is None else f"{value:.4f}" for name, value in metrics.items()}
    lines = [f"  {name:<{width}}  {text}" for name, text in texts.items()]
    picture = folder / "figures" / "panels.png"
    if picture.exists():
        lines.append(f"picture: {picture}")
    main = [f"{k} {metrics[k]:.3f}" for k in ("image_auroc", "pixel_auroc", "pixel_pro") if metrics.get(k) is not None]
    title = f"{record['method']} on {record['data']}, seed {record['seed']}"
    lines.append(f"{title}: {', '.join(main) or 'no metric is defined'} -> {folder}")
    return "\n".join(lines)


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
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def quietly() -> Iterator[None]:
    """While open, Lightning logs warnings alone, and warnings are lines of the run's log."""
    with (
        _warnings_alone("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"),
        warnings.catch_warnings(),
    ):
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        warnings.showwarning = lambda message, *_, **__: log.warning(f"warning: {message}")
        yield


@contextmanager
def without_seed_message() -> Iterator[None]:
    """While open, Lightning does not print which seed it sets."""
    with _warnings_alone("lightning_fabric.utilities.seed"):
        yield


@contextmanager
def _warnings_alone(*names: str) -> Iterator[None]:
    """While open, these loggers pass on warnings and errors, and nothing below."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def progress_bar() -> Any:
    """Lightning's bar on a terminal; a log file gets none."""
    from pytorch_lightning.callbacks import TQDMProgressBar

    return TQDMProgressBar(refresh_rate=1 if sys.stderr.isatty() else 0)

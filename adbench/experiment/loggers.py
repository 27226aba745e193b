"""The loggers of a run: Lightning's, of the chosen group, made to survive a dashboard that is out of reach.

Loggers are built for a training alone. Loading a run never builds them, so no path of a logger stands in its way.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adbench.experiment.console import one_line
from adbench.experiment.folder import RunFolder
from adbench.experiment.record import RunRecord

log = logging.getLogger("adbench")

CALLS = ("log_metrics", "log_image", "save", "finalize")  # a logger's methods that may reach a dashboard


def build_loggers(cfg: DictConfig, folder: RunFolder, record: RunRecord) -> list[Any]:
    """Lightning loggers of the chosen group, with the run's folder, name and settings."""
    if cfg.logger is None:
        return []
    loggers = []
    for name, node in cfg.logger.items():
        options: dict[str, Any] = {"save_dir": str(folder.path)}
        if name == "wandb":
            options |= _wandb_options(cfg, folder, record)
        logger = instantiate(node, _partial_=True)(**options)  # "config" is a name that instantiate keeps for itself
        loggers.append(patient(logger))
    return loggers


def _wandb_options(cfg: DictConfig, folder: RunFolder, record: RunRecord) -> dict[str, Any]:
    """Group, tags and name of a run at W&B; offline where there is no account."""
    tags = [record.method, record.data, record.protocol, record.pretraining]
    # The folder without its seed: what tells settings apart there (a class, a ratio, changed values) does so here.
    path, results = folder.path.resolve(), Path(cfg.results).resolve()
    inside = path.is_relative_to(results)  # not where hydra.run.dir was set
    path = path.relative_to(results) if inside else Path(*tags, path.name)
    setting = "/".join([*path.parent.parts, *path.name.split("-")[1:]])[-128:]  # W&B's limit
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    labels = [*tags, f"budget:{cfg.budget.name}", *([f"experiment:{experiment}"] if experiment else [])]
    offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "online")
    return {
        "offline": offline and os.environ.get("WANDB_MODE") != "disabled",
        "group": setting, "tags": [label[:64] for label in labels], "job_type": "train",
        "name": f"{setting}/seed{cfg.seed}",
        "config": OmegaConf.to_container(cfg, resolve=True),
    }  # fmt: skip


def patient(logger: Any) -> Any:
    """The same logger; its failures are logged once and cost the run nothing: a dashboard may be away for hours."""
    failures: list[str] = []

    def guarded(call: Callable[..., Any]) -> Callable[..., None]:
        def attempt(*arguments: Any, **options: Any) -> None:
            try:
                call(*arguments, **options)
            except Exception as error:  # the network, the dashboard's library, its quota: whatever it is
                if not failures:
                    log.warning(f"warning: {type(logger).__name__} failed and misses data: {one_line(error)}")
                failures.append(type(error).__name__)

        return attempt

    for name in CALLS:
        if hasattr(logger, name):
            setattr(logger, name, guarded(getattr(logger, name)))
    return logger


def log_settings(loggers: list[Any], cfg: DictConfig) -> None:
    """Send the configuration to the loggers that do not have it yet."""
    for logger in loggers:
        if type(logger).__name__ != "WandbLogger":
            with suppress(Exception):
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))


def log_results(loggers: list[Any], metrics: dict[str, float | None], step: int) -> None:
    """Send the metrics that are defined as `test/<name>`."""
    for logger in loggers:
        logger.log_metrics({f"test/{k}": v for k, v in metrics.items() if v is not None}, step=step)
        logger.save()


def close_loggers(loggers: list[Any], status: str) -> None:
    """Let the loggers write what they hold back."""
    for logger in loggers:
        with suppress(Exception):
            logger.finalize(status)
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()  # without this the jobs of a sweep merge into one run

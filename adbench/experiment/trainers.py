"""Lightning's trainer as a run needs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adbench.errors import UserError
from adbench.experiment.console import one_line

NOTHING = nullcontext()
OWN = ("threads", "compile")  # of `cfg.trainer`, and none of Lightning's
STRATEGY = "ddp_find_unused_parameters_true"  # the players of an adversarial method take turns


def build_trainer(
    cfg: DictConfig, path: Path, callbacks: Sequence[Any] = (), *, world: int = 1, loggers: Any = False, **changes: Any
) -> Any:
    """A trainer of one epoch, which is a run's whole training, without what a run does by itself.

    Args:
        cfg: its section `trainer` holds Lightning's options, and the run's own.
        path: where Lightning may write.
        callbacks, loggers: of the trainer.
        world: number of ranks.
        changes: options in place of those in `cfg.trainer`; `precision` where that is `auto` and the trainer trains.
    """
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from adbench.experiment.checkpoints import WholeFiles
    from adbench.experiment.precision import AUTO, FLOAT32

    look_for_a_driver_once()
    options = {key: value for key, value in cfg.trainer.items() if key not in OWN} | changes | {
        "max_epochs": 1, "logger": loggers, "default_root_dir": path, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "plugins": [WholeFiles()], "log_every_n_steps": 1, "callbacks": list(callbacks),
    }  # fmt: skip
    if options.get("profiler") is None:
        options["profiler"] = _no_profiler()
    if options["precision"] == AUTO:
        options["precision"] = FLOAT32  # a trainer that trains is told what was chosen
    if cfg.data.kind == "tabular" and cfg.trainer.accelerator == "auto" and torch.backends.mps.is_available():
        options["accelerator"] = "cpu"  # features are float64, which MPS does not have
    if world > 1:
        options["plugins"].append(LightningEnvironment())  # the ranks are ours, also inside a SLURM job
        options["strategy"] = STRATEGY if cfg.trainer.strategy == "auto" else cfg.trainer.strategy
    return Trainer(**options)


def look_for_a_driver_once() -> None:
    """Where there is no GPU, keep Adam from looking for one in every step.

    Lightning has torch look for NVIDIA's library before it asks CUDA, so that processes may fork. Adam asks in every
    step, and a library that is not there is searched anew each time, for a millisecond. CUDA itself remembers.
    """
    import torch

    if "CUDA_VISIBLE_DEVICES" not in os.environ and not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def _no_profiler() -> Any:
    """A profiler that costs nothing: Lightning's own that profiles nothing makes a context of two calls around each of
    fifty hooks of a batch."""
    from pytorch_lightning.profilers import PassThroughProfiler

    class NoProfiler(PassThroughProfiler):
        def profile(self, action_name: str) -> Any:
            return NOTHING

    return NoProfiler()


def check_devices(cfg: DictConfig, world: int = 1, **changes: Any) -> None:
    """Refuse a trainer that this machine cannot have.

    Args:
        cfg, world, changes: see `build_trainer`.

    Raises:
        UserError: the message repeats what was asked for.
    """
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    try:
        build_trainer(cfg, Path(), world=world, **changes)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        options = " ".join(f"trainer.{key}={value}" for key, value in cfg.trainer.items() if value is not None)
        raise UserError(
            f"this trainer cannot be had here: {one_line(error).rstrip('.')} (asked for: {options}); trainer=cpu runs "
            "on any machine"
        ) from error


def set_threads(threads: int) -> None:
    """Let torch compute with so many CPU threads."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)

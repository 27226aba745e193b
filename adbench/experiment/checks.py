"""What a command may not ask for: refused before a folder is touched or data are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adbench.errors import UserError
from adbench.experiment.identity import defaults_of, reference_of
from adbench.experiment.values import flat, refuse_wrong_values

# What else than true and false, or a number, a value may be.
SWITCH_WORDS = {"trainer.deterministic": ("warn",), "overwrite": ("stale",)}


# Options of Lightning's trainer that end training or testing early, with the values that do not.
CUTTING_SHORT: dict[str, tuple[Any, ...]] = {
    "fast_dev_run": (None, False), "overfit_batches": (None, 0, 0.0), "max_steps": (None, -1), "max_time": (None,),
    "limit_train_batches": (None, 1.0), "limit_val_batches": (None, 1.0), "limit_test_batches": (None, 1.0),
    "limit_predict_batches": (None, 1.0), "min_steps": (None,), "min_epochs": (None,),
}  # fmt: skip


# Options of Lightning's trainer that a run sets itself, with the key that does what is wanted.
SET_BY_THE_RUN = {
    "max_epochs": "budget.max_epochs={value} sets the length of training",
    "logger": "logger=csv, tensorboard or wandb chooses one",
    "default_root_dir": "results=DIR says where runs go",
    "enable_checkpointing": "budget.checkpoint_every=N says how often one is saved",
    "log_every_n_steps": "log_every=N says how often loss terms are logged",
    "enable_model_summary": "leave it out", "num_sanity_val_steps": "leave it out", "callbacks": "leave it out",
    "use_distributed_sampler": "leave it out", "plugins": "leave it out",
}  # fmt: skip


def refuse_wrong_types(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """What no value of its key can be is an error now, not deep inside or, because words are true, never.

    Raises:
        UserError: naming key and value, and what to type.
    """
    plain = defaults_of(cfg, choices)
    written = flat(OmegaConf.to_container(plain, resolve=False))
    with suppress(OmegaConfBaseException):  # a value is missing altogether: resolving the configuration says which
        reference = resolved_sections(reference_of(cfg, plain))
        refuse_wrong_values(resolved_sections(cfg), reference, written)
    for key, default in written.items():
        is_switch = isinstance(default, bool)
        value = OmegaConf.select(cfg, key, default=None) if is_switch and not key.startswith("hydra.") else None
        fine = isinstance(value, bool | None) or value in (0, 1, *SWITCH_WORDS.get(key, ()))
        if not fine:
            words = "".join(f" (or {word})" for word in SWITCH_WORDS.get(key, ()))
            raise UserError(f"{key} must be true or false{words}, as in {key}={json.dumps(default)}; got {value!r}")
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")


def resolved_sections(cfg: DictConfig) -> dict[str, Any]:
    """The sections of a configuration as plain values; those that do not resolve are left out: the job says why."""
    sections = {}
    for name in cfg:
        if name == "hydra":
            continue
        with suppress(OmegaConfBaseException):
            node = cfg._get_node(name)
            sections[str(name)] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else cfg[name]
    return sections


def refuse_cut_short(cfg: DictConfig) -> None:
    """Refuse options of Lightning's trainer that would end training or testing early, or that the run sets itself.

    What such a run leaves would look like a whole run's results.

    Raises:
        UserError: naming the option and what to type instead.
    """
    for name, value in cfg.trainer.items():
        key = f"trainer.{name}={value}"
        harmless = CUTTING_SHORT.get(str(name), (value,))
        if not any(value is one or (value == one and type(value) is type(one)) for one in harmless):
            raise UserError(
                f"{key} would cut training or testing short and leave the results of a part as those of the whole; "
                "trainer=smoke is a short run that counts as one, budget.max_batches=N and budget.max_epochs=N set the "
                "length of training"
            )
        if name in SET_BY_THE_RUN:
            raise UserError(f"{key} is the run's own to set; {SET_BY_THE_RUN[str(name)].format(value=value)}")

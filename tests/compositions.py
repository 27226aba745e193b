"""Configurations composed once for all tests of a process; each test gets a copy of its own."""

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from adbench.experiment import identity
from adbench.experiment.groups import conf_dir
from hydra_plugins.adbench_sweepers import combinations


@cache
def _loader():
    """One loader for all tests: `identity` remembers the defaults that it has composed with a loader."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@cache
def _composed(overrides: tuple[str, ...], mode: RunMode) -> DictConfig:
    return _loader().load_configuration("config", list(overrides), run_mode=mode)


def composed(*overrides: str, hydra: bool = False, mode: RunMode = RunMode.RUN) -> DictConfig:
    """The configuration of a command line; `hydra`: with Hydra's own node."""
    cfg = copy.deepcopy(_composed(overrides, mode))
    if not hydra:
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg


@cache
def _resolved(overrides: tuple[str, ...]) -> DictConfig:
    return OmegaConf.create(OmegaConf.to_container(composed(*overrides), resolve=True))


def resolved(*overrides: str) -> DictConfig:
    """`composed`, every interpolation resolved."""
    return copy.deepcopy(_resolved(overrides))


@cache
def folder_of(*overrides: str) -> str:
    """The folder of a run below the results."""
    return _identity(overrides).folder


def changed_values_of(*overrides: str) -> dict[str, Any]:
    """The values of a run that are not the defaults of its groups."""
    return _identity(overrides).changed


def _identity(overrides: Sequence[str]) -> identity.Identity:
    cfg = composed(*overrides, hydra=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):  # where `identity` looks for its loader
        GlobalHydra.instance().hydra.config_loader = _loader()
        return identity.identity_of(cfg, cfg.hydra.runtime.choices)


@cache
def jobs_of(experiment: str, *extra: str) -> tuple[tuple[str, ...], ...]:
    """The overrides of each job of an experiment by Hydra's own splitting; one job without any for a preset."""
    sweeper = OmegaConf.to_container(multirun(experiment).hydra.sweeper)
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=_loader()).parse_overrides(
        [*words, f"experiment={experiment}", *extra]
    )
    return tuple(map(tuple, combinations(parsed, sweeper.get("axes"), _loader())))


def multirun(experiment: str, *extra: str) -> DictConfig:
    """The configuration that an experiment's jobs are split from."""
    return composed(f"experiment={experiment}", *extra, hydra=True, mode=RunMode.MULTIRUN)

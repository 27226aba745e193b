"""What a run is called: its folder, the hash of its settings, and what differs from its presets."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adbench.errors import UserError
from adbench.experiment import own_images  # noqa: F401  (its resolvers, which configurations use)
from adbench.experiment.precision import AUTO
from adbench.experiment.values import as_mapping, flat
from adbench.files import shortened

if TYPE_CHECKING:
    from adbench.experiment.folder import RunFolder

GROUPS = ("method", "data", "protocol", "pretraining")


# Where data lie and how fast they are read changes no result, so it changes no folder name either.
UNHASHED = ("data.workers", "data.cache", "data.eval_batch_size", "data.root", "data.file", "data.download",
            "data.source.root", "data.source.file", "data.source.download", "data.max_pixels", "data.source.max_pixels",
            "data.unreadable", "data.source.unreadable")  # fmt: skip


# Keys that came after the first runs, with the values at which all is as it was before them.
AS_BEFORE: dict[str, tuple[Any, ...]] = {
    "protocol.duplicates": ("warn", "refuse"),
    "protocol.anomalies": ("auto",),  # where `auto` takes test rows, a run was refused before
    "data.bits": (16,),
    "data.source.bits": (16,),
    "data.label": (None,),
    "data.source.label": (None,),
    "trainer.compile": (False,),
}


PRECISION = "trainer.precision"


LONGEST_NAME = 120  # bytes of a folder's name; file systems take 255, and files beside it may bear it too


# Of `trainer`: where and how fast a run computes, and what it says meanwhile. Everything else there changes results.
TRAINER_UNHASHED = ("accelerator", "devices", "num_nodes", "strategy", "threads", "deterministic", "benchmark",
                    "profiler", "detect_anomaly", "enable_progress_bar")  # fmt: skip


def hashed_values(cfg: DictConfig) -> dict[str, Any]:
    """Every value that can change a run's result, by dotted name, interpolations resolved."""
    values: dict[str, Any] = {}
    for group in (*GROUPS, "budget"):
        values |= flat(OmegaConf.to_container(cfg[group], resolve=True), group)
    trainer = as_mapping(cfg.trainer)
    values |= flat({key: value for key, value in trainer.items() if key not in TRAINER_UNHASHED}, "trainer")
    values["evaluation.quantile"] = cfg.evaluation.quantile
    callbacks = cfg.get("callbacks")  # which may change a training; a configuration of before has none
    values |= flat(OmegaConf.to_container(callbacks, resolve=True), "callbacks") if callbacks else {}
    skipped = (*UNHASHED, *(f"{group}.id" for group in GROUPS))
    # A recipe only feeds other values, which are hashed themselves; a budget's name is not its length.
    return {
        key: value
        for key, value in values.items()
        if key not in skipped
        and not key.startswith("method.recipe.")
        and key != "budget.name"
        and value not in AS_BEFORE.get(key, ())
    }


def _named_by_id(cfg: DictConfig, group: str) -> list[str]:
    """Dotted keys that a group's readable id already tells, e.g. `data.normal_class` of `cifar10/${.normal_class}`."""
    template = str(as_mapping(cfg[group], resolve=False).get("id", ""))
    keys = re.findall(r"\$\{([\w.]+)\}", template)
    return [f"{group}{key}" if key.startswith(".") else key for key in keys]


def defaults_of(cfg: DictConfig, choices: Mapping[str, str | None]) -> DictConfig:
    """The configuration of the same group choices with no value overridden."""
    defaults = _composed(GlobalHydra.instance().config_loader(), _choosing(choices))
    OmegaConf.set_struct(defaults, False)
    # The seed may be a value of a group too (the split of a data set that has none): it names the folder itself.
    defaults.seed = cfg.seed
    return defaults


def _choosing(choices: Mapping[str, str | None]) -> tuple[str, ...]:
    return tuple(f"{group}={choices[group]}" for group in GROUPS)


def reference_of(cfg: DictConfig, defaults: DictConfig) -> DictConfig:
    """The defaults, with what they leave open, what an id tells and what changes no result taken over from `cfg`."""
    for group in GROUPS:
        leaves = flat(OmegaConf.to_container(defaults[group], resolve=False), group)
        without_default = [key for key, value in leaves.items() if value == "???"]
        for key in (*_named_by_id(cfg, group), *without_default, *UNHASHED):
            value = OmegaConf.select(cfg, key)
            if value is not None:
                OmegaConf.update(defaults, key, value)
    return defaults


_compositions: dict[str, dict[tuple[str, ...], DictConfig]] = {}  # by the state of the files, the latest alone
_states: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # of the files of each loader


def _state_of(loader: Any) -> str:
    """Which files a loader composes from, as they are: each job that a worker of a sweep gets brings a loader."""
    stamps = [str(loader.get_search_path())]
    for element in loader.get_search_path().get_path():
        folder = str(element.path).removeprefix("file://")
        for path in sorted(Path(folder).rglob("*.yaml")) if "://" not in folder else ():
            stat = path.stat()
            stamps.append(f"{path} {stat.st_mtime_ns} {stat.st_size}")
    return digest(stamps, 32)


def _composed(loader: Any, overrides: tuple[str, ...]) -> DictConfig:
    """A copy of the composed configuration; composing takes half a second, and a job asks several times."""
    if loader not in _states:
        _states[loader] = _state_of(loader)
    state = _states[loader]
    if state not in _compositions:
        _compositions.clear()
        _compositions[state] = {}
    known = _compositions[state]
    if overrides not in known:
        key = (str(loader.get_search_path()), overrides)
        same = _checked is not None and _checked[0] == key
        known[overrides] = (
            _checked[1] if same and _checked else
            loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN)
        )  # fmt: skip
    return copy.deepcopy(known[overrides])


_checked: tuple[tuple[str, tuple[str, ...]], DictConfig] | None = None


def remember(loader: Any, chosen: Collection[str], cfg: DictConfig) -> None:
    """Take over a composition of group choices alone that the check of the command line has made.

    Args:
        loader: that composed it.
        chosen: the groups that the command line names; one that is no part of a run's name may set other values.
        cfg: the composition.
    """
    global _checked
    _checked = None
    if set(chosen) <= set(GROUPS):
        _checked = ((str(loader.get_search_path()), _choosing(cfg.hydra.runtime.choices)), cfg)


class Identity(NamedTuple):
    """What a run is called, and by what it is told from others."""

    folder: str  # `<method>/<data>/<protocol>/<pretraining>/seed<k>[-hash]`
    hash: str  # of everything that can change the result, the seed included
    changed: dict[str, Any]  # values that differ from the defaults of the chosen groups, unless the folder tells them
    values: dict[str, Any]  # every value that can change the result


_latest: tuple[Any, Identity] | None = None  # Hydra asks for the folder's name, the job for the rest


def identity_of(cfg: DictConfig, choices: Mapping[str, str | None]) -> Identity:
    """The identity of a configuration.

    Args:
        cfg: composed; its node `hydra` has no part in it.
        choices: the names that were chosen in each group.

    Raises:
        OmegaConfBaseException: a value does not resolve.
    """
    global _latest
    sections = {str(name): cfg._get_node(name) for name in cfg if name != "hydra"}
    plain = {
        name: OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else str(node)
        for name, node in sections.items()
    }
    key = (plain, {group: choices.get(group) for group in GROUPS})
    if _latest is None or _latest[0] != key:
        _latest = (key, _identity(cfg, choices))
    return _latest[1]


def _identity(cfg: DictConfig, choices: Mapping[str, str | None]) -> Identity:
    values, defaults = hashed_values(cfg), hashed_values(reference_of(cfg, defaults_of(cfg, choices)))
    keys = sorted(values.keys() | defaults.keys())
    changed = {key: values.get(key) for key in keys if values.get(key) != defaults.get(key)}
    names = [safe_id(str(choices["method"]).replace("/", "-")), *(safe_id(cfg[group].id) for group in GROUPS[1:])]
    folder = "/".join([*names, f"seed{cfg.seed}" + (f"-{digest(changed)}" if changed else "")])
    return Identity(folder, _hash(cfg, values), changed, values)


def digest(value: Any, length: int = 8) -> str:
    """A short hexadecimal name of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def _hash(cfg: DictConfig, values: Mapping[str, Any]) -> str:
    return digest({"seed": cfg.seed, **values}, 12)


def config_hash(cfg: DictConfig) -> str:
    """`Identity.hash` of a configuration whose choices are not known."""
    return _hash(cfg, hashed_values(cfg))


def changed_settings(folder: RunFolder, record: Mapping[str, Any], identity: Identity) -> list[str] | None:
    """The settings that a folder's run was made with and that this command has otherwise, one text each.

    Returns:
        Empty if there is none; None if there are and the folder's configuration cannot tell which.
    """
    if record.get("config_hash") == identity.hash:
        return []
    try:
        stored = OmegaConf.load(folder.config_file)
        if not isinstance(stored, DictConfig):
            return None
        then = hashed_values(stored)
    except (YAMLError, OmegaConfBaseException, ValueError, OSError, AttributeError, TypeError):
        return None
    now = identity.values
    if now.get(PRECISION) == AUTO:  # it takes what the run began with, which its record says
        then.pop(PRECISION, None)
        now = {key: value for key, value in now.items() if key != PRECISION}
    text_of = lambda values, key: repr(values[key]) if key in values else "not there"  # noqa: E731
    return [
        f"{key} was {text_of(then, key)} and is {text_of(now, key)} now"
        for key in sorted(then.keys() | now.keys())
        if json.dumps(then.get(key, "absent"), default=str) != json.dumps(now.get(key, "absent"), default=str)
    ]


def safe_id(text: Any) -> str:
    """A folder name that every file system takes, cut if it is long; slashes stay, as ids like mvtec/bottle nest."""
    parts = [shortened(re.sub(r"[^\w.+-]+", "_", part).strip("._"), LONGEST_NAME) for part in str(text).split("/")]
    return "/".join(part for part in parts if part) or "unnamed"


def _run_folder(*, _root_: DictConfig) -> str:
    try:
        return identity_of(_root_, _root_.hydra.runtime.choices).folder
    except OmegaConfBaseException:
        # Composed, but a value does not resolve (a method that cannot take this kind of data). The job says which;
        # it needs a folder to say it from.
        choices = _root_.hydra.runtime.choices
        parts = [safe_id(choices[group]).replace("/", "-") for group in GROUPS]
        return "/".join([*parts, f"seed{_root_.seed}-unresolved"])


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def _by_data(name: str, *, _root_: DictConfig) -> Any:
    """The entry of `method.recipe.NAME` for the chosen data: of the data set's id, or else of its kind."""
    table = OmegaConf.select(_root_, f"method.recipe.{name}")
    keys = [key for key in (_selected(_root_, "data.id"), _selected(_root_, "data.kind")) if key is not None]
    for key in keys:
        if OmegaConf.is_dict(table) and key in table:
            value = table[key]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    raise UserError(
        f"method.recipe.{name} has no value for data of {' or '.join(map(repr, keys)) or 'no kind'}; "
        f"give +method.recipe.{name}.{keys[-1] if keys else 'KIND'}=..."
    )


def _selected(cfg: DictConfig, key: str) -> str | None:
    """A value of a configuration, None where it is missing or cannot be had."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
    return None if value is None else str(value)


OmegaConf.register_new_resolver("by_data", _by_data, replace=True)


# A smoke run is short; a method that has no training steps (0) stays without.
OmegaConf.register_new_resolver("min_batches", lambda a, b: a if b is None else min(int(a), int(b)), replace=True)

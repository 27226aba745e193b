"""A run folder: where it is, who owns it, what is in it, and how a trained method is loaded back from it."""

from __future__ import annotations

import copy
import csv
import hashlib
import importlib
import inspect
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adbench.experiment.values import flat, refuse_wrong_values
from adbench.files import finite, shortened, whole, write_json, write_text
from adbench.types import UserError

GROUPS = ("method", "data", "protocol", "pretraining")
# Where data lie and how fast they are read changes no result, so it changes no folder name either.
UNHASHED = ("data.workers", "data.eval_batch_size", "data.root", "data.file", "data.download", "data.source.root",
            "data.source.file", "data.source.download", "data.max_pixels", "data.source.max_pixels", "data.unreadable",
            "data.source.unreadable")  # fmt: skip
# What else than true and false, or a number, a value may be.
SWITCH_WORDS = {"trainer.deterministic": ("warn",), "overwrite": ("stale",)}
# Keys that came after the first runs, with the values at which all is as it was before them.
AS_BEFORE: dict[str, tuple[Any, ...]] = {
    "protocol.duplicates": ("warn", "refuse"),
    "data.bits": (16,),
    "data.source.bits": (16,),
    "data.label": (None,),
    "data.source.label": (None,),
}
LONGEST_NAME = 120  # bytes of a folder's name; file systems take 255, and files beside it may bear it too
# Of `trainer`: where and how fast a run computes, and what it says meanwhile. Everything else there changes results.
TRAINER_UNHASHED = ("accelerator", "devices", "num_nodes", "strategy", "threads", "deterministic", "benchmark",
                    "profiler", "detect_anomaly", "enable_progress_bar")  # fmt: skip
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


def conf_dir() -> Path:
    """The configuration tree: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


# -- where a run goes ---------------------------------------------------------------------------------------------


def _hashed_values(cfg: DictConfig) -> dict[str, Any]:
    """Every value that can change a run's result, by dotted name, interpolations resolved."""
    values: dict[str, Any] = {}
    for group in (*GROUPS, "budget"):
        values |= flat(OmegaConf.to_container(cfg[group], resolve=True), group)
    trainer = OmegaConf.to_container(cfg.trainer, resolve=True)
    values |= flat({key: value for key, value in trainer.items() if key not in TRAINER_UNHASHED}, "trainer")
    values["evaluation.quantile"] = cfg.evaluation.quantile
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
    template = str(OmegaConf.to_container(cfg[group], resolve=False).get("id", ""))
    keys = re.findall(r"\$\{([\w.]+)\}", template)
    return [f"{group}{key}" if key.startswith(".") else key for key in keys]


def _defaults(cfg: DictConfig, choices: Mapping[str, str | None]) -> DictConfig:
    """The configuration of the same group choices with no value overridden."""
    # The seed may be a value of a group too (the split of a data set that has none): it names the folder itself.
    overrides = (*(f"{group}={choices[group]}" for group in GROUPS), f"seed={cfg.seed}")
    defaults = _composed(GlobalHydra.instance().config_loader(), overrides)
    OmegaConf.set_struct(defaults, False)
    return defaults


def _reference(cfg: DictConfig, defaults: DictConfig) -> DictConfig:
    """The defaults, with what they leave open, what an id tells and what changes no result taken over from `cfg`."""
    for group in GROUPS:
        leaves = flat(OmegaConf.to_container(defaults[group], resolve=False), group)
        without_default = [key for key, value in leaves.items() if value == "???"]
        for key in (*_named_by_id(cfg, group), *without_default, *UNHASHED):
            value = OmegaConf.select(cfg, key)
            if value is not None:
                OmegaConf.update(defaults, key, value)
    return defaults


_compositions: WeakKeyDictionary[Any, dict[tuple[str, ...], DictConfig]] = WeakKeyDictionary()


def _composed(loader: Any, overrides: tuple[str, ...]) -> DictConfig:
    """A copy of the composed configuration; composing takes half a second, and a job asks several times."""
    known = _compositions.setdefault(loader, {})
    if overrides not in known:
        known[overrides] = loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN)
    return copy.deepcopy(known[overrides])


def changed_values(cfg: DictConfig, choices: Mapping[str, str | None]) -> dict[str, Any]:
    """The values that differ from the defaults of the chosen groups and that the folder's name does not tell."""
    ours, defaults = _hashed_values(cfg), _hashed_values(_reference(cfg, _defaults(cfg, choices)))
    return {key: ours.get(key) for key in sorted(ours.keys() | defaults.keys()) if ours.get(key) != defaults.get(key)}


def refuse_wrong_types(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """What no value of its key can be is an error now, not deep inside or, because words are true, never.

    Raises:
        UserError: naming key and value, and what to type.
    """
    plain = _defaults(cfg, choices)
    written = flat(OmegaConf.to_container(plain, resolve=False))
    with suppress(OmegaConfBaseException):  # a value is missing altogether: resolving the configuration says which
        reference = _resolved(_reference(cfg, plain))
        refuse_wrong_values(_resolved(cfg), reference, written)
    for key, default in written.items():
        is_switch = isinstance(default, bool)
        value = OmegaConf.select(cfg, key, default=None) if is_switch and not key.startswith("hydra.") else None
        fine = isinstance(value, bool | None) or value in (0, 1, *SWITCH_WORDS.get(key, ()))
        if not fine:
            words = "".join(f" (or {word})" for word in SWITCH_WORDS.get(key, ()))
            raise UserError(f"{key} must be true or false{words}, as in {key}={json.dumps(default)}; got {value!r}")
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The sections of a configuration as plain values; those that do not resolve are left out: the job says why."""
    sections = {}
    for name in cfg:
        if name == "hydra":
            continue
        with suppress(OmegaConfBaseException):
            node = cfg._get_node(name)
            sections[str(name)] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else cfg[name]
    return sections


def digest(value: Any, length: int = 8) -> str:
    """A short hexadecimal name of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def config_hash(cfg: DictConfig) -> str:
    """One name for everything that can change the result, the seed included."""
    return digest({"seed": cfg.seed, **_hashed_values(cfg)}, 12)


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


def changed_settings(folder: RunFolder, record: Mapping[str, Any], cfg: DictConfig) -> list[str] | None:
    """The settings that a folder's run was made with and that this command has otherwise, one text each.

    Returns:
        Empty if there is none; None if there are and the folder's configuration cannot tell which.
    """
    if record.get("config_hash") == config_hash(cfg):
        return []
    try:
        then = _hashed_values(OmegaConf.load(folder.config_file))
    except (YAMLError, OmegaConfBaseException, ValueError, OSError, AttributeError, TypeError):
        return None
    now = _hashed_values(cfg)
    shown = lambda values, key: repr(values[key]) if key in values else "not there"  # noqa: E731
    return [
        f"{key} was {shown(then, key)} and is {shown(now, key)} now"
        for key in sorted(then.keys() | now.keys())
        if json.dumps(then.get(key, "absent"), default=str) != json.dumps(now.get(key, "absent"), default=str)
    ]


def safe_id(text: Any) -> str:
    """A folder name that every file system takes, cut if it is long; slashes stay, as ids like mvtec/bottle nest."""
    parts = [shortened(re.sub(r"[^\w.+-]+", "_", part).strip("._"), LONGEST_NAME) for part in str(text).split("/")]
    return "/".join(part for part in parts if part) or "unnamed"


def relative_folder(cfg: DictConfig, choices: Mapping[str, str | None]) -> str:
    """`<method>/<data>/<protocol>/<pretraining>/seed<k>[-hash]`."""
    names = [safe_id(str(choices["method"]).replace("/", "-")), *(safe_id(cfg[group].id) for group in GROUPS[1:])]
    changed = changed_values(cfg, choices)
    return "/".join([*names, f"seed{cfg.seed}" + (f"-{digest(changed)}" if changed else "")])


def _run_folder(*, _root_: DictConfig) -> str:
    try:
        return relative_folder(_root_, _root_.hydra.runtime.choices)
    except OmegaConfBaseException:
        # Composed, but a value does not resolve (a method that cannot take this kind of data). The job says which;
        # it needs a folder to say it from.
        choices = _root_.hydra.runtime.choices
        parts = [safe_id(choices[group]).replace("/", "-") for group in GROUPS]
        return "/".join([*parts, f"seed{_root_.seed}-unresolved"])


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
# A smoke run is short; a method that has no training steps (0) stays without.
OmegaConf.register_new_resolver("min_batches", lambda a, b: a if b is None else min(int(a), int(b)), replace=True)


# -- what a run writes --------------------------------------------------------------------------------------------


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
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=self.patience)
        except Timeout:
            raise UserError(
                f"{self.path} is being written by another process; wait for it, or use another seed"
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
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except Timeout:
            return True

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def config_file(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json; empty before the first run, and where it cannot be read."""
        try:
            record = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def trained(self, record: Mapping[str, Any] | None = None) -> tuple[Path, dict[str, Any]] | None:
        """The newest readable checkpoint of the run that metrics.json is about; None if there is none.

        What an overwritten run had trained may lie there still, when the process was killed in that moment.
        """
        from adbench.experiment.checkpoints import newest_readable

        record = self.metrics() if record is None else record
        return newest_readable(self.checkpoint, record.get("attempt"))

    def config(self, file: Path | None = None) -> DictConfig:
        """The resolved configuration that the run was made with.

        Args:
            file: another file of a configuration.

        Raises:
            UserError: there is none, or it names something to call that is not this package's.
        """
        file = file or self.config_file
        if not self.path.exists():
            raise UserError(f"there is no {self.path}; give the folder of a run")
        if not file.exists():
            raise UserError(f"{self.path} is no run folder: {file} is missing")
        try:
            cfg = OmegaConf.load(file)
        except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        return trusted(cfg, file)

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
            with FileLock(self.path / ".lock", timeout=0):
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
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent.resolve() == folder.resolve():
            logging.getLogger().removeHandler(handler)
            handler.close()


# -- what a stored configuration may call ---------------------------------------------------------------------------

PACKAGES = re.compile(r"adbench\.(methods|data|pretraining|transforms)(\.[a-z]\w*)+\.[A-Za-z]\w*")
LOGGERS = ("CSVLogger", "TensorBoardLogger", "WandbLogger")


def trusted(cfg: Any, origin: Path | str) -> Any:
    """`cfg` again, if nothing in it would call what this package does not define.

    A configuration on the command line is the user's own; one that lies in a run folder may come from anyone.

    Raises:
        UserError: a `_target_`, however deep, is neither a class or function of this package nor an optimizer of
            torch.optim; or a value is an interpolation, which a run never writes and which could build such a node.
    """
    container = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    if not isinstance(container, dict):
        raise UserError(f"{origin} is no configuration of a run")
    for key, value in _leaves(container):
        name = key.rsplit(".", 1)[-1]
        if name == "_target_" and value is not None and not _ours(value):
            raise UserError(
                f"{origin} wants to call {value} ({key}), which is not part of adbench: not loaded. Train again with "
                "the configuration that you trust"
            )
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{origin} holds the interpolation {value} ({key}), which a run never writes: not loaded")
    return cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as plain values."""
    return OmegaConf.to_container(cfg, resolve=True)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings and lists by dotted name; a `_target_` as it is, whatever it is."""
    if isinstance(node, Mapping | list | tuple) and not prefix.endswith("_target_"):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _ours(target: Any) -> bool:
    """Whether a name is one that this package defines (not one that it imports), or an optimizer."""
    module, _, name = str(target).rpartition(".")
    if module == "torch.optim":
        from torch import optim

        found = getattr(optim, name, None)
        return isinstance(found, type) and issubclass(found, optim.Optimizer)
    if module == "pytorch_lightning.loggers":
        return name in LOGGERS
    if not PACKAGES.fullmatch(str(target)):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:  # "adbench.data.cache.os" is no module, whatever adbench/data/cache.py imports
        return False
    return getattr(found, "__module__", None) == module


# -- building and loading -----------------------------------------------------------------------------------------


def build(node: Any) -> Any:
    """What a configuration node describes; whatever its constructor refuses comes out as one `UserError`."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        said = " ".join(str(root).split())
        raise UserError(
            f"{node.get('_target_')} cannot be built from the values that it got: {type(root).__name__}: {said}"
        ) from error


def build_method(cfg: DictConfig) -> Any:
    """The method of a configuration, untrained, its seed set.

    The recipe is advice to the data and budget groups, so the constructor does not get it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # refused here
        method = build(_method_arguments(cfg))
    empty = next((name for name, weight in method.named_parameters() if weight.numel() == 0), None)
    if empty:
        raise UserError(f"{empty} of this method has no entries: one of its sizes under method. is 0")
    method.seed = cfg.seed
    return method


def _method_arguments(cfg: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(cfg.method, resolve=True)
    return {key: value for key, value in values.items() if key not in ("recipe", "id")}


def build_source(cfg: DictConfig) -> Any:
    """The data set of a configuration, listed; it remembers in `cache_dir` what its files hold."""
    source = build(cfg.data.source)
    source.cache_dir = cfg.cache_dir
    return source


def build_datamodule(cfg: DictConfig, supervision: str, source: Any = None) -> Any:
    """The datamodule of a configuration; its files are not read before `setup`.

    Args:
        cfg, supervision: the configuration, and the method's supervision.
        source: the configuration's data set, where it is built already.
    """
    from adbench.data.datamodule import DataModule

    data = cfg.data
    protocol = {k: v for k, v in OmegaConf.to_container(cfg.protocol, resolve=True).items() if k != "id"}
    duplicates = protocol.pop("duplicates", "warn")
    return DataModule(
        build_source(cfg) if source is None else source,
        build(protocol),
        image_size=OmegaConf.to_object(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        workers=data.workers,
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        supervision=supervision,
        rows_per_step=cfg.method.get("rows_per_step"),
        labelled_stream=cfg.method.get("labelled_stream", False),
        duplicates=duplicates,
    )


def load_method(folder: RunFolder | Path | str) -> Any:
    """The trained method of a run folder, in eval mode on the CPU."""
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    cfg = folder.config()
    found = folder.trained()
    if found is None:
        if folder.metrics().get("status") not in (None, "finished"):
            raise UserError(how_far(folder))
        raise UserError(f"{folder.checkpoint} is missing or cannot be read; train again with the run's own command")
    return restored(cfg, found[1]["state_dict"], int(found[1]["batches_seen"]))


def how_far(folder: RunFolder) -> str:
    """What to tell of a run that is not finished: its status, how far it came, what continues it."""
    record, found = folder.metrics(), folder.trained()
    status = record.get("status", "not begun")
    if status == "running" and not folder.owned():
        status = "interrupted"  # its process was killed
    total = (record.get("budget") or {}).get("batches")
    seen = int(found[1]["batches_seen"]) if found else 0
    place = f"at batch {seen:,} of {total:,}" if total else "before its test ended"
    reason = f" ({record['error']})" if status == "failed" and record.get("error") else ""
    return f"{folder.path} is not finished: {status} {place}{reason}; the run's own command continues it"


def restored(cfg: DictConfig, state: Mapping[str, Any], batches_seen: int) -> Any:
    """The method of a configuration with trained weights, in eval mode on the CPU."""
    from adbench.methods.base import Method

    if not str(cfg.method.get("_target_")).startswith("adbench.methods."):
        raise UserError(f"{cfg.method.get('_target_')} is no method")
    _refuse_another_versions_arguments(cfg)
    method = build_method(cfg)
    if not isinstance(method, Method):
        raise UserError(f"{cfg.method._target_} is no method")
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"these weights do not fit {cfg.method._target_}: {error}") from error
    method.batches_seen = batches_seen
    return method.eval()


def _refuse_another_versions_arguments(cfg: DictConfig) -> None:
    """A configuration that was written when the method took other arguments."""
    try:
        parameters = inspect.signature(get_object(cfg.method._target_)).parameters
    except Exception as error:
        raise UserError(f"{cfg.method._target_} is no method") from error
    given = set(_method_arguments(cfg)) - {"_target_"}
    needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    differences = [
        f"{what} {', '.join(sorted(names))}"
        for what, names in (("now needed:", needed - given), ("unknown now:", given - set(parameters)))
        if names
    ]
    if differences:
        raise UserError(
            f"another version of adbench, whose {cfg.method._target_} had other arguments, trained this run "
            f"({'; '.join(differences)}). Load it with that version, or train again with the run's own command"
        )


def choices_of(cfg: DictConfig | None = None) -> dict[str, str | None]:
    """The group choices of the running Hydra job."""
    return dict(HydraConfig.get().runtime.choices)

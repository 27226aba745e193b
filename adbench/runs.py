"""A run folder: where it is, who owns it, what is in it, and how a trained method is loaded back from it."""

from __future__ import annotations

import csv
import hashlib
import importlib
import inspect
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adbench.files import whole, write_json, write_text
from adbench.types import UserError
from adbench.values import flat, refuse_wrong_values

GROUPS = ("method", "data", "protocol", "pretraining")
# Where data lie and how fast they are read changes no result, so it changes no folder name either.
UNHASHED = ("data.workers", "data.eval_batch_size", "data.root", "data.file", "data.download", "data.source.root",
            "data.source.file", "data.source.download")  # fmt: skip
SWITCH_WORDS = {"trainer.deterministic": ("warn",)}  # what else than true and false a switch may be


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
    values["trainer.precision"] = cfg.trainer.precision
    skipped = (*UNHASHED, *(f"{group}.id" for group in GROUPS))
    # A recipe only feeds other values, which are hashed themselves; a budget's name is not its length.
    return {
        key: value
        for key, value in values.items()
        if key not in skipped and not key.startswith("method.recipe.") and key != "budget.name"
    }


def _named_by_id(cfg: DictConfig, group: str) -> list[str]:
    """Dotted keys that a group's readable id already tells, e.g. `data.normal_class` of `cifar10/${.normal_class}`."""
    template = str(OmegaConf.to_container(cfg[group], resolve=False).get("id", ""))
    keys = re.findall(r"\$\{([\w.]+)\}", template)
    return [f"{group}{key}" if key.startswith(".") else key for key in keys]


def _defaults(cfg: DictConfig, choices: Mapping[str, str | None]) -> DictConfig:
    """The configuration of the same group choices with no value overridden."""
    # The seed may be a value of a group too (the split of a data set that has none): it names the folder itself.
    overrides = [*(f"{group}={choices[group]}" for group in GROUPS), f"seed={cfg.seed}"]
    defaults = (
        GlobalHydra.instance()
        .config_loader()
        .load_configuration(config_name="config", overrides=overrides, run_mode=RunMode.RUN)
    )
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
            raise UserError(f"{key} must be true or false, as in {key}={json.dumps(default)}; got {value!r}")
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


def note_other_settings(record: Mapping[str, Any], cfg: DictConfig) -> str:
    """What to tell of a finished run that this command takes over; empty if it was made with the command's settings.

    A folder's name tells what a command changes about its presets; a preset that has changed since is not seen there.
    """
    then = record.get("config_hash")
    if then in (None, config_hash(cfg)):
        return ""
    return "it was made with other settings than this command has now: a preset or a default has changed since"


def safe_id(text: Any) -> str:
    """A folder name that every file system takes; slashes stay, because ids such as mvtec/bottle nest."""
    parts = [re.sub(r"[^\w.+-]+", "_", part).strip("._") for part in str(text).split("/")]
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
        path: of the folder, or the file `results/latest` that names it.
        patience: seconds to wait on entering for a process that owns it.

    Raises:
        UserError: on entering, if another process owns the folder.
    """

    def __init__(self, path: Path | str, patience: float = 0.0) -> None:
        path = Path(path)
        if path.name == "latest" and path.is_file():
            path = Path(path.read_text().strip())
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
        """The contents of metrics.json; empty before the first run."""
        try:
            return json.loads((self.path / "metrics.json").read_text())
        except FileNotFoundError:
            return {}

    def config(self) -> DictConfig:
        """The resolved configuration that the run was made with.

        Raises:
            UserError: there is none, or it names something to call that is not this package's.
        """
        if not self.path.exists():
            raise UserError(f"there is no {self.path}; give the folder of a run")
        if not self.config_file.exists():
            raise UserError(f"{self.path} is no run folder: {self.config_file} is missing")
        try:
            cfg = OmegaConf.load(self.config_file)
        except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            raise UserError(f"{self.config_file} cannot be read: {error}") from error
        return trusted(cfg, self.config_file)

    @staticmethod
    def parsed(config: Mapping[str, Any]) -> DictConfig:
        """A configuration from plain values."""
        return OmegaConf.create(dict(config))

    def clear(self) -> None:
        """Remove what an earlier run left, so that nothing of it can be taken for the new one's."""
        for name in ("metrics.json", "scores.csv", "calibration.csv", "split.json", "curves.json"):
            (self.path / name).unlink(missing_ok=True)
        for folder in ("checkpoints", "figures"):
            for file in (self.path / folder).glob("*"):
                file.unlink()

    def write_config(self, cfg: DictConfig) -> None:
        resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        write_text(self.config_file, OmegaConf.to_yaml(resolved))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        write_json(self.path / "metrics.json", metrics)

    def write_curves(self, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Points of curves for plots, five digits each."""
        short = {name: {key: [round(v, 5) for v in points] for key, points in c.items()} for name, c in curves.items()}
        write_text(self.path / "curves.json", json.dumps(short, allow_nan=False) + "\n")

    def write_split(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with whole(self.path / "split.json") as temporary:
            temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")

    def write_scores(self, name: str, rows: Iterable[tuple[int, str, int, str, float]]) -> None:
        """scores.csv or calibration.csv: index, path, label, defect, score with nine significant digits."""
        with whole(self.path / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["index", "path", "label", "defect", "score"])
            writer.writerows((i, path, label, defect, f"{score:.9g}") for i, path, label, defect, score in rows)


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


def build_datamodule(cfg: DictConfig, supervision: str) -> Any:
    """The datamodule of a configuration; its files are not read before `setup`."""
    from adbench.data.datamodule import DataModule

    data = cfg.data
    protocol = {k: v for k, v in OmegaConf.to_container(cfg.protocol, resolve=True).items() if k != "id"}
    return DataModule(
        build(data.source),
        build(protocol),
        image_size=OmegaConf.to_object(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        workers=data.workers,
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        supervision=supervision,
    )


def load_method(folder: RunFolder | Path | str) -> Any:
    """The trained method of a run folder, in eval mode on the CPU."""
    from adbench.checkpoints import newest_readable

    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    cfg = folder.config()
    found = newest_readable(folder.checkpoint)
    if found is None:
        raise UserError(f"{folder.checkpoint} is missing or cannot be read; train again with the run's own command")
    return restored(cfg, found[1]["state_dict"], int(found[1]["batches_seen"]))


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

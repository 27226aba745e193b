"""From a configuration to objects, and from a run folder back to its trained method."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from adbench.errors import UserError
from adbench.experiment import identity  # noqa: F401  (its resolvers, which configurations use)
from adbench.experiment import trust as trusting
from adbench.experiment.console import one_line
from adbench.experiment.folder import RunFolder
from adbench.experiment.values import as_mapping
from adbench.imports import import_quickly

FROZEN = (None, "adbench.pretraining.imagenet.ImageNet")  # pretraining that sees no image of the data set


def build(node: Any) -> Any:
    """What a configuration node describes.

    Args:
        node: plain values or a section of a configuration; `_target_` names what is built.

    Raises:
        UserError: whatever the constructor refuses, in one message.
    """
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
        target = str(node.get("_target_"))
        raise UserError(
            trusting.lacking(target, root) or f"{target} cannot be built from the values that it got: {one_line(root)}"
        ) from error


def build_method(cfg: DictConfig) -> Any:
    """The method of a configuration, untrained, its seed set.

    The recipe is advice to the data and budget groups, so the constructor does not get it.

    Raises:
        UserError: the method refuses a value, or one of its sizes is 0.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # refused here
        method = build(_method_arguments(cfg))
    open_methods = [name for name in dir(type(method)) if _is_abstract(getattr(type(method), name, None))]
    if open_methods:
        raise UserError(f"{cfg.method._target_} lacks {' and '.join(f'{name}()' for name in open_methods)}; define it")
    empty = next((name for name, weight in method.named_parameters() if weight.numel() == 0), None)
    if empty:
        raise UserError(f"{empty} of this method has no entries: one of its sizes under method. is 0")
    method.seed = cfg.seed
    return method


def _is_abstract(function: Any) -> bool:
    return getattr(function, "__isabstractmethod__", False) is True


def _method_arguments(cfg: DictConfig) -> dict[str, Any]:
    values = as_mapping(cfg.method)
    return {key: value for key, value in values.items() if key not in ("recipe", "id")}


def build_source(cfg: DictConfig) -> Any:
    """The data set of a configuration, listed; it remembers in `cache_dir` what its files hold.

    Raises:
        UserError: the data are not there, or not as they should be.
    """
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
    protocol = {k: v for k, v in as_mapping(cfg.protocol).items() if k != "id"}
    duplicates = protocol.pop("duplicates", "warn")
    holdout = _hold_out(cfg, protocol.get("holdout"))
    if holdout is not None:
        del protocol["holdout"]
    divide = build(protocol)
    return DataModule(
        build_source(cfg) if source is None else source,
        divide if holdout is None else partial(divide, holdout=holdout),
        image_size=list(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        workers=data.workers,
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        supervision=supervision,
        rows_per_step=cfg.method.get("rows_per_step"),
        labelled_stream=cfg.method.get("labelled_stream", False),
        duplicates=duplicates,
        holdout=holdout,
        cache=data.get("cache", "disk"),
    )


def _hold_out(cfg: DictConfig, way: Any) -> Any:
    """The rule of protocol.holdout=auto or cv; None for a share."""
    from adbench.data.protocols import HoldOut
    from adbench.evaluation.thresholds import needed

    if not isinstance(way, str):
        return None
    budget = as_mapping(cfg.method).get("recipe", {}).get("budget", {})
    in_one_pass = bool(budget) and all(length.get("max_batches") == 0 for length in budget.values())
    frozen = cfg.get("pretraining", {}).get("_target_") in FROZEN
    return HoldOut(way, needed(cfg.evaluation.quantile), in_one_pass and frozen)


def load_method(folder: RunFolder | Path | str, trust: Iterable[str] = ()) -> Any:
    """The trained method of a run folder, in eval mode on the CPU.

    Args:
        folder: of the run.
        trust: packages whose classes may be built, beside this one and installed plug-ins (`experiment.trust`).

    Raises:
        UserError: it is not finished, asks for code that nobody trusts, or was made by another version.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    cfg = folder.config()
    checkpoint = folder.newest_checkpoint()
    if checkpoint is None:
        if folder.metrics().get("status") not in (None, "finished"):
            raise UserError(how_far(folder))
        raise UserError(f"{folder.checkpoint} is missing or cannot be read; train again with the run's own command")
    return restored(cfg, checkpoint.contents["state_dict"], checkpoint.batches_seen, folder.config_file, trust)


def how_far(folder: RunFolder) -> str:
    """A message about a run that is not finished: its status, its progress, the command that continues it."""
    record, checkpoint = folder.metrics(), folder.newest_checkpoint()
    status = record.get("status", "not begun")
    if status == "running" and not folder.owned():
        status = "interrupted"  # its process was killed
    total = (record.get("budget") or {}).get("batches")
    seen = checkpoint.batches_seen if checkpoint else 0
    progress = f"at batch {seen:,} of {total:,}" if total else "before its test ended"
    reason = f" ({record['error']})" if status == "failed" and record.get("error") else ""
    return f"{folder.path} is not finished: {status} {progress}{reason}; the run's own command continues it"


def restored(
    cfg: DictConfig, state: Mapping[str, Any], batches_seen: int, origin: Path | str, trust: Iterable[str] = ()
) -> Any:
    """The method of a stored configuration with trained weights, in eval mode on the CPU.

    Args:
        cfg: with the nodes `method` and `seed`. Only the method is built, so only it is checked.
        state, batches_seen: of the training.
        origin: where the configuration comes from, for messages.
        trust: see `load_method`.

    Raises:
        UserError: it is no method's, it asks for code that nobody trusts, or the weights do not fit.
    """
    import_quickly("torch", "pytorch_lightning")
    from adbench.methods.base import Method

    node = trusting.check_for_scoring({"method": OmegaConf.to_container(cfg.method, resolve=False)}, origin, trust)
    cfg = OmegaConf.create({**node, "seed": cfg.seed})
    target = cfg.method.get("_target_")
    try:
        cls = get_object(target)
    except Exception as error:
        raise UserError(f"{target} is no method; {origin} must be of a trained run") from error
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise UserError(f"{target} is no method; {origin} must be of a trained run")
    _refuse_another_versions_arguments(cfg)
    method = build_method(cfg)
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"these weights do not fit {target}: {error}") from error
    method.batches_seen = batches_seen
    return method.eval()


def stored_datamodule(cfg: DictConfig, supervision: str, origin: Path | str, trust: Iterable[str] = ()) -> Any:
    """The datamodule of a stored configuration; see `build_datamodule`.

    Raises:
        UserError: its data or its protocol would call what nobody trusts; nothing is built.
    """
    nodes = OmegaConf.create({"data": {"source": cfg.data.source}, "protocol": cfg.protocol})
    trusting.check(OmegaConf.to_container(nodes, resolve=False), origin, trust)
    return build_datamodule(cfg, supervision)


def _refuse_another_versions_arguments(cfg: DictConfig) -> None:
    """A configuration that was written when the method took other arguments."""
    parameters = inspect.signature(get_object(cfg.method._target_)).parameters
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

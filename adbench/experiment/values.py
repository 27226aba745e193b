"""Whether a configuration's values can be: refused here, by name, before a folder is touched or data are read.

What a key takes is said once, by the type annotation of the constructor that gets it. Keys that no constructor gets
have their types in `OWN`.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, cast

from hydra.utils import get_object
from omegaconf import OmegaConf

from adbench.errors import UserError
from adbench.experiment.precision import AUTO

TRAINER = "pytorch_lightning.Trainer"
OWN: dict[str, Any] = {
    "log_every": int, "trainer.threads": int | None, "trainer.compile": bool,
    "data.batch_size": int, "data.eval_batch_size": int,
    "data.image_size": int | Sequence[int], "data.workers": int | Literal["auto"],
    "budget.max_batches": int | None, "budget.max_epochs": int | None, "budget.pretraining_batches": int | None,
    "budget.checkpoint_every": int, "evaluation.quantile": float, "evaluation.panels_anomalous": int,
    "evaluation.panels_normal": int, "evaluation.gallery": int, "evaluation.codes": int,
}  # fmt: skip
AT_LEAST_ONE = ("log_every", "trainer.threads", "data.batch_size", "data.eval_batch_size", "data.image_size",
                "budget.checkpoint_every")  # fmt: skip
INNER = ("recipe", "id")  # of a node: not of its constructor
# Where numbers count, weigh or measure something; the trainer's -1 is a word.
COUNTED = ("method", "protocol", "pretraining", "budget", "evaluation", "data", "log_every")


#: What a key stands for, where its name alone does not tell; for messages.
PLACEHOLDERS = {
    "data.root": "data.root=DIR (the folder of your images)",
    "data.file": "data.file=FILE",
    "data.name": "data.name=NAME",
    "data.features": "data.features=D (columns without the label)",
}


def placeholder(key: str) -> str:
    """A key that has no value yet, as it is to be typed."""
    return PLACEHOLDERS.get(key, f"{key}=...")


def data_kinds(method: Any) -> list[str]:
    """The kinds of data that a method's configuration is made for.

    Raises:
        UserError: it names none, so nothing says how large its images are.
    """
    kinds = list((as_mapping(method, resolve=False).get("recipe") or {}).get("input") or {})
    if not kinds:
        raise UserError(
            f"the configuration file of {method.get('_target_')} does not say what data it takes; add the side of its "
            "images for each kind that it takes: recipe: {input: {object: 128, texture: 128, small: 32}}"
        )
    return kinds


# -- types ------------------------------------------------------------------------------------------------------------


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type; a type that no YAML value has is left to its constructor."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(value == word and isinstance(value, bool) == isinstance(word, bool) for word in inner)
    if isinstance(value, Mapping) and "_target_" in value:
        return hint not in (bool, int, float, str, None, types.NoneType)  # what it builds is not known here
    if hint in (None, types.NoneType):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    kind = origin or hint
    if kind is Callable:
        return False  # only a node with a _target_ becomes one
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values() if inner)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        listed = isinstance(value, list | tuple) and len(value) == len(inner)
        return listed and all(fits(one, of) for one, of in zip(value, inner, strict=True))
    if inspect.isclass(kind) and issubclass(kind, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value if inner)
    return True


def wanted(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        words = [str(word) for one in inner if typing.get_origin(one) is Literal for word in typing.get_args(one)]
        rest = [one for one in inner if typing.get_origin(one) is not Literal and one is not types.NoneType]
        parts = [wanted(one) for one in (*rest, *([Literal[tuple(dict.fromkeys(words))]] if words else []))]
        null = [] if types.NoneType not in inner else ["null"]
        return " or ".join(dict.fromkeys([part for part in parts if part] + null))
    if origin is Literal:
        words = [str(word) for word in dict.fromkeys(inner)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    named = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", None: "null"}
    if hint in named:
        return named[hint]
    kind = origin or hint
    if kind is Callable:
        return "a mapping with a _target_"
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return "a mapping"
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}, each {wanted(inner[0])}"
    if inspect.isclass(kind) and issubclass(kind, Sequence):
        return f"a list, each {wanted(inner[0])}" if inner and wanted(inner[0]) else "a list"
    return ""


@cache
def hints_of(target: str) -> dict[str, Any]:
    """The annotated types of what a `_target_` is called with; empty where they cannot be had."""
    try:
        called = get_object(target)
        hints = typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except Exception:  # a name that does not exist is for the one who builds it to say
        return {}
    if target == TRAINER:
        hints["precision"] = hints["precision"] | Literal["auto"]  # the run's own word (experiment.precision)
    return hints


@cache
def accepted(target: str) -> tuple[str, ...] | None:
    """The names of what a `_target_` is called with; None if it takes any or cannot be had."""
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception:
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)


def as_mapping(cfg: Any, *, resolve: bool = True) -> dict[str, Any]:
    """A configuration's section as plain values.

    Args:
        cfg: a `DictConfig`.
        resolve: follow interpolations; False keeps them as they are written.

    Raises:
        TypeError: it is a list.
    """
    values = OmegaConf.to_container(cfg, resolve=resolve)
    if not isinstance(values, dict):
        raise TypeError(f"a mapping is wanted here, got {type(values).__name__}")
    return cast(dict[str, Any], values)  # OmegaConf's keys may be numbers; a group's are words


# -- checks -----------------------------------------------------------------------------------------------------------


def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings and lists that is neither, by dotted name."""
    if isinstance(node, Mapping | list | tuple):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted name; a list is a leaf."""
    if isinstance(node, Mapping):
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: node}


def refuse_wrong_values(sections: Mapping[str, Any], reference: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Refuse what cannot be: numbers that are none, and what the constructors' annotations do not take.

    Args:
        sections: the configuration's sections by name, resolved; one that does not resolve is not among them.
        reference: the same of the chosen groups' defaults; what they leave open is the configuration's own.
        plain: the groups' defaults by dotted name as they are written, with nothing of the configuration.

    Raises:
        UserError: naming key and value, and what to type.
    """
    defaults = {key: value for name, section in reference.items() for key, value in flat(section, name).items()}
    for key, value in plain.items():  # what the reference took over from the configuration itself is no default
        if value == "???" or key == "seed":
            defaults.pop(key, None)
        elif not (isinstance(value, str) and "${" in value):
            defaults[key] = value
    for name, section in sections.items():
        was = reference.get(name)
        if isinstance(was, Mapping) and section is not None and not isinstance(section, Mapping):
            raise UserError(f"{name}={section} sets none of its keys: {name} has {', '.join(map(str, was))}")
    refuse_numbers_that_cannot_be(sections, defaults)
    values = {key: value for name, section in sections.items() for key, value in flat(section, name).items()}
    refuse_own({key: values[key] for key in OWN if key in values}, defaults)
    for name in ("method", "data", "protocol", "pretraining", "trainer", "logger"):
        for key, value, want in misfits(sections.get(name), name, defaults, TRAINER if name == "trainer" else None):
            refuse(_written(key, sections), value, want, defaults.get(_written(key, sections)))


def refuse(key: str, value: Any, want: str, default: Any = None) -> typing.NoReturn:
    """The one message for a value that cannot be.

    Args:
        key: dotted.
        value: as it was given.
        want: what it should be, in words.
        default: an example, if there is one.

    Raises:
        UserError: always.
    """
    got = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    typed = json.dumps(default, separators=(",", ":")).replace('"', "")  # without spaces: one word of a shell
    example = "" if default is None or isinstance(default, dict) else f", as in {key}={typed}"
    raise UserError(f"{key} must be {want}{example}; got {got}")


def refuse_numbers_that_cannot_be(sections: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """No number is NaN or infinite; none that counts, weighs or measures falls below zero, if its default does not.

    Args:
        sections: resolved sections of the configuration by name.
        defaults: every default by dotted name, of lists the whole list.

    Raises:
        UserError: naming key and value, and what to type.
    """
    for name, section in sections.items():
        for key, value in leaves(section, name):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            key, default = _written(key, sections), defaults.get(key)
            was = isinstance(default, int | float) and not isinstance(default, bool)
            if not math.isfinite(value) and not (was and default == value):
                refuse(key, value, "a finite number", default if was else None)
            if value < 0 and was and default is not None and default >= 0 and name in COUNTED:
                refuse(key, value, "a number of at least 0", default)
            if name == "protocol" and isinstance(default, float) and 0 <= default <= 1 < value:
                refuse(key, value, "a share from 0 to 1", default)


def refuse_own(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse wrong values of keys that no constructor gets.

    Args:
        values: of the keys in `OWN`, as far as they resolve.
        defaults: every default by dotted name.

    Raises:
        UserError: naming key and value, and what to type.
    """
    for key, value in values.items():
        default, hint = defaults.get(key), OWN[key]
        if value is None and default is None:
            continue
        least = 1 if key in AT_LEAST_ONE else 0
        want = wanted(hint)
        if hint is not float:
            want = want.replace("a whole number", f"a whole number of at least {least}")
        low = isinstance(value, int | float) and value < least and hint is not float
        if not fits(value, hint) or low:
            refuse(key, value, want, default)
        if key == "evaluation.quantile" and not 0 < value < 1:
            refuse(key, value, "between 0 and 1", default)


def misfits(
    node: Any, prefix: str, defaults: Mapping[str, Any], target: str | None = None
) -> Iterator[tuple[str, Any, str]]:
    """Key, value and what is wanted instead, where a value is not what the annotation of its constructor says.

    Args:
        node: a section of the configuration, resolved, or what is in one.
        prefix: its dotted name.
        defaults: every default by dotted name: what a constructor without annotations is judged by.
        target: what the node is for, where it has no `_target_`.
    """
    if isinstance(node, list | tuple):
        for place, one in enumerate(node):
            yield from misfits(one, f"{prefix}.{place}", defaults)
    if not isinstance(node, Mapping):
        return
    target = target or node.get("_target_")
    hints = hints_of(target) if isinstance(target, str) else {}
    for name, value in node.items():
        key = f"{prefix}.{name}"
        if str(name).startswith("_") or (name in INNER and prefix in ("method", "protocol", "pretraining", "data")):
            continue
        hint = hints.get(name, _kind_of(defaults.get(key)) if prefix.startswith(("method", "pre", "protocol")) else Any)
        # The name of a data set or of a class may be a number.
        number = prefix.startswith("data") and isinstance(value, int | float) and not isinstance(value, bool)
        yield from misfits(value, key, defaults)  # first: of a mapping the entry is named
        if not fits(value, hint) and not (number and fits("", hint)):
            yield (
                key,
                value,
                (wanted(hint) if name in hints else wanted(hint).removesuffix(" or null")) or "another value",
            )
    if isinstance(target, str) and target.startswith("torch.optim."):
        yield from _refused_by_optimizer(node, prefix)


def _kind_of(default: Any) -> Any:
    """The type that a default shows where no annotation says it; a float for any number, as YAML's 1 may be meant."""
    if isinstance(default, bool):
        return bool
    return float | None if isinstance(default, int | float) else list | None if isinstance(default, list) else Any


def _written(key: str, sections: Mapping[str, Any]) -> str:
    """The key that is typed: much of what a source gets is copied from its data set's own keys."""
    name = key.removeprefix("data.source.")
    return f"data.{name}" if name != key and name.split(".")[0] in sections["data"] else key


def _refused_by_optimizer(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, str]]:
    """What an optimizer's own checks refuse, tried value by value on one weight."""
    import torch

    kind = get_object(node["_target_"])
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        return
    make: Any = kind
    for name, value in node.items():
        if str(name).startswith("_"):
            continue
        try:
            make([torch.nn.Parameter(torch.zeros(1))], **{str(name): value})
        except (ValueError, TypeError) as error:
            if "momentum" not in str(error):  # a value that asks for another one is judged with all of them
                yield f"{prefix}.{name}", value, f"what {kind.__name__} takes ({error})"


def refuse_absent_devices(trainer: Mapping[str, Any]) -> None:
    """A device that this machine lacks, an unknown word for one, or a precision that it cannot compute in.

    Raises:
        UserError: naming the keys and what to type.
    """
    from pytorch_lightning import Trainer
    from pytorch_lightning.strategies import StrategyRegistry

    names = StrategyRegistry.available_strategies()
    if trainer["strategy"] not in ("auto", *names):
        near = difflib.get_close_matches(str(trainer["strategy"]), ["auto", *names], n=3) or ["auto"]
        raise UserError(f"trainer.strategy={trainer['strategy']} does not exist; did you mean {' or '.join(near)}?")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the run's own trainers tell what there is
    asked = {key: trainer[key] for key in ("accelerator", "devices", "precision")}
    if asked["precision"] == AUTO:  # which takes what there is
        del asked["precision"]
    silent: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    try:
        Trainer(**asked, **silent)
    except Exception as error:  # Lightning has its own types for each way to be wrong
        reason = " ".join(str(error).split()).rstrip(".!")
        if "can not run on your system" in reason or "No supported gpu backend" in reason:
            reason = f"there is no {trainer['accelerator']} on this machine"
        keys = " ".join(f"trainer.{key}={value}" for key, value in asked.items())
        raise UserError(
            f"{keys} cannot be had: {reason}. Type trainer=cpu, or trainer=default for any device"
        ) from None

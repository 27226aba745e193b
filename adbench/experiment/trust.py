"""What a stored configuration may build.

A configuration on the command line is the user's own. One that lies in a run folder or an exported file may come from
anyone, and building it calls whatever it names. So these names are checked, before anything is imported from outside:

- classes and functions that this package defines, and the optimizers of `torch.optim`;
- those of installed plug-ins (`adbench.experiment.plugins`): who installs one consents, and a run folder cannot;
- those of packages that the person at the keyboard names, with `--trust NAME` or `trust=["NAME"]`.

Only what is built is checked. Scoring builds the method alone; an optimizer factory that nobody trusts does not stand
in its way, because scoring never calls it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adbench.errors import UserError
from adbench.experiment import plugins

OURS = re.compile(r"adbench\.(methods|data|pretraining|transforms)(\.[a-z]\w*)+\.[A-Za-z]\w*")
CALLED = (
    "_target_",
    "target",
    "test_target",
)  # keys whose values are imported and called (`data=dataset` has the last)
PARTIAL = "_partial_"  # Hydra's mark of a factory: a node that is built into a callable and not called


def plain_values(container: Any, origin: Path | str) -> dict[str, Any]:
    """The values of a stored configuration, if they are plain.

    Raises:
        UserError: it is no mapping, or a value is an interpolation, which a run never writes and which could build a
            node that no check has seen.
    """
    if not isinstance(container, dict):
        raise UserError(f"{origin} is no configuration of a run")
    for key, value in _leaves(container):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{origin} holds the interpolation {value} ({key}), which a run never writes: not loaded")
    return container


def check(node: Any, origin: Path | str, trust: Iterable[str] = ()) -> Any:
    """`node` again, if nothing in it would call what nobody trusts.

    Args:
        node: plain values, whose `_target_` keys, however deep, name what is called.
        origin: where it comes from, for the message.
        trust: packages or modules trusted beside this package and the installed plug-ins.

    Raises:
        UserError: a target is not trusted; the message says what to type.
    """
    for key, value in _leaves(node):
        name = key.rsplit(".", 1)[-1]
        called = name == "_target_" or (name in CALLED and isinstance(value, str) and "." in value)
        if called and value is not None and not trusted(value, trust):
            if message := _not_found(value, trust):
                raise UserError(message)
            raise UserError(f"{origin} wants to call {value} ({key}), {_why_not(value)}")
    return node


def check_for_scoring(node: Mapping[str, Any], origin: Path | str, trust: Iterable[str] = ()) -> dict[str, Any]:
    """A method's node to build for scoring: factories that nobody trusts become ones that refuse to be called.

    Raises:
        UserError: anything else in it is not trusted.
    """
    trust = tuple(trust)
    return check(_without_foreign_factories(dict(node), trust), origin, trust)


def _without_foreign_factories(node: Any, trust: tuple[str, ...]) -> Any:
    if isinstance(node, list | tuple):
        return [_without_foreign_factories(value, trust) for value in node]
    if not isinstance(node, Mapping):
        return node
    target = node.get("_target_")
    if node.get(PARTIAL) is True and isinstance(target, str) and not trusted(target, trust):
        return {"_target_": f"{__name__}.refused_factory", PARTIAL: True, "name": target}
    return {key: _without_foreign_factories(value, trust) for key, value in node.items()}


def refused_factory(*_: Any, name: str, **__: Any) -> Any:
    """Stands for a factory that was not trusted when a run was loaded.

    Raises:
        UserError: always.
    """
    raise UserError(f"this run was loaded without {name}, {_why_not(name)}")


def trusted(target: Any, trust: Iterable[str] = ()) -> bool:
    """Whether a dotted name may be called: a class or function that a trusted package itself defines."""
    name = str(target)
    module, _, attribute = name.rpartition(".")
    if not isinstance(target, str) or not module:
        return False
    if name == f"{__name__}.refused_factory":
        return True
    if module == "torch.optim":
        from torch import optim

        found = getattr(optim, attribute, None)
        return isinstance(found, type) and issubclass(found, optim.Optimizer)
    if module.split(".")[0] == "adbench":
        return bool(OURS.fullmatch(name)) and _defined(module, attribute, module)
    homes = [home for home in (*plugins.packages().values(), *trust) if _inside(module, home)]
    return any(_defined(module, attribute, home) for home in homes)


def _inside(module: str, home: str) -> bool:
    return module == home or module.startswith(f"{home}.")


def _defined(module: str, attribute: str, home: str) -> bool:
    """Whether a module has a class or function of this name that it or its package defines, not imports."""
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:  # "adbench.data.cache.os" is no module, whatever adbench/data/cache.py imports
        return False
    return (inspect.isclass(found) or inspect.isfunction(found)) and _inside(found.__module__, home)


def _not_found(target: Any, trust: Iterable[str]) -> str | None:
    """The message for what is trusted by name and is not to be found."""
    module = str(target).rpartition(".")[0]
    if not any(_inside(module, home) for home in trust):
        return None
    try:
        importlib.import_module(module)
    except ImportError as error:
        return lacking(str(target), error)
    return None


def lacking(target: str, error: BaseException) -> str | None:
    """The message for a target whose own module Python does not find; None for any other error."""
    module = target.rpartition(".")[0]
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if not name or not _inside(module, name):
        return None
    return (
        f"Python does not find the module {name} of {target}: install it, start python -m adbench... in the folder "
        "that has it, or set PYTHONPATH to that folder"
    )


def _why_not(target: Any) -> str:
    home = str(target).split(".")[0]
    if home == "adbench":
        return "which adbench does not offer to configurations: not loaded"
    return (
        f"and {home} is neither part of adbench nor an installed plug-in: not loaded. If you trust that package, "
        f'add --trust {home} (in Python trust=["{home}"]), or install the plug-in that has it'
    )


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings and lists by dotted name; a `_target_` as it is, whatever it is."""
    if isinstance(node, Mapping | list | tuple) and not prefix.endswith("_target_"):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node

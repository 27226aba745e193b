"""Heavy imports, done in less time than they take by themselves."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys


def import_quickly(*names: str) -> None:
    """Import modules with garbage collection off.

    Torch and Lightning make a million objects that stay for good; a fifth of the time of their import goes into looking
    for garbage among them. In a command of this package, what there is afterwards is not looked through again either.

    Args:
        names: dotted names; those that are there already cost nothing.

    Raises:
        ImportError: one does not exist.
    """
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in missing:
            importlib.import_module(name)
    finally:
        if _command():
            gc.freeze()
            atexit.register(gc.unfreeze)  # what is frozen at the end counts as leaked, and bindings say so
        if collecting:
            gc.enable()


def _command() -> bool:
    """Whether this process is a command of this package or a worker of its sweep, and not somebody's own program.

    A worker of joblib collects garbage after every job where psutil is not installed.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = "" if spec is None else str(spec.name)
    return name.split(".")[0] == __package__ or name.startswith("joblib.externals.loky.")

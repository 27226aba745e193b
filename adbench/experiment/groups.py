"""The configuration groups and their choices, read from file names alone: no Hydra, no torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adbench.errors import UserError
from adbench.experiment import plugins

OWN = "ADBENCH_CONF"  # the environment variable that names a user's own trees; processes that are started inherit it

GROUPS = ("method", "data", "protocol", "pretraining", "budget", "trainer", "logger", "callbacks", "experiment")


def conf_dir() -> Path:
    """This package's configuration tree: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_dirs() -> list[Path]:
    """This package's tree, then a user's own, then those of installed plug-ins, in the order in which Hydra looks."""
    return [conf_dir(), *own_conf_dirs(), *plugins.conf_dirs()]


def own_conf_dirs() -> list[Path]:
    """The trees that `--config-dir DIR` and the environment variable ADBENCH_CONF name."""
    return [Path(text).expanduser().absolute() for text in os.environ.get(OWN, "").split(os.pathsep) if text]


@contextmanager
def own_trees(arguments: list[str]) -> Iterator[list[str]]:
    """While open, the trees of `--config-dir DIR` (also `-cd DIR`) offer their choices; yields the other arguments.

    Raises:
        UserError: there is no such folder.
    """
    others, folders, place = [], [], 0
    while place < len(arguments):
        word, equals, folder = arguments[place].partition("=")
        place += 1
        if word not in ("--config-dir", "-cd"):
            others.append(arguments[place - 1])
            continue
        if not equals:
            folder = arguments[place] if place < len(arguments) else ""
            place += 1
        if not Path(folder).expanduser().is_dir() or not folder:
            raise UserError(f"--config-dir {folder}: there is no such folder; give one that has method/NAME.yaml")
        folders.append(str(Path(folder).expanduser().absolute()))
    before = os.environ.get(OWN)
    if folders:
        os.environ[OWN] = os.pathsep.join([*folders, *([before] if before else [])])
    try:
        yield others
    finally:
        if before is not None:
            os.environ[OWN] = before
        elif folders:
            os.environ.pop(OWN, None)


def choices(group: str) -> list[str]:
    """The names that a group offers."""
    found: set[str] = set()
    for root in conf_dirs():
        names = (path.relative_to(root / group).with_suffix("").as_posix() for path in (root / group).rglob("*.yaml"))
        found |= {name for name in names if not name.rsplit("/", 1)[-1].startswith("_")}
    return sorted(found)


def unknown_choice(arguments: list[str]) -> str | None:
    """The message for the first group choice on the command line that does not exist; None if all do."""
    for argument in arguments:
        group, equals, value = argument.lstrip("+~").partition("=")
        if not equals or group not in GROUPS or any(c in value for c in "(){}[]$"):
            continue
        names = choices(group)
        for name in value.split(","):
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
                return f"{group}={name} does not exist; {hint}"
    return None

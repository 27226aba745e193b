"""The configuration groups and their choices, read from file names alone: no Hydra, no torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from adbench.experiment import plugins

GROUPS = ("method", "data", "protocol", "pretraining", "budget", "trainer", "logger", "callbacks", "experiment")


def conf_dir() -> Path:
    """This package's configuration tree: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_dirs() -> list[Path]:
    """This package's tree, then those of installed plug-ins, in the order in which Hydra looks."""
    return [conf_dir(), *plugins.conf_dirs()]


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

"""Plug-ins: installed packages that bring methods, data sets, protocols, callbacks and loggers of their own.

A plug-in is a distribution with an entry point of the group `adbench.plugins`, whose value names its package:

    [project.entry-points."adbench.plugins"]
    blur = "adbench_blur"

Its configuration files lie in `<package>/conf`, in the same groups as this package's own (`conf/method/blur.yaml`).
Who installs a plug-in trusts it: its classes may be built from a run folder. A run folder cannot install anything.
Nothing of a plug-in is imported before a configuration names it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

GROUP = "adbench.plugins"


@cache
def packages() -> dict[str, str]:
    """Name of each installed plug-in -> its package, in order of names."""
    found = {point.name: point.value.partition(":")[0] for point in entry_points(group=GROUP)}
    return dict(sorted(found.items()))


def conf_dirs() -> list[Path]:
    """The configuration trees of the installed plug-ins, those that exist."""
    return [folder for package in packages().values() if (folder := _conf_of(package)) is not None]


def _conf_of(package: str) -> Path | None:
    """`<package>/conf`, found without importing a package of the top level."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = (spec.submodule_search_locations or []) if spec is not None else []
    return next((Path(place) / "conf" for place in places if (Path(place) / "conf").is_dir()), None)

"""Where and when a run's figures come from: the machine, the versions, the commit, the time."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from adbench import __version__
from adbench.experiment.record import Commit, Hardware

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "kornia", "pytorch-msssim", "timm", "numpy")
# Other libraries whose detectors are methods: named where the method is one of theirs.
ADAPTED = {"adbench.methods.anomalib_": "anomalib", "adbench.methods.pyod_": "pyod"}


def versions(method: str = "") -> dict[str, str]:
    """Package -> version, of this one, Python, and what figures may depend on.

    Args:
        method: the dotted name of the method's class or module.
    """
    from importlib.metadata import PackageNotFoundError, version

    numbers = {"adbench": __version__, "python": platform.python_version()}
    for name in (*PACKAGES, *(package for home, package in ADAPTED.items() if method.startswith(home))):
        with suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers


def git() -> Commit | None:
    """Commit of the checkout that ran, and whether it was modified; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        modified = bool(_git_output(root, "status", "--porcelain", "-uno"))
        return {"commit": _git_output(root, "rev-parse", "HEAD"), "modified": modified}
    except (OSError, subprocess.SubprocessError):
        return None


def _git_output(root: Path, *arguments: str) -> str:
    line = ["git", *arguments]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603


def hardware(threads: int) -> Hardware:
    """This machine; `threads` is what each process of the run may use."""
    import torch

    from adbench.experiment.precision import cpu_capability

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": platform.processor() or platform.machine(),
        "cpu_capability": cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpus": gpus,
    }


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

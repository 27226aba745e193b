"""adbench: an experiment framework for visual anomaly detection."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from adbench.api import Run, compare, create_data, create_method, evaluate, fit, train
    from adbench.detection.detector import Detector

__version__ = "0.1.0"
__all__ = ["Run", "compare", "create_data", "create_method", "evaluate", "fit", "load", "train"]
API = ("Run", "compare", "create_data", "create_method", "evaluate", "fit", "train")


def refuse_windows(platform: str = sys.platform) -> None:
    """Leave with a sentence where runs cannot be kept safe: signals, locks and names of folders differ on Windows.

    Args:
        platform: as `sys.platform` has it.

    Raises:
        SystemExit: on Windows.
    """
    if platform in ("win32", "cygwin"):
        raise SystemExit(
            "error: adbench runs on Linux and macOS. On Windows, use it inside WSL2: in PowerShell `wsl --install`, "
            "then install and run adbench in the Linux shell that this opens."
        )


refuse_windows()  # every command imports this first


def load(path: os.PathLike[str] | str, device: str = "cpu", trust: Sequence[str] = ()) -> Detector:
    """The trained detector of a run folder, or of a .onnx or .safetensors file that `adbench.export` wrote.

    >>> import numpy as np
    >>> detector = adbench.load(RUN)
    >>> scores = detector.score(["part.png", np.zeros((300, 200, 3), np.uint8)])  # paths, PIL images, arrays, tensors
    >>> scores.image.shape, scores.maps.shape
    (torch.Size([2]), torch.Size([2, 1, 32, 32]))
    >>> threshold = detector.threshold(false_alarm_rate=0.3)
    >>> threshold["origin"]
    'held-out normal training samples of digits/0, pca, seed 0'
    >>> (scores.image > threshold["value"]).tolist()
    [True, True]

    Args:
        path: of the folder or file, or what `train` gave.
        device: cpu, gpu, cuda:1, ...
        trust: packages whose classes may be built from it, beside this one and installed plug-ins.

    Raises:
        UserError: there is no finished run or exported file at `path`, it is damaged, it asks for code that nobody
            trusts, or the device cannot be used.
    """
    from adbench.detection.detector import load

    return load(path, device, trust)


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is used: `import adbench` stays cheap."""
    if name in API:
        from adbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'adbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *API])

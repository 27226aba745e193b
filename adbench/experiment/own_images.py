"""What a configuration takes from a folder of the user's own images: its name, the kind of its images, a method."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from adbench.errors import UserError
from adbench.experiment.values import as_mapping

IMAGES = 16  # that the kind is measured on
METHOD, BACKBONE = "patchcore/small", "tf_efficientnet_lite0.in1k"  # what is taken where no method is chosen


def folder_name(root: Path | str) -> str:
    """The last part of a path: "parts" of "./parts/"; of "." and "~" that of the folder that they stand for."""
    path = Path(root).expanduser()
    path = path.resolve() if path.name in ("", "..") else path
    return path.name or "folder"


def measured(root: Path | str, normal: Any = None, anomalous: Any = None) -> Any:
    """The `data.kind.Kind` of a folder's normal images; None where they cannot be found or read.

    Args:
        root, normal, anomalous: of the data set.
    """
    place = Path(root).expanduser()
    changed = place.stat().st_mtime_ns if place.exists() else 0
    plain = [OmegaConf.to_container(p) if OmegaConf.is_config(p) else p for p in (normal, anomalous)]
    return _measured(str(place), repr(plain), changed)


@lru_cache(maxsize=64)  # a composition asks several times
def _measured(root: str, patterns: str, changed: int) -> Any:
    import ast

    import numpy as np
    from PIL import Image

    from adbench.data.folder import Folder
    from adbench.data.kind import SIDE, kind_of

    normal, anomalous = ast.literal_eval(patterns)
    try:
        source = Folder(root, normal, anomalous)
        rows = np.flatnonzero((source.records.label == 0) & (source.records.split == "train"))
        rows = rows[np.linspace(0, len(rows), min(IMAGES, len(rows)), endpoint=False).astype(int)]
        small = [
            Image.fromarray(source.read_image(int(row))).resize((SIDE, SIDE), Image.Resampling.BOX) for row in rows
        ]
    except (UserError, OSError, ValueError):  # the data set says so when it is read
        return None
    return kind_of(np.stack([np.asarray(image) for image in small]))


def image_kind(root: Path | str, normal: Any = None, anomalous: Any = None) -> str:
    """`data.kind` where nobody says it."""
    found = measured(root, normal, anomalous)
    return "object" if found is None else found.kind


def kind_report(data: Any) -> dict[str, Any] | None:
    """What `data.kind` was measured by, for metrics.json; None where the user says the kind."""
    if "image_kind" not in str(as_mapping(data, resolve=False).get("kind")):
        return None
    found = measured(data.root, data.normal, data.anomalous)
    return None if found is None else found._asdict()


def kind_in_words(report: dict[str, Any]) -> str:
    """One line: the kind, what it was measured by, and how to say it otherwise."""
    kind, other = report["kind"], {"object": "texture", "texture": "object"}[report["kind"]]
    sure = "" if report["sure"] else ", a guess"
    return (
        f"data.kind={kind}, measured{sure} (variance at the border {report['border']:g} of the whole's, explained by "
        f"the position {report['position']:g}); data.kind={other} if that is wrong"
    )


def with_method(words: Sequence[str]) -> tuple[list[str], str]:
    """A command line with a method where `data=folder` comes without one, and the line that says so.

    With ImageNet weights at hand that is `patchcore/small` on them; without, the default of all data sets.
    """
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    if "data=folder" not in words or keys & {"method", "experiment"}:
        return list(words), ""
    from adbench.pretraining.packaged import EXTRA, packaged

    pretraining = [] if "pretraining" in keys else ["pretraining=imagenet"]
    if packaged(BACKBONE) is None and pretraining:
        note = (
            "no method is chosen and no ImageNet weights are installed: the default method learns from your images "
            f"alone ({EXTRA} brings weights, with which {METHOD} is taken)"
        )
        return list(words), note
    chosen = [f"method={METHOD}", *pretraining]
    return [*words, *chosen], f"no method is chosen: {' '.join(chosen)} (--help says which method is for what)"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("image_kind", image_kind, replace=True)

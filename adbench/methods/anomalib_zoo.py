"""The image models of anomalib 2.7.0 as this package knows them, without importing anomalib."""

from __future__ import annotations

from dataclasses import dataclass

from adbench.errors import UserError, did_you_mean

EXTRA = 'pip install "adbench-vision[anomalib]"'


@dataclass(frozen=True)
class Model:
    """What the adapter must know of a model beforehand.

    Attributes:
        bank: whether it is filled by passes over the training rows instead of being trained by gradients.
        maps: whether it draws anomaly maps.
        alone: its own scoring lets a row depend on the others of its batch, so rows are scored one by one.
        images: what it learns from beside the training rows: a folder of images that anomalib would download.
        noise: whether procedural noise can take the place of those images.
        least: the smallest side of images that it takes.
        rows: the option that says how many training rows it needs at least.
        refused: why it cannot be a method here; None for those that can.
    """

    bank: bool = False
    maps: bool = True
    alone: bool = False
    images: str | None = None
    noise: bool = False
    least: int = 1
    rows: str | None = None
    refused: str | None = None


TEXTURES = "textures that its artificial defects show (the published one is DTD)"
MODELS: dict[str, Model] = {
    "AnomalyDINO": Model(bank=True),
    "AnomalyVFM": Model(refused="it is no network to train: anomalib downloads a whole detector from the hub"),
    "CFM": Model(refused="it learns from 3D point clouds beside images, and from Point-MAE, which anomalib downloads"),
    "Cfa": Model(),
    "Cflow": Model(alone=True),
    "Csflow": Model(),
    "Dfkde": Model(bank=True, maps=False, rows="n_pca_components"),
    "Dfm": Model(bank=True),
    "Dinomaly": Model(),
    "Draem": Model(images=TEXTURES, noise=True),
    "Dsr": Model(),
    "EfficientAd": Model(images="images of anything but the object (the published ones are ImageNet's)"),
    "Fastflow": Model(),
    "FoundAD": Model(),
    "Fre": Model(),
    "Ganomaly": Model(maps=False),
    "GeneralAD": Model(),
    "Glass": Model(images=TEXTURES, noise=True),
    "InpFormer": Model(),
    "L2BT": Model(),
    "MHPatchcore": Model(bank=True),
    "Padim": Model(bank=True),
    "Patchcore": Model(bank=True),
    "Patchflow": Model(),
    "Rad": Model(bank=True, alone=True),
    "ReverseDistillation": Model(),
    "Stfpm": Model(),
    "SuperADD": Model(bank=True),
    "Supersimplenet": Model(least=128),
    "Uflow": Model(),
    "UniNet": Model(),
    "VlmAd": Model(refused="it asks a language model, which is a service or a download of gigabytes"),
    "WinClip": Model(refused="it is not trained: it needs open_clip and CLIP's weights, which anomalib downloads"),
}


def usable() -> list[str]:
    """The models that can be methods, in order of names."""
    return sorted(name for name, model in MODELS.items() if model.refused is None)


def known(name: str | None) -> Model:
    """What is known of a model.

    Raises:
        UserError: none is named, anomalib has no such model, or it cannot be a method; the message says what to type.
    """
    found = MODELS.get(str(name))
    if found is None:
        got = "method=anomalib needs a model" if name is None else f"method.model={name} is no image model of anomalib"
        raise UserError(
            f"{got}: {did_you_mean(str(name), usable())}method.model=NAME with one of {', '.join(usable())}; "
            "method=anomalib/padim and the like bring the published settings"
        )
    if found.refused is not None:
        raise UserError(f"method.model={name} is not offered: {found.refused}. There are {', '.join(usable())}")
    return found

"""Encoders from ImageNet: published weights where the architecture has them, distillation where it has none."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adbench.data.images import decode
from adbench.data.listing import SUFFIXES, below
from adbench.errors import NotDownloaded, UserError
from adbench.files import whole
from adbench.losses.distillation import feature_distance
from adbench.networks.backbone import pixel_constants, pooled_features, tagged, timm_model
from adbench.networks.encoder import PretrainableEncoder
from adbench.pretraining.base import Images, Loop, Trained, digest, encoders_of, finish, seeded
from adbench.pretraining.packaged import EXTRA, in_a_package, packaged, renamed
from adbench.pretraining.views import Views

log = logging.getLogger("adbench")

WAIT = 5.0  # seconds for the hub to answer: offline it is the checkpoint option that helps, not patience
OWN = "own"  # the run's own training rows


# -- weights --------------------------------------------------------------------------------------------------------


def weights_file(name: str, checkpoint: str | None) -> Path:
    """The file with a timm model's weights: the one given, from the hub's local cache, from an installed package, or
    from the hub, in this order.

    Args:
        name: of the model with the tag of its weights.
        checkpoint: a local file; None looks for one.

    Raises:
        NotDownloaded: it is not there and the hub does not answer within a few seconds.
        UserError: the file that is given is none.
    """
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise UserError(f"pretraining.checkpoint={checkpoint} is not a file; expected the weights of {name}")
        return path
    import huggingface_hub

    repository = f"timm/{name}"
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str) and Path(cached).is_file():
        return Path(cached)
    found = packaged(name)
    if found is not None:
        return found.file
    if _reachable(huggingface_hub.constants.ENDPOINT):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors", etag_timeout=WAIT))
        except Exception as error:
            reason = f"it could not be downloaded ({type(error).__name__})"
    else:
        reason = "the hub does not answer"
    installable = f"{EXTRA} brings them; or " if in_a_package(name) else ""
    raise NotDownloaded(
        f"the weights {repository} are not in the local cache and {reason}; {installable}fetch model.safetensors of "
        f"{repository} where there is a network (`hf download {repository} model.safetensors`) and pass "
        "pretraining.checkpoint=FILE"
    )


def weights_used(name: str, path: Path, checkpoint: str | None) -> dict[str, str]:
    """What a run's metrics.json says of the weights it began with: name, origin and sha256 of the file."""
    found = packaged(name)
    if checkpoint is not None:
        origin = f"file {path.name}"
    elif found is not None and found.file == path:
        origin = found.origin
    else:
        origin = f"hub timm/{name}"
    return {"name": name, "origin": origin, "sha256": _file_digest(path)}


def _reachable(endpoint: str) -> bool:
    """Whether the hub answers within `WAIT`; name resolution included, which has no timeout of its own."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("0", "", "FALSE", "NO", "OFF"):
        return False
    import urllib.request

    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(endpoint, timeout=WAIT):  # noqa: S310 (the hub's own https address)
                answers.append(True)
        except Exception:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT)
    return bool(answers and answers[0])


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or a PyTorch file by name, in the file's shapes; nothing in it is ever executed.

    Raises:
        UserError: the file holds no plain tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        assert all(isinstance(value, Tensor) for value in state.values())
        return renamed(state)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights strictly; only a final classifier that the network lacks is dropped.

    Raises:
        UserError: a name or a shape does not fit, naming the first.
    """
    own = network.state_dict()
    weights = {k: v for k, v in weights.items() if k in own or k.split(".")[0] not in ("fc", "classifier", "head")}
    # torch < 0.4 files lack the counters of batch normalisation, which say nothing
    weights |= {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in weights}
    for key in sorted(own.keys() | weights.keys()):
        ours, theirs = (tuple(s[key].shape) if key in s else None for s in (own, weights))
        if ours != theirs:
            raise UserError(
                f"{path} does not fit the encoder: '{key}' is {theirs or 'missing'} in the file and "
                f"{ours or 'missing'} in the encoder; another network was saved there"
            )
    network.load_state_dict(weights, strict=True)


class ImageNet:
    """Published weights, loaded strictly.

    Args:
        checkpoint: a local file with the weights; None takes those of `weights_file`.
    """

    name = "imagenet"

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint
        self._files: dict[str, Path] = {}
        self._used: dict[str, dict[str, str]] = {}

    def check(self, method: Any) -> None:
        """Find and load every file now, before any data are read.

        Raises:
            UserError: an encoder has no published weights, they are not there, or they do not fit.
        """
        for name, encoder in encoders_of(method, self.name).items():
            if encoder.published is None and self.checkpoint is None:
                title = getattr(method, "display_name", type(method).__name__)
                raise UserError(
                    f"there are no published weights for the encoder '{name}' of {title}; use "
                    "pretraining=imagenet_kd, which distils them into any encoder, or pass a file that fits it, "
                    "pretraining.checkpoint=FILE"
                )
            published = encoder.published or name
            self._files[name] = weights_file(published, self.checkpoint)
            fill(encoder.network, read_weights(self._files[name]), self._files[name])
            self._used[name] = weights_used(published, self._files[name], self.checkpoint)

    def weights_used(self) -> dict[str, dict[str, str]]:
        """Name, origin and sha256 of each encoder's weights, for metrics.json; known after `check`."""
        return self._used

    def __call__(self, method: Any, datamodule: Any, **_: Any) -> None:
        if not self._files:
            self.check(method)
        finish(method)


# -- distillation -----------------------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[Path]:
    """Every image of a folder tree, in the order of their paths.

    Raises:
        UserError: there are none.
    """
    files = below(folder)
    if not files:
        raise UserError(f"pretraining.images={folder} holds no images ({', '.join(SUFFIXES)})")
    return files


def content_digest(folder: Path, files: list[Path], kept: Path) -> str:
    """One name for the paths below `folder` and the bytes of all files, wherever the folder lies.

    The bytes are read once: `kept` remembers the name under sizes and times of change.
    """
    names = [path.relative_to(folder).as_posix() for path in files]
    stats = [path.stat() for path in files]
    listing = digest([(n, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in zip(names, stats, strict=True)])
    known = kept / f"images-{listing}.txt"
    if known.exists():
        return known.read_text().strip()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = digest(list(zip(names, pool.map(_file_digest, files), strict=True)))
    with whole(known) as temporary:
        temporary.write_text(f"{found}\n")
    return found


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderImages(Images):
    """Random batches from any images of a folder tree, decoded as they are needed.

    Args:
        folder: searched with its subfolders.
        device: where batches are wanted.
        side: shorter side in pixels to which images are resized before they are cut square.

    Raises:
        UserError: the folder holds no images.
    """

    def __init__(self, folder: Path, device: torch.device, side: int) -> None:
        self.device, self.vectors, self.side = device, False, side
        self.files = image_files(folder)
        self.rows = torch.arange(len(self.files))
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def _read(self, row: int) -> Tensor:
        import numpy as np
        from PIL import Image

        image = Image.fromarray(decode(self.files[row]))
        scale = self.side / min(image.size)
        width, height = (max(self.side, round(s * scale)) for s in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = ((s - self.side) // 2 for s in image.size)
        image = image.crop((left, top, left + self.side, top + self.side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def batch(self, k: int, size: int, seed: int) -> Tensor:
        size = min(size, len(self.files))
        per_epoch = len(self.files) // size
        with seeded(seed, "rows", k // per_epoch, torch.device("cpu")):
            order = torch.randperm(len(self.files))
        chosen = order[k % per_epoch * size :][:size].tolist()
        return torch.stack(list(self._pool.map(self._read, chosen))).to(self.device).float() / 255


class Distillation(Trained):
    """A frozen ImageNet teacher's features are learned by any encoder.

    Args:
        teacher: name of a timm model, with or without the tag of its weights.
        checkpoint: a local file with the teacher's weights; None takes those of `weights_file`.
        images: a folder of images, ImageNet's in the paper; "own" (or None) takes the run's own training rows.
        published: an encoder that has published weights gets those instead of a distilled copy (as IGD's released code
            does for whole images); with `checkpoint` that file is used where it is the same network.
        iterations, batch_size, lr, weight_decay: of Adam.
        crop: smallest and largest share of the image's area that a crop holds.
        flip_p: how often a crop is mirrored.
        teacher_side: the teacher sees the student's crop enlarged to this side.
        save_every: batches between two partial files.
    """

    name = "imagenet_kd"

    def __init__(
        self,
        teacher: str,
        checkpoint: str | None,
        images: str | None,
        published: bool,
        iterations: int,
        batch_size: int,
        lr: float,
        weight_decay: float,
        crop: list[float],
        flip_p: float,
        teacher_side: int,
        save_every: int,
    ) -> None:
        self.teacher, self.published = teacher, published
        self._folder = None if images in (None, OWN) else Path(images).expanduser()
        self.iterations, self.batch_size, self.lr, self.weight_decay = iterations, batch_size, lr, weight_decay
        self.crop, self.flip_p, self.teacher_side, self.save_every = list(crop), flip_p, teacher_side, save_every
        self._checkpoint = checkpoint
        self._file: Path | None = None
        self._teacher: Any = None

    def check(self, method: Any) -> None:
        """Find the teacher and the images now, before any data are read.

        Raises:
            UserError: the method has no encoder of images, the teacher or its weights are not there, or the folder
                holds no images.
        """
        super().check(method)
        self.teacher = tagged(self.teacher, "pretraining.teacher")
        if self._folder is not None and not self._folder.is_dir():
            raise UserError(
                f"pretraining.images={self._folder} is not a folder; give a folder of images, or "
                f"pretraining.images={OWN} for the run's own training rows"
            )
        if self._folder is not None:
            image_files(self._folder)
        self._file = weights_file(self.teacher, self._checkpoint)
        self._load_teacher()

    def check_encoder(self, name: str, encoder: PretrainableEncoder) -> None:
        if encoder.side is None:
            raise UserError(f"pretraining={self.name} learns from images, and the encoder '{name}' takes vectors")

    def _load_teacher(self) -> Any:  # a timm model, which has no types
        if self._teacher is None:
            teacher = timm_model(self.teacher, "pretraining.teacher", (self.teacher_side,) * 2)
            self._file = self._file or weights_file(self.teacher, self._checkpoint)
            fill(teacher, read_weights(self._file), self._file)
            self._mean, self._std = (value[None] for value in pixel_constants(teacher))
            self._teacher = teacher.eval().requires_grad_(False)
        return self._teacher

    def images(self, datamodule: Any, device: torch.device) -> Images:
        if self._folder is None:
            return super().images(datamodule, device)
        return FolderImages(self._folder, device, max(datamodule.size))

    def weights_used(self) -> dict[str, dict[str, str]]:
        """Name, origin and sha256 of the teacher's weights, for metrics.json; known after `check`."""
        return {"teacher": weights_used(self.teacher, self._file, self._checkpoint)} if self._file else {}

    def images_used(self) -> dict[str, Any]:
        """What the distillation learns from, as the run's metrics.json has it."""
        if self._folder is None:
            return {"source": OWN}
        return {"source": "folder", "folder": str(self._folder), "files": len(image_files(self._folder))}

    def data_key(self, datamodule: Any, kept: Path) -> Any:
        weights = _file_digest(self._file or weights_file(self.teacher, self._checkpoint))
        if self._folder is None:
            return [weights, super().data_key(datamodule, kept)]
        return [weights, list(datamodule.size), content_digest(self._folder, image_files(self._folder), kept)]

    def __call__(self, method: Any, datamodule: Any, **options: Any) -> None:
        if self._folder is None:
            log.warning(
                "pretraining=imagenet_kd distils on this run's own training rows (pretraining.images=own), which is "
                "not the paper's way: that is ImageNet, pretraining.images=DIR"
            )
        super().__call__(method, datamodule, **options)

    def augmentation(self, side: int) -> nn.Module:
        """Crop and flip, on images in [0, 1]: (B, 3, H, W) -> (B, 3, side, side)."""
        from kornia import augmentation as A

        return nn.Sequential(
            A.RandomResizedCrop((side, side), scale=tuple(self.crop), p=1.0, cropping_mode="resample"),
            A.RandomHorizontalFlip(p=self.flip_p),
        )

    def length(self, rows: int) -> int:
        return self.iterations

    def train(
        self, encoder: PretrainableEncoder, images: Images, *, seed: int, max_batches: int | None, partial: Path
    ) -> None:
        network, teacher = encoder.network, self._load_teacher().to(images.device)
        if self.published and encoder.published == self.teacher and self._file is not None:
            fill(network, read_weights(self._file), self._file)
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wanted = pooled_features(teacher)
            same = encoder.features == wanted
            adapter = nn.Identity() if same else nn.Linear(encoder.features, wanted)
        adapter = adapter.to(images.device)
        optimizer = torch.optim.Adam(
            [*network.parameters(), *adapter.parameters()], lr=self.lr, weight_decay=self.weight_decay
        )
        views = Views(images, encoder, self.augmentation(encoder.image_side), seed)
        mean, std = (value.to(images.device) for value in (self._mean, self._std))

        def loss(k: int) -> Tensor:
            crop = views(views.crops(k, self.batch_size), k, 0)
            with torch.no_grad():
                large = F.interpolate(crop, size=(self.teacher_side,) * 2, mode="bilinear", align_corners=False)
                target = teacher((large - mean) / std)
            return feature_distance(adapter(network(encoder.normalize(crop))), target)

        loop = Loop({"encoder": network, "adapter": adapter}, optimizer, partial, self.save_every)
        steps = self.length(len(images))
        loop.run(min(steps, max_batches or steps), loss, "pretraining (distillation)")

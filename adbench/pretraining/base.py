"""What every pretraining that learns from images shares: the encoders, the images, the cache, the loop."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from adbench.files import Lock, whole
from adbench.networks.encoder import PretrainableEncoder
from adbench.streams import derived_seed, torch_stream
from adbench.types import Batch, UserError

log = logging.getLogger("adbench")


def encoders_of(method: Any, pretraining: str) -> dict[str, PretrainableEncoder]:
    """The encoders that a method shows.

    Raises:
        UserError: it shows none.
    """
    encoders = getattr(method, "encoders", None)
    found = encoders() if callable(encoders) else {}
    if not found:
        name = getattr(method, "display_name", type(method).__name__)
        raise UserError(
            f"pretraining={pretraining} needs an encoder to fill, and {name} has none; use pretraining=none"
        )
    return found


def finish(method: Any) -> None:
    """Tell the method that its encoders are filled."""
    hook = getattr(method, "on_pretrained", None)
    if callable(hook):
        hook()


# -- images ---------------------------------------------------------------------------------------------------------


def normal_rows(batch: Batch) -> Tensor:
    """The images of a batch without the known anomalies: (n, C, H, W) or (n, D), n <= B."""
    return batch.image[batch.semi_label >= 0]


class Images:
    """The training images, kept as bytes, and random batches of them.

    Args:
        batches: every training row once; rows with semi_label -1 are left out.
        device: where batches are wanted.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.device, self.vectors, parts = device, False, []
        for batch in batches:
            image = normal_rows(batch)
            self.vectors = image.ndim == 2
            parts.append((image if self.vectors else (image * 255).round().to(torch.uint8)).cpu())
        self.rows = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, k: int, size: int, seed: int) -> Tensor:
        """Batch k of a stream that goes through the rows in a new order each epoch, a function of (seed, k).

        Args:
            k: from 0.
            size: rows of a batch; of fewer rows all are taken.
            seed: of the order.

        Returns:
            (size, C, H, W) float in [0, 1], or (size, D) features.
        """
        size = min(size, len(self.rows))
        per_epoch = len(self.rows) // size
        order = torch.randperm(len(self.rows), generator=torch_stream(seed, "rows", k // per_epoch))
        first = k % per_epoch * size
        chosen = self.rows[order[first : first + size]].to(self.device)
        return chosen if self.vectors else chosen.float() / 255

    def batches_per_epoch(self, size: int) -> int:
        """Whole batches of `size` rows in one pass, at least 1."""
        return len(self.rows) // min(size, len(self.rows))


@contextmanager
def seeded(seed: int, purpose: str, k: int, device: torch.device) -> Iterator[None]:
    """Put the global generators where (seed, purpose, k) says, for libraries that draw there, and back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, purpose, k))
        yield


# -- the loop -------------------------------------------------------------------------------------------------------


class Loop:
    """Steps of one optimizer with a progress bar and, every so often, a partial file from which it goes on.

    Args:
        modules: all that is trained, by name; also what the partial file holds.
        optimizer: of their parameters.
        partial: the file; removed by the caller once the result is safe.
        save_every: steps between two partial files.
    """

    def __init__(
        self, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, partial: Path, save_every: int
    ) -> None:
        self.modules, self.optimizer, self.partial, self.save_every = modules, optimizer, partial, save_every

    def run(self, steps: int, loss: Callable[[int], Tensor], title: str, milestones: Iterable[int] = ()) -> None:
        """Minimise loss(k) for k = 0 .. steps - 1; the learning rate falls to a tenth at every milestone.

        Args:
            steps: of the optimizer, those of the partial file included.
            loss: number of a step -> () float.
            title: of the progress bar.
            milestones: steps.

        Raises:
            UserError: the loss is not finite.
        """
        start = self._resume()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        milestones = list(milestones)
        value = torch.zeros(())
        with tqdm(total=steps, initial=start, desc=title, unit="batch", mininterval=1.0, leave=False) as bar:
            for k in range(start, steps):
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.1 ** sum(k >= m for m in milestones)
                value = loss(k)
                self.optimizer.zero_grad(set_to_none=True)
                value.backward()
                self.optimizer.step()
                bar.update()
                if (k + 1) % self.save_every == 0 and k + 1 < steps:
                    self._check(value, title, k)
                    for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate
                    self._save(k + 1)
        self._check(value, title, steps - 1)

    @staticmethod
    def _check(value: Tensor, title: str, k: int) -> None:
        if not bool(torch.isfinite(value)):
            raise UserError(f"{title}: the loss became {value.item()} by batch {k}; lower pretraining.lr")

    def _save(self, step: int) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        with whole(self.partial) as temporary:
            torch.save({"step": step, "modules": state, "optimizer": self.optimizer.state_dict()}, temporary)

    def _resume(self) -> int:
        try:
            saved = torch.load(self.partial, weights_only=True, map_location="cpu")
            for name, module in self.modules.items():
                module.load_state_dict(saved["modules"][name])
            self.optimizer.load_state_dict(saved["optimizer"])
            return int(saved["step"])
        except FileNotFoundError:
            return 0
        except Exception as error:  # torn or from another version: begin again
            log.warning("%s cannot be continued (%s); starting over.", self.partial, type(error).__name__)
            return 0


# -- the cache ------------------------------------------------------------------------------------------------------


class Trained:
    """A pretraining whose result depends on (encoder, data, options, seed) and is kept under that key.

    Subclasses set `name`, store their options as attributes and define `train`.
    """

    name = ""

    def check(self, method: Any) -> None:
        """Refuse before any data are read what cannot be trained.

        Raises:
            UserError: the method has no encoder, or one that this pretraining does not take.
        """
        for name, encoder in encoders_of(method, self.name).items():
            self.check_encoder(name, encoder)

    def check_encoder(self, name: str, encoder: PretrainableEncoder) -> None:
        """Refuse an encoder that cannot be pretrained so.

        Raises:
            UserError: it takes other inputs than this pretraining gives.
        """

    def length(self, rows: int) -> int:
        """Steps of a whole pretraining on so many images."""
        raise NotImplementedError

    def train(
        self, encoder: PretrainableEncoder, images: Images, *, seed: int, max_batches: int | None, partial: Path
    ) -> None:
        """Train `encoder.network` in place.

        Args:
            encoder: of the method.
            images: what is trained on.
            seed: of everything that is drawn.
            max_batches: ends the training early; None goes the whole length.
            partial: file that an interrupted training leaves and goes on from.

        Raises:
            UserError: the loss is not finite, or there are too few images.
        """
        raise NotImplementedError

    def images(self, datamodule: Any, device: torch.device) -> Images:
        """What is trained on: the training rows."""
        return Images(datamodule.training_batches(device), device)

    def data_key(self, datamodule: Any, kept: Path) -> Any:
        """What `images` depends on; `kept` is the folder of the cache."""
        rows = hashlib.sha256(datamodule.split.train.tobytes()).hexdigest()
        return [datamodule.source.fingerprint(), rows, list(datamodule.size)]

    def __call__(
        self, method: Any, datamodule: Any, *, cache_dir: Path | str, seed: int, max_batches: int | None = None
    ) -> None:
        images: Images | None = None
        kept = Path(cache_dir).expanduser() / "pretraining"
        kept.mkdir(parents=True, exist_ok=True)
        data = self.data_key(datamodule, kept)
        for name, encoder in encoders_of(method, self.name).items():
            options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
            frozen = [p.requires_grad for p in encoder.network.parameters() if not p.requires_grad]
            key = digest([self.name, options, signature(encoder), data, seed, name, max_batches, *frozen[:1]])
            path = kept / f"{self.name}-{key}.safetensors"
            with Lock(path.with_suffix(".lock")):
                if not _load(path, encoder.network):
                    device = next(encoder.network.parameters()).device
                    images = images or self.images(datamodule, device)
                    partial = path.with_suffix(".partial")
                    encoder.network.train()
                    with _single_rows_refused(self, images), _thawed(encoder.network):
                        self.train(
                            encoder,
                            images,
                            seed=derived_seed(seed, self.name, name),
                            max_batches=max_batches,
                            partial=partial,
                        )
                    _save(path, encoder.network)
                    partial.unlink(missing_ok=True)
                    _load(path, encoder.network)
        finish(method)


@contextmanager
def _single_rows_refused(pretraining: Any, images: Images) -> Iterator[None]:
    """Say in our words what torch says when batch normalisation sees one value per channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"pretraining={pretraining.name} needs batches of at least two images for this encoder's batch "
            f"normalisation; there are {len(images.rows)} images and pretraining.batch_size={pretraining.batch_size}"
        ) from None


@contextmanager
def _thawed(network: nn.Module) -> Iterator[None]:
    """While open, every parameter learns: a method that keeps its encoder frozen wants it pretrained all the same."""
    flags = [(p, p.requires_grad) for p in network.parameters()]
    network.requires_grad_(True)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _save(path: Path, network: nn.Module) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with whole(path) as temporary:
        save_file(state, temporary)


def _load(path: Path, network: nn.Module) -> bool:
    """Fill the network from a cache entry; False if there is none, or none that can be read."""
    if not path.exists():
        return False
    try:
        network.load_state_dict(load_file(path), strict=True)
    except Exception as error:
        log.warning("The cached pretraining %s is damaged (%s); it is made anew.", path, type(error).__name__)
        path.unlink(missing_ok=True)
        return False
    log.info("Pretrained encoder from %s", path)
    return True


def signature(encoder: PretrainableEncoder) -> str:
    """A digest of an encoder's architecture and initial weights."""
    found = hashlib.sha256(repr((str(encoder.network), encoder.side, encoder.windows)).encode())
    for name, value in encoder.network.state_dict().items():
        found.update(repr((name, tuple(value.shape), str(value.dtype))).encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest(value: Any) -> str:
    """A name of 20 hexadecimal digits for plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:20]

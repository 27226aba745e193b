"""Any image model of anomalib as a method: its networks, losses, optimizers and schedules under this bench's protocols.

The model is anomalib's own LightningModule, as published in anomalib 2.7.0. Its hooks are called from here, in the
order in which a trainer would call them; what it asks of a trainer is answered by `anomalib_host.StandIn`. Backbones
are built with random weights and shown to `pretraining`, which fills them as it fills every other method's.

Source: Akcay et al. 2022, "Anomalib: A Deep Learning Library for Anomaly Detection"; each model's own paper is named
in its configuration file.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adbench.errors import UserError, first_line
from adbench.losses.neighbours import greedy_coreset, nearest, squared_distances
from adbench.methods import anomalib_host as host
from adbench.methods.anomalib_zoo import EXTRA, known
from adbench.methods.base import Method, sides
from adbench.networks.backbone import pooled_features, published_name, timm_model
from adbench.networks.encoder import PretrainableEncoder
from adbench.streams import numpy_stream, seeded_globals
from adbench.transforms.corruption import IMAGE_SUFFIXES
from adbench.types import Batch, Scores

log = logging.getLogger("adbench")

NOISE = "noise"  # method.images for procedural noise
# Arguments of anomalib's constructors that the adapter gives itself.
NOT_OPTIONS = ("pre_processor", "post_processor", "evaluator", "visualizer", "pre_trained", "precision", "input_shape",
               "image_size", "dtd_dir", "imagenet_dir", "anomaly_source_path")  # fmt: skip


class AnomalibModel(Method):
    """One image model of anomalib. A memory bank has no training step; every other model is an `AnomalibTraining`.

    Args:
        model: name of a class in `anomalib.models.image`, e.g. Padim.
        options: its constructor's arguments; those that are missing have anomalib's defaults.
        image_size: side of the images, or [height, width].
        images: a folder of images that the model learns from beside the training rows, for the models that need one;
            "noise" takes procedural noise where the model can.

    Raises:
        UserError: anomalib is not installed, it has no such model or the model no such option, or the model needs a
            download of its own.
    """

    mean: Tensor  # (3, 1, 1), of pixels in [0, 1]
    std: Tensor
    gradient_free = ("inner",)  # anomalib's optimizers leave out what its models do not train

    def __new__(
        cls,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        image_size: int | Sequence[int] = 256,
        images: str | None = None,
    ) -> AnomalibModel:
        trained = model is not None and cls is AnomalibModel and not known(model).bank
        return super().__new__(AnomalibTraining if trained else cls)

    def __init__(
        self,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        image_size: int | Sequence[int] = 256,
        images: str | None = None,
    ) -> None:
        super().__init__()
        self.known = known(model)
        self.automatic_optimization = self.known.bank  # the model's own optimizers step as it says
        self.model, self.options, self.images = str(model), dict(options or {}), images
        self.size = sides(image_size)
        if min(self.size) < self.known.least:
            least = self.known.least
            raise UserError(f"{self.model} takes images of side {least} or more: data.image_size={least}")
        if self.model == "Uflow" and self.options.get("backbone", "mcait") == "mcait" and self.size != (448, 448):
            raise UserError("Uflow's backbone mcait takes images of side 448 alone: data.image_size=448")
        self.no_graph = "scores its rows one by one" if self.known.alone else None
        self.has_maps = self.known.maps and self.options.get("score_type") != "nll"
        self.schedulers: list[Any] = []
        self._intervals: list[str] = []
        self._terms: dict[str, Tensor] = {}
        self._encoders: dict[str, PretrainableEncoder] = {}
        self._stand_in = host.StandIn(self)
        maker = _maker(self.model)
        self._check_options(maker)
        mean, std = _normalisation(maker)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        with host.unfilled() as found, self._speaking("cannot be built"):
            self.inner: Any = self._made(maker)
        self._unfilled = found
        self._modes = {name: module.training for name, module in self.inner.named_modules()}
        self._normalise_for_backbone()
        self._weights_known = not found
        if self.known.bank:
            self.inner.requires_grad_(False)

    @property
    def display_name(self) -> str:
        return f"anomalib's {self.model}"

    @contextmanager
    def _speaking(self, what: str, seen: Sequence[int] = ()) -> Iterator[None]:
        """While open, an error of anomalib's own code names the model, its options and how many training rows it has
        seen; what passes by itself (no memory, no file) stays what it is."""
        try:
            yield
        except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of any type: anomalib looks at its options where it uses them
            options = ", ".join(f"{name}: {value}" for name, value in self.options.items())
            rows = f" after {sum(seen)} training rows" if seen else ""
            raise UserError(
                f"{self.display_name} {what}{rows} with method.options={{{options}}}: {first_line(error)}"
            ) from error

    # -- building -----------------------------------------------------------------------------------------------------

    def _check_options(self, maker: type) -> None:
        taken = set(inspect.signature(maker).parameters) - set(NOT_OPTIONS)
        unknown = sorted(set(self.options) - taken)
        if unknown:
            raise UserError(
                f"method.options.{unknown[0]} is no option of anomalib's {self.model}; it takes "
                f"{', '.join(sorted(taken))}"
            )
        if self.options.get("supervised"):
            raise UserError(
                f"method.options.supervised=true: {self.model} then learns from masks of defects, and a training batch "
                "carries labels alone; leave it false"
            )
        backbone, layers = self.options.get("backbone"), self.options.get("layers")
        if isinstance(backbone, str) and layers and "vit" not in backbone and self.model not in ("SuperADD", "Rad"):
            _check_layers(backbone, layers)

    def _made(self, maker: type) -> Any:
        """The wrapped module."""
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Normalize, Resize

        normalize = [Normalize(self.mean.flatten().tolist(), self.std.flatten().tolist())] if self.std.min() < 1 else []
        arguments = self.options | {
            "pre_processor": PreProcessor(Compose([Resize(self.size, antialias=True), *normalize])),
            "post_processor": False, "evaluator": False, "visualizer": False,
        }  # fmt: skip
        taken = inspect.signature(maker).parameters
        if "input_shape" in taken:
            arguments["input_shape"] = self.size
        if "image_size" in taken:
            arguments["image_size"] = min(self.size)
        if "dtd_dir" in taken:  # an existing folder is not downloaded; its images are set when the training starts
            arguments["dtd_dir"] = Path(__file__).parent
        inner = host.borrowed(maker)(**arguments)
        if hasattr(inner.model, "load_pretrained_discrete_model_weights"):
            inner.model.load_pretrained_discrete_model_weights = host.nothing
        if self.model == "Patchcore":
            inner.model.__class__ = type("PatchcoreModel", (_Nearest, type(inner.model)), {})
        return inner

    def _normalise_for_backbone(self) -> None:
        """Pixels as the backbone's weights want them. anomalib takes ImageNet's constants for every backbone, which
        are those of its own backbones; a model that takes pixels as they are keeps them."""
        known = [getattr(part.network, "pretrained_cfg", None) for part in self._unfilled]
        constants = {(tuple(cfg["mean"]), tuple(cfg["std"])) for cfg in known if cfg}
        if len(constants) == 1 and self.std.min() < 1 and self.model != "Glass":
            for name, value in zip(("mean", "std"), constants.pop(), strict=True):
                self.get_buffer(name).copy_(torch.tensor(value).reshape(3, 1, 1))

    def _training_mode(self) -> None:
        """Training mode as the model was built: anomalib keeps frozen teachers in evaluation mode."""
        for name, module in self.inner.named_modules():
            module.training = self._modes.get(name, True)

    @property
    def _asking(self) -> Any:
        """The wrapped module, which asks this method from now on."""
        self.inner._device = self.device  # Lightning tells children of its own kind alone
        self.inner.trainer = self._stand_in
        return self.inner

    # -- pretraining --------------------------------------------------------------------------------------------------

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """A whole network for each that anomalib would fill with published weights; `on_pretrained` takes them over."""
        if not self._encoders:
            several = len(self._unfilled) > 1
            for number, part in enumerate(self._unfilled, 1):
                self._encoders[f"backbone_{number}" if several else "backbone"] = self._encoder(part)
            if self.model == "EfficientAd":
                self._encoders["teacher"] = self._of_maps(self.inner.model.teacher)
            if self.model == "Dsr":
                latent = copy.deepcopy(self.inner.model.discrete_latent_model)
                self._encoders["discrete_latent_model"] = PretrainableEncoder(latent, 0, None)
        for encoder in self._encoders.values():
            encoder.network.to(self.device)
        return self._encoders

    def _encoder(self, part: host.Unfilled) -> PretrainableEncoder:
        side = min(self.size)
        if part.name is not None:
            network = timm_model(part.name, "method.options.backbone")
            return PretrainableEncoder(
                network, pooled_features(network), side, self.normalize, published=published_name(network)
            )
        network = copy.deepcopy(part.network)
        head = next(name for name in ("classifier", "fc", "head") if hasattr(network, name))
        features = [layer for layer in getattr(network, head).modules() if isinstance(layer, nn.Linear)][-1].in_features
        setattr(network, head, nn.Identity())
        return PretrainableEncoder(network, features, side, self.normalize)

    def _of_maps(self, network: nn.Module) -> PretrainableEncoder:
        """A fully convolutional network whose map's mean is its code."""
        pooled = copy.deepcopy(network)
        pooled.__class__ = type(type(network).__name__, (_Pooled, type(network)), {})
        with torch.no_grad():
            features = pooled(torch.zeros(1, 3, *self.size, device=self.device)).shape[1]
        return PretrainableEncoder(pooled, features, min(self.size), self.normalize)

    def on_pretrained(self) -> None:
        """Take the encoders' weights over into the model."""
        filled = list(self._encoders.values())
        for part, encoder in zip(self._unfilled, filled, strict=False):
            part.fill(encoder.network.state_dict())
        for name in {"teacher", "discrete_latent_model"} & set(self._encoders):
            getattr(self.inner.model, name).load_state_dict(self._encoders[name].network.state_dict())
        self._encoders, self._weights_known = {}, True

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> pixels as the model takes them, in the same shape."""
        return (image - self.mean) / self.std

    # -- data ---------------------------------------------------------------------------------------------------------

    def check_inputs(self) -> None:
        if self.known.images is None:
            if self.images is not None:
                raise UserError(f"method.images={self.images}: {self.model} learns from the training rows alone")
            return
        if self.images == NOISE and self.known.noise:
            return
        also = f", or method.images={NOISE} for procedural noise" if self.known.noise else ""
        if self.images is None:
            raise UserError(f"{self.model} needs {self.known.images}: pass a folder of images, method.images=DIR{also}")
        if not _pictures(self.images):
            raise UserError(f"method.images={self.images} has no images; pass a folder that has some{also}")

    def theirs(self, batch: Batch) -> Any:
        """A batch as anomalib has them, normalised."""
        return host.their_batch(batch, self.normalize(batch.image))

    # -- preparation --------------------------------------------------------------------------------------------------

    @contextmanager
    def _seeded(self, *purpose: str | int) -> Iterator[None]:
        with seeded_globals(self.seed, "anomalib", *purpose, device=self.device):
            yield

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Fill the memory bank, in as many passes over the training rows as the model asks for."""
        self._say_what_is_random()
        if bool(self.inner._is_fitted):  # a copy of a fitted method is fitted anew, as for a cross-validation
            self._renew()
        inner = self._asking
        passes = int(inner.trainer_arguments.get("max_epochs", 1))
        rows = batches if passes == 1 else list(batches)
        self._training_mode()
        seen: list[int] = []
        with self._speaking("cannot be fitted", seen), self._seeded("bank"), _our_coreset(), host.bars_on_terminals():
            for _ in range(passes):
                for k, batch in enumerate(rows):
                    inner.training_step(self.theirs(batch), k)
                    seen.append(len(batch.image))
                self._refuse_few_rows(sum(seen))
                inner.on_train_epoch_end()
        inner.requires_grad_(False).eval()
        with self._speaking("cannot score", seen):  # what does not fit the bank is found here, not in the test
            found = self.score(batch.image[:1])
        if not torch.isfinite(found.image).all():
            raise UserError(
                f"{self.display_name} gives a score that is no finite number after {sum(seen)} training rows; add "
                "images, or hold out fewer (protocol.holdout)"
            )

    def _refuse_few_rows(self, count: int) -> None:
        """anomalib goes on without a model where there are too few rows for it."""
        if self.known.rows is not None:
            default = inspect.signature(type(self.inner)).parameters[self.known.rows].default
            least = self.options.get(self.known.rows, default)
            if count < least:
                raise UserError(
                    f"{self.display_name} needs {least} training rows (method.options.{self.known.rows}), and gets "
                    f"{count}; add images, hold out fewer (protocol.holdout), or lower the option"
                )

    def _say_what_is_random(self) -> None:
        if not self._weights_known and self.rank == 0:
            self._weights_known = True  # the copies of a cross-validation say it no more
            names = ", ".join(part.name or "torchvision's" for part in self._unfilled)
            log.warning(
                "%s is published with the weights %s; none were loaded, so it works with random ones. "
                "pretraining=imagenet loads them.", self.model, names,
            )  # fmt: skip

    def _renew(self) -> None:
        """An empty bank on the same networks."""
        with host.unfilled() as found:
            fresh = self._made(_maker(self.model))
        kept = {name for name, _ in self.inner.named_parameters()} | {"model.idx"}
        for name, _ in self.inner.named_modules():
            if name.split(".")[-1] in BACKBONES:
                kept |= {key for key in self.inner.state_dict() if key.startswith(f"{name}.")}
        state = {key: value for key, value in self.inner.state_dict().items() if key in kept}
        fresh.load_state_dict(state, strict=False)
        self.inner, self._unfilled = fresh.to(self.device).requires_grad_(False), found

    # -- scores -------------------------------------------------------------------------------------------------------

    def score(self, image: Tensor) -> Scores:
        if self.known.alone and len(image) > 1:
            rows = [self.score(row[None]) for row in image]
            drawn = [row.maps for row in rows if row.maps is not None]
            return Scores(torch.cat([row.image for row in rows]), torch.cat(drawn) if drawn else None)
        maps: Tensor | None
        score: Tensor | None
        found = self.inner.model(self.normalize(image))
        if isinstance(found, Tensor):
            maps, score = (found, None) if found.ndim > 2 else (None, found)
        else:
            maps, score = found.anomaly_map, found.pred_score
        if maps is not None:
            maps = maps.float().unflatten(0, (-1, 1)) if maps.ndim == 3 else maps.float()
            if maps.shape[-2:] != image.shape[-2:]:
                maps = F.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)
        if score is None:
            assert maps is not None  # every model of anomalib gives one of the two
            score = maps.flatten(1).amax(1)
        return Scores(score.float().reshape(-1), maps if self.has_maps else None)


BACKBONES = ("feature_extractor", "feature_encoder", "dino")  # names of the frozen networks in the memory banks


class AnomalibTraining(AnomalibModel):
    """A model of anomalib that learns by gradients."""

    def term(self, name: str, value: Any) -> None:
        """Keep a term () that the model logs, for `record`; values of another shape are left out."""
        value = torch.as_tensor(value, device=self.device)
        if value.numel() == 1:
            self._terms[name.removeprefix("train_")] = value.detach().float().reshape(())

    def prepare(self, batches: Iterable[Batch]) -> None:
        """What the model computes from the training rows before its first step.

        Raises:
            UserError: EfficientAd is given batches of more than one image.
        """
        self._say_what_is_random()
        if self.model == "EfficientAd" and self.total_batches and self.rows_per_batch != 1:
            raise UserError(f"EfficientAd learns from one image at a time: data.batch_size={self.world}")
        rows: list[Any] = []

        def every() -> list[Any]:
            if not rows:
                rows.extend(map(self.theirs, batches))
            return rows

        inner = self._asking
        self._training_mode()
        with (
            torch.enable_grad(), self._seeded("start"), host.replaced(self._stand_in, "rows", every),
            host.bars_on_terminals(),
        ):  # fmt: skip
            inner.on_train_start()
        inner.eval()

    def configure_optimizers(self) -> Any:
        optimizers, plans = host.listed(self._asking.configure_optimizers())
        for plan, _ in plans:
            if getattr(plan, "step_size", None) == 0:  # a share of a training of one epoch; it would divide by it
                plan.step_size = 1
        self.schedulers, self._intervals = [plan for plan, _ in plans], [interval for _, interval in plans]
        return optimizers, [{"scheduler": plan, "interval": "epoch"} for plan in self.schedulers]

    def on_train_start(self) -> None:
        """Attach what is read from disk; what the model computes at its start, `prepare` has computed."""
        self._training_mode()
        if self.images in (None, NOISE):
            return
        files = _pictures(str(self.images))
        for augmenter in [m for m in self.inner.modules() if hasattr(m, "anomaly_source_paths")]:
            augmenter.anomaly_source_paths = files
        if self.model == "EfficientAd":
            self.inner.imagenet_iterator = _Others(self, files)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        batch = self.admitted(batch, first=batch_idx == 0)
        inner, per_epoch, self._terms = self._asking, self._stand_in.batches_per_epoch, {}
        self._count_one_step()
        if self.batches_seen % per_epoch == 0:
            with self._seeded("epoch", self.batches_seen // per_epoch):
                inner.on_train_epoch_start()
        with self._seeded("step", self.batches_seen, self.rank):
            numbered = len(inspect.signature(inner.training_step).parameters) > 1
            found = inner.training_step(self.theirs(batch), *([batch_idx] if numbered else []))
            loss: Any = found.get("loss") if isinstance(found, Mapping) else found
            if inner.automatic_optimization:
                self._step(loss)
        if not self._terms and isinstance(loss, Tensor):
            self.term("loss", loss)
        last = (self.batches_seen + 1) % per_epoch == 0
        for scheduler, interval in zip(self.schedulers, self._intervals, strict=True):
            if interval == "step" or last:
                scheduler.step()
        if last:
            inner.on_train_epoch_end()
        self.record(self._terms)

    def _step(self, loss: Tensor) -> None:
        """One step of every optimizer, as Lightning's automatic optimisation takes it."""
        from lightning.pytorch import LightningModule

        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        # Cfa keeps the graph of its first step for the next one.
        self.manual_backward(loss, retain_graph=type(self.inner).backward is not LightningModule.backward)
        clip = self.inner.trainer_arguments.get("gradient_clip_val")
        for optimizer in optimizers:
            if clip:
                groups = optimizer.param_groups
                torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
            optimizer.step()

    def _count_one_step(self) -> None:
        """The trainer counts the steps of its optimizers and stops and saves by that count: one for this batch."""
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer._on_before_step = optimizer._on_after_step = host.nothing
        counted = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        counted.increment_ready()
        counted.increment_completed()

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """What the model takes from validation rows (EfficientAd's quantiles) comes from held-out normal rows."""
        self._stand_in.holdout = [self.theirs(batch) for batch in batches]
        if self._stand_in.holdout:
            with self._seeded("calibrate"), host.bars_on_terminals():
                self._asking.on_validation_start()
        self._stand_in.holdout = []

    # What the model keeps in plain attributes between two batches, such as Glass's center of an epoch.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        for key in ("lr_schedulers", "optimizer_states"):  # a checkpoint is read back without running any code in it
            checkpoint[key] = _plain(checkpoint.get(key, []))
        checkpoint["attributes"] = {
            f"{name}:{key}": value.detach()
            for name, module in self.inner.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for place, value in checkpoint["attributes"].items():
            name, _, key = place.partition(":")
            setattr(self.inner.get_submodule(name), key, value.to(self.device))


# -- parts ------------------------------------------------------------------------------------------------------------


def _maker(model: str) -> Any:
    """anomalib's class of a name.

    Raises:
        UserError: anomalib is not installed, or its version has no such model.
    """
    try:
        with warnings.catch_warnings(), host.modest():
            warnings.simplefilter("ignore")  # what anomalib says of its own modules is no news to the user
            zoo = importlib.import_module("anomalib.models.image")
    except ImportError as error:
        raise UserError(f"method=anomalib needs anomalib: {EXTRA} ({error})") from None
    maker = getattr(zoo, model, None)
    if maker is None:
        raise UserError(f"the installed anomalib has no {model}, which anomalib 2.7.0 has: {EXTRA}")
    return maker


def _normalisation(maker: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation, each (3, 1, 1), of the pixels in [0, 1] as the model takes them; 0 and 1 where it takes them
    as they are."""
    from anomalib.data.transforms.utils import extract_transforms_by_type
    from torchvision.transforms.v2 import Normalize

    processor = maker.configure_pre_processor()
    found = extract_transforms_by_type(processor.transform, Normalize) if processor is not None else []
    mean, std = (found[0].mean, found[0].std) if found else ((0.0,) * 3, (1.0,) * 3)
    return torch.tensor(mean).reshape(3, 1, 1), torch.tensor(std).reshape(3, 1, 1)


def _check_layers(backbone: str, layers: Sequence[str]) -> None:
    """Refuse layers that the backbone has not: anomalib would leave them out and go on.

    Raises:
        UserError: naming the layers that there are.
    """
    import timm

    network: Any
    try:
        with torch.device("meta"):
            network = timm.create_model(backbone, pretrained=False, features_only=True, exportable=True)
    except RuntimeError as error:
        raise UserError(f"method.options.backbone={backbone} is no timm model: {error}") from None
    there = [info["module"] for info in network.feature_info.info]
    missing = [layer for layer in layers if isinstance(layer, str) and layer not in there]
    if missing:
        raise UserError(
            f"method.options.layers: {backbone} has no {', '.join(missing)}; its layers are {', '.join(there)}"
        )


def _plain(value: Any) -> Any:
    """A state with numbers and lists in the place of NumPy's."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(one) for one in value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _pictures(folder: str) -> list[Path]:
    """The images below a folder, in the order of their paths."""
    return sorted(path for path in Path(folder).expanduser().rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


@contextmanager
def _our_coreset() -> Iterator[None]:
    """While open, anomalib's coresets are chosen by `greedy_coreset`: the same greedy rule, many times faster."""
    from anomalib.models.components import KCenterGreedy

    def select(self: Any) -> list[int]:
        rows = self.embedding.flatten(1)
        if self.coreset_size > len(rows):
            raise ValueError(f"the coreset would have {self.coreset_size:,} of {len(rows):,} patches")
        first = int(torch.randint(len(rows), (1,)))
        return greedy_coreset(rows, self.coreset_size, first).tolist()

    with host.replaced(KCenterGreedy, "select_coreset_idxs", select):
        yield


class _Nearest:
    """Put before anomalib's PatchcoreModel: the same distances in pieces of the bank, not of the batch, whose size an
    exported graph does not know."""

    memory_bank: Tensor

    def nearest_neighbors(self, embedding: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
        """Distances and places, each (n,) of the nearest row or (n, k), in the bank for (n, D) rows."""
        if n_neighbors == 1:
            return nearest(embedding, self.memory_bank)
        found = squared_distances(embedding, self.memory_bank).sqrt().topk(n_neighbors, dim=1, largest=False)
        return found.values, found.indices


class _Pooled:
    """Put before a fully convolutional network: the mean over its map."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).mean((2, 3))  # type: ignore[misc]


class _Others:
    """Images of anything but the object, one at a time, as EfficientAd draws them: a function of the batch's number.

    Source: Batzner et al. 2024, "EfficientAD", section 3.2 and Algorithm 1: twice the size, grey in three of ten, the
    center cut out.
    """

    def __init__(self, method: AnomalibModel, files: Sequence[Path]) -> None:
        self.method, self.files = method, files

    def __next__(self) -> tuple[Tensor]:
        from PIL import Image
        from torchvision.transforms import v2

        method = self.method
        stream = numpy_stream(method.seed, "images", method.batches_seen, method.rank)
        height, width = method.size
        with Image.open(self.files[int(stream.integers(len(self.files)))]) as image:
            picture = v2.functional.resize(v2.functional.to_image(image.convert("RGB")), [2 * height, 2 * width])
        if stream.random() < 0.3:
            picture = v2.functional.rgb_to_grayscale(picture, num_output_channels=3)
        return ((v2.functional.center_crop(picture, [height, width]).float() / 255)[None],)

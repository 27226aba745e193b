"""What stands between anomalib's modules and the bench: a trainer for them to ask, and their networks without weights.

anomalib's LightningModules derive from another package's LightningModule (`lightning.pytorch`) than this one's methods
and are never handed to a trainer. They ask a stand-in, which answers out of the method that holds them.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn

from adbench.types import Batch


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, `owner.name` is `value`."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def nothing(*_: Any, **__: Any) -> None:
    """Stands for a call that is not wanted here."""


@contextmanager
def modest() -> Iterator[None]:
    """While open, anomalib may be imported: afterwards it and the `lightning` that comes with it log warnings alone,
    each of them once, and what pytorch_lightning logs goes by its own name."""
    from lightning_utilities.core import rank_zero

    first = "lightning" not in sys.modules
    try:
        yield
    finally:
        rank_zero.log = logging.getLogger("pytorch_lightning.utilities.rank_zero")  # `lightning` makes it its own
        if logging.getLogger("anomalib").level == logging.NOTSET:  # nobody has said how much it is to say
            logging.getLogger("anomalib").setLevel(logging.WARNING)
        for name in ("lightning", "lightning.pytorch", "lightning.fabric") if first else ():
            logging.getLogger(name).setLevel(logging.WARNING)
        if first:
            logging.getLogger("lightning").handlers.clear()


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """While open, a progress bar of tqdm is drawn on a terminal alone; a log file gets none."""
    from tqdm.std import tqdm

    with replaced(tqdm, "__init__", partialmethod(tqdm.__init__, disable=None)):
        yield


# -- networks without weights ----------------------------------------------------------------------------------------


class Unfilled:
    """A network that was to be filled with published weights and has its random ones.

    Attributes:
        network: as timm or torchvision build it, before anything cuts it to feature maps; parts of it are the model's.
        name: timm's name of the published weights; None where timm has none that fit.
        adapt: from a state dict of the network in its own size to one that fits (position embeddings of another size).
    """

    def __init__(self, network: nn.Module, name: str | None, adapt: Callable[[Any, nn.Module], Any] | None) -> None:
        self.network, self.name, self.adapt = network, name, adapt

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights of the same architecture, all but a final classifier, in place.

        Raises:
            RuntimeError: a tensor is missing or has another shape.
        """
        state = dict(weights)
        if self.adapt is not None:
            state = dict(self.adapt(state, self.network))
        own = self.network.state_dict()
        heads = {name for name in own if name not in state and name.split(".")[0] in ("fc", "classifier", "head")}
        found = {name: value for name, value in state.items() if name in own}
        self.network.load_state_dict(found | {name: own[name] for name in heads}, strict=True)


class _Absent(dict[str, Tensor]):
    """Stands for torchvision's published weights of `name`, which are not loaded."""

    def __init__(self, name: str | None) -> None:
        super().__init__()
        self.name = name


@contextmanager
def unfilled() -> Iterator[list[Unfilled]]:
    """While open, no published weights are loaded or downloaded; yields the networks that were to get some."""
    from timm.models import _builder
    from torchvision.models import _api

    found: list[Unfilled] = []
    load = nn.Module.load_state_dict

    def timms(model: Any, *_: Any, filter_fn: Any = None, **__: Any) -> None:
        hub = str((model.pretrained_cfg or {}).get("hf_hub_id") or "")
        name = hub.removeprefix("timm/") if hub.startswith("timm/") else None
        found.append(Unfilled(model, name, filter_fn))

    def torchvisions(self: Any, *_: Any, **__: Any) -> _Absent:
        return _Absent(_twin(type(self).__name__.removesuffix("_Weights").lower(), self.name))

    def load_state_dict(self: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(state, _Absent):
            return load(self, state, *args, **kwargs)
        found.append(Unfilled(self, state.name, None))
        return None

    with ExitStack() as stack:
        stack.enter_context(replaced(_builder, "load_pretrained", timms))
        stack.enter_context(replaced(_api.WeightsEnum, "get_state_dict", torchvisions))
        stack.enter_context(replaced(nn.Module, "load_state_dict", load_state_dict))
        yield found


def _twin(architecture: str, weights: str) -> str | None:
    """timm's name of torchvision's weights of a residual network, whose layers have the same names in both."""
    from timm.models import get_pretrained_cfg, is_model

    if "resnet" not in architecture or not is_model(architecture):
        return None
    name = f"{architecture}.{'tv2' if weights.endswith('V2') else 'tv'}_in1k"
    try:
        return name if get_pretrained_cfg(name, allow_unregistered=False) is not None else None
    except RuntimeError:
        return None


# -- the trainer ------------------------------------------------------------------------------------------------------


class Rows:
    """Batches as anomalib's modules take them from a loader: iterated anew each time, or called for."""

    def __init__(self, make: Callable[[], Iterable[Any]], length: int) -> None:
        self._make, self._length = make, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())

    def __len__(self) -> int:
        return self._length

    def __call__(self) -> Rows:
        """`trainer.train_dataloader` is a loader, `datamodule.train_dataloader()` returns one."""
        return self


class StandIn:
    """What anomalib's modules ask of a trainer and of its data module.

    An epoch is as many training batches as one pass through the rows has; the last one may be shorter.

    Args:
        method: the `AnomalibModel` that holds the module.
    """

    sanity_checking, fast_dev_run = False, False
    max_steps = -1  # anomalib's schedules then count epochs, as published
    global_rank, world_size, is_global_zero = 0, 1, True

    def __init__(self, method: Any) -> None:
        self.method = method
        self.loggers: list[Any] = []
        self.rows: Callable[[], Iterable[Any]] = self._training_rows
        self.holdout: list[Any] = []

    @property
    def datamodule(self) -> StandIn:
        """It stands for both."""
        return self

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of one pass through the rows, at least 1."""
        return max(1, int(self.method.batches_per_epoch))

    @property
    def max_epochs(self) -> int:
        """Epochs of the whole training, the last one counted whole."""
        return max(1, math.ceil((self.method.total_batches or 0) / self.batches_per_epoch))

    @property
    def estimated_stepping_batches(self) -> int:
        """Training batches of the whole training, at least 1."""
        return max(1, self.method.total_batches or 0)

    @property
    def global_step(self) -> int:
        """Training batches finished."""
        return int(self.method.batches_seen)

    @property
    def current_epoch(self) -> int:
        """The number of the epoch, from 0."""
        return self.global_step // self.batches_per_epoch

    @property
    def train_batch_size(self) -> int | None:
        """Rows of a training batch on this device; None where a loader does not say."""
        rows: int | None = self.method.rows_per_batch
        return rows

    @property
    def train_dataloader(self) -> Rows:
        """The training rows in order."""
        return Rows(self.rows, self.batches_per_epoch)

    def _training_rows(self) -> Iterator[Any]:
        return map(self.method.theirs, self.method.training_rows())

    def val_dataloader(self) -> Rows:
        """The held-out normal rows; none but while the method is calibrated."""
        return Rows(lambda: self.holdout, len(self.holdout))


class Borrowed:
    """Put before a class of anomalib: asks the method what the class would ask Lightning."""

    trainer: Any

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Hand a loss term to the method."""
        self.trainer.method.term(name, value)

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Hand loss terms to the method."""
        for name, value in dictionary.items():
            self.log(name, value)

    def optimizers(self, *_: Any, **__: Any) -> Any:
        """The method's: one, or a list of several."""
        return self.trainer.method.optimizers()

    def lr_schedulers(self) -> Any:
        """The method's: one, or a list of none or several."""
        schedulers = self.trainer.method.schedulers
        return schedulers[0] if len(schedulers) == 1 else schedulers

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of a () loss, under the method's precision and strategy."""
        self.trainer.method.manual_backward(loss, *args, **kwargs)

    def toggle_optimizer(self, *_: Any, **__: Any) -> None:
        """Every optimizer of anomalib has parameters of its own."""

    def untoggle_optimizer(self, *_: Any, **__: Any) -> None:
        """See `toggle_optimizer`."""

    # Weights come from the method's pretraining, other images from its folder: nothing is downloaded.

    def prepare_pretrained_model(self) -> None:
        """Of EfficientAd and Dsr."""

    def prepare_imagenette_data(self, image_size: Any) -> None:
        """Of EfficientAd."""


def borrowed(maker: type) -> type:
    """A class of anomalib that asks a method; its name is the same."""
    return type(maker.__name__, (Borrowed, maker), {"__module__": maker.__module__})


# -- optimizers -------------------------------------------------------------------------------------------------------


def listed(found: Any) -> tuple[list[Any], list[tuple[Any, str]]]:
    """Optimizers, and schedulers with "epoch" or "step", out of any form that `configure_optimizers` may return."""
    if found is None:
        return [], []
    if isinstance(found, torch.optim.Optimizer | Mapping):
        found = [found]
    if len(found) == 2 and all(isinstance(part, list) for part in found):
        optimizers, plans = list(found[0]), list(found[1])
    else:
        optimizers = [part["optimizer"] if isinstance(part, Mapping) else part for part in found]
        plans = [part["lr_scheduler"] for part in found if isinstance(part, Mapping) and part.get("lr_scheduler")]
    return optimizers, [
        (plan["scheduler"], plan.get("interval", "epoch")) if isinstance(plan, Mapping) else (plan, "epoch")
        for plan in plans
    ]


def their_batch(batch: Batch, image: Tensor) -> Any:
    """A batch as anomalib has them: the rows count as normal, whatever else is known of them.

    Args:
        batch: of this package.
        image: (B, 3, H, W) as the model takes them, normalised where it wants that.

    Returns:
        an `anomalib.data.ImageBatch` with labels (B,) and masks (B, H, W), all False.
    """
    from anomalib.data import ImageBatch

    return ImageBatch(
        image=image,
        gt_label=torch.zeros(len(image), dtype=torch.bool, device=image.device),
        gt_mask=torch.zeros_like(image[:, 0], dtype=torch.bool),
    )

"""The base of every method: the training loop's bookkeeping, and nothing of any paper's mathematics.

A method subclasses `SingleObjective` (one loss, Lightning's automatic optimisation) or `Adversarial` (several players,
manual optimisation) and names the losses that act on its networks; `score` turns images into anomaly scores.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from adbench.streams import torch_stream
from adbench.transforms.image import to_float, to_rgb
from adbench.types import Batch, Scores, UserError

Terms = dict[str, Tensor]  # the summands of an objective, each () and already multiplied by its weight


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names the term and the step."""


class Method(LightningModule):
    """A detector that is trained on batches and scores images.

    A subclass may define more, which commands use where they find it: `encoders` and `on_pretrained` (pretraining),
    `extra_scores`, `extra_metrics` and `codes` (a test records them), `decodes` and `decode` (pictures of codes). See
    docs/extending.md.

    Attributes:
        seed: of everything that training draws.
        total_batches: length of the training. None until it is set or, by any `Trainer.fit`, read off the trainer.
        batches_seen: training batches finished; the index k of the next one.
        prepare_seconds: how long `prepare` took; None where it has not been run.
    """

    #: "unsupervised" methods never receive rows with semi_label -1; "semi" ones do.
    supervision: str = "unsupervised"
    #: Whether it cannot be trained without known anomalies.
    needs_known_anomalies: bool = False
    #: Names (or prefixes) of parameters whose gradient is exactly zero by construction.
    gradient_free: tuple[str, ...] = ()
    #: Whether `score` returns anomaly maps.
    has_maps: bool = True
    #: Whether the score of a row depends on the rows that are scored with it; only detectors of others may.
    transductive: bool = False
    #: Why `score` is no graph of torch's operations that could be exported; None where it is one.
    no_graph: str | None = None
    #: Whether training batches stay bytes (B, 1 or 3, H, W), for a method that looks at small parts of large images.
    takes_bytes: bool = False

    prepared: Tensor  # () bool
    calibrated: Tensor  # () bool

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.total_batches: int | None = None
        self._trainers_length: int | None = None  # `total_batches` as it was read off a trainer: the next may be longer
        self.log_every = 10
        self.batches_seen = 0
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool))
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        self._recent: list[tuple[int, Terms]] = []
        self.latest_terms: dict[str, float] = {}
        self.prepare_seconds: float | None = None  # None: it was prepared when it came

    @property
    def display_name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    # -- what a method may define ---------------------------------------------------------------------------------

    def check_inputs(self) -> None:
        """Refuse a training that misses a file or folder, before any data are read.

        Scoring, which may happen on another machine, never asks.

        Raises:
            UserError: something is missing; the message says what to type.
        """

    def before_pretraining(self, batches: Iterable[Batch]) -> None:
        """Fit, on the training rows, what stands between data and encoder, so that pretraining sees it too.

        Args:
            batches: see `prepare`.
        """

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Compute centers and statistics from the training rows, once before the first step. Buffers keep them.

        Args:
            batches: of all training rows in order, on this device: images (B, 3, H, W) float in [0, 1], or (B, D)
                features. They can be gone through once.
        """

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Fill buffers from the held-out normal rows, after the last step and before the test.

        Args:
            batches: of the held-out rows in order, as `prepare` gets those that train; empty where none are held out.
        """

    @abstractmethod  # a mark alone, which `build_method` looks for: a LightningModule has another metaclass
    def score(self, image: Tensor) -> Scores:
        """Anomaly scores of a batch; a row's score does not depend on the rows beside it.

        Args:
            image: (B, 3, H, W) float in [0, 1], or (B, D) features.

        Returns:
            (B,) scores, higher = more anomalous, and with `has_maps` maps (B, 1, H, W).
        """
        raise NotImplementedError

    def test_scores(self, image: Tensor) -> Scores:
        """`score` as a test asks for it; arguments and result are those of `score`.

        A method whose `extra_scores` or `codes` come out of the same pass through its networks overrides this and gives
        them too, as `extras` and `codes`: a test then encodes each image once.
        """
        return self.score(image)

    def reconstruct(self, image: Tensor) -> Tensor | None:
        """The reconstruction that pictures show, (B, 3, H, W) in [0, 1]; None for methods that have none."""
        return None

    def regions(self) -> list[nn.Module]:
        """The networks that `trainer.compile=true` compiles, each by itself: those that a training step calls."""
        return networks_within(list(self.children()))

    # -- randomness ---------------------------------------------------------------------------------------------------

    def stream(self, purpose: str) -> torch.Generator:
        """The generator of training batch k for one purpose, on this module's device.

        It is a function of seed, purpose and k, so that a resumed training draws what an uninterrupted one draws.
        """
        return torch_stream(self.seed, purpose, self.batches_seen, device=self.device)

    def rand(self, purpose: str, rows: int, *shape: int) -> Tensor:
        """U(0, 1) of shape (rows, *shape); on several devices each takes its rows of the joined batch's draw."""
        return self._draw(torch.rand, purpose, rows, shape)

    def randn(self, purpose: str, rows: int, *shape: int) -> Tensor:
        """N(0, 1) of shape (rows, *shape); on several devices each takes its rows of the joined batch's draw."""
        return self._draw(torch.randn, purpose, rows, shape)

    def _draw(self, sampler: Callable[..., Tensor], purpose: str, rows: int, shape: tuple[int, ...]) -> Tensor:
        joined = sampler((rows * self.world, *shape), generator=self.stream(purpose), device=self.device)
        return joined[self.rank :: self.world]  # the sampler of training rows strides over ranks in the same way

    # -- the training around this method ------------------------------------------------------------------------------

    @property
    def _attached(self) -> Trainer | None:
        """The trainer, or None outside any training, where Lightning's `trainer` raises an error."""
        return self._trainer

    @property
    def _datamodule(self) -> Any:
        """The trainer's data module if it is one of `adbench.data`; None for loaders and modules of other makes."""
        datamodule = getattr(self._attached, "datamodule", None)
        return datamodule if hasattr(datamodule, "training_batches") else None

    @property
    def world(self) -> int:
        """Devices that train together."""
        return 1 if self._attached is None else self._attached.world_size

    @property
    def rank(self) -> int:
        """The number of this device among them, from 0."""
        return 0 if self._attached is None else self._attached.global_rank

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all devices, in its shape, on each of them."""
        return value if self.world == 1 else self.trainer.strategy.reduce(value, reduce_op="mean")

    def precision(self) -> AbstractContextManager[Any]:
        """The trainer's precision as a context, for work outside `training_step`."""
        return nullcontext() if self._attached is None else self._attached.precision_plugin.forward_context()

    def training_rows(self) -> Iterator[Batch]:
        """All training rows in order, as float on this device; on several devices each gets all of them.

        Of a loader of the user's own, these are the batches of one epoch.

        Raises:
            UserError: rows of a user's own loader are needed on several devices, which share them out.
        """
        if self._datamodule is not None:
            yield from self._datamodule.training_batches(self.device)
            return
        if self.world > 1:
            raise UserError(
                f"{self.display_name} needs all training rows on every one of the {self.world} devices, and this "
                "loader gives each a share: train on one device, or with a data module of adbench.create_data"
            )
        batches, loader = self.batches_per_epoch, self.trainer.train_dataloader
        assert loader is not None  # the line above has made it
        for batch in islice(loader, batches):
            yield self.admitted(self.transfer_batch_to_device(batch, self.device, 0), first=True)

    def holdout_rows(self) -> Iterator[Batch]:
        """The held-out normal rows in order, as float on this device; none where the data module holds none out."""
        batches = getattr(self._datamodule, "holdout_batches", None)
        return iter(()) if batches is None else batches(self.device)

    def admitted(self, batch: Any, first: bool = False) -> Batch:
        """A training batch as a method takes it; of a loader that is not adbench's, images of bytes become float.

        Args:
            batch: what the trainer hands over.
            first: look at the values too, which waits for the device.

        Raises:
            UserError: it is no `Batch`, or its images are none that a method takes; the message says how to mend it.
        """
        if self._attached is None or self._datamodule is not None:
            return batch
        if not isinstance(batch, Batch):
            raise UserError(
                f"{self.display_name} trains on batches of type adbench.types.Batch, and this loader gives "
                f"{type(batch).__name__}; end its collate_fn with adbench.types.Batch.unlabelled(images), images "
                "(B, 3, H, W) in [0, 1], or take a data module of adbench.create_data"
            )
        image = batch.image
        if image.ndim != 4:
            return batch
        if image.dtype == torch.uint8:
            image = to_float(to_rgb(image))
        if image.shape[1] != 3:
            raise UserError(f"training images are (B, 3, H, W), and this loader gives {tuple(image.shape)}")
        if first and (not image.is_floating_point() or not 0 <= float(image.min()) <= float(image.max()) <= 1):
            raise UserError(
                f"training images are bytes, or floats in [0, 1], and this loader gives {image.dtype} from "
                f"{float(image.min()):g} to {float(image.max()):g}; a method normalises by itself"
            )
        if len(image) == 1 and any(isinstance(m, nn.BatchNorm2d) and m.training for m in self.modules()):
            raise UserError("a training batch of one image has no batch statistics; give the loader drop_last=True")
        return batch._replace(image=image.float())

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of one pass through the training rows.

        Raises:
            UserError: the loader has no length.
        """
        if self._datamodule is not None:
            return int(self._datamodule.batches_per_epoch)
        self.trainer.fit_loop.setup_data()
        batches = self.trainer.num_training_batches
        if math.isinf(batches):
            raise UserError(
                f"{self.display_name} must know what an epoch is, and this loader has no length; "
                "give Trainer(limit_train_batches=N)"
            )
        return int(batches)

    @property
    def rows_per_batch(self) -> int | None:
        """Rows of a training batch on this device; None where a loader does not say."""
        if self._datamodule is not None:
            return int(self._datamodule.rows_per_batch) // self.world
        self.trainer.fit_loop.setup_data()
        return getattr(self.trainer.train_dataloader, "batch_size", None)

    @property
    def progress(self) -> float:
        """Share of the training that is over, in [0, 1]; a pure function of k, so schedules resume exactly.

        Raises:
            UserError: the length of the training is not known.
        """
        if self.total_batches is None:
            raise UserError(
                f"{self.display_name}.total_batches is not set, and without a length there is no schedule: "
                "set it, or train with adbench.fit or a pytorch_lightning.Trainer"
            )
        return min(1.0, self.batches_seen / max(1, self.total_batches))

    # -- loss terms: on the device until they are logged ----------------------------------------------------------

    def record(self, terms: Mapping[str, Tensor]) -> None:
        """Keep this step's terms, () each; every `log_every` batches they are checked and logged with one host copy."""
        self._recent.append((self.batches_seen, {name: term.detach() for name, term in terms.items()}))

    def flush_terms(self) -> None:
        """Check and log the terms kept since the last call.

        Raises:
            NonFiniteLoss: a term was NaN or infinite; the message names the first one and its step.
        """
        if not self._recent:
            return
        recent, self._recent = self._recent, []
        summed = torch.stack([term.float().reshape(()) for _, terms in recent for term in terms.values()])
        # The mean over all rows; every rank learns that a term of one of them is not finite.
        flat = iter(self.mean_over_ranks(summed).tolist())
        history = [(step, {name: next(flat) for name in terms}) for step, terms in recent]
        for step, values in history:
            for name, value in values.items():
                if not torch.isfinite(torch.tensor(value)):
                    raise NonFiniteLoss(
                        f"loss term '{name}' became {value} at training batch {step}; "
                        "lower the learning rate, or look at the input images of that batch"
                    )
        self.latest_terms = {name: value for _, values in history for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics({f"train/{n}": v for n, v in self.latest_terms.items()}, step=history[-1][0])

    # -- life cycle -----------------------------------------------------------------------------------------------

    def ensure_prepared(self, rows: Iterable[Batch] | None = None) -> None:
        """Run `prepare` on the training rows, in eval mode and without gradients, unless it has been run.

        Args:
            rows: the training rows on the module's device; None asks the trainer for them.
        """
        if not bool(self.prepared):
            started = time.perf_counter()
            self._fill(self.prepare, self.training_rows() if rows is None else rows, self.prepared)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.prepare_seconds = time.perf_counter() - started

    def ensure_calibrated(self, rows: Iterable[Batch] | None = None) -> None:
        """Run `calibrate` on the held-out rows, in eval mode and without gradients, unless it has been run since the
        last training.

        Args:
            rows: the held-out rows on the module's device; None asks the trainer for them.
        """
        if not bool(self.calibrated):
            self._fill(self.calibrate, self.holdout_rows() if rows is None else rows, self.calibrated)

    def _fill(self, step: Callable[[Iterable[Batch]], None], rows: Iterable[Batch], flag: Tensor) -> None:
        training = self.training
        self.eval()
        with torch.no_grad():
            step(rows)
        self.train(training)
        flag.fill_(True)

    def after_batch(self) -> None:
        """What a method does when a training batch is over and counted, before any checkpoint is written."""

    def rhythm(self, batches_per_epoch: int | None = None) -> int | None:
        """Training batches between two at which training does more than a step (a validation, an E-step), beginning
        with the end of so many; None: never. How long a training takes is estimated with it.

        Args:
            batches_per_epoch: None asks the trainer.
        """
        return None

    def turns_repeat_after(self) -> int:
        """Training batches after which the same networks take their turns again."""
        return 1

    def optimizer_steps(self, k: int) -> int:
        """Optimizer steps of training batch k (from 0) that the trainer counts for its `max_steps`."""
        return 1

    def _length_of_training(self) -> int:
        """Training batches until the trainer stops by itself."""
        trainer = self.trainer
        trainer.fit_loop.setup_data()
        batches, epochs, steps = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
        by_epochs = math.inf if epochs is None or epochs < 0 else batches * epochs
        length = min(by_epochs, math.inf if steps < 0 else self._batches_of_steps(steps, batches))
        if math.isinf(length):
            raise UserError(
                f"{self.display_name} must know how long its training is, and this trainer does not say: give "
                "Trainer(max_epochs=N) and, for a loader without a length, limit_train_batches=N, or set "
                "method.total_batches"
            )
        return int(length)

    def _batches_of_steps(self, steps: int, batches: float) -> float:
        """Training batches in which the trainer counts `steps` optimizer steps; `batches` make an epoch."""
        if self.automatic_optimization:
            each = self.trainer.accumulate_grad_batches  # the last batch of an epoch always steps
            if math.isinf(batches):
                return steps * each
            epochs, rest = divmod(steps, max(1, math.ceil(batches / each)))
            return epochs * batches + min(rest * each, batches)
        k = 0
        while steps > 0:
            steps, k = steps - self.optimizer_steps(k), k + 1
        return k

    # -- Lightning ------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        if not is_overridden("training_step", self) and self.trainer.state.fn == "fit":
            raise UserError(
                f"{self.display_name} has no training steps, so a Trainer cannot fit it; "
                "adbench.fit(method, data) prepares it"
            )
        return [BatchCount()]

    def on_fit_start(self) -> None:
        _refuse_lightnings_sampler(self.trainer, self._datamodule)
        total = None if self.total_batches == self._trainers_length else self.total_batches
        over = total is None or self.batches_seen >= total
        if over and self.trainer.ckpt_path is None:  # from the start, whatever this method was trained for before
            self.batches_seen = 0
        if total is None:  # after the line above: the first batch is loaded here
            self.total_batches = self._trainers_length = self._length_of_training()
        self.calibrated.fill_(False)
        self.ensure_prepared()

    def on_train_end(self) -> None:
        if self._recent:
            self.flush_terms()
        self.ensure_calibrated()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.flush_terms()  # a checkpoint is never written from a state whose losses were not checked
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = int(checkpoint["batches_seen"])

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:  # type: ignore[override]  # Lightning passes it on
        # Mixed precision is for training: scores, thresholds and exported graphs agree in float32.
        with torch.autocast(batch.image.device.type, enabled=False):
            return self.test_scores(batch.image)


class BatchCount(Callback):
    """Counts the training batches of a method before any checkpoint is written, so that a resumed one goes on right."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Method)
        pl_module.batches_seen += 1
        if pl_module.batches_seen % pl_module.log_every == 0 or pl_module.batches_seen == pl_module.total_batches:
            pl_module.flush_terms()
        pl_module.after_batch()


def _refuse_lightnings_sampler(trainer: Trainer, datamodule: Any) -> None:
    """On several devices Lightning would put its own sampler in the place of the data module's."""
    connector = getattr(trainer, "_accelerator_connector", None)
    if datamodule is not None and trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
        raise UserError(
            f"on {trainer.world_size} devices this data module shares out its rows by itself; "
            "give Trainer(use_distributed_sampler=False)"
        )


def networks_within(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The outermost networks that learn: modules with a forward, with layers and with weights that require a gradient.

    Containers without a forward (lists, dictionaries) stand for what they hold; a single layer has nothing to be fused
    with.
    """
    found: list[nn.Module] = []
    for module in modules:
        layers = list(module.children())
        if not layers or not any(p.requires_grad for p in module.parameters()):
            continue
        found += [module] if type(module).forward is not nn.Module.forward else networks_within(layers)
    return found


def refuse_other_words(constructor: Callable[..., None], values: Mapping[str, Any]) -> None:
    """Refuse a value that is none of the words which its argument's annotation, a `Literal`, lists.

    Args:
        constructor: with the annotations.
        values: its arguments by name; others are not looked at.

    Raises:
        UserError: naming the argument and its words.
    """
    for name, hint in get_type_hints(constructor).items():
        words = get_args(hint) if get_origin(hint) is Literal else ()
        if words and values[name] not in words:
            raise UserError(f"method.{name} must be {' or '.join(map(str, words))}, got {values[name]!r}")


def sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels, from one side or from [height, width]."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[float], float]  # share of the budget spent -> multiplier of the learning rate


def polynomial(power: float) -> Schedule:
    """lr * (1 - progress)^power, progress in [0, 1]."""
    return lambda progress: (1.0 - progress) ** power


def step_decay(milestones: Sequence[float], gamma: float) -> Schedule:
    """lr * gamma^(number of milestones passed); milestones are shares of the budget in [0, 1]."""
    return lambda progress: gamma ** sum(progress >= m for m in milestones)


def _apply_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule | None, progress: float) -> None:
    if schedule is None:
        return
    factor = schedule(progress)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


class SingleObjective(Method):
    """One objective, one optimizer, Lightning's automatic optimisation.

    Args:
        optimizer: factory from parameters to an optimizer (`_partial_` in YAML).
        schedule: learning-rate multiplier as a function of the budget spent; None keeps it constant.
    """

    def __init__(self, optimizer: OptimizerFactory, schedule: Schedule | None = None) -> None:
        super().__init__()
        self._optimizer_factory, self._schedule = optimizer, schedule

    @abstractmethod
    def objective(self, batch: Batch) -> Terms:
        """The summands of the loss of a training batch.

        Args:
            batch: images (B, 3, H, W) float in [0, 1], or (B, D) features. Labels are withheld (-1); `semi_label` is
                all that may be seen.

        Returns:
            name -> () float, already multiplied by its weight.
        """
        raise NotImplementedError

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters handed to the optimizer: all that require a gradient."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimizer_factory(self.trained_parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        _apply_schedule(self._bare_optimizer(), self._schedule, self.progress)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert not isinstance(optimizer, list)  # `configure_optimizers` gives one
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        terms = self.objective(self.admitted(batch, first=batch_idx == 0))
        self.record(terms)
        return torch.stack(list(terms.values())).sum()


@dataclass(frozen=True)
class Phase:
    """One player's turn: which networks learn from which objective, on which batches.

    Args:
        name: also the key of its optimizer.
        modules: networks whose parameters this phase steps; all others are held fixed during it.
        objective: batch -> terms.
        cycle, at: the phase acts on batches k with `k % cycle in at`; the default is every batch.
    """

    name: str
    modules: Sequence[nn.Module]
    objective: Callable[[Batch], Terms]
    cycle: int = 1
    at: tuple[int, ...] = (0,)

    def acts(self, k: int) -> bool:
        """Whether it acts on training batch k, from 0."""
        return k % self.cycle in self.at

    def parameters(self) -> list[nn.Parameter]:
        """Those of its networks that require a gradient now."""
        return [p for module in self.modules for p in module.parameters() if p.requires_grad]


class Adversarial(Method):
    """Several players that take turns (manual optimisation).

    The subclass defines `phases()`, called once when the optimizers are made. The loop (toggle, backward, clip, step,
    schedule, logging) is here.

    Args:
        optimizers: phase name -> factory from parameters to an optimizer.
        schedule: learning-rate multiplier as a function of the budget spent, for every optimizer.
        clip: largest gradient norm of a phase; None does not clip.
    """

    def __init__(
        self,
        optimizers: Mapping[str, OptimizerFactory],
        schedule: Schedule | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._optimizer_factories, self._schedule, self._clip = dict(optimizers), schedule, clip
        self._phases: list[Phase] = []
        self._phase_parameters: list[list[nn.Parameter]] = []

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The players in the order of their turns within a batch; their names are the keys of `optimizers`."""
        raise NotImplementedError

    def after_phase(self, phase: Phase) -> None:
        """What a method does after a phase's step, such as updating an average of weights."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._phases = self.phases()
        self._phase_parameters = [phase.parameters() for phase in self._phases]
        return [
            self._optimizer_factories[phase.name](parameters)
            for phase, parameters in zip(self._phases, self._phase_parameters, strict=True)
        ]

    def optimizer_steps(self, k: int) -> int:
        return sum(phase.acts(k) for phase in self._phases)

    def turns_repeat_after(self) -> int:
        return math.lcm(*(phase.cycle for phase in self._phases or self.phases()))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.record(self.turns(self.admitted(batch, first=batch_idx == 0)))

    def turns(self, batch: Batch, names: Sequence[str] | None = None) -> Terms:
        """One turn of each phase that acts on this batch.

        Args:
            batch: see `SingleObjective.objective`.
            names: of the phases that may act; None takes all.

        Returns:
            "phase/term" -> () float.
        """
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        terms: Terms = {}
        for phase, optimizer, parameters in zip(self._phases, optimizers, self._phase_parameters, strict=True):
            if not phase.acts(self.batches_seen) or (names is not None and phase.name not in names):
                continue
            _apply_schedule(optimizer.optimizer, self._schedule, self.progress)
            with self._only_training(parameters):
                phase_terms = phase.objective(batch)
                optimizer.zero_grad(set_to_none=True)
                self.manual_backward(torch.stack(list(phase_terms.values())).sum())
                if self._clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, self._clip)
                optimizer.step()
            terms.update({f"{phase.name}/{name}": term for name, term in phase_terms.items()})
            self.after_phase(phase)
        return terms

    def _only_training(self, parameters: list[nn.Parameter]) -> _OnlyTraining:
        return _OnlyTraining([p for group in self._phase_parameters for p in group], parameters)


class _OnlyTraining:
    """While open, of `every` parameter only those in `learners` require a gradient; then all do again."""

    def __init__(self, every: list[nn.Parameter], learners: list[nn.Parameter]) -> None:
        keep = {id(p) for p in learners}
        self.held = [p for p in every if id(p) not in keep]

    def __enter__(self) -> None:
        for p in self.held:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.held:
            p.requires_grad_(True)

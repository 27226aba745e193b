"""What every method shares: the training loop's bookkeeping, and nothing of any paper's mathematics.

A method subclasses `SingleObjective` (one loss, Lightning's automatic optimisation) or `Adversarial` (several players,
manual optimisation) and says which losses act on which networks; `score` turns images into anomaly scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from adbench.streams import torch_stream
from adbench.types import Batch, Scores

Terms = dict[str, Tensor]  # the summands of an objective, each () and already multiplied by its weight


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names the term and the step."""


class Method(LightningModule):
    """A detector that is trained on batches and scores images.

    The run sets `seed` and `total_batches` before training.
    """

    #: "unsupervised" methods never receive rows with semi_label -1; "semi" ones do.
    supervision: ClassVar[str] = "unsupervised"
    #: Names (or prefixes) of parameters whose gradient is exactly zero by construction.
    gradient_free: ClassVar[tuple[str, ...]] = ()
    #: Whether `score` returns anomaly maps.
    has_maps: ClassVar[bool] = True
    #: Whether training batches stay bytes (B, 1 or 3, H, W), for a method that looks at small parts of large images.
    takes_bytes: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.total_batches = 1
        self.log_every = 10
        self.batches_seen = 0  # training batches finished; the index k of the next one
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool))
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        self._recent: list[tuple[int, Terms]] = []
        self.latest_terms: dict[str, float] = {}

    # -- what a method may define ---------------------------------------------------------------------------------

    def before_pretraining(self, batches: Iterable[Batch]) -> None:
        """Fit, on the training rows, what stands between data and encoder, so that pretraining sees it too."""

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Compute centers and statistics from the training rows, once before the first step. Kept in buffers."""

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Fill buffers from the held-out normal rows, after the last step and before the test."""

    def score(self, image: Tensor) -> Scores:
        """Anomaly scores of (B, C, H, W) float images in [0, 1] (or (B, D) features); one row never sees another."""
        raise NotImplementedError

    def test_scores(self, image: Tensor) -> Scores:
        """`score` as a test asks for it. A method whose `extra_scores` or `codes` come out of the same pass through its
        networks overrides this and gives them too, as `extras` and `codes`: a test then encodes each image once."""
        return self.score(image)

    def reconstruct(self, image: Tensor) -> Tensor | None:
        """The reconstruction shown in pictures, (B, C, H, W) in [0, 1]; None for methods that have none."""
        return None

    # -- randomness ---------------------------------------------------------------------------------------------------

    def stream(self, purpose: str) -> torch.Generator:
        """The generator of training batch k for one purpose, on this module's device."""
        return torch_stream(self.seed, purpose, self.batches_seen, device=self.device)

    def rand(self, purpose: str, rows: int, *shape: int) -> Tensor:
        """U(0, 1) of shape (rows, *shape); on several devices each takes its rows of the joined batch's draw."""
        return self._draw(torch.rand, purpose, rows, shape)

    def randn(self, purpose: str, rows: int, *shape: int) -> Tensor:
        """N(0, 1) of shape (rows, *shape); on several devices each takes its rows of the joined batch's draw."""
        return self._draw(torch.randn, purpose, rows, shape)

    def _draw(self, sampler: Callable[..., Tensor], purpose: str, rows: int, shape: tuple[int, ...]) -> Tensor:
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self._trainer is not None else (1, 0)
        joined = sampler((rows * world, *shape), generator=self.stream(purpose), device=self.device)
        return joined[rank::world]  # the sampler of training rows strides over ranks in the same way

    @property
    def ranks(self) -> int:
        """Devices that train together."""
        return 1 if self._trainer is None else self.trainer.world_size

    @property
    def progress(self) -> float:
        """Share of the training budget that is spent, in [0, 1]; a pure function of k, so schedules resume exactly."""
        return min(1.0, self.batches_seen / max(1, self.total_batches))

    # -- loss terms: on the device until they are logged ----------------------------------------------------------

    def record(self, terms: Mapping[str, Tensor]) -> None:
        """Keep this step's terms; every `log_every` batches they are checked and logged with one host copy."""
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
        if self.ranks > 1:  # the mean over all rows, and every rank learns that a term of one of them is not finite
            summed = self.trainer.strategy.reduce(summed, reduce_op="mean")
        values = summed.tolist()
        flat = iter(values)
        rows = [(step, {name: next(flat) for name in terms}) for step, terms in recent]
        for step, row in rows:
            for name, value in row.items():
                if not torch.isfinite(torch.tensor(value)):
                    raise NonFiniteLoss(
                        f"loss term '{name}' became {value} at training batch {step}; "
                        "lower the learning rate, or look at the input images of that batch"
                    )
        self.latest_terms = {name: value for _, row in rows for name, value in row.items()}
        for logger in self.loggers:
            logger.log_metrics({f"train/{n}": v for n, v in self.latest_terms.items()}, step=rows[-1][0])

    # -- Lightning ------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if not bool(self.prepared):
            training = self.training
            self.eval()
            with torch.no_grad():
                self.prepare(self.trainer.datamodule.training_batches(self.device))
            self.train(training)
            self.prepared.fill_(True)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.batches_seen += 1
        if self.batches_seen % self.log_every == 0 or self.batches_seen == self.total_batches:
            self.flush_terms()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.flush_terms()  # a checkpoint is never written from a state whose losses were not checked
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = int(checkpoint["batches_seen"])

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:
        # Mixed precision is for training: scores, thresholds and exported graphs agree in float32.
        with torch.autocast(batch.image.device.type, enabled=False):
            return self.test_scores(batch.image)


OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[float], float]  # share of the budget spent -> multiplier of the learning rate


def polynomial(power: float) -> Schedule:
    """lr * (1 - progress)^power."""
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

    def objective(self, batch: Batch) -> Terms:
        """The summands of the loss of a training batch."""
        raise NotImplementedError

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters handed to the optimizer: all that require a gradient."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimizer_factory(self.trained_parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        _apply_schedule(self.optimizers(use_pl_optimizer=False), self._schedule, self.progress)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.objective(batch)
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
        return k % self.cycle in self.at

    def parameters(self) -> list[nn.Parameter]:
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

    def phases(self) -> list[Phase]:
        """The players in the order of their turns within a batch."""
        raise NotImplementedError

    def after_phase(self, phase: Phase) -> None:
        """Called after a phase's step, e.g. to update an average of weights."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._phases = self.phases()
        self._phase_parameters = [phase.parameters() for phase in self._phases]
        return [
            self._optimizer_factories[phase.name](parameters)
            for phase, parameters in zip(self._phases, self._phase_parameters, strict=True)
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.record(self.turns(batch))

    def turns(self, batch: Batch, names: Sequence[str] | None = None) -> Terms:
        """One turn of each phase that acts on this batch (of the phases in `names` alone); the terms of all."""
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
    """While open, of `every` parameter only those in `chosen` require a gradient; then all do again."""

    def __init__(self, every: list[nn.Parameter], chosen: list[nn.Parameter]) -> None:
        keep = {id(p) for p in chosen}
        self.held = [p for p in every if id(p) not in keep]

    def __enter__(self) -> None:
        for p in self.held:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.held:
            p.requires_grad_(True)

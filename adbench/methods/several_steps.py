"""A loop for networks so small that loading a batch costs more than learning from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adbench.methods.base import OptimizerFactory, Schedule, SingleObjective, _apply_schedule
from adbench.types import Batch


class SeveralSteps(SingleObjective):
    """One objective, one optimizer, several optimizer steps per loaded batch.

    A batch is cut into pieces of `rows_per_step` rows and the optimizer steps once for each; rows left over are not
    used, as a loader that drops the last batch would. The learning rate changes between batches only.

    Args:
        optimizer, schedule: see `SingleObjective`.
        rows_per_step: rows of a step; None takes the whole batch at once.
        clip: largest norm of all gradients together; None does not clip.
    """

    def __init__(
        self,
        optimizer: OptimizerFactory,
        schedule: Schedule | None = None,
        rows_per_step: int | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.automatic_optimization = False
        self._rows_per_step, self._clip = rows_per_step, clip
        self._step, self._steps = 0, 1  # within the batch
        self._drawn: dict[str, Tensor] = {}  # the batch's random numbers, (steps, rows, ...)

    def _draw(self, sampler: Callable[..., Tensor], purpose: str, rows: int, shape: tuple[int, ...]) -> Tensor:
        if self._steps == 1:
            return super()._draw(sampler, purpose, rows, shape)
        if purpose not in self._drawn:  # for all steps of the batch at once: a generator costs as much as a layer
            joined = super()._draw(sampler, purpose, rows * self._steps, shape)
            self._drawn[purpose] = joined.view(self._steps, rows, *shape)
        return self._drawn[purpose][self._step]

    def shared_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What can be computed for all steps of a loaded batch together: tensors of shape (rows, ...).

        They are cut like the batch and handed to `objective` behind it.
        """
        return ()

    def after_step(self) -> None:
        """What a method does after each optimizer step."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        batch = self.admitted(batch, first=batch_idx == 0)
        optimizer = self._bare_optimizer()
        _apply_schedule(optimizer, self._schedule, self.progress)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        rows = (self._rows_per_step or 0) // self.world or len(batch.image)  # of a step, on this device
        steps = max(1, len(batch.image) // rows)
        batch = Batch(*(part[: steps * rows] for part in batch))
        pieces = zip(*(part.split(rows) for part in (*batch, *self.shared_inputs(batch))), strict=True)
        # Lightning's wrapper is for gradients that are scaled or shared; it takes a tenth of a small step.
        plain = self.world == 1 and self.trainer.precision in ("32-true", "bf16-mixed")
        history: list[Tensor] = []
        self._steps = steps
        for self._step, piece in enumerate(pieces):
            terms = self.objective(Batch(*piece[: len(batch)]), *piece[len(batch) :])
            stacked = torch.stack(list(terms.values()))
            for p in parameters:
                p.grad = None
            stacked.sum().backward() if plain else self.manual_backward(stacked.sum())
            if self._clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self._clip, foreach=True)
            optimizer.step()
            self.after_step()
            history.append(stacked.detach())
        # The trainer counts what its own wrapper steps, and saves and stops by that count: one for this batch.
        counted = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        counted.increment_ready()
        counted.increment_completed()
        self._drawn.clear()
        self._step, self._steps = 0, 1
        self.record(dict(zip(terms, torch.stack(history).mean(0), strict=True)))

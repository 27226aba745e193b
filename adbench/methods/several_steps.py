"""A loop for networks so small that loading a batch costs more than learning from it."""

from __future__ import annotations

import torch
from torch import Tensor

from adbench.methods.base import OptimizerFactory, Schedule, SingleObjective, _apply_schedule
from adbench.streams import torch_stream
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
        self._step = 0  # within the batch

    def stream(self, purpose: str) -> torch.Generator:
        """The generator of step j of training batch k for one purpose, on this module's device."""
        return torch_stream(self.seed, purpose, self.batches_seen, self._step, device=self.device)

    def after_step(self) -> None:
        """Called after each optimizer step."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        _apply_schedule(optimizer, self._schedule, self.progress)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        rows = (self._rows_per_step or 0) // self.ranks or len(batch.image)  # of a step, on this device
        steps = max(1, len(batch.image) // rows)
        totals: dict[str, Tensor] = {}
        for self._step in range(steps):
            piece = batch
            if steps > 1:
                piece = Batch(*(part[self._step * rows : (self._step + 1) * rows] for part in batch))
            terms = self.objective(piece)
            optimizer.zero_grad(set_to_none=True)
            self.manual_backward(sum(terms.values()))
            if self._clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self._clip)
            optimizer.step()
            self.after_step()
            for name, term in terms.items():
                totals[name] = totals[name] + term.detach() if name in totals else term.detach()
        self.record({name: total / steps for name, total in totals.items()})

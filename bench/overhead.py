"""What a run's training step costs beyond its networks and losses: each paper's small preset beside a bare loop.

A run trains as the command does: Lightning's loop, data module, callbacks, log. Between two of its batches, the same
networks with the same weights take the same step in a plain loop: rows gathered from an array, objective, backward,
optimizer. Both are timed in the run's own process, one step of each in turn, on one thread and in processor time, so
that a busy neighbour takes as much from one as from the other.

    python -m bench overhead
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from adbench.methods.base import Adversarial
from adbench.transforms.image import to_float, to_rgb
from adbench.types import Batch

METHODS = ("cbigan/small", "igd/small", "pwae/small", "ssae/small", "esad/small")
DATA = "digits"  # 32 px, the smallest steps: the share is largest here
BATCHES, WARM = 60, 10  # SSAE validates every 100 batches, which is no step
ALLOWED = 0.03
BEFORE = {  # the ratios on this data while Lightning's own profiler and its search for tensors stood around every hook
    "cbigan/small": 1.042, "igd/small": 1.013, "pwae/small": 1.008, "ssae/small": 1.059, "esad/small": 1.032,
}  # fmt: skip
KEPT: list[InTurns] = []  # where the callback, which the run builds, leaves its times


def measure(precision: str = "32-true", data: str = DATA) -> list[dict[str, Any]]:
    """A row of each method: milliseconds of a run's step, those of the bare loop as the baseline.

    Args:
        precision: of both.
        data: name of the data set; it must have uint8 images in memory.
    """
    rows = []
    for method in METHODS:
        ours, bare = step_times(method, data, precision)
        rows.append({
            "name": f"overhead, {method} on {data}", "value": round(1e3 * ours, 3), "unit": "ms",
            "baseline": round(1e3 * bare, 3), "ratio": round(ours / bare, 4),
            "note": f"a run's training step, {precision}, one thread, processor time, median of {BATCHES - WARM}; "
            f"baseline: the same step in a bare loop, in turns; at most {1 + ALLOWED} asked",
        } | ({"before": BEFORE[method]} if data == DATA else {}))  # fmt: skip
    return [*rows, lightning_alone()]


def lightning_alone(method: str = "cbigan/small") -> dict[str, Any]:
    """The row of what Lightning itself adds: a module whose step is the bare one, in a trainer with nothing else."""
    from bench._steps import Step, built, images

    torch.set_num_threads(1)
    network, side, rows = built(method, f"data={DATA}")
    module = _Around(Step(network, images(rows, side)))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loader = DataLoader(torch.rand(BATCHES * rows, 1), batch_size=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(module, loader)
    step, cycle = module.step, module.step.cycle
    between, bare = _middle(module.between, cycle), _middle(module.bare, cycle)
    return {
        "name": f"overhead, Lightning's loop alone around a step of {method}", "unit": "ms",
        "value": round(1e3 * (bare + between), 3), "baseline": round(1e3 * bare, 3),
        "ratio": round(1 + between / bare, 4),
        "note": f"a module whose training step is the bare one of {len(step.batch.image)} images; manual optimisation, "
        f"no callback, no log, one thread, processor time, median of {BATCHES - WARM}; baseline: the bare step",
    }  # fmt: skip


class _Around(LightningModule):
    """Its training step is a bare one; notes what lies between two of them."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step: Any = step
        self.between: list[float] = []
        self.bare: list[float] = []
        self._left: float | None = None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        arrived = time.process_time()
        if self._left is not None:
            self.between.append(arrived - self._left)
        self.step()
        self._left = time.process_time()
        self.bare.append(self._left - arrived)

    def configure_optimizers(self) -> None:
        return None


def step_times(method: str, data: str = DATA, precision: str = "32-true", *words: str) -> tuple[float, float]:
    """Seconds of a run's training step and of the bare one: medians, or their mean over the turns of the players.

    Args:
        method, data, precision: of the run.
        words: further words of its command line.
    """
    from adbench.run import main

    KEPT.clear()
    with tempfile.TemporaryDirectory() as place:
        callbacks = Path(place) / "conf" / "callbacks"
        callbacks.mkdir(parents=True)
        (callbacks / "in_turns.yaml").write_text("in_turns: {_target_: bench.overhead.InTurns}\n")
        code = main([
            f"method={method}", f"data={data}", "trainer=cpu", f"results={place}/results", "trainer.threads=1",
            f"trainer.precision={precision}", f"budget.max_batches={BATCHES}", "evaluation.panels_anomalous=0",
            "evaluation.panels_normal=0", "evaluation.gallery=0", "evaluation.codes=0", "callbacks=in_turns",
            "--config-dir", str(callbacks.parent), *words,
        ])  # fmt: skip
    if code:
        raise RuntimeError(f"the run of {method} on {data} failed")
    clock = KEPT.pop()
    return _middle(clock.ours, clock.cycle), _middle(clock.bare, clock.cycle)


def _middle(seconds: list[float], cycle: int) -> float:
    """The median of each turn of the cycle, averaged."""
    return statistics.mean(statistics.median(seconds[WARM:][turn::cycle]) for turn in range(cycle))


class InTurns(Callback):
    """Takes a bare step before every batch of a run; what lies between two of them is the run's step."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.cycle = 1
        self._left: float | None = None
        KEPT.append(self)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        attached, pl_module._trainer = pl_module._trainer, None
        method = copy.deepcopy(pl_module).train()
        pl_module._trainer = attached
        self.cycle = max((phase.cycle for phase in getattr(pl_module, "_phases", [])), default=1)
        self._step = BareLoop(method, trainer.datamodule, trainer.precision_plugin.forward_context)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        arrived = time.process_time()
        if self._left is not None:
            self.ours.append(arrived - self._left)
        self._step()
        self._left = time.process_time()
        self.bare.append(self._left - arrived)


class BareLoop:
    """Calling it takes a training step of a method without a trainer.

    Args:
        method: with its weights; the loop's own.
        datamodule: whose training rows are drawn.
        autocast: gives the context of the precision.
    """

    def __init__(self, method: Any, datamodule: Any, autocast: Callable[[], Any]) -> None:
        self.method, self.autocast = method, autocast
        images = datamodule._withheld().images
        self.images = torch.from_numpy(images[np.arange(len(datamodule.records))])
        self.semi_label = torch.from_numpy(datamodule._semi_label)
        self.batches = list(datamodule.train_dataloader().sampler)
        self.bytes = method.takes_bytes
        generator = torch.Generator().manual_seed(0)
        method.stream = lambda purpose: generator  # a plain loop draws from one stream
        optimizers = method.configure_optimizers()
        self.optimizers = optimizers if isinstance(optimizers, list) else [optimizers]

    def __call__(self) -> None:
        batch = self._batch(self.batches[self.method.batches_seen])
        if hasattr(self.method, "_decode"):
            self._igd(batch)
        elif isinstance(self.method, Adversarial):
            self._turns(batch)
        else:
            with self.autocast():
                loss = sum(self.method.objective(batch).values())
            self._descend(self.optimizers[0], loss)
        self.method.batches_seen += 1

    def _batch(self, rows: Any) -> Batch:
        image = self.images[rows]
        image = image if self.bytes else to_float(to_rgb(image))
        unknown = torch.full((len(rows),), -1)
        return Batch(image, unknown, self.semi_label[rows], torch.zeros(len(rows), 1, 1, 1, dtype=torch.bool), unknown)

    def _igd(self, batch: Batch) -> None:
        method = self.method
        with self.autocast():
            image = method.normalize(method._augmented(batch.image))
        for scale in method.scales:
            names = [f"{scale}_{player}" for player in method._players]
            for step, x in enumerate(method._samples(scale, image)):
                with self.autocast():
                    method._decoded = {scale: method._decode(scale, x, step)}
                self._turns(batch, names)
        method._decoded = {}

    def _turns(self, batch: Batch, names: Any = None) -> None:
        method = self.method
        for phase, optimizer in zip(method._phases, self.optimizers, strict=True):
            if not phase.acts(method.batches_seen) or (names is not None and phase.name not in names):
                continue
            mine = {id(p) for p in phase.parameters()}
            others = [p for group in method._phase_parameters for p in group if id(p) not in mine]
            for p in others:
                p.requires_grad_(False)
            with self.autocast():
                loss = sum(phase.objective(batch).values())
            self._descend(optimizer, loss)
            for p in others:
                p.requires_grad_(True)
            method.after_phase(phase)

    def _descend(self, optimizer: Any, loss: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        clip = getattr(self.method, "_clip", None)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
        optimizer.step()


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

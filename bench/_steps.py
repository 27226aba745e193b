"""A method as its preset makes it, and its training step on images that are drawn once: what benches time.

Nothing but networks and losses: no trainer, no data module, one batch over and over.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from adbench.experiment.build import build_method
from adbench.experiment.groups import conf_dir
from adbench.types import Batch
from bench.overhead import BareLoop

SMALL = ("cbigan/small", "igd/small", "pwae/small", "ssae/small", "esad/small")
DATA = "textures/brick"


def built(name: str, *words: str) -> tuple[Any, int, int]:
    """A method for a texture, with its side in pixels and its batch size; further words of a command line change it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={name}", f"data={DATA}", *words])
    torch.manual_seed(0)
    method = build_method(cfg)
    method.total_batches = 1000
    return method, cfg.data.image_size, cfg.data.batch_size


def images(rows: int, side: int, seed: int = 0) -> Tensor:
    """(rows, 3, side, side) in [0, 1]: blocks and noise, so that nothing in them is a constant."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (0.8 * smooth + 0.2 * torch.rand(rows, 3, side, side, generator=generator)).clamp(0, 1)


class Step(BareLoop):
    """Calling it takes one training step: objective, backward and optimizer of every player whose turn it is.

    Args:
        method: with its weights; the step's own.
        image: (B, 3, S, S) in [0, 1]; bytes are made of it for a method that takes them.
    """

    def __init__(self, method: Any, image: Tensor) -> None:
        self.method, self.autocast = method.train(), nullcontext
        rows = len(image)
        unknown = torch.full((rows,), -1)
        semi = (torch.arange(rows) % 4 == 3).long().neg() if method.supervision == "semi" else torch.zeros_like(unknown)
        image = (image * 255).round().byte() if method.takes_bytes else image
        self.batch = Batch(image, unknown, semi, torch.zeros(rows, 1, 1, 1, dtype=torch.bool), unknown)
        self.batches: Any = defaultdict(int)
        with torch.no_grad():
            method.ensure_prepared(
                [self.batch._replace(image=image.float() / 255) if method.takes_bytes else self.batch]
            )
        optimizers = method.configure_optimizers()
        self.optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self.cycle = max((phase.cycle for phase in getattr(method, "_phases", [])), default=1)

    def _batch(self, rows: Any) -> Batch:
        return self.batch

    def round(self) -> None:
        """One step of each player."""
        for _ in range(self.cycle):
            self()


def in_turns(works: dict[str, Callable[[], Any]], times: int, warm: int = 1) -> dict[str, float]:
    """Processor seconds of each work: the median of so many turns, one call of each in every turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm + times):
        for name, work in works.items():
            start = time.process_time()
            work()
            if turn >= warm:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}

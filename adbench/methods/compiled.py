"""`trainer.compile=true`: the networks of a training step compiled by `torch.compile`, each by itself.

    Trainer(callbacks=[Compiled()])

Only training steps are compiled. E-steps, validation, scores, pictures and exported graphs come from the networks as
they are, so that a run, `predict` and `evaluate` agree on every digit. Between two steps nothing of it is left on the
method: it is saved, copied and exported as ever, and its state dictionary has the names that it always has.

Compiled arithmetic differs from the other in the last digits; compiled again, it is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from adbench.methods.base import Method

#: Graphs of one network: a graph for each shape of its input, precision, and choice of weights that learn. SSAE's crops
#: have four sizes, IGD's patches two, a network of two players learns or does not.
MOST_GRAPHS = 32


def _warn(reason: str) -> None:
    rank_zero_warn(f"torch.compile does not work here ({reason}); the training goes on without it")


class Compiled(Callback):
    """Compiles a method's `regions` when a training step calls them first, and lets them be where that fails.

    Args:
        on_failure: called once with the reason, a line, where compiling fails.
        backend: of `torch.compile`.

    Attributes:
        failure: the reason; None while all is well.
    """

    def __init__(self, on_failure: Callable[[str], None] = _warn, backend: str = "inductor") -> None:
        self.failure: str | None = None
        self.backend, self._on_failure = backend, on_failure
        self._regions: list[_Region] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        step = pl_module.training_step
        self.compile(pl_module)

        def compiled_step(*args: Any, **kwargs: Any) -> Any:
            with self.in_place():
                return step(*args, **kwargs)

        pl_module.training_step = compiled_step  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave(pl_module)

    def give_up(self, error: Exception) -> None:
        """Compile nothing from here on."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self.failure = lines[0].rstrip(".:") if lines else type(error).__name__
        self._on_failure(self.failure)

    def compile(self, method: Method) -> None:
        """Take a method's regions; each is compiled when it is called first while `in_place` is open."""
        self._regions = [_Region(network, self) for network in method.regions()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the networks' calls go to what was compiled."""
        regions = self._regions if self.failure is None else []
        for region in regions:
            region.network.forward = region
        try:
            yield
        finally:
            for region in regions:
                del region.network.forward  # the class's own again

    def _leave(self, method: LightningModule) -> None:
        self._regions = []
        vars(method).pop("training_step", None)


class _Region:
    """One network's forward, compiled when it is called first.

    Args:
        network: whose parameters and buffers stay where they are.
        owner: is told of a failure.
    """

    def __init__(self, network: nn.Module, owner: Compiled) -> None:
        self.network, self._owner, self._plain = network, owner, network.forward
        # Whole, so that nothing has run, no running mean has moved, where compiling fails; of one shape each, because
        # a graph for all shapes would depend on which came first, and a resumed training on where it was cut.
        limits: dict[str, Any] = {"recompile_limit": MOST_GRAPHS, "isolate_recompiles": True}
        known = inspect.signature(
            torch.compile
        ).parameters  # torch before 2.15 has one limit, for all networks together
        self._compiled: Callable[..., Any] = torch.compile(
            network.forward, fullgraph=True, dynamic=False, backend=owner.backend,
            **{name: value for name, value in limits.items() if name in known},
        )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._owner.failure is None:
            try:
                return self._compiled(*args, **kwargs)
            except Exception as error:
                if not _of_the_compiler(error):
                    raise
                self._owner.give_up(error)
        return self._plain(*args, **kwargs)


def _of_the_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))

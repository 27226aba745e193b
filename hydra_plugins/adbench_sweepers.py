"""Hydra sweepers whose jobs may fail one by one: `hydra/sweeper=adbench` (the default) and `hydra/sweeper=tuning`.

Hydra takes its plugins from packages of this name alone. It imports them at every start, so what is heavy waits.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Sweep(BasicSweeper):
    """Every combination of the values given; finished jobs are skipped, failed ones do not stop the others."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from adbench.sweeps import Recorder

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.launcher = Recorder(self.launcher, config, hydra_context.config_loader)

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Nothing: the recorder composes every job, and one that does not compose is no reason to stop the others."""


try:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
except ImportError:
    pass
else:

    class Tuning(OptunaSweeper):
        """Optuna's trials, judged by a number of metrics.json that is computed from held-out normal rows alone."""

        def __init__(self, objective: str, **options: Any) -> None:
            super().__init__(**options)
            self.objective = objective

        def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
            from adbench.sweeps import Recorder

            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
            inner = self.sweeper
            inner.launcher = Recorder(inner.launcher, config, hydra_context.config_loader, self.objective)

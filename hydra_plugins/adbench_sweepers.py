"""Hydra sweepers whose jobs may fail one by one: `hydra/sweeper=adbench` (the default) and `hydra/sweeper=tuning`.

Hydra takes its plugins from packages of this name alone. It imports them at every start, so what is heavy waits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


def spread(jobs: int, wanted: int) -> list[int]:
    """So many of the job numbers, in order, evenly spread and, unlike a fixed stride, out of step with the axes."""
    golden = (5**0.5 - 1) / 2
    places: dict[int, None] = {}
    k = 0
    while len(places) < min(wanted, jobs):
        places[int(k * golden % 1 * jobs)] = None
        k += 1
    return sorted(places)


Axes = Mapping[str, Sequence[Mapping[str, Any]]]  # name -> alternatives, each of values that belong together


def alternatives(axes: Axes | None, given: Collection[str]) -> list[list[list[str]]]:
    """The arguments of each alternative of each axis; of an axis with a key that is given by hand, nothing is left.

    Args:
        axes: see `Sweep`.
        given: keys of the command line and of `params`.
    """
    free = [axis for axis in (axes or {}).values() if not any(key in given for values in axis for key in values)]
    return [[[f"{key}={value}" for key, value in values.items()] for values in axis] for axis in free]


def combinations(overrides: Sequence[Any], axes: Axes | None, config_loader: Any) -> list[list[str]]:
    """The arguments of every job: each combination of swept values with an alternative of each axis.

    Args:
        overrides: parsed arguments, those of `params` among them.
        axes: see `Sweep`.
        config_loader: Hydra's, which knows the choices that `glob` finds.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=config_loader)
    given = {override.get_key_element() for override in overrides}
    jobs: list[list[str]] = []
    for together in product(*alternatives(axes, given)):
        theirs = parser.parse_overrides([line for one in together for line in one])
        jobs += BasicSweeper.split_arguments([*theirs, *overrides], None)[0]
    return jobs


class Sweep(BasicSweeper):
    """Every combination of the values given; finished jobs are skipped, failed ones do not stop the others.

    Args:
        at_most: so many of the jobs, evenly spread over them; None runs all.
        axes: values that go together, such as a method with its pretraining or a protocol with its ratios: name ->
            alternatives, of which each job has one. The values of an alternative may be swept themselves.
        others: see Hydra's basic sweeper.
    """

    launcher: Any

    def __init__(self, at_most: int | None, axes: Axes | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.at_most = at_most
        self.axes = axes

    def split_arguments(  # type: ignore[override]  # Hydra calls it on an instance, which its own does not need
        self, overrides: Any, max_batch_size: int | None
    ) -> Any:
        loader = next((override.config_loader for override in overrides), None)
        jobs = combinations(overrides, self.axes, loader)
        if self.at_most is not None and self.at_most < len(jobs):
            jobs = [jobs[i] for i in spread(len(jobs), self.at_most)]
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from adbench.experiment.sweeps import Recorder

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
            from adbench.experiment.sweeps import Recorder

            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
            inner: Any = self.sweeper
            inner.launcher = Recorder(inner.launcher, config, hydra_context.config_loader, self.objective)

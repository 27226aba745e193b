"""`python -m adbench.evaluate`: score a finished run again, on its own data or on other data. Nothing is trained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from adbench.errors import command


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from adbench.experiment.groups import own_trees

    with own_trees(sys.argv[1:] if arguments is None else arguments) as others:
        return _evaluate(others)


def _evaluate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m adbench.evaluate",
        description="Score a finished run again, on the test rows of its own or of another data set; never trains. "
        "Writes RUN/evaluations/<data id>/ with metrics.json, scores.csv, curves.json and figures/.",
        epilog="Example: python -m adbench.evaluate RUN data=mvtec/bottle data_root=DIR. The run's threshold stays.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="data=..., data.KEY=..., data_root=DIR, cache_dir=DIR, as for adbench.run")  # fmt: skip
    parser.add_argument("--device", help="cpu, gpu, cuda:1, ... (as the run's own trainer says)")
    parser.add_argument("--trust", action="append", default=[], metavar="NAME",
                        help="a package whose classes may be built from the run folder")  # fmt: skip
    parser.add_argument("--config-dir", action="append", metavar="DIR",
                        help="a tree of your own with data/NAME.yaml; also ADBENCH_CONF=DIR")  # fmt: skip
    options = parser.parse_intermixed_args(arguments)

    from adbench.experiment.console import summary
    from adbench.experiment.reevaluation import evaluate

    record, folder = evaluate(options.run, options.overrides, options.trust, options.device)
    print(summary(record, folder))
    return 0


class _Command(ModuleType):
    """Importing this module puts it in the place of the function `adbench.evaluate`; so it can be called as that."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from adbench.api import evaluate

        return evaluate(*arguments, **options)


sys.modules[__name__].__class__ = _Command

if __name__ == "__main__":
    sys.exit(main())

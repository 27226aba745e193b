"""A training step with `trainer.compile=true` beside the same step without, for each paper's small preset.

python -m bench compiled
"""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import torch

from adbench.evaluation.metrics import one_cpu_thread
from adbench.methods.compiled import Compiled
from bench._steps import SMALL, Step, built, images, in_turns

TIMES = 15


def measure() -> list[dict[str, Any]]:
    """A row of each method: milliseconds of a compiled step, those of a plain one as the baseline."""
    with one_cpu_thread():
        return [row(name) for name in SMALL]


def row(name: str, times: int = TIMES) -> dict[str, Any]:
    """The row of one method."""
    from torch._dynamo.utils import counters

    method, side, rows = built(name)
    image = images(rows, side)
    plain, compiled = Step(method, image), Step(copy.deepcopy(method), image)
    callback = Compiled(lambda reason: None)
    callback.compile(compiled.method)
    counters.clear()

    def compiled_step() -> None:
        with callback.in_place():
            compiled.round()

    started = time.process_time()
    compiled_step()
    first = time.process_time() - started
    seconds = in_turns({"plain": plain.round, "compiled": compiled_step}, times)
    if callback.failure is not None:
        raise RuntimeError(f"{name} was not compiled: {callback.failure}")
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    torch.compiler.reset()
    return {
        "name": f"trainer.compile=true, {name}: training step", "value": round(1e3 * seconds["compiled"], 2),
        "unit": "ms", "baseline": round(1e3 * seconds["plain"], 2),
        "ratio": round(seconds["plain"] / seconds["compiled"], 3),
        "note": f"networks and losses alone, 32-true, {rows} images of {side} px, one thread, processor time, median "
        f"of {times} turns; {graphs} graphs, {breaks} graph breaks, first step {first:.0f} s; "
        "baseline: the step without; ratio: times faster",
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

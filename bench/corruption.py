"""Artificial defects beside the training step that they feed: a batch of 8 at 256 x 256 on the CPU.

Run `python bench/corruption.py`. The step is SSAE's small preset: network forward, backward and Adam, in the precision
that `trainer.precision=auto` takes here, so that the share is not flattered by a slow step.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROWS, SIDE = 8, 256
SHARE = 0.15  # of a training step that making the corrupted images may take


def _median_ms(call: Callable[[], Any], times: int) -> float:
    call()  # caches and allocations of the first call are not the steady state
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def measure() -> list[dict[str, Any]]:
    """Milliseconds of each corruption, the small preset's training step as the baseline."""
    from hydra import compose, initialize_config_dir

    from adbench.experiment.build import build_method
    from adbench.experiment.groups import conf_dir
    from adbench.experiment.precision import BFLOAT16, chosen
    from adbench.transforms.corruption import Draws
    from adbench.types import Batch

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(
            "config",
            overrides=["method=ssae/small", "data=mvtec/bottle", "data_root=/nowhere", f"data.image_size={SIDE}"],
        )
    method = build_method(cfg).train()
    method.total_batches = method.batches_seen = 1  # the whole image: what the crops grow to
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(ROWS, 3, SIDE // 8, SIDE // 8, generator=generator)
    clean = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    none = torch.zeros(ROWS, dtype=torch.int64)
    batch = Batch(clean, none, none, torch.zeros(ROWS, 1, SIDE, SIDE, dtype=torch.bool), none)
    optimizer = method.configure_optimizers()

    precision = chosen("auto", "cpu", trains=True, tabular=False)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == BFLOAT16):
            terms = method.objective(batch)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    kinds = {name: method._corruptions[name] for name in ("elastic", "occlusion", "cutout")}
    with torch.no_grad():
        taken = {name: _median_ms(lambda c=c: c(clean, Draws(generator, ROWS)), 15) for name, c in kinds.items()}
    training = _median_ms(step, 3)
    note = (
        f"batch of {ROWS} at {SIDE}x{SIDE}, {torch.get_num_threads()} threads; baseline: a training step of ssae/small "
        f"in {precision}, corruption included; at most {SHARE:.0%} asked of the default (elastic)"
    )
    return [
        {
            "name": f"ssae_corruption_{name}",
            "value": round(value, 2),
            "unit": "ms",
            "baseline": round(training, 1),
            "ratio": round(value / training, 4),
            "note": note,
        }
        for name, value in taken.items()
    ]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

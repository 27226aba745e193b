"""P-WAE's sliced Wasserstein distance and HSIC bottleneck, forward and backward: their share of a training step of the
CPU preset, and the same distance written as a loop over tiles and projections.

Run `python -m bench.pwae_losses`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from adbench.experiment.build import build_method
from adbench.experiment.groups import conf_dir
from adbench.types import Batch

ROWS, STEPS, REPEATS = 16, 5, 20


def measure() -> list[dict[str, object]]:
    """Rows {name, value, unit, baseline, ratio, note}; CPU seconds of one thread, the fastest of several runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            method = build_method(compose("config", overrides=["method=pwae/small", "data=textures/grass"]))
        image = torch.rand(ROWS, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        step = _fastest(lambda: _step(method, image), STEPS)
        with torch.no_grad():
            z = method.encode(image)[1].detach()
            torch.testing.assert_close(_terms(method, image, z), _terms_in_a_loop(method, image, z))
        ours = _fastest(lambda: _backward(z, lambda codes: _terms(method, image, codes)), REPEATS)
        loop = _fastest(lambda: _backward(z, lambda codes: _terms_in_a_loop(method, image, codes)), STEPS)
    finally:
        torch.set_num_threads(threads)
    what = f"{ROWS} images of 128 px, {method.tiles} tiles, {method.projections} projections, {method.latent}-d codes"
    return [
        {"name": "P-WAE, SWD + HSIC: share of a training step", "value": round(ours, 5), "unit": "s",
         "baseline": round(step, 4), "ratio": round(ours / step, 4),
         "note": f"{what}; baseline: the step of pwae/small; at most 0.10"},
        {"name": "P-WAE, SWD + HSIC: batched against a loop", "value": round(ours, 5), "unit": "s",
         "baseline": round(loop, 5), "ratio": round(loop / ours, 2),
         "note": f"{what}; baseline: the distance of one tile and one projection at a time; at least 5"},
    ]  # fmt: skip


def _fastest(run: Callable[[], object], repeats: int) -> float:
    """CPU seconds, so that whatever else the machine does counts little."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _step(method: torch.nn.Module, image: Tensor) -> None:
    none = torch.full((len(image),), -1)
    optimizer = method.configure_optimizers()
    terms = method.objective(Batch(image, none, none, torch.zeros(len(image), 1, 128, 128), none))
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _backward(z: Tensor, terms: Callable[[Tensor], Tensor]) -> None:
    terms(z.clone().requires_grad_()).backward()


def _terms(method: torch.nn.Module, image: Tensor, z: Tensor) -> Tensor:
    return method._codes_and_divergence(z)[1] + method._bottleneck(image, z)


def _terms_in_a_loop(method: torch.nn.Module, image: Tensor, z: Tensor) -> Tensor:
    directions = torch.randn(method.tiles, method.projections, method.latent, generator=method.stream("directions"))
    directions = torch.nn.functional.normalize(directions, dim=-1)
    prior = method._prior("divergence prior", len(z))
    tiles = []
    for k in range(method.tiles):
        distances = []
        for theta in directions[k]:
            ours, theirs = (z[:, k] @ theta).sort().values, (prior[:, k] @ theta).sort().values
            distances.append((ours - theirs).square().mean())
        tiles.append(torch.stack(distances).mean())
    return torch.stack(tiles).sum() + method._bottleneck(image, z)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

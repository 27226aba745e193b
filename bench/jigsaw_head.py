"""P-WAE's jigsaw head by itself, on codes that follow their priors exactly, trained by the paper's SGD and decay: does
it learn the permutation from codes as they are (as printed) and from standardised ones?

Run `python -m bench.jigsaw_head`. Cross-entropies; ln 1000 = 6.9 is chance.
"""

from __future__ import annotations

import json

import torch
from hydra import compose, initialize_config_dir

from adbench.experiment.build import build_method
from adbench.experiment.groups import conf_dir
from adbench.methods.base import _apply_schedule

ROWS, BATCHES, PARTS = 16, 1600, 8


def curve(jigsaw_input: str, identity_share: str) -> list[float]:
    """Mean cross-entropy over each eighth of the training of a head of the paper's size."""
    names = {"jigsaw_input": jigsaw_input, "identity_share": identity_share, "width": 0.125, "backbone": "resnet18"}
    overrides = ["method=pwae", "data=textures/grass", *(f"method.{key}={value}" for key, value in names.items())]
    torch.manual_seed(0)
    method = build_method(compose("config", overrides=overrides))
    method.total_batches = BATCHES
    optimizer = method._optimizer_factory(method.jigsaw_head.parameters())
    values = torch.zeros(BATCHES)
    for k in range(BATCHES):
        method.batches_seen = k
        _apply_schedule(optimizer, method._schedule, method.progress)
        value = method._jigsaw(method._prior("ideal codes", ROWS))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values[k] = value.detach()
    return values.view(PARTS, -1).mean(1).tolist()


def measure() -> list[dict[str, object]]:
    """Rows {name, value, unit, baseline, ratio, note}; the baseline is the head as printed."""
    rows = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for identity_share in ("null", "0.7"):
            ours, printed = (curve(jigsaw_input, identity_share) for jigsaw_input in ("standardised", "codes"))
            by_eighths = [" ".join(f"{value:.2f}" for value in values) for values in (ours, printed)]
            rows.append({
                "name": f"P-WAE, jigsaw head on ideal codes, identity_share={identity_share}: last eighth",
                "value": round(ours[-1], 3), "unit": "nats", "baseline": round(printed[-1], 3),
                "ratio": round(printed[-1] / ours[-1], 2),
                "note": f"{BATCHES} batches of {ROWS}; eighths: {by_eighths[0]}; baseline, as printed: {by_eighths[1]}",
            })  # fmt: skip
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

"""bfloat16 beside float32: single convolutions, with oneDNN held to older instructions too, and training steps.

`trainer.precision=auto` takes the one that the processor computes in; these rows say what that is worth, and what
bfloat16 costs where it is emulated.

    python -m bench precision
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

from adbench.evaluation.metrics import one_cpu_thread
from bench._steps import SMALL, Step, built, images, in_turns

#: Name -> images, channels in and out, pixels of a side, dilation of a 3x3 convolution.
CONVOLUTIONS = {
    "32 channels at 128 px, 4 images": (4, 32, 128, 1),
    "32 channels at 128 px, dilation 4, 4 images": (4, 32, 128, 4),
    "64 channels at 32 px, 8 images": (8, 64, 32, 1),
}
HELD_TO = ("", "AVX512_CORE", "AVX2")  # oneDNN's names; the first is the processor as it is
TIMES = 9


def measure() -> list[dict[str, Any]]:
    """Rows of convolutions by instructions, each in a process of its own, and of the papers' small presets."""
    rows = []
    for held in HELD_TO:
        environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": held} if held else {})
        done = subprocess.run(
            [sys.executable, "-m", "bench.precision"], check=True, capture_output=True, text=True, env=environment
        )
        place = f"oneDNN held to {held}" if held else "as it is"
        for name, (low, full) in json.loads(done.stdout.splitlines()[-1]).items():
            rows.append(_row(f"bfloat16, 3x3 convolution, {name}, {place}", low, full, "forward and backward"))
    with one_cpu_thread():
        return rows + [step(name) for name in SMALL]


def convolutions() -> dict[str, tuple[float, float]]:
    """Milliseconds in bfloat16 and in float32, channels last, of each convolution."""
    found = {}
    with one_cpu_thread():
        for name, (rows, channels, side, dilation) in CONVOLUTIONS.items():
            layer = torch.nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            layer = layer.to(memory_format=torch.channels_last)
            image = torch.rand(rows, channels, side, side).contiguous(memory_format=torch.channels_last)

            def pass_through(low: bool, layer: torch.nn.Module = layer, image: torch.Tensor = image) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    y = layer(image.requires_grad_())
                y.float().sum().backward()

            works = {"low": lambda go=pass_through: go(True), "full": lambda go=pass_through: go(False)}
            seconds = in_turns(works, TIMES)
            found[name] = (1e3 * seconds["low"], 1e3 * seconds["full"])
    return found


def step(name: str) -> dict[str, Any]:
    """The row of one preset's training step."""
    method, side, rows = built(name)
    plain = Step(method, images(rows, side))

    def lowered() -> None:
        plain.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        plain.round()

    def full() -> None:
        plain.autocast = lambda: torch.autocast("cpu", enabled=False)
        plain.round()

    seconds = in_turns({"low": lowered, "full": full}, TIMES)
    note = f"networks and losses alone, {rows} images of {side} px"
    return _row(f"bfloat16, {name}: training step", 1e3 * seconds["low"], 1e3 * seconds["full"], note)


def _row(name: str, low: float, full: float, note: str) -> dict[str, Any]:
    return {
        "name": name, "value": round(low, 2), "unit": "ms", "baseline": round(full, 2), "ratio": round(full / low, 3),
        "note": f"{note}; one thread, processor time, median of {TIMES} turns; baseline: float32; ratio: times faster",
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(convolutions()))

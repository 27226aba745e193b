"""The number format that a run trains in: `trainer.precision=auto`, and what a processor makes of bfloat16.

What `auto` finds is a machine's, so it is no setting: folder names and hashes do not have it. metrics.json has it, as
`precision` and `hardware.cpu_capability`, and a run goes on in the format that it began with, on whatever machine.
"""

from __future__ import annotations

import platform
import time
from functools import cache

AUTO, FLOAT32, BFLOAT16 = "auto", "32-true", "bf16-mixed"
#: The convolution below takes 0.8 times as long in bfloat16 as in float32 where the processor computes in it, 2.9 times
#: where AVX512 emulates it and 16 times where AVX2 does: the best of several tries on a busy machine is far from this.
EMULATED_FROM = 1.6
ROWS, CHANNELS, SIDE, TRIES = 2, 32, 32, 5


def chosen(asked: str, accelerator: str, *, trains: bool, tabular: bool, begun: str | None = None) -> str:
    """The precision of a run, as Lightning's trainer takes it.

    Args:
        asked: `trainer.precision`; all but `auto` is taken as it is.
        accelerator: `trainer.accelerator`.
        trains: whether the method learns by gradients; nothing else computes in anything but float32.
        tabular: whether it learns from a table, whose networks are so small that casts cost more than they save.
        begun: the precision of the run that goes on; None for a run that starts.
    """
    if asked != AUTO:
        return asked
    if begun is not None:
        return begun
    return BFLOAT16 if trains and not tabular and has_bfloat16(accelerator) else FLOAT32


def has_bfloat16(accelerator: str) -> bool:
    """Whether the device that a trainer would take computes in bfloat16, rather than to emulate it or to lack it."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "mps" or (accelerator in ("auto", "gpu") and torch.backends.mps.is_available()):
        return False  # nothing tells
    return accelerator in ("auto", "cpu") and cpu_has_bfloat16()


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16: as torch says and, where it is silent, as one convolution shows."""
    answer = _said_of_the_cpu()
    return bfloat16_cost() < EMULATED_FROM if answer is None else answer


def _said_of_the_cpu() -> bool | None:
    """What torch says; None where it does not know.

    Its own question for oneDNN is yes on every processor with AVX512, emulation included, so the instructions are asked
    for one by one.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return False  # torch's own convolutions are no faster in it
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    answers = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return None if None in answers else any(answer() for answer in answers if answer is not None)


@cache
def bfloat16_cost() -> float:
    """Time of a convolution, forward and backward, in bfloat16 over that in float32; at most 0.3 s, once a process."""
    import torch

    image = torch.full((ROWS, CHANNELS, SIDE, SIDE), 0.5).contiguous(memory_format=torch.channels_last)
    weight = torch.full((CHANNELS, CHANNELS, 3, 3), 0.5).contiguous(memory_format=torch.channels_last)  # draws nothing

    def seconds(low: bool) -> float:
        x, w = image.clone().requires_grad_(), weight.clone().requires_grad_()
        start = time.perf_counter()
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                y = torch.nn.functional.conv2d(x, w, padding=1)
            y.float().sum().backward()
        return time.perf_counter() - start

    for low in (False, True):
        seconds(low)  # the first of each finds its kernel
    pairs = [(seconds(True), seconds(False)) for _ in range(TRIES)]  # in turns, and the best: a busy machine slows both
    low, full = (min(times) for times in zip(*pairs, strict=True))
    return low / full


@cache
def cpu_capability() -> str:
    """The vector instructions that torch computes with here, and whether bfloat16 is among them: `AVX512+bf16`."""
    import torch

    return torch.backends.cpu.get_cpu_capability() + "+bf16" * cpu_has_bfloat16()


def word_on_emulation(precision: str, accelerator: str) -> str | None:
    """One line about a precision that this processor emulates, with its price; None where there is nothing to say."""
    import torch

    on_cpu = accelerator == "cpu" or (
        accelerator == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )
    if not precision.startswith("bf16") or not on_cpu or cpu_has_bfloat16():
        return None
    return (
        f"warning: this processor ({cpu_capability()}) has no bfloat16 and emulates it: a convolution takes "
        f"{bfloat16_cost():.0f} times as long as in float32. trainer.precision=32-true is fast here"
    )

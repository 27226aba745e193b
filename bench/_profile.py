"""`python -m bench profile METHOD ...`: which operators a training step and a score spend their time in.

Each method is profiled at its small and at its full size by torch.profiler, on one thread in float32; the tables go
into docs/profiles.md, in the place of those of the same preset.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from adbench.evaluation.metrics import one_cpu_thread
from adbench.files import write_text
from bench._steps import Step, built, images

METHODS = ("cbigan", "igd", "pwae", "ssae", "esad")
PAGE = Path(__file__).parent.parent / "docs" / "profiles.md"
ROWS = 8  # operators of a table
FULL_BATCH = 2  # images of a batch at full size, where a step of the preset's own takes minutes
FULL_DATA = "data=mvtec/bottle"  # whose images have the size that the papers train on


def main(names: list[str]) -> int:
    """Profile methods at both sizes, or one preset, and write the page."""
    presets = [preset for name in names or METHODS for preset in ([name] if "/" in name else [f"{name}/small", name])]
    for preset in presets:
        if preset.split("/")[0] not in METHODS:
            print(f"error: no profile of {preset}; there are {', '.join(METHODS)}, each with /small", file=sys.stderr)
            return 1
    for preset in presets:
        text = section(preset)
        print(text, flush=True)
        write_text(PAGE, with_section(PAGE.read_text(encoding="utf-8"), preset, text))
    return 0


def section(preset: str) -> str:
    """The tables of one preset, as Markdown."""
    method, side, rows = built(preset) if "/" in preset else built(preset, FULL_DATA)
    rows = rows if "/" in preset else min(rows, FULL_BATCH if preset != "cbigan" else 8)
    image = images(rows, side)
    with one_cpu_thread():
        step = Step(method, image)
        trained = operators(step.round, 1)
        method.eval()
        with torch.no_grad():
            if preset.startswith("ssae"):
                method.ensure_calibrated([step.batch])
            one = images(1, side)
            scored = operators(lambda: method.score(one), 1)
    what = f"{rows} images of {side} px" + (f", tiles of {method.side} px" if preset.startswith("cbigan") else "")
    lines = [
        f"A training step ({what}): {_time(trained)}." + (" One step of each player." if step.cycle > 1 else ""), "",
        *table(trained), "", f"A score of one image: {_time(scored)}.", "", *table(scored),
    ]  # fmt: skip
    from bench.__main__ import capability

    return "\n".join([*lines, "", f"{capability()}, load {os.getloadavg()[0]:.1f}."])


def operators(work: Callable[[], Any], times: int) -> list[tuple[str, int, float]]:
    """Name, calls and milliseconds of every operator of a work, its callees left out, the longest first."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(times):
            work()
    found = [
        (event.key, event.count // times, event.self_cpu_time_total / 1e3 / times) for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda row: -row[2])


def table(found: list[tuple[str, int, float]]) -> list[str]:
    """The longest operators as Markdown, then all others together."""
    total = sum(milliseconds for _, _, milliseconds in found)
    rest = found[ROWS:]
    rows = [*found[:ROWS], (f"{len(rest)} others", sum(calls for _, calls, _ in rest), sum(ms for _, _, ms in rest))]
    lines = [f"| `{name}` | {calls} | {ms:,.1f} | {ms / total:.0%} |" for name, calls, ms in rows]
    return [
        "| operator | calls | ms | share |",
        "|---|---|---|---|",
        *[line.replace("`", "", 2) if "others`" in line else line for line in lines],
    ]


def _time(found: list[tuple[str, int, float]]) -> str:
    total = sum(milliseconds for _, _, milliseconds in found)
    return f"{total / 1e3:.2f} s" if total >= 1e3 else f"{total:.0f} ms"


def with_section(page: str, preset: str, text: str) -> str:
    """A page with the tables of one preset in place of those that it has, or behind the others."""
    begin, end = f"<!-- profile of {preset} -->", f"<!-- end of {preset} -->"
    part = f"{begin}\n\n## {preset}\n\n{text}\n\n{end}"
    if begin in page:
        return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: part, page, flags=re.DOTALL)
    return f"{page.rstrip()}\n\n{part}\n"

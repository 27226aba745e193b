"""`make bench`: every measurement of this folder, printed, stored in bench.json and written into docs/speed.md.

    python -m bench [NAME ...] [SIZE=NUMBER ...]
    python -m bench --page                  the page alone, from what bench.json holds
    python -m bench profile [METHOD ...]    operators by time, into docs/profiles.md: see bench/_profile.py

Each module here has `measure() -> list of {name, value, unit, baseline, ratio, note}`: what is measured and what it is
compared with run side by side, in one process or in turns, because machines drift. A `measure` may take sizes as
arguments, such as `images=100000`; its defaults are the sizes that the docs speak of. A row may have `before`, its
ratio before a change that it is the measure of. To each row come `capability`, the vector instructions of the
processor, and `load`, the machine's when the measurement began, in processes that want to run. A row of another
capability stays beside it: figures of different processors are not compared, and none takes the place of another's.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from adbench.files import write_json, write_text

HERE = Path(__file__).parent
ROWS, PAGE = HERE.parent / "bench.json", HERE.parent / "docs" / "speed.md"
BEGIN, END = "<!-- rows of bench.json: python -m bench --page -->", "<!-- end of the rows -->"


def main(names: list[str]) -> int:
    if names[:1] == ["profile"]:
        return int(importlib.import_module("bench._profile").main(names[1:]))
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    sizes = {word.partition("=")[0]: int(word.partition("=")[2]) for word in names if "=" in word}
    names = [word for word in names if "=" not in word]
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    if names == ["--page"]:
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), rows))
        return 0
    unknown = set(names) - set(known)
    if unknown:
        print(f"error: no bench named {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 1
    for name in names or known:
        print(f"{name}:", flush=True)
        measured = importlib.import_module(f"bench.{name}")
        machine = {"capability": capability(), "load": round(os.getloadavg()[0], 1)}
        takes = inspect.signature(measured.measure).parameters
        found = [row | machine for row in measured.measure(**{k: v for k, v in sizes.items() if k in takes})]
        for row in found:
            ratio = "" if row.get("ratio") is None else f"  ({row['ratio']:.3g} x: {row['baseline']})"
            print(f"  {row['name']}: {row['value']:.4g} {row['unit']}{ratio}  {row['note']}", flush=True)
        rows = merged(rows, found)
        write_json(ROWS, rows)  # after each, so that a long session loses nothing
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), rows))
    return 0


def capability() -> str:
    """The processor's, as in metrics.json."""
    from adbench.experiment.precision import cpu_capability

    return cpu_capability()


def merged(rows: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with new ones in the place of those of the same name, unless these are of another processor."""
    key = lambda row: (row["name"], row.get("capability"))  # noqa: E731
    latest, names = {key(row): row for row in found}, {row["name"] for row in found}
    of_before = [row for row in rows if "capability" not in row and row["name"] in names]  # it was recorded
    kept = [latest.pop(key(row), row) for row in rows if row not in of_before]
    return [*kept, *latest.values()]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| what | here | compared with | ratio | before | processor | load | how |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["name"], f"{_number(row['value'])} {row['unit']}", _number(row.get("baseline")),
            _number(row.get("ratio")), _number(row.get("before")), row.get("capability") or "not recorded",
            _number(row.get("load")), row["note"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_table(text: str, rows: list[dict[str, Any]]) -> str:
    """A page with the table between its two marks.

    Raises:
        ValueError: it lacks them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

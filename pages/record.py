"""`python -m pages.record RESULTS --series NAME`: put finished runs into docs/results/runs.csv, one row a run.

They take the place of earlier rows of the same figures. `python -m pages` then writes the tables anew.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adbench.files import whole
from adbench.report.collect import tidy
from adbench.report.contents import gather
from pages.results import KEY, RUNS

Line = dict[str, str]


def line_of(row: Mapping[str, Any], series: str, columns: list[str]) -> Line:
    """A run of a report's table as a row of runs.csv."""
    text = {key: "" if value is None else str(value) for key, value in row.items()}
    text |= {"series": series, "source": "run", "runs": "1", "commit": text["commit"][:10]}
    parts = text["changed"].split(", ")  # the precision has a column of its own
    text["changed"] = ", ".join(part for part in parts if not part.startswith("trainer.precision="))
    if row.get("modified"):
        text["commit"] += "+"
    for key, value in row.items():
        if isinstance(value, float) and key.rsplit("/", 1)[-1].startswith(("image_", "pixel_")):
            text[key] = f"{value:.6f}"
    return {column: text.get(column, "") for column in columns}


def merged(old: list[Line], new: list[Line]) -> list[Line]:
    """The rows with new ones in the places of those of the same figures, the others at the end."""
    key = {tuple(line[k] for k in KEY) for line in new}
    waiting: dict[tuple[str, ...], list[Line]] = {}
    for line in sorted(new, key=lambda line: int(line["seed"])):
        waiting.setdefault(tuple(line[k] for k in KEY), []).append(line)
    rows: list[Line] = []
    for line in old:
        place = tuple(line[k] for k in KEY)
        rows += waiting.pop(place, []) if place in key else [line]
    return [*rows, *(line for lines in waiting.values() for line in lines)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pages.record", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder with runs")
    parser.add_argument("--series", required=True, metavar="NAME", help="the table that they belong to")
    parser.add_argument("--method", nargs="*", metavar="NAME", help="these methods alone")
    parser.add_argument("--file", type=Path, default=RUNS, metavar="FILE", help="default: docs/results/runs.csv")
    options = parser.parse_args(arguments)
    with options.file.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        old, columns = list(reader), list(reader.fieldnames or ())
    runs = [run for run in gather(options.results, options.results / "report").runs if run.counts_in_tables]
    rows = [row for row in tidy(runs) if not options.method or row["method"] in options.method]
    if not rows:
        print(f"error: {options.results} holds no finished run to record", file=sys.stderr)
        return 1
    new = [line_of(row, options.series, columns) for row in rows]
    with whole(options.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged(old, new))
    print(f"{len(new)} runs -> {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m adbench.report RESULTS`: a report of finished runs. Trains nothing and needs no GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adbench.errors import command

MANY = 60  # items of work that deserve a progress bar


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    command = argparse.ArgumentParser(
        prog="python -m adbench.report", description="Report on the runs below a results folder."
    )
    command.add_argument("results", type=Path, metavar="RESULTS", help="folder with runs, e.g. results/")
    command.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: RESULTS/report)")
    command.add_argument(
        "--pictures", type=int, default=40, metavar="N", help="runs whose test images the page shows (default: 40)"
    )
    command.add_argument(
        "--wandb", metavar="PROJECT", help="also make a workspace and a report in this W&B project (ENTITY/PROJECT)"
    )
    return command


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    results, out = options.results, options.out or options.results / "report"
    if not results.is_dir():
        return _error(
            f"{results} is no folder; give the folder that `python -m adbench.run` writes to, usually results/"
        )
    if options.pictures < 0:
        return _error(f"--pictures must be at least 0, got {options.pictures}")
    if out.exists() and not out.is_dir():
        return _error(f"--out {out} is a file; give a folder")

    from adbench.files import write_text
    from adbench.report import contents as report
    from adbench.report import page, text

    contents = report.gather(results, out, _progress("reading runs"))
    if not contents.runs:
        skipped = "".join(f"\n  {folder}: {reason}" for folder, reason in contents.skipped[:10])
        return _error(
            f"{results} holds no runs; make some with `python -m adbench.run -m ... results={results}`{skipped}"
        )
    messages = text.write_runs(contents, out)
    charts = text.write_charts(contents, out)
    write_text(out / "report.md", text.markdown(contents, charts))
    write_text(out / "tables.tex", text.latex(contents))
    write_text(out / "report.html", page.html(contents, options.pictures, _progress("drawing")))
    for folder, reason in contents.skipped:
        print(f"skipped {folder}: {reason}", file=sys.stderr)
    for message in messages:
        print(message, file=sys.stderr)
    print(f"{text.summary_line(contents)} -> {out / 'report.html'}")
    if options.wandb:
        from adbench.report import workspace

        return workspace.publish(contents, options.wandb)
    return 0


def _progress(what: str) -> Any:
    def bar(items: list[Any]) -> Iterable[Any]:
        if len(items) < MANY:
            return items
        from tqdm import tqdm

        return tqdm(items, desc=what, disable=None, leave=False)  # silent where stderr is no terminal

    return bar


def _error(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""`python -m adbench.reproduce PAPER`: a paper's tables on the data in reach, then the report."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from adbench import run
from adbench.errors import command as ends_in_one_line
from adbench.experiment.build import build
from adbench.experiment.groups import choices, conf_dir
from adbench.experiment.values import as_mapping
from adbench.types import UserError


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    papers = sorted({name.split("/")[0] for name in choices("experiment") if "/table" in name})
    parser = argparse.ArgumentParser(prog="python -m adbench.reproduce", description=__doc__)
    parser.add_argument("paper", choices=papers)
    parser.add_argument("--budget", choices=["quick", "paper"], default="quick")
    parser.add_argument("--runs", default=None, help="at most so many runs a table, or all; 12 at the quick budget")
    parser.add_argument("--dry-run", action="store_true",
                        help="list the runs and what they cost on this machine; nothing is written")  # fmt: skip
    parser.add_argument("overrides", nargs="*", help="for every run, such as trainer=gpu hydra/launcher=joblib")
    asked = parser.parse_intermixed_args(arguments)
    quick = asked.budget == "quick"
    runs = asked.runs or ("12" if quick else "all")
    if runs != "all" and not (runs.isdigit() and int(runs)):
        parser.error(f"--runs is a number from 1, or all; got {runs}")

    try:
        lines = commands(asked.paper, quick, asked.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in lines.values():
        line += [f"hydra.sweeper.at_most={runs}"] if runs != "all" else []
    if asked.dry_run and lines:
        return _dry_run(lines)
    codes = []
    for table, line in lines.items():
        print(f"{table}: python -m adbench.run {' '.join(line)}", flush=True)
        codes.append(run.main(line))
    if not codes:
        print(f"no table of {asked.paper} could be run: set ADBENCH_DATA to where the data are")
        return 1
    if importlib.util.find_spec("adbench.report.__main__") is not None:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            results = loader.load_configuration("config", asked.overrides, run_mode=RunMode.MULTIRUN).results
        report = subprocess.run([sys.executable, "-m", "adbench.report", str(results)], check=False)  # noqa: S603
        codes.append(report.returncode)
    if quick:
        print(f"The published length: make reproduce PAPER={asked.paper} BUDGET=paper")
        print("(with ARGS=--dry-run it says what that costs here)")
    return next((code for code in codes if code), 0)


def _dry_run(lines: dict[str, list[str]]) -> int:
    """Print the jobs and costs of each table, and of all; a run of two tables counts once."""
    from adbench.experiment import dry_run as dry

    plan, total, codes = dry.Plan(), dry.Total(), []
    for table, line in lines.items():
        print(f"{table}: python -m adbench.run {' '.join(line)}", flush=True)
        try:
            codes.append(run.dry_run(line, plan, total))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            codes.append(1)
    print("\n".join([f"all tables: {total.jobs} runs", *dry.sums_in_words(total, plan)]))
    return max(codes)


def commands(paper: str, quick: bool, overrides: list[str]) -> dict[str, list[str]]:
    """The arguments of the run command for each of a paper's tables that has data in reach; what has none is said.

    Raises:
        UserError: an override is wrong.
    """
    reach: dict[str, str | None] = {}
    tables = [name for name in choices("experiment") if name.startswith(f"{paper}/table")]
    found = {table: command(table, quick, reach, overrides) for table in tables}
    for line in [line for line in found.values() if line is not None]:
        run.checked(line)
    missing = {name: reason for name, reason in reach.items() if reason is not None}
    if missing:
        example = next(iter(missing))
        print(
            f"not in reach, and skipped: {_shortened(missing)} (data={example}: {missing[example][:100].rstrip()}...). "
            "data_root=DIR or ADBENCH_DATA says where data are"
        )
    nothing = [table for table, line in found.items() if line is None]
    if nothing:
        print(f"none of their data is in reach, and skipped: {', '.join(nothing)}")
    return {table: line for table, line in found.items() if line is not None}


def _shortened(names: Iterable[str]) -> str:
    """`mvtec/{cable,pill}, cifar10`: names of a folder together."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
    return ", ".join(
        f"{folder}/{{{','.join(inside)}}}"
        if folder and len(inside) > 1
        else ", ".join(f"{folder}/{one}" if folder else one for one in inside)
        for folder, inside in folders.items()
    )


def command(table: str, quick: bool, reach: dict[str, str | None], overrides: list[str]) -> list[str] | None:
    """The arguments of the run command for a table on the data in reach, None if there is none.

    Args:
        table: an experiment's name.
        quick: take the methods' CPU presets, one seed, and no ImageNet weights.
        reach: data set -> None, or why it cannot be had; filled as data sets are looked for.
        overrides: of the user, for every run.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("config", [f"experiment={table}"], run_mode=RunMode.MULTIRUN)
        choices = cfg.hydra.runtime.choices
        swept = as_mapping(cfg.hydra.sweeper, resolve=False).get("params") or {}
        data = _values(swept.get("data", choices["data"]))
        for name in data:
            if name not in reach:
                reach[name] = _missing(loader, name)
    found = [name for name in data if reach[name] is None]
    if not found:
        return None
    line = ["-m", f"experiment={table}", f"data={','.join(found)}"]
    if quick:
        methods = [small(name) for name in _values(swept.get("method", choices["method"]))]
        pretrainings = _values(swept.get("pretraining", choices["pretraining"]))
        pretrainings = ["none" if "imagenet" in name else name for name in pretrainings]
        line += ["budget=quick", f"method={_joined(methods)}", f"pretraining={_joined(pretrainings)}"]
        line += ["seed=0"] if "seed" in swept else []
    return [*line, *overrides]


def small(method: str) -> str:
    """The CPU preset of a method or variant, itself if it has none."""
    names = choices("method")
    return next((name for name in (f"{method}_small", f"{method}/small") if name in names), method)


def _values(choice: str) -> list[str]:
    return [value.strip() for value in str(choice).split(",")]


def _joined(values: list[str]) -> str:
    return ",".join(dict.fromkeys(values))


def _missing(loader: Any, name: str) -> str | None:
    """Why a data set cannot be had, in one line; None if it can."""
    cfg = loader.load_configuration("config", [f"data={name}"], run_mode=RunMode.RUN)
    try:
        len(build(cfg.data.source).records)
    except UserError as error:
        return " ".join(str(error).split())
    return None


if __name__ == "__main__":
    sys.exit(main())

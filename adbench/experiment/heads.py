"""The lines in the heads of experiment files that say how many runs there are and how long they train.

    python -m adbench.experiment.heads            writes them anew from what the files compose to
    python -m adbench.experiment.heads --check    names the files whose lines are out of date; nothing is written

They begin with `# Runs:` and end with `# Cost:`. What stands around them is prose and stays as it is; a file without a
line `# Runs:` gets none.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from adbench.experiment import identity  # noqa: F401  (its resolvers, which configurations use)
from adbench.experiment.groups import choices, conf_dir
from adbench.experiment.values import as_mapping
from adbench.files import write_text

BLOCK = re.compile(r"^# Runs:.*\n(?:# Length at .*\n(?:#     .*\n)*)*(?:# Cost: .*\n)?", re.M)
COST = "# Cost: with --dry-run the command measures it on your machine."
WIDTH = 118
AXES = {"method": "methods", "data": "data sets", "seed": "seeds", "protocol": "protocols", "cell": "cells",
        "pretraining": "pretrainings", "data.normal_class": "classes"}  # fmt: skip


@cache
def loader() -> Any:
    """What composes, of this package's own tree."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@cache
def _composed(words: tuple[str, ...], mode: RunMode) -> DictConfig:
    return loader().load_configuration("config", list(words), run_mode=mode)


def swept(name: str, extra: Sequence[str] = ()) -> dict[str, list[str]]:
    """The values of each key that an experiment sweeps, those of the command line included."""
    shared = _composed((f"experiment={name}", *extra), RunMode.MULTIRUN)
    params = as_mapping(shared.hydra.sweeper, resolve=False).get("params") or {}
    params |= dict(word.split("=", 1) for word in extra)
    parser = OverridesParser.create(config_loader=loader())
    found = {}
    for key, value in params.items():
        override = parser.parse_overrides([f"{key}={value}"])[0]
        found[key] = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(value)]
    return found


def jobs(name: str, extra: Sequence[str] = ()) -> list[list[str]]:
    """The overrides of each of an experiment's runs."""
    shared = _composed((f"experiment={name}", *extra), RunMode.MULTIRUN)
    params = as_mapping(shared.hydra.sweeper, resolve=False).get("params") or {}
    words = [f"{key}={value}" for key, value in params.items()] + [f"experiment={name}", *extra]
    parsed = OverridesParser.create(config_loader=loader()).parse_overrides(words)
    return [list(one) for one in BasicSweeper.split_arguments(parsed, None)[0]]


def _kind(data: str) -> str:
    values = OmegaConf.to_container(_composed((f"data={data}",), RunMode.RUN).data, resolve=False)
    assert isinstance(values, dict)
    return str(values["kind"])


def _different(name: str, extra: Sequence[str]) -> Iterator[list[str]]:
    """Of an experiment's runs one for each method, kind of data, protocol and pretraining."""
    seen = set()
    for job in jobs(name, extra):
        chosen = dict(word.split("=", 1) for word in job)
        key = tuple(chosen.get(group) for group in ("method", "protocol", "pretraining"))
        kind = _kind(chosen["data"]) if "data" in chosen else None
        if (key, kind) not in seen:
            seen.add((key, kind))
            yield job


def _length(cfg: DictConfig) -> str:
    """How long a run trains, in words."""
    budget, size = cfg.budget, cfg.data.batch_size
    if budget.max_batches == 0:
        return "no training steps"
    if budget.max_batches is not None:
        trained = f"{budget.max_batches:,} batches of {size}"
    else:
        trained = f"{budget.max_epochs:,} epochs in batches of {size}"
    before = as_mapping(cfg.pretraining)
    most = budget.pretraining_batches
    if "iterations" in before:
        length = f"{min(before['iterations'], most or before['iterations']):,} batches"
        return f"{trained}, after {length} of {cfg.pretraining.id}"
    if "epochs" in before:
        length = f"at most {most:,} batches" if most else f"{before['epochs']:,} epochs"
        return f"{trained}, after {length} of {cfg.pretraining.id}"
    return trained


def lengths(name: str, extra: Sequence[str] = ()) -> list[str]:
    """The line about the lengths of an experiment's runs, wrapped.

    Args:
        name: of the experiment.
        extra: further words of the command line.
    """
    found: dict[str, dict[str, set[str]]] = {}  # length -> method -> kinds of data
    budget = ""
    for job in _different(name, extra):
        cfg = _composed(tuple(job), RunMode.RUN)
        budget, method = str(cfg.budget.name), str(cfg.hydra.runtime.choices["method"])
        found.setdefault(_length(cfg), {}).setdefault(method, set()).add(str(cfg.data.kind))
    everywhere: dict[str, set[str]] = {}
    for methods in found.values():
        for method, kinds in methods.items():
            everywhere[method] = everywhere.get(method, set()) | kinds
    parts = []
    for length, methods in found.items():
        one_length = [m for m, kinds in methods.items() if kinds == everywhere[m]]
        names = [m if m in one_length else f"{m} on {' and '.join(sorted(methods[m]))}" for m in methods]
        told_apart = len(found) > 1 and (len(everywhere) > 1 or names != list(methods))
        parts.append(length + (f" ({', '.join(names)})" if told_apart else ""))
    text = f"Length at budget={budget}: {'; '.join(parts)}"
    return [f"# {line}" for line in wrap(text, WIDTH - 2, subsequent_indent="    ", break_on_hyphens=False)]


def block(name: str, text: str) -> str:
    """The generated lines of an experiment's head.

    Args:
        name: of the experiment.
        text: of its file, whose first command with `budget=quick` is described too.
    """
    axes = {key: len(values) for key, values in swept(name).items() if len(values) > 1}
    product = " x ".join(f"{count} {AXES.get(key, f'values of {key}')}" for key, count in axes.items())
    lines = [f"# Runs: {product} = {len(jobs(name)):,}", *lengths(name)]
    commands = re.findall(r"^#\s+python -m adbench\.run (.*)$", text.replace("\\\n#", " "), re.M)
    quick = [re.split(r"\s{4,}", line)[0].split() for line in commands if "budget=quick" in line]
    if quick:
        words = [word for word in quick[0] if "=" in word and not word.startswith(("experiment=", "-"))]
        lines += lengths(name, [word for word in words if not word.startswith("trainer")])
    return "\n".join([*lines, COST]) + "\n"


def rewritten(name: str, text: str) -> str:
    """A file's text with its generated lines made anew; of values that go together (`axes`) a file tells by itself."""
    if "\n    axes:\n" in text:
        return text
    return BLOCK.sub(lambda _: block(name, text), text, count=1)


def files() -> dict[str, Path]:
    """The experiment files of this package by name."""
    return {name: conf_dir() / "experiment" / f"{name}.yaml" for name in choices("experiment")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    check = "--check" in (sys.argv[1:] if arguments is None else arguments)
    stale = 0
    for name, path in files().items():
        if not path.is_file():  # of a plug-in
            continue
        text = path.read_text(encoding="utf-8")
        new = rewritten(name, text)
        if new != text:
            stale += 1
            print(f"{path}: {'is out of date' if check else 'written'}")
            if not check:
                write_text(path, new)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())

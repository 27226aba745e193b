"""Run folders -> runs: what is read, what is skipped and why, and which runs belong together."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from adbench.experiment.codehash import code_of, targets_of

COUNTS = ("train", "holdout", "test_normal", "test_anomalous", "parameters")
TRIVIAL = ("brightness", "pca", "nearest_neighbour")
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Files that only a run leaves: a folder that holds one of them and no metrics.json is worth a word.
TRACES = {"scores.csv", "calibration.csv", "split.json", ".lock"}
HELD_OUT = 0.05  # the protocols' default share, for runs that do not tell theirs
PROTOCOLS = {  # ours -> the values that tell a run's protocol from another's
    "one_class": (),
    "small_train": ("fraction",),
    "contaminated": ("ratio",),
    "semi_supervised": ("labelled_ratio", "labelled_classes", "pollution_ratio", "labelled_normal_ratio"),
}
IDENTITY = ("data.id", "data.name", "data.file", "data.root", "data.list", "data.normal_class", "data.source.")


@cache
def mapping() -> dict[str, Any]:
    """mapping.yaml: what runs are called in the published tables."""
    return yaml.load(resources.files(__package__).joinpath("mapping.yaml").read_text(encoding="utf-8"), Loader)  # noqa: S506


class Rows(NamedTuple):
    """What a report needs of scores.csv: one entry per test row."""

    label: NDArray[np.int8]
    score: NDArray[np.float64]


class Variant(NamedTuple):
    """Everything that runs share which differ in data and seed only."""

    method: str
    pretraining: str
    protocol: tuple[tuple[str, Any], ...]  # ("protocol", name) and the values that define it
    budget: str  # "paper", "quick", "quick, 400 batches", ...
    changed: tuple[tuple[str, str], ...]  # other values that differ from the files' defaults, as JSON
    holdout: float = HELD_OUT  # share of the normal training rows that was kept from training

    @property
    def label(self) -> str:
        """Method and pretraining, and what else was changed."""
        name = self.method if self.pretraining == "none" else f"{self.method} + {self.pretraining}"
        return name + (f" [{self.changes}]" if self.changed else "")

    @property
    def changes(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.changed)

    @property
    def protocol_label(self) -> str:
        (_, name), *values = self.protocol
        return " ".join([name, *(f"{key}={plain(value)}" for key, value in values)])

    @property
    def held_out(self) -> str:
        return f"{100 * self.holdout:g} %"


@dataclass
class Run:
    """One run folder. `metrics` are fractions or None; `rows` is None where scores.csv cannot be used."""

    path: Path
    folder: str  # relative to the results folder
    record: Mapping[str, Any]
    data: str
    variant: Variant
    experiment: str  # data id and, where named, the labelled classes
    metrics: dict[str, float | None]
    rows: Rows | None = None
    notes: list[str] = field(default_factory=list)
    stale: bool = False  # the code behind it is other than the code here
    areas: NDArray[np.float64] | None = None  # bootstrapped image AUROCs
    interval: tuple[float, float] | None = None

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def threshold(self) -> float | None:
        value = (self.record.get("threshold") or {}).get("value")
        return number(value)

    @property
    def counts_in_tables(self) -> bool:
        """A smoke run shows that a thing runs, not how well."""
        return self.status == "finished" and not self.variant.budget.startswith("smoke")


class Skipped(NamedTuple):
    folder: str
    reason: str


class NotARun(Exception):
    """The folder is foreign or torn; says why."""


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (a missing number is never made up)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def plain(value: Any) -> str:
    """A protocol's value for people: 0.1, Infiltration."""
    return str(value) if isinstance(value, bool | str) else f"{value:g}"


def _whole(value: Any) -> int | None:
    value = number(value)
    return None if value is None else int(value)


def folders(results: Path, ours: Path) -> Iterator[tuple[Path, bool]]:
    """Every folder below `results` that is a run or has traces of one, and whether it has a metrics.json."""
    for here, below, files in os.walk(results):
        path = Path(here)
        if path.resolve() == ours.resolve():
            below.clear()
        elif "metrics.json" in files:
            below.clear()
            yield path, True
        elif TRACES & set(files):
            below.clear()
            yield path, False
        below.sort()


def read_run(path: Path, results: Path) -> Run:
    """Read one folder.

    Raises:
        NotARun: metrics.json is absent, torn, or not this program's.
    """
    try:
        record = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotARun("no metrics.json: the run was killed before it began, or the folder was copied in part") from None
    except (OSError, ValueError) as error:
        raise NotARun(f"metrics.json cannot be read: {error}") from None
    _check(record)
    notes: list[str] = []
    config = _config(path, notes)
    folder = path.relative_to(results).as_posix()
    data = str(_at(config, "data", "id") or _data_from(folder, record))
    metrics = {str(key): number(value) for key, value in record["metrics"].items()}
    run = Run(path, folder, record, data, variant_of(record, config, data), data, metrics, notes=notes)
    behind = targets_of(*(_at(config, group) for group in ("method", "pretraining", "protocol")))
    run.stale = record.get("code") is not None and bool(behind) and record["code"] != code_of(behind)
    known = _at(config, "protocol", "labelled_classes")
    if isinstance(known, list) and "labelled_classes" in dict(run.variant.protocol):
        run.experiment = f"{data} knowing {', '.join(map(str, known))}"
    if run.status == "finished":
        if run.stale:
            notes.append("stale: the code has changed since; overwrite=stale trains such runs anew")
        try:
            run.rows = read_rows(path / "scores.csv")
        except (OSError, ValueError, KeyError, csv.Error) as error:
            notes.append(f"scores.csv cannot be used: {error}")
    return run


def _check(record: Any) -> None:
    if not isinstance(record, dict):
        raise NotARun("metrics.json holds no run: expected an object with method, data, seed and status")
    kinds = {
        "method": str,
        "data": str,
        "protocol": str,
        "pretraining": str,
        "seed": int,
        "status": str,
        "metrics": dict,
    }
    wrong = [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    if wrong:
        raise NotARun(f"metrics.json holds no run: {', '.join(wrong)} missing or of the wrong kind")
    for key in ("changed", "budget", "threshold", "counts", "time", "git", "versions", "hardware"):
        if record.get(key) is not None and not isinstance(record[key], dict):
            raise NotARun(f"metrics.json holds no run: {key} is not an object")


def _config(path: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        config = yaml.load((path / ".hydra" / "config.yaml").read_text(encoding="utf-8"), Loader)  # noqa: S506 - safe
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f".hydra/config.yaml cannot be read: {' '.join(str(error).split())}")
        return {}
    return config if isinstance(config, dict) else {}


def _at(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _data_from(folder: str, record: Mapping[str, Any]) -> str:
    """The data id by the folder's name, `<method>/<data...>/<protocol>/<pretraining>/seed<k>`."""
    parts = folder.split("/")
    return "/".join(parts[1:-3]) if len(parts) >= 5 else record["data"]


def variant_of(record: Mapping[str, Any], config: Mapping[str, Any], data: str) -> Variant:
    """What a run has in common with those that differ in data and seed only."""
    method, changed = record["method"], dict(record.get("changed") or {})
    for layout in mapping()["layouts"]:
        its_own = layout.get("changed", {})
        if (layout["method"], layout["data"]) == (method, data) and its_own.items() <= changed.items():
            method = layout["is"]
            changed = {key: value for key, value in changed.items() if key not in its_own}
            break
    kept = {
        key: json.dumps(value, sort_keys=True)
        for key, value in changed.items()
        if not key.startswith(("budget.", "protocol.", *IDENTITY))
    }
    images = (_at(config, "pretraining") or {}).get("images", "")
    if record["pretraining"] == "imagenet_kd" and images in (None, "own"):
        kept["pretraining.images"] = '"own"'  # a departure, though no value was changed
    stored = _at(config, "protocol")
    values = {key[9:]: value for key, value in changed.items() if key.startswith("protocol.")}
    values |= stored if isinstance(stored, Mapping) else {}
    if values.get("duplicates") in ("warn", "refuse"):  # which train on the same rows
        del values["duplicates"]
    return Variant(
        method=method,
        pretraining=record["pretraining"],
        protocol=protocol_of(record["protocol"], values),
        budget=_budget(record, config, changed),
        changed=tuple(sorted(kept.items())),
        holdout=_holdout(record, values),
    )


def _holdout(record: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    """The share of the normal training rows that a run kept from training."""
    share = number(values.get("holdout"))
    if share is None:
        counts = record.get("counts") or {}
        rows = number(counts.get("holdout"))
        if isinstance(values.get("holdout"), str) and rows and (train := number(counts.get("train"))):
            return round(rows / (rows + train), 3)
        share = 0.0 if rows == 0 else HELD_OUT
    return share


def protocol_of(name: str, values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A protocol by what it does.

    The limits of ours (all rows, no contamination, no labels) are `one_class`. Of a protocol from elsewhere, whose
    limits nobody knows here, every value but the share held out is part of what it is.
    """
    target = str(values.get("_target_") or "adbench.data.protocols.")
    ours = PROTOCOLS.get(name) if target.startswith("adbench.data.protocols.") else None
    found = (("protocol", name),) if ours is None else _own_protocol(name, values)
    others = {
        key: value if isinstance(value, str) or number(value) is not None else json.dumps(value, sort_keys=True)
        for key, value in values.items()
        if key not in ("id", "holdout", "_target_", "_partial_", *(ours or ()))
    }
    if others and found[0][1] != name:  # a limit of ours with a value more is no limit
        found = (("protocol", name),)
    return (*found, *sorted(others.items()))


def _own_protocol(name: str, values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    known = values.get("labelled_classes", 1)
    given = {
        key: number(values.get(key)) or 0.0
        for key in ("ratio", "labelled_ratio", "pollution_ratio", "labelled_normal_ratio")
    }
    fraction = number(values.get("fraction"))
    if name == "small_train" and fraction is not None and fraction < 1:
        return ("protocol", name), ("fraction", fraction)
    if name == "contaminated" and given["ratio"]:
        return ("protocol", name), ("ratio", given["ratio"])
    if name == "semi_supervised":
        labelled = given["labelled_ratio"] > 0 and known != 0
        kept = {"labelled_ratio": given["labelled_ratio"] * labelled}
        kept["labelled_classes"] = (len(known) if isinstance(known, list) else known) if labelled else 0
        kept |= {key: given[key] for key in ("pollution_ratio", "labelled_normal_ratio")}
        kept = {key: value for key, value in kept.items() if value}
        if kept:
            return ("protocol", name), *kept.items()
    if name in ("one_class", "semi_supervised") or (values and name in ("small_train", "contaminated")):
        return (("protocol", "one_class"),)
    return (("protocol", name),)


def _budget(record: Mapping[str, Any], config: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """The budget's name, and the length where it is not the one that the name promises."""
    name = str((record.get("budget") or {}).get("name") or _at(config, "budget", "name") or "unknown")
    keys = ("max_batches", "max_epochs")
    ours = {key: _at(config, "budget", key) for key in keys}
    recipe = _at(config, "method", "recipe", "budget", name)
    if not isinstance(recipe, Mapping) or all(ours[key] == recipe.get(key) for key in keys) or name == "smoke":
        return name
    length = next((f"{ours[key]} {key[4:]}" for key in keys if ours[key] is not None), "no length")
    return f"{name}, {length}"


def read_rows(path: Path) -> Rows:
    """scores.csv. A line that is no row, or a score that is no number, makes the file unusable."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if not {"path", "label", "defect", "score"} <= set(header):
            raise ValueError(f"its header is {','.join(header)[:80]!r}, not index,path,label,defect,score")
        lines = list(reader)
    if any(len(line) != len(header) for line in lines):
        raise ValueError("a line is torn")
    at_score, at_label = header.index("score"), header.index("label")
    score = np.array([line[at_score] for line in lines], dtype=np.float64)
    label = np.array([line[at_label] for line in lines], dtype=np.int8)
    if np.isnan(score).any() or not np.isin(label, (0, 1)).all():
        raise ValueError("a score is NaN or a label is neither 0 nor 1")
    return Rows(label, score)


# -- the tidy table -----------------------------------------------------------------------------------------------


def tidy(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One flat row per run, every status, the same columns in each."""
    runs = list(runs)
    names = sorted({name for run in runs for name in run.metrics}, key=lambda name: ("/" in name, name))
    table = []
    for run in runs:
        record = run.record
        budget, counts, time = (record.get(key) or {} for key in ("budget", "counts", "time"))
        low, high = run.interval or (None, None)
        table.append({
            "folder": run.folder, "method": record["method"], "data": run.data, "protocol": run.variant.protocol_label,
            "pretraining": record["pretraining"], "seed": run.seed, "status": run.status,
            "error": record.get("error"), "notes": "; ".join(run.notes) or None,
            "budget": run.variant.budget, "batches": _whole(budget.get("batches")),
            "batch_size": _whole(budget.get("batch_size")),
            "selection": record.get("selection"), "stale": run.stale, "changed": run.variant.changes or None,
            **{name: run.metrics.get(name) for name in names},
            "image_auroc_low": low, "image_auroc_high": high, "threshold": run.threshold,
            **{key: _whole(counts.get(key)) for key in COUNTS},
            **{key: number(time.get(key)) for key in ("pretraining_s", "train_s", "test_s", "total_s")},
            "started": time.get("started"), "finished": time.get("finished"),
            "commit": (record.get("git") or {}).get("commit"), "config_hash": record.get("config_hash"),
        })  # fmt: skip
    return table


def by_variant(runs: Iterable[Run]) -> dict[Variant, dict[str, dict[int, Run]]]:
    """variant -> experiment -> seed -> run, of runs that count; of two for one place, the later one."""
    grouped: dict[Variant, dict[str, dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: str((run.record.get("time") or {}).get("finished"))):
        if run.counts_in_tables:
            grouped.setdefault(run.variant, {}).setdefault(run.experiment, {})[run.seed] = run
    return grouped

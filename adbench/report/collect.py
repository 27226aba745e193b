"""Run folders -> runs: what is read, what is skipped and why, and which runs belong together."""

from __future__ import annotations

import csv
import hashlib
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
REFERENCE = ("patchcore", "padim", "knn")  # detectors on pretrained features, their presets too
KIND_NAMES = {"": "", "reference": "reference", "trivial": "trivial baseline"}  # in the order of a table's rows
DAGGER = "†"  # behind the name of a method that is transductive
TRANSDUCTIVE = "transductive: the score of a row depends on the rows that were scored with it"
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Files that only a run leaves: a folder that holds one of them and no metrics.json is worth a word.
TRACES = {"scores.csv", "calibration.csv", "split.json", ".lock"}
FLOAT32 = "32-true"  # what runs train in that do not tell, unless they were asked for something else
HELD_OUT = 0.05  # the protocols' default share, for runs that do not tell theirs
PROTOCOLS = {  # ours -> the values that tell a run's protocol from another's
    "one_class": (),
    "small_train": ("fraction",),
    "contaminated": ("ratio",),
    "semi_supervised": ("labelled_ratio", "labelled_classes", "pollution_ratio", "labelled_normal_ratio", "anomalies"),
}
OWN_DATA = ("folder", "npz", "tabular", "dataset")  # groups whose name and contents are the user's
IDENTITY = ("data.id", "data.name", "data.file", "data.root", "data.list", "data.normal_class", "data.source.")


@cache
def mapping() -> dict[str, Any]:
    """mapping.yaml: what runs are called in the published tables."""
    return yaml.load(resources.files(__package__).joinpath("mapping.yaml").read_text(encoding="utf-8"), Loader)  # noqa: S506


def kind_of(method: str) -> str:
    """ "trivial", "reference", or "" for every other method."""
    if method in TRIVIAL:
        return "trivial"
    return "reference" if method.split("/")[0] in REFERENCE else ""


class Rows(NamedTuple):
    """What a report needs of scores.csv: one entry per test row."""

    label: NDArray[np.int8]  # (N,) 0 normal, 1 anomalous
    score: NDArray[np.float64]  # (N,) any range


class Variant(NamedTuple):
    """Everything that runs share which differ in data and seed only."""

    method: str
    pretraining: str
    protocol: tuple[tuple[str, Any], ...]  # ("protocol", name) and the values that define it
    budget: str  # "paper", "quick", "quick, 400 batches", ...
    changed: tuple[tuple[str, str], ...]  # other values that differ from the files' defaults, as JSON
    holdout: float = HELD_OUT  # share of the normal training rows that was kept from training
    holdout_rule: str = ""  # the word in place of a share: one rule keeps other shares of other numbers of rows
    transductive: bool = False  # the score of a row depends on the rows that were scored with it

    @property
    def kind(self) -> str:
        """See `kind_of`."""
        return kind_of(self.method)

    @property
    def kind_name(self) -> str:
        """What a row of this kind is called; empty for a method of a paper."""
        return KIND_NAMES[self.kind]

    @property
    def place(self) -> int:
        """Where its kind stands in a table: methods of papers, reference detectors, trivial baselines."""
        return list(KIND_NAMES).index(self.kind)

    @property
    def label(self) -> str:
        """Method, marked where it is transductive, and pretraining, and what else was changed."""
        name = self.method + (DAGGER if self.transductive else "")
        name = name if self.pretraining == "none" else f"{name} + {self.pretraining}"
        return name + (f" [{self.changes}]" if self.changed else "")

    @property
    def changes(self) -> str:
        """`key=value` of each value that differs from the files' defaults."""
        return ", ".join(f"{key}={value}" for key, value in self.changed)

    @property
    def protocol_label(self) -> str:
        """Name and values of the protocol."""
        (_, name), *values = self.protocol
        return " ".join([name, *(f"{key}={plain(value)}" for key, value in values)])

    @property
    def held_out(self) -> str:
        """The share of the normal training rows that was kept from training, in percent, or the rule that chose it."""
        return self.holdout_rule or f"{100 * self.holdout:g} %"


class Weights(NamedTuple):
    """Pretrained weights that a run began with, as its metrics.json tells."""

    part: str  # the encoder that they were for, or the teacher
    name: str
    origin: str
    sha256: str

    @property
    def label(self) -> str:
        """Name, origin and the beginning of the hash."""
        return f"{self.name} ({self.origin}, sha256 {self.sha256[:12]})"


@dataclass
class Run:
    """One run folder. `metrics` are fractions or None; `rows` is None where scores.csv cannot be used."""

    path: Path
    folder: str  # relative to the results folder
    record: Mapping[str, Any]
    data: str
    variant: Variant
    experiment: str  # data id and, where named, the labelled classes
    place: str  # where the data lay, "" where the run does not tell
    metrics: dict[str, float | None]
    rows: Rows | None = None
    notes: list[str] = field(default_factory=list)
    stale: bool = False  # the code behind it is other than the code here
    precision: str | None = None  # of the training, as in trainer.precision
    seeded: bool = False  # whether the seed chooses which of the data are test rows
    areas: NDArray[np.float64] | None = None  # (draws,) bootstrapped image AUROCs
    interval: tuple[float, float] | None = None  # 95 % of them lie in it

    @property
    def seed(self) -> int:
        """Of weights, batches and augmentation."""
        return self.record["seed"]

    @property
    def status(self) -> str:
        """finished, failed, interrupted or running."""
        return self.record["status"]

    @property
    def weights(self) -> list[Weights]:
        """What it began with; empty without pretrained weights and for runs that do not tell."""
        stored = self.record.get("pretraining_weights")
        return [
            Weights(str(part), *(str(used.get(key, "–")) for key in ("name", "origin", "sha256")))
            for part, used in (stored.items() if isinstance(stored, dict) else ())
            if isinstance(used, dict)
        ]

    @property
    def fingerprint(self) -> str:
        """Of its data's contents; "" for runs that do not tell."""
        return str(self.record.get("data_fingerprint") or "")

    @property
    def capability(self) -> str | None:
        """The vector instructions of its processor; None for runs that do not tell."""
        return (self.record.get("hardware") or {}).get("cpu_capability")

    @property
    def threshold(self) -> float | None:
        """The score above which the run calls a row anomalous; None where it has none."""
        value = (self.record.get("threshold") or {}).get("value")
        return number(value)

    @property
    def counts_in_tables(self) -> bool:
        """A smoke run shows that a thing runs, not how well."""
        return self.status == "finished" and not self.variant.budget.startswith("smoke")


class Skipped(NamedTuple):
    """A folder that is no run, and why it is none."""

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


def printable(value: Any) -> Any:
    """A text, or plain values with texts in them, that UTF-8 can hold.

    The names of files need not be text, and JSON can escape half a character.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {printable(key): printable(part) for key, part in value.items()}
    return [printable(part) for part in value] if isinstance(value, list) else value


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


def read_run(path: Path, results: Path, codes: dict[frozenset[str], str] | None = None) -> Run:
    """Read one folder.

    Args:
        path, results: the folder, and the results folder that it is in.
        codes: hashes of the code behind runs as it is here, by its targets: what thousands of runs share.

    Raises:
        NotARun: metrics.json is absent, torn, or not this program's.
    """
    try:
        record = printable(json.loads((path / "metrics.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotARun("no metrics.json: the run was killed before it began, or the folder was copied in part") from None
    except (OSError, ValueError) as error:
        raise NotARun(f"metrics.json cannot be read: {error}") from None
    _check(record)
    notes: list[str] = []
    config = _config(path, notes)
    folder = printable(path.relative_to(results).as_posix())
    data = str(_at(config, "data", "id") or record.get("data_id") or _data_from(folder, record))
    place = next((str(_at(config, "data", key)) for key in ("root", "file") if _at(config, "data", key)), "")
    metrics = {str(key): number(value) for key, value in record["metrics"].items()}
    run = Run(path, folder, record, data, variant_of(record, config, data), data, place, metrics, notes=notes)
    used = record.get("precision") or _at(config, "trainer", "precision")  # older records leave it to the configuration
    run.precision = None if used is None else str(used)
    run.seeded = _at(config, "data", "source", "seed") is not None
    behind = targets_of(*(_at(config, group) for group in ("method", "pretraining", "protocol")))
    if record.get("code") is not None and behind:
        codes, key = {} if codes is None else codes, frozenset(behind)
        if key not in codes:
            codes[key] = code_of(behind)
        run.stale = record["code"] != codes[key]
    classes = _at(config, "protocol", "labelled_classes")
    if isinstance(classes, list) and "labelled_classes" in dict(run.variant.protocol):
        run.experiment = f"{data} knowing {', '.join(map(str, classes))}"
    if run.variant.transductive:
        notes.append(TRANSDUCTIVE)
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
        text = (path / ".hydra" / "config.yaml").read_text(encoding="utf-8")
        config = yaml.load(text, Loader)  # noqa: S506 - safe
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f".hydra/config.yaml cannot be read: {' '.join(str(error).split())}")
        return {}
    if not isinstance(config, dict):
        return {}
    return printable(config) if "\\" in text else config  # without an escape it holds what UTF-8 could be read from


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
    if changed.get("method.image_size") == changed.get("data.image_size"):
        changed.pop("method.image_size", None)  # which is made of the other
    others = {
        key: json.dumps(value, sort_keys=True)
        for key, value in changed.items()
        if not key.startswith(("budget.", "protocol.", *IDENTITY))
    }
    if "precision" in record:  # runs are told apart by what they trained in, not by who chose it: auto or the user
        others.pop("trainer.precision", None)
        if record["precision"] != FLOAT32:
            others["trainer.precision"] = json.dumps(record["precision"])
    images = (_at(config, "pretraining") or {}).get("images", "")
    if record["pretraining"] == "imagenet_kd" and images in (None, "own"):
        others["pretraining.images"] = '"own"'  # a departure, though no value was changed
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
        changed=tuple(sorted(others.items())),
        holdout=_holdout(record, values),
        holdout_rule=_holdout_rule(values),
        transductive=record.get("transductive") is True,
    )


def _holdout(record: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    """The share of the normal training rows that a run kept from training; the default's where a rule chose it."""
    share = number(values.get("holdout"))
    if share is None:
        none = number((record.get("counts") or {}).get("holdout")) == 0
        share = 0.0 if none and not _holdout_rule(values) else HELD_OUT
    return share


def _holdout_rule(values: Mapping[str, Any]) -> str:
    """The word that stands in the place of a share, as in `protocol.holdout=auto`; empty for a share."""
    rule = values.get("holdout")
    return rule if isinstance(rule, str) and number(rule) is None else ""


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
    classes = values.get("labelled_classes", 1)
    shares = {
        key: number(values.get(key)) or 0.0
        for key in ("ratio", "labelled_ratio", "pollution_ratio", "labelled_normal_ratio")
    }
    fraction = number(values.get("fraction"))
    if name == "small_train" and fraction is not None and fraction < 1:
        return ("protocol", name), ("fraction", fraction)
    if name == "contaminated" and shares["ratio"]:
        return ("protocol", name), ("ratio", shares["ratio"])
    if name == "semi_supervised":
        labelled = shares["labelled_ratio"] > 0 and classes != 0
        parts: dict[str, Any] = {"labelled_ratio": shares["labelled_ratio"] * labelled}
        parts["labelled_classes"] = (len(classes) if isinstance(classes, list) else classes) if labelled else 0
        parts |= {key: shares[key] for key in ("pollution_ratio", "labelled_normal_ratio")}
        parts = {key: value for key, value in parts.items() if value}
        if parts and values.get("anomalies") == "test":  # else where the data set has them
            parts["anomalies"] = "test"
        if parts:
            return ("protocol", name), *parts.items()
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
    """The test rows of a scores.csv.

    Raises:
        ValueError: a line is no row, a score is NaN, or a label is neither 0 nor 1.
        OSError: the file cannot be read.
    """
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
        budget, counts, time, hardware = (record.get(key) or {} for key in ("budget", "counts", "time", "hardware"))
        low, high = run.interval or (None, None)
        table.append({
            "folder": run.folder, "method": record["method"], "data": run.data, "protocol": run.variant.protocol_label,
            "pretraining": record["pretraining"], "seed": run.seed, "status": run.status,
            "error": record.get("error"), "notes": "; ".join(run.notes) or None,
            "budget": run.variant.budget, "batches": _whole(budget.get("batches")),
            "batch_size": _whole(budget.get("batch_size")),
            "selection": record.get("selection"), "stale": run.stale, "changed": run.variant.changes or None,
            "kind": run.variant.kind_name or None, "weights": "; ".join(w.label for w in run.weights) or None,
            **{name: run.metrics.get(name) for name in names},
            "image_auroc_low": low, "image_auroc_high": high, "threshold": run.threshold,
            **{key: _whole(counts.get(key)) for key in COUNTS},
            **{key: number(time.get(key)) for key in ("pretraining_s", "train_s", "test_s", "total_s")},
            "cpu": hardware.get("cpu"), "cpu_capability": run.capability,
            "gpus": ", ".join(map(str, hardware.get("gpus") or ())) or None,
            **{key: _whole(hardware.get(key)) for key in ("cores", "threads", "ranks")},
            "precision": run.precision, "started": time.get("started"), "finished": time.get("finished"),
            "commit": (record.get("git") or {}).get("commit"),
            "modified": (record.get("git") or {}).get("modified"), "config_hash": record.get("config_hash"),
        })  # fmt: skip
    return table


def tell_data_apart(runs: Iterable[Run]) -> list[str]:
    """Give runs on a user's own data other names where one name stands for other contents; returns what to say.

    Two users may call their folders alike, and a folder may have grown since an earlier run: such runs are no seeds of
    one experiment. Sets that a file of ours names keep their names, because papers' tables are found by them.
    """
    named: dict[str, list[Run]] = {}
    for run in runs:
        if run.counts_in_tables and run.fingerprint:
            named.setdefault(run.data, []).append(run)
    notes = []
    for data, members in named.items():
        if len(_contents(members)) < 2:
            continue
        if not all(run.record["data"] in OWN_DATA for run in members):
            notes.append(
                f"Runs on {data} saw {len(_contents(members))} different contents (data_fingerprint in their "
                "metrics.json): their values are not comparable."
            )
            continue
        places: dict[str, set[str]] = {}
        by_place = all(run.seeded for run in members) and len({run.place for run in members}) > 1
        for run in members:  # where each seed draws its own test rows, contents differ within a set too
            mark = hashlib.sha256(run.place.encode()).hexdigest() if by_place else run.fingerprint
            name = f"{data} ({'place' if by_place else 'contents'} {mark[:6]})"
            run.experiment, run.data = run.experiment.replace(data, name, 1), name
            places.setdefault(name, set()).add(run.place)
        words = (f"{name} from {', '.join(sorted(roots))}" if any(roots) else name for name, roots in places.items())
        notes.append(f"{len(places)} different sets of data are called {data}: {'; '.join(sorted(words))}.")
    return notes


def _contents(runs: Iterable[Run]) -> set[str]:
    """Fingerprints of runs on data of one name; one where only the seed tells them apart, which drew the test rows."""
    by_seed: dict[int, set[str]] = {}
    for run in runs:
        by_seed.setdefault(run.seed if run.seeded else 0, set()).add(run.fingerprint)
    return max(by_seed.values(), key=len)


def by_variant(runs: Iterable[Run]) -> dict[Variant, dict[str, dict[int, Run]]]:
    """variant -> experiment -> seed -> run, of runs that count; of two for one place, the later one."""
    grouped: dict[Variant, dict[str, dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: str((run.record.get("time") or {}).get("finished"))):
        if run.counts_in_tables:
            grouped.setdefault(run.variant, {}).setdefault(run.experiment, {})[run.seed] = run
    return grouped

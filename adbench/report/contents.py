"""What a report says: everything computed from the runs, before it is written as text, LaTeX or HTML."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from adbench.evaluation import curves
from adbench.report import statistics
from adbench.report.charts import COLOURS, Series, thinned
from adbench.report.collect import (
    DAGGER,
    PROTOCOLS,
    TRANSDUCTIVE,
    TRIVIAL,
    NotARun,
    Run,
    Skipped,
    Variant,
    Weights,
    by_variant,
    folders,
    number,
    plain,
    printable,
    read_run,
    tell_data_apart,
)
from adbench.report.published import Cell, all_answers, lone_variants
from adbench.report.statistics import Estimate, estimate

METRICS = {
    "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_pro": "PRO (FPR ≤ 0.3)",
    "image_balanced_accuracy": "balanced accuracy", "image_ap": "image AP",
}  # fmt: skip
MATRICES = ("image_auroc", "pixel_auroc", "pixel_pro")
ONE_CLASS = (("protocol", "one_class"),)
PRO_LIMIT = 0.3


class Line(NamedTuple):
    """One variant on one experiment, over its seeds."""

    variant: Variant
    experiment: str
    values: Mapping[str, Estimate | None]
    interval: tuple[float, float] | None  # of the mean image AUROC over the seeds
    beside_a_paper: bool
    runs: list[Run]

    @property
    def data(self) -> str:
        """The id of its data, the same in all runs."""
        return self.runs[0].data


class Ranking(NamedTuple):
    """Average ranks of methods over data sets that all of them ran on."""

    methods: list[str]
    data: list[str]
    ranks: NDArray[np.float64]  # (k,) average ranks of the methods, 1 is best
    test: statistics.Friedman | None  # None for two methods
    p: float  # that they do not differ: Iman and Davenport's, Wilcoxon's for two methods
    difference: float  # the critical one, in ranks
    left_out_methods: list[str]
    left_out_data: list[str]


class Robustness(NamedTuple):
    """A metric over one value of a protocol."""

    title: str
    key: str
    series: list[Series]
    counts: list[tuple[str, list[tuple[float, Estimate]]]]


@dataclass
class Contents:
    """A whole report."""

    results: Path
    runs: list[Run]
    skipped: list[Skipped]
    answers: dict[tuple[str, str], list[Cell]]
    lines: list[Line]
    colours: dict[str, tuple[str, bool]]  # method label -> class, faint
    ranking: Ranking | None
    robustness: list[Robustness]
    weights: dict[Weights, list[Run]] = field(default_factory=dict)  # pretrained weights -> runs that began with them
    notes: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """How many runs have this status."""
        return sum(run.status == status for run in self.runs)

    def best_known(self) -> dict[str, dict[str, Line]]:
        """method label -> data -> the line that stands for it under one_class (see `representative`)."""
        return representative(self.lines)


def gather(results: Path, ours: Path, progress: Callable[[list[Any]], Iterable[Any]] = lambda items: items) -> Contents:
    """Read every run below `results` and compute the report; folders that are no runs are named in `skipped`.

    Args:
        results: the folder.
        ours: a folder in it that is left out, the report's own.
        progress: passes on the items of a long list, for a progress bar.
    """
    runs, skipped = [], []
    codes: dict[frozenset[str], str] = {}
    for path, has_metrics in progress(list(folders(results, ours))):
        try:
            if not has_metrics:
                raise NotARun("no metrics.json: the run was killed before it began, or the folder was copied in part")
            runs.append(read_run(path, results, codes))
        except NotARun as reason:
            skipped.append(Skipped(printable(path.relative_to(results).as_posix()), printable(str(reason))))
    # Test sets of one size after each other: they share their draws.
    for run in progress(sorted(runs, key=lambda run: 0 if run.rows is None else len(run.rows.score))):
        _add_intervals(run)
    notes = [*_notes(runs), *tell_data_apart(runs)]
    groups = by_variant(runs)
    answers = all_answers(groups)
    lines = _lines(groups, {(variant, experiment) for variant, experiment in lone_variants(groups, answers)})
    known = representative(lines)
    return Contents(
        results, runs, skipped, answers, lines, _colours(lines), ranking(known), robustness(lines),
        _weights(runs), notes,
    )  # fmt: skip


def _add_intervals(run: Run) -> None:
    """What scores.csv tells beyond metrics.json: an interval of the image AUROC, and a transductive accuracy."""
    if run.rows is None:
        return
    score, label = run.rows.score, run.rows.label
    run.areas = curves.bootstrap(score, label)
    run.interval = None if run.areas is None else curves.interval(run.areas)
    key = "transductive/image_balanced_accuracy"
    if run.metrics.get(key) is None:
        run.metrics[key] = statistics.transductive_accuracy(score, label)
    ours, stored = curves.auroc(score, label), run.metrics.get("image_auroc")
    if ours is not None and stored is not None and abs(ours - stored) > 1e-3:
        run.notes.append(
            f"scores.csv gives image AUROC {ours:.4f}, metrics.json {stored:.4f}: they are not of one test"
        )


def _weights(runs: Iterable[Run]) -> dict[Weights, list[Run]]:
    users: dict[Weights, list[Run]] = defaultdict(list)
    for run in runs:
        for weights in run.weights:
            users[weights].append(run)
    return dict(sorted(users.items()))


def _notes(runs: list[Run]) -> list[str]:
    notes = []
    smoke = sum(run.status == "finished" and not run.counts_in_tables for run in runs)
    if smoke:
        notes.append(f"{smoke} smoke runs show that a thing runs, not how well: they are in the list of runs only.")
    stale = sum(run.status == "finished" and run.stale for run in runs)
    if stale:
        notes.append(f"{stale} runs are stale: other code than this trained them (overwrite=stale trains them anew).")
    if any(run.variant.transductive for run in runs):
        notes.append(f"{DAGGER} {TRANSDUCTIVE}. Figures of other methods are of rows that were scored by themselves.")
    capabilities = sorted({run.capability for run in runs if run.counts_in_tables and run.capability})
    if len(capabilities) > 1:
        notes.append(
            f"These runs are of processors with different instructions ({', '.join(capabilities)}): their times "
            "compare machines, not methods (cpu_capability in runs.csv)."
        )
    return notes


def _lines(groups: Mapping[Variant, Mapping[str, Mapping[int, Run]]], alone: set[tuple[Variant, str]]) -> list[Line]:
    lines = []
    for variant, experiments in groups.items():
        for experiment, seeds in experiments.items():
            runs = [seeds[seed] for seed in sorted(seeds)]
            values = {name: estimate([run.metrics.get(name) for run in runs]) for name in METRICS}
            areas = [run.areas for run in runs if run.areas is not None]
            joint = len({len(one) for one in areas}) == 1 and len(areas) == len(runs)
            interval = curves.interval(np.mean(areas, axis=0)) if joint else None
            beside = (variant, experiment) not in alone and variant.kind != "trivial"
            lines.append(Line(variant, experiment, values, interval, beside, runs))
    return sorted(lines, key=lambda line: (line.experiment, line.variant.place, line.variant))


def _method(variant: Variant) -> str:
    return variant._replace(changed=()).label


def _colours(lines: list[Line]) -> dict[str, tuple[str, bool]]:
    places = {_method(line.variant): line.variant.place for line in lines if line.variant.kind != "trivial"}
    names = sorted(places, key=lambda name: (places[name], name))
    colours = {name: (f"c{at % COLOURS}", at >= COLOURS) for at, name in enumerate(names)}
    trivial = {_method(line.variant): line.variant.method for line in lines if line.variant.kind == "trivial"}
    return colours | {name: (f"grey g{TRIVIAL.index(method)}", True) for name, method in trivial.items()}


def representative(lines: Sequence[Line]) -> dict[str, dict[str, Line]]:
    """method label -> data -> line, under one_class.

    Of several settings of a method on one data set the first in this order stands for it: nothing changed, the paper's
    budget, longer training, more seeds, the name of the setting. The score takes no part.
    """
    candidates: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line.variant.protocol == ONE_CLASS:
            candidates[_method(line.variant)][line.data].append(line)

    def order(line: Line) -> tuple[Any, ...]:
        v = line.variant
        batches = number((line.runs[0].record.get("budget") or {}).get("batches")) or 0.0
        return bool(v.changed), v.budget != "paper", -batches, -len(line.runs), v

    places = {_method(line.variant): line.variant.place for line in lines}
    names = sorted(candidates, key=lambda name: (places[name], name))
    return {name: {data: min(found, key=order) for data, found in candidates[name].items()} for name in names}


def ranking(known: Mapping[str, Mapping[str, Line]]) -> Ranking | None:
    """Average ranks by image AUROC over the largest complete block; None where two methods share no two data sets."""
    value = {
        (name, data): line.values["image_auroc"].mean
        for name, found in known.items()
        for data, line in found.items()
        if line.values["image_auroc"] is not None
    }
    sets_of: dict[Any, set[str]] = defaultdict(set)
    for name, one in value:
        sets_of[name].add(one)
    methods, data = cast(tuple[list[str], list[str]], statistics.complete_block(sets_of))
    if not methods:
        return None
    table = np.array([[value[name, one] for name in methods] for one in data])
    test = statistics.friedman(table)
    everything = {one for found in sets_of.values() for one in found}
    return Ranking(
        methods, data, statistics.average_ranks(table), test, statistics.wilcoxon(table) if test is None else test.p_f,
        statistics.critical_difference(len(methods), len(data)),
        sorted(set(sets_of) - set(methods)), sorted(everything - set(data)),
    )  # fmt: skip


# -- robustness ---------------------------------------------------------------------------------------------------

AXES = {
    "fraction": ("share of the normal training rows", 1.0),
    "ratio": ("contamination ratio", 0.0),
    "labelled_ratio": ("labelled anomalies / training rows", 0.0),
    "pollution_ratio": ("unknown anomalies / unlabelled rows", 0.0),
    "labelled_classes": ("kinds of known anomalies", 0.0),
}
ZERO_WHERE_ABSENT = {"semi_supervised": ("pollution_ratio",)}


def family(data: str) -> str:
    """Class sets and categories are one family: mnist/3 -> mnist, mvtec/bottle -> mvtec."""
    return data.rsplit("/", 1)[0]


Levels = dict[float, dict[tuple[str, int], list[float]]]  # level -> (data set, seed) -> values
CurveKey = tuple[Variant, str, tuple[tuple[str, Any], ...]]  # variant without its protocol, the protocol, other values


class Curve(NamedTuple):
    """One variant's metric over the levels of a protocol value."""

    base: Variant
    words: Mapping[str, str]  # what tells it from other curves
    points: list[tuple[float, Estimate]]


def robustness(lines: Iterable[Line], metric: str = "image_auroc") -> list[Robustness]:
    """One chart for each family of data and each protocol value that at least one method ran at two levels of.

    A point is the mean over seeds of the mean over the members of the family that every point of the curve has; its
    spread is the deviation over seeds. one_class is every protocol's end.
    """
    points: dict[tuple[str, str], dict[CurveKey, Levels]] = {}
    ends: dict[tuple[str, Any], list[tuple[Run, float]]] = defaultdict(list)
    for line in lines:
        base = line.variant._replace(protocol=())
        for run in line.runs:
            value = run.metrics.get(metric)
            if value is None:
                continue
            if line.variant.protocol == ONE_CLASS:
                ends[family(run.data), base].append((run, value))
                continue
            for key, x, rest in _axes(line.variant):
                curve = points.setdefault((family(run.data), key), {}).setdefault((base, *rest), {})
                curve.setdefault(x, {}).setdefault((run.data, run.seed), []).append(value)
    charts = []
    for (group, key), levels_of in sorted(points.items()):
        title, end = AXES.get(key, (key, 0.0))
        courses = []
        for (base, protocol, others), levels in levels_of.items():
            # No labels at all is the end of the labelled ratio, whatever number of kinds would have been known. Where a
            # protocol from elsewhere ends, nobody knows here.
            if protocol in PROTOCOLS and all(k == "labelled_classes" for k, _ in others):
                for run, value in ends[group, base]:
                    levels.setdefault(end, {}).setdefault((run.data, run.seed), []).append(value)
            course, shared = _over_seeds(levels)
            if len(course) > 1:
                courses.append(Curve(base, _words(base, others, shared, group), course))
        if courses:
            charts.append(_chart(f"{group}: {METRICS[metric]}", title, courses))
    return charts


def _axes(variant: Variant) -> Iterator[tuple[str, float, tuple[str, tuple[tuple[str, Any], ...]]]]:
    """Each protocol value that is a number: its name, its level, and the protocol with its other values."""
    (_, protocol), *values = variant.protocol
    levels = dict(values)
    for key in {**levels, **dict.fromkeys(ZERO_WHERE_ABSENT.get(protocol, ()))}:
        level = number(levels.get(key, 0.0))
        if level is not None:  # a word is no axis
            yield key, level, (protocol, tuple((k, v) for k, v in values if k != key))


def _words(base: Variant, others: Iterable[tuple[str, Any]], shared: Sequence[str], group: str) -> dict[str, str]:
    sets = ", ".join(shared) if len(shared) < 4 else f"{len(shared)} sets of {group}"
    return {
        "changes": base.changes, "sets": f"on {sets}",
        "others": ", ".join(f"{k} {plain(v)}" for k, v in others if k != "labelled_classes"),
        "budget": f"budget {base.budget}", "holdout": f"{base.held_out} held out",
    }  # fmt: skip


def _chart(heading: str, key: str, courses: Sequence[Curve]) -> Robustness:
    """What all curves of a chart share stands in its title, the rest behind their names."""
    first = courses[0].words
    common = {k for k, v in first.items() if v and all(curve.words[k] == v for curve in courses)}
    heading = ", ".join([heading, *(v for k, v in first.items() if k in common - {"holdout"})])
    series, counts = [], []
    for at, (base, words, points) in enumerate(courses):
        name = ", ".join([_method(base), *(v for k, v in words.items() if k not in common and v)])
        x, y = np.array([level for level, _ in points]), np.array([e.mean for _, e in points])
        spread = np.array([e.std or 0.0 for _, e in points])
        trivial = base.kind == "trivial"
        colour, faint = "grey" if trivial else f"c{at % COLOURS}", trivial or at >= COLOURS
        series.append(Series(name, x, y, colour, faint, spread, dots=True))
        counts.append((name, points))
    return Robustness(heading, key, series, counts)


def _over_seeds(
    levels: Mapping[float, Mapping[tuple[str, int], list[float]]],
) -> tuple[list[tuple[float, Estimate]], list[str]]:
    """Level -> estimate, and the data sets that every level has."""
    shared = set.intersection(*({data for data, _ in found} for found in levels.values()))
    course = []
    for x, found in sorted(levels.items()):
        per_seed: dict[int, list[float]] = defaultdict(list)
        for (data, seed), values in found.items():
            if data in shared:
                per_seed[seed].append(float(np.mean(values)))
        value = estimate([float(np.mean(v)) for v in per_seed.values() if len(v) == len(shared)])
        if value is not None and shared:
            course.append((x, value))
    return course, sorted(shared)


class Settings(NamedTuple):
    """One metric of methods under several protocols on one data set."""

    data: str
    protocols: list[str]
    rows: list[tuple[Variant, list[Estimate | None]]]  # in the order of `protocols`


def by_protocol(lines: Iterable[Line], metric: str = "image_auroc") -> list[Settings]:
    """One table for each data set on which a method ran under more than one protocol: methods down, protocols across.

    A method that ran on several experiments of one data set under one protocol has no single value there.
    """
    cells: dict[str, dict[Variant, dict[Variant, list[Estimate | None]]]] = {}
    for line in lines:
        base = line.variant._replace(protocol=())
        protocol = Variant("", "", line.variant.protocol, "", ())
        row = cells.setdefault(line.data, {}).setdefault(base, {})
        row.setdefault(protocol, []).append(line.values[metric])
    tables = []
    for data, rows in sorted(cells.items()):
        order = list(PROTOCOLS)
        names = {protocol for row in rows.values() for protocol in row}
        across = sorted(
            names,
            key=lambda v: (order.index(v.protocol[0][1]) if v.protocol[0][1] in order else len(order), str(v.protocol)),
        )
        if all(len(row) < 2 for row in rows.values()):
            continue
        body = []
        for base, row in sorted(rows.items(), key=lambda item: (item[0].place, item[0])):
            values = [row[p][0] if len(row.get(p, ())) == 1 else None for p in across]
            if any(value is not None for value in values):
                body.append((base, values))
        tables.append(Settings(data, [one.protocol_label for one in across], body))
    return tables


# -- curves of one run --------------------------------------------------------------------------------------------


def roc_series(run: Run, name: str, colour: tuple[str, bool]) -> Series | None:
    """The exact ROC curve of scores.csv, thinned; None without scores of both labels."""
    curve = None if run.rows is None else curves.curve(run.rows.score, run.rows.label)
    return None if curve is None else Series(name, *thinned(curve.fpr, curve.tpr), *colour)


def pixel_series(run: Run, name: str, colour: tuple[str, bool], what: str) -> Series | None:
    """`tpr` or `pro` over the pixels' false positive rate, from curves.json; None for runs that have none."""
    try:
        stored = json.loads((run.path / "curves.json").read_text(encoding="utf-8"))["pixel"]
        x, y = (np.array([number(v) for v in stored[key]], dtype=np.float64) for key in ("fpr", what))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if len(x) < 2 or len(x) != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    if what == "pro":
        inside = x <= PRO_LIMIT
        x, y = np.append(x[inside], PRO_LIMIT), np.append(y[inside], np.interp(PRO_LIMIT, x, y))
    return Series(name, *thinned(x.clip(0, 1), y.clip(0, 1)), *colour)

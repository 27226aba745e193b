"""The published tables, and what our runs have to say to each of their numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from adbench.report.collect import Run, Variant, mapping, protocol_of
from adbench.report.statistics import Estimate, estimate

Groups = Mapping[Variant, Mapping[str, Mapping[int, Run]]]


class Row(NamedTuple):
    """One number as printed. `breaks` names a bound that it cannot obey, `marks` what its selection saw."""

    paper: str
    table: str
    dataset: str
    category: str
    metric: str
    method: str
    value: str
    unit: str
    std: str
    setting: str
    note: str
    breaks: str
    marks: str

    @property
    def number(self) -> float:
        """As a fraction."""
        return float(self.value) * self.scale

    @property
    def scale(self) -> float:
        """What the printed number times this is a fraction: 0.01 for percent."""
        return 0.01 if self.unit == "percent" else 1.0


@dataclass(frozen=True)
class Cell:
    """One of our values beside a published one, or beside none (`row` None: a trivial baseline or a reference)."""

    row: Row | None
    dataset: str
    category: str
    metric: str  # as printed
    setting: str
    variant: Variant
    kind: str  # paper, literal, small, variant, released, oracle, trivial, reference
    value: Estimate
    expected: int | None  # members or experiments a complete value has
    found: int | None
    marks: tuple[str, ...]
    unit: str  # of the numbers that the table prints for this metric: fraction or percent

    @property
    def complete(self) -> bool:
        """Whether all members or experiments are there that the value is made of."""
        return self.expected is None or self.found == self.expected

    @property
    def difference(self) -> float | None:
        """Ours minus published, as a fraction; None where they are not the same quantity."""
        if self.row is None or not self.complete or self.kind == "oracle":
            return None
        return self.value.mean - self.row.number


@cache
def rows() -> tuple[Row, ...]:
    """Every published number, in the order of the papers' tables."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(Row(**line) for line in csv.DictReader(text.splitlines()))


def tables() -> dict[tuple[str, str], list[Row]]:
    """(paper, table) -> its rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows():
        groups.setdefault((row.paper, row.table), []).append(row)
    return groups


# -- one published row and the runs -------------------------------------------------------------------------------


def members(row: Row) -> tuple[str, list[tuple[str, str]]]:
    """How a row joins data sets ("one", "mean" or "experiments"), and the (template of ids, member) that it joins."""
    dataset, names = mapping()["datasets"][row.dataset], mapping()["members"]
    how = mapping()["categories"].get(row.category)
    if how is None or "{}" not in dataset["ids"]:
        member = dataset.get("categories", {}).get(row.category, row.category)
        return "one", [(dataset["ids"], str(member))]
    return how["join"], [(dataset["ids"], str(name)) for name in names[how.get("members", dataset["members"])]]


def _templates(row: Row) -> list[tuple[str, str]]:
    """Templates of our data ids for a row's data set, with the mark that each deserves."""
    dataset = mapping()["datasets"][row.dataset]
    return [(dataset["ids"], ""), *dataset.get("stand_ins", {}).items()]


def wanted_protocol(row: Row) -> tuple[tuple[str, Any], ...]:
    """The protocol that a row's number was measured under, as `protocol_of` has it."""
    setting = dict(mapping()["settings"][row.setting])
    return protocol_of(setting.pop("protocol"), setting)


def _protocol_fits(variant: Variant, row: Row) -> bool:
    theirs, ours = wanted_protocol(row), variant.protocol
    if row.setting == "3 runs" and ours[0] == ("protocol", "semi_supervised"):
        return True  # the labelled share is each set's own
    return len(theirs) == len(ours) and all(
        a == b or (isinstance(a[1], float) and a[0] == b[0] and abs(a[1] - b[1]) < 1e-9)
        for a, b in zip(theirs, ours, strict=True)
    )


class Match(NamedTuple):
    """As what a variant answers a printed method, and that method's entry in mapping.yaml."""

    kind: str  # paper, literal, small, variant
    spec: Mapping[str, Any]


def match(variant: Variant, paper: str, table: str, printed: Iterable[str]) -> dict[str, Match]:
    """Which of a table's printed methods a variant answers, and as what.

    A variant that has changed what one printed method asks for (`with`) answers that method and no more general one.
    """
    method = variant.method
    changed = dict(variant.changed)
    matches: dict[str, tuple[int, Match]] = {}
    for name in printed:
        spec = mapping()["methods"].get(paper, {}).get(name)
        spec = spec and spec | spec.get("in_table", {}).get(table, {})
        if spec is None or ("pretraining" in spec and variant.pretraining not in spec["pretraining"]):
            continue
        conditions = spec.get("with", {})
        if any(key not in changed or json.loads(changed[key]) != value for key, value in conditions.items()):
            continue
        for kind, key in (("paper", "ours"), ("literal", "literal"), ("small", "small"), ("variant", "variants")):
            if method in spec.get(key, ()):
                matches[name] = (len(conditions), Match(kind, spec))
    most = max((number for number, _ in matches.values()), default=0)
    return {name: m for name, (number, m) in matches.items() if number == most}


def marks_of(variant: Variant, kind: str, spec: Mapping[str, Any], metric: str, paper: str) -> list[str]:
    """What a reader must know of one of our values beside a paper's: what departs from the paper, not what follows it.

    Args:
        variant: of our runs.
        kind: as in `Cell`.
        spec: of the printed method in mapping.yaml.
        metric: name of our metric.
        paper: whose table it stands in.
    """
    marks = [variant.kind_name] * bool(variant.kind)
    if not variant.kind and variant.budget != "paper":  # the others have no training steps
        marks.append(f"budget {variant.budget}")
    if kind == "small" or (kind == "reference" and "/" in variant.method):
        marks.append("small preset")
    elif kind == "variant":
        marks.append("variant")
    elif kind == "paper" and not spec.get("own"):
        marks.append("our implementation of a cited baseline")
    theirs = mapping()["held_out"].get(paper, 0.0)
    if variant.holdout_rule or abs(variant.holdout - theirs) > 1e-9:
        marks.append(f"{variant.held_out} held out" + (f", the paper's is {100 * theirs:g} %" if theirs else ""))
    conditions, printed = spec.get("with", {}), spec.get("printed", {})
    changed = [
        f"{key}={value}"
        for key, value in variant.changed
        if key not in (*conditions, "pretraining.images") and json.loads(value) not in printed.get(key, ())
    ]
    if images := dict(variant.changed).get("pretraining.images"):
        own = json.loads(images) == "own"
        marks.append(
            "distilled on the run's own training rows, the paper's way is ImageNet"
            if own
            else f"distilled on {json.loads(images)}"
        )
    if changed:
        marks.append(f"changed: {', '.join(changed)}")
    if variant.pretraining not in spec.get("expected_pretraining", [variant.pretraining]):
        marks.append(f"pretraining {variant.pretraining}, the paper's is {' or '.join(spec['expected_pretraining'])}")
    if metric.startswith("transductive/"):
        marks.append("transductive threshold")
    elif metric.startswith("oracle/"):
        marks.append("oracle selection")
    elif metric.startswith("released/"):
        marks.append("released program's metric")
    return marks


def selection_marks(runs: Iterable[Run]) -> list[str]:
    """A selection that saw test labels is named, whatever a metric is called."""
    selections = {str(run.record.get("selection") or "") for run in runs}
    return [f"selection: {s}" for s in sorted(selections) if "test" in s.lower() or "oracle" in s.lower()]


class Joined(NamedTuple):
    """Our value for a row, the runs behind it, and how many members it found and expects (None for a single set)."""

    value: Estimate
    runs: list[Run]
    found: int | None = None
    expected: int | None = None


def join(row: Row, template: str, groups: Mapping[str, Mapping[int, Run]], metric: str) -> Joined | None:
    """Our value for a row from one variant's runs; None where no run has the metric."""
    join, ids = members(row)
    ids_of_members = {template.format(member) for _, member in ids}
    values = {
        (run.experiment, seed): (run, value)
        for seeds in groups.values()
        for seed, run in seeds.items()
        if run.data in ids_of_members and (value := run.metrics.get(metric)) is not None
    }
    runs = [run for run, _ in values.values()]
    everything = estimate([value for _, value in values.values()])
    if everything is None:
        return None
    if join == "one":
        return Joined(everything, runs)
    if join == "experiments":
        kinds = 9 if any(run.experiment != run.data for run in runs) else 1  # each class knows each other one
        return Joined(everything, runs, len({run.experiment for run in runs}), len(ids_of_members) * kinds)
    per_seed: dict[int, dict[str, tuple[Run, float]]] = {}
    for (_, seed), (run, value) in values.items():
        per_seed.setdefault(seed, {})[run.data] = run, value
    most = max(len(by_member) for by_member in per_seed.values())
    fullest = [by_member for by_member in per_seed.values() if len(by_member) == most]
    if len(set.intersection(*({*by_member} for by_member in fullest))) < most:
        fullest = fullest[:1]  # seeds that have different members have no deviation worth the name
    means = estimate([sum(value for _, value in by_member.values()) / most for by_member in fullest])
    used = [run for by_member in fullest for run, _ in by_member.values()]
    return None if means is None else Joined(means, used, most, len(ids_of_members))


def answer(paper: str, table: str, groups: Groups) -> list[Cell]:
    """Every value of ours that belongs beside a table's rows: place by place in their order, then reference detectors,
    then trivial baselines."""
    table_rows = tables()[paper, table]
    printed = list(dict.fromkeys(row.method for row in table_rows))
    matches = {variant: match(variant, paper, table, printed) for variant in groups}
    cells: list[Any] = []
    for row in table_rows:
        for variant, methods in matches.items():
            if row.method in methods and _protocol_fits(variant, row):
                cells += _cells(row, variant, methods[row.method], groups)
    places: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in [*cells, *_beside(cells, groups)]:
        places.setdefault(_place(cell), []).append(cell)
    return [cell for methods in places.values() for cell in methods]


def _cells(row: Row, variant: Variant, matched: Match, groups: Groups) -> Iterator[Cell]:
    metric = mapping()["metrics"][row.metric]
    readings = [(matched.kind, metric), ("oracle", f"oracle/{metric}")]
    if row.metric in matched.spec.get("released", {}):
        readings.append(("released", matched.spec["released"][row.metric]))
    for template, stands_in in _templates(row):
        for kind, key in readings:
            ours = join(row, template, groups[variant], key)
            if ours is None or (not _complete(ours) and _shows_members(row)):
                continue
            marks = marks_of(variant, matched.kind, matched.spec, key, row.paper)
            marks += [*selection_marks(ours.runs), *_coverage(ours, stands_in)]
            place = (row.dataset, row.category, row.metric, row.setting)
            yield Cell(row, *place, variant, kind, ours.value, ours.expected, ours.found, tuple(marks), row.unit)


def _complete(ours: Joined) -> bool:
    return ours.found == ours.expected


def _coverage(ours: Joined, stands_in: str) -> list[str]:
    return [stands_in] * bool(stands_in) + [f"{ours.found} of {ours.expected}"] * (not _complete(ours))


@cache
def _shows_members(row: Row) -> bool:
    """Whether the table has rows for the single members of a mean: then a mean of some of them tells nothing more."""
    same = (row.dataset, row.metric, row.method)
    rows_ = tables()[row.paper, row.table]
    return any((r.dataset, r.metric, r.method) == same and members(r)[0] == "one" for r in rows_ if r != row)


def _beside(cells: list[Cell], groups: Groups) -> Iterator[Cell]:
    """The reference detectors and the trivial baselines for every place where one of our values stands."""
    answering = {(cell.variant, _place(cell)) for cell in cells}
    places = {_place(cell): cell.row for cell in reversed(cells) if cell.row is not None}
    candidates = sorted((v for v in groups if v.kind and not v.changed), key=lambda v: v.place)
    for place, row in places.items():
        metric = mapping()["metrics"][row.metric]
        for variant in candidates:
            if (variant, place) in answering or not _protocol_fits(variant, row):
                continue
            for template, stands_in in _templates(row):
                ours = join(row, template, groups[variant], metric)
                if ours is None or (not _complete(ours) and _shows_members(row)):
                    continue
                marks = (*marks_of(variant, variant.kind, {}, metric, row.paper), *_coverage(ours, stands_in))
                yield Cell(None, *place, variant, variant.kind, ours.value, ours.expected, ours.found, marks, row.unit)


def _place(cell: Cell) -> tuple[str, str, str, str]:
    return cell.dataset, cell.category, cell.metric, cell.setting


def display(cell: Cell) -> dict[str, str]:
    """A cell as a table shows it: numbers in the paper's unit, a dash where there is none."""
    row = cell.row
    factor, digits = (100.0, 1) if cell.unit == "percent" else (1.0, 3)
    value = f"{cell.value.mean * factor:.{digits}f}"
    if cell.value.std is not None:
        value += f" ± {cell.value.std * factor:.{digits}f}"
    difference = cell.difference
    published = "–" if row is None else row.value + (f" ± {row.std}" if row.std else "")
    return {
        "data set": cell.dataset, "category": cell.category, "metric": cell.metric, "setting": cell.setting or "–",
        "printed as": "–" if row is None else row.method,
        "our run": cell.variant._replace(changed=()).label, "our value": value, "n": str(cell.value.n),
        "published": published, "difference": "–" if difference is None else f"{difference * factor:+.{digits}f}",
    }  # fmt: skip


def columns(cells: Iterable[Cell]) -> list[str]:
    """The columns of `display` that a table of these cells needs: what its heading says of all of them is left out."""
    displays = [display(cell) for cell in cells]
    in_heading = ("data set", "metric", "setting")
    return [name for name in displays[0] if name not in in_heading or len({one[name] for one in displays}) > 1]


def published_marks(row: Row | None) -> list[str]:
    """What a reader must know of a printed number."""
    if row is None:
        return []
    marks = [f"published value breaks a bound: {row.breaks}"] if row.breaks else []
    marks += [
        {"oracle": "published: selected on test data", "transductive": "published: transductive threshold"}[m]
        for m in row.marks.split()
    ]
    return marks + ([f"published: {row.note}"] if row.note and "oracle" not in row.marks else [])


def all_answers(groups: Groups) -> dict[tuple[str, str], list[Cell]]:
    """(paper, table) -> our cells, for every published table (an empty list where no run belongs to it)."""
    return {key: answer(*key, groups) for key in tables()}


def lone_variants(groups: Groups, answers: Mapping[tuple[str, str], list[Cell]]) -> list[tuple[Variant, str]]:
    """(variant, data or experiment) of runs that stand beside no published row."""
    used: set[tuple[Variant, str]] = set()
    for cells in answers.values():
        for cell in cells:
            if cell.row is not None:
                ids = {
                    template.format(member)
                    for template, _ in _templates(cell.row)
                    for _, member in members(cell.row)[1]
                }
                used |= {
                    (cell.variant, e)
                    for e, seeds in groups[cell.variant].items()
                    for run in seeds.values()
                    if run.data in ids
                }
    return [
        (variant, experiment)
        for variant, found in groups.items()
        for experiment in found
        if (variant, experiment) not in used and variant.kind != "trivial"
    ]

"""The report as one HTML page that needs nothing but itself.

The templates escape every value that comes from a run folder; pictures are decoded and encoded anew. The page's
content security policy allows its own script and no connection.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adbench.report import rendering
from adbench.report.charts import DARK, STYLE, histogram, lines
from adbench.report.collect import KIND_NAMES, Run, mapping, number, printable, tidy
from adbench.report.contents import MATRICES, METRICS, PRO_LIMIT, Contents, Line, pixel_series, roc_series
from adbench.report.published import Cell, Row, columns, display, published_marks, tables
from adbench.report.rendering import file_name
from adbench.report.statistics import Estimate
from adbench.report.text import (
    LEGEND,
    SETTINGS_COLUMNS,
    WEIGHTS_COLUMNS,
    MethodRow,
    heading,
    interval_text,
    matrix,
    mean_text,
    protocol_tables,
    ranking_chart,
    ranking_text,
    robustness_chart,
    summary_line,
    weights_rows,
)

ROLES = {  # of gallery.json: group, caption
    "found": ("Best", "anomalous, highest score"),
    "passed": ("Best", "normal, lowest score"),
    "missed": ("Worst", "anomalous, lowest score"),
    "false_alarm": ("Worst", "normal, highest score"),
    "borderline": ("Borderline", "nearest to the threshold"),
}
MOST_PICTURES = 60  # of one run
Progress = Callable[[list[Any]], Iterable[Any]]


class Td(NamedTuple):
    """One table cell: text, what to sort by ("" for missing, None for the text), classes, tooltip, badges."""

    text: str
    sort: float | str | None = None
    classes: str = ""
    remark: str = ""
    marks: tuple[str, ...] = ()


class Tr(NamedTuple):
    """One table row: cells, and the kind of a method that is no paper's."""

    cells: Sequence[Td]
    kind: str = ""


class Column(NamedTuple):
    """Name of a column, and whether it holds numbers."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A sortable table; `name` is its place on the page."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Tr]


def num(text: str, value: float | None) -> Td:
    """A cell of a number, sorted by its value."""
    return Td(text, "" if value is None else value, "num")


def value_td(value: Estimate | None) -> Td:
    """A cell of a mean over seeds."""
    return num(mean_text(value), None if value is None else value.mean)


def html(contents: Contents, pictures: int = 40, progress: Progress = lambda items: items) -> str:
    """report.html. At most `pictures` runs show their images; the page says which are left out."""
    script = rendering.asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data_sets, unpictured = _data_sets(contents, pictures, progress)
    protocols = _by_protocol(contents)
    parts: dict[str, Any] = {
        "Overview": {"tiles": _tiles(contents), "notes": contents.notes, "matrices": _matrices(contents)},
        "Published tables": {"legend": LEGEND, "papers": _papers(contents)},
        "Ranks": contents.ranking
        and {"ranks": ranking_text(contents.ranking), "ranking": ranking_chart(contents.ranking)},
        "Robustness": (contents.robustness or protocols)
        and {"robustness": [robustness_chart(c) for c in contents.robustness], "protocols": protocols},
        "Data sets": data_sets and {"data_sets": data_sets, "unpictured": unpictured, "limit": pictures},
        "All settings": {"settings": _settings(contents)},
        "Pretrained weights": contents.weights and {"weights": _weights(contents)},
        "All runs": {"runs": _runs(contents)},
        "Skipped": contents.skipped and {"skipped": _skipped(contents)},
    }
    sections = {title: part for title, part in parts.items() if part}
    return rendering.html(
        "page.html",
        sections=list(sections),
        digest=digest,
        style=rendering.asset("page.css") + _chart_style(),
        script=script,
        summary=summary_line(contents),
        results=printable(str(contents.results)),
        **{key: value for part in sections.values() for key, value in part.items()},
    )


def _chart_style() -> str:
    rules = [rule.strip() + "}" for rule in DARK.split("}") if rule.strip()]
    forced = "".join(f":root[data-theme=dark] {rule}" for rule in rules)
    by_system = "".join(f":root:not([data-theme=light]) {rule}" for rule in rules)
    return f"{STYLE}{forced}@media(prefers-color-scheme:dark){{{by_system}}}"


# -- tables -------------------------------------------------------------------------------------------------------


def _tiles(contents: Contents) -> dict[str, int]:
    return {
        "finished runs": contents.count("finished"), "failed": contents.count("failed"),
        "interrupted or running": contents.count("interrupted") + contents.count("running"),
        "methods": len(contents.colours), "data sets": len({line.data for line in contents.lines}),
        "skipped folders": len(contents.skipped),
    }  # fmt: skip


def _matrices(contents: Contents) -> list[tuple[str, Table]]:
    """Heading and table of each metric that has values: methods down, data sets across."""
    pairs = []
    for metric in MATRICES:
        data, rows = matrix(contents, metric)
        if rows:
            pairs.append((METRICS[metric], _of_methods(f"matrix-{metric}", data, rows)))
    return pairs


def _by_protocol(contents: Contents) -> list[tuple[str, Table]]:
    """Data set and table of each set with methods under several protocols: methods down, protocols across."""
    return [
        (data, _of_methods(f"protocols-{file_name(data)}", across, rows))
        for data, across, rows in protocol_tables(contents)
    ]


def _of_methods(name: str, across: Sequence[str], rows: Sequence[MethodRow]) -> Table:
    """Values of methods; the highest of a column is bold."""
    body = []
    best = [max((row.values[at].mean for row in rows if row.values[at]), default=None) for at in range(len(across))]  # type: ignore[union-attr]
    for row in rows:
        cells = [
            value_td(value)._replace(classes="num best" if value and value.mean == best[at] else "num")
            for at, value in enumerate(row.values)
        ]
        body.append(Tr([Td(row.name, row.name, marks=(KIND_NAMES[row.kind],) * bool(row.kind)), *cells], row.kind))
    return Table(name, [Column("method"), *(Column(one, True) for one in across)], body)


def _papers(contents: Contents) -> list[dict[str, Any]]:
    """For each published table: our values beside its own (None without runs), and the table as printed."""
    papers = []
    for (paper, name), cells in contents.answers.items():
        papers.append({
            "heading": heading(paper, name, cells), "citation": mapping()["papers"][paper],
            "remark": mapping()["remarks"].get(f"{paper} {name}"),
            "table": _paper(paper, name, cells) if cells else None, "printed": _printed(paper, name),
        })  # fmt: skip
    return papers


def _paper(paper: str, name: str, cells: Sequence[Cell]) -> Table:
    names = columns(cells)
    numeric = ("our value", "n", "published", "difference")
    body = [Tr(_paper_row(cell, names), cell.variant.kind) for cell in cells]
    header = [*(Column(column, column in numeric) for column in names), Column("marks")]
    return Table(f"paper-{file_name(paper)}-{file_name(name)}", header, body)


def _paper_row(cell: Cell, names: Sequence[str]) -> list[Td]:
    fields = display(cell)
    sort = {
        "our value": cell.value.mean, "n": cell.value.n, "difference": cell.difference,
        "published": None if cell.row is None else cell.row.number,
    }  # fmt: skip
    row = [num(fields[name], sort[name]) if name in sort else Td(fields[name]) for name in names]
    return [*row, Td("", classes="wrap", marks=(*cell.marks, *published_marks(cell.row)))]


def _printed(paper: str, name: str) -> list[tuple[str, Table]]:
    """Metric and values of a published table as printed, rows of methods."""
    blocks: dict[str, dict[str, dict[str, Row]]] = {}
    for row in tables()[paper, name]:
        place = row.dataset if row.category.startswith(("all", "mean over")) else row.category
        method = f"{row.method} ({row.setting})" if row.setting else row.method
        blocks.setdefault(row.metric, {}).setdefault(method, {})[place] = row
    values_of = []
    for metric, methods in blocks.items():
        places = list(dict.fromkeys(place for values in methods.values() for place in values))
        body = [
            Tr([Td(method), *(_printed_td(values.get(place)) for place in places)])
            for method, values in methods.items()
        ]
        identity = f"printed-{file_name(paper)}-{file_name(name)}-{file_name(metric)}"
        values_of.append(
            (metric, Table(identity, [Column("method"), *(Column(place, True) for place in places)], body))
        )
    return values_of


def _printed_td(row: Row | None) -> Td:
    if row is None:
        return num("–", None)
    cell = num(row.value + (f" ± {row.std}" if row.std else ""), row.number)
    return cell._replace(remark="; ".join(published_marks(row)))


def _settings(contents: Contents) -> Table:
    words = ("method", "data", "protocol", "held out", "budget", "published row")
    body = []
    for line in contents.lines:
        v, low = line.variant, line.interval[0] if line.interval else None
        body.append(Tr([
            Td(v.label, classes="wrap"), Td(line.experiment), Td(v.protocol_label), Td(v.held_out), Td(v.budget),
            num(str(len(line.runs)), len(line.runs)),
            value_td(line.values["image_auroc"]), num(interval_text(line.interval), low),
            *(value_td(line.values[name]) for name in list(METRICS)[1:]),
            Td("beside one" if line.beside_a_paper else v.kind_name or "none"),
        ], v.kind))  # fmt: skip
    names = (*SETTINGS_COLUMNS, "published row")
    return Table("settings", [Column(name, name not in words) for name in names], body)


def _weights(contents: Contents) -> Table:
    body = [Tr([Td(text, classes="wrap") for text in row]) for row in weights_rows(contents)]
    return Table("weights", [Column(name) for name in WEIGHTS_COLUMNS], body)


def _runs(contents: Contents) -> Table:
    names = ("folder", "status", "budget", "seed", "image_auroc", "pixel_auroc", "pixel_pro", "batches", "train",
             "test_normal", "test_anomalous", "total_s", "finished", "error", "notes")  # fmt: skip
    numeric = set(names[3:12])
    body = []
    for row in tidy(contents.runs):
        cells = []
        for name in names:
            value = row.get(name)
            if name in numeric:
                digits = ".3f" if "_auroc" in name or "_pro" in name else "g"
                cells.append(num("–" if value is None else f"{value:{digits}}", value))
            else:
                failed = name in ("status", "error") and row["status"] == "failed"
                cells.append(Td("" if value is None else str(value), classes="wrap" + " failed" * failed))
        body.append(Tr(cells))
    return Table("runs", [Column(name, name in numeric) for name in names], body)


def _skipped(contents: Contents) -> Table:
    body = [Tr([Td(folder), Td(reason, classes="wrap")]) for folder, reason in contents.skipped]
    return Table("skipped-folders", [Column("folder"), Column("reason")], body)


# -- data sets: curves, histograms, pictures ----------------------------------------------------------------------


class Figure(NamedTuple):
    """A picture as a data URI, and what stands below it."""

    uri: str
    caption: str


class Pictured(NamedTuple):
    """A run's pictures: groups of the gallery, or the panels of a run that has no gallery."""

    heading: str
    groups: list[tuple[str, list[Figure]]]
    panels: str | None


class DataSet(NamedTuple):
    """What the page shows of one data set; charts are SVG."""

    name: str
    curves: list[str]
    histograms: list[str]
    pictured: list[Pictured]


def _data_sets(contents: Contents, pictures: int, progress: Progress) -> tuple[list[DataSet], list[str]]:
    """Every data set, and the runs whose pictures are left out."""
    by_data: dict[str, list[tuple[str, Line]]] = {}
    for name, lines_of in contents.best_known().items():
        for data, line in lines_of.items():
            by_data.setdefault(data, []).append((name, line))
    sets, without, left = [], [], pictures
    for data in progress(sorted(by_data)):
        pictured = []
        for name, line in by_data[data]:
            run = line.runs[0]
            if left > 0:
                groups = _gallery(run)
                panels = None if groups else picture(run.path / "figures" / "panels.png", 1000)
                if groups or panels:
                    left -= 1
                    pictured.append(Pictured(f"{name}, seed {run.seed}", groups, panels))
            elif (run.path / "figures").is_dir():
                without.append(f"{name} on {data}")
        sets.append(DataSet(data, _curves(contents, by_data[data]), _histograms(by_data[data]), pictured))
    return sets, without


def _curves(contents: Contents, members: Sequence[tuple[str, Line]]) -> list[str]:
    charts = []

    def legend(name: str, line: Line, metric: str) -> str:
        value = line.runs[0].metrics.get(metric)
        return name if value is None else f"{value:.3f}  {name}"

    for kind, metric, title in (
        ("roc", "image_auroc", "ROC of images"), ("pro", "pixel_pro", "PRO of pixels"),
        ("tpr", "pixel_auroc", "ROC of pixels"),
    ):  # fmt: skip
        series = []
        for name, line in members:
            label, colour = legend(name, line, metric), contents.colours[name]
            run = line.runs[0]
            series.append(roc_series(run, label, colour) if kind == "roc" else pixel_series(run, label, colour, kind))
        drawable = [one for one in series if one is not None]
        if drawable:
            limit = PRO_LIMIT if kind == "pro" else 1.0
            up = "mean overlap with a region" if kind == "pro" else "true positive rate"
            charts.append(lines(drawable, title, "false positive rate", up, (0.0, limit), diagonal=kind != "pro"))
    return charts


def _histograms(members: Sequence[tuple[str, Line]]) -> list[str]:
    return [
        histogram(run.rows.score, run.rows.label, run.threshold, name)
        for name, line in members
        if (run := line.runs[0]).rows is not None and len(run.rows.score)
    ]


def _gallery(run: Run) -> list[tuple[str, list[Figure]]]:
    """Best, worst and borderline test images of a run, each group with its name; empty without any."""
    groups: dict[str, list[Figure]] = {"Best": [], "Worst": [], "Borderline": []}
    for entry in _gallery_entries(run):
        uri = picture(run.path / "figures" / entry["file"], 390)
        if uri:
            group, role = ROLES[entry["role"]]
            score = number(entry.get("score"))
            words = f"score {'–' if score is None else format(score, '.4g')}"
            groups[group].append(Figure(uri, f"{role}: {entry.get('defect')}, {words}, {entry.get('path')}"))
    return [(group, figures) for group, figures in groups.items() if figures]


def _gallery_entries(run: Run) -> Sequence[Mapping[str, Any]]:
    try:
        entries = printable(json.loads((run.path / "figures" / "gallery.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
    return [entry for entry in (entries if isinstance(entries, list) else []) if _is_entry(entry)][:MOST_PICTURES]


def _is_entry(entry: Any) -> bool:
    """Whether it names a known role and a file beside it."""
    role, file = (entry.get(key) if isinstance(entry, dict) else None for key in ("role", "file"))
    return isinstance(role, str) and role in ROLES and isinstance(file, str) and Path(file).name == file


def picture(path: Path, width: int) -> str | None:
    """A data URI of the picture, at most `width` pixels wide; None where there is none that can be read."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
            image.thumbnail((width, 100 * width), Image.Resampling.LANCZOS, reducing_gap=2.0)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

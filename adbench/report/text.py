"""The report as files: tidy table, Markdown, LaTeX, charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adbench.files import whole, write_text
from adbench.report import rendering
from adbench.report.charts import critical_difference, lines, standalone
from adbench.report.collect import DAGGER, KIND_NAMES, TRANSDUCTIVE, mapping, tidy
from adbench.report.contents import MATRICES, METRICS, Contents, Line, Ranking, Robustness, by_protocol
from adbench.report.published import Cell, columns, display, published_marks
from adbench.report.rendering import Emphasis, file_name
from adbench.report.statistics import Estimate


def mean_text(value: Estimate | None, digits: int = 3) -> str:
    """`0.912 ± 0.010`, `0.912` for a single value, a dash for none."""
    if value is None:
        return "–"
    return f"{value.mean:.{digits}f}" + ("" if value.std is None else f" ± {value.std:.{digits}f}")


def interval_text(interval: tuple[float, float] | None) -> str:
    """`0.901 … 0.923`, a dash for none."""
    return "–" if interval is None else f"{interval[0]:.3f} … {interval[1]:.3f}"


# -- tidy table ---------------------------------------------------------------------------------------------------


def write_runs(contents: Contents, out: Path) -> list[str]:
    """runs.csv, and runs.parquet where pyarrow is installed; returns what to tell the user."""
    from pandas import DataFrame

    # Objects stay what they are: a whole number beside a missing one is no fraction, and a missing one stays empty.
    table = DataFrame(tidy(contents.runs), dtype=object)
    with whole(out / "runs.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
    try:
        import pyarrow  # noqa: F401 (which pandas writes with)
    except ImportError:
        (out / "runs.parquet").unlink(missing_ok=True)  # an earlier report's would be of other runs
        return ["no runs.parquet: it needs pyarrow (pip install 'adbench-vision[report]'); runs.csv holds the same"]
    with whole(out / "runs.parquet") as temporary:
        table.to_parquet(temporary, engine="pyarrow", index=False)
    return []


# -- charts -------------------------------------------------------------------------------------------------------


def ranking_chart(ranking: Ranking) -> str:
    """The critical-difference diagram, as SVG."""
    title = f"Average ranks by image AUROC over {len(ranking.data)} data sets (Nemenyi, 5 %)"
    return critical_difference(ranking.methods, ranking.ranks, ranking.difference, title)


def robustness_chart(chart: Robustness) -> str:
    """The metric over the protocol's value, as SVG."""
    xs = sorted({float(x) for series in chart.series for x in series.x})
    ys = [float(v) for s in chart.series for v in (*(s.y - s.spread), *(s.y + s.spread))]  # type: ignore[operator]
    low = max(0.0, min(ys) - 0.03)
    high = min(1.0, max(ys) + 0.03)
    x_range = (min(0.0, xs[0]), max(xs))
    return lines(chart.series, chart.title, chart.key, "image AUROC", x_range, (low, high), ticks=_spaced(xs, x_range))


def _spaced(xs: Sequence[float], x_range: tuple[float, float]) -> list[float]:
    """Ticks at the levels that were run, those too near to the last one left out."""
    ticks: list[float] = []
    for x in xs:
        if not ticks or x - ticks[-1] > 0.07 * (x_range[1] - x_range[0]):
            ticks.append(x)
    return ticks


def write_charts(contents: Contents, out: Path) -> dict[str, str]:
    """Charts that stand beside the Markdown: title -> path below `out`."""
    charts = {}
    if contents.ranking:
        charts["ranks"] = ranking_chart(contents.ranking)
    charts |= {f"robustness {chart.title} over {chart.key}": robustness_chart(chart) for chart in contents.robustness}
    paths = {}
    for at, (name, svg) in enumerate(charts.items()):
        paths[name] = f"charts/{file_name(name.split(' ')[0])}-{at}.svg"
        write_text(out / paths[name], standalone(svg))
    for path in (out / "charts").glob("*-*.svg"):  # an earlier report may have had more
        if f"charts/{path.name}" not in paths.values():
            path.unlink()
    return paths


# -- tables of text -----------------------------------------------------------------------------------------------


def summary_line(contents: Contents) -> str:
    """How many runs there are, and of which status."""
    parts = [f"{contents.count(status)} {status}" for status in ("finished", "failed", "interrupted", "running")]
    runs = f"{len(contents.runs)} run{'s' * (len(contents.runs) != 1)}"
    return f"{runs} ({', '.join(part for part in parts if not part.startswith('0 '))})"


def ranking_text(ranking: Ranking) -> str:
    """The tests behind the ranks, and what was left out of them."""
    test = (
        f"Wilcoxon signed-rank p = {ranking.p:.3g}" if ranking.test is None
        else f"Friedman chi-square {ranking.test.chi_square:.2f} (p = {ranking.test.p_chi_square:.3g}), Iman-Davenport "
        f"F {ranking.test.f:.2f} (p = {ranking.p:.3g})"
    )  # fmt: skip
    text = (
        f"{len(ranking.methods)} methods on {len(ranking.data)} data sets: {test}; critical difference "
        f"{ranking.difference:.2f}. Data sets: {', '.join(ranking.data)}."
    )
    if ranking.left_out_methods:
        text += f" Left out, because they did not run on all of these: {', '.join(ranking.left_out_methods)}."
    if ranking.left_out_data:
        text += (
            f" Data sets left out, because not all of these methods ran on them: {', '.join(ranking.left_out_data)}."
        )
    return text


class MethodRow(NamedTuple):
    """A method's values over data sets, None where it has none; `kind` as `collect.kind_of` has it."""

    name: str
    kind: str
    values: list[Estimate | None]

    @property
    def texts(self) -> list[str]:
        """The row as text; a method that is no paper's is in italics and says what it is."""
        return [method_text(self.name, self.kind), *map(mean_text, self.values)]


def method_text(name: str, kind: str) -> str:
    """A method's name in a table of text."""
    return Emphasis(f"{name} ({KIND_NAMES[kind]})") if kind else name


def matrix(contents: Contents, metric: str) -> tuple[list[str], list[MethodRow]]:
    """Data sets, and a row of values for each method; both without those that have no value.

    A method's budgets stand behind its name; trivial baselines and reference detectors have none.
    """
    methods = contents.best_known()
    data = sorted(
        {one for lines_of in methods.values() for one, line in lines_of.items() if line.values[metric] is not None}
    )
    rows = []
    for name, lines_of in methods.items():
        kind = next(iter(lines_of.values())).variant.kind
        budgets = sorted({line.variant.budget for line in lines_of.values()} if not kind else ())
        values = [lines_of[one].values[metric] if one in lines_of else None for one in data]
        if any(value is not None for value in values):
            rows.append(MethodRow(f"{name} ({'; '.join(budgets)})" if budgets else name, kind, values))
    return data, rows


def protocol_tables(contents: Contents) -> list[tuple[str, list[str], list[MethodRow]]]:
    """Data set, protocols across, and a row for each method, of each data set with methods under several protocols."""
    tables = []
    for found in by_protocol(contents.lines):
        rows = [
            MethodRow(f"{base.label} ({base.budget})" if not base.kind else base.label, base.kind, values)
            for base, values in found.rows
        ]
        tables.append((found.data, found.protocols, rows))
    return tables


def heading(paper: str, table: str, cells: Sequence[Cell]) -> str:
    """Of a published table: what its cells have in common."""
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    data = list(dict.fromkeys(cell.dataset for cell in cells))
    settings = {cell.setting for cell in cells}
    one = f" ({settings.pop()})" if len(settings) == 1 and settings != {""} else ""
    return f"{paper}, Table {table}" + (f": {', '.join(metrics)} on {', '.join(data)}{one}" if cells else "")


def paper_rows(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one published table's cells, marks in words."""
    names, rows = columns(cells), []
    for cell in cells:
        fields, marks = display(cell), [*cell.marks, *published_marks(cell.row)]
        fields["our run"] = Emphasis(fields["our run"]) if cell.variant.kind else fields["our run"]
        rows.append([*(fields[name] for name in names), "; ".join(marks) or "–"])
    return [*names, "marks"], rows


def settings_rows(settings: Iterable[Line]) -> Iterable[list[str]]:
    """Rows of `SETTINGS_COLUMNS`."""
    for line in settings:
        v = line.variant
        yield [
            method_text(v.label, v.kind), line.experiment, v.protocol_label, v.held_out, v.budget, str(len(line.runs)),
            mean_text(line.values["image_auroc"]), interval_text(line.interval),
            *(mean_text(line.values[name]) for name in list(METRICS)[1:]),
        ]  # fmt: skip


SETTINGS_COLUMNS = (
    "method",
    "data",
    "protocol",
    "held out",
    "budget",
    "seeds",
    "image AUROC",
    "95 % interval",
    *list(METRICS.values())[1:],
)


WEIGHTS_COLUMNS = ("weights", "origin", "sha256", "of", "methods", "runs")


def weights_rows(contents: Contents) -> list[list[str]]:
    """Pretrained weights: their name, where they came from, their hash, and which methods began with them."""
    rows = []
    for weights, runs in contents.weights.items():
        methods = sorted({run.variant._replace(changed=()).label for run in runs})
        rows.append([weights.name, weights.origin, weights.sha256, weights.part, ", ".join(methods), str(len(runs))])
    return rows


def markdown(contents: Contents, charts: Mapping[str, str]) -> str:
    """report.md.

    Args:
        contents: of the report.
        charts: as `write_charts` gives them.
    """
    matrices = []
    for metric in MATRICES:
        data, rows = matrix(contents, metric)
        if rows:
            matrices.append((METRICS[metric], ["method", *data], [row.texts for row in rows]))
    papers = []
    for (paper, table), cells in contents.answers.items():
        header, body = paper_rows(cells) if cells else ([], [])
        remark = mapping()["remarks"].get(f"{paper} {table}")
        papers.append({"heading": heading(paper, table, cells), "remark": remark, "header": header, "rows": body})
    ranking = contents.ranking and {"path": charts["ranks"], "text": ranking_text(contents.ranking)}
    robustness = []
    for chart in contents.robustness:
        points = [
            [name, f"{x:g}", mean_text(value), str(value.n)] for name, course in chart.counts for x, value in course
        ]
        path = charts[f"robustness {chart.title} over {chart.key}"]
        header = ["method", chart.key, "image AUROC", "seeds"]
        robustness.append({"title": chart.title, "path": path, "header": header, "rows": points})
    protocols = [
        (data, ["method", *across], [row.texts for row in rows]) for data, across, rows in protocol_tables(contents)
    ]
    return rendering.markdown(
        "report.md", summary=summary_line(contents), notes=contents.notes, skipped=contents.skipped, legend=LEGEND,
        matrices=matrices, papers=papers, ranking=ranking, robustness=robustness, protocols=protocols,
        lists=_lists(contents),
        empty=", ".join(f"{paper} {table}" for (paper, table), cells in contents.answers.items() if not cells),
    )  # fmt: skip


def _lists(contents: Contents) -> list[tuple[str, Sequence[str], list[Sequence[Any]]]]:
    """Heading, columns and rows of the tables that end the Markdown; those without rows are left out there."""
    alone = [line for line in contents.lines if not line.beside_a_paper and not line.variant.kind]
    broken = [
        [run.folder, run.status, run.record.get("error") or "–"] for run in contents.runs if run.status != "finished"
    ]
    noted = [[run.folder, "; ".join(run.notes)] for run in contents.runs if run.notes]
    return [
        ("Beside no published row", SETTINGS_COLUMNS, list(settings_rows(alone))),
        ("All settings", SETTINGS_COLUMNS, list(settings_rows(contents.lines))),
        ("Pretrained weights", WEIGHTS_COLUMNS, list(weights_rows(contents))),
        ("Runs without a result", ["folder", "status", "reason"], list(broken)),
        ("Notes on runs", ["folder", "note"], list(noted)),
        ("Skipped folders", ["folder", "reason"], list(contents.skipped)),
    ]


LEGEND = (
    "Ours is mean ± sample standard deviation over n seeds (over all experiments where the paper does so); intervals "
    "are 95 % bootstrap intervals over test images. Differences are ours minus published. A value marked with a budget "
    "other than the paper's, as a small preset or as a variant is not a reproduction of the published row; a share of "
    "the training rows that is held out is marked where the paper trains on them."
)


# -- LaTeX --------------------------------------------------------------------------------------------------------

COLUMNS = 6  # data sets beside each other that fit a page


def latex(contents: Contents) -> str:
    """tables.tex: a document that compiles by itself, one longtable for each published table with runs."""
    tables: list[dict[str, Any]] = []
    data, rows = matrix(contents, "image_auroc")
    for start in range(0, len(data), COLUMNS):
        block = data[start : start + COLUMNS]
        body = [[row.texts[0], *row.texts[1 + start : 1 + start + COLUMNS]] for row in rows]
        notes = [(DAGGER, TRANSDUCTIVE)] if any(DAGGER in name for name, *_ in body) else []
        tables.append({"caption": "Image AUROC, one_class", "header": ["method", *block], "rows": body, "notes": notes})
    for (paper, table), cells in contents.answers.items():
        if not cells:
            continue
        letters: dict[str, str] = {}
        names, texts = paper_rows(cells)
        body = []
        for cell, row in zip(cells, texts, strict=True):
            marks = [letters.setdefault(m, _letter(len(letters))) for m in (*cell.marks, *published_marks(cell.row))]
            body.append([*row[:-1], " ".join(marks)])
        notes = [(letter, mark) for mark, letter in letters.items()]
        tables.append({"caption": heading(paper, table, cells), "header": names, "rows": body, "notes": notes})
    return rendering.latex("tables.tex", tables=tables)


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else _letter(at // 26 - 1) + _letter(at % 26)

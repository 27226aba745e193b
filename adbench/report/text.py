"""The report as files: tidy table, Markdown, LaTeX, charts."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adbench.files import whole, write_text
from adbench.report.charts import critical_difference, lines, standalone
from adbench.report.collect import TRIVIAL, mapping, tidy
from adbench.report.contents import MATRICES, METRICS, Contents, Line, Ranking, Robustness
from adbench.report.published import Cell, columns, display, published_marks
from adbench.report.statistics import Estimate


def shown(value: Estimate | None, digits: int = 3) -> str:
    """`0.912 ± 0.010`, `0.912` for a single value, a dash for none."""
    if value is None:
        return "–"
    return f"{value.mean:.{digits}f}" + ("" if value.std is None else f" ± {value.std:.{digits}f}")


def shown_interval(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} … {interval[1]:.3f}"


# -- tidy table ---------------------------------------------------------------------------------------------------


def write_runs(contents: Contents, out: Path) -> list[str]:
    """runs.csv, and runs.parquet where pyarrow is installed; returns what to tell the user."""
    table = tidy(contents.runs)
    columns = list(table[0]) if table else ["folder"]
    with whole(out / "runs.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        (out / "runs.parquet").unlink(missing_ok=True)  # an earlier report's would be of other runs
        return ["no runs.parquet: it needs pyarrow (pip install 'adbench-vision[report]'); runs.csv holds the same"]
    arrow = pyarrow.table({name: pyarrow.array([row[name] for row in table]) for name in columns})
    with whole(out / "runs.parquet") as temporary:
        parquet.write_table(arrow, temporary)
    return []


# -- charts -------------------------------------------------------------------------------------------------------


def ranking_chart(ranking: Ranking) -> str:
    title = f"Average ranks by image AUROC over {len(ranking.data)} data sets (Nemenyi, 5 %)"
    return critical_difference(ranking.methods, ranking.ranks, ranking.difference, title)


def robustness_chart(chart: Robustness) -> str:
    xs = sorted({float(x) for series in chart.series for x in series.x})
    ys = [float(v) for s in chart.series for v in (*(s.y - s.spread), *(s.y + s.spread))]  # type: ignore[operator]
    low = max(0.0, min(ys) - 0.03)
    high = min(1.0, max(ys) + 0.03)
    x_range = (min(0.0, xs[0]), max(xs))
    return lines(chart.series, chart.title, chart.key, "image AUROC", x_range, (low, high), ticks=_spaced(xs, x_range))


def _spaced(xs: Sequence[float], x_range: tuple[float, float]) -> list[float]:
    """Ticks at the levels that were run, those too near to the last one left out."""
    kept: list[float] = []
    for x in xs:
        if not kept or x - kept[-1] > 0.07 * (x_range[1] - x_range[0]):
            kept.append(x)
    return kept


def file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


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


# -- Markdown -----------------------------------------------------------------------------------------------------


def md(text: Any) -> str:
    """Text that Markdown and the HTML inside it take as text."""
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)


def md_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(map(md, header))} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(md, row))} |" for row in rows)])


def summary_line(contents: Contents) -> str:
    parts = [f"{contents.count(status)} {status}" for status in ("finished", "failed", "interrupted", "running")]
    return f"{len(contents.runs)} runs ({', '.join(part for part in parts if not part.startswith('0 '))})"


def ranking_text(ranking: Ranking) -> str:
    test = ranking.test
    text = (
        f"{len(ranking.methods)} methods on {len(ranking.data)} data sets: Friedman chi-square {test.chi_square:.2f} "
        f"(p = {test.p_chi_square:.3g}), Iman-Davenport F {test.f:.2f} (p = {test.p_f:.3g}); critical difference "
        f"{ranking.difference:.2f}. Data sets: {', '.join(ranking.data)}."
    )
    if ranking.left_out_methods:
        text += f" Left out, because they did not run on all of these: {', '.join(ranking.left_out_methods)}."
    if ranking.left_out_data:
        text += (
            f" Data sets left out, because not all of these methods ran on them: {', '.join(ranking.left_out_data)}."
        )
    return text


def matrix(contents: Contents, metric: str) -> tuple[list[str], list[tuple[str, list[Estimate | None]]]]:
    """Data sets, and a row of values for each method; both without those that have no value.

    A method's budgets stand behind its name, trivial baselines have none.
    """
    known = contents.best_known()
    data = sorted({one for found in known.values() for one, line in found.items() if line.values[metric] is not None})
    rows = []
    for name, found in known.items():
        budgets = sorted({line.variant.budget for line in found.values() if line.variant.method not in TRIVIAL})
        values = [found[one].values[metric] if one in found else None for one in data]
        if any(value is not None for value in values):
            rows.append((f"{name} ({'; '.join(budgets)})" if budgets else name, values))
    return data, rows


def heading(paper: str, table: str, cells: Sequence[Cell]) -> str:
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
        rows.append([*(fields[name] for name in names), "; ".join(marks) or "–"])
    return [*names, "marks"], rows


def settings_rows(found: Iterable[Line]) -> Iterable[list[str]]:
    for line in found:
        v = line.variant
        yield [
            v.label, line.experiment, v.protocol_label, v.held_out, v.budget, str(len(line.runs)),
            shown(line.values["image_auroc"]), shown_interval(line.interval),
            *(shown(line.values[name]) for name in list(METRICS)[1:]),
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


def markdown(contents: Contents, charts: Mapping[str, str]) -> str:
    """report.md."""
    parts = ["# Report", f"{summary_line(contents)}; {len(contents.skipped)} folders skipped."]
    parts += [md(note) for note in contents.notes]
    parts.append(LEGEND)
    for metric in MATRICES:
        data, rows = matrix(contents, metric)
        if rows:
            parts += [
                f"## {METRICS[metric]}, one_class",
                md_table(["method", *data], [[name, *map(shown, values)] for name, values in rows]),
            ]
    parts.append("## Published tables")
    empty = []
    for (paper, table), cells in contents.answers.items():
        if not cells:
            empty.append(f"{paper} {table}")
            continue
        parts.append(f"### {md(heading(paper, table, cells))}")
        remark = mapping()["remarks"].get(f"{paper} {table}")
        parts += [md(remark)] if remark else []
        parts.append(md_table(*paper_rows(cells)))
    if empty:
        parts.append(f"No run belongs to: {md(', '.join(empty))}.")
    if contents.ranking:
        parts += ["## Average ranks", f"![Average ranks]({charts['ranks']})", md(ranking_text(contents.ranking))]
    if contents.robustness:
        parts.append("## Robustness")
    for chart in contents.robustness:
        parts += [f"![{md(chart.title)}]({charts[f'robustness {chart.title} over {chart.key}']})"]
        points = [[name, f"{x:g}", shown(value), str(value.n)] for name, joined in chart.counts for x, value in joined]
        parts.append(md_table(["method", chart.key, "image AUROC", "seeds"], points))
    alone = [line for line in contents.lines if not line.beside_a_paper and line.variant.method not in TRIVIAL]
    if alone:
        parts += ["## Beside no published row", md_table(SETTINGS_COLUMNS, settings_rows(alone))]
    parts += ["## All settings", md_table(SETTINGS_COLUMNS, settings_rows(contents.lines))]
    unfinished = [run for run in contents.runs if run.status != "finished"]
    if unfinished:
        broken = [[run.folder, run.status, run.record.get("error") or "–"] for run in unfinished]
        parts += ["## Runs without a result", md_table(["folder", "status", "reason"], broken)]
    noted = [run for run in contents.runs if run.notes]
    if noted:
        parts += [
            "## Notes on runs",
            md_table(["folder", "note"], [[run.folder, "; ".join(run.notes)] for run in noted]),
        ]
    if contents.skipped:
        parts += ["## Skipped folders", md_table(["folder", "reason"], contents.skipped)]
    return "\n\n".join(parts) + "\n"


LEGEND = (
    "Ours is mean ± sample standard deviation over n seeds (over all experiments where the paper does so); intervals "
    "are 95 % bootstrap intervals over test images. Differences are ours minus published. A value marked with a budget "
    "other than the paper's, as a small preset or as a variant is not a reproduction of the published row; a share of "
    "the training rows that is held out is marked where the paper trains on them."
)


# -- LaTeX --------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "–": "--", "…": r"\dots{}", "≤": r"$\leq$",
    "λ": r"$\lambda$", "γ": r"$\gamma$",
}  # fmt: skip


def tex(text: Any) -> str:
    """Text that LaTeX takes as text; a character that pdflatex does not know becomes a question mark."""
    flat = " ".join(str(text).split())
    return "".join(_TEX.get(c, c if c.isascii() else "?") for c in flat)


COLUMNS = 6  # data sets beside each other that fit a page


def latex(contents: Contents) -> str:
    """tables.tex: a document that compiles by itself, one longtable for each published table with runs."""
    parts = [
        "% One table for each published table that runs belong to, and the overview.",
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,longtable}\n"
        "\\usepackage[margin=15mm,landscape]{geometry}\n\\begin{document}\\small",
    ]
    data, rows = matrix(contents, "image_auroc")
    for start in range(0, len(data), COLUMNS):
        block = data[start : start + COLUMNS]
        body = [[name, *map(shown, values[start : start + COLUMNS])] for name, values in rows]
        parts.append(_longtable("Image AUROC, one\\_class", ["method", *block], body, []))
    for (paper, table), cells in contents.answers.items():
        if not cells:
            continue
        marks: dict[str, str] = {}
        names, body = columns(cells), []
        for cell in cells:
            fields = display(cell)
            here = [marks.setdefault(m, _letter(len(marks))) for m in (*cell.marks, *published_marks(cell.row))]
            body.append([*(fields[name] for name in names), " ".join(here)])
        notes = [f"\\textsuperscript{{{letter}}} {tex(mark)}" for mark, letter in marks.items()]
        parts.append(_longtable(tex(heading(paper, table, cells)), [*names, "marks"], body, notes))
    return "\n\n".join([*parts, "\\end{document}"]) + "\n"


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else _letter(at // 26 - 1) + _letter(at % 26)


def _longtable(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]) -> str:
    lines = [f"\\begin{{longtable}}{{{'l' * len(header)}}}", f"\\caption{{{caption}}}\\\\", "\\toprule"]
    lines += [" & ".join(map(tex, header)) + " \\\\", "\\midrule", "\\endhead"]
    lines += [" & ".join(map(tex, row)) + " \\\\" for row in rows]
    lines += ["\\bottomrule", "\\end{longtable}"]
    return "\n".join(lines) + ("\n\\noindent " + "; ".join(notes) + "." if notes else "")

"""The report as one HTML page that needs nothing but itself.

Everything that comes from a run folder passes through `escape`; pictures are decoded and encoded anew. The page's
content security policy allows its own script and no connection.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from adbench.report.charts import DARK, STYLE, histogram, lines
from adbench.report.collect import TRIVIAL, Run, mapping, number, tidy
from adbench.report.contents import MATRICES, METRICS, PRO_LIMIT, Contents, Line, pixel_series, roc_series
from adbench.report.published import Cell, Row, columns, display, published_marks, tables
from adbench.report.statistics import Estimate
from adbench.report.text import (
    LEGEND,
    SETTINGS_COLUMNS,
    file_name,
    heading,
    matrix,
    ranking_chart,
    ranking_text,
    robustness_chart,
    shown,
    shown_interval,
    summary_line,
)

ROLES = {  # of gallery.json: group, caption
    "found": ("Best", "anomalous, highest score"),
    "passed": ("Best", "normal, lowest score"),
    "missed": ("Worst", "anomalous, lowest score"),
    "false_alarm": ("Worst", "normal, highest score"),
    "borderline": ("Borderline", "nearest to the threshold"),
}


class Td(NamedTuple):
    """One table cell: HTML, what to sort by ("" for missing), classes."""

    html: str
    sort: float | str | None = None
    classes: str = ""


def text(value: Any) -> Td:
    return Td(escape(str(value)))


def num(shown_value: str, value: float | None) -> Td:
    return Td(escape(shown_value), "" if value is None else value, "num")


def value_td(value: Estimate | None) -> Td:
    return num(shown(value), None if value is None else value.mean)


def table(
    name: str, header: Sequence[tuple[str, bool]], rows: Iterable[Sequence[Td]], classes: Sequence[str] = ()
) -> str:
    """A sortable table. `header` says for each column its name and whether it holds numbers."""
    heads = "".join(
        f'<th scope="col"{" class=num" * numeric}><button type="button">{escape(title)}</button></th>'
        for title, numeric in header
    )
    body = []
    for at, row in enumerate(rows):
        kind = f' class="{classes[at]}"' if at < len(classes) and classes[at] else ""
        body.append(f"<tr{kind}>{''.join(map(_td, row))}</tr>")
    return (
        f'<div class="wide"><table class="sortable" id="{escape(name)}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _td(cell: Td) -> str:
    kind = f' class="{cell.classes}"' if cell.classes else ""
    key = "" if cell.sort is None else f' data-v="{escape(str(cell.sort))}"'
    return f"<td{kind}{key}>{cell.html}</td>"


def badge(mark: str) -> str:
    return f'<span class="mark{" bad" * ("breaks a bound" in mark)}">{escape(mark)}</span>'


# -- sections -----------------------------------------------------------------------------------------------------


def html(
    contents: Contents, pictures: int = 40, progress: Callable[[list[Any]], Iterable[Any]] = lambda found: found
) -> str:
    """report.html. At most `pictures` runs show their images; the page says which are left out."""
    sections = {
        "Overview": _overview(contents),
        "Published tables": _papers(contents),
        "Ranks": _ranks(contents),
        "Robustness": _robustness(contents),
        "Data sets": _data_sets(contents, pictures, progress),
        "All settings": _settings(contents),
        "All runs": _runs(contents),
        "Skipped": _skipped(contents),
    }
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{file_name(title)}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{file_name(title)}"><h2>{title}</h2>{part}</section>' for title, part in sections.items()
    )
    script = _asset("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Anomaly detection report</title><style>{_asset('page.css')}{_chart_style()}</style></head><body>"
        f"<header><h1>Anomaly detection report</h1><p class=soft>{escape(summary_line(contents))}"
        f" in {escape(str(contents.results))}</p></header>"
        f'<nav><div>{links}<button id="theme" type="button">light / dark</button></div></nav>'
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _chart_style() -> str:
    rules = [rule.strip() + "}" for rule in DARK.split("}") if rule.strip()]
    forced = "".join(f":root[data-theme=dark] {rule}" for rule in rules)
    by_system = "".join(f":root:not([data-theme=light]) {rule}" for rule in rules)
    return f"{STYLE}{forced}@media(prefers-color-scheme:dark){{{by_system}}}"


def _overview(contents: Contents) -> str:
    tiles = {
        "finished runs": contents.count("finished"), "failed": contents.count("failed"),
        "interrupted or running": contents.count("interrupted") + contents.count("running"),
        "methods": len(contents.colours), "data sets": len({line.data for line in contents.lines}),
        "skipped folders": len(contents.skipped),
    }  # fmt: skip
    parts = [
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{n}</b><span>{name}</span></div>' for name, n in tiles.items())
        + "</div>"
    ]
    parts += [f"<p>{escape(note)}</p>" for note in contents.notes]
    for metric in MATRICES:
        data, rows = matrix(contents, metric)
        if not rows:
            continue
        best = [max((v[at].mean for _, v in rows if v[at] is not None), default=None) for at in range(len(data))]  # type: ignore[union-attr]
        body = [
            [text(name), *(_bold(value_td(v), v is not None and v.mean == best[at]) for at, v in enumerate(values))]
            for name, values in rows
        ]
        trivial = ["trivial" * (name.split(" ")[0] in TRIVIAL) for name, _ in rows]
        parts.append(f"<h3>{escape(METRICS[metric])}</h3>")
        parts.append(table(f"matrix-{metric}", [("method", False), *((d, True) for d in data)], body, trivial))
    if len(parts) == 1:
        return parts[0] + "<p>No run has finished.</p>"
    parts.append(
        "<p class=soft>Protocol one_class, mean ± standard deviation over seeds; the highest value of a column is "
        "bold, trivial baselines are in italics. Where a method ran in several settings on one data set, the one with "
        "nothing changed, then the paper's budget, then longer training, then more seeds stands here: never the one "
        'that scored best. All are under <a href="#all-settings">All settings</a>.</p>'
    )
    return "".join(parts)


def _bold(cell: Td, best: bool) -> Td:
    return cell._replace(classes=f"{cell.classes} best") if best else cell


def _papers(contents: Contents) -> str:
    parts = [f"<p class=soft>{escape(LEGEND)}</p>"]
    empty = []
    for (paper, name), cells in contents.answers.items():
        if not cells:
            empty.append((paper, name))
            continue
        parts.append(
            f"<h3>{escape(heading(paper, name, cells))}</h3><p class=soft>{escape(mapping()['papers'][paper])}</p>"
        )
        remark = mapping()["remarks"].get(f"{paper} {name}")
        parts += [f"<p>{escape(remark)}</p>"] if remark else []
        shown_columns = columns(cells)
        header = [(column, column in ("our value", "n", "published", "difference")) for column in shown_columns]
        body = [_paper_row(cell, shown_columns) for cell in cells]
        kinds = ["trivial" * (cell.kind == "trivial") for cell in cells]
        parts.append(table(f"paper-{file_name(paper)}-{file_name(name)}", [*header, ("marks", False)], body, kinds))
        parts.append(_printed(paper, name))
    if empty:
        printed = "".join(_printed(*key, title=f"{key[0]}, Table {key[1]}") for key in empty)
        parts.append(f"<h3>Tables without runs</h3>{printed}")
    return "".join(parts)


def _paper_row(cell: Cell, shown_columns: Sequence[str]) -> list[Td]:
    fields = display(cell)
    sort = {
        "our value": cell.value.mean, "n": cell.value.n, "difference": cell.difference,
        "published": None if cell.row is None else cell.row.number,
    }  # fmt: skip
    row = [num(fields[name], sort[name]) if name in sort else text(fields[name]) for name in shown_columns]
    return [*row, Td("".join(map(badge, [*cell.marks, *published_marks(cell.row)])), classes="wrap")]


def _printed(paper: str, name: str, title: str = "the whole table as published") -> str:
    """A published table as printed, rows of methods; values that break a bound are marked."""
    blocks: dict[str, dict[str, dict[str, Row]]] = {}
    for row in tables()[paper, name]:
        place = row.dataset if row.category.startswith(("all", "mean over")) else row.category
        method = f"{row.method} ({row.setting})" if row.setting else row.method
        blocks.setdefault(row.metric, {}).setdefault(method, {})[place] = row
    parts = []
    for metric, methods in blocks.items():
        places = list(dict.fromkeys(place for found in methods.values() for place in found))
        body = []
        for method, found in methods.items():
            body.append([text(method), *(_printed_td(found.get(place)) for place in places)])
        identity = f"printed-{file_name(paper)}-{file_name(name)}-{file_name(metric)}"
        parts.append(
            f"<h4>{escape(metric)}</h4>" + table(identity, [("method", False), *((p, True) for p in places)], body)
        )
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def _printed_td(row: Row | None) -> Td:
    if row is None:
        return num("–", None)
    cell = num(row.value + (f" ± {row.std}" if row.std else ""), row.number)
    marks = published_marks(row)
    if not marks:
        return cell
    said, kind = escape("; ".join(marks)), "mark bad" if row.breaks else "mark"
    return cell._replace(html=f'<span class="{kind}" title="{said}">{cell.html}</span>')


def _ranks(contents: Contents) -> str:
    if contents.ranking is None:
        return ""
    return f'<p>{escape(ranking_text(contents.ranking))}</p><div class="chart">{ranking_chart(contents.ranking)}</div>'


def _robustness(contents: Contents) -> str:
    return '<div class="charts">' + "".join(
        f'<div class="chart">{robustness_chart(chart)}</div>' for chart in contents.robustness
    ) + "</div>" if contents.robustness else ""  # fmt: skip


def _settings(contents: Contents) -> str:
    words = ("method", "data", "protocol", "held out", "budget", "published row")
    header = [(name, name not in words) for name in (*SETTINGS_COLUMNS, "published row")]
    body, kinds = [], []
    for line in contents.lines:
        v, low = line.variant, line.interval[0] if line.interval else None
        trivial = v.method in TRIVIAL
        body.append([
            text(v.label)._replace(classes="wrap"), text(line.experiment), text(v.protocol_label), text(v.held_out),
            text(v.budget),
            num(str(len(line.runs)), len(line.runs)),
            value_td(line.values["image_auroc"]), num(shown_interval(line.interval), low),
            *(value_td(line.values[name]) for name in list(METRICS)[1:]),
            text("beside one" if line.beside_a_paper else "trivial baseline" if trivial else "none"),
        ])  # fmt: skip
        kinds.append("trivial" * trivial)
    return _search("settings") + table("settings", header, body, kinds)


def _search(name: str) -> str:
    return f'<input type="search" data-table="{name}" placeholder="filter: words of a row" aria-label="filter">'


def _runs(contents: Contents) -> str:
    columns = ("folder", "status", "budget", "seed", "image_auroc", "pixel_auroc", "pixel_pro", "batches", "train",
               "test_normal", "test_anomalous", "total_s", "finished", "error", "notes")  # fmt: skip
    numeric = set(columns[3:12])
    body = []
    for row in tidy(contents.runs):
        cells = []
        for name in columns:
            value = row.get(name)
            if name in numeric:
                digits = ".3f" if "_auroc" in name or "_pro" in name else "g"
                cells.append(num("–" if value is None else f"{value:{digits}}", value))
            else:
                failed = name in ("status", "error") and row["status"] == "failed"
                cells.append(text("" if value is None else value)._replace(classes="wrap" + " failed" * failed))
        body.append(cells)
    return _search("runs") + table("runs", [(name, name in numeric) for name in columns], body)


def _skipped(contents: Contents) -> str:
    rows = [[text(folder), text(reason)._replace(classes="wrap")] for folder, reason in contents.skipped]
    return table("skipped-folders", [("folder", False), ("reason", False)], rows) if rows else ""


# -- data sets: curves, histograms, pictures ----------------------------------------------------------------------


def _data_sets(contents: Contents, pictures: int, progress: Callable[[list[Any]], Iterable[Any]]) -> str:
    by_data: dict[str, list[tuple[str, Line]]] = {}
    for name, found in contents.best_known().items():
        for data, line in found.items():
            by_data.setdefault(data, []).append((name, line))
    left, parts, without = pictures, [], []
    for at, data in enumerate(progress(sorted(by_data))):
        members = by_data[data]
        shown_here = []
        for name, line in members:
            if left > 0:
                pictured = _gallery(line.runs[0])
                left -= bool(pictured)
                shown_here.append(f"<h4>{escape(name)}, seed {line.runs[0].seed}</h4>{pictured}" if pictured else "")
            elif (line.runs[0].path / "figures").is_dir():
                without.append(f"{name} on {data}")
        parts.append(
            f"<details{' open' * (at == 0)}><summary class=big>{escape(data)}</summary>{_curves(contents, members)}"
            f"{_histograms(members)}{''.join(shown_here)}</details>"
        )
    if not parts:
        return ""
    intro = (
        "<p class=soft>Each method's first seed. Histograms show shares of normal (blue) and anomalous (red) test "
        "images.</p>"
    )
    if without:
        text_ = f"{len(without)} runs beyond the first {pictures} show no pictures (--pictures N): {', '.join(without)}"
        intro += f"<details><summary>Pictures left out</summary><p>{escape(text_)}</p></details>"
    return intro + "".join(parts)


def _curves(contents: Contents, members: Sequence[tuple[str, Line]]) -> str:
    charts = []

    def named(name: str, line: Line, metric: str) -> str:
        value = line.runs[0].metrics.get(metric)
        return name if value is None else f"{value:.3f}  {name}"

    for kind, metric, title in (
        ("roc", "image_auroc", "ROC of images"), ("pro", "pixel_pro", "PRO of pixels"),
        ("tpr", "pixel_auroc", "ROC of pixels"),
    ):  # fmt: skip
        series = []
        for name, line in members:
            label, colour = named(name, line, metric), contents.colours[name]
            run = line.runs[0]
            series.append(roc_series(run, label, colour) if kind == "roc" else pixel_series(run, label, colour, kind))
        found = [one for one in series if one is not None]
        if found:
            limit = PRO_LIMIT if kind == "pro" else 1.0
            up = "mean overlap with a region" if kind == "pro" else "true positive rate"
            drawn = lines(found, title, "false positive rate", up, (0.0, limit), diagonal=kind != "pro")
            charts.append(f'<div class="chart">{drawn}</div>')
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _histograms(members: Sequence[tuple[str, Line]]) -> str:
    drawn = [
        f'<div class="chart">{histogram(run.rows.score, run.rows.label, run.threshold, name)}</div>'
        for name, line in members
        if (run := line.runs[0]).rows is not None and len(run.rows.score)
    ]
    return f'<h4>Scores</h4><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _gallery(run: Run) -> str:
    """Best, worst and borderline test images of a run; the panels of a run that stored none; "" without either."""
    groups: dict[str, list[str]] = {"Best": [], "Worst": [], "Borderline": []}
    for entry in _gallery_entries(run):
        uri = picture(run.path / "figures" / entry["file"], 390)
        if uri:
            group, what = ROLES[entry["role"]]
            score = number(entry.get("score"))
            shown_score = "–" if score is None else f"{score:.4g}"
            caption = escape(f"{what}: {entry.get('defect')}, score {shown_score}, {entry.get('path')}")
            groups[group].append(
                f'<figure><img src="{uri}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
            )
    parts = [
        f'<p class=soft>{group}</p><div class="gallery">{"".join(found)}</div>'
        for group, found in groups.items()
        if found
    ]
    if parts:
        return "".join(parts)
    uri = picture(run.path / "figures" / "panels.png", 1000)
    return f'<img class="panels" src="{uri}" alt="test images, maps and masks">' if uri else ""


def _gallery_entries(run: Run) -> Sequence[Mapping[str, Any]]:
    try:
        entries = json.loads((run.path / "figures" / "gallery.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and entry.get("role") in ROLES and Path(str(entry.get("file"))).name == entry["file"]
    ][:60]


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

"""A W&B workspace and report for the runs of a results folder: tables, curves and pictures without hand work.

What is to be made is planned first, from the runs alone; offline the plan is printed, online W&B's API makes it.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from adbench.report.contents import MATRICES, METRICS, Contents
from adbench.report.rendering import md_table
from adbench.report.text import LEGEND, heading, matrix, paper_rows, ranking_text, summary_line

TERMS_OF_A_METHOD = 12
STEP = "trainer/global_step"  # Lightning's logger writes it beside every number


@dataclass(frozen=True)
class Panel:
    """One panel: bars of a test metric, lines of a training term, or pictures."""

    kind: Literal["bars", "lines", "pictures"]
    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What W&B shall show. Runs are grouped as the logger groups them: seeds of one setting together."""

    entity: str | None
    project: str
    title: str
    sections: tuple[tuple[str, tuple[Panel, ...]], ...]
    text: tuple[tuple[str, str], ...]  # heading and Markdown of the report

    def description(self) -> str:
        """The plan in lines, for a terminal."""
        owner = f"{self.entity}/" if self.entity else ""
        lines = [f"W&B project {owner}{self.project}", f"  workspace {self.title!r}, runs grouped by group"]
        for name, panels in self.sections:
            lines.append(f"    section {name!r}")
            lines += [f"      {panel.kind}: {panel.title} ({', '.join(panel.keys)})" for panel in panels]
        lines.append(f"  report {self.title!r}")
        lines += [f"    {name!r}, {text.count(chr(10)) + 1} lines of Markdown" for name, text in self.text]
        return "\n".join([*lines, *(f"    panels of section {name!r}" for name, _ in self.sections)])


def plan(contents: Contents, target: str, entity: str | None = None) -> Plan:
    """The plan for a project, `PROJECT` or `ENTITY/PROJECT`."""
    before, slash, project = target.rpartition("/")
    metrics = [name for name in METRICS if any(run.metrics.get(name) is not None for run in contents.runs)]
    sections = [("Test metrics", tuple(Panel("bars", METRICS[name], (f"test/{name}",)) for name in metrics))]
    for method, terms in _training_terms(contents).items():
        sections.append((f"Training, {method}", tuple(Panel("lines", term, (term,)) for term in terms)))
    pictures = tuple(
        Panel("pictures", name, (f"figures/{name}",))
        for name in ("panels", "roc", "histogram")
        if any((run.path / "figures" / f"{name}.png").exists() for run in contents.runs)
    )
    if pictures:
        sections.append(("Pictures", pictures))
    return Plan(before if slash else entity, project, "Anomaly detection", tuple(sections), tuple(_texts(contents)))


def _texts(contents: Contents) -> list[tuple[str, str]]:
    parts = [("Runs", f"{summary_line(contents)}. {LEGEND}")]
    for metric in MATRICES:
        data, rows = matrix(contents, metric)
        if rows:
            table = md_table(["method", *data], [row.texts for row in rows])
            parts.append((f"{METRICS[metric]}, one_class", table))
    for (paper, name), cells in contents.answers.items():
        if cells:
            parts.append((heading(paper, name, cells), md_table(*paper_rows(cells))))
    if contents.ranking:
        parts.append(("Average ranks", ranking_text(contents.ranking)))
    return parts


def _training_terms(contents: Contents) -> dict[str, list[str]]:
    """method -> names of its loss terms, from the logs of its first run that has some."""
    terms: dict[str, list[str]] = {}
    for run in contents.runs:
        method = run.variant.method
        for log in () if method in terms else sorted((run.path / "logs").glob("*/metrics.csv")):
            names = _header(log)
            losses = [name for name in names if name.startswith("train/")][:TERMS_OF_A_METHOD]
            if losses:
                terms[method] = losses
    return terms


def _header(path: Path) -> list[str]:
    with suppress(OSError, ValueError, csv.Error), path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
    return []


# -- W&B ----------------------------------------------------------------------------------------------------------


def online(environment: Mapping[str, str]) -> bool:
    """Whether W&B may be reached: the same rule as the runs' logger."""
    mode = environment.get("WANDB_MODE", "")
    return mode not in ("offline", "disabled", "dryrun") and bool(environment.get("WANDB_API_KEY") or mode == "online")


def build(whole_plan: Plan, workspaces: ModuleType | Any, reports: ModuleType | Any) -> tuple[Any, Any]:
    """The workspace and the report of a plan, as objects of the two modules of `wandb_workspaces`; nothing is sent."""
    wr, ws = reports, workspaces

    def panels(planned: tuple[Panel, ...]) -> list[Any]:
        drawn = []
        for at, panel in enumerate(planned):
            shared = {"title": panel.title, "layout": wr.Layout(x=8 * (at % 3), y=6 * (at // 3), w=8, h=6)}
            keys, over_seeds = list(panel.keys), {"groupby": "group", "groupby_aggfunc": "mean"}
            if panel.kind == "bars":
                drawn.append(wr.BarPlot(metrics=keys, groupby_rangefunc="stddev", **shared, **over_seeds))
            elif panel.kind == "lines":
                drawn.append(wr.LinePlot(x=STEP, y=keys, groupby_rangefunc="minmax", **shared, **over_seeds))
            else:
                drawn.append(wr.MediaBrowser(media_keys=keys, num_columns=2, **shared))
        return drawn

    workspace = ws.Workspace(
        entity=whole_plan.entity, project=whole_plan.project, name=whole_plan.title,
        sections=[ws.Section(name=name, panels=panels(planned), is_open=True) for name, planned in whole_plan.sections],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")]),
    )  # fmt: skip
    blocks: list[Any] = [wr.TableOfContents()]
    for name, text in whole_plan.text:
        blocks += [wr.H2(text=name), wr.MarkdownBlock(text=text)]
    runset = {"entity": whole_plan.entity, "project": whole_plan.project, "groupby": ["group"]}
    for name, planned in whole_plan.sections:
        blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[wr.Runset(**runset)], panels=panels(planned))]
    report = wr.Report(
        entity=whole_plan.entity, project=whole_plan.project, title=whole_plan.title, blocks=blocks, width="fluid"
    )
    return workspace, report


def publish(contents: Contents, target: str, environment: Mapping[str, str] = os.environ) -> int:
    """Make the workspace and the report, or print what would be made; returns the exit code."""
    planned = plan(contents, target, environment.get("WANDB_ENTITY"))
    if not online(environment):
        print("W&B is offline (no WANDB_API_KEY, or WANDB_MODE says so). Online, this would make:")
        print(planned.description())
        return 0
    if not planned.entity:
        print(f"error: say whose project it is: --wandb ENTITY/{planned.project}, or WANDB_ENTITY", file=sys.stderr)
        return 1
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        print("error: --wandb needs wandb-workspaces: pip install 'adbench-vision[report]'", file=sys.stderr)
        return 1
    try:
        workspace, report = build(planned, workspaces, reports)
        workspace.save()
        report.save()
    except Exception as error:  # the client raises many kinds, for refused keys as for a cable pulled out
        print(f"error: W&B refused: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"W&B workspace {workspace.url}\nW&B report {report.url}")
    return 0

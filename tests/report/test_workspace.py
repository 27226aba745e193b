"""The W&B workspace: what is planned from the runs, what is built of it, and what is said offline."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from adbench.report import workspace
from adbench.report.workspace import Panel


class Recorder(ModuleType):
    """Stands in for a module of wandb_workspaces: every class keeps its keywords; `save` notes what was saved."""

    def __init__(self, name, saved, refuse=False):
        super().__init__(name)
        self.saved, self.refuse = saved, refuse

    def __getattr__(self, kind):
        if kind.startswith("_"):
            raise AttributeError(kind)

        def make(*arguments, **keywords):
            made = SimpleNamespace(kind=kind, arguments=arguments, url=f"https://wandb.example/{kind}", **keywords)
            made.save = lambda: self._save(made)
            return made

        return make

    def _save(self, made):
        if self.refuse:
            raise ConnectionError("no route\nto host")
        self.saved.append(made.kind)


@pytest.fixture
def client(monkeypatch):
    """`client(refuse=...)` puts a fake wandb_workspaces in place and returns the list of what gets saved."""

    def put(refuse=False):
        saved = []
        package, reports = ModuleType("wandb_workspaces"), ModuleType("wandb_workspaces.reports")
        package.workspaces = Recorder("wandb_workspaces.workspaces", saved, refuse)
        package.reports, reports.v2 = reports, Recorder("wandb_workspaces.reports.v2", saved, refuse)
        for module in (package, reports, package.workspaces, reports.v2):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return saved

    return put


@pytest.fixture
def contents(results, gather, pictures):
    for seed in (0, 1):
        folder = results.run("cbigan/small", seed=seed, metrics={"image_auroc": 0.8, "pixel_auroc": 0.7})
        (folder / "logs" / "version_0").mkdir(parents=True)
        (folder / "logs" / "version_0" / "metrics.csv").write_text(
            "epoch,train/critic/wasserstein,test/image_auroc\n0,1,\n"
        )
        pictures(folder)
    return gather(results)


ONLINE = {"WANDB_API_KEY": "k"}


def test_the_plan_has_bars_lines_pictures_and_the_paper_tables(contents):
    made = workspace.plan(contents, "team/bench")
    assert (made.entity, made.project) == ("team", "bench")
    sections = dict(made.sections)
    assert sections["Test metrics"] == (
        Panel("bars", "image AUROC", ("test/image_auroc",)), Panel("bars", "pixel AUROC", ("test/pixel_auroc",)),
    )  # fmt: skip
    assert sections["Training, cbigan/small"] == (
        Panel("lines", "train/critic/wasserstein", ("train/critic/wasserstein",)),
    )
    assert sections["Pictures"] == (Panel("pictures", "panels", ("figures/panels",)),)
    headings = [name for name, _ in made.text]
    assert "CBiGAN, Table III: image auROC on MVTec AD" in headings
    table = dict(made.text)["CBiGAN, Table III: image auROC on MVTec AD"]
    assert "| bottle | CBiGAN (ours) | cbigan/small | 0.800 ± 0.000 | 2 | 0.87 | -0.070 | small preset |" in table


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (ONLINE, True),
        ({"WANDB_MODE": "online"}, True),
        (ONLINE | {"WANDB_MODE": "offline"}, False),
        (ONLINE | {"WANDB_MODE": "disabled"}, False),
    ],
)
def test_online_is_what_the_logger_takes_for_online(environment, expected):
    assert workspace.online(environment) is expected


def test_offline_nothing_is_sent_and_the_plan_is_printed(contents, client, capsys):
    saved = client()
    assert workspace.publish(contents, "bench", {}) == 0
    said = capsys.readouterr().out
    assert saved == []
    assert "W&B project bench" in said
    assert "bars: image AUROC (test/image_auroc)" in said
    assert "lines: train/critic/wasserstein" in said
    assert "pictures: panels (figures/panels)" in said
    assert "report 'Anomaly detection'" in said


def test_online_a_workspace_and_a_report_are_saved_and_their_addresses_said(contents, client, capsys):
    saved = client()
    assert workspace.publish(contents, "team/bench", ONLINE) == 0
    assert saved == ["Workspace", "Report"]
    assert "https://wandb.example/Workspace" in capsys.readouterr().out


def test_the_entity_may_come_from_the_environment_and_must_come_from_somewhere(contents, client, capsys):
    saved = client()
    assert workspace.publish(contents, "bench", ONLINE | {"WANDB_ENTITY": "team"}) == 0
    assert workspace.publish(contents, "bench", ONLINE) == 1
    assert "--wandb ENTITY/bench" in capsys.readouterr().err
    assert saved == ["Workspace", "Report"]


def test_what_is_built_is_what_was_planned(contents, client):
    client()
    import wandb_workspaces

    made = workspace.plan(contents, "team/bench")
    space, report = workspace.build(made, wandb_workspaces.workspaces, wandb_workspaces.reports.v2)
    assert [section.name for section in space.sections] == [name for name, _ in made.sections]
    assert [[panel.kind for panel in section.panels] for section in space.sections] == [
        ["BarPlot", "BarPlot"], ["LinePlot"], ["MediaBrowser"],
    ]  # fmt: skip
    assert space.sections[0].panels[0].metrics == ["test/image_auroc"]
    assert space.sections[1].panels[0].groupby == "group"  # seeds of one setting are one line
    grids = [block for block in report.blocks if block.kind == "PanelGrid"]
    assert [runset.project for grid in grids for runset in grid.runsets] == ["bench"] * 3
    assert sum(block.kind == "MarkdownBlock" for block in report.blocks) == len(made.text)


def test_a_refusing_server_is_one_message(contents, client, capsys):
    client(refuse=True)
    assert workspace.publish(contents, "team/bench", ONLINE) == 1
    assert "W&B refused: ConnectionError: no route to host" in capsys.readouterr().err


def test_without_the_package_the_extra_is_named(contents, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert workspace.publish(contents, "team/bench", ONLINE) == 1
    assert "adbench-vision[report]" in capsys.readouterr().err


def test_the_real_package_takes_what_is_built(contents):
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    space, report = workspace.build(workspace.plan(contents, "team/bench"), workspaces, reports)
    assert "test/image_auroc" in str(space._to_model())
    assert [type(block).__name__ for block in report.blocks].count("PanelGrid") == 3


def test_the_command_prints_the_plan(results, report, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    results.run()
    code, _, said = report(results, "--wandb", "team/bench")
    assert code == 0
    assert "W&B is offline" in said and "W&B project team/bench" in said

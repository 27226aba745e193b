"""The proof on a CPU, at smoke size: every kind of task, resumed, and what its table says."""

import json

import pytest
from pytorch_lightning import Callback

from adbench.experiment import costs
from adbench.studies import proof

TINY = ("trainer.threads=1", "evaluation.panels_anomalous=0", "evaluation.panels_normal=0")


@pytest.fixture
def places(tmp_path, data_root, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ADBENCH_DATA", str(data_root))
    monkeypatch.setenv("ADBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(costs, "Compiled", lambda failed: Callback())  # a compiler takes a minute a network
    return tmp_path / "proof"


def smoke(out, *more):
    return proof.main(["--out", str(out), "--smoke", "--methods", "cbigan", "esad", *TINY, *more])


@pytest.mark.slow
def test_each_stage_leaves_a_row_and_a_second_command_does_nothing_again(places, capsys, monkeypatch):
    assert smoke(places) == 0
    rows = json.loads((places / "proof.json").read_text())["tasks"]
    methods = ("cbigan", "esad")
    speeds = [f"speed: {m}, {p}{c}" for m in methods for p in proof.PRECISIONS for c in ("", ", compiled")]
    short = [f"short: {m}, {p}" for m in methods for p in proof.PRECISIONS]
    assert set(rows) == {"machine", *speeds, *short, "paper: cbigan on mvtec/bottle", "paper: esad on mnist"}
    assert not [row for row in rows.values() if "error" in row]
    speed = rows["speed: cbigan, 32-true"]
    assert speed["images_per_second"] == pytest.approx(speed["batch"] / speed["seconds_a_batch"])
    assert speed["operations"] > 1e6 and speed["operations_seconds"] > 0 and speed["scored_per_second"] > 0
    assert rows["short: cbigan, 32-true"]["metrics"]["image_auroc"] is not None
    assert rows["short: cbigan, bf16-mixed"]["precision"] == "bf16-mixed"
    assert (places / rows["paper: esad on mnist"]["folder"] / "metrics.json").is_file()
    capsys.readouterr()
    text = (places / "proof.md").read_text()
    assert "no figure is a result" in text
    assert "| cbigan, 32-true | " in text and "share of peak" in text and "## At the papers' length" in text
    monkeypatch.setattr(proof, "trained", None)
    monkeypatch.setattr(proof, "speed", None)
    assert smoke(places) == 0
    assert "\n-- " not in capsys.readouterr().out
    assert json.loads((places / "proof.json").read_text())["tasks"] == rows


@pytest.mark.slow
def test_a_task_that_fails_is_listed_stops_no_other_and_is_tried_again(places, monkeypatch, capsys):
    done = []

    def broken(words, compiled):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(proof, "speed", broken)
    monkeypatch.setattr(proof, "trained", lambda words, out: done.append(words) or {"error": "left out"})
    assert smoke(places) == 1
    assert len(done) == 6
    assert "speed: cbigan, 32-true: RuntimeError: no compiler" in (places / "proof.md").read_text()
    tried = []
    monkeypatch.setattr(proof, "speed", lambda *a: tried.append(a) or {"error": "again"})
    smoke(places)
    assert len(tried) == 8


def test_a_stopped_run_ends_the_command_and_is_no_result(places, monkeypatch):
    def stopped(words, out):
        raise proof.Stopped

    monkeypatch.setattr(proof, "speed", lambda *a: {"error": "left out"})
    monkeypatch.setattr(proof, "trained", stopped)
    assert smoke(places) == 143
    assert not [key for key in proof.results(places)["tasks"] if key.startswith("short")]


def test_what_is_soon_done_comes_first_and_paper_runs_go_round_by_round(places, data_root):
    setting = proof.Setting(places, ["cbigan", "ssae"], [], False, None)
    stages = [task.stage for task in proof.tasks(setting)]
    assert stages == sorted(stages, key=["machine", "speed", "short", "compiled", "paper"].index)
    paper = [task.key for task in proof.tasks(setting) if task.stage == "paper"]
    assert [key.partition(" on ")[2] for key in paper[::2]] == ["mvtec/bottle", "mvtec/carpet", "mvtec/screw"]
    places.mkdir()
    speeds = {"speed: cbigan, 32-true": {"paper_hours": 9.0}, "speed: ssae, 32-true": {"paper_hours": 2.0}}
    (places / "proof.json").write_text(json.dumps({"tasks": speeds, "seconds": 0.0}))
    assert next(task.key for task in proof.tasks(setting) if task.stage == "paper") == "paper: ssae on mvtec/bottle"


def test_a_proof_with_other_arguments_is_not_mixed_into_this_one(places, capsys):
    proof.write_json(places / "proof.json", {"tasks": {}, "seconds": 0.0, "asked": ["seed=1"]})
    assert smoke(places) == 1
    assert "holds a proof with other arguments (seed=1)" in capsys.readouterr().err


def test_a_slip_is_said_before_any_task(places, capsys):
    assert smoke(places, "trainer.acelerator=gpu") == 1
    assert "did you mean trainer.accelerator?" in capsys.readouterr().err
    assert not places.exists()

"""A paper's tables on the data in reach."""

import pytest
from conftest import metrics_of

from adbench.experiment import sweeps
from adbench.experiment.groups import choices
from adbench.studies import reproduce

TINY = ("trainer=smoke", "trainer.threads=1", "evaluation.panels_anomalous=0", "evaluation.panels_normal=0")


def test_the_tables_run_on_what_is_there_and_say_what_is_not(run, tmp_path, capfd):
    code = reproduce.main(["cbigan", "--runs", "2", *TINY])
    out = capfd.readouterr().out
    assert code == 0, out
    (missing,) = [line for line in out.splitlines() if "not in reach" in line]
    assert "mvtec/{cable,capsule,grid," in missing
    assert "expected normal training images in" in missing
    assert "data_root=DIR" in missing
    assert len(missing) < 450
    assert "BUDGET=paper" in out
    found = {(r["method"], r["data"]) for r in (metrics_of(p.parent) for p in tmp_path.rglob("metrics.json"))}
    assert found == {("cbigan/small", "mvtec/bottle"), ("egbad/small", "mvtec/bottle")}  # evenly spread over six
    assert [job.status for job in sweeps.outcomes] == ["finished"] * 2
    assert out.count("already finished") == 2  # Table III found Table II's


def test_without_any_data_the_command_says_what_to_set(run, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("ADBENCH_DATA", str(tmp_path / "nothing"))
    assert reproduce.main(["ssae"]) == 1
    assert "set ADBENCH_DATA" in capfd.readouterr().out


@pytest.mark.parametrize("paper", ["cbigan", "esad", "igd", "pwae", "ssae"])
def test_the_quick_command_of_every_table_composes(paper):
    reach = dict.fromkeys(choices("data"))
    for table in (name for name in choices("experiment") if name.startswith(f"{paper}/table")):
        line = reproduce.command(table, True, reach, [])
        assert {"budget=quick"} <= set(line)
        assert not any("imagenet" in word for word in line)


def test_the_cpu_preset_of_a_method_is_taken_where_there_is_one():
    assert reproduce.small("cbigan") == "cbigan/small"
    assert reproduce.small("esad/mnist") == "esad/mnist_small"
    assert reproduce.small("igd/mse") == "igd/mse"


def test_so_many_jobs_are_evenly_spread_over_the_sweep(run):
    code, _ = run("-m", "method=brightness", "data=mvtec/bottle", "seed=range(9)", "hydra.sweeper.at_most=3")
    assert code == 0
    assert [job.metrics["seed"] for job in sweeps.outcomes] == [0, 2, 5]


def test_a_slip_in_an_override_is_told_once_and_before_any_table_starts(run, capfd):
    assert reproduce.main(["cbigan", *TINY, "method.latnt=3"]) == 1
    said = capfd.readouterr()
    assert said.err.count("did you mean method.latent?") == 1
    assert "python -m adbench.run" not in said.out

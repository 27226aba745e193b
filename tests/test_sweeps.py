"""Sweeps in one process: what is skipped and recorded, what the command says at its end; the sharing of a machine."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import metrics_of, write_mvtec
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from adbench.experiment import sweeps
from adbench.experiment.groups import conf_dir
from adbench.experiment.placement import gpus_of_worker, jobs_side_by_side, threads_per_job
from hydra_plugins import adbench_sweepers

QUICK = ("data.batch_size=4", "evaluation.panels_anomalous=0", "evaluation.panels_normal=0")


def statuses():
    return {job.name.split("/seed")[0]: job.status for job in sweeps.outcomes}


def test_a_job_that_does_not_compose_is_recorded_and_the_others_run(run, capfd):
    code, _ = run("-m", "method=brightness,pca", "data=mvtec/bottle", "method.components=2", "seed=0", *QUICK)
    out = capfd.readouterr().out
    assert code == 1
    assert [job.status for job in sweeps.outcomes] == ["failed", "finished"]  # brightness has no components
    assert "does not compose: Could not override 'method.components'" in out
    code, _ = run("-m", "method=brightness", "data=mvtec/bottle", "trainer=cpu,nowhere", *QUICK, smoke=False)
    out = capfd.readouterr()
    assert code == 1
    assert "nowhere does not exist" in out.err  # told before any job starts
    for unknown in ("evaluation.nothing=1,2", "+method.wrong=1,2"):
        code, _ = run("-m", "method=brightness", "data=mvtec/bottle", unknown, *QUICK)
        assert code == 1
        assert sweeps.outcomes == []
        assert unknown.lstrip("+").partition("=")[0] in capfd.readouterr().err
    code, _ = run("-m", "method=brightness", "data=mvtec/bottle", "seed=0,${nothing}", *QUICK)
    assert code == 1
    assert [job.status for job in sweeps.outcomes] == ["finished", "failed"]


def test_jobs_that_differ_in_their_seed_alone_are_composed_once_and_alike(monkeypatch):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        shared = loader.load_configuration("config", ["data=digits"], run_mode=RunMode.MULTIRUN)
        whole, calls = loader.load_sweep_config, []
        monkeypatch.setattr(loader, "load_sweep_config", lambda *given: (calls.append(given[1]), whole(*given))[1])
        recorder = sweeps.Recorder(None, shared, loader)
        for method, seed in itertools.product(("pca", "autoencoder"), (0, 7, 12)):
            job = sweeps.Job(3, [f"method={method}", "data=digits", f"seed={seed}", "data.image_size=24"], "")
            ours, theirs = recorder.composed(job), whole(shared, list(job.overrides))
            with open_dict(theirs):
                theirs.hydra.job.id = theirs.hydra.job.num = 3
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)
            assert job.name == theirs.hydra.sweep.subdir and f"seed{seed}" in job.name
        assert len(calls) == 2
        for words in (["seed=1", "seed=2"], ["seed=null"], ["seed=1", "++seed=2"], ["seed=007"]):
            recorder.composed(sweeps.Job(0, ["method=pca", "data=digits", *words], ""))
        assert len(calls) == 6


def test_a_word_for_a_number_fails_its_own_job_with_the_reason(run, capfd):
    code, _ = run("-m", "method=pca", "data=mvtec/bottle", "method.components=2,few", *QUICK)
    assert code == 1
    assert [job.status for job in sweeps.outcomes] == ["finished", "failed"]
    assert (
        sweeps.outcomes[1].reason == "method.components must be a whole number, as in method.components=30; got 'few'"
    )


AXES = """
hydra:
  mode: MULTIRUN
  sweeper:
    axes:
      method: [{method: "brightness,pca"}, {method: knn/small, pretraining: imagenet}]
      protocol: [{protocol: contaminated, protocol.ratio: "0.25,0.5"}, {protocol: small_train, protocol.fraction: 0.9}]
"""


def test_values_that_go_together_are_alternatives_of_an_axis_and_a_key_given_by_hand_takes_its_axis_away(
    run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_" + AXES)
    monkeypatch.setenv("ADBENCH_CONF", str(tmp_path / "conf"))
    assert run("-m", "experiment=mine", "data=mvtec/bottle", "--cfg", "job")[0] == 0
    first = capsys.readouterr()
    assert "9 jobs" in first.err
    assert "Brightness" in first.out
    code, _ = run("-m", "experiment=mine", "method=brightness", "data=mvtec/bottle", "seed=0,1", *QUICK)
    assert code == 0
    names = [job.name for job in sweeps.outcomes]
    assert len(set(names)) == len(names) == 6
    assert sum("/contaminated_0.25/" in name for name in names) == 2
    assert sum("/small_train_0.9/" in name for name in names) == 2


@pytest.mark.parametrize(("axes", "wanted"), [((2, 2, 2), 4), ((3, 4), 6), ((5, 5, 2), 10), ((2, 3), 6), ((3,), 5)])
def test_jobs_spread_over_a_sweep_are_distinct_and_leave_no_value_of_an_axis_out(axes, wanted):
    jobs = list(itertools.product(*(range(n) for n in axes)))
    chosen = [jobs[i] for i in adbench_sweepers.spread(len(jobs), wanted)]
    assert len(set(chosen)) == min(wanted, len(jobs))
    for axis, values in zip(zip(*chosen, strict=True), axes, strict=True):
        assert set(axis) == set(range(values))


def test_the_table_names_every_job_and_why_some_failed(run, capfd):
    code, _ = run("-m", "method=brightness,ocsvm", "data=mvtec/bottle,mvtec/cable", *QUICK)
    out = capfd.readouterr().out
    end = out[out.index("4 jobs: ") :]
    assert code == 1
    assert "4 jobs: 2 finished, 2 failed" in end
    for method in ("brightness", "ocsvm"):
        record = metrics_of(next(job.folder for job in sweeps.outcomes if f"{method}/mvtec/bottle" in job.name))
        line = next(line for line in end.splitlines() if f"{method}/mvtec/bottle" in line)
        assert line.endswith(f"finished     image_auroc {record['metrics']['image_auroc']:.4f}")
        reason = next(line for line in end.splitlines() if f"{method}/mvtec/cable" in line and "failed: " in line)
        assert "mvtec/cable/train/good" in reason


def test_a_repeated_sweep_runs_what_failed_and_skips_what_is_finished(run, tmp_path, data_root, monkeypatch):
    run("-m", "method=brightness", "data=mvtec/bottle,mvtec/cable", *QUICK)
    first = {job.name: (job.status, job.folder) for job in sweeps.outcomes}
    assert sorted(status for status, _ in first.values()) == ["failed", "finished"]
    folder = next(folder for status, folder in first.values() if status == "finished")
    stamp = (folder / "metrics.json").stat().st_mtime_ns
    write_mvtec(data_root / "mvtec", "cable")
    try:
        code, _ = run("-m", "method=brightness", "data=mvtec/bottle,mvtec/cable", *QUICK)
    finally:
        shutil.rmtree(data_root / "mvtec" / "cable")
    assert code == 0
    assert {job.name: job.folder.exists() for job in sweeps.outcomes} == dict.fromkeys(first, True)
    assert (folder / "metrics.json").stat().st_mtime_ns == stamp
    code, _ = run("-m", "method=brightness", "data=mvtec/bottle", "seed=0,1", "overwrite=true", *QUICK)
    assert code == 0
    assert (folder / "metrics.json").stat().st_mtime_ns > stamp


def npz(path, number):
    images = np.full((16, 8, 8), number, np.uint8)
    np.savez(path, x_train=images[:12], y_train=np.zeros(12), x_test=images[12:], y_test=np.arange(4) % 2)


def test_a_finished_job_of_other_data_is_refused_with_its_reason_and_the_others_go_on(
    run, tmp_path, capfd, monkeypatch
):
    from adbench.data.classes import Npz

    for name in ("one", "two"):
        npz(tmp_path / f"{name}.npz", 10)
    sweep = ("-m", "method=brightness,pca", "data=npz", "data.name=mine", f"data.file={tmp_path}/one.npz", "seed=0,1")
    assert run(*sweep, *QUICK)[0] == 0
    built = []
    original = Npz.__init__
    monkeypatch.setattr(Npz, "__init__", lambda self, *a, **k: (built.append(1), original(self, *a, **k))[1])
    moved = [argument.replace("one.npz", "two.npz") for argument in sweep]
    assert run(*moved, *QUICK)[0] == 0  # the same bytes elsewhere
    assert len(built) == 1  # asked for once for four jobs
    npz(tmp_path / "two.npz", 20)
    moved[1] = "method=brightness,ocsvm"
    before = {job.name: (job.folder / "metrics.json").read_bytes() for job in sweeps.outcomes}
    code, _ = run(*moved, *QUICK)
    out = capfd.readouterr().out
    assert code == 1
    assert {(job.name.split("/")[0], job.status) for job in sweeps.outcomes} == {
        ("brightness", "refused"),
        ("ocsvm", "finished"),
    }
    assert "refused: " in out[out.index("4 jobs: ") :]
    assert "other data" in out
    for job in sweeps.outcomes:
        assert before.get(job.name, b"") in (b"", (job.folder / "metrics.json").read_bytes())


def test_jobs_of_other_code_are_marked_as_stale_and_trained_anew_on_demand(run, capfd, monkeypatch):
    from adbench.experiment import standing

    sweep = ("-m", "method=brightness", "data=mvtec/bottle", "seed=0,1", *QUICK)
    run(*sweep)
    monkeypatch.setattr(standing, "code_of", lambda targets: "another edition")
    capfd.readouterr()
    code, _ = run(*sweep)
    out = capfd.readouterr().out
    assert code == 0
    assert [job.stale for job in sweeps.outcomes] == [True, True]
    assert "stale (2 of 2)" in out
    code, _ = run(*sweep, "overwrite=stale")
    assert (code, [job.stale for job in sweeps.outcomes]) == (0, [False, False])
    code, _ = run(*sweep)
    assert (code, [job.stale for job in sweeps.outcomes]) == (0, [False, False])


def test_a_job_that_died_before_its_training_began_is_told_from_one_that_never_came(tmp_path):
    from adbench.experiment.folder import RunFolder

    since = time.time() - 1
    job = sweeps.Job(0, [], "x", tmp_path / "x")
    job.look(since)
    assert job.status == "not started"
    with RunFolder(tmp_path / "x"):
        pass
    job.look(since)
    assert (job.status, "before training began" in job.reason) == ("interrupted", True)


def test_a_job_whose_process_died_is_told_from_one_that_is_running(tmp_path):
    from adbench.experiment.folder import RunFolder

    folder = RunFolder(tmp_path)
    folder.write_metrics({"status": "running"})
    job = sweeps.Job(0, [], "x", tmp_path)
    with folder:
        holder = subprocess.run(
            [sys.executable, "-c", "import sys; from adbench.experiment.folder import RunFolder;"
             "print(RunFolder(sys.argv[1]).owned())", str(tmp_path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert holder.stdout.strip() == "True"
    job.look()
    assert (job.status, "died" in job.reason) == ("interrupted", True)
    later = sweeps.Job(0, [], "x", tmp_path)
    later.look(since=time.time() + 10)  # what an earlier command left says nothing of this one
    assert later.status == "not started"


def test_a_tuner_is_told_the_score_of_held_out_normal_rows(run):
    pytest.importorskip("optuna")
    arguments = ("-m", "hydra/sweeper=tuning", "hydra.sweeper.n_trials=3", "method=autoencoder", "data=mvtec/bottle",
                 "method.latent=choice(4,8)", "method.optimizer.lr=tag(log,interval(1e-4,1e-2))", *QUICK)  # fmt: skip
    code, _ = run(*arguments)
    assert code == 0
    assert len(sweeps.outcomes) == 3
    told = {job.name: job.metrics["objectives"]["holdout_score"] for job in sweeps.outcomes}
    for job in sweeps.outcomes:
        lines = (job.folder / "calibration.csv").read_text().splitlines()[1:]
        scores = [float(line.rsplit(",", 1)[1]) for line in lines]
        assert {line.split(",")[2] for line in lines} == {"0"}  # normal rows alone
        assert told[job.name] == pytest.approx(sum(scores) / len(scores), rel=1e-5)
    best = Path(sweeps.outcomes[0].folder).parents[5] / "optimization_results.yaml"
    assert f"best_value: {min(told.values())}"[:20] in best.read_text()
    stamps = [(job.folder / "metrics.json").stat().st_mtime_ns for job in sweeps.outcomes]
    code, _ = run(*arguments)  # the same trials are proposed, and found finished
    assert {job.name: job.metrics["objectives"]["holdout_score"] for job in sweeps.outcomes} == told
    assert [(job.folder / "metrics.json").stat().st_mtime_ns for job in sweeps.outcomes] == stamps


def test_a_failed_trial_is_left_out_and_told(run):
    pytest.importorskip("optuna")
    code, _ = run("-m", "hydra/sweeper=tuning", "hydra.sweeper.n_trials=2", "method=brightness", "data=mvtec/cable",
                  "method.recipe.batch_size=choice(1,2)", *QUICK)  # fmt: skip
    assert code == 1
    assert {job.status for job in sweeps.outcomes} == {"failed"}


# -- sharing a machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "workers", "shares"),
    [
        ("0123", 2, ["02", "13"]),
        ("0123", 4, ["0", "1", "2", "3"]),
        ("01", 4, ["0", "1", "0", "1"]),
        ("5", 2, ["5", "5"]),
        ("012", 2, ["02", "1"]),
        ("", 2, ["", ""]),
    ],
)
def test_gpus_are_shared_out_among_the_workers(gpus, workers, shares):
    assert ["".join(gpus_of_worker(list(gpus), worker, workers)) for worker in range(workers)] == shares


def test_a_worker_that_replaces_a_dead_one_gets_a_share_too():
    assert gpus_of_worker(["0", "1"], worker=5, workers=2) == gpus_of_worker(["0", "1"], worker=1, workers=2)


@pytest.mark.parametrize(
    ("launcher", "jobs", "threads"),
    [
        ({}, 1, 8),
        ({"n_jobs": 2}, 2, 4),
        ({"n_jobs": -1}, 8, 1),
        ({"n_jobs": -2}, 7, 1),
        ({"n_jobs": 16}, 16, 1),
        ({"cpus_per_task": 4}, 2, 4),
        ({"cpus_per_job": 0.5}, 16, 1),
        ({"cpus_per_task": None, "_target_": "x.LocalLauncher"}, 8, 1),
    ],
)
def test_eight_cores_are_shared_out_among_the_jobs(launcher, jobs, threads):
    assert jobs_side_by_side(launcher, 8) == jobs
    assert threads_per_job(launcher, 8) == threads


def test_a_process_whose_parent_is_gone_gets_sigterm(tmp_path):
    child = (
        "import signal, sys, time\n"
        "from adbench.experiment.placement import stop_when_orphaned\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'heard')!r}, 'w').close(), sys.exit()))\n"
        "stop_when_orphaned(every=0.05)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    )
    _wait_for(tmp_path / "ready")
    assert not (tmp_path / "heard").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(tmp_path / "heard")


def _wait_for(path: Path, seconds: float = 60):
    until = time.time() + seconds
    while not path.exists():
        assert time.time() < until, f"{path} did not appear"
        time.sleep(0.02)


# -- the whole command is stopped: real processes, real signals -------------------------------------------------------


def sweep_command(tmp_path, data_root, *arguments):
    environment = os.environ | {
        "ADBENCH_RESULTS": str(tmp_path / "results"), "ADBENCH_DATA": str(data_root),
        "ADBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    line = [sys.executable, "-m", "adbench.run", "-m", "method=autoencoder", "method.width=4", "data=mvtec/bottle",
            "seed=0,1", "trainer=cpu", "budget.max_batches=60", "budget.checkpoint_every=5", *QUICK,
            *arguments]  # fmt: skip
    # A file, not a pipe that progress bars fill; each command its own, for a killed one's workers write on.
    said = tmp_path / f"said{len(list(tmp_path.glob('said*')))}"
    with said.open("w") as file:
        process = subprocess.Popen(line, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    process.said = said
    return process


def output_of(process):
    """What a command of `sweep_command` said until its end."""
    process.wait(timeout=900)
    return process.said.read_text()


def wait_for_status(tmp_path, process, wanted):
    """Until the set of `(seed, status, has a checkpoint)` fulfils `wanted`."""
    for _ in range(24_000):  # minutes: a loaded machine is no failure
        assert process.poll() is None, process.said.read_text()
        seen = {}
        for path in (tmp_path / "results").rglob("metrics.json"):
            record = json.loads(path.read_text())
            seen[record["seed"]] = (record["status"], (path.parent / "checkpoints/last.ckpt").exists())
        if wanted(seen):
            return seen
        time.sleep(0.02)
    return pytest.fail("the sweep did not get there")


@pytest.mark.distributed
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, data_root, stop, code):
    process = sweep_command(tmp_path, data_root)
    wait_for_status(tmp_path, process, lambda seen: seen.get(1, ("", False)) == ("running", True))
    process.send_signal(stop)
    out = output_of(process)
    assert process.returncode == code, out
    if stop != signal.SIGKILL:
        assert "2 jobs: 1 finished, 1 interrupted" in out
    again = sweep_command(tmp_path, data_root)
    out = output_of(again)
    assert again.returncode == 0, out
    assert "#0 already finished" in out
    assert "resuming at batch" in out
    assert "2 jobs: 2 finished" in out

"""The same sweep under every launcher: `make test-distributed`."""

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import metrics_of
from test_sweeps import QUICK, output_of, sweep_command, wait_for_status

from adbench.experiment import sweeps
from adbench.experiment.placement import cores

pytestmark = pytest.mark.distributed

TINY = ("method=autoencoder", "method.width=4", "budget.max_batches=2", "trainer=cpu", *QUICK)
LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
    "ray": ("hydra/launcher=ray", "hydra.launcher.init.num_cpus=2", "hydra.launcher.init.log_to_driver=false"),
}
MODULES = {"joblib": "joblib", "submitit": "submitit", "ray": "ray"}


@pytest.fixture
def sweep(run, monkeypatch, tmp_path):
    """The run command in this process, without the fixture's `trainer.threads`: that is what is tested.

    The results are an argument: joblib's workers live on from test to test with the environment of the first.
    """
    from adbench.run import main

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda *arguments, results="results": main(["-m", *TINY, f"results={tmp_path / results}", *arguments])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failing_job_stops_no_other_and_the_command_lists_it(launcher, sweep, capfd):
    pytest.importorskip(MODULES[launcher])
    code = sweep("data=mvtec/bottle,mvtec/cable", "seed=0,1", *LAUNCHERS[launcher])
    out = capfd.readouterr().out
    assert code == 1
    assert "4 jobs: 2 finished, 2 failed" in out
    assert out[out.index("not finished (2 of 4)") :].count("failed: expected normal training images") == 2
    alone = max(1, cores() // 2) if launcher == "joblib" else 1
    for job in sweeps.outcomes:
        if job.status == "finished":
            assert metrics_of(job.folder)["hardware"]["threads"] == alone
    sweep("data=mvtec/bottle", "seed=0,1", *LAUNCHERS[launcher])
    assert capfd.readouterr().out.count("already finished") == 2


def test_every_launcher_gives_the_scores_of_the_basic_one(sweep, tmp_path):
    found = {}
    for name, arguments in {"basic": (), **LAUNCHERS}.items():
        if name in MODULES:
            pytest.importorskip(MODULES[name])
        assert sweep("data=mvtec/bottle", "seed=0", "trainer.threads=1", *arguments, results=name) == 0
        found[name] = next((tmp_path / name).rglob("scores.csv")).read_bytes()
    assert len(set(found.values())) == 1


def test_jobs_run_on_a_cluster_that_is_there_already(sweep):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert sweep("data=mvtec/bottle", "seed=0,1", "hydra/launcher=ray") == 0
        assert ray.is_initialized()  # whose cluster it is, stops it
    finally:
        ray.shutdown()


# -- what is killed: real processes, real signals ---------------------------------------------------------------------

PARALLEL = (*LAUNCHERS["joblib"], "budget.max_batches=400", "trainer.threads=1")


def test_a_killed_sweep_of_parallel_jobs_goes_on_where_they_were(tmp_path, data_root):
    pytest.importorskip("joblib")
    process = sweep_command(tmp_path, data_root, *PARALLEL)
    wait_for_status(tmp_path, process, lambda seen: [seen.get(k) for k in (0, 1)] == [("running", True)] * 2)
    process.send_signal(signal.SIGKILL)  # the workers are not told: they notice
    process.wait()
    again = sweep_command(tmp_path, data_root, *PARALLEL)
    out = output_of(again)
    assert again.returncode == 0, out
    assert out.count("resuming at batch") == 2
    assert "2 jobs: 2 finished" in out


def test_the_job_beside_one_that_is_killed_again_and_again_is_finished(tmp_path, data_root):
    pytest.importorskip("joblib")
    process = sweep_command(tmp_path, data_root, *PARALLEL)
    wait_for_status(tmp_path, process, lambda seen: [seen.get(k, ("",))[0] for k in (0, 1)] == ["running"] * 2)
    victim = None
    for _ in range(2):  # beside the other job, and then alone
        victim = _holder(tmp_path, "seed0", process, other_than=victim)
        os.kill(victim, signal.SIGKILL)
    out = output_of(process)
    assert process.returncode == 1, out
    assert "2 jobs: 1 interrupted, 1 finished" in out
    assert "seed0" in out[out.index("not finished (1 of 2)") :]
    assert "interrupted: its process died" in out


def _holder(tmp_path, seed, process, other_than):
    """The process that holds the lock of a run's folder: Linux lists the locks of all processes with their inodes."""
    for _ in range(24_000):
        assert process.poll() is None, process.said.read_text()
        for lock in (tmp_path / "results").rglob(f"{seed}*/.lock"):
            inode = f":{lock.stat().st_ino} "
            for line in Path("/proc/locks").read_text().splitlines():
                pid = int(line.split()[4])
                if inode in line and pid not in (other_than, process.pid, -1):
                    return pid
        time.sleep(0.02)
    return pytest.fail("no process holds the folder")

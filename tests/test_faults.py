"""Machines misbehave: what is lost is said, what is kept is whole, and the same command goes on from there.

Torn checkpoints, caches cut short, two jobs at one cache, a full disk while caching and SIGTERM:
tests/test_checkpoints.py, tests/data/test_cache.py, tests/test_jobs.py.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import numpy as np
import pytest
from conftest import metrics_of, write_mvtec
from PIL import Image

SMALL = ("method=cbigan/small", "data=mvtec/bottle", "data.batch_size=4", "trainer=cpu", "budget.max_batches=12",
         "budget.checkpoint_every=2")  # fmt: skip


@pytest.mark.slow
def test_runs_killed_at_random_moments_resume_to_the_scores_of_one_that_was_not(tmp_path):
    assert faults.check(2, seed=int(time.time()), place=tmp_path) == []


def test_a_file_that_is_cut_short_counts_as_torn(finished):
    folder = finished("method=pca", "data=digits")
    assert faults.torn(folder) == []
    for name in ("metrics.json", "scores.csv", "checkpoints/last.ckpt", "figures/roc.png"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2].rsplit(b",", 1)[0] + b",")
        assert [line.split(":")[0] for line in faults.torn(folder)] == [name]
        (folder / name).write_bytes(whole)


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """A data root of this test alone, which it may damage."""
    root = tmp_path / "own"
    write_mvtec(root / "mvtec", "bottle")
    monkeypatch.setenv("ADBENCH_DATA", str(root))
    return root / "mvtec" / "bottle"


def during_training(monkeypatch, batch, act):
    """Call `act` when training batch `batch` ends."""
    from adbench.methods.cbigan import CBiGAN

    original = CBiGAN.on_train_batch_end

    def hooked(self, *arguments):
        original(self, *arguments)
        if self.batches_seen == batch:
            act()

    monkeypatch.setattr(CBiGAN, "on_train_batch_end", hooked)


def scores(folder):
    return (folder / "scores.csv").read_bytes()


def test_a_full_disk_while_checkpointing_keeps_the_last_whole_one_and_resumes_from_it(run, monkeypatch):
    import torch

    _, folder = run(*SMALL, smoke=False)
    wanted = scores(folder)
    original, count = torch.save, []

    def full(content, path, *rest):
        count.append(1)
        if len(count) == 4:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:1] PytorchStreamWriter failed writing file data/3")
        return original(content, path, *rest)

    monkeypatch.setattr(torch, "save", full)
    code, folder = run(*SMALL, "overwrite=true", smoke=False)
    assert code == 1
    record = metrics_of(folder)
    assert record["status"] == "interrupted"
    assert "is the disk full" in record["error"]
    assert faults.torn(folder) == []
    assert not list((folder / "checkpoints").glob(".*"))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["batches_seen"] == 6
    code, folder = run(*SMALL, smoke=False)
    assert code == 0
    assert scores(folder) == wanted


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_really_full_ends_in_one_message_and_leaves_nothing_torn(tmp_path, data_root):
    place = tmp_path / "small_disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        environment = os.environ | {
            "ADBENCH_RESULTS": str(place / "results"), "ADBENCH_DATA": str(data_root),
            "ADBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        line = [sys.executable, "-m", "adbench.run", *SMALL, "trainer.threads=1"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        assert "disk full" in done.stdout or "No space left" in done.stdout
        assert faults.torn(place / "results") == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_data_file_that_vanishes_or_changes_during_training_changes_nothing(run, own_data, monkeypatch):
    _, folder = run(*SMALL, smoke=False)
    wanted = scores(folder)

    def damage():
        (own_data / "train/good/000.png").unlink()
        Image.new("RGB", (40, 40), "red").save(own_data / "test/good/000.png")

    during_training(monkeypatch, 3, damage)
    code, folder = run(*SMALL, "overwrite=true", smoke=False)
    assert code == 0
    assert scores(folder) == wanted


@pytest.mark.parametrize("how", ["vanishes", "changes"])
def test_an_interrupted_run_is_not_resumed_on_other_data(run, own_data, monkeypatch, capfd, how):
    with monkeypatch.context() as patch:
        during_training(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        code, folder = run(*SMALL, smoke=False)
    assert code == 143
    assert metrics_of(folder)["status"] == "interrupted"
    victim = own_data / "train/good/001.png"
    if how == "vanishes":
        victim.unlink()
    else:
        Image.new("RGB", (40, 40), "red").save(victim)
    code, folder = run(*SMALL, smoke=False)
    assert code == 1
    assert "changed, moved or vanished" in capfd.readouterr().out
    assert run(*SMALL, "overwrite=true", smoke=False)[0] == 0


def test_nan_in_a_float_image_is_refused_with_its_name(own_data, run, capfd):
    path = own_data / "train/good/002.tif"
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(path)
    code, _ = run(SMALL[0], "data=folder", "data.name=mine", f"data.root={own_data}")
    assert code == 1
    assert "002.tif" in capfd.readouterr().out


def test_nan_in_a_table_or_an_array_is_refused_before_training(run, tmp_path, capfd):
    x, y = np.ones((40, 3), np.float32), np.arange(40) % 4 == 0
    x[5, 1] = np.nan
    np.savez(tmp_path / "t.npz", X=x, y=y)
    table = ("method=kde", "data=tabular", "data.name=t", f"data.file={tmp_path / 't.npz'}", "data.features=3")
    assert run(*table)[0] == 1
    assert "missing or infinite" in capfd.readouterr().out
    images = np.full((20, 8, 8), 0.5, np.float32)
    images[3, 2, 2] = np.nan
    np.savez(tmp_path / "i.npz", x_train=images, y_train=np.zeros(20), x_test=images[::-1], y_test=np.arange(20) % 2)
    assert run("method=pca", "data=npz", "data.name=i", f"data.file={tmp_path / 'i.npz'}")[0] == 1
    assert "must lie in [0, 1]" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_loader_worker_ends_the_run_with_a_message_and_it_resumes(tmp_path, data_root):
    environment = os.environ | {
        "ADBENCH_RESULTS": str(tmp_path / "results"), "ADBENCH_DATA": str(data_root),
        "ADBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    arguments = [*SMALL[:-2], "budget.max_batches=400", "budget.checkpoint_every=2", "trainer.threads=1"]
    line = [sys.executable, "-m", "adbench.run", *arguments, "data.workers=1"]
    run = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(2000):
        if list((tmp_path / "results").rglob("last.ckpt")):
            break
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.03)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    workers = [pid for pid in children if b"adbench.run" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert workers
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 1, out
    assert "killed" in out
    assert "resumes this run" in out
    (folder,) = [p.parent for p in (tmp_path / "results").rglob("metrics.json")]
    assert metrics_of(folder)["status"] == "interrupted"
    assert faults.torn(folder) == []


def test_a_dashboard_out_of_reach_in_the_middle_of_a_run_costs_the_run_nothing(run, monkeypatch, capfd):
    from pytorch_lightning.loggers import WandbLogger

    _, folder = run(*SMALL, smoke=False)
    wanted = scores(folder)
    calls = []

    def unreachable(self, *arguments, **options):
        calls.append(1)
        raise ConnectionError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(WandbLogger, "log_metrics", unreachable)
    monkeypatch.setattr(WandbLogger, "log_image", unreachable)
    code, folder = run(*SMALL, "logger=wandb", "overwrite=true", "log_every=1", smoke=False)
    assert code == 0
    assert len(calls) > 5
    assert capfd.readouterr().out.count("Network is unreachable") == 1
    assert scores(folder) == wanted
    assert json.loads((folder / "metrics.json").read_text())["status"] == "finished"

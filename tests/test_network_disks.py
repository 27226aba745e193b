"""Network file systems: locks, links and rights that they lack, renames that take time and are seen late."""

import errno
import fcntl
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import metrics_of, write_mvtec

from adbench.data import cache
from adbench.data.folder import Folder
from adbench.errors import UserError
from adbench.experiment import sweeps
from adbench.experiment.folder import RunFolder
from adbench.experiment.states import Outcome
from adbench.files import Lock, write_json

SLOW = 0.02  # seconds of a rename


def refuses(number):
    def call(*_args, **_options):
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP], ids=["no lock service", "no locks"])
def network_disk(request, monkeypatch):
    take_away(monkeypatch, request.param)


def take_away(monkeypatch, no_locks):
    """What an NFS or a cluster's disk may lack: locks, links, rights of files, unnamed files; renames are slow."""
    rename, open_ = os.replace, os.open

    def slowly(source, target, **options):
        time.sleep(SLOW)
        rename(source, target, **options)

    def named(path, flags, *rest, **options):
        if flags & getattr(os, "O_TMPFILE", 0) == getattr(os, "O_TMPFILE", -1):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return open_(path, flags, *rest, **options)

    monkeypatch.setattr(fcntl, "flock", refuses(no_locks))
    monkeypatch.setattr(fcntl, "lockf", refuses(no_locks))
    monkeypatch.setattr(os, "link", refuses(errno.EPERM))
    monkeypatch.setattr(os, "symlink", refuses(errno.EPERM))
    monkeypatch.setattr(os, "chmod", refuses(errno.EPERM))
    monkeypatch.setattr(os, "replace", slowly)
    monkeypatch.setattr(os, "open", named)


def test_without_the_systems_locks_a_file_is_one_and_goes_when_it_is_released(network_disk, tmp_path):
    with Lock(tmp_path / "lock") as first:
        assert first.marker.exists()
        with pytest.raises(TimeoutError):
            Lock(tmp_path / "lock", timeout=0).acquire()
    assert not first.marker.exists()
    with Lock(tmp_path / "lock", timeout=0):
        pass


def _dies_with_the_lock(path: Path) -> None:
    lock = Lock(path)
    lock.acquire()
    os._exit(0)


def test_a_lock_that_a_process_of_this_machine_died_with_is_taken_over(network_disk, tmp_path):
    job = multiprocessing.get_context("fork").Process(target=_dies_with_the_lock, args=(tmp_path / "lock",))
    job.start()
    job.join()
    assert (tmp_path / "lock.held").exists()
    with Lock(tmp_path / "lock", timeout=10):
        pass


def test_the_lock_of_another_machine_is_kept_and_its_file_named(network_disk, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock.held").write_text("4242\nanother-machine\n")
    with pytest.raises(UserError, match=r"another process.*remove .*\.lock\.held"), RunFolder(run):
        pass
    assert RunFolder(run).owned()


def test_a_folder_knows_its_owner_without_the_systems_locks(network_disk, tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        assert RunFolder(folder.path).owned()
        with pytest.raises(UserError, match="being written by another process"), RunFolder(folder.path):
            pass
    assert not folder.owned()


@pytest.mark.parametrize("keep", cache.KEPT)
def test_images_are_read_and_kept_on_a_network_disk(network_disk, tmp_path, keep):
    root = write_mvtec(tmp_path, "bottle") / "bottle"
    found = cache.entry(Folder(root), (20, 20), tmp_path / "cache", keep)
    again = cache.entry(Folder(root), (20, 20), tmp_path / "cache", keep)
    rows = np.arange(len(found.images))
    np.testing.assert_array_equal(found.images[rows], again.images[rows])


def test_a_run_and_a_sweep_give_the_same_scores_on_a_network_disk(run, tmp_path, monkeypatch):
    words = ("method=pca", "data=mvtec/bottle", "data.batch_size=4")
    code, folder = run(*words)
    assert code == 0
    expected = (folder / "scores.csv").read_bytes()
    take_away(monkeypatch, errno.ENOLCK)
    code, folder = run(*words, "overwrite=true")
    assert code == 0 and (folder / "scores.csv").read_bytes() == expected
    assert metrics_of(folder)["status"] == "finished" and not list(folder.rglob("*.held"))
    assert not (tmp_path / "results" / "latest").is_symlink()
    code, _ = run("-m", *words, "seed=1,2")
    assert code == 0 and [job.status for job in sweeps.outcomes] == ["finished", "finished"]
    code, _ = run("-m", *words, "seed=1,2")  # finished already
    assert code == 0 and all(job.metrics for job in sweeps.outcomes)


def late(monkeypatch, looks):
    """Let a folder's metrics.json be seen as it was, for so many looks."""
    left = [looks]
    metrics = RunFolder.metrics

    def seen(folder):
        left[0] -= 1
        return {"status": "running"} if left[0] >= 0 else metrics(folder)

    monkeypatch.setattr(RunFolder, "metrics", seen)


def test_a_sweep_waits_until_it_sees_the_record_of_a_job_that_has_finished_elsewhere(tmp_path, monkeypatch):
    write_json(tmp_path / "metrics.json", {"status": "finished", "metrics": {"image_auroc": 0.75}})
    late(monkeypatch, looks=4)
    monkeypatch.setattr(sweeps, "LOOK_S", 0.001)
    job = sweeps.Job(0, [], "one", tmp_path)
    job.end(Outcome(0, "finished", began=True))
    assert job.metrics["metrics"]["image_auroc"] == 0.75 and "0.7500" in sweeps.table([job])


def test_a_record_that_never_comes_ends_the_waiting(tmp_path, monkeypatch):
    write_json(tmp_path / "metrics.json", {"status": "running"})
    monkeypatch.setattr(sweeps, "SEEN_S", 0.05)
    job = sweeps.Job(0, [], "one", tmp_path)
    job.end(Outcome(0, "finished", began=True))
    assert job.status == "finished" and json.loads((tmp_path / "metrics.json").read_text()) == job.metrics

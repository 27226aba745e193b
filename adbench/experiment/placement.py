"""What part of a machine a job of a sweep gets, and what becomes of the job when the command that launched it dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_side_by_side(launcher: Mapping[str, Any], cores: int) -> int:
    """How many jobs a launcher's configuration runs at once on this machine.

    joblib counts with `n_jobs` (-1: one for each core, -2: all but one), the others by the cores that each job takes.
    """
    if launcher.get("n_jobs") is not None:
        n = int(launcher["n_jobs"])
        return max(1, n if n > 0 else cores + 1 + n)
    each = launcher.get("cpus_per_task", launcher.get("cpus_per_job"))
    if each is not None:
        return max(1, int(cores // float(each)))
    return cores if str(launcher.get("_target_", "")).endswith("LocalLauncher") else 1  # submitit's starts all it has


def threads_per_job(launcher: Mapping[str, Any], cores: int) -> int:
    """CPU threads of each job: two jobs of two threads on two cores run at half the speed of two jobs of one."""
    each = launcher.get("cpus_per_task", launcher.get("cpus_per_job"))
    if each is not None:
        return max(1, int(each))
    return max(1, cores // jobs_side_by_side(launcher, cores))


def gpus_of_worker(gpus: Sequence[str], worker: int, workers: int) -> list[str]:
    """The share of worker 0, 1, ... of `workers` in a machine's GPUs: several each, one each, or one for several."""
    if not gpus:
        return []
    return list(gpus[worker % workers :: workers]) or [gpus[worker % workers % len(gpus)]]


def limit_to_worker_share(launcher: Mapping[str, Any]) -> None:
    """In a worker process of joblib: see only this worker's GPUs, and stop when the sweep's command is gone.

    A worker keeps its GPUs for all its jobs, because CUDA reads its variable once in the life of a process.
    """
    name, _, number = multiprocessing.current_process().name.partition("-")
    if name != "LokyProcess" or _limited.is_set():
        return
    _limited.set()
    workers = jobs_side_by_side(launcher, cores())
    gpus = gpus_of_worker(_visible_gpus(), int(number or 1) - 1, workers)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    stop_when_orphaned()


_limited = threading.Event()


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def stop_when_orphaned(signum: int = signal.SIGTERM, every: float = 0.5, patience: float = 30.0) -> None:
    """Send this process SIGTERM once its parent is gone, so that it saves its state, and SIGKILL if it goes on.

    Args:
        signum: the first signal.
        every, patience: seconds between two checks, and until SIGKILL.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os.kill(os.getpid(), signum)
        time.sleep(patience)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()

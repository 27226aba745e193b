"""One run on several devices of a machine: a process for each (`trainer=ddp`).

The run's own process is rank 0: it owns the folder and is the only one that writes it. It starts the others, which take
the configuration from the folder, train and score their rows, and leave nothing but a log. That works in a sweep, under
any launcher, where starting the command line again for each device, as Lightning does, would not.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adbench.placement import stop_when_orphaned
from adbench.runs import RunFolder
from adbench.types import UserError

STRATEGY = "ddp_find_unused_parameters_true"  # the players of an adversarial method take turns


def number_of_ranks(trainer: Any) -> int:
    """How many devices a run's `trainer` section asks for; 1 without a distributed strategy or devices."""
    if trainer.strategy == "auto" and str(trainer.devices) == "1":
        return 1
    from pytorch_lightning import Trainer

    asked = {"accelerator": trainer.accelerator, "devices": trainer.devices}
    return Trainer(**asked, strategy="auto", logger=False, enable_checkpointing=False, barebones=True).num_devices


class Bystander(RunFolder):
    """A run folder seen by a process that does not own it: reading works, writing does nothing."""

    def clear(self) -> None: ...

    def write_config(self, cfg: Any) -> None: ...

    def write_metrics(self, metrics: Any) -> None: ...

    def write_split(self, rows: Any) -> None: ...

    def write_scores(self, name: str, rows: Any) -> None: ...


@contextmanager
def other_ranks(folder: RunFolder, world: int, threads: int) -> Iterator[None]:
    """Rank 0's block of work, with the processes of ranks 1 .. world - 1 around it.

    Raises:
        RuntimeError: one of them failed; its log is named.
    """
    if world == 1:
        yield
        return
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    before = {name: os.environ.get(name) for name in (*meeting, "LOCAL_RANK")}
    logs = [folder.path / f"rank{rank}.log" for rank in range(1, world)]
    others = [_start(folder, rank, threads, meeting, log) for rank, log in enumerate(logs, start=1)]
    os.environ.update(meeting | {"LOCAL_RANK": "0"})
    try:
        yield
        for other in others:
            other.wait(timeout=300)
    except BaseException as error:
        failed = [log for other, log in zip(others, logs, strict=True) if _ended(other) not in (None, 0)]
        if failed and isinstance(error, Exception) and not isinstance(error, UserError):
            last = (failed[0].read_text().strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"the process of another device failed ({failed[0]}): {last}") from error
        raise
    finally:
        for other in others:
            other.kill()
            other.wait()
        _leave()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _start(folder: RunFolder, rank: int, threads: int, meeting: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | meeting | {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, "-m", "adbench.ranks", str(folder.path.resolve()), str(threads)]
    with log.open("wb") as file:
        return subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)  # noqa: S603


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that ends now, None if it goes on."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=2)
    return None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _leave() -> None:
    """Close what the ranks talked through, so that the next run of this process can open its own."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        with suppress(Exception):  # the others may be gone already
            distributed.destroy_process_group()


def main() -> None:
    """A rank other than 0: `python -m adbench.ranks FOLDER THREADS`."""
    stop_when_orphaned(signum=signal.SIGKILL)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # rank 0 decides for all
    from adbench.jobs import StopRequest, set_threads, train_and_test

    folder = Bystander(sys.argv[1])
    cfg = folder.config()
    cfg.logger = None
    set_threads(int(sys.argv[2]))
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    train_and_test(cfg, folder, {"time": {}}, StopRequest(), int(sys.argv[2]), (rank, world))
    _leave()


if __name__ == "__main__":
    main()

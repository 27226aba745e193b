"""One run on several devices of a machine: a process for each (`trainer=ddp`).

The run's own process is rank 0: it owns the folder and is the only one that writes it. It starts the others, which take
the configuration from the folder, train and score their rows, and leave nothing but a log. That works in a sweep, under
any launcher, where starting the command line again for each device, as Lightning does, would not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.errors import UserError
from adbench.experiment.folder import RunFolder
from adbench.experiment.placement import stop_when_orphaned
from adbench.files import write_json

if TYPE_CHECKING:
    from adbench.experiment.training import Job

# What the other ranks read: the folder's own files are rank 0's to write, and only once training begins.
CONFIGURATION, ORDERS = ".ranks-config.yaml", ".ranks-attempt.json"


def number_of_ranks(trainer: Any) -> int:
    """How many devices a run's `trainer` section asks for; 1 without a distributed strategy or devices.

    Raises:
        UserError: this machine does not have them.
    """
    if trainer.strategy == "auto" and str(trainer.devices) == "1":
        return 1
    from pytorch_lightning import Trainer
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    options = {"accelerator": trainer.accelerator, "devices": trainer.devices}
    try:
        return Trainer(**options, strategy="auto", logger=False, enable_checkpointing=False, barebones=True).num_devices
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"trainer.accelerator={trainer.accelerator} trainer.devices={trainer.devices} cannot be had here: "
            f"{' '.join(str(error).split())}; trainer=cpu runs on any machine"
        ) from error


class Ranks:
    """The processes of a run, seen from one of them.

    Args:
        rank, world: the number of this process, and of how many.
        pipes: rank 0 reads on them that the others are ready; another rank has one, to write it.
    """

    def __init__(self, rank: int = 0, world: int = 1, pipes: Sequence[int] = ()) -> None:
        self.rank, self.world, self.pipes = rank, world, pipes

    def meet(self) -> None:
        """Wait until every rank is here. The ranks call it before they exchange anything: nobody may wait for a rank
        that has failed.

        Raises:
            RuntimeError: a rank has failed on its way.
        """
        for pipe in self.pipes:
            if self.rank:
                os.write(pipe, b"!")
            elif os.read(pipe, 1) != b"!":
                raise RuntimeError("the process of another device ended before the training")


class Bystander(RunFolder):
    """A run folder seen by a process that does not own it: reading works, every `write_...` does nothing."""

    def clear(self) -> None: ...

    def write_config(self, cfg: Any, file: Any = None) -> None: ...

    def write_latest(self, results: Any) -> None: ...

    def write_metrics(self, metrics: Any) -> None: ...

    def write_split(self, rows: Any) -> None: ...

    def write_scores(self, name: str, rows: Any) -> None: ...

    def write_curves(self, curves: Any) -> None: ...


@contextmanager
def all_ranks(job: Job, world: int, threads: int) -> Iterator[Ranks]:
    """Rank 0's block of work, with the processes of ranks 1 .. world - 1 around it.

    Args:
        job: rank 0's, ready; what the folder holds is as it was until its training begins.
        world, threads: number of ranks, and of CPU threads of each.

    Raises:
        RuntimeError: one of them failed; its log is named.
    """
    if world == 1:
        yield Ranks()
        return
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    before = {name: os.environ.get(name) for name in (*meeting, "LOCAL_RANK")}
    folder = job.folder
    logs = [folder.path / f"rank{rank}.log" for rank in range(1, world)]
    others, pipes = [], []
    try:
        folder.write_config(job.cfg, folder.path / CONFIGURATION)
        write_json(folder.path / ORDERS, _orders(job))
        for rank, log in enumerate(logs, start=1):
            other, pipe = _start(folder, rank, threads, meeting, log)
            others.append(other)
            pipes.append(pipe)
        os.environ.update(meeting | {"LOCAL_RANK": "0"})
        yield Ranks(0, world, pipes)
        for other in others:
            other.wait(timeout=300)
    except Exception as error:
        failed = [log for other, log in zip(others, logs, strict=True) if _ended(other) not in (None, 0)]
        if failed and not isinstance(error, UserError):
            last = (failed[0].read_text().strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"the process of another device failed ({failed[0]}): {last}") from error
        raise
    finally:
        for other in others:
            other.kill()
            other.wait()
        for pipe in pipes:
            os.close(pipe)
        for name in (CONFIGURATION, ORDERS):
            (folder.path / name).unlink(missing_ok=True)
        _leave()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _orders(job: Job) -> dict[str, Any]:
    """What the other ranks must know beside the configuration."""
    record = job.record
    return {
        "attempt": record.attempt, "resume": job.checkpoint is not None, "precision": record.precision,
        "compiled": record.compiled,
    }  # fmt: skip


def _start(
    folder: RunFolder, rank: int, threads: int, meeting: dict[str, str], log: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """The process of a rank, and the end of a pipe on which it says that it is ready."""
    here, there = os.pipe()
    environment = os.environ | meeting | {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, "-m", "adbench.experiment.ranks", str(folder.path.resolve()), str(threads), str(there)]
    with log.open("wb") as file:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, "pass_fds": [there]}
        process = subprocess.Popen(line, env=environment, **options)  # noqa: S603
    os.close(there)
    return process, here


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
    """A rank other than 0: `python -m adbench.experiment.ranks FOLDER THREADS PIPE`."""
    stop_when_orphaned(signum=signal.SIGKILL)
    from adbench.experiment.console import quietly
    from adbench.experiment.record import RunRecord
    from adbench.experiment.signals import IgnoredRequest
    from adbench.experiment.trainers import set_threads
    from adbench.experiment.training import prepare, train_and_test

    request = IgnoredRequest()
    request.listen()
    folder, threads, pipe = Bystander(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    cfg = folder.config(folder.path / CONFIGURATION)
    cfg.logger = None
    orders = json.loads((folder.path / ORDERS).read_text(encoding="utf-8"))
    set_threads(threads)
    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    record = RunRecord(attempt=orders["attempt"], precision=orders["precision"], compiled=orders["compiled"])
    checkpoint = folder.newest_checkpoint(record.attempt) if orders["resume"] else None
    with quietly():
        job = prepare(cfg, folder, record, request, threads=threads, rank=rank, world=world, checkpoint=checkpoint)
        train_and_test(job, Ranks(rank, world, [pipe]))
    _leave()


if __name__ == "__main__":
    main()

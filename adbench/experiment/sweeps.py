"""A sweep: which of its jobs are still to run, what became of each, and the table at its end.

Jobs may run in other processes or on other machines, so their outcome is read from what they left: metrics.json.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from omegaconf import OmegaConf, open_dict
from tqdm import tqdm

from adbench.errors import UserError
from adbench.experiment.build import build
from adbench.experiment.checks import refuse_cut_short, refuse_wrong_types
from adbench.experiment.folder import RunFolder
from adbench.experiment.identity import digest, identity_of
from adbench.experiment.placement import cores, jobs_side_by_side
from adbench.experiment.standing import Data, look
from adbench.experiment.states import Outcome
from adbench.experiment.values import as_mapping

log = logging.getLogger("adbench")

# A client of NFS believes for as long as a minute what it knows of a folder (acdirmax).
SEEN_S, LOOK_S = 70.0, 0.2
SEED = re.compile(r"seed=(0|[1-9][0-9]*)")  # what Hydra takes for an integer
MOST_SHARED = 200  # configurations that are kept, each less than a megabyte


@dataclass
class Job:
    """One job of a sweep: what was asked, where it writes, what became of it."""

    number: int
    overrides: Sequence[str]
    name: str  # its folder below the results, or what was asked if that does not compose
    folder: Path | None = None
    status: str = "not started"
    reason: str = ""
    metrics: Mapping[str, Any] | None = None
    stale: bool = False  # finished, by other code than there is now
    before: Any = ()  # the attempt that had finished before this command, which trains anew

    @property
    def done(self) -> bool:
        """Whether there is nothing left to run."""
        return self.status in ("finished", "failed", "refused")

    def look(self, since: float = 0.0) -> None:
        """Read from the folder what became of the job; what was written before `since` is of an earlier command."""
        if self.folder is None:
            return
        folder = RunFolder(self.folder)
        record = folder.metrics()
        status = record.get("status")
        recent = lambda name: (self.folder / name).is_file() and (self.folder / name).stat().st_mtime >= since  # noqa: E731
        if status == "finished" and record.get("attempt") != self.before:
            self.status, self.reason, self.metrics = "finished", "", record
        elif status is not None and status != "finished" and recent("metrics.json"):
            self.status, self.reason, self.metrics = status, record.get("error") or "", record
            if status == "running" and not folder.owned():
                self.status, self.reason = "interrupted", "its process died; was it out of memory?"
        elif recent(".lock") and not folder.owned():  # it came, and left nothing
            self.status, self.reason = "interrupted", "its process died before training began; was it out of memory?"

    def end(self, outcome: Outcome) -> None:
        """Take over the outcome that the job's process has returned."""
        if not outcome.began:
            self.status, self.reason, self.metrics = outcome.status, outcome.reason, None
        elif outcome.status == "finished" and self.folder is not None:
            self.status, self.reason, self.metrics = "finished", "", self._finished_record()
            self.stale = outcome.stale

    def _finished_record(self) -> Mapping[str, Any]:
        """metrics.json of a job that has finished, once this machine sees it: network file systems take their time."""
        folder, until = RunFolder(str(self.folder)), time.monotonic() + SEEN_S
        while (record := folder.metrics()).get("status") != "finished" and time.monotonic() < until:
            with suppress(OSError):
                os.listdir(folder.path)  # noqa: PTH208 - the listing makes a client of NFS ask its server anew
            time.sleep(min(LOOK_S, SEEN_S))
        return record


class Recorder:
    """A launcher in front of Hydra's: it passes on the jobs that are still to run and keeps the outcome of every job.

    Args:
        launcher: Hydra's, set up.
        config, config_loader: what the jobs share, and what composes them.
        objective: name of the number in metrics.json that the sweeper optimises; None for a plain sweep.
    """

    def __init__(self, launcher: Any, config: Any, config_loader: Any, objective: str | None = None) -> None:
        self.launcher, self.config, self.config_loader, self.objective = launcher, config, config_loader, objective
        self._data: dict[str, Data | UserError] = {}  # by source: asked for once, however many jobs share it
        self._shared: dict[tuple[str, ...], tuple[str, Any]] = {}  # words without the seed -> seed, configuration

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """What a Hydra launcher does, except that a job that fails is no exception."""
        jobs = [
            Job(initial_job_idx + i, list(overrides), " ".join(filter_overrides(overrides)))
            for i, overrides in enumerate(job_overrides)
        ]
        outcomes.extend(jobs)
        with _sigterm_as_exit():
            for job in tqdm(jobs, desc="composing", unit="job", delay=2, leave=False, disable=None):
                self._compose(job)
            self._run([job for job in jobs if not job.done])
        return [self._returned(job) for job in jobs]

    def _compose(self, job: Job) -> None:
        """Find the job's folder, and whether it is finished already."""
        try:
            cfg = self.composed(job)
            refuse_wrong_types(cfg, cfg.hydra.runtime.choices)
            refuse_cut_short(cfg)
            self._compare(job, cfg)
        except UserError as error:
            job.status, job.reason = "failed", str(error)
            log.error(f"#{job.number} {job.name} {job.reason}")
            return
        except Exception as error:  # whatever Hydra or a resolver makes of it: this job only
            job.status, job.reason = "failed", f"does not compose: {str(error).strip().splitlines()[0]}"
            log.error(f"#{job.number} {job.name} {job.reason}")
            return

    def composed(self, job: Job) -> Any:
        """A job's configuration; fills in its name and its folder."""
        cfg = self._of_words(job.overrides)
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = job.number
        job.name = str(cfg.hydra.sweep.subdir)
        job.folder = Path(str(cfg.hydra.sweep.dir)) / job.name
        return cfg

    def _of_words(self, words: Sequence[str]) -> Any:
        """Hydra's composition, which takes a tenth of a second; jobs that differ in their seed alone share one."""
        seeds = [word for word in words if SEED.fullmatch(word)]
        others = tuple(word for word in words if word not in seeds)
        if len(seeds) != 1 or any(word.lstrip("+~").startswith("seed") for word in others):
            return self.config_loader.load_sweep_config(self.config, list(words))
        if others not in self._shared:
            if len(self._shared) == MOST_SHARED:
                self._shared.clear()
            self._shared[others] = seeds[0], self.config_loader.load_sweep_config(self.config, list(words))
        seed, shared = self._shared[others]
        cfg = copy.deepcopy(shared)
        with open_dict(cfg):
            cfg.seed = int(seeds[0].partition("=")[2])
            cfg.hydra.overrides.task = [seeds[0] if word == seed else word for word in cfg.hydra.overrides.task]
            names = str(cfg.hydra.job.override_dirname).split(",")
            cfg.hydra.job.override_dirname = ",".join(seeds[0] if name == seed else name for name in names)
        return cfg

    def _compare(self, job: Job, cfg: Any) -> None:
        """Settle a job whose folder holds a finished run; what is not finished is the job's own to look at.

        Raises:
            UserError: the data that the run would be compared with cannot be had.
        """
        folder = RunFolder(str(job.folder))
        record = folder.metrics()
        if record.get("status") != "finished":
            return
        job.before = record.get("attempt")
        if cfg.overwrite is True:
            return
        standing = look(folder, cfg, identity_of(cfg, cfg.hydra.runtime.choices), lambda: self._data_of(cfg))
        if standing.action == "refuse":
            job.status, job.reason = "refused", standing.reason
            log.error(f"#{job.number} {job.name} {job.reason}")
        elif standing.action in ("answer", "answer-stale"):
            job.status, job.metrics, job.stale = "finished", standing.record, bool(standing.reason)
            log.info(f"#{job.number} already finished -> {job.name}")
            if job.stale:
                log.warning(f"#{job.number} {standing.reason}")

    def _data_of(self, cfg: Any) -> Data:
        node = OmegaConf.to_container(cfg.data.source, resolve=True)
        key = digest(node, 32)
        if key not in self._data:
            try:
                self._data[key] = Data.of(build(node))
            except UserError as error:
                self._data[key] = error
        data = self._data[key]
        if isinstance(data, UserError):
            raise data
        return data

    def _run(self, jobs: list[Job]) -> None:
        """Run jobs until each has an outcome.

        When a worker of joblib is killed, all workers end, and nothing says which one was killed. Their jobs run again
        one at a time. A job that is killed while it runs alone does not run again.
        """
        size = self._jobs_side_by_side(len(jobs))
        groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        while groups:
            group = groups.pop(0)
            since = time.time() - 1
            broken, returned = False, []
            try:
                returned = self.launcher.launch([job.overrides for job in group], initial_job_idx=group[0].number)
            except BrokenProcessPool:
                broken = True
            except Exception as error:
                log.error(f"error: the launcher gave up: {type(error).__name__}: {error}")
            finally:
                for job in group:
                    job.look(since)
                for job, one in zip(group, returned, strict=False):
                    if isinstance(one._return_value, Outcome):
                        job.end(one._return_value)
            stopped = [job for job in group if job.status == "interrupted"]
            if broken and stopped and len(group) > 1:
                log.error(f"error: a job's process was killed; the {len(stopped)} that ran go on one at a time.")
                others = [job for job in group if job.status == "not started"]
                groups[:0] = [[job] for job in stopped] + [others] * bool(others)

    def _jobs_side_by_side(self, jobs: int) -> int:
        """How many jobs the launcher gets together: submitit's local executor starts all that it gets."""
        launcher = as_mapping(self.config.hydra.launcher)
        local = str(launcher.get("_target_", "")).endswith("LocalLauncher")
        return jobs_side_by_side(launcher, cores()) if local else max(1, jobs)

    def _returned(self, job: Job) -> JobReturn:
        """The job as its sweeper wants it: a failure matters only to one that looks for a number."""
        returned = JobReturn(overrides=list(job.overrides), status=JobStatus.COMPLETED)
        if self.objective is not None:
            value = ((job.metrics or {}).get("objectives") or {}).get(self.objective)
            if job.status == "finished" and value is not None and math.isfinite(value):
                returned._return_value = value
            else:
                returned.status = JobStatus.FAILED
                returned._return_value = UserError(job.reason or f"no {self.objective} in {job.folder}/metrics.json")
        return returned


outcomes: list[Job] = []  # of this process's sweep


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does: launchers stop their workers, and the table is still printed."""

    def handle(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)  # what a shell reports and a scheduler expects

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def table(jobs: Sequence[Job]) -> str:
    """A line for each job, then the list of those that failed with their reasons."""
    width = max((len(job.name) for job in jobs), default=0)
    count = {status: sum(job.status == status for job in jobs) for status in dict.fromkeys(job.status for job in jobs)}
    lines = [f"{len(jobs)} jobs: {', '.join(f'{n} {status}' for status, n in count.items())}"]
    for job in jobs:
        auroc = ((job.metrics or {}).get("metrics") or {}).get("image_auroc")
        figure = f"{'' if auroc is None else f'image_auroc {auroc:.4f}'}{'  stale' if job.stale else ''}"
        lines.append(f"  {job.name:<{width}}  {job.status:<11}  {figure}".rstrip())
    failed = [job for job in jobs if job.status != "finished"]
    if failed:
        lines.append(f"not finished ({len(failed)} of {len(jobs)}); the same command runs these again:")
        lines += [f"  {job.name}: {job.status}{f': {job.reason}' if job.reason else ''}" for job in failed]
    if stale := sum(job.stale for job in jobs):
        lines.append(f"stale ({stale} of {len(jobs)}): the code has changed since; overwrite=stale trains these anew")
    return "\n".join(lines)


def exit_code(jobs: Sequence[Job]) -> int:
    """0 if every job is finished, 1 otherwise."""
    return int(any(job.status != "finished" for job in jobs))

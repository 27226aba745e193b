"""One job: from a composed configuration to a finished run folder."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adbench.errors import UserError
from adbench.experiment.build import build_source
from adbench.experiment.checks import refuse_cut_short, refuse_wrong_types
from adbench.experiment.console import announce, log_error, one_line, quietly, summary
from adbench.experiment.folder import RunFolder
from adbench.experiment.identity import GROUPS, Identity, identity_of
from adbench.experiment.placement import cores, limit_to_worker_share, threads_per_job
from adbench.experiment.provenance import git, now, versions
from adbench.experiment.ranks import all_ranks, number_of_ranks
from adbench.experiment.record import UNKNOWN, RunRecord
from adbench.experiment.signals import StopRequest, signals_as_request
from adbench.experiment.standing import Data, Standing, code_hash, look
from adbench.experiment.states import Outcome
from adbench.experiment.trainers import set_threads
from adbench.experiment.training import Job, prepare, train_and_test
from adbench.experiment.values import data_kinds, flat, placeholder, refuse_absent_devices
from adbench.imports import import_quickly

log = logging.getLogger("adbench")


def execute(cfg: DictConfig) -> Outcome:
    """Run one job. Its exit code: 0 finished, 1 failed or refused, 143 stopped by SIGTERM, 130 by Ctrl-C.

    Errors never escape: a sweep goes on with its next job. Only a job of a sweep that is stopped by a signal exits.
    A command that is refused, or that fails before its training begins, leaves the folder as it was.

    Raises:
        SystemExit: a job of a sweep was stopped by a signal.
    """
    import_quickly("torch", "pytorch_lightning")  # in a sweep's worker; the command has them
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    choices = dict(hydra.runtime.choices)
    limit_to_worker_share(hydra.launcher)
    # The workers of a sweep that was killed and is repeated at once are still saving their state.
    folder = RunFolder(Path(hydra.runtime.output_dir), patience=60 if sweep else 0)
    try:
        refuse_wrong_types(cfg, choices)
        refuse_cut_short(cfg)
        refuse_absent_devices(cfg.trainer)
        with folder, signals_as_request() as request, quietly():
            outcome = attempt(cfg, folder, choices, request)
    except UserError as error:  # the folder may be another's: its metrics.json is not ours to write
        log_error(error)
        outcome = Outcome(1, "failed", str(error))
    folder.remove_if_bare(None if sweep else Path(cfg.results))  # a parallel job may be about to fill those around it
    if sweep and outcome.code > 128:
        raise SystemExit(outcome.code)  # a signal to a job is one to the sweep
    return outcome


def attempt(cfg: DictConfig, folder: RunFolder, choices: Mapping[str, Any], request: StopRequest) -> Outcome:
    """Do what the table in `adbench.experiment.states` says, in a folder that this process owns."""
    job: Job | None = None
    started = time.perf_counter()
    try:
        resolve(cfg)
        source = cache(lambda: build_source(cfg))
        identity = identity_of(cfg, choices)
        standing = look(folder, cfg, identity, lambda: Data.of(source()))
        if standing.action == "refuse":
            log.error(f"error: {standing.reason}")
            return Outcome(1, "refused", standing.reason)
        if standing.action in ("answer", "answer-stale"):
            return _answered(cfg, folder, standing)
        if standing.reason:
            log.warning(f"{standing.reason}. It goes on with the code as it is now")
        world = number_of_ranks(cfg.trainer)
        threads = _threads(cfg, world)
        set_threads(threads)
        record = _record(cfg, folder, choices, identity, standing)
        job = prepare(
            cfg, folder, record, request, threads=threads, world=world, checkpoint=standing.checkpoint, source=source
        )
        announce(job)
        with all_ranks(job, world, threads) as ranks:
            train_and_test(job, ranks)
        record.status = "finished"
        record.time |= {"finished": now(), "total_s": round(time.perf_counter() - started, 2)}
        folder.write_metrics(record.as_json())
    except BaseException as error:
        return _stopped_or_failed(error, job, folder, request)
    log.info(summary(record.as_json(), folder.path))
    return Outcome(0, "finished", began=True)


def _answered(cfg: DictConfig, folder: RunFolder, standing: Standing) -> Outcome:
    """Log the figures of a finished run of this data and these settings."""
    log.info("Already finished; overwrite=true trains it again.")
    if standing.reason:
        log.warning(standing.reason)
    folder.write_latest(cfg.results)
    log.info(summary(standing.record, folder.path))
    return Outcome(0, "finished", began=True, stale=bool(standing.reason))


def _stopped_or_failed(error: BaseException, job: Job | None, folder: RunFolder, request: StopRequest) -> Outcome:
    """Log the reason, and write it to metrics.json if the folder is this command's by now."""
    stopped = bool(request) or isinstance(error, KeyboardInterrupt)
    passing = stopped or _passing(error)
    status = "interrupted" if passing else "failed"
    reason = "stopped by a signal" if stopped else one_line(error)
    begun = job is not None and job.begun
    if job is not None and begun:
        job.record.status, job.record.error, job.record.time["finished"] = status, reason, now()
        with suppress(OSError):  # a full disk: the status stays "running", which the same command resumes as well
            folder.write_metrics(job.record.as_json())
    if stopped:
        log.error("Interrupted; the same command resumes this run." if begun else "Interrupted before training began.")
        return Outcome(request.code, status, reason, begun)
    log_error(error)
    checkpoint = folder.newest_checkpoint() if begun else None
    if begun and passing:
        log.error("The state was saved at the last checkpoint; once that is mended, the same command resumes this run.")
    elif checkpoint:
        trained = job is not None and job.total > 0
        log.error(
            f"What was trained is kept: the same command goes on at batch {checkpoint.batches_seen:,}; "
            "overwrite=true starts anew."
            if trained
            else "What was fitted is kept: the same command goes on with the test; overwrite=true starts anew."
        )
    elif not begun and folder.metrics():
        log.error(f"Training did not begin; what {folder.path} holds is as it was.")
    return Outcome(1, "failed" if not begun else status, reason, begun)


def _record(
    cfg: DictConfig, folder: RunFolder, choices: Mapping[str, Any], identity: Identity, standing: Standing
) -> RunRecord:
    """What metrics.json holds of a run from its first batch on."""
    before = standing.record if standing.action == "resume" else {}
    return RunRecord(
        **{group: choices[group] for group in GROUPS},
        seed=cfg.seed, config_hash=identity.hash, status="running", error=None, selection="last batch",
        time={"started": before.get("time", {}).get("started") or now(), "finished": None},
        versions=versions(str(cfg.method.get("_target_"))), git=git(), code=_code(before, code_hash(cfg)),
        # Ties checkpoints to this record: one that an overwritten run has left is of another attempt.
        attempt=before["attempt"] if before.get("attempt") else uuid.uuid4().hex[:12],
        changed=identity.changed, precision=_precision(folder, standing),
        compiled=before.get("compiled", UNKNOWN),
    )  # fmt: skip


def _precision(folder: RunFolder, standing: Standing) -> Any:
    """The precision that a run which goes on began with; unknown for one that starts."""
    if standing.action != "resume":
        return UNKNOWN
    # A record without it is of before `auto`, when the configuration said it.
    return standing.record.get("precision") or str(folder.config().trainer.precision)


def _code(before: Mapping[str, Any], now: str) -> str:
    """The code behind a run; one that went on with other code than it began with is of neither, and stale for ever."""
    began = str(before.get("code")) if before else now
    return began if began == now or "+" in began else f"{began}+{now}"


def resolve(cfg: DictConfig) -> None:
    """Fail now, with one message, if a value of the configuration cannot be had.

    Raises:
        UserError: a value is missing or does not resolve, or the method does not take data of this kind.
    """
    missing = [key for key, value in flat(OmegaConf.to_container(cfg, resolve=False)).items() if value == "???"]
    if missing:
        raise UserError(f"give {' and '.join(map(placeholder, missing))} on the command line")
    kinds = data_kinds(cfg.method)
    if cfg.data.kind not in kinds:
        raise UserError(
            f"this method takes data of kind {', '.join(kinds)}, and this set is of kind {cfg.data.kind}; "
            "choose another data= or method= (python -m adbench.run --help lists them)"
        )
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].removeprefix("UserError raised while resolving interpolation: ")
        raise UserError(f"the configuration does not resolve: {reason}") from None


def _passing(error: BaseException) -> bool:
    """Whether an error is the machine's, not the run's: a full disk, no memory, a loader worker that was killed."""
    killed = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    return killed or isinstance(error, OSError | MemoryError)


def _threads(cfg: DictConfig, world: int) -> int:
    """CPU threads of each of the run's processes: its share of the sweep's share of the cores."""
    launcher = HydraConfig.get().launcher if HydraConfig.get().mode == RunMode.MULTIRUN else {}
    return cfg.trainer.threads or max(1, threads_per_job(launcher, cores()) // world)

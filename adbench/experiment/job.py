"""One job: from a composed configuration to a finished run folder."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import subprocess
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adbench import __version__
from adbench.experiment.advice import purpose
from adbench.experiment.build import build_source
from adbench.experiment.checks import refuse_cut_short, refuse_wrong_types
from adbench.experiment.folder import RunFolder
from adbench.experiment.identity import changed_values, config_hash
from adbench.experiment.own_images import kind_in_words
from adbench.experiment.placement import cores, take_place, threads_per_job
from adbench.experiment.ranks import all_ranks, number_of_ranks
from adbench.experiment.signals import StopRequest, signals_as_request
from adbench.experiment.standing import Data, Standing, code_hash, look
from adbench.experiment.states import Outcome
from adbench.experiment.training import Prepared, one_line, prepare, quietly, set_threads, train_and_test
from adbench.experiment.values import flat, refuse_absent_devices
from adbench.types import UserError

log = logging.getLogger("adbench")


def execute(cfg: DictConfig) -> Outcome:
    """Run one job. Its exit code: 0 finished, 1 failed or refused, 143 stopped by SIGTERM, 130 by Ctrl-C.

    Errors never escape: a sweep goes on with its next job. Only a job of a sweep that is stopped by a signal exits.
    A command that is refused, or that fails before its training begins, leaves the folder as it was.
    """
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    choices = dict(hydra.runtime.choices)
    take_place(hydra.launcher)
    # The workers of a sweep that was killed and is repeated at once are still saving their state.
    folder = RunFolder(Path(hydra.runtime.output_dir), patience=60 if sweep else 0)
    try:
        refuse_wrong_types(cfg, choices)
        refuse_cut_short(cfg)
        refuse_absent_devices(cfg.trainer)
        with folder, signals_as_request() as request, quietly():
            outcome = attempt(cfg, folder, choices, request)
    except UserError as error:  # the folder may be another's: its metrics.json is not ours to write
        _say_error(error)
        outcome = Outcome(1, "failed", str(error))
    folder.remove_if_bare(None if sweep else Path(cfg.results))  # a parallel job may be about to fill those around it
    if sweep and outcome.code > 128:
        raise SystemExit(outcome.code)  # whoever stops a job stops the sweep
    return outcome


def attempt(cfg: DictConfig, folder: RunFolder, choices: Mapping[str, Any], request: StopRequest) -> Outcome:
    """Do what the table in `adbench.experiment.states` says, in a folder that this process owns."""
    job: Prepared | None = None
    started = time.perf_counter()
    try:
        _resolve(cfg)
        source = cache(lambda: build_source(cfg))
        standing = look(folder, cfg, lambda: Data.of(source()))
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
        record = _record(cfg, choices, standing)
        job = prepare(
            cfg, folder, record, request, threads=threads, place=(0, world), found=standing.found, source=source
        )
        announce(job)
        with all_ranks(job, world, threads) as ranks:
            train_and_test(job, ranks)
        record["status"] = "finished"
        record["time"] |= {"finished": now(), "total_s": round(time.perf_counter() - started, 2)}
        folder.write_metrics(record)
    except BaseException as error:
        return _stopped_or_failed(error, job, folder, request)
    log.info(summary(record, folder.path))
    return Outcome(0, "finished", began=True)


def _answered(cfg: DictConfig, folder: RunFolder, standing: Standing) -> Outcome:
    """Say what a finished run of this data and these settings has measured."""
    log.info("Already finished; overwrite=true trains it again.")
    if standing.reason:
        log.warning(standing.reason)
    folder.write_latest(cfg.results)
    log.info(summary(standing.record, folder.path))
    return Outcome(0, "finished", began=True, stale=bool(standing.reason))


def _stopped_or_failed(error: BaseException, job: Prepared | None, folder: RunFolder, request: StopRequest) -> Outcome:
    """Say what happened, and write it down if the folder is this command's by now."""
    stopped = bool(request) or isinstance(error, KeyboardInterrupt)
    passing = stopped or _passing(error)
    status = "interrupted" if passing else "failed"
    reason = "stopped by a signal" if stopped else one_line(error)
    begun = job is not None and job.begun
    if job is not None and begun:
        job.record["status"], job.record["error"], job.record["time"]["finished"] = status, reason, now()
        with suppress(OSError):  # a full disk: the status stays "running", which the same command resumes as well
            folder.write_metrics(job.record)
    if stopped:
        log.error("Interrupted; the same command resumes this run." if begun else "Interrupted before training began.")
        return Outcome(request.code, status, reason, begun)
    _say_error(error)
    kept = folder.trained() if begun else None
    if begun and passing:
        log.error("The state was saved at the last checkpoint; once that is mended, the same command resumes this run.")
    elif kept:
        log.error(
            f"What was trained is kept: the same command goes on at batch {int(kept[1]['batches_seen']):,}; "
            "overwrite=true starts anew."
        )
    elif not begun and folder.metrics():
        log.error(f"Training did not begin; what {folder.path} holds is as it was.")
    return Outcome(1, "failed" if not begun else status, reason, begun)


def _record(cfg: DictConfig, choices: Mapping[str, Any], standing: Standing) -> dict[str, Any]:
    """What metrics.json tells of a run from its first batch on."""
    before = standing.record if standing.action == "resume" else {}
    return {
        **{group: choices[group] for group in ("method", "data", "protocol", "pretraining")},
        "seed": cfg.seed, "config_hash": config_hash(cfg), "status": "running", "error": None,
        "selection": "last batch", "metrics": {}, "counts": {},
        "time": {"started": before.get("time", {}).get("started") or now(), "finished": None},
        "hardware": {}, "versions": versions(), "git": git(),
        "code": _code(before, code_hash(cfg)),
        # Ties checkpoints to this record: one that an overwritten run has left is of another attempt.
        "attempt": before.get("attempt") if before else uuid.uuid4().hex[:12],
        "changed": changed_values(cfg, choices),
    }  # fmt: skip


def _code(before: Mapping[str, Any], now: str) -> str:
    """The code behind a run; one that went on with other code than it began with is of neither, and stale for ever."""
    began = str(before.get("code")) if before else now
    return began if began == now or "+" in began else f"{began}+{now}"


def _resolve(cfg: DictConfig) -> None:
    """Fail now, with one message, if a value of the configuration cannot be had."""
    missing = [key for key, value in flat(OmegaConf.to_container(cfg, resolve=False)).items() if value == "???"]
    if missing:
        raise UserError(f"give {' and '.join(f'{key}=...' for key in missing)} on the command line")
    kinds = OmegaConf.to_container(cfg.method, resolve=False).get("recipe", {}).get("input", {})
    if cfg.data.kind not in kinds:
        raise UserError(
            f"this method takes data of kind {', '.join(kinds) or 'none'}, and this set is of kind {cfg.data.kind}; "
            "choose another data= or method= (python -m adbench.run --help lists them)"
        )
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None


def summary(record: Mapping[str, Any], folder: Path) -> str:
    """A table of the metrics, the threshold, the pictures' paths, and one line with the metrics that matter and the
    folder; without a test, one that says how to score new images."""
    from adbench.evaluation.thresholds import in_words

    metrics = record.get("metrics", {})
    counts = record.get("counts") or {"test_normal": None}
    tested = counts.get("test_normal") != 0 or counts.get("test_anomalous") != 0
    width = max((len(name) for name in metrics), default=0)
    shown = {name: "null" if value is None else f"{value:.4f}" for name, value in metrics.items()}
    lines = [f"  {name:<{width}}  {value}" for name, value in shown.items() if tested]
    if "false_alarm_interval_95" in (record.get("threshold") or {}):
        lines.append(in_words(record["threshold"]))
    for picture in (folder / "figures" / "panels.png", folder / "figures" / "scores.png"):
        if picture.exists():
            lines.append(f"picture: {picture}")
    main = [f"{k} {metrics[k]:.3f}" for k in ("image_auroc", "pixel_auroc", "pixel_pro") if metrics.get(k) is not None]
    what = f"{record['method']} on {_data(record)}, seed {record['seed']}"
    if tested:
        lines.append(f"{what}: {', '.join(main) or 'no metric is defined'} -> {folder}")
    else:
        if found := (record.get("threshold") or {}).get("score_quantiles"):
            told = ", ".join(f"{100 * float(share):g} % {value:.4g}" for share, value in found.items())
            lines.insert(0, f"scores of normal images that were not trained on, by the share below: {told}")
        lines.append(f"{what}: trained on normal images alone, nothing to test -> {folder}")
        lines.append(f"score new images with: python -m adbench.predict {shlex.quote(str(folder))} DIR")
    return "\n".join(lines)


def _data(record: Mapping[str, Any]) -> str:
    """The name of a run's data, of a folder its own."""
    own = record.get("data_id") if record["data"] == "folder" else None
    return str(own or record["data"])


def announce(job: Prepared) -> None:
    """Say what is about to be trained."""
    cfg, record, counts = job.cfg, job.record, job.record["counts"]
    paper = cfg.method.get("recipe", {}).get("budget", {}).get("paper", {})
    folds = len(job.datamodule.folds)
    held_out = f"{folds}-fold cross-validation" if folds else f"{counts['holdout']} held-out"
    if what := purpose(str(record["method"])):
        log.info(f"{record['method']}: {what}")
    log.info(
        f"{record['method']} on {_data(record)} ({counts['train']} training, {held_out}, "
        f"{counts['test_normal']} + {counts['test_anomalous']} test rows; {counts['parameters']:,} parameters)"
    )
    if "kind" in record["data_report"]:
        log.info(kind_in_words(record["data_report"]["kind"]))
    if "folders" in record["data_report"]:
        for line in table_lines(record["data_report"]["folders"]):
            log.info(line)
    length = f"{job.total:,} batches of {cfg.data.batch_size}" if job.total else "no training steps"
    published = f"{paper['max_batches']:,} batches" if paper.get("max_batches") else None
    published = published or (f"{paper['max_epochs']} epochs" if paper.get("max_epochs") else None)
    if cfg.budget.name != "paper" and published and job.total:
        length += f" (budget={cfg.budget.name}; the paper's is {published}: budget=paper)"
    log.info(f"{length}{f', resuming at batch {job.start}' if job.start else ''} -> {job.folder.path}")


def table_lines(folders: Sequence[Mapping[str, Any]], most: int = 20) -> list[str]:
    """The table of `DataModule.overview`, a line each; of many folders the first."""
    heads = {"folder": "folder", "images": "images", "taken_as": "taken as", "train": "train", "holdout": "held out",
             "test": "test", "unused": "unused"}  # fmt: skip
    shown = [name for name in heads if name not in ("holdout", "unused") or any(row[name] for row in folders)]
    rows = [[heads[name] for name in shown]]
    rows += [["" if row[name] == 0 else str(row[name]) for name in shown] for row in folders[:most]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    text = [name in ("folder", "taken_as") for name in shown]
    lines = [
        "  ".join(f"{cell:<{w}}" if left else f"{cell:>{w}}" for cell, w, left in zip(row, widths, text, strict=True))
        for row in rows
    ]
    return [f"  {line}".rstrip() for line in lines] + [f"  ... {len(folders) - most} more"] * (len(folders) > most)


def _passing(error: BaseException) -> bool:
    """Whether an error is the machine's, not the run's: a full disk, no memory, a loader worker that was killed."""
    killed = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    return killed or isinstance(error, OSError | MemoryError)


def _say_error(error: BaseException) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(error, UserError):
        log.debug("", exc_info=error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
    log.error(f"error: {one_line(error)}")
    if not isinstance(error, UserError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
        log.error("(HYDRA_FULL_ERROR=1 shows the traceback)")


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"adbench": __version__, "python": platform.python_version()}
    for name in (
        "torch",
        "torchvision",
        "pytorch-lightning",
        "hydra-core",
        "kornia",
        "pytorch-msssim",
        "timm",
        "numpy",
    ):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git() -> dict[str, Any] | None:
    """Commit of the checkout that ran, and whether it was modified; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        modified = bool(_git_says(root, "status", "--porcelain", "-uno"))
        return {"commit": _git_says(root, "rev-parse", "HEAD"), "modified": modified}
    except (OSError, subprocess.SubprocessError):
        return None


def _git_says(root: Path, *arguments: str) -> str:
    line = ["git", *arguments]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603


def _threads(cfg: DictConfig, world: int) -> int:
    """CPU threads of each of the run's processes: its share of the sweep's share of the cores."""
    launcher = HydraConfig.get().launcher if HydraConfig.get().mode == RunMode.MULTIRUN else {}
    return cfg.trainer.threads or max(1, threads_per_job(launcher, cores()) // world)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

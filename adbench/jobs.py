"""One job: from a composed configuration to a finished run folder."""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adbench import __version__
from adbench.files import write_text
from adbench.placement import cores, take_place, threads_per_job
from adbench.ranks import STRATEGY, Ranks, all_ranks, number_of_ranks
from adbench.runs import (
    RunFolder,
    build,
    build_datamodule,
    build_method,
    changed_values,
    config_hash,
    note_other_settings,
    refuse_wrong_types,
)
from adbench.types import UserError
from adbench.values import flat, refuse_absent_devices

log = logging.getLogger("adbench")


def execute(cfg: DictConfig) -> int:
    """Run one job and return its exit code: 0 finished, 1 failed, 143 stopped by SIGTERM, 130 by Ctrl-C.

    Errors never escape: a sweep goes on with its next job, and metrics.json tells what became of this one. Only a job
    of a sweep that is stopped by a signal exits.
    """
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    path = Path(hydra.runtime.output_dir)
    choices = dict(hydra.runtime.choices)
    take_place(hydra.launcher)
    try:
        refuse_wrong_types(cfg, choices)  # first of all: overwrite=no-such-word must not clear a folder
        refuse_absent_devices(cfg.trainer)
        # The workers of a sweep that was killed and is repeated at once are still saving their state.
        with RunFolder(path, patience=60 if sweep else 0) as folder, _signals_as_request() as request:
            code = _execute(cfg, folder, choices, request)
    except UserError as error:  # the folder may be another's: its metrics.json is not ours to write
        _say_error(error)
        return 1
    if sweep and code > 128:
        raise SystemExit(code)  # whoever stops a job stops the sweep
    return code


def _execute(cfg: DictConfig, folder: RunFolder, choices: dict[str, Any], request: StopRequest) -> int:
    before = folder.metrics()
    write_text(Path(cfg.results) / "latest", f"{folder.path.resolve()}\n")
    if before.get("status") == "finished" and not cfg.overwrite:
        log.info("Already finished; overwrite=true trains it again.")
        if note := note_other_settings(before, cfg):
            log.warning(note)
        log.info(summary(before, folder.path))
        return 0
    resumable = before.get("status") in ("running", "interrupted") and cfg.resume and not cfg.overwrite
    if not resumable:
        folder.clear()
    record: dict[str, Any] = {
        **{group: choices[group] for group in ("method", "data", "protocol", "pretraining")},
        "seed": cfg.seed, "config_hash": None, "status": "running", "error": None,
        "selection": "last batch", "metrics": {}, "counts": {},
        "time": {"started": before.get("time", {}).get("started") if resumable else _now(), "finished": None},
        "hardware": {}, "versions": _versions(), "git": _git(),
        "data_fingerprint": before.get("data_fingerprint") if resumable else None,
    }  # fmt: skip
    folder.write_metrics(record)
    started = time.perf_counter()
    try:
        _resolve(cfg)
        record["config_hash"] = config_hash(cfg)
        # A job that is resumed must be the same experiment: an edited YAML default has moved under it otherwise.
        if resumable and before.get("config_hash") not in (None, record["config_hash"]):
            log.info("The configuration behind this folder changed since it was interrupted: starting anew.")
            folder.clear()
        record["changed"] = changed_values(cfg, choices)
        folder.write_config(cfg)
        folder.write_metrics(record)
        world = number_of_ranks(cfg.trainer)
        threads = _threads(cfg, world)
        set_threads(threads)
        with all_ranks(folder, world, threads) as ranks:
            train_and_test(cfg, folder, record, request, threads, ranks)
    except BaseException as error:
        stopped = bool(request) or isinstance(error, KeyboardInterrupt)
        record["status"] = "interrupted" if stopped or _passing(error) else "failed"
        record["error"] = "stopped by a signal" if stopped else _one_line(error)
        record["time"]["finished"] = _now()
        with suppress(OSError):  # a full disk: the status stays "running", which the same command resumes as well
            folder.write_metrics(record)
        if stopped:
            log.error("Interrupted; the same command resumes this run.")
            return request.code
        _say_error(error)
        if _passing(error):
            log.error(
                "The state was saved at the last checkpoint; once that is mended, the same command resumes this run."
            )
        return 1
    record["status"] = "finished"
    record["time"]["finished"] = _now()
    record["time"]["total_s"] = round(time.perf_counter() - started, 2)
    folder.write_metrics(record)
    log.info(summary(record, folder.path))
    return 0


def _resolve(cfg: DictConfig) -> None:
    """Fail now, with one message, if a value of the configuration cannot be had."""
    kinds = OmegaConf.to_container(cfg.method, resolve=False).get("recipe", {}).get("input", {})
    if cfg.data.kind not in kinds:
        raise UserError(
            f"this method takes data of kind {', '.join(kinds) or 'none'}, and this set is of kind {cfg.data.kind}; "
            "choose another data= or method= (python -m adbench.run --help lists them)"
        )
    missing = [key for key, value in flat(OmegaConf.to_container(cfg, resolve=False)).items() if value == "???"]
    if missing:
        raise UserError(f"give {' and '.join(f'{key}=...' for key in missing)} on the command line")
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None


def train_and_test(
    cfg: DictConfig,
    folder: RunFolder,
    record: dict[str, Any],
    request: StopRequest,
    threads: int,
    ranks: Ranks,
) -> None:
    """Fill the folder and the record; what another rank than 0 writes goes nowhere."""
    import torch
    from pytorch_lightning import Trainer, seed_everything
    from pytorch_lightning.callbacks import LambdaCallback, TQDMProgressBar
    from pytorch_lightning.plugins.environments import LightningEnvironment
    from pytorch_lightning.utilities.model_helpers import is_overridden

    from adbench.checkpoints import SaveEvery, WholeFiles, newest_readable
    from adbench.evaluation.codes import CodePanels
    from adbench.evaluation.evaluator import Evaluator
    from adbench.evaluation.extra_scores import ExtraScores
    from adbench.evaluation.gallery import Gallery
    from adbench.evaluation.metrics import held_out_threshold, histogram_offset
    from adbench.evaluation.panels import Panels

    _quiet()
    with _no_stdout_chatter():
        seed_everything(cfg.seed, workers=True)
    method = build_method(cfg)
    method.log_every = cfg.log_every
    pretraining = _pretraining(cfg, method)
    datamodule = build_datamodule(cfg, method.supervision)
    datamodule.place = ranks.rank, ranks.world
    datamodule.setup()
    _check_same_data(record, datamodule.source.fingerprint())
    folder.write_split(datamodule.split_table())

    # What learns nothing by gradients (PCA, OC-SVM) beside what does, in a sweep with one budget for all, has none.
    total = _total_batches(cfg, datamodule) if is_overridden("training_step", method) else 0
    method.total_batches = total
    found = newest_readable(folder.checkpoint)
    start = int(found[1]["batches_seen"]) if found else 0
    if total:
        datamodule.set_budget(total, start=start)
    record["hardware"] = _hardware(threads) | {"ranks": ranks.world}
    record["counts"] = _counts(datamodule, method)
    record["budget"] = {"name": cfg.budget.name, "batches": total, "batch_size": cfg.data.batch_size}
    record["data_kind"], record["normal_class"] = cfg.data.kind, cfg.data.normal_class
    folder.write_metrics(record)
    if ranks.rank == 0:
        _announce(cfg, record, folder, start, total)

    saver = SaveEvery(folder.checkpoint, cfg.budget.checkpoint_every)
    request.callback = saver
    loggers = _loggers(cfg, folder, record)
    bar = TQDMProgressBar(refresh_rate=_refresh_rate())
    again = lambda *_: request.listen()  # noqa: E731
    ears = LambdaCallback(on_train_start=again, on_test_start=again)
    trainer_options = {k: v for k, v in cfg.trainer.items() if k != "threads"} | {
        "max_epochs": 1, "logger": loggers, "default_root_dir": folder.path, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "plugins": [WholeFiles()], "log_every_n_steps": 1,
    }  # fmt: skip
    if ranks.world > 1:
        trainer_options["plugins"].append(LightningEnvironment())  # the ranks are ours, also inside a SLURM job
        trainer_options["strategy"] = STRATEGY if cfg.trainer.strategy == "auto" else cfg.trainer.strategy
    try:
        clock = time.perf_counter()
        fitter = Trainer(**trainer_options, callbacks=[ears, saver, bar])
        if pretraining is not None and not found:
            method.to(fitter.strategy.root_device)
            method.before_pretraining(datamodule.training_batches(fitter.strategy.root_device))
            pretraining(method, datamodule, cache_dir=cfg.cache_dir, seed=cfg.seed,
                        max_batches=cfg.budget.pretraining_batches)  # fmt: skip
            record["time"]["pretraining_s"] = round(time.perf_counter() - clock, 2)
            clock = time.perf_counter()
        ranks.meet()
        if start < total:
            fitter.fit(method, datamodule=datamodule, ckpt_path=found[0] if found else None)
        elif found:
            method.load_state_dict(found[1]["state_dict"])
            method.batches_seen = start
        request.callback = None
        record["time"]["train_s"] = round(time.perf_counter() - clock, 2)

        device = fitter.strategy.root_device
        method.to(device).eval()
        with torch.no_grad():
            if not total and not bool(method.prepared):
                method.prepare(datamodule.training_batches(device))
                method.prepared.fill_(True)
            if not bool(method.calibrated):
                method.calibrate(datamodule.holdout_batches(device))
                method.calibrated.fill_(True)
        if fitter.is_global_zero:
            _save_calibrated(method, folder)
        held_out = _score_all(method, datamodule.holdout_batches(device))
        threshold = held_out_threshold(held_out["score"], cfg.evaluation.quantile)
        record["threshold"] = threshold
        # What a tuner may look at: held-out normal rows, no test row and no label.
        record["objectives"] = {"holdout_score": float(held_out["score"].mean()) if len(held_out["score"]) else None}
        rows = _named_rows(datamodule.records, held_out["index"], held_out["score"])
        folder.write_scores("calibration.csv", rows)

        clock = time.perf_counter()
        evaluator = Evaluator(
            datamodule.has_masks, threshold, histogram_offset(held_out["pixels"]) if len(held_out["pixels"]) else 0.0
        )
        panels = Panels(
            folder.path / "figures", evaluator, datamodule.records.defect, datamodule.split.test,
            per_defect=cfg.evaluation.panels_per_defect, normals=cfg.evaluation.panels_normal,
        )  # fmt: skip
        defects = datamodule.records.defect
        gallery = Gallery(
            folder.path / "figures", evaluator, datamodule.records.defect, datamodule.records.path,
            number=cfg.evaluation.gallery,
        )  # fmt: skip
        codes, extra = CodePanels(folder.path / "figures", defects), ExtraScores(defects)
        bar = TQDMProgressBar(refresh_rate=_refresh_rate())
        tester = Trainer(**trainer_options, callbacks=[ears, evaluator, panels, gallery, codes, extra, bar])
        tester.test(method, datamodule=datamodule, verbose=False)
        record["time"]["test_s"] = round(time.perf_counter() - clock, 2)
        table = evaluator.table()
        record["metrics"] = evaluator.results() | extra.results()
        record["per_defect_image_auroc"] = evaluator.per_defect(datamodule.records.defect)
        record["image_auroc_interval_95"] = evaluator.interval()
        for logger in loggers:
            numbers = {f"test/{k}": v for k, v in record["metrics"].items() if v is not None}
            logger.log_metrics(numbers, step=total)
            logger.save()
        if evaluator.curves():
            folder.write_curves({"pixel": evaluator.curves()})
        folder.write_scores("scores.csv", _named_rows(datamodule.records, table["index"], table["score"]))
    finally:
        for logger in loggers:
            with suppress(Exception):
                logger.finalize("success" if sys.exc_info()[0] is None else "failed")
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish()  # without this the jobs of a sweep merge into one run


def _pretraining(cfg: DictConfig, method: Any) -> Any:
    """The pretraining of a configuration, checked against the method before any data is read; None for none."""
    node = {k: v for k, v in OmegaConf.to_container(cfg.pretraining, resolve=True).items() if k != "id"}
    if node.get("_target_") is None:
        return None
    pretraining = build(node)
    pretraining.check(method)
    return pretraining


def _total_batches(cfg: DictConfig, datamodule: Any) -> int:
    batches, epochs = cfg.budget.max_batches, cfg.budget.max_epochs
    if batches is None and epochs is None:
        raise UserError(
            f"method {cfg.method.get('_target_')} gives no length for budget={cfg.budget.name}; "
            "say budget.max_batches=N or budget.max_epochs=N"
        )
    total = batches if batches is not None else epochs * datamodule.batches_per_epoch
    if total < 0:
        raise UserError(f"the training budget must be at least 0 batches, and {total} came")
    return int(total)


def _threads(cfg: DictConfig, world: int) -> int:
    """CPU threads of each of the run's processes: its share of the sweep's share of the cores."""
    launcher = HydraConfig.get().launcher if HydraConfig.get().mode == RunMode.MULTIRUN else {}
    return cfg.trainer.threads or max(1, threads_per_job(launcher, cores()) // world)


def set_threads(threads: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)


def _score_all(method: Any, batches: Any) -> dict[str, Any]:
    """Scores of held-out rows, and a sample of their maps' pixels."""
    import numpy as np
    import torch

    index, score, pixels = [], [], []
    with torch.no_grad():
        for batch in batches:
            scores = method.score(batch.image)
            index.append(batch.index.cpu())
            score.append(scores.image.float().cpu())
            if scores.maps is not None:
                pixels.append(scores.maps.float().flatten()[::61].cpu())  # a prime: not one column of the image
    join = lambda parts: torch.cat(parts).numpy() if parts else np.empty(0)  # noqa: E731
    return {"index": join(index).astype(int), "score": join(score), "pixels": join(pixels)}


def _named_rows(records: Any, index: Any, score: Any) -> Iterator[tuple[int, str, int, str, float]]:
    for i, s in zip(index.tolist(), score.tolist(), strict=True):
        yield i, str(records.path[i]), int(records.label[i]), str(records.defect[i]), s


def _save_calibrated(method: Any, folder: RunFolder) -> None:
    """Write the checkpoint again with what calibration filled in; it is what predict and export load."""
    from adbench.checkpoints import WholeFiles, newest_readable

    found = newest_readable(folder.checkpoint)
    checkpoint = found[1] if found else {}
    state = {name: value.detach().cpu() for name, value in method.state_dict().items()}
    WholeFiles().save_checkpoint(
        checkpoint | {"state_dict": state, "batches_seen": method.batches_seen}, folder.checkpoint
    )


def _loggers(cfg: DictConfig, folder: RunFolder, record: dict[str, Any]) -> list[Any]:
    """Lightning loggers of the chosen group, told where the run lives and what it is called."""
    if cfg.logger is None:
        return []
    tags = [str(record[group]) for group in ("method", "data", "protocol", "pretraining")]
    # The folder without its seed: what tells settings apart there (a class, a ratio, changed values) does so here.
    place, results = folder.path.resolve(), Path(cfg.results).resolve()
    inside = place.is_relative_to(results)  # not where hydra.run.dir was set
    place = place.relative_to(results) if inside else Path(*tags, place.name)
    setting = "/".join([*place.parent.parts, *place.name.split("-")[1:]])[-128:]  # W&B's limit
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    known = [*tags, f"budget:{cfg.budget.name}", *([f"experiment:{experiment}"] if experiment else [])]
    loggers = []
    for name, node in cfg.logger.items():
        options: dict[str, Any] = {"save_dir": str(folder.path)}
        if name == "wandb":
            offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "online")
            options |= {
                "offline": offline and os.environ.get("WANDB_MODE") != "disabled",
                "group": setting, "tags": [tag[:64] for tag in known], "job_type": "train",
                "name": f"{setting}/seed{cfg.seed}",
                "config": OmegaConf.to_container(cfg, resolve=True),
            }  # fmt: skip
        logger = instantiate(node, _partial_=True)(**options)  # "config" is a name that instantiate keeps for itself
        if name != "wandb":
            with suppress(Exception):
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        loggers.append(_patient(logger))
    return loggers


def _patient(logger: Any) -> Any:
    """A logger whose failures are said once and cost the run nothing: a dashboard may be out of reach for hours."""
    said: list[str] = []

    def guarded(call: Any) -> Any:
        def attempt(*arguments: Any, **options: Any) -> None:
            try:
                call(*arguments, **options)
            except Exception as error:  # the network, the dashboard's library, its quota: whatever it is
                if not said:
                    said.append(type(logger).__name__)
                    log.warning(f"warning: {said[0]} failed and misses what it was told: {_one_line(error)}")

        return attempt

    for name in ("log_metrics", "log_image", "save", "finalize"):
        if hasattr(logger, name):
            setattr(logger, name, guarded(getattr(logger, name)))
    return logger


def _check_same_data(record: dict[str, Any], fingerprint: str) -> None:
    """Refuse to continue a run on other images than it began with; note which those are."""
    if record.get("data_fingerprint") not in (None, fingerprint):
        raise UserError(
            "files of the data set changed, moved or vanished since this run was interrupted: what was trained so far "
            "saw others. Put them back, or train anew with overwrite=true"
        )
    record["data_fingerprint"] = fingerprint


def _passing(error: BaseException) -> bool:
    """Whether an error is the machine's, not the run's: a full disk, no memory, a loader worker that was killed."""
    killed = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    return killed or isinstance(error, OSError | MemoryError)


# -- what is said -----------------------------------------------------------------------------------------------------


def summary(record: dict[str, Any], folder: Path) -> str:
    """A table of the metrics, the picture's path, and one line with the metrics that matter and the folder."""
    metrics = record.get("metrics", {})
    width = max((len(name) for name in metrics), default=0)
    shown = {name: "null" if value is None else f"{value:.4f}" for name, value in metrics.items()}
    lines = [f"  {name:<{width}}  {value}" for name, value in shown.items()]
    picture = folder / "figures" / "panels.png"
    if picture.exists():
        lines.append(f"picture: {picture}")
    main = [f"{k} {metrics[k]:.3f}" for k in ("image_auroc", "pixel_auroc", "pixel_pro") if metrics.get(k) is not None]
    what = f"{record['method']} on {record['data']}, seed {record['seed']}"
    lines.append(f"{what}: {', '.join(main) or 'no metric is defined'} -> {folder}")
    return "\n".join(lines)


def _announce(cfg: DictConfig, record: dict[str, Any], folder: RunFolder, start: int, total: int) -> None:
    counts, paper = record["counts"], cfg.method.get("recipe", {}).get("budget", {}).get("paper", {})
    log.info(
        f"{record['method']} on {record['data']} ({counts['train']} training, {counts['holdout']} held-out, "
        f"{counts['test_normal']} + {counts['test_anomalous']} test rows; {counts['parameters']:,} parameters)"
    )
    length = f"{total:,} batches of {cfg.data.batch_size}"
    published = f"{paper['max_batches']:,} batches" if paper.get("max_batches") else None
    published = published or (f"{paper['max_epochs']} epochs" if paper.get("max_epochs") else None)
    if cfg.budget.name != "paper" and published and total:
        length += f" (budget={cfg.budget.name}; the paper's is {published}: budget=paper)"
    log.info(f"{length}{f', resuming at batch {start}' if start else ''} -> {folder.path}")


def _say_error(error: BaseException) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(error, UserError):
        log.debug("", exc_info=error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
    log.error(f"error: {_one_line(error)}")
    if not isinstance(error, UserError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
        log.error("(HYDRA_FULL_ERROR=1 shows the traceback)")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _counts(datamodule: Any, method: Any) -> dict[str, int]:
    from adbench.networks.averaging import WeightAverage

    split, label = datamodule.split, datamodule.records.label
    copies = [module for module in method.modules() if isinstance(module, WeightAverage)]  # of weights counted already
    copied = {id(p) for module in copies for p in module.parameters()}
    return {
        "train": len(split.train),
        "train_known_normal": int((split.semi_label == 1).sum()),
        "train_known_anomalous": int((split.semi_label == -1).sum()),
        "holdout": len(split.holdout),
        "test_normal": int((label[split.test] == 0).sum()),
        "test_anomalous": int((label[split.test] == 1).sum()),
        "parameters": sum(p.numel() for p in method.parameters() if id(p) not in copied),
    }


def _hardware(threads: int) -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpus": gpus,
    }


def _versions() -> dict[str, str]:
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


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that ran, and whether it was modified; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
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


def _refresh_rate() -> int:
    return 1 if sys.stderr.isatty() else 0  # a log file gets no progress bars


def _quiet() -> None:
    """Silence what Lightning says about things that are deliberate here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*", ".*You're resuming from a checkpoint that ended before.*",
        ".*Checkpoint directory .* exists.*", ".*`LightningModule.configure_optimizers` returned `None`.*",
        ".*No `test_dataloader.*", ".*isinstance\\(treespec, LeafSpec\\).*", ".*Experiment logs directory.*",
        ".*GPU available but not used.*", ".*Found .* module\\(s\\) in eval mode.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)
    warnings.showwarning = lambda message, *_, **__: log.warning(f"warning: {message}")


@contextmanager
def _no_stdout_chatter() -> Iterator[None]:
    logger = logging.getLogger("lightning_fabric.utilities.seed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class StopRequest:
    """The signal that asked the run to stop, and the callback that should save and stop.

    SIGTERM, which schedulers send before the time limit, and Ctrl-C become 'save a checkpoint and stop'. Whoever asks a
    second time is not made to wait.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.callback: Any = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """What a shell reports of a process that this signal ended."""
        return 128 + (self.signal or signal.SIGINT)

    def handle(self, signum: int, frame: Any) -> None:
        again, self.signal = bool(self), signum
        if again or self.callback is None:
            raise SystemExit(self.code)  # not training: what is written is whole, the rest is done again
        self.callback.stop_requested = True

    def listen(self) -> dict[int, Any]:
        """Hear the signals; returns who did before. Lightning's trainers take them over, and under several ranks talk
        to the others from inside the handler, where these do not listen: said again once they have begun."""
        return {signum: signal.signal(signum, self.handle) for signum in (signal.SIGTERM, signal.SIGINT)}


@contextmanager
def _signals_as_request() -> Iterator[StopRequest]:
    request = StopRequest()
    try:
        earlier = request.listen()
    except ValueError:  # not the main thread: the owner of the process decides about its signals
        request.listen = dict  # type: ignore[method-assign]
        earlier = {}
    try:
        yield request
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)

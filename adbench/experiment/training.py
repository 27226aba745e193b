"""From a configuration to trained weights and measured scores: the steps of one run, on one of its devices."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adbench.experiment.build import build, build_datamodule, build_method
from adbench.experiment.folder import RunFolder
from adbench.experiment.own_images import kind_report
from adbench.experiment.ranks import STRATEGY, Ranks
from adbench.experiment.signals import StopRequest
from adbench.experiment.standing import Data
from adbench.types import UserError

log = logging.getLogger("adbench")


@dataclass
class Prepared:
    """A run that nothing stands in the way of; its folder is untouched until `begin`.

    Attributes:
        record: what metrics.json will hold; filled on the way.
        callbacks: the user's own.
        total: training batches; 0 for a method that does not learn by gradients.
        found: file and contents of the checkpoint to go on from; None starts at 0.
    """

    cfg: DictConfig
    folder: RunFolder
    record: dict[str, Any]
    request: StopRequest
    method: Any
    pretraining: Any
    datamodule: Any
    total: int
    found: tuple[Path, dict[str, Any]] | None
    loggers: list[Any]
    callbacks: list[Any]
    begun: bool = field(default=False)

    @property
    def start(self) -> int:
        """Batches that the checkpoint has seen."""
        return int(self.found[1]["batches_seen"]) if self.found else 0

    def begin(self, saver: Any = None) -> None:
        """Make the folder this run's: called when the first training batch is about to start, or what replaces it.

        From the moment that metrics.json says so, what an overwritten run has left counts no more: its checkpoint is
        of another attempt.
        """
        if self.begun:
            return
        self.folder.write_metrics(self.record)
        self.begun = True
        if self.found is None:
            self.folder.clear()
        self.folder.write_config(self.cfg)
        self.folder.write_split(self.datamodule.split_table())
        self.folder.write_latest(self.cfg.results)
        self.request.callback = saver
        for logger in self.loggers:
            if type(logger).__name__ != "WandbLogger":  # which has the configuration already
                with suppress(Exception):
                    logger.log_hyperparams(OmegaConf.to_container(self.cfg, resolve=True))


def prepare(
    cfg: DictConfig, folder: RunFolder, record: dict[str, Any], request: StopRequest, *,
    threads: int, place: tuple[int, int] = (0, 1), found: Any = None, source: Any = None,
) -> Prepared:  # fmt: skip
    """Do all that may be refused: devices, method, pretraining, data, budget. Nothing in the folder changes.

    Args:
        cfg, folder, record, request: of the run; the record is filled with what is known before training.
        threads: CPU threads of this process.
        place: (rank, number of ranks).
        found: the checkpoint to go on from, see `RunFolder.trained`.
        source: gives the data set, where it may be built already.

    Raises:
        UserError: something cannot be had or does not fit.
    """
    from pytorch_lightning import seed_everything
    from pytorch_lightning.utilities.model_helpers import is_overridden

    from adbench.data.notes import lines

    with _no_stdout_chatter():
        seed_everything(cfg.seed, workers=True)
    _check_devices(cfg, place[1])
    method = build_method(cfg)
    method.log_every = cfg.log_every
    pretraining = _pretraining(cfg, method)
    datamodule = build_datamodule(cfg, method.supervision, None if source is None else source())
    datamodule.place = place
    datamodule.setup()
    _refuse_far_rows(method, datamodule)
    # What learns nothing by gradients (PCA, OC-SVM) beside what does, in a sweep with one budget for all, has none.
    total = total_batches(cfg, datamodule) if is_overridden("training_step", method) else 0
    method.total_batches = total
    record["data_fingerprint"], record["data_id"] = Data.of(datamodule.source).fingerprint, cfg.data.id
    record["hardware"] = hardware(threads) | {"ranks": place[1]}
    record["counts"] = counts(datamodule, method)
    record["budget"] = {"name": cfg.budget.name, "batches": total, "batch_size": cfg.data.batch_size}
    record["data_kind"], record["normal_class"] = cfg.data.kind, cfg.data.normal_class
    record["data_report"] = datamodule.data_report()
    if hasattr(datamodule.source, "good_alone"):
        record["data_report"]["folders"] = datamodule.overview()
        if measured := kind_report(cfg.data):
            record["data_report"]["kind"] = measured
    if place[0] == 0:
        for line in lines(record["data_report"]):
            log.warning(line)
    if hasattr(pretraining, "weights_used"):
        record["pretraining_weights"] = pretraining.weights_used()
    if hasattr(pretraining, "images_used"):
        record["pretraining_images"] = pretraining.images_used()
    loggers = _loggers(cfg, folder, record)
    callbacks = [build(node) for node in (cfg.get("callbacks") or {}).values()]
    job = Prepared(cfg, folder, record, request, method, pretraining, datamodule, total, found, loggers, callbacks)
    if total:
        datamodule.set_budget(total, start=job.start)
    return job


def train_and_test(job: Prepared, ranks: Ranks) -> None:
    """Fill the folder and the record; what another rank than 0 writes goes nowhere."""
    try:
        fitter = _fit(job, ranks)
        folds = cross_validated(job.method, job.datamodule, fitter.strategy.root_device)
        _calibrate(job, fitter)
        held_out = _hold_out(job, fitter, folds)
        if len(job.datamodule.split.test):
            _test(job, ranks, held_out)
        else:
            _untested(job, held_out)
    finally:
        for logger in job.loggers if job.begun else ():
            with suppress(Exception):
                logger.finalize("success" if sys.exc_info()[0] is None else "failed")
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish()  # without this the jobs of a sweep merge into one run


# -- the steps --------------------------------------------------------------------------------------------------------


def _fit(job: Prepared, ranks: Ranks) -> Any:
    """Pretrain and train, or take over what a checkpoint holds; returns the trainer, which knows the device."""
    from pytorch_lightning.callbacks import TQDMProgressBar

    from adbench.experiment.checkpoints import SaveEvery

    method, clock = job.method, time.perf_counter()
    saver = SaveEvery(job.folder.checkpoint, job.cfg.budget.checkpoint_every, job.record.get("attempt"))
    bar = TQDMProgressBar(refresh_rate=refresh_rate())
    fitter = _trainer(
        job.cfg, job.folder, ranks.world, [_ears(job), _beginning(job, saver), saver, *job.callbacks, bar]
    )
    device = fitter.strategy.root_device
    if job.pretraining is not None and job.found is None:
        method.to(device)
        method.before_pretraining(job.datamodule.training_batches(device))
        job.pretraining(method, job.datamodule, cache_dir=job.cfg.cache_dir, seed=job.cfg.seed,
                        max_batches=job.cfg.budget.pretraining_batches)  # fmt: skip
        job.record["time"]["pretraining_s"] = round(time.perf_counter() - clock, 2)
        clock = time.perf_counter()
    ranks.meet()
    if job.start < job.total:
        fitter.fit(method, datamodule=job.datamodule, ckpt_path=job.found[0] if job.found else None)
    elif job.found:
        method.load_state_dict(job.found[1]["state_dict"])
        method.batches_seen = job.start
    job.begin()
    job.request.callback = None
    job.record["time"]["train_s"] = round(time.perf_counter() - clock, 2)
    return fitter


def _calibrate(job: Prepared, fitter: Any) -> None:
    """Fit what is not learned by gradients, and what is computed from held-out rows; save it."""
    import torch

    method, device = job.method, fitter.strategy.root_device
    method.to(device).eval()
    with torch.no_grad():
        if not job.total and not bool(method.prepared):
            method.prepare(job.datamodule.training_batches(device))
            method.prepared.fill_(True)
        if not bool(method.calibrated):
            method.calibrate(job.datamodule.holdout_batches(device))
            method.calibrated.fill_(True)
    if fitter.is_global_zero:
        _save_calibrated(method, job.folder, job.record)


def _hold_out(job: Prepared, fitter: Any, folds: dict[str, Any] | None) -> dict[str, Any]:
    """Set the threshold by the scores of the held-out normal rows, or by those of a cross-validation."""
    from adbench.evaluation.thresholds import held_out_threshold

    held_out, origin = folds, f"{len(job.datamodule.folds)}-fold cross-validation of the normal training samples"
    if held_out is None:
        held_out = score_all(job.method, job.datamodule.holdout_batches(fitter.strategy.root_device))
        origin = "held-out normal training samples"
    job.record["threshold"] = held_out_threshold(held_out["score"], job.cfg.evaluation.quantile, origin)
    # What a tuner may look at: held-out normal rows, no test row and no label.
    mean = float(held_out["score"].mean()) if len(held_out["score"]) else None
    job.record["objectives"] = {"holdout_score": mean}
    rows = named_rows(job.datamodule.records, held_out["index"], held_out["score"])
    job.folder.write_scores("calibration.csv", rows)
    return held_out


def _test(job: Prepared, ranks: Ranks, held_out: dict[str, Any]) -> None:
    """Score the test rows; fill the record's metrics, scores.csv, the curves and the pictures."""
    from pytorch_lightning.callbacks import TQDMProgressBar

    from adbench.evaluation.codes import CodePanels
    from adbench.evaluation.evaluator import Evaluator
    from adbench.evaluation.extra_scores import ExtraScores
    from adbench.evaluation.gallery import Gallery
    from adbench.evaluation.metrics import histogram_offset
    from adbench.evaluation.panels import Panels

    clock, datamodule, options = time.perf_counter(), job.datamodule, job.cfg.evaluation
    figures, defects, paths = job.folder.path / "figures", datamodule.records.defect, datamodule.records.path
    offset = histogram_offset(held_out["pixels"]) if len(held_out["pixels"]) else 0.0
    evaluator, extra = Evaluator(datamodule.has_masks, job.record["threshold"], offset), ExtraScores(defects)
    panels = Panels(
        figures, evaluator, defects, datamodule.split.test,
        per_defect=options.panels_per_defect, normals=options.panels_normal,
    )  # fmt: skip
    gallery = Gallery(figures, evaluator, defects, paths, number=options.gallery)
    bar = TQDMProgressBar(refresh_rate=refresh_rate())
    callbacks = [_ears(job), evaluator, panels, gallery, CodePanels(figures, defects, options.codes), extra]
    callbacks += [*job.callbacks, bar]
    tester = _trainer(job.cfg, job.folder, ranks.world, callbacks, job.loggers)
    tester.test(job.method, datamodule=datamodule, verbose=False)
    job.record["time"]["test_s"] = round(time.perf_counter() - clock, 2)
    job.record["metrics"] = evaluator.results() | extra.results()
    job.record["per_defect_image_auroc"] = evaluator.per_defect(defects)
    job.record["image_auroc_interval_95"] = evaluator.interval()
    for logger in job.loggers:
        numbers = {f"test/{k}": v for k, v in job.record["metrics"].items() if v is not None}
        logger.log_metrics(numbers, step=job.total)
        logger.save()
    if evaluator.curves():
        job.folder.write_curves({"pixel": evaluator.curves()})
    table = evaluator.table()
    job.folder.write_scores("scores.csv", named_rows(datamodule.records, table["index"], table["score"]))


def _untested(job: Prepared, held_out: dict[str, Any]) -> None:
    """Write what a run without test rows has: the held-out scores' picture, and metrics that nothing defines."""
    import numpy as np

    from adbench.evaluation.metrics import IMAGE_METRICS
    from adbench.evaluation.panels import draw_histogram, save

    score, threshold = held_out["score"], job.record["threshold"]
    job.record["metrics"] = dict.fromkeys(IMAGE_METRICS)
    job.record["per_defect_image_auroc"], job.record["image_auroc_interval_95"] = {}, None
    job.record["time"]["test_s"] = 0.0
    job.folder.write_scores("scores.csv", [])
    if len(score):
        figure = draw_histogram(score, np.zeros(len(score)), threshold and threshold["value"])
        figure.axes[0].set_title("scores of normal images that were not trained on", loc="left", fontsize=10)
        (job.folder.path / "figures").mkdir(exist_ok=True)
        save(figure, job.folder.path / "figures" / "scores.png")


def cross_validated(method: Any, datamodule: Any, device: Any) -> dict[str, Any] | None:
    """Held-out scores by K-fold cross-validation: each fold's normal rows, scored by a copy that was fitted on the rows
    of the others; None where the data module asks for none.

    Args:
        method: one that fits in one pass; it stays as it is.
        datamodule: see its `folds`.
        device: where to fit.
    """
    import copy

    import numpy as np
    import torch

    folds, label = datamodule.folds, datamodule.records.label
    parts = []
    for fold in folds:
        with torch.no_grad():
            refit = copy.deepcopy(method).to(device).eval()
            refit.prepare(datamodule.rows_batches(np.setdiff1d(datamodule.split.train, fold), device))
            parts.append(score_all(refit, datamodule.rows_batches(fold[label[fold] == 0], device)))
    if not parts:
        return None
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["index"])
    return joined | {"index": joined["index"][order], "score": joined["score"][order]}


def fit(method: Any, datamodule: Any, *, max_batches: int | None = None, max_epochs: int = 1, **options: Any) -> Any:
    """Train a method with a plain trainer and calibrate it, outside any run folder; see `adbench.fit`."""
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.utilities.model_helpers import is_overridden

    datamodule.setup()
    _refuse_far_rows(method, datamodule)
    total = max_batches if max_batches is not None else datamodule.batches_of(max_epochs)
    total = total if is_overridden("training_step", method) else 0
    plain = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto",
             "devices": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False}  # fmt: skip
    with quietly():
        trainer = Trainer(**plain | options, max_epochs=1)
        device = trainer.strategy.root_device
        if total:
            method.total_batches = total
            datamodule.set_budget(total)
            trainer.fit(method, datamodule=datamodule)
        method.to(device).eval()
        with torch.no_grad():
            if not total:
                method.prepare(datamodule.training_batches(device))
                method.prepared.fill_(True)
            method.calibrate(datamodule.holdout_batches(device))
            method.calibrated.fill_(True)
    return method


# -- Lightning --------------------------------------------------------------------------------------------------------


def _trainer(cfg: DictConfig, folder: RunFolder, world: int, callbacks: list[Any], loggers: Any = False) -> Any:
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from adbench.experiment.checkpoints import WholeFiles

    options = {key: value for key, value in cfg.trainer.items() if key != "threads"} | {
        "max_epochs": 1, "logger": loggers, "default_root_dir": folder.path, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "plugins": [WholeFiles()], "log_every_n_steps": 1, "callbacks": callbacks,
    }  # fmt: skip
    if cfg.data.kind == "tabular" and cfg.trainer.accelerator == "auto" and torch.backends.mps.is_available():
        options["accelerator"] = "cpu"  # features are float64, which MPS does not have
    if world > 1:
        options["plugins"].append(LightningEnvironment())  # the ranks are ours, also inside a SLURM job
        options["strategy"] = STRATEGY if cfg.trainer.strategy == "auto" else cfg.trainer.strategy
    return Trainer(**options)


def _check_devices(cfg: DictConfig, world: int) -> None:
    """Refuse a trainer that this machine cannot have."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    try:
        _trainer(cfg, RunFolder(Path()), world, [])
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        asked = " ".join(f"trainer.{key}={value}" for key, value in cfg.trainer.items() if value is not None)
        raise UserError(
            f"this trainer cannot be had here: {one_line(error).rstrip('.')} (asked for: {asked}); trainer=cpu runs on "
            "any machine"
        ) from error


def _ears(job: Prepared) -> Any:
    """Hear signals again once Lightning has set its own handlers."""
    from pytorch_lightning.callbacks import LambdaCallback

    again = lambda *_: job.request.listen()  # noqa: E731
    return LambdaCallback(on_train_start=again, on_test_start=again)


def _beginning(job: Prepared, saver: Any) -> Any:
    """Begin with the first batch; the loggers, which write too, are heard from then on."""
    from pytorch_lightning.callbacks import LambdaCallback

    def begin(trainer: Any, *_: Any) -> None:
        if not job.begun:
            job.begin(saver)
            trainer.loggers = job.loggers

    return LambdaCallback(on_train_batch_start=begin)


@contextmanager
def quietly() -> Iterator[None]:
    """While open, Lightning keeps to itself what is deliberate here, and warnings are lines of the log; then all is as
    it was."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*", ".*You're resuming from a checkpoint that ended before.*",
                ".*Checkpoint directory .* exists.*", ".*`LightningModule.configure_optimizers` returned `None`.*",
                ".*No `test_dataloader.*", ".*isinstance\\(treespec, LeafSpec\\).*", ".*Experiment logs directory.*",
                ".*GPU available but not used.*", ".*Found .* module\\(s\\) in eval mode.*",
            ):  # fmt: skip
                warnings.filterwarnings("ignore", message=message)
            warnings.showwarning = lambda message, *_, **__: log.warning(f"warning: {message}")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _no_stdout_chatter() -> Iterator[None]:
    logger = logging.getLogger("lightning_fabric.utilities.seed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def refresh_rate() -> int:
    return 1 if sys.stderr.isatty() else 0  # a log file gets no progress bars


# -- parts ------------------------------------------------------------------------------------------------------------


def _pretraining(cfg: DictConfig, method: Any) -> Any:
    """The pretraining of a configuration, checked against the method before any data is read; None for none."""
    node = {k: v for k, v in OmegaConf.to_container(cfg.pretraining, resolve=True).items() if k != "id"}
    if node.get("_target_") is None:
        return None
    pretraining = build(node)
    pretraining.check(method)
    return pretraining


def total_batches(cfg: DictConfig, datamodule: Any) -> int:
    batches, epochs = cfg.budget.max_batches, cfg.budget.max_epochs
    if batches is None and epochs is None:
        raise UserError(
            f"method {cfg.method.get('_target_')} gives no length for budget={cfg.budget.name}; "
            "say budget.max_batches=N or budget.max_epochs=N"
        )
    total = batches if batches is not None else datamodule.batches_of(epochs)
    if total < 0:
        raise UserError(f"the training budget must be at least 0 batches, and {total} came")
    return int(total)


def _refuse_far_rows(method: Any, datamodule: Any) -> None:
    """Refuse rows of a table that would make every number after the test infinite."""
    import torch

    from adbench.networks.mlp import refuse_far_rows

    if datamodule.source.features is not None:
        split = datamodule.split
        scored = torch.cat([torch.from_numpy(rows) for rows in (split.train, split.holdout, split.test)])
        refuse_far_rows(method, torch.from_numpy(datamodule.source.features), torch.from_numpy(split.train), scored)


def set_threads(threads: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)


def score_all(method: Any, batches: Any) -> dict[str, Any]:
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


def named_rows(records: Any, index: Any, score: Any) -> Iterator[tuple[int, str, int, str, float]]:
    for i, s in zip(index.tolist(), score.tolist(), strict=True):
        yield i, str(records.path[i]), int(records.label[i]), str(records.defect[i]), s


def _save_calibrated(method: Any, folder: RunFolder, record: dict[str, Any]) -> None:
    """Write the checkpoint again with what calibration filled in; it is what predict and export load."""
    from adbench.experiment.checkpoints import WholeFiles

    found = folder.trained(record)
    checkpoint = found[1] if found else {}
    state = {name: value.detach().cpu() for name, value in method.state_dict().items()}
    new = {"state_dict": state, "batches_seen": method.batches_seen, "attempt": record.get("attempt")}
    WholeFiles().save_checkpoint(checkpoint | new, folder.checkpoint)


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
                    log.warning(f"warning: {said[0]} failed and misses what it was told: {one_line(error)}")

        return attempt

    for name in ("log_metrics", "log_image", "save", "finalize"):
        if hasattr(logger, name):
            setattr(logger, name, guarded(getattr(logger, name)))
    return logger


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def counts(datamodule: Any, method: Any) -> dict[str, int]:
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


def hardware(threads: int) -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpus": gpus,
    }

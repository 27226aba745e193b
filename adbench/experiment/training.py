"""From a configuration to trained weights and measured scores: the steps of one run, on one of its devices."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from adbench.errors import UserError
from adbench.evaluation import session
from adbench.experiment.build import build, build_datamodule, build_method
from adbench.experiment.console import progress_bar, quietly, without_seed_message
from adbench.experiment.folder import RunFolder
from adbench.experiment.loggers import build_loggers, close_loggers, log_results, log_settings
from adbench.experiment.own_images import kind_report
from adbench.experiment.precision import chosen, word_on_emulation
from adbench.experiment.provenance import hardware
from adbench.experiment.ranks import Ranks
from adbench.experiment.record import UNKNOWN, Budget, Objectives, RunRecord, count
from adbench.experiment.signals import StopRequest, signal_callback
from adbench.experiment.standing import Data
from adbench.experiment.trainers import build_trainer, check_devices
from adbench.experiment.values import as_mapping

if TYPE_CHECKING:
    from adbench.experiment.checkpoints import Checkpoint

log = logging.getLogger("adbench")


@dataclass
class Job:
    """A run that nothing stands in the way of; its folder is untouched until `begin`.

    Attributes:
        record: what metrics.json will hold; filled on the way.
        total: training batches; 0 for a method that does not learn by gradients.
        checkpoint: to go on from; None starts at batch 0.
        callbacks: the user's own.
        begun: whether the folder is this run's.
    """

    cfg: DictConfig
    folder: RunFolder
    record: RunRecord
    request: StopRequest
    method: Any
    pretraining: Any
    datamodule: Any
    total: int
    checkpoint: Checkpoint | None
    loggers: list[Any]
    callbacks: list[Any]
    begun: bool = False

    @property
    def start(self) -> int:
        """Batches that the checkpoint has seen."""
        return self.checkpoint.batches_seen if self.checkpoint else 0

    def begin(self, saver: Any = None) -> None:
        """Make the folder this run's: called when the first training batch is about to start, or what replaces it.

        From the moment that metrics.json says so, what an overwritten run has left counts no more: its checkpoint is
        of another attempt.
        """
        if self.begun:
            return
        self.folder.write_metrics(self.record.as_json())
        self.begun = True
        if self.checkpoint is None:
            self.folder.clear()
        self.folder.write_config(self.cfg)
        self.folder.write_split(self.datamodule.split_table())
        self.folder.write_latest(self.cfg.results)
        self.request.callback = saver
        log_settings(self.loggers, self.cfg)

    def not_compiled(self, reason: str) -> None:
        """Keep that compiling failed, so that the run, when it goes on, goes on as it trained."""
        log.warning(f"warning: trainer.compile=true does not work here ({reason}); the training goes on without it")
        self.record.compiled = False
        self.folder.write_metrics(self.record.as_json())


def prepare(
    cfg: DictConfig, folder: RunFolder, record: RunRecord, request: StopRequest, *, threads: int, rank: int = 0,
    world: int = 1, checkpoint: Checkpoint | None = None, source: Callable[[], Any] | None = None,
) -> Job:  # fmt: skip
    """Do all that may be refused: devices, method, pretraining, data, budget. Nothing in the folder changes.

    Args:
        cfg, folder, record, request: of the run; the record is filled with what is known before training.
        threads: CPU threads of this process.
        rank, world: the number of this process, and of how many.
        checkpoint: to go on from, see `RunFolder.newest_checkpoint`.
        source: gives the data set, where it may be built already.

    Raises:
        UserError: something cannot be had or does not fit.
    """
    from pytorch_lightning import seed_everything
    from pytorch_lightning.utilities.model_helpers import is_overridden

    with without_seed_message():
        seed_everything(cfg.seed, workers=True)
    check_devices(cfg, world)
    method = build_method(cfg)
    method.log_every = cfg.log_every
    method.check_inputs()
    pretraining = _pretraining(cfg, method)
    datamodule = build_datamodule(cfg, method.supervision, None if source is None else source())
    datamodule.rank_and_world = rank, world
    datamodule.setup()
    _refuse_far_rows(method, datamodule)
    _refuse_missing_anomalies(method, datamodule)
    # A sweep has one budget for all its methods; those without training steps (PCA, OC-SVM) do not need it.
    trains = is_overridden("training_step", method)
    total = total_batches(cfg, datamodule) if trains else 0
    method.total_batches = total
    record.precision = chosen(
        str(cfg.trainer.precision), cfg.trainer.accelerator, trains=trains, tabular=cfg.data.kind == "tabular",
        begun=None if record.precision is UNKNOWN else record.precision,
    )  # fmt: skip
    # A run that could not compile where it began goes on without, on whatever machine.
    record.compiled = bool(cfg.trainer.get("compile")) and trains and record.compiled is not False
    record.hardware = hardware(threads) | {"ranks": world}
    record.budget = Budget(name=cfg.budget.name, batches=total, batch_size=cfg.data.batch_size)
    _describe_data(record, cfg, method, datamodule)
    if method.transductive:
        record.transductive = True
    if rank == 0:
        _warn_about_data(record)
        if trains and (word := word_on_emulation(record.precision, cfg.trainer.accelerator)):
            log.warning(word)
    if hasattr(pretraining, "weights_used"):
        record.pretraining_weights = pretraining.weights_used()
    if hasattr(pretraining, "images_used"):
        record.pretraining_images = pretraining.images_used()
    loggers = build_loggers(cfg, folder, record)
    callbacks = [build(node) for node in (cfg.get("callbacks") or {}).values()]
    job = Job(cfg, folder, record, request, method, pretraining, datamodule, total, checkpoint, loggers, callbacks)
    if total:
        datamodule.set_budget(total, start=job.start)
    return job


def train_and_test(job: Job, ranks: Ranks) -> None:
    """Fill the folder and the record; what another rank than 0 writes goes nowhere."""
    try:
        trainer = _train(job, ranks)
        device = trainer.strategy.root_device
        folds = session.cross_validated(job.method, job.datamodule, device)
        complete(job.method, job.datamodule, device)
        if job.method.prepare_seconds is not None:
            job.record.time["prepare_s"] = round(job.method.prepare_seconds, 2)
        if trainer.is_global_zero:
            _save_calibrated(job)
        held_out = _hold_out(job, device, folds)
        if len(job.datamodule.split.test):
            _test(job, ranks, held_out)
        else:
            job.record.take(session.without_test(job.folder, held_out, job.record.threshold))
    finally:
        status = "success" if sys.exc_info()[0] is None else "failed"
        close_loggers(job.loggers if job.begun else [], status)


# -- the steps --------------------------------------------------------------------------------------------------------


def _train(job: Job, ranks: Ranks) -> Any:
    """Pretrain and train, or take over what a checkpoint holds; returns the trainer, which knows the device."""
    from adbench.experiment.checkpoints import SaveEvery
    from adbench.methods.compiled import Compiled

    method, started = job.method, time.perf_counter()
    saver = SaveEvery(job.folder.checkpoint, job.cfg.budget.checkpoint_every, job.record.attempt)
    callbacks = [signal_callback(job.request), _first_batch_callback(job, saver), saver, *job.callbacks, progress_bar()]
    callbacks += [Compiled(job.not_compiled)] if job.record.compiled else []
    trainer = build_trainer(job.cfg, job.folder.path, callbacks, world=ranks.world, precision=job.record.precision)
    if job.pretraining is not None and job.checkpoint is None:
        _pretrain(job, trainer.strategy.root_device)
        job.record.time["pretraining_s"] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()
    ranks.meet()
    if job.start < job.total:
        file = job.checkpoint.file if job.checkpoint else None
        trainer.fit(method, datamodule=job.datamodule, ckpt_path=file)
    elif job.checkpoint:
        method.load_state_dict(job.checkpoint.contents["state_dict"])
        method.batches_seen = job.start
    job.begin()
    job.request.callback = None
    job.record.time["train_s"] = round(time.perf_counter() - started, 2)
    return trainer


def _pretrain(job: Job, device: Any) -> None:
    job.method.to(device)
    job.method.before_pretraining(job.datamodule.training_batches(device))
    job.pretraining(
        job.method, job.datamodule, cache_dir=job.cfg.cache_dir, seed=job.cfg.seed,
        max_batches=job.cfg.budget.pretraining_batches,
    )  # fmt: skip


def complete(method: Any, datamodule: Any, device: Any) -> None:
    """Prepare and calibrate, each if it is not done yet; the method is on the device and in eval mode afterwards.

    The training prepares a method that has one. Every other method, and calibration, are left to this.

    Args:
        method: trained, or without training steps.
        datamodule: set up.
        device: of the training.
    """
    method.to(device).eval()
    method.ensure_prepared(datamodule.training_batches(device))
    method.ensure_calibrated(datamodule.holdout_batches(device))


def _save_calibrated(job: Job) -> None:
    """Write the checkpoint again with what calibration filled in; it is what predict and export load."""
    from adbench.experiment.checkpoints import WholeFiles

    checkpoint = job.folder.newest_checkpoint(job.record.attempt)
    state = {name: value.detach().cpu() for name, value in job.method.state_dict().items()}
    changes = {"state_dict": state, "batches_seen": job.method.batches_seen, "attempt": job.record.attempt}
    WholeFiles().save_checkpoint((checkpoint.contents if checkpoint else {}) | changes, job.folder.checkpoint)


def _hold_out(job: Job, device: Any, folds: session.HeldOut | None) -> session.HeldOut:
    """Set the threshold by the scores of the held-out normal rows, or by those of a cross-validation."""
    from adbench.evaluation.overlay import map_range
    from adbench.evaluation.thresholds import held_out_threshold

    origin = f"{len(job.datamodule.folds)}-fold cross-validation of the normal training samples"
    if folds is None:
        origin = "held-out normal training samples"
    held_out = session.score_held_out(job.method, job.datamodule.holdout_batches(device)) if folds is None else folds
    job.record.threshold = held_out_threshold(held_out.score, job.cfg.evaluation.quantile, origin)
    job.record.map_range = map_range(held_out.pixels)
    job.record.objectives = Objectives(holdout_score=float(held_out.score.mean()) if len(held_out.score) else None)
    rows = session.named_rows(job.datamodule.records, held_out.rows, held_out.score)
    job.folder.write_scores("calibration.csv", rows)
    return held_out


def _test(job: Job, ranks: Ranks, held_out: session.HeldOut) -> None:
    """Test as `evaluation.session` does; fill the record's metrics."""

    def trainer_with(observers: list[Any]) -> Any:
        callbacks = [signal_callback(job.request), *observers, *job.callbacks, progress_bar()]
        return build_trainer(
            job.cfg, job.folder.path, callbacks, world=ranks.world, loggers=job.loggers, precision=job.record.precision
        )

    measurement = session.test(
        job.method, job.datamodule, job.folder, session.Pictures.of(job.cfg.evaluation),
        threshold=job.record.threshold, offset=held_out.offset, trainer_with=trainer_with,
    )  # fmt: skip
    job.record.take(measurement)
    log_results(job.loggers, job.record.metrics, step=job.total)


def fit(method: Any, datamodule: Any, *, max_batches: int | None = None, max_epochs: int = 1, **options: Any) -> Any:
    """Train a method with a plain trainer and calibrate it, outside any run folder; see `adbench.fit`."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.utilities.model_helpers import is_overridden

    from adbench.data.datamodule import DataModule
    from adbench.methods.base import Method

    if not isinstance(method, Method):
        raise UserError(f"fit trains a method of adbench.create_method, got {type(method).__name__}")
    if not isinstance(datamodule, DataModule):
        raise UserError(
            f"fit trains on a data module of adbench.create_data, got {type(datamodule).__name__}; with a loader of "
            "your own, pytorch_lightning.Trainer(...).fit(method, loader) trains a method"
        )
    method.check_inputs()
    datamodule.setup()
    _refuse_far_rows(method, datamodule)
    _refuse_missing_anomalies(method, datamodule)
    total = max_batches if max_batches is not None else datamodule.batches_of(max_epochs)
    total = total if is_overridden("training_step", method) else 0
    plain: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto",
        "devices": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    }  # fmt: skip
    with quietly():
        trainer = Trainer(**plain | options, max_epochs=1)
        device = trainer.strategy.root_device
        method.calibrated.fill_(False)
        if total:
            method.total_batches = total
            datamodule.set_budget(total)
            trainer.fit(method, datamodule=datamodule)
        else:
            method.prepared.fill_(False)
        complete(method, datamodule, device)
    return method


# -- parts ------------------------------------------------------------------------------------------------------------


def _first_batch_callback(job: Job, saver: Any) -> Any:
    """The folder becomes the run's with the first training batch; the loggers, which write too, are set then."""
    from pytorch_lightning.callbacks import LambdaCallback

    def begin(trainer: Any, *_: Any) -> None:
        if not job.begun:
            job.begin(saver)
            trainer.loggers = job.loggers

    return LambdaCallback(on_train_batch_start=begin)


def _pretraining(cfg: DictConfig, method: Any) -> Any:
    """The pretraining of a configuration, checked against the method before any data is read; None for none."""
    node = {k: v for k, v in as_mapping(cfg.pretraining).items() if k != "id"}
    if node.get("_target_") is None:
        return None
    pretraining = build(node)
    pretraining.check(method)
    return pretraining


def total_batches(cfg: DictConfig, datamodule: Any) -> int:
    """Length of the training in batches.

    Raises:
        UserError: the budget does not say it, or it is negative.
    """
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


def _refuse_missing_anomalies(method: Any, datamodule: Any) -> None:
    """Refuse to train a method that learns from known anomalies on a split without any."""
    if method.needs_known_anomalies and not (datamodule.split.semi_label == -1).any():
        raise UserError(
            f"{method.display_name} learns from known anomalies, and the protocol gives none; type "
            "protocol=semi_supervised (protocol.labelled_ratio says how many)"
        )


def _describe_data(record: RunRecord, cfg: DictConfig, method: Any, datamodule: Any) -> None:
    record.data_fingerprint, record.data_id = Data.of(datamodule.source).fingerprint, cfg.data.id
    record.data_kind, record.normal_class = cfg.data.kind, cfg.data.normal_class
    record.data_report = datamodule.data_report()
    if hasattr(datamodule.source, "good_alone"):
        record.data_report["folders"] = datamodule.overview()
        if measured := kind_report(cfg.data):
            record.data_report["kind"] = measured
    record.counts = count(datamodule, method)


def _warn_about_data(record: RunRecord) -> None:
    from adbench.data.notes import lines

    for line in lines(record.data_report):
        log.warning(line)

"""Score a finished run again, on its own data or on other data. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from adbench.errors import UserError
from adbench.experiment.build import load_method, stored_datamodule
from adbench.experiment.folder import RunFolder, held_out_scores
from adbench.experiment.groups import choices, conf_dir
from adbench.experiment.identity import safe_id
from adbench.experiment.overrides import understood
from adbench.experiment.training import quietly

ALLOWED = ("data=", "data.", "data_root=", "cache_dir=", "evaluation.")


def evaluate(run: Path | str, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """Test a finished run; returns what metrics.json of the evaluation holds, and its folder.

    Args:
        run: its folder.
        overrides: `data=NAME`, `data.KEY=VALUE`, `data_root=DIR`, `cache_dir=DIR`, as on the command line.
        trust: packages whose classes may be built from the folder, beside this one and installed plug-ins.

    Raises:
        UserError: the run is not finished, or the data cannot be had or are of another kind than the run's.
    """
    folder = RunFolder(run)
    cfg, record = folder.config(), folder.metrics()
    _check(record, list(overrides), run)
    method = load_method(folder, trust)
    trained_on = cfg.data.id
    if overrides:
        cfg = _with_data(cfg, record, list(overrides))
    target = RunFolder(folder.path / "evaluations" / safe_id(cfg.data.id))
    datamodule = stored_datamodule(cfg, method.supervision, folder.config_file, trust)
    with quietly():
        datamodule.setup()
        if not len(datamodule.split.test):
            raise UserError("there is no test image: all are normal; name a folder with anomalous ones: data.root=DIR")
        return _test(method, cfg, record, folder, target, trained_on, datamodule), target.path


def _check(record: dict[str, Any], overrides: list[str], run: Path | str) -> None:
    if record.get("status") != "finished":
        raise UserError(
            f"{run} is not a finished run (status {record.get('status')}); the run's own command continues it"
        )
    foreign = [override for override in overrides if not override.startswith(ALLOWED)]
    if foreign:
        raise UserError(f"{foreign[0]}: an evaluation changes the data alone ({', '.join(ALLOWED)}); train another run")


def _with_data(cfg: Any, record: dict[str, Any], overrides: list[str]) -> Any:
    """The run's configuration with the data group of a command line; what that leaves open is the run's."""
    if not any(override.startswith("data=") for override in overrides):
        overrides = [f"data={record['data']}", *overrides]
    if record["method"] in choices("method"):  # its recipe may be asked for the size of the images
        overrides = [f"method={record['method']}", *overrides]
    overrides = understood(overrides)
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            new = compose("config", overrides=overrides)
        with open_dict(new):
            for group in ("method", "protocol", "seed", "trainer"):
                new[group] = cfg[group]
            for key in ("image_size", "batch_size"):
                new.data[key] = cfg.data[key]
            same = f"data={record['data']}" in overrides
            open_keys = [
                key for key, value in OmegaConf.to_container(new.data, resolve=False).items() if value == "???"
            ]
            for key in open_keys:
                if not (same and key in cfg.data):
                    raise UserError(f"give {' and '.join(f'data.{key}=...' for key in open_keys)} on the command line")
                new.data[key] = cfg.data[key]
        resolved = OmegaConf.create(OmegaConf.to_container(new, resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the data's configuration does not compose: {str(error).splitlines()[0]}") from error
    was, now = cfg.data.kind, resolved.data.kind
    if (was == "tabular") != (now == "tabular"):
        raise UserError(f"the run was trained on data of kind {was} and cannot score data of kind {now}")
    if now == "tabular" and resolved.data.get("features") != cfg.data.get("features"):
        raise UserError(
            f"the run takes {cfg.data.features} features and {resolved.data.id} has {resolved.data.features}"
        )
    return resolved


def _test(
    method: Any, cfg: Any, record: dict[str, Any], folder: Any, target: Any, trained_on: str, datamodule: Any
) -> dict[str, Any]:
    import time

    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import TQDMProgressBar

    from adbench.evaluation.codes import CodePanels
    from adbench.evaluation.evaluator import Evaluator
    from adbench.evaluation.extra_scores import ExtraScores
    from adbench.evaluation.metrics import histogram_offset
    from adbench.evaluation.panels import Panels
    from adbench.evaluation.thresholds import held_out_threshold
    from adbench.experiment import job as jobs
    from adbench.experiment import training

    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    started = time.perf_counter()
    records, figures = datamodule.records, target.path / "figures"
    trainer = Trainer(
        accelerator=cfg.trainer.accelerator, devices=1, precision=cfg.trainer.precision, logger=False,
        default_root_dir=target.path, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[TQDMProgressBar(refresh_rate=training.refresh_rate())],
    )  # fmt: skip
    device = trainer.strategy.root_device
    pixels = training.score_all(method.to(device), datamodule.holdout_batches(device))["pixels"]
    origin = f"held-out normal training samples of {trained_on} (the run's own)"
    threshold = record.get("threshold")
    if threshold is None or threshold["quantile"] != cfg.evaluation.quantile:
        threshold = held_out_threshold(held_out_scores(folder), cfg.evaluation.quantile)
    threshold = threshold and threshold | {"origin": origin}
    evaluator = Evaluator(datamodule.has_masks, threshold, histogram_offset(pixels) if len(pixels) else 0.0)
    extra = ExtraScores(records.defect)
    trainer.callbacks += [
        evaluator, extra, CodePanels(figures, records.defect),
        Panels(figures, evaluator, records.defect, datamodule.split.test,
               per_defect=cfg.evaluation.panels_per_defect, normals=cfg.evaluation.panels_normal),
    ]  # fmt: skip
    trainer.test(method, datamodule=datamodule, verbose=False)
    table = evaluator.table()
    found = {
        **{key: record[key] for key in ("method", "protocol", "pretraining", "seed", "config_hash")},
        "data": cfg.data.id, "trained_on": trained_on, "status": "evaluation", "threshold": threshold,
        "metrics": evaluator.results() | extra.results(),
        "per_defect_image_auroc": evaluator.per_defect(records.defect),
        "image_auroc_interval_95": evaluator.interval(), "counts": training.counts(datamodule, method),
        "data_report": datamodule.data_report(),
        "time": {"finished": jobs.now(), "total_s": round(time.perf_counter() - started, 2)},
        "hardware": training.hardware(torch.get_num_threads()), "versions": jobs.versions(), "git": jobs.git(),
    }  # fmt: skip
    target.write_scores("scores.csv", training.named_rows(records, table["index"], table["score"]))
    target.write_metrics(found)
    return found

"""Score a finished run again, on its own data or on other data. Nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from adbench.errors import UserError
from adbench.evaluation import session
from adbench.experiment import devices
from adbench.experiment.build import load_method, stored_datamodule
from adbench.experiment.console import progress_bar, quietly
from adbench.experiment.folder import RunFolder, held_out_scores
from adbench.experiment.groups import choices, conf_dir
from adbench.experiment.identity import safe_id
from adbench.experiment.overrides import understood
from adbench.experiment.placement import cores
from adbench.experiment.provenance import git, hardware, now, versions
from adbench.experiment.record import RunRecord, count
from adbench.experiment.trainers import build_trainer, check_devices, set_threads
from adbench.experiment.values import as_mapping, flat, placeholder

if TYPE_CHECKING:
    from adbench.evaluation.thresholds import Threshold

ALLOWED = ("data=", "data.", "data_root=", "cache_dir=", "evaluation.")


def evaluate(
    run: Path | str, overrides: Sequence[str] = (), trust: Sequence[str] = (), device: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Test a finished run; returns what metrics.json of the evaluation holds, and its folder.

    Args:
        run: its folder.
        overrides: `data=NAME`, `data.KEY=VALUE`, `data_root=DIR`, `cache_dir=DIR`, as on the command line.
        trust: packages whose classes may be built from the folder, beside this one and installed plug-ins.
        device: to score on, see `devices.device`; None takes what the run's trainer says.

    Raises:
        UserError: the run is not finished, or the data cannot be had or are of another kind than the run's.
    """
    folder = RunFolder(run)
    cfg, record = folder.config(), folder.metrics()
    _check(record, list(overrides), run)
    method = load_method(folder, trust)
    trained_on, own_root = cfg.data.id, _root(cfg)
    if overrides:
        cfg = _with_data(cfg, record, list(overrides))
    if device is not None:
        with open_dict(cfg):
            cfg.trainer.update(devices.trainer_options(device))
    target = RunFolder(folder.path / "evaluations" / safe_id(cfg.data.id))
    datamodule = stored_datamodule(cfg, method.supervision, folder.config_file, trust)
    datamodule.rank_and_world = 0, 1
    with quietly():
        datamodule.setup()
        if _root(cfg) != own_root and getattr(datamodule.source, "undivided", False):
            datamodule.test_all()  # nothing of it was trained on
        if not len(datamodule.split.test):
            raise UserError("there is no test image: all are normal; name a folder with anomalous ones: data.root=DIR")
        return _test(method, cfg, record, folder, target, trained_on, datamodule), target.path


def _root(cfg: Any) -> Path | None:
    """The folder that a configuration's data lie in; None where it names none."""
    root = cfg.data.source.get("root")
    return None if root is None else Path(root).expanduser().resolve()


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
            preset = compose("config", overrides=[o for o in overrides if o.startswith(("data=", "method="))])
        with open_dict(new), open_dict(preset):
            names = {override.partition("=")[0].lstrip("+") for override in overrides} - {"data", "method"}
            if f"data={record['data']}" in overrides:
                _keep_data(cfg, new, preset, names)
            for group in ("method", "protocol", "seed", "trainer"):
                new[group] = cfg[group]
            for key in ("data_root", "cache_dir"):
                if key not in names:
                    new[key] = cfg[key]
            for key, value in flat(OmegaConf.to_container(cfg.evaluation), "evaluation").items():
                if key not in names:
                    OmegaConf.update(new, key, value)
            for key in ("image_size", "batch_size"):
                new.data[key] = cfg.data[key]
            values = as_mapping(new.data, resolve=False)
            if open_keys := [key for key, value in values.items() if value == "???"]:
                words = " and ".join(placeholder(f"data.{key}") for key in open_keys)
                raise UserError(f"give {words} on the command line")
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


def _keep_data(cfg: Any, new: Any, preset: Any, names: set[str]) -> None:
    """Give a composed configuration of the run's data set the run's own values, but for those that are given by name.

    Args:
        cfg: the run's configuration, resolved.
        new: the composed one, which changes.
        preset: the same without any value of the command line, which changes too.
        names: keys on the command line.
    """
    preset.data_root = cfg.data_root
    values = flat(OmegaConf.to_container(cfg.data, resolve=True), "data")
    written = flat(OmegaConf.to_container(preset.data, resolve=False), "data")
    # Interpolations come last and mostly follow; one that does not was replaced on the run's command line.
    for key in sorted(values.keys() & written.keys(), key=lambda key: "${" in str(written[key])):
        if "${" in str(written[key]) and OmegaConf.select(preset, key, throw_on_missing=False) == values[key]:
            continue
        OmegaConf.update(preset, key, values[key])
        if not any(key == name or key.startswith(f"{name}.") for name in names):
            OmegaConf.update(new, key, values[key])


def _test(
    method: Any,
    cfg: Any,
    record: dict[str, Any],
    folder: RunFolder,
    target: RunFolder,
    trained_on: str,
    datamodule: Any,
) -> dict[str, Any]:
    """Test as a run does, on one device, and write the evaluation's folder."""
    started, threads = time.perf_counter(), cfg.trainer.threads or cores()
    set_threads(threads)
    asked = cfg.trainer.devices
    one: dict[str, Any] = {"devices": list(asked) if OmegaConf.is_list(asked) and len(asked) == 1 else 1}
    check_devices(cfg, **one, strategy="auto")

    def trainer_with(callbacks: list[Any]) -> Any:
        return build_trainer(cfg, target.path, [*callbacks, progress_bar()], **one, strategy="auto")

    device = trainer_with([]).strategy.root_device
    held_out = session.score_held_out(method.to(device), datamodule.holdout_batches(device))
    threshold = _threshold(record, folder, cfg.evaluation.quantile, trained_on)
    target.clear()
    measurement = session.test(
        method, datamodule, target, session.Pictures.of(cfg.evaluation),
        threshold=threshold, offset=held_out.offset, trainer_with=trainer_with,
    )  # fmt: skip
    result = RunRecord(
        **{key: record[key] for key in ("method", "protocol", "pretraining", "seed", "config_hash")},
        data=cfg.data.id, data_id=cfg.data.id, trained_on=trained_on, status="evaluation", threshold=threshold,
        counts=count(datamodule, method), data_report=datamodule.data_report(),
        hardware=hardware(threads), versions=versions(type(method).__module__), git=git(),
    )  # fmt: skip
    if method.transductive:
        result.transductive = True
    result.take(measurement)
    result.time |= {"finished": now(), "total_s": round(time.perf_counter() - started, 2)}
    target.write_metrics(result.as_json())
    return result.as_json()


def _threshold(record: dict[str, Any], folder: RunFolder, quantile: float, trained_on: str) -> Threshold | None:
    """The run's own threshold; for another quantile, that of the run's held-out scores."""
    from adbench.evaluation.thresholds import held_out_threshold

    threshold: Threshold | None = record.get("threshold")
    if threshold is None or threshold["quantile"] != quantile:
        origin = threshold["origin"] if threshold else "held-out normal training samples"
        threshold = held_out_threshold(held_out_scores(folder), quantile, origin)
    if threshold is None:
        return None
    return {**threshold, "origin": f"{threshold['origin']} of {trained_on} (the run's own)"}

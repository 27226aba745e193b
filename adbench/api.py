"""The Python API: `adbench.train`, `evaluate`, `compare`, `create_method`, `create_data` and `fit`.

The configuration files are the registry: a method, a data set or a protocol has the name and the values that the
command line knows, and a run trained here is the run that the command would have trained, in the same folder.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.errors import UserError

if TYPE_CHECKING:
    import pandas

    from adbench.data.datamodule import DataModule
    from adbench.detection.detector import Detector
    from adbench.methods.base import Method

log = logging.getLogger("adbench")


class Run:
    """A run folder.

    Args:
        path: of the folder.
        trust: packages whose classes may be built from it, beside this one and installed plug-ins.
    """

    def __init__(self, path: Path | str, trust: Sequence[str] = ()) -> None:
        self.path, self.trust = Path(path).expanduser().resolve(), tuple(trust)

    @property
    def record(self) -> dict[str, Any]:
        """What metrics.json holds.

        Raises:
            UserError: the folder has none.
        """
        file = self.path / "metrics.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} is no run folder: {file} is missing; give the folder of a run") from None

    @property
    def metrics(self) -> dict[str, float | None]:
        """Name -> fraction in [0, 1], None where undefined; empty before the run is finished.

        Raises:
            UserError: the folder has no metrics.json.
        """
        return dict(self.record.get("metrics", {}))

    @property
    def scores(self) -> pandas.DataFrame:
        """The test rows, a line each: index, path, label (0 normal, 1 anomalous), defect and score (float64, any range,
        higher is more anomalous).

        Raises:
            UserError: the run is not finished.
        """
        import pandas

        file = self.path / "scores.csv"
        if not file.is_file():
            raise UserError(f"{self.path} is not finished: {file} is missing; the run's own command continues it")
        table = pandas.read_csv(file, keep_default_na=False, dtype={"path": str, "defect": str, "score": str})
        return table.assign(score=table["score"].astype(float))  # exact, whatever version of pandas reads it

    def detector(self, device: str = "cpu") -> Detector:
        """The trained detector, for new images.

        Args:
            device: cpu, gpu, cuda:1, ...

        Raises:
            UserError: the run is not finished, or the device cannot be used; see `adbench.load`.
        """
        from adbench.detection.detector import load

        return load(self.path, device, trust=self.trust)

    def __fspath__(self) -> str:
        """The folder, wherever Python takes a path: `adbench.load(run)`, `Path(run)`."""
        return str(self.path)

    def __repr__(self) -> str:
        try:
            record = self.record
        except UserError:
            return f"Run({str(self.path)!r}: empty)"
        main = {key: record.get("metrics", {}).get(key) for key in ("image_auroc", "pixel_auroc", "pixel_pro")}
        figures = ", ".join(f"{key} {value:.3f}" for key, value in main.items() if value is not None)
        what = f"{record.get('method')} on {record.get('data')}, seed {record.get('seed')}"
        return f"Run({what}, {record.get('status')}{': ' + figures if figures else ''} -> {self.path})"

    def _repr_html_(self) -> str:
        """In a notebook: the line of `repr` and the picture of the test images."""
        import base64
        import html

        picture = self.path / "figures" / "panels.png"
        figure = ""
        if picture.is_file():
            figure = f'<br><img src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">'
        return f"<code>{html.escape(repr(self))}</code>{figure}"


def train(
    method: str,
    *,
    data: str,
    protocol: str = "one_class",
    pretraining: str = "none",
    seed: int = 0,
    budget: str = "quick",
    trainer: str = "default",
    results: Path | str | None = None,
    data_root: Path | str | None = None,
    cache_dir: Path | str | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    **method_values: Any,
) -> Run:
    """Train and test a method, as `python -m adbench.run` does; a finished run is not trained again.

    Ctrl-C saves the state: the same call goes on from there.

    >>> run = adbench.train("cbigan/small", data="textures/brick", alpha=1e-4)  # doctest: +ELLIPSIS
    cbigan/small...
    >>> auroc = run.metrics["image_auroc"]  # a fraction

    Args:
        method, data, protocol, pretraining, budget, trainer: names of the groups' choices, as on the command line.
        seed: of weights, batches and augmentation, from 0.
        results: where run folders go; ADBENCH_RESULTS or ./results if None.
        data_root: where data sets lie; ADBENCH_DATA or ./data if None.
        cache_dir: where decoded images are kept; ADBENCH_CACHE or ~/.cache/adbench if None.
        overrides: further words of a command line, such as "data.root=DIR" or "overwrite=true".
        trust: packages whose classes may be built from the run folder, beside this one and installed plug-ins.
        method_values: the method's own values by name, as in `method.NAME=VALUE`: keys of its file, and arguments of
            its class that the file leaves at their defaults.

    Raises:
        UserError: the command is refused, or the training failed; the message says why.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    groups = {"method": method, "data": data, "protocol": protocol, "pretraining": pretraining, "budget": budget,
              "trainer": trainer}  # fmt: skip
    words = [f"{group}={name}" for group, name in groups.items()]
    words += [f"seed={seed}", *(_override(f"++method.{name}", value) for name, value in method_values.items())]
    folders = {"results": results, "data_root": data_root, "cache_dir": cache_dir}
    words += [_override(key, str(folder)) for key, folder in folders.items() if folder is not None]
    if isinstance(overrides, str):
        raise UserError(f"overrides is a list of words, as in overrides=[{overrides!r}]")
    from adbench.experiment import job as jobs
    from adbench.experiment.compose import composed_job

    with composed_job([*words, *overrides]) as (cfg, folder), _console(folder):
        outcome = jobs.execute(cfg)
    if outcome.code > 128:
        raise KeyboardInterrupt(outcome.reason)
    if outcome.code:
        raise UserError(outcome.reason)
    return Run(folder, trust)


def evaluate(
    run: Run | Path | str, data: str | None = None, overrides: Sequence[str] = (), trust: Sequence[str] = ()
) -> Run:
    """Test a finished run again, on its own test rows or on another data set's; never trains.

    Args:
        run: what `train` gave, or a run folder.
        data: name of a data set; None takes the run's own.
        overrides: further words, `data.KEY=...`, `data_root=DIR`, `cache_dir=DIR`.
        trust: see `train`.

    Returns:
        The evaluation's folder, with metrics and scores of its own.

    Raises:
        UserError: the run is not finished, or the data do not fit it.
    """
    from adbench.experiment.reevaluation import evaluate as again

    place, trust = (run.path, (*run.trust, *trust)) if isinstance(run, Run) else (Path(run), trust)
    words = [*([f"data={data}"] if data is not None else []), *overrides]
    _, folder = again(place, words, trust=trust)
    return Run(folder, trust)


def compare(results: Path | str = "results") -> pandas.DataFrame:
    """All runs below a folder as one tidy table: a row a run, settings, metrics and intervals as columns.

    Metrics are fractions in [0, 1]; `image_auroc_low` and `image_auroc_high` bound the image AUROC's 95 % interval.

    Args:
        results: the folder.

    Raises:
        UserError: there is no such folder, or no run below it.
    """
    import pandas

    from adbench.report.collect import tidy
    from adbench.report.contents import gather

    place = Path(results).expanduser()
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; give the one that runs are written to, usually results")
    runs = gather(place, place / "report").runs
    if not runs:
        raise UserError(f"there is no run below {place}")
    return pandas.DataFrame(tidy(runs))


def create_method(
    name: str, *, kind: str | None = None, image_size: int | Sequence[int] | None = None, **values: Any
) -> Method:
    """An untrained method with the values of its configuration file, as `timm.create_model` builds a network.

    >>> method = adbench.create_method("cbigan/small", kind="texture", image_size=128)

    Args:
        name: of the method, as in `method=NAME`.
        kind: of data: object, texture, small or tabular; None takes the first that the method is made for.
        image_size: side, or [height, width]; None takes the method's own for this kind. Of tables: the features.
        values: its values by name, as in `method.NAME=VALUE`.

    Raises:
        UserError: there is no such method, or a value cannot be.
    """
    from adbench.experiment.build import build_method
    from adbench.experiment.compose import composed_method, data_advice

    cfg = composed_method(
        name, kind, image_size, [_override(f"++method.{key}", value) for key, value in values.items()]
    )
    method = build_method(cfg)
    method.data_advice = data_advice(cfg)
    return method


def create_data(name: str, /, *, method: Method, protocol: str = "one_class", seed: int = 0,
                overrides: Sequence[str] = (), **values: Any) -> DataModule:  # fmt: skip
    """A data module with the values of its configuration file, for a method that `create_method` gave.

    >>> data = adbench.create_data("folder", root="photos", name="photos", method=method)

    Args:
        name: of the data set, as in `data=NAME`; by position alone, because data sets have values called name.
        method: says the size of the images and of the batches, and whether it may see known anomalies.
        protocol: as in `protocol=NAME`.
        seed: of the protocol's draws and of the order of rows.
        overrides: further words of a command line.
        values: the data set's values by name, as in `data.NAME=VALUE`.

    Raises:
        UserError: the data cannot be had.
    """
    from adbench.experiment.build import build_datamodule
    from adbench.experiment.compose import composed

    advice = getattr(method, "data_advice", {})
    words = [f"data={name}", f"protocol={protocol}", f"seed={seed}"]
    words += [_override(f"data.{key}", _plain(value)) for key, value in {**advice, **values}.items()]
    return build_datamodule(composed([*words, *overrides]), method.supervision)


def fit(
    method: Method, data: DataModule, *, max_batches: int | None = None, max_epochs: int = 1, **trainer: Any
) -> Method:
    """Train a method with a plain Lightning Trainer and calibrate it; returns it in eval mode, ready to `score`.

    Args:
        method: untrained.
        data: its data module.
        max_batches: length of the training; None takes `max_epochs` passes over the training rows.
        max_epochs: see `max_batches`.
        trainer: further arguments of `pytorch_lightning.Trainer`.

    Raises:
        UserError: the data cannot be had, or the method cannot be trained on them.
        NonFiniteLoss: a term of the loss became NaN or infinite (`adbench.methods.base`).
    """
    from adbench.experiment.training import fit as fitted

    return fitted(method, data, max_batches=max_batches, max_epochs=max_epochs, **trainer)


def _override(key: str, value: Any) -> str:
    """A word of a command line that gives a key this very value, whatever its type."""
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_quoted(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_quoted, value)) + "]"
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _plain(value: Any) -> Any:
    """Without NumPy's or pathlib's types."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value


@contextmanager
def _console(folder: Path) -> Iterator[None]:
    """What a run tells, on standard output and in run.log, without touching anybody's logging configuration."""
    level, propagate = log.level, log.propagate
    folder.mkdir(parents=True, exist_ok=True)
    console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(folder / "run.log", delay=True)
    console.setFormatter(logging.Formatter("%(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in (console, file):
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        for handler in (console, file):
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        log.propagate = propagate

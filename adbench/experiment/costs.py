"""What a job costs on this machine: some of its training batches, its preparation, scores and pictures, timed.

Nothing of it is kept: what a step writes goes into a temporary folder.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from adbench.data.cache import resized
from adbench.errors import NotDownloaded
from adbench.evaluation import session
from adbench.experiment.build import build, build_method
from adbench.experiment.console import above, quietly, without_seed_message
from adbench.experiment.folder import RunFolder
from adbench.experiment.placement import cores
from adbench.experiment.trainers import build_trainer
from adbench.experiment.values import as_mapping
from adbench.methods.base import Method
from adbench.methods.compiled import Compiled

SAMPLE = 32  # images of the data set that are read; every row is shown one of them
PATIENCE = 3.0  # seconds after which a measurement is not made longer
SHORT, LONG = 0.25, 1.0  # seconds of a training batch: below the first eight places of a training are timed, else four
DRAWN = (12, 4)  # anomalous and normal test rows of the test that is timed


# -- what is measured -------------------------------------------------------------------------------------------------


class Growth(NamedTuple):
    """Seconds (or bytes) as a function of a number n of rows: constant + linear n + quadratic n^2."""

    constant: float = 0.0
    linear: float = 0.0
    quadratic: float = 0.0

    def __call__(self, n: float) -> float:
        return self.constant + self.linear * n + self.quadratic * n * n


def work(points: Sequence[tuple[int, float]]) -> Growth:
    """The growth without a constant through the last two of the points (n, seconds), neither part negative.

    A coreset compares every row with a share of the rows, so its part is quadratic; a pass through the rows is linear.
    """
    (n2, t2) = points[-1]
    if len(points) < 2:
        return Growth(linear=t2 / n2)
    n1, t1 = points[-2]
    quadratic = (t2 / n2 - t1 / n1) / (n2 - n1)
    linear = t2 / n2 - quadratic * n2
    if quadratic < 0:
        return Growth(linear=t2 / n2)
    return Growth(quadratic=t2 / n2**2) if linear < 0 else Growth(linear=linear, quadratic=quadratic)


def line(points: Sequence[tuple[int, float]]) -> Growth:
    """The straight line through the last two of the points (n, value); it does not fall."""
    (n2, t2) = points[-1]
    n1, t1 = points[-2] if len(points) > 1 else (0, t2)
    slope = max(0.0, (t2 - t1) / (n2 - n1))
    return Growth(constant=max(0.0, t2 - slope * n2), linear=slope)


class Rhythm(NamedTuple):
    """How often a training does more than a step: every so many batches, epochs, or parts of its length."""

    batches: float
    of: str  # "batch", "epoch" or "training"

    def times(self, batches: int, batches_per_epoch: int) -> int:
        """How often in a training."""
        every = {"batch": 1.0, "epoch": batches_per_epoch, "training": batches}[self.of] * self.batches
        return int(batches / max(1.0, every))

    @classmethod
    def of_method(cls, method: Any, total: int, batches_per_epoch: int) -> Rhythm | None:
        """That of a method whose training has `total` batches."""
        method.total_batches = total
        every = method.rhythm(batches_per_epoch)
        if every is None:
            return None
        if method.rhythm(2 * batches_per_epoch) != every:
            return cls(every / batches_per_epoch, "epoch")
        method.total_batches = 10 * total
        longer, method.total_batches = method.rhythm(batches_per_epoch), total
        return cls(every / total, "training") if longer != every else cls(every, "batch")


class Size(NamedTuple):
    """How much of everything a job has."""

    batches: int  # of training
    batches_per_epoch: int
    checkpoint_every: int
    train: int  # rows
    holdout: int
    test_normal: int
    test_anomalous: int
    folds: int  # of a cross-validation
    pretraining_batches: int
    panels: tuple[int, int]  # most anomalous and normal test rows that are drawn

    @property
    def drawn(self) -> int:
        """Test rows that are drawn."""
        return min(self.panels[0], self.test_anomalous) + min(self.panels[1], self.test_normal)


@dataclass(frozen=True)
class Cost:
    """What was measured for one configuration; seconds, but for the bytes.

    Attributes:
        step, timed: of a training batch, the mean over the training's course, and how many were timed.
        extra, rhythm: beside the steps, and how often; None: never.
        prepare, prepared_on: before the first batch, by training rows; and the most rows that it was timed on.
        calibrate: after the last batch.
        score: of a row, by training rows (a bank of features is looked through for every row).
        picture, picture_bytes: of a drawn test row, all that a test leaves shared out among them.
        save, checkpoint_bytes: of a checkpoint; the bytes by training rows.
        pretraining: of a batch of it; 0 where there is none.
        problem: why a pretraining's weights could not be had; "" where none are missing.
        parameters: of the method.
        batch_size, image: of a training batch: rows, and the shape of one.
        real: whether rows of the data set were used.
    """

    step: float
    timed: int
    extra: float
    rhythm: Rhythm | None
    prepare: Growth
    prepared_on: int
    calibrate: float
    score: Growth
    picture: float
    picture_bytes: float
    save: float
    checkpoint_bytes: Growth
    pretraining: float
    problem: str
    parameters: int
    batch_size: int
    image: tuple[int, ...]
    real: bool

    def seconds(self, size: Size) -> dict[str, float]:
        """Estimated seconds of a job's parts."""
        events = self.rhythm.times(size.batches, size.batches_per_epoch) if self.rhythm else 0
        saves = size.batches // size.checkpoint_every + 2
        fits = 1 + size.folds * (1 - 1 / size.folds) if size.folds else 1
        held_out = size.train if size.folds else size.holdout
        tested = size.test_normal + size.test_anomalous
        return {
            "pretraining": self.pretraining * size.pretraining_batches,
            "prepare": self.prepare(size.train) * fits,
            "training": self.step * size.batches + self.extra * events + self.save * saves + self.calibrate,
            "test": self.score(size.train) * (held_out + tested) + self.picture * size.drawn,
        }

    def disk(self, size: Size) -> float:
        """Estimated bytes of a run folder: the last checkpoint and the one before it, and the pictures."""
        kept = 2 if size.batches else 1
        return kept * self.checkpoint_bytes(size.train) + self.picture_bytes * size.drawn


# -- the rows that stand in for all of them ---------------------------------------------------------------------------


class Repeated:
    """A few rows, over and over: an array of as many rows as wanted that takes the memory of a few."""

    def __init__(self, rows: NDArray[Any], length: int) -> None:
        self.rows, self.length = rows, length

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[Any]:
        return self.rows[np.asarray(index) % len(self.rows)]

    def __len__(self) -> int:
        return self.length


def set_up(datamodule: Any, real: bool) -> float:
    """Set a data module up on a few of its images, or on noise; no cache is written.

    Args:
        datamodule: not set up yet.
        real: whether its images can be read; features of tables lie in memory already.

    Returns:
        Seconds to read an image, as the image cache reads all of them; 0 for what lies in memory.
    """
    source, records = datamodule.source, datamodule.records
    if source.features is not None:
        datamodule.set_up_on(np.ascontiguousarray(source.features, dtype=np.float64), None)
        return 0.0
    height, width = datamodule.size
    rows = np.linspace(0, len(records), min(SAMPLE, len(records)), endpoint=False).astype(int)
    seconds = 0.0
    if not real:
        images = np.random.default_rng(0).integers(0, 256, (len(rows), 3, height, width), dtype=np.uint8)
    elif source.array is not None:
        images = resized(source.array[rows], (height, width))
    else:
        started = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:  # as the cache does
            read = list(pool.map(lambda row: resized(source.read_image(int(row))[None], (height, width)), rows))
        seconds = (time.perf_counter() - started) / len(rows)
        images = np.concatenate(read)
    mask = np.zeros((1, height, width), dtype=bool)
    mask[:, : max(1, height // 8), : max(1, width // 8)] = True
    masked = int(np.count_nonzero(records.mask != ""))
    datamodule.set_up_on(Repeated(images, len(records)), Repeated(mask, masked) if masked else None)
    return seconds


# -- training ---------------------------------------------------------------------------------------------------------


class Passes:
    """Cuts passes through all training rows of a data module short, and counts them.

    Args:
        datamodule: set up.
        rows: that a pass ends after.
    """

    def __init__(self, datamodule: Any, rows: int) -> None:
        train = datamodule.split.train
        self.rows = train[np.linspace(0, len(train), min(rows, len(train)), endpoint=False).astype(int)]
        self.short = len(train) / len(self.rows)  # by how much each is too short
        self.count, self.datamodule = 0, datamodule
        datamodule.training_batches = self

    def __call__(self, device: Any) -> Iterator[Any]:
        self.count += 1
        return self.datamodule.rows_batches(self.rows, device)


class Clock(Callback):
    """Takes a training to chosen batches, one after the other, and notes how long each of them lasts.

    A batch lasts from its start to that of the next, so loading, logging and what a method does after it are in it.

    Args:
        total: batches of the whole training.
        cycle: batches after which the same networks learn again.
        rhythm: see `Method.rhythm`.
        passes: through the training rows, which are shorter than they will be.
        twice: whether the timed batches are trained once before, because a network is compiled when it meets a shape.
    """

    def __init__(self, total: int, cycle: int, rhythm: int | None, passes: Passes, twice: bool = False) -> None:
        self.total, self.passes, self.twice = total, passes, twice
        frequent = rhythm is not None and rhythm <= 4  # then a run of batches has its share of it
        self.run = max(1, min(total, math.lcm(cycle, rhythm if frequent and rhythm else 1)))
        self.rhythm = rhythm if rhythm is not None and not frequent and rhythm <= total else None
        self.plan: list[tuple[int, str]] = [(max(0, total - 3), "warm"), (max(0, total - 2), "warm")]
        self.done: list[tuple[str, float, int]] = []  # kind of batch, seconds, passes through the training rows
        self.ended = 0.0
        self._started: tuple[float, int] | None = None

    def _chosen(self, seconds: float) -> list[tuple[int, str]]:
        """Batches evenly spread over the training, the two around one of the rhythm's, and the last.

        Args:
            seconds: that a batch takes, about. Of short ones more are timed, each place after one that is not counted:
                the shapes may have changed.
        """
        count = 8 if seconds < SHORT else 4 if seconds < 4 * LONG else 2
        plan: list[tuple[int, str]] = []
        for i in range(min(count, self.total)):
            k = int((i + 0.5) / count * self.total)
            k -= k % self.run
            while self.rhythm and any(j % self.rhythm in (0, self.rhythm - 1) for j in range(k - 1, k + self.run)):
                k -= 1
            k = max(0, min(k, self.total - 1 - self.run))
            plan += [(max(0, k - 1), "warm")] * (seconds < LONG) + [(j, "step") for j in range(k, k + self.run)]
        if self.rhythm:
            k = max(1, round(self.total / 2 / self.rhythm)) * self.rhythm
            plan += [(max(0, k - 2), "warm"), (k - 1, "event"), (k, "event")]
        return [*plan, (self.total - 1, "end")]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._note(pl_module)
        place = len(self.done)
        if place == len(self.plan) == 2:
            chosen = self._chosen(self.done[1][1])
            self.plan += [(k, "warm") for k, kind in chosen if kind == "step" and self.twice] + chosen
        pl_module.batches_seen = self.plan[place][0]  # type: ignore[assignment]
        trainer.should_stop = place == len(self.plan) - 1 > 1
        self._started = time.perf_counter(), self.passes.count

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(pl_module)
        self.ended = time.perf_counter()

    def _note(self, module: LightningModule) -> None:
        if self._started is not None:
            _wait(module.device)
            started, passes = self._started
            kind = self.plan[len(self.done)][1]
            self.done.append((kind, time.perf_counter() - started, self.passes.count - passes))
            self._started = None

    @property
    def timed(self) -> int:
        """How many training batches were timed."""
        return sum(kind == "step" for kind, _, _ in self.done)

    @property
    def step(self) -> float:
        """Mean seconds of a training batch."""
        return float(np.mean([seconds for kind, seconds, _ in self.done if kind == "step"]))

    def beside(self, kind: str) -> float:
        """Seconds of what batches of a kind do beside their steps, on all training rows."""
        found = [(seconds, passes) for one, seconds, passes in self.done if one == kind]
        excess = max(0.0, sum(seconds for seconds, _ in found) - len(found) * self.step)
        return excess * (self.passes.short if any(passes for _, passes in found) else 1.0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- everything -------------------------------------------------------------------------------------------------------


@contextmanager
def _silently(seed: int) -> Iterator[Path]:
    """A temporary folder to measure in, with seeds set; a few rows warn of what a whole data set would not."""
    with (
        quietly(), without_seed_message(), above(logging.WARNING, "adbench"), warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="adbench-") as place,
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        seed_everything(seed, workers=True)
        yield Path(place)


def measure(
    cfg: DictConfig,
    datamodule: Any,
    total: int,
    real: bool,
    threads: int,
    *,
    not_compiled: Callable[[str], None] = lambda reason: None,
) -> Cost:
    """Time a configuration's parts on this machine.

    Args:
        cfg: of a job, resolved.
        datamodule: set up by `set_up`.
        total: its training batches; 0 for a method without training steps.
        real: whether rows of the data set are used.
        threads: CPU threads to compute with.
        not_compiled: called with the reason where `trainer.compile` does not work here; the steps are then timed
            without it.

    Raises:
        UserError: the method cannot be built.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _silently(cfg.seed) as place:
            return _measured(cfg, datamodule, total, real, place, not_compiled)
    finally:
        torch.set_num_threads(before)


class _Operations(TorchDispatchMode):
    """While open, counts the operations of matrix products and convolutions; torch's own counter follows modules too,
    and cannot where a loss holds a gradient (a penalty on one)."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class _Counted(Callback):
    """Trains the same batches near a training's end three times: to warm up, timed, and with operations counted."""

    def __init__(self, first: int, cycle: int) -> None:
        self.first, self.cycle = first, cycle
        self.seconds, self.operations = 0.0, 0
        self._started, self._counter = 0.0, _Operations()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.batches_seen = self.first + batch_idx % self.cycle  # type: ignore[assignment]
        _wait(pl_module.device)
        if batch_idx == self.cycle:
            self._started = time.perf_counter()
        if batch_idx == 2 * self.cycle:
            self.seconds = time.perf_counter() - self._started
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 3 * self.cycle - 1:
            self._counter.__exit__(None, None, None)
            self.operations = self._counter.total


def operations(cfg: DictConfig, datamodule: Any, total: int) -> tuple[int, float]:
    """Arithmetic of a training batch near the end of the training, forward and backward, and the seconds it takes.

    Source: torch counts those of matrix products and convolutions, a product and a sum as two.

    Args:
        cfg, datamodule, total: see `measure`.
    """
    with _silently(cfg.seed) as place:
        method = build_method(cfg)
        method.log_every = cfg.log_every
        method.to(_trainer(cfg, place).strategy.root_device)
        Passes(datamodule, max(SAMPLE, 2 * datamodule.eval_batch_size))
        method.ensure_prepared(datamodule.training_batches(method.device))
        method.total_batches, cycle = total, method.turns_repeat_after()
        counted = _Counted(max(0, (total - 2) // cycle - 1) * cycle, cycle)
        datamodule.set_budget(3 * cycle)
        _trainer(cfg, place, [counted]).fit(method, datamodule=datamodule)
    return counted.operations // cycle, counted.seconds / cycle


class _Trained(NamedTuple):
    """What a training took."""

    clock: Clock
    prepare: float
    calibrate: float
    save: float
    checkpoint: int  # bytes


def _measured(
    cfg: DictConfig, datamodule: Any, total: int, real: bool, place: Path, not_compiled: Callable[[str], None]
) -> Cost:
    method = build_method(cfg)
    method.log_every = cfg.log_every
    device = _trainer(cfg, place).strategy.root_device
    passes = Passes(datamodule, max(SAMPLE, 2 * datamodule.eval_batch_size))
    method.to(device)
    pretraining, problem = _pretrained(cfg, method, datamodule, place)
    trained, rhythm = None, Rhythm.of_method(method, total, datamodule.batches_per_epoch) if total else None
    if total:
        compiled = [Compiled(not_compiled)] if cfg.trainer.get("compile") else []
        trained = _trained(cfg, method, datamodule, total, passes, place, compiled)
        prepare, prepared_on = work([(len(passes.rows), trained.prepare)]), len(passes.rows)
        score, checkpoint = Growth(_seconds_a_row(method, datamodule, device)), Growth(trained.checkpoint)
    else:
        method, prepare, prepared_on, score, checkpoint = _prepared(method, datamodule, device)
    picture, picture_bytes = _drawn(cfg, method, datamodule, score(prepared_on), place)
    return Cost(
        step=trained.clock.step if trained else 0.0, timed=trained.clock.timed if trained else 0,
        extra=trained.clock.beside("event") if trained else 0.0, rhythm=rhythm,
        prepare=prepare, prepared_on=prepared_on, score=score, picture=picture, picture_bytes=picture_bytes,
        calibrate=trained.calibrate + trained.clock.beside("end") if trained else 0.0,
        save=trained.save if trained else 0.0, checkpoint_bytes=checkpoint, pretraining=pretraining, problem=problem,
        parameters=sum(p.numel() for p in method.parameters()), batch_size=datamodule.rows_per_batch if total else 0,
        image=tuple(datamodule._images[datamodule.split.train[:1]].shape[1:]), real=real,
    )  # fmt: skip


def _trainer(cfg: DictConfig, place: Path, callbacks: Sequence[Any] = ()) -> Any:
    return build_trainer(cfg, place, callbacks, devices=1, strategy="auto", enable_progress_bar=False)


def _pretrained(cfg: DictConfig, method: Any, datamodule: Any, place: Path) -> tuple[float, str]:
    """Pretrain a method for a few batches; seconds of one, and why its weights are not here, if only a download brings
    them.

    Raises:
        UserError: a start would refuse the pretraining.
    """
    node = {key: value for key, value in as_mapping(cfg.pretraining).items() if key != "id"}
    if node.get("_target_") is None:
        return 0.0, ""
    method.before_pretraining(datamodule.training_batches(method.device))
    copies, seconds = [copy.deepcopy(method), copy.deepcopy(method), method], list[float]()
    try:
        for batches, one in zip((1, 2, 6), copies, strict=True):
            pretraining = build(node)
            pretraining.check(one)
            started = time.perf_counter()
            pretraining(one, datamodule, cache_dir=place / str(batches), seed=cfg.seed, max_batches=batches)
            _wait(method.device)
            seconds.append(time.perf_counter() - started)
            if not hasattr(pretraining, "length"):  # weights that are read
                return 0.0, ""
    except NotDownloaded as error:
        return 0.0, str(error)
    return max(0.0, (seconds[2] - seconds[1]) / 4), ""


def _trained(
    cfg: DictConfig, method: Any, datamodule: Any, total: int, passes: Passes, place: Path, compiled: list[Compiled]
) -> _Trained:
    """Train a method for the clock's batches, and save a checkpoint."""
    device = method.device
    started = time.perf_counter()
    if is_overridden("prepare", method, parent=Method):
        method.ensure_prepared(datamodule.training_batches(device))
    _wait(device)
    prepare = time.perf_counter() - started
    method.total_batches = total
    rhythm = method.rhythm(datamodule.batches_per_epoch)
    clock = Clock(total, method.turns_repeat_after(), rhythm, passes, twice=bool(compiled))
    trainer = _trainer(cfg, place, [clock, *compiled])
    datamodule.set_budget(10_000)  # more than the clock asks for
    trainer.fit(method, datamodule=datamodule)
    _wait(device)
    calibrate = time.perf_counter() - clock.ended
    started = time.perf_counter()
    trainer.save_checkpoint(place / "last.ckpt")
    save = time.perf_counter() - started
    method.to(device).eval()
    return _Trained(clock, prepare, calibrate, save, (place / "last.ckpt").stat().st_size)


def _prepared(method: Any, datamodule: Any, device: Any) -> tuple[Any, Growth, int, Growth, Growth]:
    """Prepare a method without training steps on ever more rows until that takes seconds.

    Returns:
        The method; the growth of the preparation and on how many rows it was timed; the growth of a row's score; that
        of the checkpoint's bytes.
    """
    train = datamodule.split.train
    untouched, n, warm = copy.deepcopy(method), min(8, len(train)), False
    seconds: list[tuple[int, float]] = []
    a_row: list[tuple[int, float]] = []
    bytes_: list[tuple[int, float]] = []
    while True:
        method = copy.deepcopy(untouched).eval()
        rows = train[np.linspace(0, len(train), n, endpoint=False).astype(int)]
        started = time.perf_counter()
        method.ensure_prepared(datamodule.rows_batches(rows, device))
        method.ensure_calibrated(datamodule.holdout_batches(device))
        _wait(device)
        took = time.perf_counter() - started
        if not warm:  # what is done for the first time takes longer
            warm = True
            continue
        seconds.append((n, took))
        a_row.append((n, _seconds_a_row(method, datamodule, device)))
        bytes_.append((n, float(sum(v.numel() * v.element_size() for v in method.state_dict().values()))))
        # Three sizes at least: of fewer nobody could tell what grows with the square of the rows.
        if n == len(train) or (took > PATIENCE and len(seconds) > 2):
            return method, work(seconds), n, line(a_row), line(bytes_)
        n = min(2 * n, len(train))


def _seconds_a_row(method: Any, datamodule: Any, device: Any) -> float:
    """Seconds to score a row, in batches as a test has them."""
    rows = datamodule.split.test if len(datamodule.split.test) else datamodule.split.train
    rows = rows[: datamodule.eval_batch_size]
    batch = next(datamodule.rows_batches(rows, device))
    taken: list[float] = []
    with torch.no_grad():
        while len(taken) < 2 or (sum(taken) < PATIENCE / 4 and len(taken) < 6):
            started = time.perf_counter()
            method.test_scores(batch.image)
            _wait(device)
            taken.append(time.perf_counter() - started)
    return float(np.mean(taken[1:])) / len(batch.image)


def _drawn(cfg: DictConfig, method: Any, datamodule: Any, a_row: float, place: Path) -> tuple[float, float]:
    """Test a few rows; seconds and bytes for each of those that are drawn, all but their scores shared out."""
    whole, label = datamodule.split, datamodule.records.label
    few = [whole.test[label[whole.test] == kind][:most] for kind, most in zip((1, 0), DRAWN, strict=True)]
    test = np.sort(np.concatenate(few))
    pictures = session.Pictures.of(cfg.evaluation)
    most = (min(len(few[0]), pictures.panels_anomalous), min(len(few[1]), pictures.panels_normal))
    if not len(test) or not sum(most):
        return 0.0, 0.0
    folder = RunFolder(place / "tested")
    folder.path.mkdir()
    datamodule._split = replace(whole, test=test)
    started = time.perf_counter()
    session.test(method, datamodule, folder, pictures, threshold=None, offset=0.0,
                 trainer_with=lambda observers: _trainer(cfg, folder.path, observers))  # fmt: skip
    taken = time.perf_counter() - started - a_row * len(test)
    datamodule._split = whole
    size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    return max(0.0, taken) / sum(most), size / sum(most)

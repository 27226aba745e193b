"""`--dry-run`: the jobs of a command, what a start would make of each, and what they would cost. Nothing is written.

The jobs are found and judged by what a start uses (`sweeps`, `standing`, `states`), the costs are measured (`costs`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from adbench.data.records import Records, Split
from adbench.errors import UserError
from adbench.experiment.build import build, build_datamodule, build_source
from adbench.experiment.checks import refuse_cut_short, refuse_wrong_types
from adbench.experiment.compose import composing
from adbench.experiment.console import one_line
from adbench.experiment.folder import RunFolder
from adbench.experiment.identity import digest, identity_of
from adbench.experiment.job import resolve
from adbench.experiment.placement import cores, jobs_side_by_side, threads_per_job
from adbench.experiment.ranks import number_of_ranks
from adbench.experiment.standing import Data, look
from adbench.experiment.sweeps import Job, Recorder
from adbench.experiment.values import as_mapping, refuse_absent_devices

SWEEPER = "hydra_plugins.adbench_sweepers.Sweep"
#: Normal and anomalous training rows, normal and anomalous test rows of data sets as published (of MVTec AD the mean
#: category), for those whose configuration does not say it; the last is a guess.
PUBLISHED = {"mvtec": (242, 0, 31, 84), "mnist": (6000, 54000, 1000, 9000), "fashion_mnist": (6000, 54000, 1000, 9000),
             "cifar10": (5000, 45000, 1000, 9000), "": (200, 0, 50, 50)}  # fmt: skip
STATUS = {"start": "start", "resume": "resume", "answer": "finished", "answer-stale": "finished", "refuse": "refused"}


# -- the jobs ---------------------------------------------------------------------------------------------------------


@dataclass
class Planned:
    """A job and what is known of it before it runs.

    Attributes:
        status: finished, start, resume; refused where a start would fail; no data where its data are not in reach.
        reason: of a refusal, or what there is to say.
        done: training batches that a checkpoint holds.
        cost: the key of its configuration among the measured ones; None where it has nothing to do.
    """

    name: str
    cfg: DictConfig | None = None
    folder: Path | None = None
    status: str = "refused"
    reason: str = ""
    done: int = 0
    size: Any = None
    cost: str | None = None
    pretraining: str = ""  # jobs of one key share the result of their pretraining
    images: tuple[str, int, float] = ("", 0, 0.0)  # key, bytes and rows that the image cache lacks

    @property
    def runs(self) -> bool:
        """Whether it would train, were its data in reach."""
        return self.status in ("start", "resume", "no data")


def jobs_of(words: Sequence[str], multirun: bool) -> tuple[list[Planned], Mapping[str, Any]]:
    """The jobs of a command line, composed and checked as a start does; and the launcher's options.

    Args:
        words: overrides as Hydra gets them (`run.checked`).
        multirun: whether they are a sweep's; a configuration may say so itself.

    Raises:
        UserError: the sweep is a search, whose jobs nobody knows before it runs.
    """
    loader = GlobalHydra.instance().config_loader()
    shared = loader.load_configuration("config", list(words), run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False)
    if not multirun and shared.hydra.mode != RunMode.MULTIRUN:
        cfg = loader.load_configuration("config", list(words), run_mode=RunMode.RUN)
        job = Planned(str(Path(cfg.hydra.run.dir)), cfg, Path(cfg.hydra.run.dir))
        _check(job)
        return [job], {}
    node = shared.hydra.sweeper
    if node.get("_target_") != SWEEPER:
        raise UserError(
            "--dry-run lists the jobs of a sweep over values, and a search (hydra/sweeper=tuning or optuna) chooses "
            "its jobs as it goes: leave hydra/sweeper=... out and give one value for each key that it searches"
        )
    sweeper = instantiate(node)
    texts = [*sweeper._parse_config(), *shared.hydra.overrides.task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    groups = sweeper.split_arguments(parsed, None)
    recorder = Recorder(None, shared, loader)
    jobs = [_composed(recorder, number, one) for number, one in enumerate(one for group in groups for one in group)]
    return jobs, as_mapping(shared.hydra.launcher)


def _composed(recorder: Recorder, number: int, overrides: Sequence[str]) -> Planned:
    job = Job(number, list(overrides), " ".join(overrides))
    planned = Planned(job.name)
    try:
        planned.cfg = recorder.composed(job)
    except UserError as error:
        planned.reason = str(error)
    except Exception as error:  # whatever Hydra or a resolver makes of it: this job only
        planned.reason = f"does not compose: {str(error).strip().splitlines()[0]}"
    planned.name, planned.folder = job.name, job.folder
    if planned.cfg is not None:
        _check(planned)
    return planned


def _check(job: Planned) -> None:
    """What a start refuses before it looks at data; sets the status to "start" where there is nothing."""
    assert job.cfg is not None
    try:
        refuse_wrong_types(job.cfg, job.cfg.hydra.runtime.choices)
        refuse_cut_short(job.cfg)
        refuse_absent_devices(job.cfg.trainer)
        number_of_ranks(job.cfg.trainer)
        resolve(_without_hydra(job.cfg))
        job.status = "start"
    except UserError as error:
        job.status, job.reason = "refused", str(error)


def _without_hydra(cfg: DictConfig) -> DictConfig:
    plain = cfg.copy()
    with open_dict(plain):
        del plain["hydra"]
    return plain


# -- their data -------------------------------------------------------------------------------------------------------


class StandIn:
    """A data set that is not in reach: as many rows as it has, and nothing in them."""

    array = None
    cache_dir = None

    def __init__(self, cfg: DictConfig) -> None:
        rows = _published(cfg)
        parts = [("train", 0), ("train", 1), ("test", 0), ("test", 1)]
        split = np.repeat([part for part, _ in parts], rows)
        label = np.repeat([label for _, label in parts], rows).astype(np.int8)
        named = cfg.protocol.get("labelled_classes")
        kinds = [str(k) for k in range(10) if str(k) != str(cfg.data.normal_class)]
        kinds = [str(kind) for kind in named] if OmegaConf.is_list(named) else kinds
        kind = np.where(label == 1, np.resize(kinds, len(label)), "good")
        self.has_masks = cfg.data.kind in ("object", "texture")
        place = np.array([f"{part}/{i}" for i, part in enumerate(split)])
        mask = np.where((label == 1) & self.has_masks, place, "")
        self.records = Records(split=split, label=label, klass=kind, defect=kind, path=place, mask=mask)
        tabular = cfg.data.kind == "tabular"
        noise = np.random.default_rng(0).standard_normal((len(label), int(cfg.data.features))) if tabular else None
        self.features = noise

    def fingerprint(self) -> str:
        """Empty: nothing is known of its contents."""
        return ""


def _published(cfg: DictConfig) -> tuple[int, ...]:
    data = as_mapping(cfg.data)
    expected = data.get("expected") or {}
    if "train_normal" in expected:
        return tuple(expected[key] for key in ("train_normal", "train_anomalous", "test_normal", "test_anomalous"))
    table = data["source"].get("expected") or {}
    if "rows" in table:
        normal, anomalous = table["rows"] - table["anomalous"], table["anomalous"]
        share = data["source"]["train_share"]
        parts = [round(share * n) for n in (normal, anomalous)]
        return parts[0], parts[1], normal - parts[0], anomalous - parts[1]
    return PUBLISHED.get(str(cfg.data.id).partition("/")[0], PUBLISHED[""])


@dataclass
class Sources:
    """The data sets of a command, each listed once; one at a time is kept in memory.

    Attributes:
        memory: a folder that holds what is remembered of files, in place of the cache.
    """

    memory: Path
    _listed: dict[str, Data | UserError] = field(default_factory=dict)
    _latest: tuple[str, Any] = ("", None)

    def of(self, cfg: DictConfig) -> tuple[Any, bool]:
        """The data set of a configuration and whether it is in reach; else what stands in for it."""
        key = digest(OmegaConf.to_container(cfg.data.source, resolve=True), 32)
        if self._latest[0] != key:
            try:
                source = build_source(cfg)
                source.cache_dir = self.memory
                len(source.records)
                self._latest = key, source
            except UserError as error:
                self._latest = key, error
        found = self._latest[1]
        if isinstance(found, UserError):
            return StandIn(cfg), False
        return found, True

    def problem(self, cfg: DictConfig) -> str:
        """Why the data of a configuration are not in reach."""
        self.of(cfg)
        return " ".join(str(self._latest[1]).split())

    def data(self, cfg: DictConfig) -> Data:
        """What a folder's data are compared with.

        Raises:
            UserError: the data are not in reach.
        """
        key = digest(OmegaConf.to_container(cfg.data.source, resolve=True), 32)
        if key not in self._listed:
            source, real = self.of(cfg)
            self._listed[key] = Data.of(source) if real else UserError(self.problem(cfg))
        data = self._listed[key]
        if isinstance(data, UserError):
            raise data
        return data


@contextmanager
def _memory(cache_dir: str) -> Iterator[Path]:
    """A folder with a copy of what the cache remembers of files: what is learned of others does not stay."""
    with tempfile.TemporaryDirectory(prefix="adbench-") as place:
        for file in (Path(cache_dir).expanduser() / "contents").glob("*.json"):
            (Path(place) / "contents").mkdir(exist_ok=True)
            shutil.copy(file, Path(place) / "contents")
        yield Path(place)


def _module(cfg: DictConfig, source: Any) -> Any:
    """The data module of a job; a protocol that cannot do with a stand-in's rows leaves all that are normal."""
    supervision = getattr(get_class(cfg.method._target_), "supervision", "unsupervised")
    memory = source.cache_dir
    module = build_datamodule(cfg, str(supervision), source)
    source.cache_dir = memory  # where the module has put the configuration's
    module.rank_and_world = 0, 1
    if isinstance(source, StandIn):
        protocol, normal = module.protocol, source.records.label == 0

        def lenient(records: Records, rng: Any, supervised: str) -> Split:
            try:
                return protocol(records, rng, supervised)
            except UserError:
                rows = np.flatnonzero(normal & (records.split == "train"))
                test = np.flatnonzero(records.split == "test")
                return Split(rows, np.zeros(len(rows), np.int8), rows[:0], test)

        module.protocol = lenient
    return module


# -- the plan ---------------------------------------------------------------------------------------------------------


class Plan:
    """Jobs, and the costs that were measured for them; several commands may share one.

    Args:
        say: gets a line for each measurement that begins, which takes seconds to minutes.
    """

    def __init__(self, say: Any = None) -> None:
        self.say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self.costs: dict[str, Any] = {}  # key -> costs.Cost, or the error of a method that cannot be built
        self.about: dict[str, str] = {}  # key -> what was measured, in words
        self.reading: dict[str, float] = {}  # key -> seconds to read an image for the image cache
        self.seen: set[Path] = set()  # folders of jobs
        self.paid: set[str] = set()  # pretrainings and image caches that an earlier job pays for
        self.launcher: Mapping[str, Any] = {}

    def look(self, words: Sequence[str], multirun: bool) -> list[Planned]:
        """The jobs of a command, with what a start would make of each and, of those that would run, the cost.

        Args:
            words, multirun: see `jobs_of`.

        Raises:
            UserError: the sweep has no list of jobs.
        """
        offline = os.environ.get("HF_HUB_OFFLINE")
        os.environ["HF_HUB_OFFLINE"] = "1"  # a download would stay
        try:
            with composing():
                jobs, self.launcher = jobs_of(words, multirun)
                composed = [job for job in jobs if job.cfg is not None]
                with _memory(composed[0].cfg.cache_dir if composed else "") as memory:  # type: ignore[union-attr]
                    sources = Sources(memory)
                    for job in composed:
                        self._judge(job, sources)
                        if job.folder is not None:
                            self.seen.add(job.folder.absolute())
                return jobs
        finally:
            os.environ.pop("HF_HUB_OFFLINE")
            if offline is not None:
                os.environ["HF_HUB_OFFLINE"] = offline

    def _judge(self, job: Planned, sources: Sources) -> None:
        if job.status != "start" or job.cfg is None or job.folder is None:
            return
        if job.folder.absolute() in self.seen:
            job.status, job.reason = "finished", "by then: it is an earlier job too"
            return
        cfg, folder = job.cfg, RunFolder(job.folder)
        plain = _without_hydra(cfg)
        try:
            if folder.owned():
                raise UserError("it is being written by another process")
            identity = identity_of(cfg, cfg.hydra.runtime.choices)
            standing = look(folder, plain, identity, lambda: sources.data(plain))
        except UserError as error:
            job.status, job.reason = "refused", str(error)
            return
        job.status = STATUS[standing.action]
        job.reason = standing.reason if standing.action != "answer-stale" else "stale"
        job.done = standing.checkpoint.batches_seen if standing.checkpoint else 0
        if not job.runs:
            return
        source, real = sources.of(plain)
        if not real:
            job.status, job.reason = "no data", sources.problem(plain)
        try:
            self._price(job, OmegaConf.create(OmegaConf.to_container(plain, resolve=True)), source, real)
        except UserError as error:
            job.status, job.reason, job.cost = "refused", str(error), None

    def _price(self, job: Planned, cfg: Any, source: Any, real: bool) -> None:
        """Find the job's size, and its configuration's cost."""
        from pytorch_lightning import LightningModule
        from pytorch_lightning.utilities.model_helpers import is_overridden

        from adbench.data.cache import missing
        from adbench.experiment import costs
        from adbench.experiment.training import total_batches

        module = _module(cfg, source)
        module.set_up_on(None, None)
        method: Any = get_class(cfg.method._target_)
        total = total_batches(cfg, module) if is_overridden("training_step", method, parent=LightningModule) else 0
        label = module.records.label[module.split.test]
        job.size = costs.Size(
            batches=total, batches_per_epoch=module.batches_per_epoch, checkpoint_every=cfg.budget.checkpoint_every,
            train=len(module.split.train), holdout=len(module.split.holdout), test_normal=int((label == 0).sum()),
            test_anomalous=int((label == 1).sum()), folds=len(module.folds),
            pretraining_batches=pretraining_batches(cfg, int((module.split.semi_label >= 0).sum())),
            panels=(cfg.evaluation.panels_anomalous, cfg.evaluation.panels_normal),
        )  # fmt: skip
        job.cost = _key(cfg, source, real)
        if job.cost not in self.costs:
            assert job.cfg is not None
            self.about[job.cost] = _in_words(str(job.cfg.hydra.runtime.choices["method"]), cfg, module, real)
            self.say(f"measuring {self.about[job.cost]}")
            try:
                self.reading[job.cost] = costs.set_up(module, real)
                self.costs[job.cost] = costs.measure(cfg, module, total, real, self.threads(cfg))
            except UserError as error:
                self.costs[job.cost] = error
            except Exception as error:  # of the method, of the machine's memory: a start would meet it too
                self.costs[job.cost] = UserError(f"its first batches fail: {one_line(error)}")
        if isinstance(self.costs[job.cost], UserError):
            raise self.costs[job.cost]
        if job.size.pretraining_batches and job.status != "resume":
            nodes = [OmegaConf.to_container(cfg[group]) for group in ("pretraining", "method", "data", "protocol")]
            job.pretraining = digest([nodes, cfg.seed], 32)
        if real and source.features is None:
            where = {k: v for k, v in as_mapping(cfg.data.source).items() if k != "normal_class"}
            job.images = (
                digest([where, module.size], 32),
                missing(source, module.size, cfg.cache_dir) if cfg.data.cache == "disk" else 0,
                len(source.records),
            )

    def threads(self, cfg: Any) -> int:
        """CPU threads that a job would have."""
        return int(cfg.trainer.threads or threads_per_job(self.launcher, cores()))

    def seconds(self, job: Planned) -> dict[str, float]:
        """A job's parts; what an earlier job pays for is 0. To be asked for once a job, in their order."""
        assert job.cost is not None
        cost = self.costs[job.cost]
        left = job.size._replace(batches=max(0, job.size.batches - job.done))
        parts: dict[str, float] = cost.seconds(left)
        if job.done:
            parts["pretraining"] = parts["prepare"] = 0.0
        if job.pretraining:
            parts["pretraining"] *= job.pretraining not in self.paid
            self.paid.add(job.pretraining)
        key, size, rows = job.images
        parts["reading"] = self.reading[job.cost or ""] * rows if size and key not in self.paid else 0.0
        self.paid.add(key)
        return parts


def pretraining_batches(cfg: Any, rows: int) -> int:
    """Batches of a configuration's pretraining on so many images; 0 where there is none that trains."""
    node = {key: value for key, value in as_mapping(cfg.pretraining).items() if key != "id"}
    if node.get("_target_") is None or not hasattr(get_object(node["_target_"]), "length"):
        return 0
    whole = int(build(node).length(max(1, rows)))
    return min(whole, cfg.budget.pretraining_batches or whole)


def _key(cfg: Any, source: Any, real: bool) -> str:
    """The same for jobs whose parts take the same time: of one method and size of data, whatever seed and category."""
    method = {k: v for k, v in as_mapping(cfg.method).items() if k not in ("recipe", "id")}
    data = [cfg.data.kind, cfg.data.image_size, cfg.data.batch_size, cfg.data.eval_batch_size, str(cfg.data.workers)]
    features = None if source.features is None else source.features.shape[1]
    others = [as_mapping(cfg[group]) for group in ("pretraining", "trainer", "evaluation")]
    few = len(source.records) if cfg.data.kind == "tabular" else None
    return digest([method, str(data), features, others, cfg.protocol._target_, real, few], 32)


def _in_words(method: str, cfg: Any, module: Any, real: bool) -> str:
    if module.source.features is not None:
        size = f"{module.source.features.shape[1]} features"
    else:
        height, width = module.size
        size = f"{cfg.data.kind} images of {height} px" if height == width else f"images of {height} x {width} px"
    pretraining = "" if cfg.pretraining.id == "none" else f", pretraining={cfg.pretraining.id}"
    data = f"rows of {cfg.data.id}" if real else "noise, the data are not in reach"
    world = number_of_ranks(cfg.trainer)
    devices = f", on one of the {world} devices" if world > 1 else ""
    return f"{method} on {size}{pretraining} ({data}{devices})"


# -- what is printed --------------------------------------------------------------------------------------------------


@dataclass
class Total:
    """The sums over jobs.

    Attributes:
        seconds: of one process, by part.
        bytes_: of run folders, and of the image cache.
    """

    jobs: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    results: float = 0.0
    cache: float = 0.0

    def add(self, job: Planned, parts: Mapping[str, float], results: float, cache: float) -> None:
        """Add a job: its seconds by part, the bytes of its folder and those of the image cache."""
        self.jobs += 1
        for name, value in parts.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        self.results, self.cache = self.results + results, self.cache + cache


def report(plan: Plan, jobs: Sequence[Planned], total: Total | None = None) -> str:
    """What `--dry-run` prints of a command's jobs.

    Args:
        plan: that has looked at them.
        jobs: in their order.
        total: gets their sums too, where several commands are added up.
    """
    own, width = Total(), max((len(job.name) for job in jobs), default=0)
    count = {status: sum(job.status == status for job in jobs) for status in dict.fromkeys(job.status for job in jobs)}
    lines = [f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {', '.join(f'{n} {status}' for status, n in count.items())}"]
    for job in jobs:
        words = ""
        if job.runs and job.cost is not None:
            unpaid = job.images[0] not in plan.paid
            parts = plan.seconds(job)
            cache = job.images[1] * unpaid
            for sums in (own, *([total] if total else [])):
                sums.add(job, parts, plan.costs[job.cost].disk(job.size), cache)
            words = f"{length(job)}, {duration(sum(parts.values()))}"
        words += ("; " if words and job.reason else "") + job.reason
        lines.append(f"  {job.name:<{width}}  {job.status:<8}  {words}".rstrip())
    for key in dict.fromkeys(job.cost for job in jobs if job.runs and job.cost):
        lines += measured(plan, key)
    return "\n".join([*lines, *sums_in_words(own, plan)])


def length(job: Planned) -> str:
    """How much a job trains."""
    if not job.size.batches:
        return f"no training steps, {job.size.train:,} rows"
    left = f", {job.done:,} of them done" if job.done else ""
    return f"{job.size.batches:,} batches{left}"


def measured(plan: Plan, key: str) -> list[str]:
    """What was timed for a configuration, in words."""
    cost = plan.costs[key]
    parts = []
    if cost.timed:
        shape = " x ".join(map(str, cost.image))
        parts.append(f"{cost.step:.3g} s a training batch of {cost.batch_size} x {shape} (mean of {cost.timed} timed)")
    else:
        growth = "and grows with the square of the rows" if cost.prepare.quadratic else "and grows with the rows"
        parts.append(f"{cost.prepare(cost.prepared_on):.3g} s to prepare {cost.prepared_on:,} rows, {growth}")
    if cost.extra:
        parts.append(f"{cost.extra:.3g} s beside the steps now and then")
    if cost.pretraining:
        parts.append(f"{cost.pretraining:.3g} s a batch of the pretraining")
    parts.append(f"{1000 * cost.score(cost.prepared_on):.3g} ms to score a row")
    parts.append(
        f"{cost.parameters:,} parameters, {size_in_words(cost.checkpoint_bytes(cost.prepared_on))} a checkpoint"
    )
    lines = [f"measured: {plan.about[key]}: {'; '.join(parts)}"]
    if cost.problem:
        lines.append(f"  its pretraining is not in these figures (no download is tried here): {cost.problem}")
    return lines


def sums_in_words(total: Total, plan: Plan) -> list[str]:
    """The lines with the sums; empty where nothing is left to do."""
    if not total.jobs:
        return []
    import platform

    import torch

    hours = sum(total.seconds.values())
    parts = ", ".join(f"{name} {duration(value)}" for name, value in total.seconds.items() if value >= 1)
    side = min(total.jobs, jobs_side_by_side(plan.launcher, cores()))
    beside = f"; with {side} jobs side by side, which may slow each other, {duration(hours / side)}" if side > 1 else ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    chip = gpu or f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    lines = [
        f"time: {duration(hours)} on this machine ({chip}){f': {parts}' if parts else ''}{beside}",
        f"disk: {size_in_words(total.results)} of run folders (checkpoints and pictures)"
        + (f", {size_in_words(total.cache)} of image cache" if total.cache else ""),
    ]
    return [*lines, "Nothing was written. Estimates leave out the start of Python, and other programs of the machine."]


def duration(seconds: float) -> str:
    """`about 3.2 h`: a time in the unit that suits it."""
    for unit, length_ in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= (2 if unit == "days" else 1) * length_:
            return f"{seconds / length_:.3g} {unit}"
    return f"{seconds:.2g} s"


def size_in_words(size: float) -> str:
    """`1.2 GiB`: a number of bytes in the unit that suits it."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if size >= 2**power:
            return f"{size / 2**power:.3g} {unit}"
    return f"{size / 1024:.3g} KiB"


def exit_code(jobs: Sequence[Planned]) -> int:
    """1 if a start would not do all of the jobs."""
    return int(any(job.status in ("refused", "no data") for job in jobs))

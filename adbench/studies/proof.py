"""`python -m adbench.proof`: one command for a machine with a GPU that settles what these pages leave open.

It measures how fast the papers' presets train and score (float32 and mixed precision, with and without torch.compile),
trains each of them for a short while in both precisions, and then trains them at the papers' length, a category after
the other. Every part is one task. OUT/proof.json and OUT/proof.md are written after each, and a command that is stopped
or killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from adbench import run
from adbench.errors import UserError, command
from adbench.experiment import costs
from adbench.experiment.build import build, build_datamodule, build_method, build_source
from adbench.experiment.compose import composed, composed_job
from adbench.experiment.dry_run import pretraining_batches
from adbench.experiment.groups import choices
from adbench.experiment.placement import cores
from adbench.experiment.provenance import git, hardware, now, versions
from adbench.experiment.training import total_batches
from adbench.experiment.values import as_mapping
from adbench.files import write_json, write_text

METHODS = ("cbigan", "egbad", "igd", "pwae", "ssae", "esad")
CLASSES = ("cifar10", "fashion_mnist", "mnist", "odds/cardio", "digits")  # what ESAD is trained on, the first in reach
PRECISIONS = ("32-true", "bf16-mixed")
PRETRAINING = {"igd": "imagenet_kd", "pwae": "imagenet"}  # the papers' own; none where its weights are not in reach
SHORT = 200  # training batches of the short runs
RATE = (4096, 1024)  # side of the matrices whose product gives the peak: on a GPU, on a CPU


class Task(NamedTuple):
    """A part of the proof."""

    key: str
    stage: str  # machine, speed, short, compiled or paper
    work: Callable[[], dict[str, Any]]


class Stopped(Exception):
    """A run was stopped by a signal; what it holds resumes."""


# -- what there is ----------------------------------------------------------------------------------------------------


class Setting:
    """What the command was asked for, and what is in reach.

    Args:
        out: folder of the proof.
        methods: of `METHODS`.
        words: overrides for every run, such as `trainer=gpu`.
        smoke: CPU presets of two batches: does the command run?
        images: of the distillation, see `pretraining.images`.
    """

    def __init__(
        self, out: Path, methods: Sequence[str], words: Sequence[str], smoke: bool, images: str | None
    ) -> None:
        self.out, self.methods, self.words, self.smoke = out, list(methods), list(words), smoke
        self.images = images
        self.asked = [*(["--smoke"] if smoke else []), *(["--images", images] if images else []), *words]
        self.reach: dict[str, str | None] = {}
        self._pretraining: dict[str, str] = {}

    def data(self, method: str) -> list[str]:
        """The data sets in reach that a method's paper trains on; embedded ones where there are none."""
        wanted = CLASSES if method == "esad" else [n for n in choices("data") if n.startswith("mvtec/")]
        found = [name for name in wanted if self._missing(name) is None]
        if method == "esad" or not found:
            return found[:1] or ["textures/brick"]
        return found

    def _missing(self, name: str) -> str | None:
        if name not in self.reach:
            try:
                cfg = composed([f"data={name}", *[w for w in self.words if w.startswith(("data_root=", "cache_dir="))]])
                self.reach[name] = None if len(build_source(cfg).records) else "it is empty"
            except UserError as error:
                self.reach[name] = " ".join(str(error).split())
        return self.reach[name]

    def command(self, method: str, data: str, *more: str) -> list[str]:
        """The words of a run of the paper's preset."""
        small = f"{method}/small" if self.smoke and f"{method}/small" in choices("method") else method
        small = f"{small}/mnist" if small == "esad" and data.endswith("mnist") else small
        words = [f"method={small}", f"data={data}", "budget=paper", f"pretraining={self.pretraining(method, data)}"]
        if method == "esad":
            words.append("protocol=semi_supervised")
        if method != "ssae":  # which chooses its weights by held-out images, as its paper does
            words.append("protocol.holdout=0")
        if words[3].endswith("imagenet_kd") and self.images:
            words.append(f"pretraining.images={self.images}")
        return [*words, *(["trainer=smoke"] if self.smoke else []), *more, *self.words]

    def pretraining(self, method: str, data: str) -> str:
        """The paper's, or none where its weights are not in reach."""
        wanted = PRETRAINING.get(method, "none")
        if wanted == "none" or self.smoke:
            return "none"
        if method not in self._pretraining:
            try:
                cfg = composed([f"method={method}", f"data={data}", f"pretraining={wanted}"])
                build({k: v for k, v in as_mapping(cfg.pretraining).items() if k != "id"}).check(build_method(cfg))
                self._pretraining[method] = wanted
            except UserError as error:
                print(f"{method}: pretraining=none in place of {wanted}: {error}", file=sys.stderr)
                self._pretraining[method] = "none"
        return self._pretraining[method]


# -- the tasks --------------------------------------------------------------------------------------------------------


def tasks(setting: Setting) -> Iterator[Task]:
    """Every task in order: what is soon done and tells most comes first."""
    yield Task("machine", "machine", lambda: machine(setting.smoke))
    first = {method: setting.data(method)[0] for method in setting.methods}
    yield from _speeds(setting, first, compiled=False)
    for method in setting.methods:
        for precision in PRECISIONS:
            length = 2 if setting.smoke else SHORT
            words = setting.command(
                method, first[method], f"trainer.precision={precision}", f"budget.max_batches={length}",
                "budget.max_epochs=null", f"budget.pretraining_batches={length}",
            )  # fmt: skip
            yield Task(f"short: {method}, {precision}", "short", _bound(trained, words, setting.out))
    yield from _speeds(setting, first, compiled=True)
    rounds = max(len(setting.data(method)) for method in setting.methods)
    for number in range(1 if setting.smoke else rounds):
        for method in _cheapest_first(setting):
            data = setting.data(method)
            if number < len(data):
                words = setting.command(method, data[number])
                yield Task(f"paper: {method} on {data[number]}", "paper", _bound(trained, words, setting.out))


def _speeds(setting: Setting, data: Mapping[str, str], compiled: bool) -> Iterator[Task]:
    for precision in PRECISIONS:
        for method in setting.methods:
            words = setting.command(method, data[method], f"trainer.precision={precision}")
            key = f"speed: {method}, {precision}{', compiled' if compiled else ''}"
            yield Task(key, "compiled" if compiled else "speed", _bound(speed, words, compiled))


def _bound(work: Callable[..., dict[str, Any]], *arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: work(*arguments)


def _cheapest_first(setting: Setting) -> list[str]:
    """The methods by the hours of a run at the paper's length, as they were measured."""
    rows = results(setting.out)["tasks"]
    hours = {m: rows.get(f"speed: {m}, 32-true", {}).get("paper_hours", math.inf) for m in setting.methods}
    return sorted(setting.methods, key=lambda method: hours[method] or math.inf)


def machine(smoke: bool = False) -> dict[str, Any]:
    """This machine, and the rate of its matrix products in each precision, in 10^12 operations a second."""
    import torch

    gpu = torch.cuda.is_available()
    side = 256 if smoke else RATE[0] if gpu else RATE[1]
    rates = {}
    for name, kind in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        a = torch.randn(side, side, dtype=kind, device="cuda" if gpu else "cpu")
        best = math.inf
        for _ in range(3 if smoke else 10):
            started = time.perf_counter()
            a @ a
            if gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        rates[name] = 2 * side**3 / best / 1e12
    return {
        "rate": rates, "hardware": hardware(torch.get_num_threads()), "versions": versions(), "git": git(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def speed(words: Sequence[str], compiled: bool) -> dict[str, Any]:
    """How fast a preset trains and scores, and what share of its time is arithmetic.

    Returns:
        `images_per_second` of training, `scored_per_second`, `operations` of a training batch (forward and backward)
        and `operations_seconds` that it takes, `memory` in bytes (of a GPU), `paper_hours` of a run at this length, its
        pretraining included.
    """
    import torch

    drawn = ("evaluation.panels_anomalous=0", "evaluation.panels_normal=0", "evaluation.codes=0")
    cfg = composed([*words, *drawn])
    cfg.trainer.compile = compiled
    supervision = str(build_method(cfg).supervision)
    datamodule = build_datamodule(cfg, supervision)
    datamodule.rank_and_world = 0, 1
    costs.set_up(datamodule, True)
    total = total_batches(cfg, datamodule)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    cost = costs.measure(cfg, datamodule, total, True, cfg.trainer.threads or cores(), not_compiled=_not_compiled)
    memory = torch.cuda.max_memory_allocated() if gpu else None
    count, seconds = (0, 0.0) if compiled else costs.operations(cfg, datamodule, total)
    size = costs.Size(
        batches=total, batches_per_epoch=datamodule.batches_per_epoch, checkpoint_every=cfg.budget.checkpoint_every,
        train=len(datamodule.split.train), holdout=len(datamodule.split.holdout), test_normal=0, test_anomalous=0,
        folds=0, pretraining_batches=pretraining_batches(cfg, len(datamodule.split.train)), panels=(0, 0),
    )  # fmt: skip
    return {
        "method": cfg.method._target_.rpartition(".")[2], "data": cfg.data.id, "batch": cost.batch_size,
        "image": list(cost.image), "parameters": cost.parameters, "compiled": compiled,
        "precision": str(cfg.trainer.precision), "seconds_a_batch": cost.step,
        "images_per_second": cost.batch_size / cost.step, "scored_per_second": 1 / max(1e-9, cost.score(0)),
        "operations": count, "operations_seconds": seconds, "memory": memory,
        "paper_hours": sum(cost.seconds(size).values()) / 3600, "timed": cost.timed,
    }  # fmt: skip


def _not_compiled(reason: str) -> None:
    raise UserError(f"torch.compile does not work here: {reason}")


def trained(words: Sequence[str], out: Path) -> dict[str, Any]:
    """Train and test as `python -m adbench.run` does; what metrics.json says.

    Raises:
        Stopped: by a signal.
        UserError: the run failed or was refused.
    """
    cfg = composed(words)
    code = run.main([*words, f"results={out / 'results'}"])
    if code > 128:
        raise Stopped
    with composed_job([*words, f"results={out / 'results'}"]) as (_, folder):
        record = json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").is_file() else {}
    if record.get("status") != "finished":
        raise UserError(record.get("error") or f"exit code {code}")
    named = ("image_auroc", "image_balanced_accuracy_max", "pixel_auroc", "pixel_pro")
    return {
        "command": "python -m adbench.run " + " ".join(words), "folder": str(folder.relative_to(out)),
        "data": cfg.data.id, "precision": str(cfg.trainer.precision), "pretraining": record["pretraining"],
        "batches": record["budget"]["batches"], "metrics": {key: record["metrics"].get(key) for key in named},
        "train_s": record["time"].get("train_s"), "total_s": record["time"].get("total_s"), "code": record["code"],
    }  # fmt: skip


# -- results ----------------------------------------------------------------------------------------------------------


def results(out: Path) -> dict[str, Any]:
    """What proof.json holds; nothing before the first task."""
    with suppress(OSError, ValueError):
        found = json.loads((out / "proof.json").read_text())
        if isinstance(found, dict) and "tasks" in found:
            return found
    return {"tasks": {}, "seconds": 0.0}


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    rows = found["tasks"]
    lines = ["# Proof", ""]
    if "--smoke" in found.get("asked", ()):
        lines += [
            "A smoke run, CPU presets of two batches: it shows that the command works, and no figure is a result.",
            "",
        ]
    if "rate" in (about := rows.get("machine", {})):
        gpus = ", ".join(about["hardware"]["gpus"]) or "no GPU"
        rates = ", ".join(f"{rate:.3g} ({name})" for name, rate in about["rate"].items())
        lines += [
            f"{gpus}; {about['processor']}, {about['cpu_capability']}; torch {about['versions'].get('torch')}; commit "
            f"{(about['git'] or {}).get('commit', 'unknown')}. Matrix products reach {rates} x 10^12 operations a "
            "second.",
        ]
    lines += ["", f"{len(rows)} tasks done in {found['seconds'] / 60:.1f} minutes; {found.get('left', '?')} left.", ""]
    lines += _speed_table(rows, about.get("rate", {})) + _short_table(rows) + _paper_table(rows)
    failed = [f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row]
    return "\n".join([*lines, *(["## Not done", "", *failed, ""] if failed else [])])


def _stage(rows: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return {key: row for key, row in rows.items() if key.startswith(f"{stage}: ") and "error" not in row}


def _speed_table(rows: Mapping[str, Any], rates: Mapping[str, float]) -> list[str]:
    speeds = _stage(rows, "speed")
    if not speeds:
        return []
    lines = [
        "## Speed", "",
        "Share of peak: the counted operations of a training batch over its time, against the machine's products of "
        "matrices.", "", "| preset | images | images/s, training | against float32 | share of peak | "
        "images/s, scoring | GPU memory | hours at the paper's length |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in speeds.items():
        plain = speeds.get(f"speed: {key.removeprefix('speed: ').partition(',')[0]}, 32-true")
        ratio = f"{row['images_per_second'] / plain['images_per_second']:.2f}" if plain else ""
        rate = rates.get(row["precision"])
        share = ""
        if rate and row["operations"] and row["operations_seconds"]:
            share = f"{100 * row['operations'] / row['operations_seconds'] / 1e12 / rate:.1f} %"
        memory = f"{row['memory'] / 2**30:.2f} GiB" if row["memory"] else ""
        shape = f"{row['batch']} x {' x '.join(map(str, row['image']))}"
        lines.append(
            f"| {key.removeprefix('speed: ')} | {shape} | {row['images_per_second']:.3g} | {ratio} | {share} | "
            f"{row['scored_per_second']:.3g} | {memory} | {row['paper_hours']:.3g} |"
        )
    return [*lines, ""]


def _figures(row: Mapping[str, Any]) -> str:
    return " | ".join("" if value is None else f"{value:.3f}" for value in row["metrics"].values())


def _short_table(rows: Mapping[str, Any]) -> list[str]:
    short = _stage(rows, "short")
    if not short:
        return []
    lines = [
        "## Mixed precision against float32", "",
        "Short runs, the same seed in both: they show whether a preset trains in mixed precision, not what it reaches.",
        "", "| run | data | batches | image AUROC | balanced accuracy, best | pixel AUROC | pixel PRO | s |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in short.items():
        name = key.removeprefix("short: ")
        lines.append(f"| {name} | {row['data']} | {row['batches']:,} | {_figures(row)} | {row['total_s']:.0f} |")
    return [*lines, ""]


def _paper_table(rows: Mapping[str, Any]) -> list[str]:
    paper = _stage(rows, "paper")
    if not paper:
        return []
    lines = [
        "## At the papers' length", "",
        "One seed. `python -m adbench.report OUT/results` puts the published figures beside.",
        "", "| run | pretraining | batches | image AUROC | balanced accuracy, best | pixel AUROC | pixel PRO | hours |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in paper.items():
        name, hours = key.removeprefix("paper: "), row["total_s"] / 3600
        lines.append(f"| {name} | {row['pretraining']} | {row['batches']:,} | {_figures(row)} | {hours:.2f} |")
    return [*lines, ""]


# -- the command ------------------------------------------------------------------------------------------------------


def carry_out(setting: Setting, minutes: float | None) -> int:
    """Do every task that is not done yet; returns the exit code.

    Args:
        setting: what was asked for.
        minutes: no task begins after so many; None: no limit.

    Raises:
        UserError: the folder holds a proof with other arguments.
    """
    import torch

    if not (torch.cuda.is_available() or setting.smoke):
        print(
            "there is no GPU here: the speeds are the CPU's, and runs at the papers' length take days", file=sys.stderr
        )
    found, started = results(setting.out), time.perf_counter()
    found.setdefault("asked", setting.asked)
    if found["asked"] != setting.asked:
        raise UserError(
            f"{setting.out} holds a proof with other arguments ({' '.join(found['asked']) or 'none'}); give the "
            "same, or another place with --out DIR"
        )
    before, code = found["seconds"], 0
    for task in tasks(setting):  # one after the other: the order of the last ones follows from what was measured
        if task.key in found["tasks"] and "error" not in found["tasks"][task.key]:
            continue
        if minutes is not None and time.perf_counter() - started > 60 * minutes:
            print(f"{minutes:g} minutes are over; the same command goes on with {task.key}")
            break
        print(f"-- {task.key}", flush=True)
        try:
            row = task.work()
        except (Stopped, KeyboardInterrupt):
            print("stopped; the same command goes on where it was")
            return 143
        except Exception as error:  # of a compiler, of memory, of data: this task only, and said in the table
            row, code = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}, 1
            print(f"error: {row['error']}", file=sys.stderr)
        _forget()
        found["tasks"][task.key] = {**row, "finished": now()}
        found["seconds"] = before + time.perf_counter() - started
        found["left"] = sum(one.key not in found["tasks"] for one in tasks(setting))
        write_json(setting.out / "proof.json", found)
        write_text(setting.out / "proof.md", table(found))
    print(table(found))
    print(f"-> {setting.out / 'proof.md'}, {setting.out / 'proof.json'}")
    return code


def _forget() -> None:
    """Give back what a task has left in the memory of this process and of its GPU."""
    import gc

    import torch

    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m adbench.proof", description=__doc__.partition("\n\n")[0],
                                     epilog="Exit code: 0; 1 where a task failed (the table says which and why); 143 "
                                     "stopped by a signal. The same command goes on where it was.")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("proof"), help="folder of the results and the runs (proof)")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no task after so many minutes")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME",
                        help=f"of {', '.join(METHODS)} (all)")  # fmt: skip
    parser.add_argument("--images", metavar="DIR", help="images that IGD's encoders are distilled on (ImageNet's)")
    parser.add_argument("--smoke", action="store_true", help="CPU presets, two batches: does the command run here?")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="for every run: data_root=DIR, cache_dir=DIR, trainer.KEY=VALUE, seed=N")  # fmt: skip
    asked = parser.parse_intermixed_args(arguments)
    # An override that follows the names is none of them.
    names = [word for word in asked.methods if "=" not in word]
    asked.overrides = [word for word in asked.methods if "=" in word] + asked.overrides
    if wrong := [name for name in names if name not in METHODS]:
        parser.error(f"--methods: there is no {wrong[0]}; there are {', '.join(METHODS)}")
    try:
        setting = Setting(
            asked.out.expanduser().absolute(), names or METHODS, asked.overrides, asked.smoke, asked.images
        )
        composed([f"data={setting.data(setting.methods[0])[0]}", *asked.overrides])  # a slip is said before any work
        return carry_out(setting, asked.minutes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

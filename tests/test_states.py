"""A run folder through random sequences of commands, kills and mistakes: nothing trained is lost, nothing is mixed up.

A kill is what SIGKILL leaves: before a write that is drawn at random the folder is copied, the command is abandoned,
and the copy takes the folder's place. What was trained on what is read from the weights themselves (tests/tiny.py).
"""

import copy
import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from adbench.experiment import job as jobs
from adbench.experiment import standing, training
from adbench.experiment.folder import RunFolder
from adbench.experiment.groups import conf_dir
from adbench.experiment.states import RULES, Facts, decide, rule, table

# -- the table --------------------------------------------------------------------------------------------------------


def every_fact():
    statuses = ("", "running", "interrupted", "failed", "finished")
    same = ("same", "other")
    for values in itertools.product(
        statuses, ("none", "whole", "damaged"), same, same, same, (False, True, "stale"), (True, False)
    ):
        yield Facts(*values)


def test_the_documentation_holds_the_table_that_decides():
    text = (conf_dir().parent / "docs" / "run_folder.md").read_text(encoding="utf-8")
    assert table() in text


def test_every_row_of_the_table_decides_something_and_every_case_has_a_row():
    assert {id(rule(facts)) for facts in every_fact()} == {id(row) for row in RULES}


def test_only_overwriting_starts_anew_where_something_is_trained():
    for facts in every_fact():
        if facts.holds != "nothing" and decide(facts) == "start":
            assert facts.overwrite is True or (facts.overwrite == "stale" and facts.code == "other"), facts


def test_other_data_and_other_settings_are_neither_answered_nor_resumed():
    for facts in every_fact():
        if "other" in (facts.data, facts.settings) and facts.holds in ("training", "finished"):
            assert decide(facts) in ("refuse", "start"), facts


# -- random sequences -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    data: str = "a"  # "a", "moved" (the same bytes elsewhere), "changed" (in place), "gone"
    setting: int = 1
    code: int = 1
    overwrite: bool | str = False
    resume: bool = True
    wrong: str = ""  # KEY=VALUE that no run can have
    end: str = "whole"  # "kill" before a write, "fail" or "term" (SIGTERM) at a batch
    at: int = 0  # which write or batch

    @property
    def number(self):
        return 20 if self.data == "changed" else 10


WRONG = ("trainer.accelerator=nowhere", "trainer.precision=bf17", "data.workers=many", "overwrite=maybe",
         "trainer.limit_test_batches=2", "budget.max_batches=-1", "protocol.holdout=7")  # fmt: skip
RIGHT = st.just(Command())
CUT = st.one_of(
    st.builds(Command, end=st.sampled_from(["fail", "term"]), at=st.integers(1, 5)),
    st.builds(Command, end=st.just("kill"), at=st.integers(0, 60), overwrite=st.sampled_from([False, False, True])),
)
SLIP = st.one_of(
    st.sampled_from([Command(data="changed"), Command(setting=2), Command(code=2), Command(data="moved")]),
    st.sampled_from([Command(data="gone"), Command(resume=False), Command(code=2, overwrite="stale")]),
    st.builds(Command, wrong=st.sampled_from(WRONG)),
)
OTHER = st.builds(
    Command, data=st.sampled_from(["a", "moved", "changed"]), setting=st.sampled_from([1, 2]),
    code=st.sampled_from([1, 1, 2]), overwrite=st.sampled_from([False, False, True, "stale"]), resume=st.booleans(),
    end=st.sampled_from(["whole", "kill", "fail", "term"]), at=st.integers(0, 60),
)  # fmt: skip
# Most begin with something to lose.
SEQUENCES = st.builds(
    lambda first, rest: [first, *rest], st.one_of(RIGHT, CUT, OTHER),
    st.lists(st.one_of(RIGHT, CUT, SLIP, SLIP, OTHER), min_size=2, max_size=5),
)  # fmt: skip


class Killed(BaseException):
    """Ends the command in this process; what it writes on its way out is thrown away."""


class Killer:
    """Counts what is about to be written below a folder, and copies the folder before write number `at`."""

    EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")

    def __init__(self):
        self.place, self.at, self.count, self.copy = None, 0, 0, None
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.place is None or not (event in self.EVENTS or (event == "open" and self._writes(arguments))):
            return
        if not str(arguments[-1 if event == "os.symlink" else 0]).startswith(str(self.place)):
            return
        self.count += 1
        if self.count > self.at:
            place, self.place = self.place, None
            shutil.copytree(place, self.copy, symlinks=True)
            raise Killed

    @staticmethod
    def _writes(arguments):
        path, mode, flags = arguments
        written = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        return isinstance(path, str) and ((mode and set(mode) & set("wax+")) or (flags or 0) & written)


@pytest.fixture(scope="module")
def killer():
    return Killer()


class Bench:
    """One run folder, and what must be true of it after each command."""

    def __init__(self, cfg, place: Path, killer: Killer) -> None:
        self.place, self.killer = place, killer
        self.results = place / "results"
        self.path = self.results / "tiny" / "seed0"
        self.results.mkdir(parents=True)
        for name in ("a", "moved", "changed"):
            (place / name).mkdir()
        self.cfg = copy.deepcopy(cfg)
        with open_dict(self.cfg):
            self.cfg.results, self.cfg.cache_dir = str(self.results), str(place / "cache")
            self.cfg.logger = None
            self.cfg.method = {"_target_": "tiny.Tiny", "setting": 1, "recipe": {"input": {"small": 4}}}
            self.cfg.data = OmegaConf.to_container(self.cfg.data, resolve=False) | {
                "source": {"_target_": "tiny.Constant", "file": ""}, "image_size": 4, "batch_size": 4, "workers": 0,
            }  # fmt: skip
            self.cfg.budget = {"name": "quick", "max_batches": tiny.BATCHES, "max_epochs": None,
                               "pretraining_batches": None, "checkpoint_every": 2}  # fmt: skip
            self.cfg.protocol.holdout = 0.25
            self.cfg.evaluation.update({"panels_anomalous": 0, "panels_normal": 0, "gallery": 0})
            self.cfg.hydra.runtime.output_dir = str(self.path)
        self.trained = None  # what is to be kept: (data, setting, code), batches
        self.codes = {}  # attempt -> the editions of the code that had a part in it
        self.superseded = set()  # attempts that an overwriting command has put an end to

    def configuration(self, command: Command):
        """The command's, and the data as it finds them."""
        cfg = copy.deepcopy(self.cfg)
        file = self.place / ("moved" if command.data == "moved" else "a") / "number"
        for old in self.place.glob("*/number"):
            old.unlink()
        if command.data != "gone":
            file.write_text(str(command.number))
        cfg.data.source.file = str(file)
        cfg.method.setting, cfg.overwrite, cfg.resume = command.setting, command.overwrite, command.resume
        if command.wrong:
            key, _, value = command.wrong.partition("=")
            OmegaConf.update(cfg, key, OmegaConf.create(f"x: {value}").x, force_add=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def run(self, command: Command):
        """Run one command as its end says; returns its outcome, None if it was killed, and whether training began."""
        cfg = self.configuration(command)
        began = []
        tiny.CODE["now"] = command.code
        tiny.FAIL_AT["batch"] = command.at % tiny.BATCHES if command.end == "fail" else None
        tiny.ACTS.clear()
        if command.end == "term":
            tiny.ACTS[command.at % tiny.BATCHES] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        begin = training.Job.begin
        self.path.mkdir(parents=True, exist_ok=True)  # as Hydra does
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training.Job, "begin", lambda job, *rest: (began.append(1), begin(job, *rest)))
            patch.setattr(standing, "code_of", lambda targets: f"edition {command.code}")
            if command.end == "kill":
                copy = self.place / "copy"
                self.killer.copy, self.killer.at, self.killer.count = copy, command.at, 0
                self.killer.place = self.results
            try:
                outcome = jobs.execute(cfg)
            except Killed:
                outcome = None
            finally:
                self.killer.place = None
        if command.end == "kill" and copy.exists():
            shutil.rmtree(self.results)
            copy.rename(self.results)
            outcome = None
        return outcome, bool(began)

    # -- what is there ------------------------------------------------------------------------------------------------

    def content(self):
        """Every file of the folder but its log, its lock, and what a killed command had half written."""
        files = (p for p in self.path.rglob("*") if p.is_file() and p.name != "run.log" and p.name[0] != ".")
        return {str(p.relative_to(self.path)): p.read_bytes() for p in files}

    def checkpoints(self):
        """(data, setting, code), batches, attempt and oldest code of every readable checkpoint, the newest first."""
        for name in ("last.ckpt", "previous.ckpt"):
            path = self.path / "checkpoints" / name
            if path.exists():
                state = torch.load(path, weights_only=True)
                least, largest = (state["state_dict"][key] for key in ("least", "largest"))
                assert torch.equal(least[:2], largest[:2]) or state["batches_seen"] == 0, "trained on two things"
                yield tuple(largest.tolist()), state["batches_seen"], state["attempt"], float(least[2])

    def step(self, command: Command):
        before, kept = self.content(), self.trained
        codes = self.codes.get(RunFolder(self.path).metrics().get("attempt"), set())
        overwrites = command.overwrite is True or (command.overwrite == "stale" and codes != {command.code})
        outcome, began = self.run(command)
        record, after = RunFolder(self.path).metrics(), self.content()
        if began:
            self.codes.setdefault(record.get("attempt"), set()).add(command.code)
        else:
            assert after == before, "a command that did not begin changed the folder"
            if not before:
                assert outcome is None or not self.path.exists()
        found = next(self.checkpoints(), None)
        if kept and not overwrites:
            assert found is not None, "what was trained is gone"
            assert found[0][:2] == kept[0][:2], "what was trained was replaced by another training"
            assert found[1] >= kept[1], "what was trained was replaced by less"
        if outcome is not None and outcome.code == 0:
            self.check_result(command, outcome, record, found)
        if command.end == "whole" and not command.wrong and command.data != "gone" and command.overwrite is True:
            assert outcome.code == 0
        # An overwriting command that was killed as it began leaves the old checkpoint, which counts no more.
        if overwrites and found is not None and found[2] != record.get("attempt"):
            self.superseded.add(found[2])
        belongs = found is not None and found[1] > 0 and found[2] not in self.superseded
        self.trained = found[:2] if belongs else None

    def check_result(self, command: Command, outcome, record, found):
        """What is reported is this data's, of these settings, of the whole training and the whole test."""
        assert record["status"] == "finished"
        assert found[0][:2] == (command.number, command.setting)
        assert found[1] == tiny.BATCHES
        rows = [line.split(",") for line in (self.path / "scores.csv").read_text().splitlines()[1:]]
        assert [float(row[-1]) for row in rows] == [command.number] * 4
        if {found[0][2], found[3]} != {command.code}:
            assert outcome.stale or record["code"] != f"edition {command.code}"
        assert (self.results / "latest").resolve() == self.path.resolve()


@pytest.fixture(scope="module")
def hydra():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("adbench.evaluation.panels.Panels.on_test_end", lambda *_: None)  # drawing takes most of the time
        cfg = compose(
            "config", overrides=["method=autoencoder", "data=digits", "trainer=cpu", "trainer.threads=1"],
            return_hydra_config=True,
        )  # fmt: skip
        yield cfg
        HydraConfig.instance().cfg = None


def play(sequence, cfg, place, killer):
    if place.exists():
        shutil.rmtree(place)
    bench = Bench(cfg, place, killer)
    for command in sequence:
        bench.step(command)
    # Whatever happened, the right command with overwrite=true ends well.
    bench.step(Command(overwrite=True))
    bench.step(Command())


# A sequence of six commands is short enough to read: no time is spent on making it shorter.
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None,
          "phases": [Phase.explicit, Phase.generate]}  # fmt: skip


@settings(max_examples=15, derandomize=True, **COMMON)
@given(sequence=SEQUENCES)
def test_nothing_trained_is_lost_and_nothing_is_mixed_up(sequence, tmp_path_factory, killer, hydra):
    play(sequence, hydra, tmp_path_factory.getbasetemp() / "sequence", killer)


@pytest.mark.slow
@settings(max_examples=200, **COMMON)
@given(sequence=SEQUENCES)
def test_nothing_trained_is_lost_and_nothing_is_mixed_up_in_two_hundred_sequences(
    sequence, tmp_path_factory, killer, hydra
):
    play(sequence, hydra, tmp_path_factory.getbasetemp() / "sequence", killer)


# -- the cases that a person meets ------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path, killer, hydra):
    return Bench(hydra, tmp_path / "bench", killer)


SLIPS = [*(Command(wrong=wrong) for wrong in WRONG), Command(data="gone"), Command(data="changed"), Command(setting=2),
         Command(resume=False)]  # fmt: skip


@pytest.mark.parametrize(("end", "slip"), [*(("fail", slip) for slip in SLIPS), ("term", SLIPS[-4])])
def test_a_slip_between_an_interrupted_run_and_its_own_command_costs_nothing(bench, end, slip):
    bench.step(Command(end=end, at=3))
    before = bench.content()
    assert bench.trained is not None
    outcome, began = bench.run(slip)
    assert (outcome.code, began) == (1, False)
    assert bench.content() == before
    resumed = []
    original = jobs.announce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "announce", lambda job: (resumed.append(job.start), original(job)))
        bench.step(Command(data="moved"))
    # A failure in batch 3 leaves the checkpoint before batch 2, SIGTERM saves where it stops.
    assert resumed == [{"fail": 2, "term": 4}[end]]
    assert RunFolder(bench.path).metrics()["status"] == "finished"


def test_a_run_takes_the_folder_between_its_preparation_and_its_first_batch(bench, monkeypatch):
    events = []
    note = lambda name, original: lambda *arguments: (events.append(name), original(*arguments))[1]  # noqa: E731
    monkeypatch.setattr(tiny.Tiny, "prepare", note("prepare", tiny.Tiny.prepare))
    monkeypatch.setattr(tiny.Tiny, "objective", note("batch", tiny.Tiny.objective))
    monkeypatch.setattr(RunFolder, "write_metrics", note("metrics.json", RunFolder.write_metrics))
    bench.run(Command(end="fail", at=1))
    assert events == ["prepare", "metrics.json", "batch", "batch", "metrics.json"]


def test_overwriting_keeps_a_finished_run_whole_until_the_first_batch_of_the_new_one(bench):
    bench.step(Command())
    before, count = bench.content(), 0
    for at in range(200):
        outcome, began = bench.run(Command(overwrite=True, end="kill", at=at))
        if began:
            break
        assert outcome is None
        assert bench.content() == before
        count += 1
    assert began
    assert count > 0
    bench.step(Command())
    assert RunFolder(bench.path).metrics()["status"] == "finished"


def test_a_checkpoint_that_an_overwritten_run_has_left_is_not_taken_for_the_new_one(bench):
    bench.step(Command(code=2))
    for at in range(200):  # the first kill after metrics.json says that another training has begun
        _, began = bench.run(Command(overwrite=True, end="kill", at=at))
        if began and RunFolder(bench.path).metrics()["status"] == "running":
            break
    assert next(bench.checkpoints())[0][2] == 2
    assert RunFolder(bench.path).newest_checkpoint() is None
    bench.trained = None
    bench.step(Command())
    assert next(bench.checkpoints())[0] == (10, 1, 1)


def test_a_checkpoint_without_metrics_json_is_refused_and_kept(bench):
    bench.step(Command(end="fail", at=5))
    (bench.path / "metrics.json").write_text("{")
    outcome, _ = bench.run(Command())
    assert (outcome.code, outcome.status) == (1, "refused")
    assert "nothing tells what it was trained on" in outcome.reason
    assert next(bench.checkpoints())[1] == 4


def test_checkpoints_that_cannot_be_read_are_refused_and_kept(bench):
    bench.step(Command(end="fail", at=5))
    for file in (bench.path / "checkpoints").iterdir():
        file.write_bytes(b"torn")
    outcome, _ = bench.run(Command())
    assert outcome.status == "refused"
    assert "cannot be read" in outcome.reason
    assert (bench.path / "checkpoints/last.ckpt").read_bytes() == b"torn"


def test_a_refusal_names_what_differs_and_what_to_type(bench):
    bench.step(Command())
    outcome, _ = bench.run(Command(setting=2))
    assert "method.setting was 1 and is 2 now" in outcome.reason
    assert "results=DIR" in outcome.reason
    outcome, _ = bench.run(Command(data="changed"))
    assert "the same names with other contents" in outcome.reason
    assert "overwrite=true" in outcome.reason


def test_labels_that_change_make_other_data_of_the_same_images(bench, monkeypatch):
    bench.step(Command())
    original = tiny.Constant.__init__

    def relabelled(self, file):
        original(self, file)
        self.records.label[-1] = 0

    monkeypatch.setattr(tiny.Constant, "__init__", relabelled)
    outcome, _ = bench.run(Command())
    assert outcome.status == "refused"


def test_a_finished_run_of_other_code_is_answered_as_stale_and_trained_anew_on_demand(bench):
    bench.step(Command())
    outcome, began = bench.run(Command(code=2))
    assert (outcome.code, outcome.stale, began) == (0, True, False)
    bench.step(Command(code=2, overwrite="stale"))
    assert next(bench.checkpoints())[0] == (10, 1, 2)
    outcome, began = bench.run(Command(code=2, overwrite="stale"))
    assert (outcome.code, outcome.stale, began) == (0, False, False)


def test_a_run_that_went_on_with_other_code_than_it_began_with_is_stale(bench):
    bench.step(Command(end="fail", at=3))
    bench.step(Command(code=2, end="fail", at=5))
    bench.step(Command())
    for code in (1, 2):
        outcome, _ = bench.run(Command(code=code))
        assert (outcome.code, outcome.stale) == (0, True)


def test_a_number_that_is_not_finite_becomes_null_and_the_run_is_finished(bench, monkeypatch):
    monkeypatch.setattr(
        "adbench.evaluation.extra_scores.ExtraScores.results", lambda self: {"a": np.float32("nan"), "b": float("inf")}
    )
    bench.step(Command())
    record = json.loads((bench.path / "metrics.json").read_text())
    assert (record["status"], record["metrics"]["a"], record["metrics"]["b"]) == ("finished", None, None)


def test_a_word_of_whether_results_stand_is_written_whatever_fails(bench, monkeypatch):
    def broken(self, rows):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr("adbench.experiment.folder.RunFolder.write_curves", broken)
    monkeypatch.setattr("adbench.evaluation.evaluator.Evaluator.curves", lambda self: {"x": [1.0]})
    bench.step(Command())
    record = RunFolder(bench.path).metrics()
    assert (record["status"], "no such thing" in record["error"]) == ("failed", True)
    assert bench.trained[1] == tiny.BATCHES

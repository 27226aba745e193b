"""`--dry-run`: the jobs and their cost, judged as a start does, and nothing on disk changes."""

import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import metrics_of

from adbench.data.datamodule import DataModule
from adbench.data.protocols import one_class
from adbench.experiment import costs
from adbench.experiment import dry_run as dry
from adbench.methods.compiled import Compiled
from adbench.methods.knn import Knn
from adbench.run import main
from adbench.studies import reproduce

BARE = ("evaluation.panels_anomalous=0", "evaluation.panels_normal=0", "evaluation.codes=0", "trainer.threads=1")
TINY = ("method=deep_svdd", "data=mvtec/bottle", "data.batch_size=4", "data.image_size=32", *BARE)


def state(*places):
    """Every file below some folders: its path, contents and time."""
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def cost():
    return costs.Cost(
        step=2.0, timed=4, extra=10.0, rhythm=costs.Rhythm(5, "batch"), prepare=costs.Growth(linear=0.5), prepared_on=4,
        calibrate=1.0, score=costs.Growth(0.25), picture=3.0, picture_bytes=100.0, save=0.5,
        checkpoint_bytes=costs.Growth(1000.0), pretraining=0.1, problem="", parameters=7, batch_size=4,
        image=(3, 8, 8), real=True,
    )  # fmt: skip


SIZE = costs.Size(
    batches=20, batches_per_epoch=5, checkpoint_every=10, train=6, holdout=2, test_normal=3, test_anomalous=5, folds=0,
    pretraining_batches=100, panels=(4, 9),
)  # fmt: skip


# -- the arithmetic ---------------------------------------------------------------------------------------------------


def test_the_parts_of_a_job_add_up_by_hand(cost):
    assert cost.seconds(SIZE) == pytest.approx(
        # 100 x 0.1; 6 x 0.5; 20 x 2 + 4 x 10 + (20/10 + 2) x 0.5 + 1; (2 + 8) x 0.25 + (4 + 3) x 3
        {"pretraining": 10.0, "prepare": 3.0, "training": 83.0, "test": 23.5}
    )
    assert cost.disk(SIZE) == 2 * 1000 + 7 * 100
    folds = cost.seconds(SIZE._replace(folds=5, holdout=0))
    assert folds["prepare"] == pytest.approx(3.0 * (1 + 5 * 4 / 5))  # the whole, and five times four fifths
    assert folds["test"] == pytest.approx((6 + 8) * 0.25 + 21)


def test_a_quadratic_preparation_is_extrapolated_as_one_and_a_linear_one_as_linear():
    coreset = costs.work([(n, 0.01 * n + 0.002 * n * n) for n in (8, 16, 32)])
    assert coreset(200) == pytest.approx(0.01 * 200 + 0.002 * 200**2)
    assert costs.work([(16, 1.6), (32, 3.2)])(100) == pytest.approx(10.0)
    assert costs.work([(16, 2.0), (32, 3.0)])(64) == pytest.approx(6.0)  # never below a straight line through zero
    assert costs.work([(16, 0.0), (32, 4.0)])(64) == pytest.approx(16.0)
    assert costs.line([(10, 3.0), (20, 5.0)])(40) == pytest.approx(9.0)
    assert costs.line([(10, 5.0), (20, 4.0)])(40) == pytest.approx(4.0)


@pytest.mark.parametrize(("rhythm", "times"), [((5, "batch"), 4), ((2, "epoch"), 2), ((0.25, "training"), 4)])
def test_a_rhythm_in_batches_epochs_or_parts_of_the_training(rhythm, times):
    assert costs.Rhythm(*rhythm).times(20, 5) == times


def test_the_clock_spreads_its_batches_over_the_training_and_leaves_the_rhythm_out_of_the_steps():
    clock = costs.Clock(1000, 5, 100, None)
    plan = clock._chosen(0.1)
    steps = [k for k, kind in plan if kind == "step"]
    assert len(steps) == 8 * 5
    assert not [k for k in steps if k % 100 in (0, 99)]
    assert [k for k, kind in plan if kind == "event"] == [499, 500]
    assert plan[-1] == (999, "end")
    assert {k // 250 for k in steps} == {0, 1, 2, 3}
    assert all(0 <= k < 3 for k, _ in costs.Clock(3, 1, None, None)._chosen(0.1))
    assert all(0 <= k < 1 for k, _ in costs.Clock(1, 2, None, None)._chosen(20.0))


def test_what_is_compiled_is_compiled_before_it_is_timed():
    passes = SimpleNamespace(count=0)
    plain, twice = (costs.Clock(1000, 5, 100, passes, twice=again) for again in (False, True))
    for clock in (plain, twice):
        clock.done = [("warm", 0.1, 0)] * 2
        clock.on_train_batch_start(
            SimpleNamespace(should_stop=False), SimpleNamespace(device=torch.device("cpu")), 0, 0
        )
    steps = [(k, "warm") for k, kind in plain.plan if kind == "step"]
    assert twice.plan == [*plain.plan[:2], *steps, *plain.plan[2:]]


@pytest.mark.slow
def test_a_dry_run_of_a_compiled_training_compiles(tmp_path, monkeypatch):
    start = Compiled.__init__  # graphs without code: seconds in place of a minute
    monkeypatch.setattr(start, "__defaults__", (start.__defaults__[0], "aot_eager"))
    torch._dynamo.utils.counters.clear()
    places = [f"results={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    assert main(["method=autoencoder", "data=digits", "trainer=cpu", "trainer.compile=true", "--dry-run", *places]) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.fixture
def spend(monkeypatch):
    """A clock that stands still: `spend(seconds)` moves it."""
    now = [0.0]
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def move(seconds):
        now[0] += seconds

    return move


def test_a_measurement_finds_the_steps_and_what_is_done_beside_them(tmp_path, monkeypatch, spend):
    """Oracle: a method whose step takes 20 ms, with 100 ms more after every tenth batch and 3 s after the last."""
    from compositions import resolved
    from tiny import Constant, Tiny

    class Slow(Tiny):
        def rhythm(self, batches_per_epoch=None):
            return 10

        def objective(self, batch):
            spend(0.02)
            return super().objective(batch)

        def after_batch(self):
            spend(0.1 * (self.batches_seen % 10 == 0) + 2.9 * (self.batches_seen == 200))

        def prepare(self, batches):
            spend(sum(len(batch.image) for batch in batches) * 0.5)

        def score(self, image):
            spend(0.25 * len(image))
            return super().score(image)

    (tmp_path / "number").write_text("3")
    cfg = resolved("method=autoencoder", "data=digits", "budget=quick", *BARE)
    monkeypatch.setattr(costs, "build_method", lambda cfg: Slow(1))
    datamodule = DataModule(
        Constant(str(tmp_path / "number")), lambda r, rng, s: one_class(r, rng, s, holdout=0.3), image_size=4,
        batch_size=2, eval_batch_size=4, workers=0, seed=0, cache_dir=tmp_path / "cache", supervision="unsupervised",
    )  # fmt: skip
    costs.set_up(datamodule, True)
    found = costs.measure(cfg, datamodule, 200, True, 1)
    assert found.step == pytest.approx(0.02)
    assert found.extra == pytest.approx(0.1)
    assert found.calibrate == pytest.approx(3.0)
    assert found.prepare(100) == pytest.approx(50.0)
    assert found.score(100) == pytest.approx(0.25)
    assert found.rhythm == costs.Rhythm(10, "batch")
    assert found.parameters == 1 and found.batch_size == 2 and found.timed >= 8
    assert not (tmp_path / "cache").exists()


def test_a_preparation_that_is_slow_from_the_start_is_still_seen_to_grow_with_the_square(tmp_path, spend):
    """Oracle: 1 s a row and 0.2 s a pair of rows."""
    from tiny import Constant, Tiny

    class Pairs(Tiny):
        def prepare(self, batches):
            n = sum(len(batch.image) for batch in batches)
            spend(1.0 * n + 0.2 * n * n)

    class Many(Constant):
        def __init__(self, file):
            super().__init__(file)
            self.records = self.records.of_rows(np.zeros(400, int))  # 400 normal training rows
            self.array = np.zeros((400, 4, 4, 1), np.uint8)

    (tmp_path / "number").write_text("3")
    datamodule = DataModule(
        Many(str(tmp_path / "number")), lambda r, rng, s: one_class(r, rng, s, holdout=0), image_size=4, batch_size=2,
        eval_batch_size=8, workers=0, seed=0, cache_dir=tmp_path / "cache", supervision="unsupervised",
    )  # fmt: skip
    datamodule.source.good_alone = True  # there is nothing to test
    costs.set_up(datamodule, True)
    _, growth, timed_on, _, _ = costs._prepared(Pairs(1), datamodule, torch.device("cpu"))
    assert timed_on == 32
    assert growth(400) == pytest.approx(400 + 0.2 * 400**2)


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_start_would_do_and_changes_nothing(run, tmp_path, capsys, data_root):
    code, folder = run(*TINY, "seed=0")
    assert code == 0
    run(*TINY, "seed=1")
    interrupted = folder.parent / folder.name.replace("seed0", "seed1")
    record = metrics_of(interrupted)
    (interrupted / "metrics.json").write_text(json.dumps(record | {"status": "interrupted"}))
    config = folder.parent / folder.name.replace("seed0", "seed2")
    run(*TINY, "seed=2")
    (config / "metrics.json").write_text(json.dumps(metrics_of(config) | {"config_hash": "0123456789ab"}))
    yaml = config / ".hydra/config.yaml"
    yaml.write_text(yaml.read_text().replace("nu: 0.1", "nu: 0.2"))
    before = state(tmp_path, data_root, tmp_path.parent / "cache")
    capsys.readouterr()
    code, _ = run("-m", *TINY, "seed=0,1,2,3", "--dry-run")
    out = capsys.readouterr().out
    assert code == 1  # one of them would be refused
    assert out.startswith("4 jobs: 1 finished, 1 resume, 1 refused, 1 start")
    status = dict(re.findall(r"^  \S*(seed\d)\S*\s+(\w+)", out, re.M))
    assert status == {"seed0": "finished", "seed1": "resume", "seed2": "refused", "seed3": "start"}
    assert "made with other settings" in out
    assert re.search(
        r"measured: deep_svdd on object images of 32 px \(rows of mvtec/bottle\): \S+ s a training batch", out
    )
    assert "time: " in out and "disk: " in out and "Nothing was written" in out
    assert state(tmp_path, data_root, tmp_path.parent / "cache") == before


def test_a_command_without_a_folder_leaves_none(run, tmp_path, capsys):
    code, _ = run("method=pca", "data=digits", *BARE, "results=" + str(tmp_path / "other"),
                  "cache_dir=" + str(tmp_path / "empty"), "--dry-run")  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "1 job: 1 start" in out and "no training steps" in out and "to prepare" in out
    assert "image cache" in out
    assert not (tmp_path / "other").exists() and not (tmp_path / "empty").exists()


def test_data_that_are_not_in_reach_are_stood_in_for_and_said(run, tmp_path, capsys, measured):
    code, _ = run(*TINY, "data_root=/nowhere", "--dry-run")
    out = capsys.readouterr().out
    assert code == 1
    assert "no data" in out and "noise, the data are not in reach" in out and "/nowhere/mvtec/bottle" in out
    assert "time: " in out


@pytest.fixture
def measured(cost, monkeypatch):
    """The measurements that are asked for; each is `cost`."""
    asked = []
    monkeypatch.setattr(costs, "measure", lambda *a, **k: asked.append(a) or cost)
    return asked


def test_jobs_of_one_size_are_measured_once(run, capsys, measured):
    code, _ = run("-m", "method=pca", "data=mvtec/bottle,digits", "seed=0,1", *BARE, "--dry-run")
    assert code == 0
    assert len(measured) == 2
    assert capsys.readouterr().out.startswith("4 jobs: 4 start")


def test_a_job_that_does_not_compose_is_refused_and_the_others_are_not(run, capsys, measured):
    code, _ = run("-m", "method=pca", "data=mvtec/bottle,odds/cardio", *BARE, "--dry-run")
    out = capsys.readouterr().out
    assert code == 1
    assert out.startswith("2 jobs: 1 start, 1 refused")
    assert "takes data of kind" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cfg", "job"), "--dry-run and --cfg"),
        (("--info", "all"), "--dry-run and --info"),
        (("method=nosuch",), "method=nosuch does not exist"),
        (("method.latnt=3",), "there is no method.latnt"),
        (("-m", "hydra/sweeper=tuning", "method=autoencoder", "method.latent=choice(8,16)"), "a search"),
    ],
)
def test_what_does_not_go_with_a_dry_run_is_one_clear_line(run, capsys, words, said):
    code, _ = run("data=digits", *words, "--dry-run", smoke=False)
    assert code == 1
    assert said in capsys.readouterr().err


def test_a_method_whose_first_batches_fail_says_so_before_a_start_does(run, capsys, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(costs, "measure", broken)
    assert run("method=pca", "data=digits", *BARE, "--dry-run")[0] == 1
    assert "refused   its first batches fail: RuntimeError: out of memory" in capsys.readouterr().out


def test_a_pretraining_that_a_start_would_refuse_is_refused(run, capsys):
    assert run("method=pca", "data=digits", "pretraining=imagenet", *BARE, "--dry-run")[0] == 1
    out = capsys.readouterr().out
    assert (
        "1 job: 1 refused" in out and "needs an encoder to fill, and PCAResidual has none; use pretraining=none" in out
    )


def test_weights_that_a_start_would_download_are_said_and_what_is_measured_warns_of_nothing(run, capfd, monkeypatch):
    words = ["method=knn", "method.backbone=resnet18", "data=digits", "data.image_size=64", *BARE]
    prepare = Knn.prepare
    warn = logging.getLogger("adbench").warning
    monkeypatch.setattr(Knn, "prepare", lambda *rest: (warn("the features are random"), prepare(*rest)))
    assert run(*words, "pretraining=imagenet", "--dry-run")[0] == 0
    out, err = capfd.readouterr()
    assert "1 job: 1 start" in out and "(no download is tried here): the weights timm/resnet18" in out
    assert "the features are random" not in out + err


def test_a_tree_of_ones_own_is_known(run, tmp_path, capsys, measured):
    tree = tmp_path / "tree"
    (tree / "method").mkdir(parents=True)
    (tree / "method" / "mine.yaml").write_text("defaults: [/method/pca@_here_, _self_]\n")
    code, _ = run("--config-dir", str(tree), "method=mine", "data=digits", *BARE, "--dry-run")
    assert code == 0
    assert "measured: mine on small images" in capsys.readouterr().out


def test_a_pretraining_is_paid_for_once(run, measured):
    words = ["method=autoencoder", "data=digits", "pretraining=autoencoder", "budget=quick", "budget.max_batches=7,9"]
    plan = dry.Plan(say=lambda text: None)
    jobs = plan.look([*words, "seed=0,1", "results=/nowhere/results"], multirun=True)
    assert [job.size.batches for job in jobs] == [7, 7, 9, 9]
    paid = [plan.seconds(job)["pretraining"] for job in jobs]
    assert jobs[0].size.pretraining_batches > 0
    assert paid[0] == paid[1] == pytest.approx(0.1 * jobs[0].size.pretraining_batches)
    assert paid[2:] == [0, 0]
    assert len(measured) == 1


def test_a_job_that_resumes_costs_what_is_left(cost):
    plan = dry.Plan()
    plan.costs["key"], plan.reading["key"] = cost, 0.0
    parts = plan.seconds(dry.Planned("job", status="resume", done=15, size=SIZE, cost="key"))
    assert parts["pretraining"] == parts["prepare"] == 0
    assert parts["training"] == pytest.approx(5 * 2 + 1 * 10 + 2 * 0.5 + 1)


def test_the_dry_run_of_a_papers_tables_counts_shared_runs_once(run, tmp_path, capfd, measured):
    code = reproduce.main(["cbigan", "--dry-run", "--runs", "2", "trainer=smoke", *BARE])
    out = capfd.readouterr().out
    assert code == 0
    assert "all tables: 2 runs" in out
    assert out.count("by then: it is an earlier job too") == 2
    assert not list(tmp_path.rglob("metrics.json"))


def test_rows_that_stand_in_are_as_many_as_published():
    from compositions import resolved

    for words, wanted in (
        (("method=igd", "data=mvtec/bottle"), [242, 0, 31, 84]),
        (("method=esad", "data=camelyon16"), [7612, 200, 4000, 817]),
        (("method=esad", "data=odds/cardio"), [993, 106, 662, 70]),
    ):
        records = dry.StandIn(resolved(*words)).records
        counts = [
            int(((records.split == split) & (records.label == label)).sum())
            for split, label in (("train", 0), ("train", 1), ("test", 0), ("test", 1))
        ]
        assert counts == wanted


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.25 s"), (90, "1.5 min"), (7200, "2 h"), (86400, "24 h"), (259200, "3 days")]
)
def test_a_time_is_said_in_the_unit_that_suits_it(seconds, words):
    assert dry.duration(seconds) == words


def test_a_folder_that_a_process_writes_is_looked_at_without_a_trace(tmp_path):
    from adbench.experiment.folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    assert not folder.owned()
    with folder:
        assert RunFolder(folder.path).owned()
    stamp = (folder.path / ".lock").stat().st_mtime_ns
    assert not folder.owned()
    assert (folder.path / ".lock").stat().st_mtime_ns == stamp


def test_repeated_rows_are_those_of_the_sample():
    rows = np.arange(6).reshape(3, 2)
    assert costs.Repeated(rows, 100)[np.array([0, 4, 99])].tolist() == [[0, 1], [2, 3], [0, 1]]


def test_operations_are_counted_forward_and_backward_by_hand():
    """A product of (3, 4) and (4, 5) has 3 x 4 x 5 multiplications and additions; its gradients have as many each."""
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with costs._Operations() as counter:
        (a @ b).sum().backward()
    assert counter.total == 3 * 2 * 3 * 4 * 5
    with costs._Operations() as counter:  # a penalty on a gradient, which torch's own counter cannot follow
        (gradient,) = torch.autograd.grad((a @ b).square().sum(), a, create_graph=True)
        gradient.square().sum().backward()
    assert counter.total > 4 * 2 * 3 * 4 * 5

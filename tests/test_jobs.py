"""The run command end to end, on small data: what is written, what is repeated, what is refused."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import metrics_of

from adbench.experiment.build import load_method

SMALL = ("method=cbigan/small", "data=mvtec/bottle", "data.batch_size=4")


def scores(folder: Path) -> list[float]:
    with (folder / "scores.csv").open() as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


def test_a_run_leaves_the_folder_that_the_readme_describes(run):
    code, folder = run(*SMALL)
    assert code == 0
    for name in ("metrics.json", "scores.csv", "calibration.csv", "split.json", "run.log", ".hydra/config.yaml",
                 "checkpoints/last.ckpt", "figures/panels.png", "figures/roc.png"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    record = metrics_of(folder)
    assert record["status"] == "finished"
    assert record["counts"] == record["counts"] | {"train": 5, "holdout": 3, "test_normal": 3, "test_anomalous": 3}
    method = load_method(folder)  # whose weight averages are no further parameters
    networks = [p for network in (method.critic, method.encoder, method.generator) for p in network.parameters()]
    assert record["counts"]["parameters"] == sum(p.numel() for p in networks)
    for key in ("image_auroc", "image_ap", "image_f1_max", "image_balanced_accuracy_max", "image_balanced_accuracy",
                "pixel_auroc", "pixel_auroc_anomalous_images", "pixel_ap", "pixel_pro"):  # fmt: skip
        assert 0 <= record["metrics"][key] <= 1, key
    roles = [row["role"] for row in json.loads((folder / "split.json").read_text())]
    assert {role: roles.count(role) for role in set(roles)} == {"train": 5, "holdout": 3, "test": 6}
    leftovers = [p for p in folder.rglob(".*") if p.name not in (".hydra", ".lock")]
    assert leftovers == []


def test_the_folder_is_named_by_method_data_protocol_pretraining_and_seed(run):
    _, folder = run(*SMALL, "seed=3")
    assert folder.parts[-6:-1] == ("cbigan-small", "mvtec", "bottle", "one_class", "none")
    assert folder.name.startswith("seed3-")  # a smoke run never counts as the real one


def test_the_same_command_gives_the_same_bytes_with_and_without_workers_and_wherever_images_are_kept(run):
    wanted = None
    for options in ((), ("data.cache=none", "data.workers=2"), ("data.cache=memory",), ("data.workers=2",)):
        _, folder = run(*SMALL, "overwrite=true", *options)
        found = (folder / "scores.csv").read_bytes()
        assert wanted in (None, found)
        wanted = found


def test_seed_zero_is_a_seed_and_another_seed_is_another_run(run):
    _, zero = run(*SMALL, "seed=0")
    first = scores(zero)
    _, again = run(*SMALL, "seed=0", "overwrite=true")
    _, one = run(*SMALL, "seed=1")
    assert scores(again) == first
    assert scores(one) != first


def test_another_evaluation_batch_size_changes_no_score(run):
    _, folder = run(*SMALL)
    wanted = scores(folder)
    _, folder = run(*SMALL, "overwrite=true", "data.eval_batch_size=1")
    assert scores(folder) == pytest.approx(wanted, rel=1e-5)


def test_a_finished_run_is_recognised_and_not_repeated(run):
    _, folder = run(*SMALL)
    stamp = (folder / "checkpoints/last.ckpt").stat().st_mtime_ns
    code, _ = run(*SMALL)
    assert code == 0
    assert (folder / "checkpoints/last.ckpt").stat().st_mtime_ns == stamp
    run(*SMALL, "overwrite=true")
    assert (folder / "checkpoints/last.ckpt").stat().st_mtime_ns != stamp


def test_a_run_of_a_preset_that_has_changed_since_is_refused_with_the_value_that_differs(run, capfd):
    _, folder = run(*SMALL)
    config = folder / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("width: 8", "width: 7"))
    assert "width: 7" in config.read_text()
    record = metrics_of(folder)
    (folder / "metrics.json").write_text(json.dumps(record | {"config_hash": "0123456789ab"}))
    before = contents(folder)
    for sweep in ((), ("-m",)):
        capfd.readouterr()
        code, _ = run(*sweep, *SMALL)
        assert code == 1
        assert "method.width was 7 and is 8 now" in "".join(capfd.readouterr())
        assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder but its log and its lock."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("run.log", ".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_loss_that_becomes_nan_fails_the_run_with_its_name_and_step(run, monkeypatch):
    from adbench.methods import cbigan

    class Broken(cbigan.CBiGAN):
        def phases(self):
            phases = super().phases()
            broken = lambda batch: {name: term * float("nan") for name, term in phases[0].objective(batch).items()}  # noqa: E731
            return [type(phases[0])(phases[0].name, phases[0].modules, broken), *phases[1:]]

    monkeypatch.setattr(cbigan, "CBiGAN", Broken)
    code, folder = run(*SMALL)
    record = metrics_of(folder)
    assert code == 1
    assert record["status"] == "failed"
    assert "became nan at training batch 0" in record["error"]
    assert not (folder / "scores.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data=mvtec/cable",), "cable"),
        (("data=fashion_mnist",), "data.download=true"),
        (("data=digits", "data.normal_class=11"), "11"),
        (("data=folder", "data.name=mine"), "give data.root=DIR (the folder of your images) on the command line"),
        (("trainer.precision=bf17",), "bf17"),
        (("trainer.accelerator=nowhere",), "Type trainer=cpu"),
        (("data.workers=many",), "data.workers must be a whole number of at least 0 or auto"),
        (("protocol=contaminated", "protocol.ratio=nan"), "protocol.ratio"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_message_and_leaves_nothing(run, arguments, message, capfd, tmp_path):
    _, before = run("method=brightness", "data=digits")
    capfd.readouterr()
    code, latest = run("method=cbigan/small", *arguments)
    out = capfd.readouterr().out
    assert code == 1
    assert message in out
    assert "Traceback" not in out
    assert latest == before, "results/latest moved"
    assert [p.name for p in (tmp_path / "results").iterdir() if p.name != "latest"] == ["brightness"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("overwrite=maybe", "overwrite must be true or false (or stale), as in overwrite=false; got 'maybe'"),
        ("method.average_corrected=maybe", "method.average_corrected must be true or false"),
        ("method.lambda_=strong", "method.lambda_ must be a number, as in method.lambda_=0.1; got 'strong'"),
        ("seed=one", "seed must be a whole number from 0"),
        ("seed=-1", "seed must be a whole number from 0"),
        ("seed=0.5", "seed must be a whole number from 0"),
        ("budget.max_batches=ten", "budget.max_batches must be a whole number"),
        ("budget.max_batches=-1", "budget.max_batches must be a number of at least 0"),
        ("trainer.deterministic=maybe", "trainer.deterministic must be true or false"),
        (
            "method.optimizers.critic.betas=0.5",
            "must be a list of 2, each a number, as in method.optimizers.critic.betas=[0.5,0.9]; got",
        ),
    ],
)
def test_a_word_for_a_switch_or_a_number_is_refused_and_touches_nothing(run, argument, message, capfd):
    _, folder = run(*SMALL)
    before = (folder / "metrics.json").read_bytes()
    capfd.readouterr()
    code, _ = run(*SMALL, argument)
    assert code == 1
    assert message in capfd.readouterr().out
    assert (folder / "metrics.json").read_bytes() == before
    assert len(list(folder.parent.glob("*/metrics.json"))) == 1


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("+trainer.fast_dev_run=true", "trainer=smoke"),
        ("+trainer.limit_train_batches=2", "trainer=smoke"),
        ("+trainer.limit_test_batches=0.5", "trainer=smoke"),
        ("+trainer.limit_test_batches=1", "trainer=smoke"),  # one batch; 1.0 is all of them
        ("+trainer.overfit_batches=1", "trainer=smoke"),
        ("+trainer.max_steps=3", "budget.max_batches"),
        ("+trainer.max_time=00:00:01:00", "trainer=smoke"),
        ("+trainer.max_epochs=3", "budget.max_epochs=N"),
        ("+trainer.logger=false", "logger=csv"),
    ],
)
def test_an_option_that_cuts_a_run_short_is_refused_and_names_what_to_type(run, option, instead, capfd):
    for sweep in ((), ("-m",)):
        code, folder = run(*sweep, "method=pca", "data=digits", option)
        assert code == 1
        assert instead in "".join(capfd.readouterr())
        assert not (folder / "metrics.json").exists()


def test_an_option_that_cuts_nothing_is_taken(run):
    options = ("+trainer.limit_test_batches=1.0", "+trainer.fast_dev_run=false")
    assert run("method=pca", "data=digits", *options)[0] == 0


def test_the_trainer_and_the_threshold_are_settings_too_and_the_device_is_none():
    from hydra import compose, initialize_config_dir

    from adbench.experiment.groups import conf_dir
    from adbench.experiment.identity import config_hash

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        name = lambda *options: config_hash(compose("config", overrides=list(options)))  # noqa: E731
        plain = name()
        for option in ("+trainer.accumulate_grad_batches=4", "+trainer.gradient_clip_val=1", "evaluation.quantile=0.9"):
            assert name(option) != plain, option
        for option in ("trainer.threads=1", "trainer=gpu", "trainer.devices=2", "+trainer.benchmark=true"):
            assert name(option) == plain, option


def test_two_names_that_make_one_folder_are_not_taken_for_each_other(run, tmp_path, capfd):
    for name in ("x y", "x_y"):
        np.savez(
            tmp_path / f"{name}.npz", x_train=np.full((12, 8, 8), 9, np.uint8), y_train=np.zeros(12),
            x_test=np.full((4, 8, 8), 9, np.uint8), y_test=np.arange(4) % 2,
        )  # fmt: skip
    command = ("method=brightness", "data=npz")
    code, folder = run(*command, "data.name='x y'", f"data.file='{tmp_path / 'x y.npz'}'")
    assert code == 0
    before = contents(folder)
    capfd.readouterr()
    code, _ = run(*command, "data.name=x_y", f"data.file={tmp_path / 'x_y.npz'}")
    assert code == 1
    assert "data.name was 'x y' and is 'x_y' now" in capfd.readouterr().out
    assert contents(folder) == before
    assert metrics_of(folder)["data_id"] == "x y/0"


def test_latest_is_a_link_to_the_last_run_and_a_file_where_links_cannot_be(run, tmp_path, monkeypatch):
    from adbench.experiment.folder import RunFolder

    _, folder = run("method=brightness", "data=digits")
    latest = tmp_path / "results" / "latest"
    assert latest.is_symlink()
    assert not latest.readlink().is_absolute()  # the results may be moved
    assert RunFolder(latest).path == folder

    def no_links(*arguments, **options):
        raise OSError("links cannot be had here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    _, other = run("method=brightness", "data=digits", "seed=1")
    assert latest.is_file()
    assert RunFolder(latest).path == other != folder


def test_an_interrupted_run_says_how_far_it_came_when_it_is_to_be_used(run, monkeypatch, capfd):
    from adbench import predict
    from adbench.methods.cbigan import CBiGAN

    original = CBiGAN.on_train_batch_end

    def hooked(self, *arguments):
        original(self, *arguments)
        if self.batches_seen == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CBiGAN, "on_train_batch_end", hooked)
    code, folder = run(*SMALL, "trainer=cpu", "budget.max_batches=9", "budget.checkpoint_every=2", smoke=False)
    assert code == 143
    capfd.readouterr()
    assert predict.main([str(folder), str(folder), "--out", str(folder / "out")]) == 1
    assert "interrupted at batch 4 of 9" in "".join(capfd.readouterr())


@pytest.mark.parametrize("method", ["kde", "esad", "deep_sad"])
def test_numbers_too_large_for_a_score_end_in_a_status(run, tmp_path, method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    x[:64:3] *= 1e30
    np.savez(tmp_path / "huge.npz", X=x, y=np.arange(80) % 5 == 4)
    table = ("data=tabular", "data.name=huge", "data.features=6", f"data.file={tmp_path / 'huge.npz'}")
    code, _ = run(f"method={method}", *table, "protocol.holdout=0.3")
    records = [metrics_of(path.parent) for path in (tmp_path / "results").rglob("metrics.json")]
    assert [record["status"] for record in records] in ([], ["failed" if code else "finished"])


@pytest.mark.parametrize("method", ["pca", "ocsvm"])
def test_a_method_without_training_leaves_the_budget_of_a_sweep_to_the_others(run, method):
    code, folder = run(f"method={method}", "data=digits", "budget.max_batches=3", smoke=False)
    assert code == 0
    assert metrics_of(folder)["budget"]["batches"] == 0


def test_a_failing_job_does_not_take_the_others_of_a_sweep_down(run, tmp_path):
    code, _ = run("-m", "method=brightness", "data=mvtec/cable,mvtec/bottle")
    assert code == 1
    statuses = {p.parts[-5]: metrics_of(p.parent)["status"] for p in (tmp_path / "results").rglob("metrics.json")}
    assert statuses == {"bottle": "finished"}


# -- interruptions: real processes, real signals ------------------------------------------------------------------


def command(tmp_path, data_root, *arguments):
    environment = os.environ | {
        "ADBENCH_RESULTS": str(tmp_path / "results"), "ADBENCH_DATA": str(data_root),
        "ADBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    line = [sys.executable, "-m", "adbench.run", *SMALL, "trainer=cpu", "trainer.threads=1", "budget.max_batches=60",
            "budget.checkpoint_every=3", *arguments]  # fmt: skip
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_checkpoint(process, tmp_path, minimum):
    import torch

    for _ in range(3000):
        assert process.poll() is None, process.communicate()[0]
        for path in (tmp_path / "results").rglob("last.ckpt"):
            try:
                if torch.load(path, weights_only=True)["batches_seen"] >= minimum:
                    return path.parent.parent
            except (RuntimeError, EOFError, OSError):
                pytest.fail("a torn checkpoint was seen")
        time.sleep(0.05)
    return pytest.fail("no checkpoint was written")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_root):
    tmp_path = tmp_path_factory.mktemp("whole")
    process = command(tmp_path, data_root)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return next((tmp_path / "results").rglob("scores.csv")).read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_and_ends_with_the_scores_of_one_that_ran_through(
    tmp_path, data_root, uninterrupted, workers
):
    process = command(tmp_path, data_root, f"data.workers={workers}")
    folder = wait_for_checkpoint(process, tmp_path, 9)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert metrics_of(folder)["status"] == "running"
    resumed = command(tmp_path, data_root, f"data.workers={workers}")
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, out
    assert "resuming at batch" in out
    assert (folder / "scores.csv").read_bytes() == uninterrupted


def test_sigterm_saves_marks_the_run_interrupted_and_exits_143(tmp_path, data_root, uninterrupted):
    process = command(tmp_path, data_root)
    folder = wait_for_checkpoint(process, tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 143, out
    assert metrics_of(folder)["status"] == "interrupted"
    resumed = command(tmp_path, data_root)
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, out
    assert (folder / "scores.csv").read_bytes() == uninterrupted


@pytest.mark.parametrize("method", ["pca", "deep_svdd"])
def test_the_time_of_the_preparation_is_recorded(run, method):
    _, folder = run(f"method={method}", "data=digits")
    time_ = metrics_of(folder)["time"]
    assert 0 <= time_["prepare_s"] <= time_["total_s"]


def test_a_resumed_run_that_does_not_prepare_again_has_no_time_for_it(run):
    _, folder = run("method=deep_svdd", "data=digits")
    record = metrics_of(folder)
    (folder / "metrics.json").write_text(json.dumps(record | {"status": "interrupted"}))
    run("method=deep_svdd", "data=digits")
    assert metrics_of(folder)["status"] == "finished"
    assert "prepare_s" not in metrics_of(folder)["time"]

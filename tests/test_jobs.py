"""The run command end to end, on small data: what is written, what is repeated, what is refused."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import metrics_of

from adbench.runs import load_method

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


def test_the_same_command_gives_the_same_bytes_with_and_without_workers(run):
    wanted = None
    for options in ((), ("overwrite=true",), ("overwrite=true", "data.workers=2")):
        _, folder = run(*SMALL, *options)
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


def test_a_finished_run_of_a_preset_that_has_changed_since_is_said_to_be_one(run, capfd):
    _, folder = run(*SMALL)
    capfd.readouterr()
    run(*SMALL)
    assert "other settings" not in "".join(capfd.readouterr())
    record = metrics_of(folder)
    (folder / "metrics.json").write_text(json.dumps(record | {"config_hash": "0123456789ab"}))
    for sweep in ((), ("-m",)):
        code, _ = run(*sweep, *SMALL)
        assert code == 0
        assert "made with other settings" in "".join(capfd.readouterr())


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
        (("data=folder", "data.name=mine"), "give data.root=... on the command line"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_clear_message_before_training(run, arguments, message, capfd):
    code, folder = run("method=cbigan/small", *arguments)
    out = capfd.readouterr().out
    assert code == 1
    assert message in out
    assert "Traceback" not in out
    assert metrics_of(folder)["status"] == "failed"
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("overwrite=maybe", "overwrite must be true or false, as in overwrite=false; got 'maybe'"),
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


@pytest.mark.parametrize("method", ["pca", "ocsvm"])
def test_a_method_without_training_leaves_the_budget_of_a_sweep_to_the_others(run, method):
    code, folder = run(f"method={method}", "data=digits", "budget.max_batches=3", smoke=False)
    assert code == 0
    assert metrics_of(folder)["budget"]["batches"] == 0


def test_a_failing_job_does_not_take_the_others_of_a_sweep_down(run, tmp_path):
    code, _ = run("-m", "method=brightness", "data=mvtec/cable,mvtec/bottle")
    assert code == 1
    statuses = {p.parts[-5]: metrics_of(p.parent)["status"] for p in (tmp_path / "results").rglob("metrics.json")}
    assert statuses == {"cable": "failed", "bottle": "finished"}


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

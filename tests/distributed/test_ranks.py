"""One run on two devices: two CPU processes end where one with the joined batch ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import pytorch_lightning
import torch
from conftest import metrics_of

from adbench.experiment.build import build_method
from adbench.experiment.folder import RunFolder

pytestmark = pytest.mark.distributed

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
FEW = ("data.batch_size=4", "budget.max_batches=6", "budget.checkpoint_every=3", "trainer.threads=1")


def parameters(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def scores(folder):
    with (folder / "scores.csv").open() as file:
        return [(int(row["index"]), float(row["score"])) for row in csv.DictReader(file)]


@pytest.fixture
def one_and_two(run, tmp_path):
    """`one_and_two("method=...")`: the folders of the same run on one device and on two."""

    def call(*arguments):
        folders = []
        for name, trainer in (("one", ("trainer=cpu",)), ("two", TWO)):
            results = f"results={tmp_path / name}"
            code, _ = run("data=mvtec/bottle", *FEW, *arguments, *trainer, results, smoke=False)
            folder = next((tmp_path / name).rglob("metrics.json")).parent
            assert code == 0, (folder / "run.log").read_text()
            folders.append(folder)
        return folders

    return call


# Adam's first steps are its rate times the sign of the gradient, whatever its size, so its epsilon is set above what
# rounding makes of a gradient that is zero. CBiGAN's absolute errors have gradients that jump at zero: plain steps.
def adam(player):
    return (f"+method.optimizers.{player}.eps=1e-3",)


def plain(player, rate):
    options = f"method.optimizers.{player}"
    return (f"{options}._target_=torch.optim.SGD", f"{options}.lr={rate}", f"~{options}.betas", f"~{options}.fused")


@pytest.mark.parametrize(
    "method",
    [
        ("method=cbigan/small", "method.width=4", *plain("critic", 1e-4), *plain("encoder_generator", 1e-6)),
        ("method=egbad/small", "method.width=4", *adam("critic"), *adam("encoder_generator")),
        ("method=autoencoder", "method.width=4", "method.norm=false", "+method.optimizer.eps=1e-3"),
    ],
    ids=["cbigan", "egbad", "autoencoder"],
)
def test_two_processes_end_with_the_parameters_scores_and_metrics_of_one(one_and_two, method):
    one, two = one_and_two(*method, "budget.max_batches=3", "trainer.precision=32-true")  # bfloat16 rounds coarser
    found, wanted = parameters(two), parameters(one)
    pytorch_lightning.seed_everything(0, verbose=False)
    untrained = build_method(RunFolder(one).config()).state_dict()
    assert max(float((untrained[name] - value).abs().max()) for name, value in wanted.items() if value.ndim > 1) > 1e-4
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert [row for row, _ in scores(two)] == [row for row, _ in scores(one)]
    assert [score for _, score in scores(two)] == pytest.approx([score for _, score in scores(one)], rel=1e-4)
    records = metrics_of(one), metrics_of(two)
    assert records[1]["hardware"]["ranks"] == 2
    assert records[1]["metrics"] == pytest.approx(records[0]["metrics"], abs=1e-6)
    assert records[1]["threshold"]["value"] == pytest.approx(records[0]["threshold"]["value"], rel=1e-4)
    assert (two / "split.json").read_bytes() == (one / "split.json").read_bytes()


def test_no_row_is_scored_twice_or_dropped(one_and_two):
    _, two = one_and_two("method=autoencoder", "method.width=4", "data.eval_batch_size=2", "budget.max_batches=1")
    test_rows = [row["row"] for row in json.loads((two / "split.json").read_text()) if row["role"] == "test"]
    assert [row for row, _ in scores(two)] == sorted(test_rows)


@pytest.mark.parametrize(
    "method",
    ["igd/small", "pwae/small", "ssae/small", "esad/small", "deep_sad"],
)
def test_the_other_methods_train_on_two_devices_and_leave_whole_folders(run, method):
    code, folder = run(f"method={method}", "data=mvtec/bottle", "data.batch_size=4", *TWO, "budget=smoke", smoke=False)
    assert code == 0, (folder / "run.log").read_text()
    record = metrics_of(folder)
    assert record["status"] == "finished"
    assert len(scores(folder)) == record["counts"]["test_normal"] + record["counts"]["test_anomalous"]
    assert (folder / "figures/panels.png").exists()


@pytest.mark.parametrize("method", ["patchcore", "padim", "knn"])
def test_the_reference_detectors_have_the_same_bank_and_scores_on_two_devices(one_and_two, method):
    # Every rank looks at all training rows, so the bank is that of the joined data on each of them.
    backbone = ("method.backbone=resnet18.tv_in1k", "data.image_size=32", "budget.max_batches=0")
    one, two = one_and_two(f"method={method}/small", *backbone)
    found, wanted = parameters(two), parameters(one)
    assert all(len(value) for value in wanted.values() if value.ndim)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert [row for row, _ in scores(two)] == [row for row, _ in scores(one)]
    assert [score for _, score in scores(two)] == pytest.approx([score for _, score in scores(one)], rel=1e-4)


def test_p_wae_gathers_its_coupled_losses_over_the_ranks(one_and_two):
    # Batch norm sees each device's rows alone, so the trunk differs; the codes' first gradients would differ by far
    # more if sorting and HSIC saw half a batch.
    one, two = one_and_two("method=pwae/small", "budget.max_batches=1")
    wanted = [score for _, score in scores(one)]
    assert [score for _, score in scores(two)] == pytest.approx(wanted, rel=0.2)


def test_a_batch_that_the_devices_cannot_share_is_refused(run, capfd):
    code, folder = run("method=autoencoder", "data=mvtec/bottle", "data.batch_size=3", *TWO, smoke=False)
    assert code == 1
    assert "must be a multiple of the 2 devices" in capfd.readouterr().out
    assert not (folder / "checkpoints").exists()


def test_a_rank_that_fails_before_the_training_fails_the_run_and_is_not_waited_for(run, monkeypatch, capfd, tmp_path):
    from adbench.experiment import ranks

    start = ranks._start
    monkeypatch.setattr(ranks, "_start", lambda folder, *rest: start(type(folder)(folder.path / "nowhere"), *rest))
    code, _ = run("method=autoencoder", "method.width=4", "data=mvtec/bottle", *FEW, *TWO, smoke=False)
    out = capfd.readouterr().out
    assert code == 1
    assert "rank1.log" in out
    assert "give the folder of a run" in out
    assert list((tmp_path / "results").rglob("rank1.log"))  # which the message names
    assert not list((tmp_path / "results").rglob("metrics.json"))
    assert "LOCAL_RANK" not in os.environ


def test_a_stopped_run_on_two_devices_resumes_and_ends_like_one_that_ran_through(tmp_path, data_root, one_and_two):
    length = ("budget.max_batches=200", "budget.checkpoint_every=5")
    method = ("method=autoencoder", "method.width=4", "method.norm=false", *length)
    one, _ = one_and_two(*method)
    environment = os.environ | {"ADBENCH_RESULTS": str(tmp_path / "stopped"), "ADBENCH_DATA": str(data_root)}
    line = [sys.executable, "-m", "adbench.run", "data=mvtec/bottle", *FEW, *method, *TWO]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list((tmp_path / "stopped").rglob("last.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 143, out
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at batch" in done.stdout
    folder = next((tmp_path / "stopped").rglob("scores.csv")).parent
    assert [s for _, s in scores(folder)] == pytest.approx([s for _, s in scores(one)], rel=1e-3)

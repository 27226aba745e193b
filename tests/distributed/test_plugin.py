"""An example of a plug-in, built and installed where only these commands see it, in every command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.distributed
SOURCE = Path(__file__).parent.parent / "plugin"
RUN = ("method=sharpen", "data=dots", "trainer.threads=1", "budget.max_batches=300", "budget.checkpoint_every=10")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the plug-in is installed in."""
    target, copy = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(SOURCE, copy)  # building leaves nothing in the repository
    line = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(copy)]
    subprocess.run(line, check=True)
    return target


@pytest.fixture
def command(installed, tmp_path):
    """`command("run", ...)`: the exit code and what was printed; `plugin=False` hides the plug-in."""

    def call(name: str, *arguments: object, plugin: bool = True) -> tuple[int, str]:
        done = subprocess.run(line(name, *arguments), env=environment(plugin), capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def line(name, *arguments):
        return [sys.executable, "-m", f"adbench.{name}", *map(str, arguments)]

    def environment(plugin):
        here = str(Path(__file__).parent.parent.parent)
        return os.environ | {
            "ADBENCH_RESULTS": str(tmp_path / "results"), "ADBENCH_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join([here, *([str(installed)] if plugin else [])]), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    call.start = lambda name, *a: subprocess.Popen(
        line(name, *a), env=environment(True), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return call


def test_a_plug_ins_names_are_choices_like_any_other(command):
    code, out = command("run", "--help")
    assert code == 0
    assert all(name in out for name in ("sharpen", "dots", "every_second", "heartbeat"))
    code, out = command("run", "method=sharpn")
    assert code == 1
    assert "did you mean sharpen" in out


def test_a_plug_ins_run_is_killed_resumed_used_and_refused_where_nobody_trusts_it(command, tmp_path):
    results = tmp_path / "results"
    process = command.start("run", *RUN, "callbacks=heartbeat", "protocol=every_second")
    while process.poll() is None and not list(results.rglob("last.ckpt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(results.rglob("last.ckpt")), "the run ended before it was killed"
    code, out = command("run", *RUN, "callbacks=heartbeat", "protocol=every_second")
    assert code == 0, out
    assert "resuming at batch" in out
    folder = next(results.rglob("metrics.json")).parent
    assert int((folder / "heartbeat.txt").read_text()) < 300  # the callback saw the second part alone
    record = json.loads((folder / "metrics.json").read_text())
    assert record["status"] == "finished"
    assert record["counts"]["train"] < 10  # every second of 16, without those held out

    Image.fromarray(np.full((40, 30, 3), 220, np.uint8)).save(tmp_path / "part.png")
    for name, *arguments in (
        ("predict", folder, tmp_path / "part.png", "--out", tmp_path / "out", "--false-alarm-rate", 0.3),
        ("export", folder, "--format", "onnx", "--out", tmp_path / "m.onnx"),
        ("evaluate", folder),
        ("report", results),
    ):
        code, out = command(name, *arguments)
        assert code == 0, out
    assert "sharpen" in (results / "report/report.html").read_text()
    # An exported graph needs no plug-in; the run folder does, and the message says how to go on.
    code, out = command("predict", tmp_path / "part.png", "--model", tmp_path / "m.onnx", "--out", tmp_path / "o2",
                        "--false-alarm-rate", 0.3, plugin=False)  # fmt: skip
    assert code == 0, out
    for name, *arguments in (
        ("predict", folder, tmp_path / "part.png", "--out", tmp_path / "out3"),
        ("export", folder),
        ("evaluate", folder),
    ):
        code, out = command(name, *arguments, plugin=False)
        assert code == 1
        assert "add --trust adbench_sharpen" in out
    assert not (tmp_path / "out3").exists()


def test_a_plug_in_trains_on_two_devices(command, tmp_path):
    code, out = command("run", *RUN, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
                        "budget.max_batches=20")  # fmt: skip
    assert code == 0, out
    record = json.loads(next((tmp_path / "results").rglob("metrics.json")).read_text())
    assert record["hardware"]["ranks"] == 2


def test_a_plug_ins_own_dataset_and_optimizer_are_the_data_and_the_optimizer(command, tmp_path):
    options = ("data=dataset", "data.name=mine", "data.target=adbench_sharpen.data.DotsDataset", "data.kind=small")
    code, out = command("run", "method=sharpen", *options, "method.optimizer._target_=adbench_sharpen.methods.Lion",
                        "budget.max_batches=10", "trainer.threads=1")  # fmt: skip
    assert code == 0, out
    record = json.loads(next((tmp_path / "results").rglob("metrics.json")).read_text())
    assert record["metrics"]["pixel_auroc"] is not None
    assert record["counts"]["test_anomalous"] == 4


def test_in_a_sweep_a_plug_ins_method_stands_beside_this_packages(command):
    code, out = command("run", "-m", "method=sharpen,brightness", "data=dots", "trainer=smoke")
    assert code == 0, out
    assert "2 jobs: 2 finished" in out

"""Which devices a user may name."""

import pytest
import torch

from adbench.errors import UserError
from adbench.experiment import devices


@pytest.fixture
def machine(monkeypatch):
    """`machine(2)`: a machine with two GPUs."""

    def set_up(gpus):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return set_up


def test_a_machine_without_a_gpu_says_so(machine):
    machine(0)
    for name in ("gpu", "cuda", "cuda:1", "mps", "nonsense"):
        with pytest.raises(UserError, match=f"device {name} cannot be used: this machine has cpu and no other device"):
            devices.device(name)
    assert devices.device("cpu") == torch.device("cpu")


def test_gpu_and_cuda_are_the_first_and_a_number_too_high_is_told_what_there_is(machine):
    machine(2)
    assert devices.device("gpu") == devices.device("cuda") == torch.device("cuda:0")
    assert devices.trainer_options("cuda:1") == {"accelerator": "cuda", "devices": [1]}
    with pytest.raises(UserError, match="device cuda:2 cannot be used: this machine has cpu, cuda:0, cuda:1"):
        devices.device("cuda:2")


def test_evaluate_takes_a_device_and_refuses_one_that_is_not_there(finished, capsys):
    from adbench.evaluate import main

    folder = finished("method=pca", "data=digits")
    assert main([str(folder), "--device", "cpu"]) == 0
    assert main([str(folder), "--device", "nonsense"]) == 1
    assert "device nonsense cannot be used: this machine has cpu" in capsys.readouterr().err
    assert main([str(folder), "trainer.accelerator=cpu"]) == 1  # which is no key of an evaluation


def test_an_exported_graph_is_not_scored_elsewhere_than_asked_for(finished, tmp_path, monkeypatch):
    import onnxruntime

    import adbench
    from adbench.export import main

    model = tmp_path / "model.onnx"
    assert main([str(finished("method=pca", "data=digits")), "--format", "onnx", "--out", str(model)]) == 0
    with pytest.raises(UserError, match="device nonsense cannot be used"):
        adbench.load(model, device="nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="this onnxruntime has no CUDAExecutionProvider; take --device cpu"):
        adbench.load(model, device="cuda")

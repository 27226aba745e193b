"""The trainer of a run: what it does between two batches costs little, and the user's own profiler stays."""

import ctypes

import pytest
import torch
from compositions import composed

from adbench.data.datamodule import DataModule
from adbench.experiment.trainers import build_trainer
from adbench.types import Batch


def test_hooks_run_in_no_context_of_their_own_unless_a_profiler_is_asked_for(tmp_path):
    profiler = build_trainer(composed("trainer=cpu"), tmp_path).profiler
    assert profiler.profile("one hook") is profiler.profile("another")
    with profiler.profile("a hook"):
        pass
    asked = build_trainer(composed("trainer=cpu", "+trainer.profiler=simple"), tmp_path).profiler
    assert type(asked).__name__ == "SimpleProfiler"


def test_a_trainer_takes_the_precision_that_was_chosen_and_tests_in_float32_without_one(tmp_path):
    cfg = composed("trainer=cpu")
    assert build_trainer(cfg, tmp_path).precision == "32-true"
    assert build_trainer(cfg, tmp_path, precision="bf16-mixed").precision == "bf16-mixed"


def test_a_batch_goes_to_a_device_part_by_part():
    batch = Batch.unlabelled(torch.rand(2, 3, 4, 4))
    moved = DataModule.transfer_batch_to_device(None, batch, torch.device("meta"), 0)
    assert isinstance(moved, Batch)
    assert {part.device.type for part in moved} == {"meta"}
    assert DataModule.transfer_batch_to_device(None, batch, torch.device("cpu"), 0) is batch


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is found at once")
def test_without_a_gpu_a_step_of_adam_looks_for_no_library(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # Lightning's import
    build_trainer(composed("trainer=cpu"), tmp_path)
    looked, library = [], ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: (looked.append(args), library(*args, **kwargs))[1])
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    torch.optim.Adam([weight]).step()
    assert looked == []

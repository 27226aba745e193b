"""Linux and macOS: nothing needs a forked process, and Windows is told at once."""

import importlib
import pickle
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import adbench
from adbench.data.classes import Digits
from adbench.data.datamodule import DataModule
from adbench.data.protocols import one_class

ROOT = Path(__file__).parent.parent


def test_windows_is_refused_with_a_sentence_before_anything_is_imported(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(SystemExit, match=r"adbench runs on Linux and macOS\. On Windows, use it inside WSL2"):
            importlib.reload(adbench)
    for platform in ("linux", "darwin"):
        adbench.refuse_windows(platform)


def test_what_a_loader_hands_to_a_spawned_worker_can_be_pickled(tmp_path):
    module = DataModule(
        Digits(0), one_class, image_size=8, batch_size=4, eval_batch_size=4, workers=0, seed=0, cache_dir=tmp_path,
        supervision="none",
    )  # fmt: skip
    module.setup()
    module.set_budget(2)
    for loader in (module.train_dataloader(), module.test_dataloader()):
        again = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
        rows = next(iter(loader.sampler))
        assert torch.equal(again[0][rows].image, loader.dataset[rows].image)


def test_the_versions_of_python_that_are_promised_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {c.rpartition(" ")[2] for c in project["classifiers"] if "Python ::" in c}
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert promised == set(matrix["python"])
    assert project["requires-python"] == ">=3.11,<3.14"
    assert {row["system"] for row in matrix["include"]} | set(matrix["system"]) == {"ubuntu-latest", "macos-latest"}
    words = (ROOT / "README.md").read_text()
    assert all(version in words for version in promised)
    assert "WSL2" in words

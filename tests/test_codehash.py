"""The name of the code behind a run changes with the method's file and what it imports, and with nothing else."""

import shutil
import sys
from pathlib import Path

import pytest

import adbench
from adbench.experiment import codehash

CBIGAN = "adbench.methods.cbigan.CBiGAN"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose files may be edited."""
    copy = tmp_path / "adbench"
    shutil.copytree(Path(adbench.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(codehash, "PACKAGE", copy)
    return copy


@pytest.mark.parametrize(
    "file", ["methods/cbigan.py", "methods/base.py", "losses/cbigan.py", "networks/residual_bigan.py", "streams.py"]
)
def test_an_edit_of_the_method_or_of_what_it_imports_changes_the_hash(package, file):
    before = codehash.code_of([CBIGAN])
    assert codehash.code_of([CBIGAN]) == before
    path = package / file
    path.write_text(path.read_text() + "\nedited = 1\n")
    assert codehash.code_of([CBIGAN]) != before


@pytest.mark.parametrize(
    "file", ["methods/igd.py", "losses/igd.py", "experiment/job.py", "report/page.py", "__init__.py"]
)
def test_an_edit_of_anything_else_does_not(package, file):
    before = codehash.code_of([CBIGAN])
    path = package / file
    path.write_text(path.read_text() + "\nedited = 1\n")
    assert codehash.code_of([CBIGAN]) == before


def test_line_endings_of_a_checkout_do_not_matter(package):
    before = codehash.code_of([CBIGAN])
    path = package / "methods/cbigan.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert codehash.code_of([CBIGAN]) == before


def test_a_method_of_ones_own_counts_with_the_modules_beside_it_and_is_not_run(tmp_path, monkeypatch):
    own = tmp_path / "mine"
    own.mkdir()
    (own / "__init__.py").write_text("")
    (own / "part.py").write_text("x = 1\n")
    (own / "method.py").write_text("from . import part\nimport torch\nraise SystemExit('run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = codehash.code_of(["mine.method.Mine"])
    (own / "part.py").write_text("x = 22\n")
    assert codehash.code_of(["mine.method.Mine"]) != before
    sys.modules.pop("mine", None)


def test_targets_are_found_however_deep():
    node = {"_target_": "a.B", "list": [{"_target_": "c.D"}], "optimizer": {"x": {"_target_": "e.F"}}, "n": 1}
    assert codehash.targets_of(node) == {"a.B", "c.D", "e.F"}

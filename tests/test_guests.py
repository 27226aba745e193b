"""A user's own tree of configuration files, without a package: in every command, and gone with it."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

import adbench
from adbench import export, predict, run
from adbench.completion import candidates
from adbench.errors import UserError
from adbench.experiment.groups import OWN, choices

evaluation = importlib.import_module("adbench.evaluate")  # the command; its name is a function of the package too

MODULE = """
import numpy as np
import torch
from torch import nn

from adbench.data.classes import Classes
from adbench.methods.base import Method
from adbench.types import Scores


class Halves(Classes):
    def __init__(self, normal_class):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 40, (60, 16, 16), dtype=np.uint8)
        images[30:, 4:8] += 150
        classes = np.repeat([0, 1], 30)
        train = np.arange(60) % 2 == 0
        super().__init__("halves", (images[train], classes[train]), (images[~train], classes[~train]), normal_class)


class Distance(Method):
    def __init__(self, network: nn.Module, strength: float = 1.0) -> None:
        super().__init__()
        self.network, self.strength = network, strength
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def prepare(self, batches):
        self.mean.copy_(torch.cat([batch.image for batch in batches]).mean((0, 2, 3))[:, None, None])

    def score(self, image):
        maps = self.network(image - self.mean).abs().mean(1, keepdim=True) * self.strength
        return Scores(maps.mean((1, 2, 3)), maps)


class Tripled(nn.Module):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, x):
        return x * self.times
"""
METHOD = """
_target_: our_lab.Distance
network: {_target_: our_lab.Tripled, times: 3.0}
recipe:
  input: {small: 16}
  budget:
    quick: {max_batches: 0}
"""
DATA = """
defaults: [/data/_base@_here_, _self_]
id: halves/${.normal_class}
kind: small
normal_class: 0
source: {_target_: our_lab.Halves, normal_class: "${..normal_class}"}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a module and a tree of files that name its classes."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "our_lab.py").write_text(MODULE)
    for name, text in {"method/distance.yaml": METHOD, "data/halves.yaml": DATA}.items():
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(lab):
    """A run of the lab's method on its data, by `--config-dir`."""
    words = ["method=distance", "data=halves", f"results={lab / 'results'}", f"cache_dir={lab / 'cache'}"]
    assert run.main(["--config-dir", str(lab / "files"), *words]) == 0
    return lab / "results" / "distance" / "halves" / "0" / "one_class" / "none" / "seed0"


def test_a_tree_of_ones_own_trains_and_leaves_no_trace(lab, trained):
    record = json.loads((trained / "metrics.json").read_text())
    assert record["status"] == "finished" and record["metrics"]["image_auroc"] > 0.9
    assert "distance" not in choices("method")


def test_help_and_choices_know_the_tree(lab, capsys):
    assert run.main([f"--config-dir={lab / 'files'}", "--help"]) == 0
    assert "distance" in capsys.readouterr().out
    assert run.main(["-cd", str(lab / "files"), "method=distanse"]) == 1
    assert "did you mean distance" in capsys.readouterr().err


def test_sweeps_take_guests_beside_the_own(lab, capsys):
    words = ["data=halves", f"results={lab / 'swept'}", f"cache_dir={lab / 'cache'}", "seed=1,2"]
    assert run.main(["--config-dir", str(lab / "files"), "-m", "method=distance,brightness", *words]) == 0
    assert "4 jobs: 4 finished" in capsys.readouterr().out


def test_values_of_guests_are_checked(lab, capsys):
    assert run.main(["--config-dir", str(lab / "files"), "method=distance", "data=halves", "method.strenth=2"]) == 1
    assert "there is no method.strenth with method=distance" in capsys.readouterr().err


def test_a_run_is_evaluated_on_the_data_of_the_tree(lab, trained, capsys):
    words = [str(trained), "data=halves", "data.normal_class=1", f"cache_dir={lab / 'cache'}"]
    assert evaluation.main([*words, "--trust", "our_lab"]) == 1  # without the tree there is no such data set
    assert "data=halves does not exist" in capsys.readouterr().err
    assert evaluation.main([*words, "--config-dir", str(lab / "files"), "--trust", "our_lab"]) == 0
    assert (trained / "evaluations" / "halves" / "1" / "metrics.json").is_file()


def test_a_run_is_used_once_its_package_is_trusted(lab, trained, tmp_path, capsys):
    image = tmp_path / "part.png"
    Image.new("L", (16, 16), 30).save(image)
    words = [str(trained), str(image), "--out", str(tmp_path / "out")]
    assert predict.main(words) == 1
    assert "--trust our_lab" in capsys.readouterr().err
    assert predict.main([*words, "--trust", "our_lab"]) == 0
    assert export.main([str(trained), "--out", str(tmp_path / "model.onnx"), "--trust", "our_lab"]) == 0


def test_the_environment_variable_serves_python_and_completion(lab, monkeypatch):
    monkeypatch.setenv(OWN, str(lab / "files"))
    assert "method=distance" in candidates("adbench method=dist", ("train",))
    method = adbench.create_method("distance", kind="small", image_size=16, strength=2.0)
    assert method.strength == 2.0 and method.network.times == 3.0


def test_a_tree_that_is_not_there_is_named(capsys):
    assert run.main(["--config-dir", "/no/such/folder", "method=pca"]) == 1
    assert "--config-dir /no/such/folder: there is no such folder" in capsys.readouterr().err


# -- a method that is not whole yet -----------------------------------------------------------------------------------

HALF = """
from torch import nn

from adbench.methods.base import SingleObjective
from adbench.types import Scores


class NoScore(SingleObjective):
    def __init__(self, optimizer) -> None:
        super().__init__(optimizer)
        self.layer = nn.Conv2d(3, 3, 1)

    def objective(self, batch):
        return {"square": self.layer(batch.image).square().mean()}


class Slip(NoScore):
    def objective(self, batch):
        return {"square": unheard_of}

    def score(self, image):
        return Scores(image.mean((1, 2, 3)), None)
"""
OPTIMIZER = "optimizer: {_target_: torch.optim.Adam, _partial_: true}"
RECIPE = "recipe: {input: {small: 16}, batch_size: 4, budget: {quick: {max_batches: 2}}}"


@pytest.mark.parametrize(
    ("target", "recipe", "message"),
    [
        ("half_lab.Slip", "", "the configuration file of half_lab.Slip does not say what data it takes"),
        ("half_lab.NoScore", RECIPE, "half_lab.NoScore lacks score(); define it"),
        ("half_lab.Slip", RECIPE, "NameError: name 'unheard_of' is not defined ("),
        ("half_lap.Slip", RECIPE, "Python does not find the module half_lap of half_lap.Slip"),
    ],
)
def test_what_a_method_of_ones_own_lacks_is_named(tmp_path, monkeypatch, capsys, target, recipe, message):
    (tmp_path / "half_lab.py").write_text(HALF)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_lab", raising=False)
    (tmp_path / "files" / "method").mkdir(parents=True)
    (tmp_path / "files" / "method" / "half.yaml").write_text(f"_target_: {target}\n{OPTIMIZER}\n{recipe}\n")
    words = ["method=half", "data=digits", f"results={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    assert run.main(["--config-dir", str(tmp_path / "files"), *words, "trainer.threads=1"]) == 1
    out = "".join(capsys.readouterr())
    assert message in out
    assert "Traceback" not in out
    if "NameError" in message:
        line = HALF.splitlines().index('        return {"square": unheard_of}') + 1
        assert f"({tmp_path / 'half_lab.py'}, line {line})" in out
    else:
        assert not list((tmp_path / "results").glob("half*"))


def test_a_trusted_package_that_python_does_not_find_is_no_matter_of_trust(trained, monkeypatch):
    config = trained / ".hydra" / "config.yaml"
    kept = config.read_text()
    try:
        config.write_text(kept.replace("_target_: our_lab.", "_target_: our_lap."))
        with pytest.raises(UserError, match="Python does not find the module our_lap of our_lap"):
            adbench.load(trained, trust=["our_lap"])
    finally:
        config.write_text(kept)


def test_the_method_of_the_guide_trains_as_it_stands_there(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    code, file = re.search(r"in `mine\.py`:\n\n```python\n(.*?)```\n\n.*?```yaml\n(.*?)```", page, re.S).groups()
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "residual.yaml").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["method=residual", "data=digits", f"results={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    short = ["budget.max_batches=2", "trainer.threads=1"]
    assert run.main(["--config-dir", str(tmp_path / "conf"), *words, *short]) == 0
    assert "residual on digits" in capsys.readouterr().out

"""`trainer.compile=true`: what is compiled, what it leaves as it was, and what happens where it does not work."""

import copy
from functools import partial

import pytest
import torch
from compositions import composed, folder_of
from conftest import metrics_of
from omegaconf import OmegaConf
from test_contract import make
from torch import nn

import adbench
from adbench.detection.graph import export
from adbench.experiment import values
from adbench.experiment.checkpoints import SaveEvery
from adbench.experiment.identity import config_hash
from adbench.experiment.record import keys
from adbench.experiment.trainers import build_trainer
from adbench.methods import compiled
from adbench.methods.base import SingleObjective, networks_within
from adbench.methods.compiled import Compiled
from adbench.testing import _StopAt, _Stopped, fit, stripes
from adbench.types import Scores

SMALL = ("cbigan/small", "igd/small", "pwae/small", "ssae/small", "esad/small")


class Two(SingleObjective):
    """Two networks, so small that compiling them takes seconds."""

    has_maps = False

    def __init__(self):
        super().__init__(partial(torch.optim.SGD, lr=0.1))
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        self.seen = []

    def objective(self, batch):
        self.seen.append("forward" in vars(self.first))
        noise = self.randn("target", len(batch.image), 1)
        return {"fit": (self.second(self.first(batch.image.mean((2, 3)))) - noise).square().mean()}

    def score(self, image):
        self.seen.append("forward" in vars(self.first))
        return Scores(self.second(self.first(image.mean((2, 3))))[:, 0], None)


@pytest.fixture
def no_compiler(tmp_path):
    """A machine without a C++ compiler."""
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "g++"),), "force_disable_caches": True}):
        yield
    torch.compiler.reset()


@pytest.fixture
def without_code(monkeypatch):
    """Graphs are captured and differentiated, and their operators run as they are: seconds in place of minutes."""
    start = Compiled.__init__
    monkeypatch.setattr(start, "__defaults__", (start.__defaults__[0], "aot_eager"))


def trained(method, place, batches=4, callbacks=(), **options):
    return fit(method, stripes(method, 32, place), batches, callbacks=list(callbacks), **options)


def differing(first, second, tolerance=0.0):
    second = second.state_dict()
    assert list(first.state_dict()) == list(second)
    return [
        n for n, value in first.state_dict().items() if not torch.allclose(value, second[n], rtol=0, atol=tolerance)
    ]


def weights(method):
    return torch.cat([p.detach().flatten() for p in method.parameters() if p.requires_grad])


# -- with the compiler ------------------------------------------------------------------------------------------------


def test_a_compiled_training_learns_the_same_and_leaves_the_method_as_it_was(tmp_path):
    torch._dynamo.utils.counters.clear()
    plain, callback = trained(Two(), tmp_path), Compiled(pytest.fail)
    method = trained(Two(), tmp_path, callbacks=[callback])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert differing(method, plain, 1e-5) == []
    for module in method.modules():
        assert "forward" not in vars(module)
        assert "training_step" not in vars(module)
    copy.deepcopy(method)


def test_a_compiled_training_that_stopped_ends_byte_for_byte_as_one_that_did_not(tmp_path):
    whole = trained(Two(), tmp_path, 6, [Compiled(pytest.fail)])
    stop = SaveEvery(tmp_path / "half.ckpt", 3)
    with pytest.raises(_Stopped):
        trained(Two(), tmp_path, 6, [_StopAt(stop, 3), stop, Compiled(pytest.fail)])
    torch.compiler.reset()  # as in another process
    resumed = trained(Two(), tmp_path, 6, [Compiled(pytest.fail)], checkpoint=tmp_path / "half.ckpt")
    assert differing(resumed, whole) == []


def test_a_checkpoint_goes_on_compiled_or_not(tmp_path):
    for first, second in (([Compiled(pytest.fail)], []), ([], [Compiled(pytest.fail)])):
        stop = SaveEvery(tmp_path / "half.ckpt", 2)
        with pytest.raises(_Stopped):
            trained(Two(), tmp_path, 4, [_StopAt(stop, 2), stop, *first])
        resumed = trained(Two(), tmp_path, 4, second, checkpoint=tmp_path / "half.ckpt")
        assert differing(resumed, trained(Two(), tmp_path), 1e-5) == []


# -- what is compiled -------------------------------------------------------------------------------------------------


def test_only_training_steps_are_compiled(tmp_path, without_code):
    method = trained(Two(), tmp_path, 2, [Compiled(pytest.fail)])
    assert method.seen == [True, True]
    with torch.no_grad():
        method.score(torch.rand(2, 3, 32, 32))
    assert method.seen == [True, True, False]


@pytest.mark.parametrize("name", SMALL)
def test_every_papers_networks_are_compiled_whole(name, tmp_path, without_code):
    """CBiGAN's gradient penalty, a second derivative, goes past what is compiled."""
    side = ["data.image_size=64"] if name in ("igd/small", "cbigan/small") else []
    torch._dynamo.utils.counters.clear()
    plain, data = make(name, tmp_path, *side)
    sgd = partial(torch.optim.SGD, lr=1e-3)  # Adam would make a whole step of a gradient that is rounding alone
    if isinstance(plain, SingleObjective):
        plain._optimizer_factory = sgd
    else:
        plain._optimizer_factories = dict.fromkeys(plain._optimizer_factories, sgd)
    method, start = copy.deepcopy(plain), weights(plain)
    fit(plain, data, 2)
    fit(method, data, 2, callbacks=[Compiled(pytest.fail)])
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= len(method.regions()) > 0
    assert not counters["graph_break"]
    assert differing(method, plain, float("inf")) == []
    moved = weights(plain) - start
    assert (weights(method) - weights(plain)).norm() < 1e-4 * moved.norm()


def test_regions_are_the_networks_that_learn():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    frozen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).requires_grad_(False)
    held = nn.ModuleDict({"a": nn.ModuleList([net, nn.Linear(2, 2)]), "b": frozen})
    assert networks_within([held, nn.Linear(2, 2)]) == [net]


# -- where it does not work -------------------------------------------------------------------------------------------


def test_without_a_compiler_training_goes_on_and_says_so_once(tmp_path, no_compiler):
    reasons = []
    method = trained(Two(), tmp_path, callbacks=[Compiled(reasons.append)])
    assert len(reasons) == 1
    assert "\n" not in reasons[0]
    assert differing(method, trained(Two(), tmp_path)) == []


def test_a_fault_of_the_network_is_not_taken_for_one_of_the_compiler(tmp_path, without_code):
    class Wrong(Two):
        def objective(self, batch):
            self.first(batch.image.mean((2, 3))[:, :2])
            return super().objective(batch)

    with pytest.raises(RuntimeError, match="shape"):
        trained(Wrong(), tmp_path, callbacks=[Compiled(lambda reason: None)])


def test_a_run_without_a_compiler_has_one_line_and_the_scores_of_a_run_that_asked_for_none(run, no_compiler, capfd):
    words = ("method=esad/small", "data=digits")
    _, plain = run(*words)
    capfd.readouterr()
    code, folder = run(*words, "trainer.compile=true")
    out, error = capfd.readouterr()
    assert code == 0
    assert (out + error).count("trainer.compile=true does not work here") == 1
    assert "Traceback" not in out + error
    assert metrics_of(folder)["compiled"] is False
    assert (folder / "scores.csv").read_bytes() == (plain / "scores.csv").read_bytes()


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_compiled_run_is_recorded_predicted_and_exported_as_any(run, without_code, tmp_path):
    code, folder = run("method=esad/small", "data=digits", "trainer.compile=true")
    assert code == 0
    assert metrics_of(folder)["compiled"] is True
    assert metrics_of(folder)["changed"]["trainer.compile"] is True
    detector = adbench.load(folder)
    graph = adbench.load(export(folder, "onnx", tmp_path / "m.onnx")[0])
    image = (torch.rand(8, 8, 3) * 255).byte().numpy()
    assert float(graph.score(image).image) == pytest.approx(float(detector.score(image).image), rel=1e-4)


def test_a_run_that_could_not_compile_goes_on_without(run, without_code, monkeypatch):
    from adbench.experiment import training
    from adbench.experiment.record import UNKNOWN

    asked = []
    monkeypatch.setattr(compiled, "Compiled", lambda told: asked.append(told) or Compiled(told))
    original = training.prepare

    def begun(cfg, folder, record, request, **options):
        assert record.compiled is UNKNOWN
        record.compiled = False
        return original(cfg, folder, record, request, **options)

    import adbench.experiment.job as job

    monkeypatch.setattr(job, "prepare", begun)
    code, folder = run("method=esad/small", "data=digits", "trainer.compile=true")
    assert code == 0
    assert asked == []
    assert metrics_of(folder)["compiled"] is False


def test_compiling_is_a_setting_that_changes_results_and_its_absence_changes_no_name():
    plain = composed("method=ssae/small")
    before = copy.deepcopy(plain)
    OmegaConf.set_struct(before, False)
    del before.trainer["compile"]
    assert config_hash(plain) == config_hash(before)
    assert config_hash(composed("method=ssae/small", "trainer.compile=true")) != config_hash(plain)
    assert folder_of("method=ssae/small", "trainer.compile=true") != folder_of("method=ssae/small")


def test_lightning_is_not_asked_for_it(tmp_path):
    trainer = build_trainer(composed("method=ssae/small", "trainer=cpu", "trainer.compile=true"), tmp_path)
    assert not any(isinstance(callback, Compiled) for callback in trainer.callbacks)


def test_compile_is_true_or_false():
    assert values.OWN["trainer.compile"] is bool
    assert composed("method=ssae/small").trainer.compile is False


def test_the_record_says_whether_it_compiled():
    assert "compiled" in keys()

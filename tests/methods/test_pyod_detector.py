"""The adapter of PyOD's detectors, with a package of that name made here: it draws, prints, fails and ranks as some of
PyOD's do. Of the real ones: tests/adapters/test_pyod.py."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from compositions import composed

from adbench.experiment.groups import conf_dir
from adbench.methods import pyod_detector
from adbench.methods.pyod_detector import DETECTORS, PyOD
from adbench.types import Batch, UserError

MODELS = {
    # Ranks the rows of a call among each other and the training rows.
    "ecod": """
        class ECOD(BaseDetector):
            def fit(self, X): self.X = X
            def decision_function(self, X):
                both = np.concatenate([self.X, X])
                return (both.argsort(0).argsort(0)[len(self.X):] / len(both)).sum(1)
    """,
    # Looks at the rows of a call alone, of which it needs two.
    "sos": """
        class SOS(BaseDetector):
            def fit(self, X): self.decision_function(X)
            def decision_function(self, X):
                if len(X) < 2: raise IndexError("index 1 is out of bounds")
                return np.abs(X - X.mean(0)).sum(1)
    """,
    # Draws while it is fitted, and from a generator of its own while it scores; prints; has no score for large values.
    "knn": """
        class KNN(BaseDetector):
            def __init__(self, random_state=None, n_neighbors=5):
                if n_neighbors < 1: raise ValueError("n_neighbors is at least 1")
                self.random_state = np.random.RandomState(random_state)
            def fit(self, X):
                print("fitting")
                self.noise, self.center = np.random.normal(size=X.shape[1]), X.mean(0)
                if X.shape[1] > 5: raise ValueError("too many columns")
            def decision_function(self, X):
                if torch.is_inference_mode_enabled() or not torch.is_grad_enabled(): raise RuntimeError("no gradients")
                drawn = self.random_state.normal()
                scores = np.abs(X - self.center + self.noise).sum(1) + drawn
                return np.where(X[:, 0] > 1e3, np.nan, scores)
    """,
    "devnet": """
        class DevNet(BaseDetector):
            batch_size = 4
            def __init__(self, device=None, random_seed=42, **options):
                assert device == "cpu" and random_seed != 42
            def fit(self, X, y):
                self.center = X[y == 1].mean(0)
            def decision_function(self, X):
                if len(X) % self.batch_size == 1: raise ValueError("setting an array element with a sequence")
                return -np.abs(X - self.center).sum(1)
    """,
    "rod": """
        class ROD(BaseDetector):
            def fit(self, X): pass
            def decision_function(self, X): return X.sum(1)
    """,
    "brandnew": """
        class BrandNew(BaseDetector):
            def fit(self, X): pass
            def decision_function(self, X): return X.sum(1)
    """,
    "lscp": """
        class LSCP(BaseDetector):
            def __init__(self, detector_list): self.parts = detector_list
            def fit(self, X): [part.fit(X) for part in self.parts]
            def decision_function(self, X): return np.mean([part.decision_function(X) for part in self.parts], 0)
    """,
}
HEAD = "import numpy as np\nimport torch\n\n\nclass BaseDetector:\n    def __init__(self, **options): pass\n\n\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `pyod` with these models."""
    models = tmp_path / "packages" / "pyod" / "models"
    models.mkdir(parents=True)
    for name, text in MODELS.items():
        lines = [line[8:] for line in text.splitlines()]
        (models / f"{name}.py").write_text(HEAD + "\n".join(lines))
    for place in (models.parent, models):
        (place / "__init__.py").write_text("")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyod"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    importlib.invalidate_caches()
    pyod_detector._LATEST.clear()
    yield
    pyod_detector._LATEST.clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "pyod"]:
        del sys.modules[name]


TRAIN = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEST = 2 * torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def made(detector, seed=0, **options):
    method = PyOD("tabular", 3, "none", None, detector, **options)
    method.seed = seed
    return method.eval()


def fitted(method, rows=TRAIN, known=5):
    semi = torch.zeros(len(rows), dtype=torch.int64)
    semi[:known] = -1
    with torch.no_grad():
        method.prepare([Batch(part, s, s, s, s) for part, s in zip(rows.split(8), semi.split(8), strict=True)])
    return method


def scores(method, rows=TEST):
    with torch.inference_mode():
        return method.score(rows).image


# -- what is not there ------------------------------------------------------------------------------------------------


def test_without_pyod_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'method=pyod needs PyOD: pip install "adbench-vision\[pyod\]"'):
        PyOD(detector="ECOD")


def test_a_package_that_a_detector_needs_beside_pyod_is_named(package, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xgboost" else real(name))
    with pytest.raises(UserError, match="PyOD's XGBOD needs xgboost: pip install xgboost"):
        PyOD(detector="XGBOD")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deep_svdd", r"method.detector=deep_svdd is not in PyOD; did you mean DeepSVDD\?"),
        (None, r"method=pyod needs a detector, method.detector=NAME; there are ABOD, .*ECOD, .*XGBOD"),
        ("ecodd", r"method.detector=ecodd is not in PyOD; did you mean ECOD\? There are ABOD"),
        ("os", r"method.detector=os is not in PyOD"),
    ],
)
def test_a_detector_that_does_not_exist_is_answered_with_those_that_do(name, message):
    with pytest.raises(UserError, match=message):
        PyOD(detector=name)
    assert "pyod" not in sys.modules or importlib.util.find_spec("pyod") is not None


def test_a_detector_that_cannot_be_imported_is_named(package):
    with pytest.raises(UserError, match="PyOD's ABOD cannot be imported: ModuleNotFoundError"):
        PyOD(detector="ABOD")


def test_every_detector_has_a_preset_and_every_preset_a_detector():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (conf_dir() / "method" / "pyod").glob("*.yaml")}
    features = files.pop("ecod_features")
    assert features["encoder"]
    assert {stem: values["detector"] for stem, values in files.items()} == {name.lower(): name for name in DETECTORS}
    for values in files.values():
        assert values["defaults"] == ["/method/pyod@_here_", "_self_"]
        assert set(values) <= {"defaults", "detector", "options"}
        assert not {"random_state", "random_seed", "contamination", "device"} & set(values.get("options", {}))


def test_a_preset_of_features_takes_any_detector():
    method = composed("method=pyod/ecod_features", "method.detector=KNN", "data=mvtec/bottle", "data_root=/r").method
    assert (method.detector, dict(method.options), method.image_size) == ("KNN", {}, 224)


# -- options ----------------------------------------------------------------------------------------------------------


def test_an_option_that_a_detector_lacks_is_answered_with_those_it_has(package):
    with pytest.raises(UserError, match=r"method.options.k: PyOD's KNN has no such option; it has n_neighbors, random"):
        made("KNN", options={"k": 3})
    with pytest.raises(UserError, match=r"method.options of PyOD's KNN: ValueError: n_neighbors is at least 1"):
        made("KNN", options={"n_neighbors": 0})


def test_an_option_can_be_a_list_of_detectors(package):
    method = made("LSCP", options={"detector_list": [{"detector": "KNN", "n_neighbors": 3}, {"detector": "ECOD"}]})
    assert [type(part).__name__ for part in method._made(3).parts] == ["KNN", "ECOD"]
    with pytest.raises(UserError, match=r"method.detector=KN is not in PyOD"):
        made("LSCP", options={"detector_list": [{"detector": "KN"}]})


def test_a_detector_of_a_newer_pyod_is_found_and_its_rows_are_scored_alone(package):
    method = made("BrandNew")
    assert method.alone and not method.transductive
    assert torch.allclose(scores(fitted(method)), TEST.sum(1).float(), atol=1e-5)


def test_an_encoder_needs_images_and_enough_pixels(package):
    with pytest.raises(UserError, match=r"tables need method.encoder=null"):
        PyOD("tabular", 3, encoder="resnet18", detector="KNN")
    with pytest.raises(UserError, match=r"method.encoder=nothing is no timm model"):
        PyOD("object", 224, encoder="nothing", detector="KNN")
    with pytest.raises(UserError, match=r"images of 32 pixels; say data.image_size=224"):
        PyOD("object", 32, encoder="resnet18", detector="KNN")


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ECOD", "SOS", "KNN", "DevNet"])
def test_a_reloaded_detector_is_fitted_again_and_scores_the_same(package, name):
    method = fitted(made(name))
    expected = scores(method)
    pyod_detector._LATEST.clear()
    again = made(name)
    again.load_state_dict(method.state_dict())
    np.random.seed(3)
    assert torch.equal(scores(again), expected)
    assert torch.equal(scores(again), expected), "scoring changes the detector"


def test_the_seed_is_the_run_s_and_what_others_draw_stays_as_it_was(package):
    np.random.seed(1)
    expected = np.random.normal()
    np.random.seed(1)
    first = scores(fitted(made("KNN")))
    assert np.random.normal() == expected
    assert not torch.equal(scores(fitted(made("KNN", seed=1))), first)


def test_what_a_detector_prints_is_not_shown(package, capsys):
    fitted(made("KNN"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["ECOD", "SOS"])
def test_alone_scores_each_row_by_itself_and_otherwise_the_method_is_transductive(package, name):
    alone = fitted(made(name, alone=True))
    assert not alone.transductive
    assert torch.equal(scores(alone), torch.cat([scores(alone, row[None]) for row in TEST]))
    together = fitted(made(name, alone=False))
    assert together.transductive
    assert not torch.equal(scores(together), torch.cat([scores(together, row[None]) for row in TEST]))


def test_a_detector_that_looks_at_the_rows_of_a_call_sees_the_training_rows_along(package):
    method = fitted(made("SOS", alone=True))
    rows = TRAIN.float().double()
    for row, score in zip(TEST.float().double(), scores(method), strict=True):
        expected = (row - torch.cat([rows, row[None]]).mean(0)).abs().sum()
        assert float(score) == pytest.approx(float(expected), rel=1e-5)


def test_a_row_that_a_network_s_loader_would_leave_alone_is_scored(package):
    method = fitted(made("DevNet"))
    assert torch.equal(torch.cat([scores(method, part) for part in TEST.split([1, 5, 3])]), scores(method))


def test_known_anomalies_reach_the_detectors_that_learn_from_them(package):
    method = fitted(made("DevNet"))
    assert method.supervision == "semi" and method.needs_known_anomalies
    center = TRAIN[:5].float().mean(0)
    assert torch.allclose(scores(method), -(TEST.float() - center).abs().sum(1), rtol=1e-5)
    assert made("ECOD").supervision == "unsupervised" and not made("ECOD").needs_known_anomalies


def test_errors_of_a_detector_name_it(package):
    with pytest.raises(
        UserError, match="PyOD's KNN cannot be fitted to 30 training rows of 6 numbers: ValueError: too"
    ):
        fitted(PyOD("tabular", 6, "none", None, "KNN"), torch.cat([TRAIN, TRAIN], dim=1))
    method = fitted(made("KNN"))
    with pytest.raises(UserError, match="PyOD's KNN gives 2 of 9 rows a score that is no finite number"):
        scores(method, torch.where(torch.arange(9)[:, None] < 2, 2e3, TEST))


def test_a_detector_of_all_triples_is_not_fitted_to_what_would_take_hours(package):
    rows = torch.rand(8, 101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert scores(fitted(PyOD("tabular", 100, "none", None, "ROD"), rows[:, :100]), rows[:2, :100]).shape == (2,)
    with pytest.raises(UserError, match=r"PyOD's ROD looks at all triples of columns: with more than 100 .* are 101"):
        fitted(PyOD("tabular", 101, "none", None, "ROD"), rows)


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError("no disk")])
def test_what_passes_by_itself_is_no_fault_of_the_rows(package, monkeypatch, error):
    method = made("KNN")
    monkeypatch.setattr(method._maker, "fit", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error), match=str(error)):
        fitted(method)


def test_messages_call_a_detector_by_its_name(package):
    from adbench.pretraining.imagenet import ImageNet

    with pytest.raises(UserError, match="needs an encoder to fill, and PyOD's KNN has none"):
        ImageNet(None).check(made("KNN"))


def test_a_process_fits_a_run_once_however_often_it_is_loaded(package, monkeypatch):
    method = fitted(made("KNN"))
    monkeypatch.setattr(PyOD, "_fit", lambda *_: pytest.fail("fitted again"))
    again = made("KNN")
    again.load_state_dict(method.state_dict())
    assert torch.equal(scores(again), scores(method))


def test_pooled_features_of_a_backbone_are_what_the_detector_sees(package):
    method = PyOD("object", 64, encoder="resnet18", detector="ECOD").eval()
    image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        method.prepare([Batch(image, zeros, zeros, zeros, zeros)])
        assert torch.equal(method.rows, method.backbone.pooled(image))
    assert list(method.encoders()) == ["encoder"] and method.encoders()["encoder"].published
    assert method.score(image).image.shape == (4,)


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    rows = np.concatenate([TRAIN.numpy(), TRAIN.numpy() + 0.1, TEST.numpy() + 4])
    np.savez(tmp_path / "t.npz", X=rows, y=np.arange(69) >= 60)
    return ("data=tabular", "data.name=t", "data.features=3", f"data.file={tmp_path / 't.npz'}")


@pytest.mark.parametrize(("line", "transductive"), [("method=pyod/sos", True), ("method=pyod/ecod", False)])
def test_a_transductive_run_and_its_evaluation_say_so_and_no_other(package, run, table, line, transductive):
    from adbench.evaluate import main as evaluate

    code, folder = run(line, *table)
    assert code == 0 and evaluate([str(folder)]) == 0
    for file in (folder / "metrics.json", *(folder / "evaluations").rglob("metrics.json")):
        assert json.loads(file.read_text()).get("transductive") is (True if transductive else None)


def test_without_known_anomalies_a_supervised_detector_says_what_to_type(package, run, table, capsys):
    code, folder = run("method=pyod/devnet", *table)
    assert code == 1 and not (folder / "metrics.json").exists()
    text = "".join(capsys.readouterr())
    assert "DevNet learns from known anomalies, and the protocol gives none; type protocol=semi_supervised" in text
    code, _ = run("method=pyod/devnet", "protocol=semi_supervised", "protocol.labelled_ratio=0.05", *table)
    assert code == 0
    assert "warning: PyOD's DevNet says little: PyOD 3.6.7 hands the labels" in "".join(capsys.readouterr())


def test_a_test_that_fails_says_that_what_was_fitted_is_kept(package, run, table, tmp_path, capsys):
    rows = np.load(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", X=np.where(rows["y"][:, None], 2e3, rows["X"]), y=rows["y"])
    code, _ = run("method=pyod", "method.detector=KNN", "method.scaling=none", *table)
    text = "".join(capsys.readouterr())
    assert code == 1 and "a score that is no finite number" in text
    assert "What was fitted is kept: the same command goes on with the test" in text and "batch 0" not in text


def test_features_of_random_weights_are_never_silent(package, run, capsys):
    words = ["method=pyod", "method.detector=ECOD", "data=mvtec/bottle"]
    warning = "warning: without pretraining=imagenet the features are those of random weights"
    for more, random in ((["method.encoder=resnet18", "data.image_size=64"], True), ([], False)):
        assert run(*words, *more)[0] == 0
        assert (warning in "".join(capsys.readouterr())) is random


def test_a_graph_is_refused_in_one_line_and_released_weights_score_the_same(package, run, table, tmp_path, capsys):
    from adbench import load
    from adbench.export import main as export

    _, folder = run("method=pyod/ecod", *table)
    for kind in ("onnx", "torch-export"):
        assert export([str(folder), "--format", kind]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "pyod/ecod computes its scores outside torch" in error
    file = tmp_path / "m.safetensors"
    assert export([str(folder), "--format", "safetensors", "--out", str(file)]) == 0
    pyod_detector._LATEST.clear()
    assert torch.equal(load(file).score(TEST.numpy()).image, load(folder).score(TEST.numpy()).image)

"""What every method that takes tables promises, on a small table with a split and known anomalies."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from sklearn.metrics import roc_auc_score

from adbench.data.datamodule import DataModule
from adbench.data.odds import Odds
from adbench.data.protocols import semi_supervised
from adbench.experiment.build import build_datamodule, build_method
from adbench.experiment.groups import choices, conf_dir

FEATURES = 6


def tabular(name: str) -> bool:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return "tabular" in compose("config", overrides=[f"method={name}"]).method.recipe.input


def same_on_tables(name: str) -> bool:
    """Presets that only change what images see."""
    return name.endswith(("/mnist", "/fashion_mnist", "/small", "/esad", "/hybrid", "/ssim"))


NAMES = [n for n in choices("method") if not same_on_tables(n) and n.split("/")[0] in (
    "esad", "deep_sad", "deep_svdd", "autoencoder", "vae", "ocsvm", "isolation_forest", "kde", "nearest_neighbour",
)]  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """`make(name)` -> method, datamodule. Normal rows lie on a line, anomalous ones off it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1)) * np.arange(1, FEATURES + 1) + 0.1 * rng.normal(size=(300, FEATURES))
    y = np.arange(300) % 6 == 0
    x[y] += 3 * rng.normal(size=(y.sum(), FEATURES))
    np.savez(tmp_path / "t.npz", X=x, y=y)

    def build(name: str):
        overrides = [f"method={name}", "data=tabular", "data.name=t", "data.file=t", f"data.features={FEATURES}"]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("config", overrides=overrides)
        pl.seed_everything(0, verbose=False)
        method = build_method(cfg)
        datamodule = DataModule(
            Odds("t", tmp_path / "t.npz", 0, FEATURES),
            lambda *a: semi_supervised(*a, labelled_ratio=0.05),
            image_size=FEATURES, batch_size=64, eval_batch_size=32, workers=0, seed=0, cache_dir=tmp_path,
            supervision=method.supervision,
        )  # fmt: skip
        datamodule.setup()
        return method, datamodule

    return build


def fit(method, datamodule, batches: int):
    method.total_batches = batches
    if any(p.requires_grad for p in method.parameters()):
        datamodule.set_budget(batches)
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(method, datamodule=datamodule)
    else:
        method.prepare(datamodule.training_batches("cpu"))
    return method.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_tabular_method_trains_scores_each_row_alone_and_survives_a_checkpoint(name, make):
    if not tabular(name):
        pytest.skip("takes images only")
    method, datamodule = make(name)
    before = {n: p.detach().clone() for n, p in method.named_parameters() if p.requires_grad}
    fit(method, datamodule, 30)
    assert [n for n, p in method.named_parameters() if n in before and torch.equal(p, before[n])] == []
    batches = list(datamodule.test_dataloader())
    x, label = torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches])
    with torch.no_grad():
        scores = method.score(x)
        assert scores.maps is None
        assert not method.has_maps
        assert scores.image.shape == (len(x),)
        assert torch.isfinite(scores.image).all()
        torch.testing.assert_close(method.score(x[:1]).image, scores.image[:1], rtol=1e-4, atol=1e-6)
        assert roc_auc_score(label, scores.image) > 0.6
        twin, _ = make(name)
        twin.load_state_dict(method.state_dict())
        assert torch.equal(twin.eval().score(x).image, scores.image)


@pytest.mark.parametrize("name", ["deep_svdd", "autoencoder", "ocsvm"])
def test_an_unsupervised_method_never_receives_a_known_anomaly(name, make):
    method, datamodule = make(name)
    assert method.supervision == "unsupervised"
    labels = torch.cat([batch.semi_label for batch in datamodule.training_batches("cpu")])
    assert (labels == 0).all()


@pytest.mark.parametrize("name", ["esad", "deep_sad"])
def test_a_semi_supervised_method_learns_from_the_known_anomalies(name, make):
    method, datamodule = make(name)
    assert any((batch.semi_label < 0).any() for batch in datamodule.training_batches("cpu"))
    fit(method, datamodule, 2)
    blind, datamodule = make(name)
    datamodule._semi_label[:] = 0
    fit(blind, datamodule, 2)
    assert any(not torch.equal(p, q) for p, q in zip(method.parameters(), blind.parameters(), strict=True))


@pytest.mark.parametrize("name, rows, stream", [
    ("esad", 32, True), ("deep_sad", 128, False), ("deep_svdd", 128, False), ("autoencoder", 128, False),
    ("ocsvm", None, False),
])  # fmt: skip
def test_the_datamodule_of_a_run_knows_the_method_s_steps(name, rows, stream, make, tmp_path):
    make("ocsvm")  # writes the table
    data = ["data=tabular", "data.name=t", f"data.file={tmp_path / 't.npz'}", f"data.features={FEATURES}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={name}", *data, f"cache_dir={tmp_path}"])
    datamodule = build_datamodule(cfg, "semi")
    assert (datamodule.rows_per_step, datamodule.labelled_stream) == (rows, stream)

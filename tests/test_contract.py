"""What every method promises, whatever its mathematics."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import striped
from hydra import compose, initialize_config_dir

from adbench import runs
from adbench.data.datamodule import DataModule
from adbench.data.records import Records
from adbench.run import choices
from adbench.types import Batch

BATCHES = 12  # one full cycle of phases of every method


class Stripes:
    """Soft stripes are normal; a bright square is the anomaly. In memory, any size."""

    has_masks = True
    features = None

    def __init__(self, size: int, train: int = 8, test: int = 6) -> None:
        rng = np.random.default_rng(0)
        n, self.train = train + test, train
        self.images = np.stack([striped(rng, size) for _ in range(n)])
        self.masks = np.zeros((n, size, size), bool)
        side = size // 4
        for i in range(train, n, 2):
            y, x = rng.integers(0, size - side, 2)
            self.masks[i, y : y + side, x : x + side] = True
        self.images[self.masks] = 255
        label = self.masks.any((1, 2)).astype(np.int8)
        self.array = self.images
        self.records = Records.of(
            [
                {
                    "split": "train" if i < train else "test",
                    "label": int(label[i]),
                    "defect": "square" if label[i] else "good",
                    "path": str(i),
                    "mask": "in memory" if label[i] else "",
                }
                for i in range(n)
            ]
        )

    def read_image(self, row: int) -> np.ndarray:
        return self.images[row]

    def read_mask(self, row: int) -> np.ndarray:
        return self.masks[row]

    def fingerprint(self) -> str:
        return f"stripes{self.images.shape}{self.images.sum()}"


def variants() -> list[str]:
    """Every method and its CPU preset; the other variants change numbers or switches that their own tests look at."""
    return [name for name in choices("method") if "/" not in name or name.endswith("/small")]


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(runs.conf_dir()), version_base="1.3"):
        kinds = compose("config", overrides=[f"method={name}"]).method.recipe.input
        data = {"small": "digits", "texture": "textures/grass", "object": "mvtec/bottle", "tabular": "odds/cardio"}
        kind = next(kind for kind in data if kind in kinds)
        if kind == "tabular":
            pytest.skip("tabular methods have a contract of their own")
        return compose("config", overrides=[f"method={name}", f"data={data[kind]}", "data_root=/nowhere", *overrides])


def make(name: str, tmp_path, batches: int = BATCHES, *overrides: str):
    from omegaconf import OmegaConf

    cfg = composed(name, *overrides)
    pl.seed_everything(0, workers=True, verbose=False)
    method = runs.build_method(cfg)
    size = cfg.data.image_size if isinstance(cfg.data.image_size, int) else list(cfg.data.image_size)
    protocol = {k: v for k, v in OmegaConf.to_container(cfg.protocol, resolve=True).items() if k != "id"}
    from hydra.utils import instantiate

    source = Stripes(size if isinstance(size, int) else max(size))
    datamodule = DataModule(
        source, instantiate(protocol), image_size=size, batch_size=4, eval_batch_size=4, workers=0, seed=0,
        cache_dir=tmp_path / "cache", supervision=method.supervision,
    )  # fmt: skip
    datamodule.setup()
    method.total_batches = batches
    return method, datamodule


def fit(method, datamodule, tamper=None, precision="32-true"):
    batches = method.total_batches
    if batches and trains(method):
        datamodule.set_budget(batches)
        callbacks = [tamper] if tamper else []
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, num_sanity_val_steps=0,
            precision=precision,
        )  # fmt: skip
        trainer.fit(method, datamodule=datamodule)
    else:
        method.prepare(datamodule.training_batches("cpu"))
    method.eval()
    with torch.no_grad():
        method.calibrate(datamodule.holdout_batches("cpu"))
    return method


def trains(method) -> bool:
    return any(p.requires_grad for p in method.parameters())


def images_under_test(datamodule) -> torch.Tensor:
    batches = list(datamodule.test_dataloader())
    return torch.cat([datamodule.on_after_batch_transfer(b, 0).image for b in batches])


@pytest.mark.parametrize("name", variants())
def test_method_contract(name, tmp_path):
    """Trains every parameter, scores every row by itself, and survives a checkpoint."""
    method, datamodule = make(name, tmp_path)
    before = {n: p.detach().clone() for n, p in method.named_parameters() if p.requires_grad}
    fit(method, datamodule)
    if trains(method):
        # A step below float32's resolution leaves a weight of 1 as it was; its gradient shows that it is trained.
        same = [n for n, p in method.named_parameters() if n in before and torch.equal(p, before[n])]
        same = [n for n in same if (grad := method.get_parameter(n).grad) is None or not grad.any()]
        assert [n for n in same if not n.startswith(tuple(method.gradient_free))] == []

    image = images_under_test(datamodule)
    with torch.no_grad():
        scores = method.score(image)
        assert scores.image.shape == (len(image),)
        assert scores.image.dtype == torch.float32
        assert torch.isfinite(scores.image).all()
        assert (scores.maps is not None) == method.has_maps
        if scores.maps is not None:
            assert scores.maps.shape == (len(image), 1, *image.shape[2:])
            assert torch.isfinite(scores.maps).all()
        alone = torch.cat([method.score(row[None]).image for row in image[:3]])
        torch.testing.assert_close(alone, scores.image[:3], rtol=1e-4, atol=1e-6)
        reconstruction = method.reconstruct(image)
        if reconstruction is not None:
            assert reconstruction.shape == image.shape
            assert reconstruction.min() >= 0
            assert reconstruction.max() <= 1

    state = {n: v.clone() for n, v in method.state_dict().items()}
    twin, _ = make(name, tmp_path)
    twin.load_state_dict(state)
    twin.eval()
    with torch.no_grad():
        assert torch.equal(twin.score(image).image, scores.image)


class Relabel(pl.Callback):
    """Puts random labels (and, for methods that must be blind to them, semi-labels) into the training batch."""

    def __init__(self, semi: bool) -> None:
        self.semi = semi

    def on_train_start(self, trainer, pl_module):
        original = trainer.datamodule.on_after_batch_transfer

        def relabelled(batch: Batch, index: int = 0) -> Batch:
            batch = original(batch, index)
            generator = torch.Generator().manual_seed(5)
            label = torch.randint(0, 2, batch.label.shape, generator=generator)
            batch = batch._replace(label=label)
            return batch._replace(semi_label=label * 2 - 1) if self.semi else batch

        trainer.datamodule.on_after_batch_transfer = relabelled


@pytest.mark.parametrize("name", variants())
def test_no_label_reaches_the_weights(name, tmp_path):
    method, datamodule = make(name, tmp_path, 2)
    if not trains(method):
        pytest.skip("has no training step")
    plain = fit(method, datamodule).state_dict()
    method, datamodule = make(name, tmp_path, 2)
    tampered = fit(method, datamodule, Relabel(semi=method.supervision == "unsupervised")).state_dict()
    assert [n for n in plain if not torch.equal(plain[n], tampered[n])] == []


@pytest.mark.parametrize("name", [n for n in variants() if n.endswith("/small")] + ["autoencoder", "vae", "deep_svdd"])
def test_methods_train_in_mixed_precision(name, tmp_path):
    method, datamodule = make(name, tmp_path, 4)
    fit(method, datamodule, precision="bf16-mixed")
    assert method.batches_seen == 4
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
    with torch.no_grad():
        assert torch.isfinite(method.score(images_under_test(datamodule)).image).all()


# Training batches after which a bright square on soft stripes must stand out. The full-size networks of a paper learn
# the same objectives as their small presets, too slowly for a test.
SHORT_FIT = {"brightness": 0, "pca": 0, "cbigan/small": 60, "egbad/small": 60}


@pytest.mark.parametrize("name", sorted(SHORT_FIT))
def test_after_a_short_fit_a_corrupted_image_outscores_its_clean_self(name, tmp_path):
    method, datamodule = make(name, tmp_path, SHORT_FIT[name])
    fit(method, datamodule)
    clean = datamodule.on_after_batch_transfer(next(iter(datamodule.test_dataloader())), 0)
    clean = clean.image[clean.label == 0]
    corrupted = clean.clone()
    side = clean.shape[-1] // 3
    corrupted[:, :, 4 : 4 + side, 6 : 6 + side] = 1.0
    with torch.no_grad():
        before, after = method.score(clean), method.score(corrupted)
    assert (after.image > before.image).all()
    if after.maps is not None:
        inside = after.maps[:, :, 4 : 4 + side, 6 : 6 + side].mean()
        assert inside > 2 * before.maps.mean()

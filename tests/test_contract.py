"""What every method promises, whatever its mathematics."""

import pytest
import pytorch_lightning as pl
import torch
from compositions import composed
from hydra.utils import get_class

from adbench.experiment.build import build_method
from adbench.experiment.groups import choices
from adbench.methods.base import Adversarial
from adbench.methods.trivial import PCAResidual
from adbench.testing import check_method, fit, images_under_test, stripes

CYCLE = 12  # batches of one full cycle of phases of every method, and some before and after an interruption
ADAPTERS = ("anomalib", "pyod")  # other libraries' detectors have a contract table of their own: tests/adapters
WITHOUT_PHASES = 3  # for the full size of a method that does the same in every batch


def variants() -> list[str]:
    """Every method and its CPU preset; the other variants change numbers or switches that their own tests look at."""
    names = [name for name in choices("method") if not name.startswith(ADAPTERS)]
    return [name for name in names if "/" not in name or name.endswith("/small")]


def configuration(name: str, *overrides: str):
    """A method's configuration on the first kind of data that it takes."""
    kinds = composed(f"method={name}").method.recipe.input
    data = {"small": "digits", "texture": "textures/grass", "object": "mvtec/bottle", "tabular": "odds/cardio"}
    kind = next(kind for kind in data if kind in kinds)
    if kind == "tabular":
        pytest.skip("tabular methods have a contract of their own")
    return composed(f"method={name}", f"data={data[kind]}", "data_root=/nowhere", *overrides)


def make(name: str, tmp_path, *overrides: str):
    """An untrained method and the stripes it takes."""
    cfg = configuration(name, *overrides)
    pl.seed_everything(0, workers=True, verbose=False)
    method = build_method(cfg)
    size = cfg.data.image_size if isinstance(cfg.data.image_size, int) else list(cfg.data.image_size)
    return method, stripes(method, size, tmp_path / "cache")


FULL_SIZE = ("pwae", "padim", "igd")  # these take long; their small presets are looked at in every run of the tests


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in FULL_SIZE else name for name in variants()]
)
def test_method_contract(name):
    """Trains every parameter, sees no label, scores every row by itself, survives a checkpoint, resumes exactly."""
    cfg = configuration(name)
    size = cfg.data.image_size if isinstance(cfg.data.image_size, int) else list(cfg.data.image_size)
    small = name.endswith("/small")
    batches = CYCLE if small or issubclass(get_class(cfg.method._target_), Adversarial) else WITHOUT_PHASES
    check_method(lambda: build_method(cfg), image_size=size, batches=batches, resume=small)


REFERENCES = ("knn/small", "padim/small", "patchcore/small")  # which have no training step


@pytest.mark.parametrize(
    "name",
    [n for n in variants() if n.endswith("/small") and n not in REFERENCES] + ["autoencoder", "vae", "deep_svdd"],
)
def test_methods_train_in_mixed_precision(name, tmp_path):
    method, datamodule = make(name, tmp_path)
    fit(method, datamodule, 4, precision="bf16-mixed")
    assert method.batches_seen == 4
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
    with torch.no_grad():
        assert torch.isfinite(method.score(images_under_test(datamodule)).image).all()


class Careless(PCAResidual):
    """Breaks one promise at a time."""

    def __init__(self, fault: str) -> None:
        super().__init__(components=4, image_size=32)
        self.fault, self.hidden = fault, torch.zeros(())
        if fault == "never learns":
            self.unused = torch.nn.Linear(1, 1)

    def prepare(self, batches):
        super().prepare(batches)
        self.hidden = self.hidden + 1.0

    def training_step(self, batch, batch_idx):
        return self.unused.weight.sum() * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def score(self, image):
        scores = super().score(image)
        return {
            "sees its neighbours": scores._replace(image=scores.image - scores.image.mean()),
            "keeps state outside its buffers": scores._replace(image=scores.image + self.hidden),
            "maps of another size": scores._replace(maps=scores.maps[..., ::2]),
            "not finite": scores._replace(image=scores.image / 0),
        }.get(self.fault, scores)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sees its neighbours", "a row alone scores differently"),
        ("keeps state outside its buffers", "state dict does not bring the scores back"),
        ("maps of another size", "maps are"),
        ("not finite", "not finite"),
        ("never learns", "never learn"),
    ],
)
def test_a_method_that_breaks_a_promise_is_told_which(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_method(lambda: Careless(fault), batches=1)


# Training batches after which a bright square on soft stripes must stand out. The full-size networks of a paper learn
# the same objectives as their small presets, too slowly for a test.
SHORT_FIT = {"brightness": 0, "pca": 0, "cbigan/small": 60, "egbad/small": 60}


@pytest.mark.parametrize("name", sorted(SHORT_FIT))
def test_after_a_short_fit_a_corrupted_image_outscores_its_clean_self(name, tmp_path):
    method, datamodule = make(name, tmp_path)
    fit(method, datamodule, SHORT_FIT[name])
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

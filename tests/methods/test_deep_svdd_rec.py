import functools
import re

import pytest
import torch
from hydra import compose, initialize_config_dir

from adbench.experiment.build import build, build_method
from adbench.experiment.groups import conf_dir
from adbench.losses.igd import reconstruction
from adbench.methods.deep_svdd_rec import DeepSVDDRec
from adbench.pretraining import imagenet
from adbench.types import Batch


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def batch(image: torch.Tensor) -> Batch:
    zeros = torch.zeros(len(image), dtype=torch.long)
    return Batch(image, zeros - 1, zeros, zeros, zeros)


@pytest.fixture
def method() -> DeepSVDDRec:
    torch.manual_seed(0)
    built = DeepSVDDRec(
        32, trunk="residual", width=0.125, latent=8, rho=0.15, freeze=True, center_floor=0.1,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3), schedule=None,
    ).eval()  # fmt: skip
    with torch.no_grad():
        built.prepare([batch(images())])
    return built


def test_the_score_is_the_distance_plus_the_residual_with_unit_weights(method):
    x = method.normalize(images(1))
    z = method.encoder(x)
    expected = (z - method.networks.center).square().sum(1) + reconstruction(
        x, method.networks.decoder(z), **method.residual
    )
    scores = method.score(images(1))
    torch.testing.assert_close(scores.image, expected)
    assert scores.maps.shape == (6, 1, 32, 32)


def test_the_loss_is_the_mean_of_what_scores(method):
    terms = method.objective(batch(images(1)))
    torch.testing.assert_close(sum(terms.values()), method.score(images(1)).image.mean())


def test_the_embedding_has_no_bias_that_could_reach_the_center_alone(method):
    assert method.encoder.projection.bias is None
    assert (method.networks.center.abs() >= 0.1).all()


def test_a_pretrained_trunk_is_held_fixed_with_its_statistics(method):
    assert all(p.requires_grad for p in method.networks.encoder.trunk.parameters())
    method.on_pretrained()
    method.train()
    assert not method.networks.encoder.trunk.training
    assert method.networks.decoder.training
    method.objective(batch(images()))["distance"].backward()
    assert all(p.grad is None for p in method.networks.encoder.trunk.parameters())
    assert method.encoder.projection.weight.grad is not None


def test_a_resumed_run_holds_its_trunk_fixed_too(method):
    method.on_pretrained()
    torch.manual_seed(1)
    resumed = type(method)(
        32, trunk="residual", width=0.125, latent=8, rho=0.15, freeze=True, center_floor=0.1,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3), schedule=None,
    )  # fmt: skip
    resumed.on_load_checkpoint({"batches_seen": 3, "state_dict": method.state_dict()})
    assert not any(p.requires_grad for p in resumed.networks.encoder.trunk.parameters())


@pytest.mark.parametrize("data", ["digits", "mvtec/bottle"])
def test_the_pretraining_that_the_presets_head_advises_takes_its_trunks_of_both_sizes(data, monkeypatch):
    head = (conf_dir() / "method" / "deep_svdd" / "rec.yaml").read_text()
    advised = set(re.findall(r"pretraining=(\w+)", head))
    assert advised
    for piece in ("weights_file", "read_weights", "fill"):
        monkeypatch.setattr(imagenet, piece, lambda *_: None)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name in advised:
            cfg = compose("config", [f"data={data}", "method=deep_svdd/rec", f"pretraining={name}", "data_root=."])
            pretraining = build({key: value for key, value in cfg.pretraining.items() if key != "id"})
            pretraining.check(build_method(cfg))

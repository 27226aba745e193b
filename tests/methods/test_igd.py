"""IGD as a method: who learns from what, when the Gaussian is estimated, how scores are put together."""

import functools
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from adbench.losses import igd as loss
from adbench.methods.base import polynomial
from adbench.transforms.sliding import all_windows
from adbench.types import Batch, UserError

CONF = str(Path(__file__).parents[2] / "conf")
TINY = {"width": 0.125, "latent": 8}


@functools.cache
def _config(name, kind, side):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(None, overrides=[f"+method={name}", f"+data.kind={kind}", f"+data.image_size={side}"])
    return OmegaConf.to_container(cfg.method, resolve=True)


def build(name="igd", kind="small", side=32, seed=0, **changes):
    config = {k: v for k, v in _config(name, kind, side).items() if k != "recipe"} | TINY | changes
    torch.manual_seed(seed)
    return instantiate(config, _convert_="all")


def images(n=4, side=32, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def batch_of(image):
    zeros = torch.zeros(len(image), dtype=torch.long)
    return Batch(image, zeros - 1, zeros, torch.zeros(len(image), 1, 1, 1, dtype=torch.bool), torch.arange(len(image)))


class Data(LightningDataModule):
    """The part of the datamodule's contract that a fit needs."""

    def __init__(self, image, batch_size, total):
        super().__init__()
        self.image, self.batch_size, self.total = image, batch_size, total
        self.batches_per_epoch = len(image) // batch_size
        self.passes = 0

    def train_dataloader(self):
        batches = self.image.split(self.batch_size)
        rows = [batch_of(batches[k % len(batches)]) for k in range(self.total)]
        return DataLoader(rows, batch_size=None)

    def training_batches(self, device):
        self.passes += 1
        yield from (batch_of(chunk) for chunk in self.image.split(self.batch_size))


def fit(method, image, batch_size=4, total=2):
    method.total_batches = total
    data = Data(image, batch_size, total)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", precision="32-true",
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return data


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def open_batch(method, image):
    """What `training_step` does before the players' turns."""
    method.train()
    method._decoded = {scale: method._decode(scale, image) for scale in method.scales}


# -- who learns from what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic_first", [True, False])
def test_the_critics_objective_gives_no_gradient_to_encoder_or_decoder(critic_first):
    method = build(critic_first=critic_first)
    open_batch(method, images())
    torch.stack(list(method.critic_objective("global", None).values())).sum().backward()
    d = method.descriptors["global"]
    assert all(p.grad is None for p in [*d.encoder.parameters(), *d.decoder.parameters()])
    assert all(p.grad is not None for p in d.critic.parameters())


def test_the_generators_turn_leaves_the_critic_unchanged_and_the_critics_turn_leaves_the_rest():
    method = build(lambda_1=0.0)  # the critic's loss is zero, so only a leak from the other turn could move it
    method.configure_optimizers()
    before = snapshot(method.descriptors["global"].critic)
    fit(method, images(8))
    assert not changed(method.descriptors["global"].critic, before)

    method = build(lambda_2=0.0, gaussian=False)
    d = method.descriptors["global"]
    before = {name: p.clone() for name, p in [*d.encoder.named_parameters(), *d.decoder.named_parameters()]}
    critic = snapshot(d.critic)
    for factory in ("generator", "critic"):
        method._optimizer_factories[f"global_{factory}"].keywords["weight_decay"] = 0.0
    fit(method, images(8))
    after = dict([*d.encoder.named_parameters(), *d.decoder.named_parameters()])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert changed(d.critic, critic)


@pytest.mark.parametrize(
    ("name", "side"), [("igd", 32), ("igd", 64), ("igd/gac", 32), ("igd/rec", 32), ("igd/mse", 32)]
)
def test_two_batches_change_every_trainable_parameter(name, side):
    method = build(name, "object" if side > 32 else "small", side, patches_per_image=2)
    before = snapshot(method)
    fit(method, images(8, side))
    trainable = {name for name, p in method.named_parameters() if p.requires_grad}
    assert trainable <= changed(method, before)


def test_a_pretrained_trunk_never_changes_and_one_from_scratch_does():
    for pretrained in (True, False):
        method = build()
        if pretrained:
            method.on_pretrained()
        trunk = method.descriptors["global"].encoder.trunk
        before = snapshot(trunk)
        fit(method, images(8))
        assert trunk.training is not pretrained
        assert bool(changed(trunk, before)) is not pretrained


def test_a_pretrained_trunk_may_be_trained_on():
    method = build(freeze=False)
    method.on_pretrained()
    before = snapshot(method.descriptors["global"].encoder.trunk)
    fit(method, images(8))
    assert changed(method.descriptors["global"].encoder.trunk, before)


def test_a_checkpoint_brings_back_that_the_trunk_was_frozen():
    method = build()
    method.on_pretrained()
    checkpoint = {"state_dict": method.state_dict(), "batches_seen": 3}
    restored = build()
    restored.on_load_checkpoint(checkpoint)
    assert restored.frozen
    assert not any(p.requires_grad for p in restored.descriptors["global"].encoder.trunk.parameters())


def test_without_the_critics_weights_the_critic_has_no_influence():
    gradients = []
    for method in (build(lambda_1=0.0, lambda_3=0.0), build("igd/gac")):
        if method.interpolation:
            reference = snapshot(method)
        else:  # the same weights: a critic more or less shifts the initial draw
            method.load_state_dict({k: v for k, v in reference.items() if ".critic." not in k})
        open_batch(method, images())
        torch.stack(list(method.generator_objective("global", None).values())).sum().backward()
        d = method.descriptors["global"]
        gradients.append([p.grad for p in [*d.encoder.parameters(), *d.decoder.parameters()]])
    for with_critic, without in zip(*gradients, strict=True):
        assert torch.allclose(with_critic, without, atol=1e-7)


def test_the_shared_decoder_pass_gives_the_critic_what_decoding_again_would():
    values = []
    for critic_first in (True, False):
        method = build(critic_first=critic_first, bn_frozen=True)
        open_batch(method, images())
        values.append(torch.stack(list(method.critic_objective("global", None).values())))
    assert torch.allclose(values[0], values[1], atol=1e-6)


def test_interpolated_embeddings_are_mixed_with_another_sample_by_less_than_half():
    for pairing, other in (("next", [3, 0, 1, 2]), ("mirror", [3, 2, 1, 0])):
        method = build(pairing=pairing)
        open_batch(method, images())
        decoded = method._decoded["global"]
        assert ((decoded.alpha >= 0) & (decoded.alpha <= 0.5)).all()
        expected = loss.interpolate(decoded.z, decoded.z[other], decoded.alpha)
        assert torch.allclose(decoded.mixed, expected)


def test_the_zeta_of_the_blend_is_a_constant_or_drawn_per_sample():
    fixed, uniform = (build(zeta=zeta, bn_frozen=True) for zeta in (0.2, "uniform"))
    for method in (fixed, uniform):
        open_batch(method, images())
    a, b = (m.critic_objective("global", None) for m in (fixed, uniform))
    assert torch.equal(a["coefficient"], b["coefficient"])
    assert not torch.equal(a["blend"], b["blend"])


def test_released_batch_normalisation_stays_at_its_initial_statistics():
    method = build("igd/released", freeze=True)
    before = snapshot(method.descriptors["global"])
    fit(method, images(8))
    assert not [name for name in changed(method.descriptors["global"], before) if "running" in name]


def test_an_objective_copies_nothing_to_the_host():
    class NoCopy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read on the host"
            return func(*args, **(kwargs or {}))

    method = build(kind="object", side=64, patches_per_image=2)
    method.train()
    with NoCopy():
        open_batch(method, method._augmented(images(2, 64)))
        for scale in method.scales:
            method.critic_objective(scale, None)
            torch.stack(list(method.generator_objective(scale, None).values())).sum().backward()


def test_bfloat16_changes_no_loss_term_by_more_than_two_percent():
    method = build(side=64, kind="object", width=0.25, patches_per_image=4)
    terms = []
    for low_precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            open_batch(method, images(4, 64))
            one = {}
            for scale in method.scales:
                one |= {(scale, k): v.item() for k, v in method.critic_objective(scale, None).items()}
                one |= {(scale, k): v.item() for k, v in method.generator_objective(scale, None).items()}
        terms.append(one)
    for name, value in terms[0].items():
        assert terms[1][name] == pytest.approx(value, rel=0.02, abs=2e-3), name


def test_interpolation_needs_two_images():
    with pytest.raises(UserError, match=r"data\.batch_size=2"):
        build().training_step(batch_of(images(1)), 0)


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 1e-4), (0.5, 5.3589e-5), (0.75, 2.8717e-5), (1.0, 0.0)])
def test_the_learning_rate_decays_polynomially(progress, rate):
    config = _config("igd", "small", 32)
    assert config["schedule"]["power"] == 0.9
    assert config["optimizers"]["generator"]["lr"] * polynomial(0.9)(progress) == pytest.approx(rate, rel=1e-4)


# -- E-step -----------------------------------------------------------------------------------------------------------


def test_the_e_step_takes_mean_and_mean_squared_distance_of_the_embeddings():
    method = build(center_floor=0.0, variance_floor=0.0)
    method.on_pretrained()  # frozen: the first E-step is in eval mode like all later ones
    image = images(10)
    method.prepare([batch_of(image[:4]), batch_of(image[4:])])
    d = method.eval().descriptors["global"]
    with torch.no_grad():
        z = d.encoder(method.normalize(image))
    assert torch.allclose(d.center, z.mean(0), atol=1e-5)
    assert torch.allclose(d.variance, (z - z.mean(0)).square().sum(1).mean(), rtol=1e-4)


def test_the_released_order_takes_the_variance_about_the_old_center():
    method = build(center_floor=0.0, variance_floor=0.0, e_step_order="variance_first")
    method.on_pretrained()
    d, image = method.descriptors["global"], images(6)
    d.center.fill_(2.0)
    method.e_step([batch_of(image)], first=False)
    with torch.no_grad():
        z = d.encoder(method.normalize(image))
    assert torch.allclose(d.variance, (z - 2.0).square().sum(1).mean(), rtol=1e-4)
    assert torch.allclose(d.center, z.mean(0), atol=1e-5)


def test_the_e_step_comes_before_training_and_every_ten_epochs():
    assert _config("igd", "small", 32)["e_step_every"] == 10
    data = fit(build("igd/gac", e_step_every=2), images(4), batch_size=2, total=9)  # before batches 0, 4 and 8
    assert data.passes == 3


def test_a_number_of_e_steps_is_spread_over_the_training_whatever_its_epochs():
    assert fit(build("igd/gac", e_steps=3), images(4), batch_size=2, total=9).passes == 3  # before batches 0, 3 and 6
    assert fit(build("igd/gac", e_steps=2), images(4), batch_size=2, total=9).passes == 2


def test_the_local_e_step_sees_every_patch():
    method = build(kind="object", side=64, center_floor=0.0)
    method.on_pretrained()
    image = images(3, 64)
    method.prepare([batch_of(image)])
    d = method.descriptors["local"]
    with torch.no_grad():
        z = d.encoder.eval()(all_windows(method.normalize(image), 32, 16))
    assert len(z) == 27
    assert torch.allclose(d.center, z.mean(0), atol=1e-5)


# -- scores -----------------------------------------------------------------------------------------------------------


def parts(method, image):
    """l_r and l_h of every sample of each scale, straight from the networks."""
    found = {}
    with torch.no_grad():
        for scale, d in method.descriptors.items():
            x = method.normalize(image)
            x = all_windows(x, 32, 16) if scale == "local" else x
            z = d.encoder(x)
            residual = loss.reconstruction(x, d.decoder(z), rho=0.15, **method._window[scale])
            anomalous = loss.gaussian(z, d.center, d.variance)
            found[scale] = [v.view(len(image), -1) for v in (residual, anomalous)]
    return found


@pytest.mark.parametrize("fusion", ["paper", "released"])
def test_the_score_adds_the_whole_image_and_its_worst_patch(fusion):
    method = build(kind="object", side=64, fusion=fusion).eval()
    image = images(3, 64)
    (r_global, h_global), (r_local, h_local) = parts(method, image).values()
    if fusion == "paper":
        expected = (r_global + h_global).squeeze(1) + (r_local + h_local).amax(1)
    else:
        expected = 0.5 * (0.1 * r_global + 0.9 * h_global).squeeze(1) + 0.5 * (0.9 * r_local + 0.1 * h_local).amax(1)
    with torch.no_grad():
        assert torch.allclose(method.score(image).image, expected, atol=1e-5)


@pytest.mark.parametrize("scale", ["global", "local"])
def test_a_scale_can_be_run_alone(scale):
    method = build(kind="object", side=64, scales=[scale]).eval()
    residual, anomalous = parts(method, images(2, 64))[scale]
    with torch.no_grad():
        scores = method.score(images(2, 64))
    assert list(method.encoders()) == [scale]
    assert torch.allclose(scores.image, (residual + anomalous).amax(1), atol=1e-5)
    assert method.reconstruct(images(2, 64)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("kind", "side"), [("small", 32), ("object", 64)])
def test_a_score_does_not_depend_on_the_rest_of_the_batch_or_on_the_chunking(kind, side):
    method = build(kind=kind, side=side).eval()
    image = images(5, side)
    with torch.no_grad():
        together = method.score(image)
        method.eval_patches = 3
        alone = method.score(image[2:3])
    assert together.maps.shape == (5, 1, side, side)
    assert torch.allclose(together.image[2:3], alone.image, rtol=1e-4)
    assert torch.allclose(together.maps[2:3], alone.maps, atol=1e-5)


def test_scoring_changes_no_state():
    method = build(kind="object", side=64).eval()
    before = snapshot(method)
    with torch.no_grad():
        method.score(images(2, 64))
    assert not changed(method, before)


def test_small_images_have_the_global_scale_alone():
    assert build().scales == ["global"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": [64, 96], "kind": "object"}, "square images, got 64x96"),
        ({"side": 96, "kind": "object"}, "power of two"),
        ({"kind": "tabular"}, "got kind 'tabular'"),
        ({"fusion": "both"}, "method.fusion must be paper or released"),
        ({"rho": 1.5}, "in \\[0, 1\\], got 1.5"),
        ({"scales": ["middle"]}, "global, local or both"),
        ({"scales": ["local"]}, r"method.scales=\[global\]"),
    ],
)
def test_a_setting_that_cannot_be_says_what_was_expected(changes, message):
    options = {"kind": changes.pop("kind", "small"), "side": changes.pop("side", 32)}
    config = {k: v for k, v in _config("igd", "small", 32).items() if k != "recipe"} | TINY | changes
    config |= {"kind": options["kind"], "image_size": options["side"]}
    with pytest.raises(Exception, match=message) as caught:
        instantiate(config, _convert_="all")
    assert isinstance(caught.value.__cause__ or caught.value, UserError)


# -- it detects -------------------------------------------------------------------------------------------------------


def test_after_a_short_fit_a_corrupted_image_outscores_a_clean_one():
    position = torch.linspace(0, math.tau, 32)
    phase = torch.rand(32, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.6
    clean = (0.5 + 0.4 * torch.sin(position.view(1, 1, 1, 32) + phase)).expand(-1, 3, 32, 32).contiguous()
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 3e-3, "betas": [0.0, 0.9]}
    method = build(optimizers={"generator": adam, "critic": adam})
    fit(method, clean, batch_size=8, total=40)
    corrupted = clean.clone()
    corrupted[..., 8:20, 10:22] = 1 - corrupted[..., 8:20, 10:22]
    method.eval()
    with torch.no_grad():
        good, bad = method.score(clean), method.score(corrupted)
    assert bad.image.min() > good.image.max()
    inside = bad.maps[..., 8:20, 10:22].mean()
    assert inside > 1.2 * bad.maps[..., :, 26:].mean()

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
from adbench.losses.similarity import ms_ssim
from adbench.methods.base import polynomial
from adbench.transforms.sliding import all_windows
from adbench.types import Batch, UserError, chunk_sizes

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
    """What `training_step` does before the players' first turns."""
    method.train()
    samples = {scale: method._samples(scale, method.normalize(image))[0] for scale in method.scales}
    method._decoded = {scale: method._decode(scale, x) for scale, x in samples.items()}


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
    method = build(name, "object" if side > 32 else "small", side, patches_per_image=2, local_steps=1)
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

    method = build(kind="object", side=64, patches_per_image=2, local_steps=1)
    method.train()
    with NoCopy():
        open_batch(method, method._augmented(images(2, 64)))
        for scale in method.scales:
            method.critic_objective(scale, None)
            torch.stack(list(method.generator_objective(scale, None).values())).sum().backward()


def test_bfloat16_changes_no_loss_term_by_more_than_two_percent():
    method = build(side=64, kind="object", width=0.25, patches_per_image=4, local_steps=1)
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


# -- several local steps in a batch -----------------------------------------------------------------------------------


def test_at_budget_paper_the_local_model_takes_the_papers_steps_and_sees_every_patch_in_every_epoch():
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=["experiment=igd/table2", "data=mvtec/bottle", "data_root=/nowhere"])
    rows, epochs = 209, 256  # MVTec AD's bottle; the paper's epochs
    assert cfg.protocol.holdout == 0
    batches = cfg.budget.max_epochs * (rows // cfg.data.batch_size)
    steps = batches * cfg.method.local_steps
    assert steps == epochs * (rows // 2) == 26_624  # as published: two images of 225 patches a step
    assert cfg.method.patches_per_image is None
    assert cfg.data.batch_size * 225 / cfg.method.local_steps == 2 * 225
    head = (Path(CONF) / "method" / "igd.yaml").read_text()
    assert f"{steps:,}" in head.replace("\n# ", " ")


def test_local_steps_deal_out_all_patches_of_a_batch_once_and_step_the_local_players_alone():
    method = build(kind="object", side=64, local_steps=4)
    seen, turns = [], []
    decode, after = method._decode, method.after_phase
    method._decode = lambda scale, x, step: (seen.append((scale, x)), decode(scale, x, step))[1]
    method.after_phase = lambda phase: (turns.append(phase.name), after(phase))[1]
    method.flip = False
    fit(method, images(4, 64), total=1)
    patches = torch.cat([x for scale, x in seen if scale == "local"])
    assert [len(x) for scale, x in seen if scale == "local"] == [9, 9, 9, 9]
    expected = all_windows(method.normalize(images(4, 64)), 32, 16)
    assert torch.equal(patches.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
    assert turns.count("local_generator") == turns.count("local_critic") == 4
    assert turns.count("global_generator") == turns.count("global_critic") == 1


def test_the_steps_of_a_batch_draw_other_numbers_and_the_same_ones_again():
    drawn = []
    for _ in range(2):
        method = build(kind="object", side=64, local_steps=2, zeta="uniform").train()
        samples = method._samples("local", method.normalize(images(4, 64)))
        drawn.append([method._decode("local", x, step) for step, x in enumerate(samples)])
    (first, second), (again, _) = drawn
    for name in ("alpha", "zeta"):
        assert not torch.equal(getattr(first, name), getattr(second, name)), name
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert torch.equal(first.x, again.x)


def test_a_run_with_several_local_steps_resumes_at_a_batch_to_the_same_weights():
    def trained(stops):
        method = build(kind="object", side=64, local_steps=3, e_steps=1)
        states = None
        for stop in stops:
            method, states = continued(method, states, stop)
        return method.state_dict()

    def continued(method, states, stop):
        rows = images(8, 64)
        fresh = build(kind="object", side=64, local_steps=3, e_steps=1)
        if states is not None:
            fresh.on_load_checkpoint({"state_dict": states[0], "batches_seen": states[2]})
            fresh.load_state_dict(states[0])
        fresh.total_batches = 4
        data = Data(rows, 4, stop)
        start = fresh.batches_seen
        data.train_dataloader = lambda: DataLoader(
            [batch_of(rows.split(4)[k % 2]) for k in range(start, stop)], batch_size=None
        )
        trainer = Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", precision="32-true",
        )  # fmt: skip
        if states is not None:
            configure = fresh.configure_optimizers

            def with_state():
                optimizers = configure()
                for optimizer, state in zip(optimizers, states[1], strict=True):
                    optimizer.load_state_dict(state)
                return optimizers

            fresh.configure_optimizers = with_state
        trainer.fit(fresh, datamodule=data)
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        return fresh, (snapshot(fresh), optimizers, fresh.batches_seen)

    straight, resumed = trained([4]), trained([2, 4])
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_more_local_steps_than_patches_are_refused_with_both_numbers():
    method = build(kind="object", side=64, patches_per_image=1, local_steps=3)
    with pytest.raises(UserError, match=r"4 patches of a batch are too few for method\.local_steps=3"):
        fit(method, images(4, 64), total=1)


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


@pytest.mark.parametrize(("rows", "chunk"), [(33, 32), (5, 1), (3, 2), (4, 3)])
def test_a_trunk_from_scratch_gets_through_its_first_e_step_whatever_remains(rows, chunk):
    """ResNet-18 at 32 px normalises one value per channel and image: a piece of one image cannot pass in train mode."""
    method = build(trunks={"small": "resnet18", "global": "resnet18", "local": "residual"}, eval_patches=chunk)
    pieces = images(rows).split(chunk_sizes(rows, chunk))
    method.prepare([batch_of(piece) for piece in pieces])
    assert torch.isfinite(method.descriptors["global"].center).all()


@pytest.mark.parametrize("patches", [None, 4])
def test_with_a_frozen_trunk_the_e_step_gives_the_same_from_one_pass_over_the_rows(patches):
    method = build(kind="object", side=64, e_step_patches=patches, center_floor=0.0, variance_floor=0.0)
    method.on_pretrained()
    batches = [batch_of(piece) for piece in images(6, 64).split(4)]
    method.prepare(batches)
    with torch.no_grad():
        for d in method.descriptors.values():
            d.encoder.projection.weight.mul_(1.5).add_(0.01)
            d.encoder.projection.bias.add_(0.3)
    calls = []
    for d in method.descriptors.values():
        d.encoder.trunk.register_forward_hook(lambda *_: calls.append(1))
    method.e_step(batches, first=False)
    assert bool(calls) is (patches is not None)  # other patches are drawn each time: these are looked at again
    found = [(d.center.clone(), d.variance.clone()) for d in method.descriptors.values()]
    method._fixed_features = lambda scale: False
    method.e_step(batches, first=False)
    for (center, variance), d in zip(found, method.descriptors.values(), strict=True):
        assert torch.allclose(center, d.center, atol=1e-5)
        assert torch.allclose(variance, d.variance, rtol=1e-5)


def test_features_that_were_kept_go_when_the_trunk_is_filled_anew():
    method = build()
    method.on_pretrained()
    method.prepare([batch_of(images())])
    assert method._features
    method.on_pretrained()
    assert not method._features


def test_plain_decoder_statistics_are_those_of_plain_embeddings_alone():
    rows = images(8)
    found = {}
    for which in ("trained", "plain"):
        method = build(decoder_statistics=which, freeze=True)
        method.on_pretrained()
        fit(method, rows, batch_size=8, total=2)
        d = method.descriptors["global"].eval()
        with torch.no_grad():
            first = d.decoder[:2](d.encoder(method.normalize(rows)))  # what the first normalisation sees
        norm = next(m for m in d.decoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
        found[which] = torch.allclose(norm.running_mean, first.mean((0, 2, 3)), atol=1e-5)
        assert norm.momentum == 0.1
        for module in d.decoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert not torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
    assert found == {"trained": False, "plain": True}


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


def test_both_fusions_and_every_part_come_from_one_run():
    image = images(3, 64)
    torch.manual_seed(0)
    paper = build(kind="object", side=64).eval()
    released = build(kind="object", side=64, fusion="released").eval()
    (r_global, h_global), (r_local, h_local) = parts(paper, image).values()
    with torch.no_grad():
        found = paper.extra_scores(image)
        assert torch.allclose(found["sum"], paper.score(image).image, atol=1e-6)
        assert torch.allclose(found["released"], released.score(image).image, atol=1e-6)
        again = released.extra_scores(image)
    assert all(torch.allclose(found[name], again[name], atol=1e-6) for name in found)
    assert torch.allclose(found["s_global"], (r_global + h_global).squeeze(1), atol=1e-5)
    assert torch.allclose(found["s_local"], (r_local + h_local).amax(1), atol=1e-5)
    for name, value in (("l_r_global", r_global), ("l_h_global", h_global), ("l_r_local", r_local)):
        assert torch.allclose(found[name], value.amax(1), atol=1e-5)
    assert torch.allclose(found["l_h_local"], h_local.amax(1), atol=1e-5)


def test_a_method_without_a_gaussian_has_the_parts_that_it_has():
    with torch.no_grad():
        assert set(build("igd/rec").eval().extra_scores(images())) == {"sum", "l_r_global"}


def test_the_parts_of_a_test_are_computed_once_and_never_taken_for_those_of_other_images():
    method = build().eval()
    first, second = images(seed=1), images(seed=2)
    passes = []
    method.descriptors["global"].encoder.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        scores = method.test_step(batch_of(first), 0)
        assert len(passes) == 1
        assert torch.equal(method.extra_scores(first)["sum"], scores.extras["sum"])
        assert not torch.equal(method.extra_scores(second)["sum"], scores.extras["sum"])


def test_accuracy_at_half_counts_scores_above_it_as_anomalous():
    columns = {"sum": torch.tensor([0.4, 0.6, 0.7, 0.2]), "released": torch.tensor([0.1, 0.2, 0.9, 0.8])}
    found = build().extra_metrics(columns, torch.tensor([0, 0, 1, 1]))
    assert found == {"sum_accuracy_at_0.5": 0.5, "released_accuracy_at_0.5": 1.0}


@pytest.mark.parametrize(("kind", "side"), [("small", 32), ("object", 64)])
def test_the_similarity_pyramid_is_computed_once_for_score_and_map(kind, side, monkeypatch):
    method, image = build(kind=kind, side=side).eval(), images(2, side)
    counts, pyramid = [], loss.ssim_pyramid
    monkeypatch.setattr(loss, "ssim_pyramid", lambda *a, **k: (counts.append(1), pyramid(*a, **k))[1])
    with torch.no_grad():
        scores = method.score(image)
    assert len(counts) == len(method.scales)
    if kind == "small":
        d, x = method.descriptors["global"], method.normalize(image)
        with torch.no_grad():
            x_hat = d.decoder(d.encoder(x))
        expected = loss.residual_map(x, x_hat, rho=0.15, **method._window["global"])
        assert torch.allclose(scores.maps, expected, atol=1e-6)


@pytest.mark.parametrize("scales", [["global"], ["local"], ["global", "local"]])
def test_codes_are_one_embedding_an_image_and_can_be_drawn(scales):
    method, image = build(kind="object", side=64, scales=scales).eval(), images(3, 64)
    with torch.no_grad():
        codes = method.codes(image)
        drawn = method.decode(codes)
    assert codes.shape == (3, 1, 8)
    if scales == ["local"]:
        residual, anomalous = parts(method, image)["local"]
        patches = all_windows(method.normalize(image), 32, 16).unflatten(0, (3, 9))
        worst = patches[torch.arange(3), (residual + anomalous).argmax(1)]
        with torch.no_grad():
            assert torch.allclose(codes[:, 0], method.descriptors["local"].encoder(worst), atol=1e-5)
        assert drawn.shape == (3, 3, 32, 32)
    else:
        assert torch.allclose(drawn, method.reconstruct(image), atol=1e-6)
    assert method.decodes


def test_the_print_is_followed_to_the_letter():
    config = _config("igd/literal", "object", 256)
    assert (config["zeta"], config["schedule"], config["flip"], config["pixels"]) == ("uniform", None, False, "sum")
    assert (config["center_floor"], config["variance_floor"]) == (0.0, 0.0)
    assert config["recipe"]["batch_sizes"] == {"object": 64, "texture": 64, "small": 64}
    for player in ("generator", "critic"):
        optimizer = config["optimizers"][player]
        assert (optimizer["lr"], optimizer["weight_decay"], optimizer["betas"]) == (1e-4, 1e-6, [0.9, 0.999])
    assert 64 * 225 / config["local_steps"] == 64
    method = build("igd/literal", "object", 64, local_steps=2)
    fit(method, images(4, 64), batch_size=4, total=1)
    image = images(2, 64)
    method.eval()
    d, x = method.descriptors["global"], method.normalize(image)
    with torch.no_grad():
        x_hat = d.decoder(d.encoder(x))
        options = method._window["global"]
        similarity = ms_ssim(x, x_hat, data_range=4.7579, window=options["window"], weights=options["weights"])
        per_pixel = 0.15 * (x - x_hat).abs().mean(1) + 0.85 * (1 - similarity).view(2, 1, 1)  # Eq. 12 at every pixel
        assert torch.allclose(method.extra_scores(image)["l_r_global"], per_pixel.sum((1, 2)), rtol=1e-4)


def test_released_switches_of_32_px_images_are_those_of_the_published_32_px_code():
    small, whole = build("igd/released"), build("igd/released", "object", 64)
    last = lambda method, scale: method.descriptors[scale].critic[-2]  # noqa: E731
    assert isinstance(last(small, "global"), torch.nn.Sigmoid)
    assert isinstance(last(whole, "local"), torch.nn.Sigmoid)
    assert not isinstance(last(whole, "global"), torch.nn.Sigmoid)
    for method, side, broadcast in ((small, 32, False), (whole, 64, True)):
        open_batch(method, images(4, side))
        decoded = method._decoded["global"]
        with torch.no_grad():
            found = method.critic_objective("global", None)["coefficient"]
            again = method.descriptors["global"].decoder(decoded.mixed)
            expected = loss.coefficient(method.descriptors["global"].critic(again), decoded.alpha, broadcast=broadcast)
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)


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
        ({"local_steps": 0}, "method.local_steps must be a whole number of at least 1, got 0"),
        ({"decoder": "vgg"}, "method.decoder must be residual or resnet18"),
        ({"decoder": "resnet18", "side": 48, "kind": "object"}, "multiple of 32, got 48"),
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
    torch.manual_seed(0)
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

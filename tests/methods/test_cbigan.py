import re
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from adbench.losses.cbigan import encoder_generator_loss, l1_distance
from adbench.methods.cbigan import CBiGAN
from adbench.transforms.geometry import tile, untile
from adbench.types import Batch, UserError


def build(**changes):
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.9))
    arguments = {
        "kind": "small",
        "image_size": 32,
        "tile": 32,
        "rotation": (0.0, 0.0),
        "latent": 8,
        "width": 1,
        "hidden_bias": True,
        "kernels": "glorot_uniform",
        "alpha": 0.01,
        "consistency_reduction": "sum",
        "penalty_weight": 10.0,
        "penalty_pairing": "joint",
        "critic_steps": 1,
        "encoder_generator_steps": 1,
        "average_decay": 0.9,
        "average_every": 2,
        "average_corrected": True,
        "lambda_": 0.1,
        "features": "first_conv",
        "map_sigma": 0.0,
        "tiles_per_chunk": 4,
        "optimizers": {"critic": adam, "encoder_generator": adam},
        "schedule": None,
    }
    return CBiGAN(**{**arguments, **changes})


def texture(**changes):
    return build(**{"kind": "texture", "image_size": 64, "rotation": (0.0, 45.0), **changes})


def pictures(rows=4, side=32, seed=0):
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def batch_of(image):
    rows = len(image)
    none = torch.zeros(rows, dtype=torch.int64)
    return Batch(image, none - 1, none, torch.zeros(rows, 1, *image.shape[2:], dtype=torch.bool), torch.arange(rows))


class Stream(pl.LightningDataModule):
    """The same small batch again and again."""

    def __init__(self, image, batches):
        super().__init__()
        self.batches = [batch_of(image)] * batches

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def training_batches(self, device):
        return self.batches[:1]


def fit(method, batches, image=None):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    side = method.side if not method.is_texture else 2 * method.side
    trainer.fit(method, datamodule=Stream(pictures(side=side) if image is None else image, batches))
    return method


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@torch.no_grad()
def scored(method, image):
    method.eval()
    return method.score(image)


# -- players ----------------------------------------------------------------------------------------------------------


def test_the_critics_batch_leaves_encoder_and_generator_unchanged_and_the_next_batch_the_critic():
    method = build()
    start = {name: weights(getattr(method, name)) for name in ("critic", "encoder", "generator")}
    fit(method, 1)
    after_one = {name: weights(getattr(method, name)) for name in start}
    assert torch.equal(after_one["encoder"], start["encoder"])
    assert torch.equal(after_one["generator"], start["generator"])
    assert not torch.equal(after_one["critic"], start["critic"])

    both = fit(build(), 2)
    assert torch.equal(weights(both.critic), after_one["critic"])
    assert not torch.equal(weights(both.encoder), start["encoder"])
    assert not torch.equal(weights(both.generator), start["generator"])


def test_one_cycle_changes_every_trainable_parameter_but_the_critics_last_bias():
    method = build()
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    fit(method, 2)
    same = {name for name, p in method.named_parameters() if name in before and torch.equal(p, before[name])}
    assert same == set(CBiGAN.gradient_free)


@pytest.mark.parametrize(("critic", "others", "turns"), [(1, 1, "CECECE"), (5, 1, "CCCCCE"), (1, 2, "CEECEE")])
def test_players_take_turns_in_the_configured_ratio(critic, others, turns):
    of_critic, of_others = build(critic_steps=critic, encoder_generator_steps=others).phases()
    assert "".join("C" if of_critic.acts(k) else "E" for k in range(6)) == turns
    assert all(of_critic.acts(k) != of_others.acts(k) for k in range(20))


def gradient(method, objective):
    method.zero_grad()
    objective.backward()
    return torch.cat([p.grad.flatten() for m in (method.encoder, method.generator) for p in m.parameters()])


def test_egbads_gradient_is_that_of_the_adversarial_loss_and_never_computes_the_cycles():
    method, batch = build(alpha=0.0), batch_of(pictures())
    calls = []
    method.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    method.generator.register_forward_hook(lambda *_: calls.append("generator"))
    terms = method.encoder_generator_objective(batch)
    assert calls == ["encoder", "generator"]
    total = gradient(method, sum(terms.values()))

    x, z = method.view(batch.image), method.randn("latent", 4, 8)
    alone = encoder_generator_loss(method.critic(x, method.encoder(x)), method.critic(method.generator(z), z))
    torch.testing.assert_close(total, gradient(method, alone), rtol=1e-4, atol=1e-8)
    assert total.abs().max() > 0


def test_the_double_autoencoder_never_consults_the_critic():
    method, batch = build(alpha=1.0), batch_of(pictures())
    method.critic.forward = None  # calling it would raise
    terms = method.encoder_generator_objective(batch)
    assert terms["adversarial"] == 0
    assert sum(terms.values()) == terms["image_consistency"] + terms["latent_consistency"] >= 0
    assert gradient(method, sum(terms.values())).abs().max() > 0


def test_the_objective_is_linear_in_alpha():
    batch = batch_of(pictures())
    totals = [sum(build(alpha=a).encoder_generator_objective(batch).values()).item() for a in (0.0, 0.25, 1.0)]
    assert totals[1] == pytest.approx(0.75 * totals[0] + 0.25 * totals[2], rel=1e-5)


def test_the_critics_term_is_the_negative_of_the_encoder_generators_on_the_same_batch():
    method, batch = build(alpha=0.0), batch_of(pictures())
    of_critic = method.critic_objective(batch)["wasserstein"]
    assert of_critic.item() == -method.encoder_generator_objective(batch)["adversarial"].item()


def test_the_consistency_is_of_both_cycles_and_reaches_encoder_and_generator_through_both():
    method, batch = build(alpha=0.5, consistency_reduction="mean"), batch_of(pictures())
    terms = method.encoder_generator_objective(batch)
    x, z = method.view(batch.image), method.randn("latent", 4, 8)
    torch.testing.assert_close(
        terms["image_consistency"], 0.5 * l1_distance(x, method.generator(method.encoder(x))).mean()
    )
    torch.testing.assert_close(
        terms["latent_consistency"], 0.5 * l1_distance(z, method.encoder(method.generator(z))).mean()
    )
    for name in ("image_consistency", "latent_consistency"):
        method.zero_grad()
        terms[name].backward(retain_graph=True)
        assert method.encoder.trunk.blocks[0].first.weight.grad.abs().max() > 0
        assert method.generator.input.weight.grad.abs().max() > 0


# -- what training sees -----------------------------------------------------------------------------------------------


def test_images_are_turned_only_if_the_range_of_angles_is_not_zero():
    image = pictures()
    torch.testing.assert_close(build().view(image), 2 * image - 1)
    turned = build(rotation=(-45.0, 45.0)).view(image)
    assert turned.shape == image.shape
    assert not torch.allclose(turned, 2 * image - 1)


def test_textures_are_seen_as_turned_crops_without_an_edge_and_without_rotation_as_the_images_own_pixels():
    ramp = torch.linspace(0, 1, 64).expand(8, 3, 64, 64).contiguous()
    crops = texture().view(ramp)
    assert crops.shape == (8, 3, 32, 32)
    for axis in (-1, -2):
        assert crops.diff(n=2, dim=axis).abs().max() < 1e-5  # edge fill would bend the ramp
    slope = crops.diff(dim=-1)[:, 0, 0, 0] / (2 / 63)
    assert (slope > 2**-0.5 - 1e-3).all()  # cosines of 0 to 45 degrees
    assert slope.unique().numel() == 8
    assert (crops.diff(dim=-2)[:, 0, 0, 0] > 0).all()  # clockwise: what grew to the right now grows downwards too

    straight = texture(rotation=(0, 0)).view(ramp)
    assert all(any(torch.allclose(row, v, atol=1e-5) for v in 2 * ramp[0, 0, 0] - 1) for row in straight[:, 0, 0, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_texture_is_trained_on_as_bytes_with_the_views_of_the_float_image(channels):
    method, draws = texture(rotation=(0.0, 45.0)), torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, channels, 64, 64), dtype=torch.uint8, generator=draws)
    assert method.takes_bytes
    assert not build().takes_bytes
    as_float = (images / 255).expand(-1, 3, -1, -1)
    assert torch.equal(method.view(images), method.view(as_float))
    one, other = fit(method, 2, images), fit(texture(rotation=(0.0, 45.0)), 2, as_float)
    assert torch.equal(weights(one), weights(other))


def test_views_and_noise_depend_on_seed_and_batch_number_alone():
    image, method, other = pictures(side=64), texture(), texture()
    torch.rand(3)  # the global stream has no part in it
    assert torch.equal(method.view(image), other.view(image))
    other.batches_seen = 1
    assert not torch.equal(method.view(image), other.view(image))
    other.batches_seen, other.seed = 0, 1
    assert not torch.equal(method.view(image), other.view(image))


# -- averaged weights -------------------------------------------------------------------------------------------------


def test_with_decay_0_the_raw_weights_score_and_with_decay_1_the_initial_ones():
    initial = weights(build().encoder)
    raw = fit(build(average_decay=0.0, average_every=1), 4)
    assert torch.equal(weights(raw.average_encoder), weights(raw.encoder))
    assert torch.equal(weights(raw.average_generator), weights(raw.generator))
    still = fit(build(average_decay=1.0, average_every=1), 4)
    assert torch.equal(weights(still.average_encoder), initial)
    assert not torch.equal(weights(still.encoder), initial)


def test_the_average_takes_in_the_first_of_every_so_many_encoder_generator_steps():
    method = build(average_every=2)
    fit(method, 10)  # critic on 0, 2, 4, 6, 8; encoder and generator's steps 0 ... 4 on 1, 3, 5, 7, 9
    assert method.average_encoder.updates == 3


def test_the_average_begins_with_what_pretraining_made_of_the_encoder():
    method = build(average_decay=1.0)
    with torch.no_grad():
        method.encoder.output.bias.fill_(0.5)
    pretrained = weights(method.encoder)
    fit(method, 1)
    assert torch.equal(weights(method.average_encoder), pretrained)


def test_a_state_dictionary_gives_equal_scores():
    method = fit(build(), 4)
    other = build(average_decay=0.9)
    other.load_state_dict(method.state_dict())
    image = pictures(seed=1)
    assert torch.equal(scored(other, image).image, scored(method, image).image)


# -- scores -----------------------------------------------------------------------------------------------------------


def reconstructs(method, reconstruction):
    """Make the scoring generator return what `reconstruction` makes of the images shown to the scoring encoder."""

    class Remember(nn.Module):
        def forward(self, image):
            self.image = image
            return torch.zeros(len(image), method.latent)

    class Recall(nn.Module):
        def forward(self, latent):
            return reconstruction(encoder.image)

    encoder = Remember()
    method.average_encoder, method.average_generator = encoder, Recall()
    return method


@pytest.mark.parametrize("features", ["first_conv", "penultimate"])
def test_a_perfect_reconstruction_scores_zero(features):
    score = scored(reconstructs(build(features=features), lambda x: x), pictures())
    assert not score.image.any()
    assert not score.maps.any()


def test_lambda_0_is_the_l1_distance_of_images_in_minus_one_to_one():
    image = pictures()
    score = scored(reconstructs(build(lambda_=0.0), lambda x: 0 * x + 1), image)
    torch.testing.assert_close(score.image, (2 - 2 * image).flatten(1).sum(1))
    torch.testing.assert_close(score.maps, (2 - 2 * image).sum(1, keepdim=True))


def test_lambda_1_with_the_first_convolution_is_the_l1_norm_of_the_filtered_residual():
    image = pictures()
    method = reconstructs(build(lambda_=1.0, width=2), lambda x: 0.5 * x.flip(-1))
    kernel, bias = method.critic.trunk.blocks[0].first.weight, method.critic.trunk.blocks[0].first.bias
    signed = 2 * image - 1
    filtered = nn.functional.conv2d(signed - 0.5 * signed.flip(-1), kernel, padding=1)
    expected = filtered.abs().flatten(1).sum(1)
    torch.testing.assert_close(scored(method, image).image, expected, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        bias.add_(3.0)
    torch.testing.assert_close(scored(method, image).image, expected, rtol=1e-4, atol=1e-3)


def test_the_first_convolutions_term_is_homogeneous_of_degree_one_in_the_residual():
    image = pictures()
    once, thrice = (
        scored(reconstructs(build(lambda_=1.0), lambda x, k=k: x + k * x.flip(-1)), image).image for k in (1, 3)
    )
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-4, atol=1e-3)


def test_with_an_identity_kernel_the_feature_term_equals_the_pixel_term():
    method = reconstructs(build(width=3, lambda_=1.0), lambda x: x.flip(-1))
    with torch.no_grad():
        nn.init.dirac_(method.critic.trunk.blocks[0].first.weight)
    features = scored(method, pictures()).image
    method.lambda_ = 0.0
    torch.testing.assert_close(features, scored(method, pictures()).image)


def test_penultimate_features_are_compared_at_the_encoded_latent():
    method, image = build(lambda_=1.0, features="penultimate"), pictures()
    signed = 2 * image - 1
    with torch.no_grad():
        z = method.average_encoder(signed)
        critic = method.critic
        x_hat = method.average_generator(z)
        expected = l1_distance(critic.penultimate(signed, z), critic.penultimate(x_hat, z))
    torch.testing.assert_close(scored(method, image).image, expected)


def test_a_textures_score_is_its_worst_tiles_and_blind_to_their_order():
    method = texture()
    tiles = pictures(12).view(3, 4, 3, 32, 32)
    whole = scored(method, untile(tiles, 64, 64)).image
    alone = scored(method, tiles.flatten(0, 1)).image.view(3, 4)
    torch.testing.assert_close(whole, alone.amax(1), rtol=1e-5, atol=0)
    shuffled = scored(method, untile(tiles[:, [2, 0, 3, 1]], 64, 64)).image
    torch.testing.assert_close(shuffled, whole, rtol=1e-5, atol=0)


def test_a_texture_of_equal_tiles_scores_as_one_tile():
    method, one = texture(), pictures(2)
    torch.testing.assert_close(
        scored(method, one.repeat(1, 1, 2, 2)).image, scored(method, one).image, rtol=1e-5, atol=0
    )


def test_a_score_depends_neither_on_the_other_rows_nor_on_the_chunks():
    image = pictures(5, side=64)
    whole = scored(texture(), image)
    alone = [scored(texture(tiles_per_chunk=3), image[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat([s.image for s in alone]), whole.image, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cat([s.maps for s in alone]), whole.maps, rtol=1e-4, atol=1e-5)


def test_scoring_never_holds_more_tiles_than_a_chunk():
    method, seen = texture(tiles_per_chunk=3), []
    method.average_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    scored(method, pictures(2, side=64))
    assert seen == [3, 3, 2]


def test_maps_and_reconstructions_lie_where_their_tiles_lay():
    method, image = texture(), pictures(2, side=96)
    maps, x_hat = scored(method, image).maps, method.reconstruct(image).detach()
    assert maps.shape == (2, 1, 96, 96)
    assert x_hat.shape == image.shape
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    torch.testing.assert_close(maps, 2 * (image - x_hat).abs().sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    corner = method.reconstruct(tile(image, 32)[:, 5]).detach()
    torch.testing.assert_close(x_hat[:, :, 32:64, 64:], corner, rtol=1e-4, atol=1e-5)


def test_smoothing_a_map_keeps_its_mean_and_lowers_its_peak():
    image = pictures(1)
    sharp, smooth = (scored(build(map_sigma=sigma), image).maps for sigma in (0.0, 2.0))
    assert smooth.mean().item() == pytest.approx(sharp.mean().item(), rel=0.02)
    assert smooth.max() < sharp.max()


def test_after_a_short_fit_a_corrupted_image_outscores_a_clean_one():
    shade = torch.linspace(0.1, 0.6, 8).view(8, 1, 1, 1)
    clean = shade + 0.2 * torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(8, 3, 32, 32)
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.9))
    learners = {"critic": adam, "encoder_generator": adam}
    method = fit(build(alpha=0.5, kernels="he_normal", average_decay=0.0, optimizers=learners), 30, image=clean)
    corrupted = clean.clone()
    corrupted[:, :, 8:20, 8:20] = 1.0
    assert (scored(method, corrupted).image > scored(method, clean).image).all()


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tabular"}, "object or texture or small"),
        ({"image_size": [32, 64]}, "square"),
        ({"image_size": 40}, "multiple of 32"),
        ({"kind": "texture", "image_size": 72}, "data.image_size=64"),
        ({"kind": "texture", "image_size": 32, "rotation": (0.0, 45.0)}, "data.image_size=64"),
        ({"alpha": 1.5}, r"alpha lies in \[0, 1\]"),
        ({"lambda_": -1.0}, r"lambda_ lies in \[0, 1\]"),
        ({"features": "last"}, "first_conv or penultimate"),
        ({"penalty_pairing": "swapped"}, "joint or crossed"),
        ({"consistency_reduction": "median"}, "mean or sum"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_to_type_instead(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_an_object_of_another_size_than_the_networks_is_refused():
    with pytest.raises(UserError, match=re.escape("32x32 images, got (64, 64)")):
        scored(build(), pictures(side=64))


def preset(name):
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = compose(f"method/{name}")
    package = ".".join(Path("method", name).parent.parts)
    return OmegaConf.to_container(OmegaConf.select(config, package), resolve=False)


def test_the_papers_preset_has_the_papers_numbers():
    paper = preset("cbigan")
    assert (paper["latent"], paper["lambda_"], paper["tile"]) == (64, 0.1, 64)
    assert paper["recipe"]["alpha"] == {"object": 1e-4, "texture": 1e-5, "small": 1e-4}
    assert (paper["critic_steps"], paper["encoder_generator_steps"]) == (1, 1)
    assert {o["lr"] for o in paper["optimizers"].values()} == {1e-4}
    assert paper["recipe"]["input"] == {"object": 128, "texture": 512, "small": 32}
    turned = {name for name, span in paper["recipe"]["rotation"].items() if span == [-45.0, 45.0]}
    assert turned == {f"mvtec/{category}" for category in ("bottle", "hazelnut", "metal_nut", "screw")}
    assert paper["recipe"]["rotation"]["texture"] == [0.0, 45.0]


@pytest.mark.parametrize(("egbad", "cbigan"), [("egbad", "cbigan"), ("egbad/small", "cbigan/small")])
def test_egbad_is_cbigan_with_alpha_0_and_nothing_else(egbad, cbigan):
    ours, theirs = preset(egbad), preset(cbigan)
    assert ours.pop("alpha") == 0
    theirs.pop("alpha")
    assert ours == theirs


def test_the_literal_preset_averages_the_consistency_and_has_both_ends_of_the_printed_range_for_textures():
    literal, upper, paper = preset("cbigan/literal"), preset("cbigan/literal_upper"), preset("cbigan")
    changed = {key for key in paper if literal[key] != paper[key]}
    assert changed == {"consistency_reduction", "features", "average_decay", "average_every"}
    assert (literal["consistency_reduction"], literal["features"]) == ("mean", "penultimate")
    assert {key for key in upper if upper[key] != literal[key]} == {"recipe"}
    literal, upper = literal["recipe"], upper["recipe"]
    assert {key for key in upper if upper[key] != literal[key]} == {"alpha"}
    assert (literal["alpha"]["texture"], upper["alpha"]["texture"]) == (1e-5, 1e-4)
    assert literal["alpha"]["object"] == upper["alpha"]["object"] == 1e-4


def test_the_literal_presets_averages_are_the_trained_weights():
    method = fit(build(average_decay=0.0, average_every=1), 4)
    for network, average in ((method.encoder, method.average_encoder), (method.generator, method.average_generator)):
        assert torch.equal(weights(network), weights(average.average))


def test_the_effective_weight_of_a_summed_consistency_is_the_batchs_size_times_alpha():
    """What docs/departures.md says of alpha: 32 images, 1e-4 and 1e-5 give 3.2e-3 and 3.2e-4 beside averages."""
    batch = batch_of(pictures(rows=4))
    summed, meant = (
        build(consistency_reduction=r, alpha=1e-4).encoder_generator_objective(batch) for r in ("sum", "mean")
    )
    torch.testing.assert_close(summed["image_consistency"], 4 * meant["image_consistency"])
    torch.testing.assert_close(summed["adversarial"], meant["adversarial"])


def test_the_released_programs_preset_differs_where_the_program_does():
    released, paper = preset("cbigan/released2021"), preset("cbigan")
    changed = {key for key in paper if released[key] != paper[key]}
    assert changed == {
        *("width", "hidden_bias", "alpha", "consistency_reduction", "penalty_pairing", "critic_steps"),
        *("average_corrected", "optimizers", "recipe"),
    }
    assert released["recipe"]["rotation"]["texture"] == [0.0, 360.0]
    assert released["optimizers"]["encoder_generator"]["betas"] == [0.0, 0.1]
    assert released["recipe"]["budget"]["paper"]["max_batches"] == 1_200_000

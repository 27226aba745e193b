"""P-WAE: what reaches which network, what a permutation may change, and what a score is made of."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from adbench.experiment.build import build_method
from adbench.experiment.groups import conf_dir
from adbench.losses import pwae as loss
from adbench.methods.pwae import inverse_decay
from adbench.transforms.jigsaw import inverse, permute_tiles, random_permutations
from adbench.types import Batch, UserError

TINY = ("method.width=0.125", "method.latent=16", "method.permutations=30", "method.projections=8")


def make(*overrides, size=48, kind="texture", name="pwae/small"):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = [
            f"method={name}",
            *TINY,
            f"method.enlarge={4 if kind == 'small' else 1}",
            f"method.image_size={size}",
            *overrides,
        ]
        cfg = compose("config", overrides=["data=textures/grass", *overrides])
        torch.manual_seed(0)
        return build_method(cfg)


def images(rows=6, height=48, width=48, seed=3):
    coarse = torch.rand(rows, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def batch(image):
    label = torch.full((len(image),), -1)
    return Batch(image, label, torch.zeros_like(label), torch.zeros(len(image), 1, *image.shape[-2:]).bool(), label)


@contextmanager
def recording(module, name, replacement=None):
    """The arguments of every call of module.name."""
    calls, original = [], getattr(module, name)
    function = replacement or original
    setattr(module, name, lambda *args: (calls.append(args), function(*args))[1])
    try:
        yield calls
    finally:
        setattr(module, name, original)


# -- permutations


def test_permuting_the_tiles_permutes_their_codes_and_leaves_the_reconstruction():
    """So shuffling, encoding and putting back is the same as not shuffling what the decoder sees."""
    method, image = make().eval(), images(2)
    permutation = torch.tensor([[4, 2, 0, 1, 8, 7, 3, 6, 5], [8, 7, 6, 5, 4, 3, 2, 1, 0]])
    with torch.no_grad():
        tiles = method.cut(image)
        maps, z = method.encode(image)
        shuffled = permute_tiles(tiles, permutation)
        their_maps, their_z = (v.unflatten(0, (2, 9)) for v in method.encoder(shuffled.flatten(0, 1)))
        torch.testing.assert_close(their_z, permute_tiles(z, permutation), rtol=1e-4, atol=1e-5)
        back = permute_tiles(their_maps, inverse(permutation))
        torch.testing.assert_close(method._mosaic_to_image(back), method._mosaic_to_image(maps), rtol=1e-4, atol=1e-5)


def test_the_head_sees_the_codes_in_the_order_of_the_class_it_is_to_name():
    method = make("method.identity_share=0.5", "method.jigsaw_input=codes")
    z = torch.arange(64.0)[:, None, None] * 100 + torch.arange(9.0)[None, :, None].expand(64, 9, 16)
    method.jigsaw_head = torch.nn.Identity()
    with recording(loss, "jigsaw", replacement=lambda seen, classes: seen.sum()) as calls:
        method._jigsaw(z)
    seen, classes = calls[0]
    order = (seen.unflatten(1, (9, 16))[:, :, 0] % 100).long()
    assert torch.equal(order, method.permutations[classes])
    assert 15 < (classes == 0).sum() < 50
    assert classes.max() <= 30


def head_losses(batches, *overrides):
    """Cross-entropies of the full-sized head by itself, trained as the paper says on codes that follow their priors."""
    method = make("method.latent=128", "method.permutations=1000", "method.identity_share=null", *overrides)
    optimizer = torch.optim.SGD(method.jigsaw_head.parameters(), lr=0.01, momentum=0.9)
    values = []
    for method.batches_seen in range(batches):
        value = method._jigsaw(method._prior("ideal codes", 16))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def test_the_jigsaw_head_learns_at_the_papers_rate_and_as_printed_it_does_not():
    """Inputs of a squared norm of 36,480 are too large for it: the print is kept under pwae/strict."""
    learned, printed = head_losses(100), head_losses(100, "method.jigsaw_input=codes")
    chance = math.log(1000)
    assert sum(learned[:5]) / 5 == pytest.approx(chance, abs=0.5)
    assert sum(learned[-20:]) / 20 < chance - 1.5
    assert sum(printed[-20:]) / 20 > 2 * chance


def test_what_standardises_the_heads_input_says_nothing_of_a_tiles_place():
    method = make("method.latent=64", "method.identity_share=null")
    method.jigsaw_head = torch.nn.Identity()
    with recording(loss, "jigsaw", replacement=lambda seen, classes: seen.sum()) as calls:
        method._jigsaw(method._prior("check", 2000))
    seen = calls[0][0]
    assert seen.mean().item() == pytest.approx(0, abs=0.05)
    assert seen.std().item() == pytest.approx(1, abs=0.05)
    assert isinstance(method.jigsaw_mean, float)
    assert isinstance(method.jigsaw_std, float)


def test_without_an_identity_class_there_are_as_many_outputs_as_permutations_and_none_is_in_order():
    method = make("method.identity_share=null")
    assert method.jigsaw_head.out_features == 30
    assert not (method.permutations == torch.arange(9)).all(1).any()
    assert make().jigsaw_head.out_features == 31


def test_row_0_of_the_permutations_is_the_identity_and_they_are_kept_with_the_weights():
    method = make()
    assert method.state_dict()["permutations"][0].tolist() == list(range(9))


# -- which loss reaches what


def gradients(method, *terms, rows=6, **size):
    method.prepare([batch(images(rows, **size))])
    found = method.objective(batch(images(rows, **size)))
    torch.stack([found[name] for name in terms]).sum().backward()
    reached = lambda module: any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())  # noqa: E731
    parts = {"backbone": method.encoder.backbone, "mapper": method.encoder.mapper, "head": method.jigsaw_head}
    parts["decoder"] = method.decoder
    return {name for name, part in parts.items() if part is not None and reached(part)}


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("reconstruction", {"backbone", "decoder"}),
        ("hsic", {"backbone", "mapper"}),
        ("divergence", {"backbone", "mapper"}),
        ("jigsaw", {"backbone", "mapper", "head"}),
    ],
)
def test_each_term_reaches_the_networks_of_algorithm_1(term, reached):
    assert gradients(make(), term) == reached


def test_a_decoder_of_codes_trains_the_mapper_by_reconstruction():
    assert gradients(make(name="pwae/small_latent"), "reconstruction") == {"backbone", "mapper", "decoder"}


def test_with_all_weights_zero_it_is_an_autoencoder_whose_mapper_nothing_trains():
    method = make("method.lambda_1=0", "method.lambda_2=0", "method.lambda_3=0")
    assert method.jigsaw_head is None
    assert set(method.objective(batch(images()))) == {"reconstruction"}
    assert gradients(method, "reconstruction") == {"backbone", "decoder"}
    assert "encoder.mapper" in method.gradient_free


def test_the_weights_are_multiplied_where_the_terms_meet():
    plain, weighted = make("method.beta=0.3"), make("method.beta=0.3", "method.lambda_1=0.05", "method.lambda_2=0.7")
    weighted.load_state_dict(plain.state_dict())
    a, b = (m.objective(batch(images())) for m in (plain, weighted))
    torch.testing.assert_close(b["hsic"], 5 * a["hsic"])
    torch.testing.assert_close(b["divergence"], 7 * a["divergence"])
    torch.testing.assert_close(b["jigsaw"], a["jigsaw"])


def test_the_prior_of_tile_k_is_at_k_whatever_the_permutation():
    method = make("method.latent=64")
    location = method._prior("check", 400).mean((0, 2))
    torch.testing.assert_close(location, torch.arange(1.0, 10.0), rtol=0, atol=0.05)
    assert make("method.location_step=0", "method.prior=gaussian")._prior("check", 400).mean().abs() < 0.02


def test_codes_go_to_the_divergence_in_the_order_of_the_image():
    method = make()
    with recording(loss, "sliced_wasserstein") as calls:
        method.objective(batch(images()))
    z, prior, directions, _ = calls[0]
    method.train()
    torch.testing.assert_close(z, method.encode(images())[1], rtol=1e-4, atol=1e-4)
    assert prior.shape == z.shape == (6, 9, 16)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(9, 8))


def test_draws_are_a_function_of_seed_and_batch_number():
    method = make()
    terms = [method.objective(batch(images())) for _ in range(2)]
    method.batches_seen = 1
    later = method.objective(batch(images()))
    for name in ("divergence", "jigsaw"):
        torch.testing.assert_close(terms[0][name], terms[1][name])
        assert not torch.isclose(later[name], terms[0][name])


def test_the_kl_variant_measures_the_posterior_in_closed_form():
    method = make(name="pwae/kl")
    with recording(loss, "gaussian_kl") as calls:
        terms = method.objective(batch(images()))
    mean, log_variance, location = calls[0]
    assert mean.shape == log_variance.shape == (6, 9, 16)
    assert location.flatten().tolist() == list(range(1, 10))
    torch.testing.assert_close(terms["divergence"], 0.1 * loss.gaussian_kl(mean, log_variance, location).sum())
    assert method.codes(images()).shape == (6, 9, 16)


@pytest.mark.parametrize("overrides", [(), ("method.hsic=alignment", "method.hsic_sigma=median")])
def test_the_hsic_term_rewards_codes_that_depend_on_the_input(overrides):
    method, image = make("method.beta=1", *overrides), images(12)
    method.prepare([batch(image)])
    x = method._pooled(image)
    x = (x - method.pooled_mean) / method.pooled_std
    dependent = x @ torch.randn(x.shape[1], 144, generator=torch.Generator().manual_seed(1)) / 50
    independent = dependent[torch.tensor([5, 9, 1, 11, 0, 7, 2, 10, 4, 3, 8, 6])]
    method._prior = lambda purpose, rows: torch.zeros(rows, 9, 16)  # a constant depends on nothing
    values = [method._bottleneck(image, z.unflatten(1, (9, 16))) for z in (dependent, independent)]
    assert values[0] < values[1] < 0


def test_the_input_is_standardised_over_the_training_images_and_flat_pixels_stay_flat():
    method, image = make(), images(8)
    image[:, :, :10] = 0.5
    method.prepare([batch(image[:5]), batch(image[5:])])
    x = (method._pooled(image) - method.pooled_mean) / method.pooled_std
    flat = method.pooled_std == 1 / 255
    assert flat.any()
    assert x[:, flat].abs().max() < 1e-2
    torch.testing.assert_close(x[:, ~flat].std(0, unbiased=False), torch.ones(int((~flat).sum())), rtol=1e-3, atol=0)


# -- to the letter


def nhsic_in_numpy(x, z, epsilon, sigma=5.0):
    """Eq. 14 from its own words, in double precision."""

    def normalised(v):
        m = len(v)
        squared = ((v[:, None] - v[None]) ** 2).sum(-1)
        kernel = np.exp(-0.5 * squared / (sigma**2 * v.shape[1]))
        center = np.eye(m) - 1 / m
        kernel = center @ kernel @ center
        return kernel @ np.linalg.inv(kernel + epsilon * m * np.eye(m))

    return np.trace(normalised(x) @ normalised(z))


def test_strict_measures_eq_14_on_all_270_000_pixels_as_they_are():
    method, noise = make(name="pwae/strict", size=300), torch.Generator().manual_seed(5)
    image = 0.5 + 0.05 * torch.randn(6, 3, 300, 300, generator=noise)  # fine detail, which pooling would lose
    method.prepare([batch(image)])
    z = torch.randn(6, 9, 16, generator=torch.Generator().manual_seed(2)) * 3
    with recording(loss, "nhsic") as calls:
        value = method._bottleneck(image, z)
        of_prior, of_input = (loss.nhsic(*call) for call in list(calls))
    pixels = image.numpy().reshape(6, -1).astype(np.float64)
    assert pixels.shape[1] == 270_000
    prior = method._prior("hsic prior", 6).flatten(1).double().numpy()
    expected = [nhsic_in_numpy(v, z.flatten(1).double().numpy(), 1e-5) for v in (prior, pixels)]
    assert [float(of_prior), float(of_input)] == pytest.approx(expected, rel=1e-6)
    assert float(value) == pytest.approx(expected[0] - 0.1 * expected[1], rel=1e-6)
    pooled = torch.nn.functional.adaptive_avg_pool2d(image, 30).flatten(1).double().numpy()
    assert abs(nhsic_in_numpy(pooled, z.flatten(1).double().numpy(), 1e-5) / expected[1] - 1) > 0.1


def test_strict_is_strict_in_all_that_the_paper_prints():
    method = make(name="pwae/strict")
    assert torch.equal(method.permutations, random_permutations(30, 9, 0)[1:])
    assert method.decodes
    assert (method.jigsaw_mean, method.jigsaw_std) == (0.0, 1.0)
    assert len(method.jigsaw_head.weight) == 30
    with recording(loss, "sliced_wasserstein") as calls:
        method.objective(batch(images()))
    assert calls[0][3] is True
    assert len(method.pooled_mean) == 0


def test_the_pixels_of_the_hsic_term_can_be_standardised_unpooled():
    method, image = make("method.hsic_side=null"), images(4)
    method.prepare([batch(image)])
    assert len(method.pooled_std) == 3 * 48 * 48
    assert torch.isfinite(method.objective(batch(image))["hsic"])


# -- several devices


def on_device(rank, rows, world=2):
    """A method on one of two devices, each with every second row; its collective answers from the joined rows."""
    method = make()
    method._trainer = SimpleNamespace(world_size=world, global_rank=rank)
    with torch.no_grad():
        everyone = torch.stack([rows[r::world] for r in range(world)])
    method.all_gather = lambda held: everyone if torch.equal(held, everyone[rank]) else None
    return method


def test_devices_join_their_rows_in_order_and_their_mean_gradient_is_the_joined_batchs():
    generator = torch.Generator().manual_seed(0)
    x, prior, theta = (torch.randn(*shape, generator=generator) for shape in ((8, 9, 4), (8, 9, 4), (9, 5, 4)))

    def gradient(join):
        weight = torch.ones(4, requires_grad=True)
        loss.sliced_wasserstein(join(x * weight), prior, theta).sum().backward()
        return weight.grad

    parts = [gradient(lambda z, r=rank: on_device(r, z)._joined(z[r::2])) for rank in range(2)]
    assert torch.equal(on_device(1, x)._joined(x[1::2]), x)
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(lambda z: z))


# -- pretraining


def test_the_backbone_is_shown_for_pretraining_and_has_published_weights_at_full_width_only():
    (shown,) = make().encoders().values()
    assert shown.published is None
    assert shown.side == 16
    assert shown.network(torch.rand(2, 3, 16, 16)).shape == (2, shown.features)
    (full,) = make("method.width=1").encoders().values()
    assert full.published == "resnet18.tv_in1k"


# -- schedule


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 0.01), (0.25, 0.003908), (0.5, 0.002608), (1.0, 0.001656)])
def test_the_learning_rate_decays_as_the_paper_says(progress, rate):
    assert 0.01 * inverse_decay(10.0, 0.75)(progress) == pytest.approx(rate, abs=5e-7)


# -- sizes


@pytest.mark.parametrize(
    ("height", "width", "kind"), [(32, 32, "small"), (48, 48, "texture"), (40, 85, "object"), (64, 50, "object")]
)
def test_any_size_trains_and_scores_at_its_own_height_and_width(height, width, kind):
    method, image = make(size=f"[{height},{width}]", kind=kind), images(2, height, width)
    assert torch.isfinite(torch.stack(list(method.objective(batch(image)).values()))).all()
    method.eval()
    with torch.no_grad():
        scores = method.score(image)
        assert method.reconstruct(image).shape == image.shape
    assert scores.image.shape == (2,)
    assert scores.maps.shape == (2, 1, height, width)


def test_tiles_of_the_papers_layouts():
    assert make(size=300).tile_size == (100, 100)
    assert make(size="[300,1008]").tile_size == (100, 336)
    assert make(size=128).tile_size == (43, 43)
    assert make(size=32, kind="small").tile_size == (44, 44)


def test_the_capsule_preset_asks_for_300_rows_of_1008_pixels():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=["method=pwae/capsule", "data=mvtec/capsule", "data_root=/nowhere"])
        assert list(cfg.data.image_size) == [300, 1008]


# -- scores


def calibrated(method, image):
    method.eval()
    with torch.no_grad():
        method.calibrate([batch(image[:2]), batch(image[2:])])
    return method


def test_maxima_are_those_of_all_images_shown_to_calibrate():
    method, image = make().eval(), images()
    calibrated(method, image)
    with torch.no_grad():
        torch.testing.assert_close(method.maxima, method.tile_errors(image).amax(0), rtol=1e-4, atol=1e-5)


def test_the_score_is_the_worse_of_whole_and_tiles_in_units_of_their_thresholds():
    method, image = make(), images()
    calibrated(method, image)
    with torch.no_grad():
        errors = method.tile_errors(image) / method.maxima
        expected = torch.maximum(errors[:, 0] / 0.3, errors[:, 1:].amax(1) / 0.8)
        torch.testing.assert_close(method.score(image).image, expected, rtol=1e-4, atol=1e-5)
        extra = method.extra_scores(image)
    torch.testing.assert_close(extra["worst_tile"], errors[:, 1:].amax(1) / 0.8, rtol=1e-4, atol=1e-5)
    assert set(extra) == {"sum", "whole", "worst_tile"}


def test_the_map_is_the_residual():
    method, image = make().eval(), images()
    with torch.no_grad():
        residual = (image - method.reconstruct(image)).abs().mean(1, keepdim=True)
        torch.testing.assert_close(method.score(image).maps, residual)


def test_maxima_come_from_the_training_rows_at_the_end_of_training_and_then_from_the_held_out_ones():
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    image = images(10)
    image[9] = 1 - image[9]

    class Rows(pl.LightningDataModule):
        def training_batches(self, device):
            return iter([batch(image[:5]), batch(image[5:9])])

        def train_dataloader(self):
            return DataLoader([batch(image[:5])] * 2, batch_size=None)

    method = make()
    method.total_batches = 2
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(method, datamodule=Rows())
    assert method.training
    method.eval()
    with torch.no_grad():
        errors = method.tile_errors(image)
        torch.testing.assert_close(method.maxima, errors[:9].amax(0), rtol=1e-3, atol=1e-5)
        method.calibrate([batch(image[9:])])
        torch.testing.assert_close(method.maxima, errors.amax(0), rtol=1e-3, atol=1e-5)


def test_released_metrics_need_released_errors():
    method, image = calibrated(make("method.error=released"), images()), images()
    with torch.no_grad():
        columns = method.extra_scores(image)
    label, folder = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    numbers = method.released_metrics(columns, label, folder)
    assert numbers == loss.released_metrics(columns["errors"], label, folder)
    assert make().released_metrics({}, label, folder) == {}


# -- codes


def test_codes_are_decoded_only_where_the_decoder_sees_them():
    method, image = make(name="pwae/small_latent", size=128).eval(), images(2, 128, 128)
    with torch.no_grad():
        z = method.codes(image)
        torch.testing.assert_close(method.decode(z).clamp(0, 1), method.reconstruct(image))
        other = z.clone()
        other[:, 8] += 30
        changed = (method.decode(other) - method.decode(z)).abs().amax((0, 1))
    assert method.decodes
    assert changed[-1, -1] > 100 * changed[0, 0]  # tile 9 is the lower right corner
    with pytest.raises(UserError, match="decoder_input=latent"):
        make().decode(z)


# -- errors a user can make


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.grid=4", "grid"),
        ("method.backbone=vgg", "resnet50 or resnet18"),
        ("method.divergence=kl", "prior=gaussian"),
        ("method.identity_share=2", "share"),
        ("method.permutations=400000", "362879"),
        ("method.hsic_side=0", "hsic_side"),
        ("method.jigsaw_input=raw", "codes or standardised"),
        ("method.permutation_choice=near", "distant or random"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_say_instead(override, message):
    from hydra.errors import InstantiationException

    with pytest.raises((UserError, InstantiationException)) as error:
        make(override)
    assert isinstance(error.value, UserError) or isinstance(error.value.__cause__, UserError)
    assert message in str(error.value)


def test_the_uniform_jigsaw_loss_is_the_log_of_the_classes():
    method = make("method.permutations=30")
    torch.nn.init.zeros_(method.jigsaw_head.weight)
    torch.nn.init.zeros_(method.jigsaw_head.bias)
    assert method.objective(batch(images()))["jigsaw"].item() == pytest.approx(math.log(31))

import pytest
import torch

from adbench.networks import convolutional, esad, lenet
from adbench.networks.mlp import FeatureScaling, mlp
from adbench.types import UserError


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options, encoder, decoder", [
    ({"code_bn": True}, 9_410_880, 2_400_963), ({}, 9_409_856, 2_400_963), ({"norm": False}, 9_404_992, 2_398_915),
])  # fmt: skip
def test_esad_has_the_parameters_of_table_6(options, encoder, decoder):
    assert size(esad.encoder(**options)) == encoder
    assert size(esad.decoder(norm=options.get("norm", True))) == decoder


@pytest.mark.parametrize("side, code", [(32, 2), (64, 4)])
def test_esad_s_code_is_a_sixteenth_of_the_side(side, code):
    widths = (4, 4, 4, 8, 8)
    z = esad.encoder(widths)(rand(2, 3, side, side))
    assert z.shape == (2, 8, code, code)
    x_hat = esad.decoder(widths)(z)
    assert x_hat.shape == (2, 3, side, side)
    assert ((x_hat >= 0) & (x_hat <= 1)).all()


def test_esad_refuses_28_px():
    with pytest.raises(UserError, match="multiple of 16, got 28"):
        esad.check_side(28)


def test_the_code_is_linear_unless_asked_otherwise():
    x = rand(4, 3, 32, 32)
    assert (esad.encoder((4, 4, 4, 8, 8))(x) < 0).any()
    assert (esad.encoder((4, 4, 4, 8, 8), code_bn=True)(x) >= 0).all()


@pytest.mark.parametrize("name, encoder, decoder", [
    ("mnist", 7_272, 1_200), ("fashion_mnist", 222_096, 27_792), ("cifar10", 520_544, 284_000),
])  # fmt: skip
def test_lenets_have_the_published_parameters_and_undo_each_other_s_shapes(name, encoder, decoder):
    side, _, _, _, embedding = lenet.SIZES[name]
    networks = lenet.encoder(name, side), lenet.decoder(name, side)
    assert (size(networks[0]), size(networks[1])) == (encoder, decoder)
    z = networks[0](rand(2, 3, side, side))
    assert z.shape == (2, embedding)
    assert networks[1](z).shape == (2, 3, side, side)


@pytest.mark.parametrize("widths, count", [
    ((274, 128, 64, 32), 45_312), ((21, 32, 16, 8), 1_312), ((36, 32, 16, 8), 1_792), ((9, 32, 16, 8), 928),
    ((6, 32, 16, 4), 768),
])  # fmt: skip
def test_perceptrons_have_the_published_parameters_in_both_directions(widths, count):
    assert size(mlp(widths)) == size(mlp(widths[::-1])) == count


@pytest.mark.parametrize("network, shape", [
    (lenet.encoder("cifar10", 32), (3, 32, 32)), (lenet.encoder("fashion_mnist", 28), (3, 28, 28)),
    (mlp([6, 32, 4]), (6,)),
])  # fmt: skip
def test_a_network_with_zero_weights_maps_everything_to_zero(network, shape):
    for p in network.parameters():
        p.data.zero_()
    assert not network.eval()(rand(3, *shape)).any()


def test_a_network_of_another_size_is_refused_with_the_size_it_takes():
    with pytest.raises(UserError, match="'mnist' takes images of 28 px, got 32"):
        lenet.encoder("mnist", 32)
    with pytest.raises(UserError, match="no network 'resnet'; choose one of mnist"):
        lenet.encoder("resnet", 32)


def test_contrast_normalisation_forgets_brightness_and_contrast():
    x = rand(4, 3, 8, 8)
    y = lenet.contrast_normalised(x)
    torch.testing.assert_close(y.mean((1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.abs().mean((1, 2, 3)), torch.ones(4))
    torch.testing.assert_close(lenet.contrast_normalised(3 * x + 0.2), y, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(lenet.contrast_normalised(torch.ones(1, 3, 4, 4))).all()


def test_min_max_scaling_maps_the_training_rows_to_0_and_1_and_does_not_clip_others():
    scaling = FeatureScaling(3, "min_max")
    scaling.fit([torch.tensor([[0.0, -5.0, 7.0]]), torch.tensor([[10.0, 5.0, 7.0]])])
    torch.testing.assert_close(scaling(torch.tensor([[20.0, 0.0, 8.0]])), torch.tensor([[2.0, 0.5, 1.0]]))


def test_clipped_scaling_standardises_and_stays_within_3():
    rows = rand(500, 2) * torch.tensor([1.0, 1000.0])
    scaling = FeatureScaling(2, "clipped")
    scaling.fit([rows])
    scaled = scaling(rows)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(2))
    assert scaling(torch.tensor([[1e9, -1e9]])).tolist() == [[3.0, -3.0]]


@pytest.mark.parametrize("side", [28, 32, 128])
def test_the_convolutional_autoencoder_gives_back_the_shape(side):
    z = convolutional.encoder(side, 7, 4)(rand(2, 3, side, side))
    assert z.shape == (2, 7)
    assert convolutional.decoder(side, 7, 4)(z).shape == (2, 3, side, side)


def test_a_side_that_cannot_be_halved_enough_is_refused():
    with pytest.raises(UserError, match="36 px does not allow"):
        convolutional.encoder(36, 7, 4)


def test_standardised_scaling_has_mean_0_and_deviation_1_and_clips_nothing():
    x = torch.cat([torch.zeros(99, 1), torch.full((1, 1), 50.0)])
    scaling = FeatureScaling(1, "standardised")
    scaling.fit([x])
    assert scaling(x).std(correction=0) == pytest.approx(1.0)
    assert scaling(x).mean() == pytest.approx(0.0, abs=1e-6)
    assert scaling(x).max() == pytest.approx((50 - 0.5) / 24.75**0.5, rel=1e-4)


def test_a_scaling_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UserError, match=r"method\.scaling is one of min_max, standardised, clipped, none; got 'log'"):
        FeatureScaling(1, "log")

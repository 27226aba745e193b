"""IGD's equations: hand values, limits and symmetries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.losses import igd as loss
from adbench.losses.similarity import FIVE_SCALES, FOUR_SCALES, ms_ssim

SMALL = {"window": 3, "weights": FOUR_SCALES}


def images(n=3, side=32, seed=0):
    """Pixels inside the normalised range of every channel."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loss.MEAN, loss.STD))
    return (torch.rand(n, 3, side, side, generator=generator) - mean) / std


@pytest.mark.parametrize(
    ("distance", "variance", "expected"),
    [(0.0, 3.0, 0.0), (2.5, 2.5, 1 - math.exp(-1)), (4.0, 1.0, 0.981684), (1.0, 4.0, 0.221199)],
)
def test_the_gaussian_classifier_has_the_values_worked_out_by_hand(distance, variance, expected):
    z, center = torch.zeros(1, 4), torch.zeros(4)
    z[0, 0] = math.sqrt(distance)
    assert loss.gaussian(z, center, torch.tensor(variance)).item() == pytest.approx(expected, abs=1e-6)


@given(a=st.floats(0, 10), gap=st.floats(0.01, 10), variance=st.floats(1, 10), factor=st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_the_gaussian_classifier_increases_stays_below_one_and_ignores_a_joint_scale(a, gap, variance, factor):
    near, far = torch.tensor([a], dtype=torch.float64), torch.tensor([a + gap], dtype=torch.float64)
    low, high = loss.one_minus_exp(near, variance), loss.one_minus_exp(far, variance)
    assert 0 <= low < high < 1
    assert loss.one_minus_exp(near * factor, variance * factor).item() == pytest.approx(low.item(), abs=1e-12)


def test_identical_embeddings_give_the_variance_floor_and_the_embedding_as_center():
    z = torch.tensor([[0.5, -2.0, 0.0]]).repeat(6, 1)
    count, total, squares = loss.moments(z)
    center = loss.floored_center(total / count)
    assert torch.equal(center.float(), z[0])
    distances = loss.distance_sums(count.view(1), total.view(1, -1), squares.view(1), center)
    assert loss.floored_variance(distances, count.view(1)).item() == 1.0


def test_center_components_near_zero_are_pushed_out_and_exact_zeros_stay():
    pushed = loss.floored_center(torch.tensor([0.05, -0.02, 0.0, 0.3, -0.1]))
    assert torch.equal(pushed, torch.tensor([0.1, -0.1, 0.0, 0.3, -0.1]))


def test_center_and_variance_do_not_depend_on_the_order_or_the_batching_of_the_data():
    z = 3 * torch.randn(12, 5, generator=torch.Generator().manual_seed(0))

    def estimate(batches):
        parts = [torch.stack(p) for p in zip(*(loss.moments(b) for b in batches), strict=True)]
        center = loss.floored_center(parts[1].sum(0) / parts[0].sum())
        return center, loss.floored_variance(loss.distance_sums(*parts, center), parts[0])

    center, variance = estimate(z.split(5))
    other_center, other_variance = estimate(z.flip(0).split(4))
    assert torch.allclose(center, other_center)
    assert torch.allclose(variance, other_variance)
    by_definition = (z.double() - center).square().sum(1).mean()
    assert variance.item() == pytest.approx(by_definition.item(), rel=1e-9)


def test_the_moments_of_a_projection_follow_from_the_features_moments():
    generator = torch.Generator().manual_seed(0)
    f, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((20, 6), (4, 6), (4,)))
    parts = [loss.feature_moments(piece) for piece in f.split(7)]
    summed = [torch.stack(part).sum(0) for part in zip(*parts, strict=True)]
    found = loss.projected_moments(*summed, weight, bias)
    for ours, expected in zip(found, loss.moments(f @ weight.T + bias), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-5)


def test_the_printed_residual_is_the_sum_over_pixels_of_undivided_errors():
    x, y = images(seed=1), images(seed=2)
    similarity = ms_ssim(x, y, data_range=4.7579, **SMALL)
    pixels = 0.15 * (x - y).abs().mean(1) + 0.85 * (1 - similarity).view(3, 1, 1)
    assert torch.allclose(loss.reconstruction(x, y, rho=0.15, printed=True, **SMALL), pixels.sum((1, 2)), rtol=1e-5)
    maps = loss.residual_map(x, y, rho=1.0, printed=True, **SMALL)
    assert torch.allclose(maps, loss.grey((x - y).abs()), atol=1e-6)


@pytest.mark.parametrize("released", [False, True])
def test_one_pyramid_gives_residual_and_map_what_each_gives_alone(released):
    x, y = images(seed=1), images(seed=2)
    levels = loss.pyramid(x, y, **SMALL)
    options = {"rho": 0.15, **SMALL}
    assert torch.equal(loss.reconstruction(x, y, levels=levels, **options), loss.reconstruction(x, y, **options))
    maps = loss.residual_map(x, y, released=released, levels=levels, **options)
    assert torch.equal(maps, loss.residual_map(x, y, released=released, **options))


def test_the_released_variance_floors_every_batch_before_averaging():
    sums, counts = torch.tensor([0.2, 6.0]), torch.tensor([2.0, 2.0])
    assert loss.floored_variance(sums, counts, per_batch=True).item() == pytest.approx((1.0 + 3.0) / 2)
    assert loss.floored_variance(sums, counts).item() == pytest.approx(6.2 / 4)


def test_perfect_reconstruction_has_no_residual_anywhere():
    x = images()
    assert torch.allclose(loss.reconstruction(x, x, rho=0.15, **SMALL), torch.zeros(3), atol=1e-6)
    for released in (False, True):
        assert loss.residual_map(x, x, rho=0.15, released=released, **SMALL).abs().max() < 1e-6
    assert torch.equal(loss.squared_error(x, x), torch.zeros(3))


def test_rho_moves_the_residual_from_pure_similarity_to_pure_absolute_error():
    x, y = images(seed=1), images(seed=2)
    similarity = 1 - ms_ssim(x, y, data_range=4.7579, **SMALL)
    error = (x - y).abs().mean((1, 2, 3)) / 4.7579
    assert torch.allclose(loss.reconstruction(x, y, rho=0.0, **SMALL), similarity)
    assert torch.allclose(loss.reconstruction(x, y, rho=1.0, **SMALL), error)
    assert torch.allclose(loss.reconstruction(x, y, rho=0.15, **SMALL), 0.15 * error + 0.85 * similarity)


def test_the_residual_lies_in_the_unit_interval_for_pixels_in_range():
    black, white = (torch.full((1, 3, 32, 32), v) for v in (0.0, 1.0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loss.MEAN, loss.STD))
    extremes = ((black - mean) / std, (white - mean) / std)
    for x, y in (
        (images(seed=1), images(seed=2)),
        (extremes[0].expand(3, -1, -1, -1), extremes[1].expand(3, -1, -1, -1)),
    ):
        residual = loss.reconstruction(x, y, rho=0.15, **SMALL)
        assert ((residual >= 0) & (residual <= 1)).all()


def test_the_data_range_is_that_of_normalised_pixels():
    low = min(-m / s for m, s in zip(loss.MEAN, loss.STD, strict=True))
    high = max((1 - m) / s for m, s in zip(loss.MEAN, loss.STD, strict=True))
    assert high - low == pytest.approx(loss.DATA_RANGE, abs=2e-3)


def test_the_signed_error_cancels_where_the_absolute_one_does_not():
    x = images(1)
    y = x.clone()
    y[..., :16], y[..., 16:] = x[..., :16] + 1, x[..., 16:] - 1
    plain = loss.reconstruction(x, y, rho=1.0, **SMALL)
    signed = loss.reconstruction(x, y, rho=1.0, signed=True, **SMALL)
    assert plain.item() == pytest.approx(1 / 4.7579, rel=1e-5)
    assert signed.item() == pytest.approx(0.0, abs=1e-6)


def test_interpolation_returns_its_ends_and_swapping_with_the_complement_changes_nothing():
    z1, z2 = torch.randn(2, 4, 8)
    alpha = torch.rand(4, 1)
    assert torch.equal(loss.interpolate(z1, z2, torch.zeros(4, 1)), z2)
    assert torch.equal(loss.interpolate(z1, z2, torch.ones(4, 1)), z1)
    assert torch.allclose(loss.interpolate(z1, z2, alpha), loss.interpolate(z2, z1, 1 - alpha), atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.125, 0.25])
def test_a_constant_critic_costs_what_the_uniform_alpha_makes_it_cost(constant):
    # E (c - alpha)^2 + c^2 with alpha ~ U(0, 1/2): (c - 1/4)^2 + 1/48 + c^2
    alpha = (torch.arange(20_000, dtype=torch.float64).view(-1, 1) + 0.5) / 40_000
    prediction = torch.full((20_000,), constant, dtype=torch.float64)
    total = (loss.coefficient(prediction, alpha) + loss.zero_prediction(prediction)).item()
    assert total == pytest.approx((constant - 0.25) ** 2 + 1 / 48 + constant**2, abs=1e-6)
    assert total >= 0.052083 - 1e-6
    if constant == 0.0:
        assert total == pytest.approx(1 / 12, abs=1e-6)


def test_the_broadcast_regression_is_the_mean_over_all_pairs():
    prediction, alpha = torch.tensor([0.1, 0.4, 0.0]), torch.tensor([[0.2], [0.3], [0.5]])
    hand = (prediction.mean() - alpha.mean()) ** 2 + prediction.var(correction=0) + alpha.var(correction=0)
    assert loss.coefficient(prediction, alpha, broadcast=True).item() == pytest.approx(hand.item(), abs=1e-7)
    assert loss.coefficient(alpha.squeeze(1), alpha).item() == 0.0


def test_the_critics_blend_goes_from_the_reconstruction_to_the_image():
    x, x_hat = images(2, seed=1), images(2, seed=2)
    assert torch.equal(loss.blend(x, x_hat, 0.0), x_hat)
    assert torch.equal(loss.blend(x, x_hat, 1.0), x)
    assert torch.allclose(loss.blend(x, x_hat, 0.2), 0.2 * x + 0.8 * x_hat)


@pytest.mark.parametrize("released", [False, True])
def test_a_map_points_at_the_spot_that_was_not_reconstructed(released):
    x = images(1, side=64)
    x_hat = x.clone()
    x_hat[..., 20:28, 40:48] = x_hat[..., 20:28, 40:48].flip(-1)
    pixels = loss.residual_map(x, x_hat, rho=0.15, window=3, weights=FOUR_SCALES, released=released)[0, 0]
    assert pixels.shape == (64, 64)
    assert pixels.min() >= 0
    row, column = divmod(pixels.argmax().item(), 64)
    assert 18 <= row < 30
    assert 38 <= column < 50


def test_whole_images_and_patches_have_maps_of_their_own_size():
    assert loss.residual_map(images(1, 256), images(1, 256, 1), rho=0.15, window=11, weights=FIVE_SCALES).shape == (
        1,
        1,
        256,
        256,
    )


def test_the_worst_patch_ignores_order_and_is_no_less_than_any_patch():
    scores = torch.rand(4, 9)
    worst = loss.worst_patch(scores)
    assert torch.equal(worst, loss.worst_patch(scores[:, torch.randperm(9)]))
    assert (worst.unsqueeze(1) >= scores).all()


def test_a_score_grows_with_each_of_its_parts():
    residual, anomalous = torch.tensor([0.2]), torch.tensor([0.5])
    for weights in ((1.0, 1.0), (0.1, 0.9), (0.9, 0.1), (0.5, 0.5)):
        base = loss.scale_score(residual, anomalous, weights)
        assert loss.scale_score(residual + 0.1, anomalous, weights) > base
        assert loss.scale_score(residual, anomalous + 0.1, weights) > base
    assert torch.equal(loss.scale_score(residual, None), residual)

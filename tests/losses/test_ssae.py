import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from adbench.losses import ssae
from adbench.types import UserError

N, MASKED, ERROR = 3 * 64 * 64, 300, 0.5  # 12,288 values of which 300 (100 pixels in 3 channels) are masked


def constant_error(error: float = ERROR):
    clean = torch.full((1, 3, 64, 64), 0.25)
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, 10:20, 30:40] = 1
    return clean + error, clean, mask


def objective_1(reconstruction, clean, mask, lam=0.5, squared=True):
    normal = ssae.normal_region(reconstruction, clean, mask, squared)
    return (1 - lam) * normal + lam * ssae.corrupted_region(reconstruction, clean, mask, squared)


def test_objective_1_as_printed_on_a_constant_error_is_the_value_worked_out_by_hand():
    loss = objective_1(*constant_error(), squared=False)
    by_hand = ERROR * (0.5 / math.sqrt(N - MASKED) + 0.5 / math.sqrt(MASKED))
    assert loss.item() == pytest.approx(by_hand, rel=1e-5) == pytest.approx(0.0167171, rel=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_squared_objective_1_on_a_constant_error_and_a_binary_mask_is_its_square_for_any_weight(lam):
    assert objective_1(*constant_error(), lam=lam).item() == pytest.approx(ERROR**2, rel=1e-5)


def test_squared_objective_1_with_a_soft_mask_weighs_by_the_mask_squared():
    reconstruction, clean, _ = constant_error()
    mask = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    ratio = sum(0.5 * (m**2).sum() / m.sum() for m in (mask, 1 - mask))
    loss = objective_1(reconstruction, clean, mask)
    torch.testing.assert_close(loss, ERROR**2 * ratio)
    assert loss < ERROR**2


@pytest.mark.parametrize("squared", [True, False])
def test_each_term_sees_only_its_own_region(squared):
    _, clean, mask = constant_error()
    inside, outside = clean + 0.3 * mask, clean + 0.3 * (1 - mask)
    assert ssae.normal_region(inside, clean, mask, squared) == 0
    assert ssae.corrupted_region(outside, clean, mask, squared) == 0
    assert ssae.corrupted_region(inside, clean, mask, squared) > 0
    assert ssae.normal_region(outside, clean, mask, squared) > 0


@pytest.mark.parametrize("squared", [True, False])
def test_a_perfect_reconstruction_and_an_empty_mask_cost_nothing_and_give_finite_gradients(squared):
    _, clean, mask = constant_error()
    for m in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
        reconstruction = clean.clone().requires_grad_()
        loss = objective_1(reconstruction, clean, m, squared=squared)
        loss.backward()
        assert loss == 0
        assert torch.equal(reconstruction.grad, torch.zeros_like(clean))


def test_the_loss_of_a_batch_is_the_mean_of_its_images():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 4, 3, 16, 16, generator=generator)
    mask = torch.rand(4, 1, 16, 16, generator=generator)
    rows = torch.stack([objective_1(x[i : i + 1], y[i : i + 1], mask[i : i + 1], squared=False) for i in range(4)])
    torch.testing.assert_close(objective_1(x, y, mask, squared=False), rows.mean())


def objective_4(reconstruction, clean, corrupted, mask, lam=0.5, squared=True):
    normal = ssae.normal_region(reconstruction, clean, mask, squared)
    return (1 - lam) * normal - lam * ssae.amplification(reconstruction, clean, corrupted, mask, squared)


def test_objective_4_as_printed_is_the_value_worked_out_by_hand():
    reconstruction, clean, mask = constant_error()
    loss = objective_4(reconstruction, clean, clean + 0.2 * mask, mask, squared=False)
    by_hand = 0.5 * ERROR / math.sqrt(N - MASKED) - 0.5 * 0.2 * ERROR / math.sqrt(MASKED)
    assert loss.item() == pytest.approx(by_hand, rel=1e-4) == pytest.approx(-0.000603432, rel=1e-4)


def test_objective_4_earns_nothing_where_the_corruption_changed_nothing():
    reconstruction, clean, mask = constant_error()
    assert ssae.amplification(reconstruction, clean, clean, mask) == 0


@pytest.mark.parametrize("squared", [True, False])
def test_objective_4_falls_when_the_error_inside_the_corruption_grows(squared):
    _, clean, mask = constant_error()
    corrupted = clean + 0.2 * mask
    losses = [objective_4(clean + e * mask, clean, corrupted, mask, squared=squared) for e in (0.1, 0.2, 0.4)]
    assert losses[0] > losses[1] > losses[2]


# -- maps and scores ----------------------------------------------------------------------------------------------


def test_the_difference_is_the_channel_mean_of_squares():
    image, other = torch.zeros(1, 3, 1, 1), torch.tensor([0.1, 0.2, 0.4]).reshape(1, 3, 1, 1)
    assert ssae.squared_difference(image, other).item() == pytest.approx((0.01 + 0.04 + 0.16) / 3)


def test_a_perfect_reconstruction_scores_zero_and_channels_may_be_permuted():
    x, y = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for difference in (ssae.squared_difference, ssae.ssim_difference, ssae.logit_difference):
        assert ssae.total(difference(x, x)).abs().max() < 1e-3
        permuted = difference(x[:, [2, 0, 1]], y[:, [2, 0, 1]])
        torch.testing.assert_close(ssae.total(difference(x, y)), ssae.total(permuted))


def test_for_grey_images_without_smoothing_the_score_is_the_squared_norm():
    x, y = torch.rand(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ssae.total(ssae.squared_difference(x, y)), (x - y).flatten(1).norm(dim=1) ** 2)


def test_the_ssim_difference_agrees_with_scikit_image_away_from_the_border():
    x, y = torch.rand(2, 1, 1, 40, 40, generator=torch.Generator().manual_seed(4))
    _, full = structural_similarity(
        x[0, 0].numpy(), y[0, 0].numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    ours = ssae.ssim_difference(x, y)
    assert ours.shape == (1, 1, 40, 40)
    np.testing.assert_allclose(ours[0, 0, 8:-8, 8:-8].numpy(), (1 - full[8:-8, 8:-8]) / 2, atol=1e-4)


def pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value)


def test_the_logit_difference_of_black_and_white_is_one_and_of_an_odds_ratio_its_squared_share():
    assert ssae.logit_difference(pixel(0.0), pixel(1.0)).item() == pytest.approx(1, rel=1e-4)
    # odds 1 and 3; black and white, half of 1/255 away from the ends, have odds 1/509 and 509
    by_hand = (math.log(3) / (2 * math.log(509))) ** 2
    assert ssae.logit_difference(pixel(0.5), pixel(0.75)).item() == pytest.approx(by_hand, rel=1e-5)


@given(x=st.floats(0, 1), y=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_logit_difference_takes_a_negative_for_its_picture(x, y):
    difference, of_negatives = (
        ssae.logit_difference(pixel(x), pixel(y)),
        ssae.logit_difference(pixel(1 - x), pixel(1 - y)),
    )
    torch.testing.assert_close(difference, of_negatives, rtol=1e-3, atol=1e-6)
    assert 0 <= difference.item() <= 1 + 1e-6


def test_a_dark_defect_that_turns_black_counts_in_log_odds_and_hardly_in_grey_levels():
    dark, grey = pixel(0.05), pixel(0.45)
    squared, logit = (
        f(dark, pixel(0.0)).item() / f(grey, pixel(0.6)).item()
        for f in (ssae.squared_difference, ssae.logit_difference)
    )
    assert squared < 0.2 and logit > 20


@given(k=st.sampled_from([1, 3, 5, 9]), n=st.integers(0, 4), value=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_smoothing_keeps_constants_and_stays_within_the_range_of_the_map(k, n, value):
    constant = torch.full((1, 1, 16, 16), value)
    torch.testing.assert_close(ssae.mean_filter(constant, k, n), constant)
    noise = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(k * n))
    smooth = ssae.mean_filter(noise, k, n)
    assert smooth.min() >= noise.min() - 1e-6 and smooth.max() <= noise.max() + 1e-6


def test_smoothing_spreads_a_point_evenly_over_k_by_k_pixels_and_composes():
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1
    once = ssae.mean_filter(point, 5, 1)
    expected = torch.zeros_like(point)
    expected[0, 0, 8:13, 8:13] = 1 / 25
    torch.testing.assert_close(once, expected)
    torch.testing.assert_close(ssae.mean_filter(once, 5, 2), ssae.mean_filter(point, 5, 3))
    assert torch.equal(ssae.mean_filter(point, 5, 0), point)


@pytest.mark.parametrize(("k", "n"), [(4, 1), (0, 1), (3, -1), (99, 1)])
def test_an_impossible_filter_is_refused(k, n):
    with pytest.raises(UserError):
        ssae.mean_filter(torch.zeros(1, 1, 16, 16), k, n)


def test_a_larger_average_map_never_raises_an_error_and_none_leaves_it_alone():
    maps = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    average = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(6))
    assert torch.equal(ssae.discount_habitual_error(maps, torch.zeros(1, 8, 8), 2), maps)
    assert torch.equal(ssae.discount_habitual_error(maps, average, 0), maps)
    less, more = (ssae.discount_habitual_error(maps, average * share, 1) for share in (0.5, 1.0))
    assert (more <= less).all() and (less <= maps).all()


# -- the paper's claims about the mapping -------------------------------------------------------------------------


def test_proposition_2_holds_for_uniform_pixels():
    """E[‖x_S - y_S‖² - ‖x_S̄ - y_S̄‖²] = (|S| - |S̄|) 2σ², here (300 - 700) · 2 / 12 = -66.667."""
    x, y = torch.rand(2, 20_000, 1000, generator=torch.Generator().manual_seed(7))
    squares = (x - y).square()
    difference = squares[:, :300].sum(dim=1) - squares[:, 300:].sum(dim=1)
    standard_error = difference.std() / math.sqrt(len(difference))
    assert abs(difference.mean() - (300 - 700) * 2 / 12) < 4 * standard_error
    assert 4 * standard_error < 0.3


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_proposition_1_whenever_its_two_conditions_hold_the_corrupted_image_is_nearest_to_its_source(seed):
    rng = np.random.default_rng(seed)
    total, inside = 12, int(rng.integers(1, 7))
    x = rng.normal(size=(400, total))
    y = rng.normal(size=(400, total))
    corrupted = x.copy()
    corrupted[:, :inside] += rng.normal(size=(400, inside)) * rng.uniform(0.1, 4)
    xs, ys, cs = x[:, :inside], y[:, :inside], corrupted[:, :inside]
    line = ys - xs
    share = ((cs - xs) * line).sum(1, keepdims=True) / (line**2).sum(1, keepdims=True)
    projected = xs + share * line
    norm = lambda a: np.linalg.norm(a, axis=1)  # noqa: E731
    condition_6 = norm(xs - projected) <= np.maximum(norm(xs - ys), norm(ys - projected))
    premise = norm(xs - ys) <= norm(x[:, inside:] - y[:, inside:])
    chosen = condition_6 & premise
    assert chosen.any()
    assert (norm(corrupted - x)[chosen] <= norm(corrupted - y)[chosen] + 1e-9).all()


def test_proposition_1_needs_its_condition_6():
    """x = 0, y = 1 on S; a corruption that overshoots y to 3 is nearer to y, although the premise (5) holds."""
    x, y, corrupted = np.array([0.0, 0.0]), np.array([1.0, 1.1]), np.array([3.0, 0.0])
    assert abs(x[0] - y[0]) <= abs(x[1] - y[1])
    assert np.linalg.norm(corrupted - x) > np.linalg.norm(corrupted - y)

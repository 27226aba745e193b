"""SSIM and MS-SSIM against hand values, the reference package and scikit-image."""

import numpy as np
import pytest
import pytorch_msssim
import skimage.metrics
import torch

from adbench.losses.similarity import FIVE_SCALES, FOUR_SCALES, gaussian_window, ms_ssim, scale_weights, ssim, ssim_maps
from adbench.types import UserError


def pair(*shape, noise=0.2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return x, (x + noise * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)


def test_the_window_matrix_is_a_valid_gaussian_convolution_whose_columns_sum_to_one():
    matrix = gaussian_window(9, 5, 1.5, torch.zeros((), dtype=torch.float64))
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    signal = np.random.default_rng(0).normal(size=9)
    assert np.allclose(signal @ matrix.numpy(), np.convolve(signal, weights, mode="valid"), atol=1e-12)
    assert torch.allclose(matrix.sum(0), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(("side", "window"), [(64, 11), (32, 3), (33, 7)])
def test_ssim_equals_the_reference_package(side, window):
    x, y = pair(3, 3, side, side)
    reference = pytorch_msssim.ssim(x, y, data_range=1.0, win_size=window, size_average=False)
    assert torch.allclose(ssim(x, y, data_range=1.0, window=window), reference, atol=1e-5)


def test_the_ssim_map_equals_scikit_image_inside_the_valid_region():
    x, y = pair(1, 1, 40, 40, dtype=torch.float64)
    _, full = skimage.metrics.structural_similarity(
        x[0, 0].numpy(), y[0, 0].numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        full=True,
    )  # fmt: skip
    assert np.allclose(ssim_maps(x, y, data_range=1.0)[0][0, 0].numpy(), full[5:-5, 5:-5], atol=1e-9)


@pytest.mark.parametrize(
    ("side", "window", "weights"), [(176, 11, FIVE_SCALES), (48, 3, FOUR_SCALES), (50, 3, FOUR_SCALES)]
)
@pytest.mark.parametrize("data_range", [1.0, 4.7579])
def test_ms_ssim_and_its_gradient_equal_the_reference_package_where_that_runs(side, window, weights, data_range):
    x, y = pair(2, 3, side, side)
    gradients = []
    for value in (
        lambda a: ms_ssim(a, y, data_range=data_range, window=window, weights=weights),
        lambda a: pytorch_msssim.ms_ssim(
            a, y, data_range=data_range, win_size=window, weights=list(weights), size_average=False
        ),
    ):
        a = x.clone().requires_grad_()
        result = value(a)
        result.sum().backward()
        gradients.append((result.detach(), a.grad))
    (ours, ours_grad), (reference, reference_grad) = gradients
    assert torch.allclose(ours, reference, atol=1e-5)
    assert torch.allclose(ours_grad, reference_grad, atol=1e-6, rtol=1e-3)


def test_a_32_px_image_with_a_3_px_window_works_although_the_reference_package_refuses_it():
    x, y = pair(2, 3, 32, 32)
    with pytest.raises(AssertionError):
        pytorch_msssim.ms_ssim(x, y, data_range=1.0, win_size=3, weights=list(FOUR_SCALES))
    value = ms_ssim(x, y, data_range=1.0, window=3, weights=FOUR_SCALES)
    assert ((value > 0) & (value < 1)).all()
    x, y = pair(1, 3, 160, 160)
    with pytest.raises(AssertionError):
        pytorch_msssim.ms_ssim(x, y, data_range=1.0)


def test_the_published_weights_sum_to_one():
    assert sum(FIVE_SCALES) == pytest.approx(1.0001, abs=1e-12)
    assert sum(FOUR_SCALES) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("side", "window", "weights"), [(176, 11, FIVE_SCALES), (32, 3, FOUR_SCALES)])
def test_ms_ssim_is_one_for_equal_images_symmetric_and_at_most_one(side, window, weights):
    x, y = pair(2, 3, side, side)
    options = {"data_range": 1.0, "window": window, "weights": weights}
    assert torch.allclose(ms_ssim(x, x, **options), torch.ones(2), atol=1e-6)
    assert torch.allclose(ms_ssim(x, y, **options), ms_ssim(y, x, **options), atol=1e-6)
    assert (ms_ssim(x, y, **options) <= 1).all()


def test_black_against_white_gives_the_value_worked_out_by_hand():
    # every contrast term is 1 (no variance anywhere); the coarsest luminance is C1 / (1 + C1) with C1 = 1e-4
    black, white = torch.zeros(1, 3, 176, 176), torch.ones(1, 3, 176, 176)
    value = ms_ssim(black, white, data_range=1.0, window=11, weights=FIVE_SCALES)
    assert value.item() == pytest.approx((1e-4 / 1.0001) ** 0.1333, abs=1e-5)
    assert value.item() == pytest.approx(0.292950, abs=1e-5)


def test_an_images_value_does_not_depend_on_the_order_of_the_batch():
    x, y = pair(4, 3, 32, 32)
    order = torch.tensor([2, 0, 3, 1])
    options = {"data_range": 1.0, "window": 3, "weights": FOUR_SCALES}
    assert torch.allclose(ms_ssim(x, y, **options)[order], ms_ssim(x[order], y[order], **options), atol=1e-6)


def test_anticorrelated_images_score_zero_with_a_finite_gradient():
    x, _ = pair(1, 1, 32, 32)
    y = (1 - x).requires_grad_()
    value = ms_ssim(x, y, data_range=1.0, window=3, weights=FOUR_SCALES)
    value.sum().backward()
    assert value.item() == 0.0
    assert torch.isfinite(y.grad).all()


def test_autocast_does_not_lower_the_precision():
    x, y = pair(2, 3, 32, 32)
    options = {"data_range": 1.0, "window": 3, "weights": FOUR_SCALES}
    with torch.autocast("cpu", torch.bfloat16):
        inside = ms_ssim(x, y, **options)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ms_ssim(x, y, **options))


@pytest.mark.parametrize(("side", "window", "expected"), [
    (256, 11, FIVE_SCALES), (176, 11, FIVE_SCALES), (128, 11, FOUR_SCALES), (32, 3, FOUR_SCALES),
])  # fmt: skip
def test_as_many_scales_as_fit_are_used(side, window, expected):
    scales = 4 if window == 3 else 5
    assert scale_weights(side, window, scales) == expected


def test_fewer_than_four_scales_are_rescaled_to_sum_to_one():
    weights = scale_weights(64)
    assert len(weights) == 3
    assert sum(weights) == pytest.approx(1.0)
    assert weights[1] / weights[0] == pytest.approx(0.2856 / 0.0448)


def test_images_that_cannot_be_compared_are_refused_with_both_sizes():
    with pytest.raises(UserError, match=r"11 px.*\(8, 8\)"):
        ssim_maps(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), data_range=1.0)
    with pytest.raises(UserError, match="one shape"):
        ssim_maps(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 15), data_range=1.0)
    with pytest.raises(UserError, match="at least that, got 8"):
        scale_weights(8)

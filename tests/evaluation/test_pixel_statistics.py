"""Figure 8's moments by plain loops over windows, and footnote 7's pairs by norms."""

import numpy as np
import pytest
import torch

from adbench.evaluation.pixel_statistics import draw_moments, pixel_moments, violating_pairs
from adbench.types import UserError


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_moments_are_those_of_every_window_cut_out_by_hand():
    images = noise(5, 3, 9, 11)
    windows = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (4, 4), axis=(2, 3))
    assert windows.shape == (5, 3, 6, 8, 4, 4)
    mean, std = pixel_moments([images[:2], images[2:]], 4)
    np.testing.assert_allclose(mean.numpy(), windows.mean((0, 1, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(std.numpy(), windows.std((0, 1, 2, 3)), rtol=1e-7)


def test_pixels_that_are_distributed_alike_have_flat_moments_and_a_centred_object_does_not():
    flat, _ = pixel_moments([noise(50, 3, 32, 32)], 16)
    images = torch.zeros(4, 3, 32, 32)
    images[:, :, 12:20, 12:20] = 1
    bump, _ = pixel_moments([images], 16)
    assert flat.max() - flat.min() < 0.02
    assert bump.max() - bump.min() > 0.1


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="8x8"):
        pixel_moments([noise(1, 3, 8, 8)], 9)
    with pytest.raises(UserError, match="no image"):
        pixel_moments([], 4)


def test_no_pair_of_noise_images_differs_more_inside_a_small_square_than_outside():
    """σ² = 1/12 of uniform pixels: |S| is at most a seventh of all pixels, as Eq. 11 has it."""
    found = violating_pairs(noise(8, 3, 64, 64), squares=5)
    assert found.variance == pytest.approx(1 / 12, rel=0.02)
    assert found.largest == pytest.approx((64 * 64 / 7) ** 0.5, abs=1)
    assert found.largest**2 <= 2 * found.variance * (64 * 64 - found.largest**2)
    assert (found.pairs, found.violating) == (5 * 28, 0)


def test_pairs_that_differ_in_one_corner_alone_violate_it_wherever_a_square_covers_the_corner():
    images = noise(1, 3, 16, 16).repeat(4, 1, 1, 1)
    images[:, :, 5, 5] = torch.tensor([0.0, 0.3, 0.6, 1.0])[:, None]
    found = violating_pairs(images, squares=200)
    per_square = found.violating / 200
    assert 0 < per_square < 6
    assert found.violating % 6 == 0  # a square that covers the pixel is violated by all six pairs


def test_distances_are_those_of_norms():
    images = noise(6, 3, 40, 24)
    images[3] = images[2]
    images[3, :, :10, :10] += 0.2
    flat = images.double().flatten(1)
    from adbench.evaluation.pixel_statistics import _squared_distances

    torch.testing.assert_close(_squared_distances(images), torch.cdist(flat, flat) ** 2, rtol=1e-9, atol=1e-9)


def test_one_image_has_no_pairs():
    with pytest.raises(UserError, match="at least 2"):
        violating_pairs(noise(1, 3, 8, 8))


@pytest.mark.parametrize(("middle_line", "points"), [(True, 16), (False, 256)])
def test_objects_are_drawn_along_their_middle_line_and_textures_pixel_by_pixel(middle_line, points):
    figure = draw_moments(*pixel_moments([noise(2, 3, 32, 32)], 16), middle_line)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [points, points]

import numpy as np
import pytest
import torch
from PIL import Image

from adbench.transforms.image import (
    resize,
    resize_by_products,
    resize_nearest,
    resized_bytes,
    resized_large,
    to_bytes,
    to_float,
    to_rgb,
)

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_black_is_0_and_white_is_1_and_the_type_is_float32():
    image = to_float(EVERY_BYTE)
    assert image.dtype == torch.float32
    assert image.min() == 0 and image.max() == 1
    assert image.flatten()[51] == np.float32(0.2)


def test_bytes_survive_the_way_to_float_and_back():
    assert torch.equal(to_bytes(to_float(EVERY_BYTE)), EVERY_BYTE)


def test_grey_becomes_three_equal_channels_and_colour_stays():
    colour = torch.rand(2, 3, 4, 4)
    assert torch.equal(to_rgb(colour), colour)
    grey = to_rgb(colour[:, :1])
    assert grey.shape == (2, 3, 4, 4) and grey.is_contiguous()
    assert torch.equal(grey[:, 2], colour[:, 0])


def test_halving_a_step_edge_averages_with_the_triangle_filter():
    # Output pixel 1 of 4 lies between inputs 2 and 3; the antialias triangle of width 4 weighs inputs 1..4 by
    # 1/8, 3/8, 3/8, 1/8 of which 4 is bright.
    row = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 1, 8, 8)
    assert torch.allclose(resize(row, (4, 4))[0, 0, 0], torch.tensor([0, 1 / 8, 7 / 8, 1]))


def test_resizing_agrees_with_pillow_on_floats():
    image = torch.rand(1, 1, 40, 56, generator=torch.Generator().manual_seed(0))
    ours = resize(image, (15, 16))[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(image[0, 0].numpy()).resize((16, 15), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_size_that_fits_already_is_left_alone():
    image = torch.rand(1, 3, 5, 7)
    assert resize(image, (5, 7)) is image


def test_masks_are_resized_to_the_value_under_each_new_pixels_center():
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[0, 0, 1, 4] = True  # centers of a 2x2 grid of 3x3 cells lie on inputs 1 and 4
    small = resize_nearest(mask, (2, 2))
    assert small.dtype == torch.bool
    assert small[0, 0].tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8), (32, 32)), ((64, 48), (32, 24)), ((45, 37), (16, 20)), ((9, 9), (9, 9))]
)
def test_resizing_by_products_is_resizing(shape, size):
    image = torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_by_products(image, size), resize(image, size), rtol=0, atol=1e-6)


def test_both_ways_of_resizing_give_the_same_bytes_also_where_halves_are_common():
    image = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in ((32, 32), (16, 16), (128, 128), (48, 48)):
        one, other = resized_bytes(image, size), resized_bytes(image, size, resize_by_products)
        assert torch.equal(one, other)
    halves = resize(image.double(), (32, 32))
    halves = halves.mul(64).round().div(64)
    up = (halves % 1 == 0.5).float().mean()
    assert up > 0.01
    assert torch.equal(resized_bytes(image, (32, 32))[halves % 1 == 0.5].double(), halves[halves % 1 == 0.5] + 0.5)


@pytest.mark.parametrize(("height", "width", "size"), [(97, 61, (16, 16)), (64, 128, (40, 7)), (30, 41, (64, 90))])
@pytest.mark.parametrize("rows", [1, 7, 32])
def test_an_image_resized_in_bands_has_the_same_bytes(height, width, size, rows):
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized_large(image, size, rows), resized_bytes(image, size))

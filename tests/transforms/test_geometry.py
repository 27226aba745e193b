import numpy as np
import pytest
import skimage.transform
import torch

from adbench.transforms.geometry import _bilinear, inscribed_square, rotated_crop, tile, turned_clockwise, untile
from adbench.types import UserError


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_no_rotation_leaves_every_pixel():
    image = pictures(2, 3, 9, 12)
    torch.testing.assert_close(turned_clockwise(image, torch.zeros(2)), image, rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [8, 9])
def test_a_quarter_turn_is_clockwise(side):
    image = pictures(1, 3, side, side)
    torch.testing.assert_close(
        turned_clockwise(image, torch.tensor([90.0])), torch.rot90(image, -1, (2, 3)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("degrees", [17.0, -44.0, 130.0])
def test_rotation_with_edge_fill_agrees_with_scikit_image(degrees):
    image = pictures(1, 1, 21, 30)
    theirs = skimage.transform.rotate(image[0, 0].double().numpy(), -degrees, order=1, mode="edge")
    np.testing.assert_allclose(turned_clockwise(image, torch.tensor([degrees]))[0, 0].numpy(), theirs, atol=1e-4)


def test_every_image_turns_by_its_own_angle():
    image, degrees = pictures(3, 3, 10, 10), torch.tensor([0.0, 20.0, -40.0])
    alone = torch.cat([turned_clockwise(image[i : i + 1], degrees[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(turned_clockwise(image, degrees), alone)


def test_the_inscribed_square_is_all_at_0_and_90_degrees_and_0_707_at_45():
    sides = inscribed_square(100, torch.tensor([0.0, 45.0, 90.0, -45.0, 30.0]))
    torch.testing.assert_close(sides, torch.tensor([100.0, 70.7107, 100.0, 70.7107, 73.2051]), rtol=1e-5, atol=0)


def test_a_rotated_crop_equals_rotating_cutting_the_inscribed_square_and_cropping():
    image, degrees = pictures(4, 3, 40, 40), torch.tensor([0.0, 13.0, 45.0, 30.0])
    turned = turned_clockwise(image, degrees)
    for corner in (0.0, 0.999):
        crops = rotated_crop(image, degrees, torch.full((4, 2), corner), 16)
        for i in range(4):
            margin = int(np.ceil((40 - inscribed_square(40, degrees)[i].item()) / 2 - 1e-3))
            start = margin if corner == 0.0 else 40 - margin - 16
            expected = turned[i, :, start : start + 16, start : start + 16]
            torch.testing.assert_close(crops[i], expected, rtol=0, atol=1e-5)


def test_at_0_degrees_a_crop_is_the_images_own_pixels_at_every_place_equally_often():
    ramp = torch.arange(6.0).view(1, 1, 6, 1) * 10 + torch.arange(6.0)
    places = (torch.cartesian_prod(torch.arange(30.0), torch.arange(30.0)) + 0.5) / 30
    crops = rotated_crop(ramp.expand(900, 1, 6, 6), torch.zeros(900), places, 4)
    corners, counts = crops[:, 0, 0, 0].round().unique(return_counts=True)
    assert corners.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert counts.tolist() == [100] * 9
    torch.testing.assert_close(crops[0, 0], ramp[0, 0, :4, :4], rtol=0, atol=1e-4)


def test_crops_of_bytes_are_those_of_the_same_images_as_float_to_the_last_bit():
    images = torch.randint(0, 256, (8, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    degrees, places = torch.linspace(-50, 45, 8), pictures(8, 2, seed=2)
    crops = rotated_crop(images, degrees, places, 32)
    assert crops.dtype == torch.float32
    assert torch.equal(crops, rotated_crop(images / 255, degrees, places, 32))


def test_a_crop_is_what_grid_sample_makes_of_the_whole_float_image():
    """The crop reads only its own pixels, and so textures of 512 pixels stay bytes until then."""
    images = torch.randint(0, 256, (16, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    grid = 2.2 * pictures(16, 64, 64, 2, seed=3) - 1.1  # beyond the border too
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    whole = torch.nn.functional.grid_sample(images / 255, grid, **options)
    torch.testing.assert_close(_bilinear(images, grid), whole, rtol=0, atol=1e-6)


def test_no_rotated_crop_looks_past_the_edge():
    """Edge fill would bend a ramp: a crop without it has second differences of zero."""
    ramp = torch.arange(32.0).view(1, 1, 32, 1) * 3 + torch.arange(32.0)
    degrees = torch.linspace(-180, 180, 73).repeat(4)
    corners = torch.tensor([[0.0, 0.0], [0.0, 0.999], [0.999, 0.0], [0.999, 0.999]]).repeat_interleave(73, 0)
    crops = rotated_crop(ramp.expand(len(degrees), 1, 32, 32), degrees, corners, 16)
    for axis in (-1, -2):
        assert crops.diff(n=2, dim=axis).abs().max() < 1e-3


def test_rotated_crops_of_images_that_are_not_square_are_refused():
    with pytest.raises(UserError, match="square"):
        rotated_crop(torch.zeros(1, 3, 8, 10), torch.zeros(1), torch.zeros(1, 2), 4)


def test_tiles_are_cut_row_by_row_and_put_back_where_they_were():
    image = pictures(2, 3, 8, 12)
    tiles = tile(image, 4)
    assert tiles.shape == (2, 6, 3, 4, 4)
    assert torch.equal(tiles[1, 2], image[1, :, :4, 8:])
    assert torch.equal(tiles[1, 3], image[1, :, 4:, :4])
    assert torch.equal(untile(tiles, 8, 12), image)


def test_tiles_that_are_not_square_are_the_slices_in_raster_order_and_join_to_the_image():
    image = torch.arange(2 * 3 * 6 * 12.0).reshape(2, 3, 6, 12)
    tiles = tile(image, (2, 4))
    assert tiles.shape == (2, 9, 3, 2, 4)
    assert torch.equal(tiles[:, 5], image[:, :, 2:4, 8:12])
    assert torch.equal(untile(tiles, 6, 12), image)


def test_an_image_of_the_tiles_size_is_its_own_only_tile():
    image = pictures(2, 3, 8, 8)
    assert torch.equal(tile(image, 8)[:, 0], image)


def test_images_that_do_not_divide_into_tiles_are_refused():
    with pytest.raises(UserError, match="multiples"):
        tile(torch.zeros(1, 3, 8, 10), 4)

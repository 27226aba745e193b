"""One overlay and one colour scale for every picture of a map."""

import numpy as np
import pytest
from matplotlib import colormaps

from adbench.evaluation.overlay import HEAT, map_scale, overlay


def test_the_scale_leaves_out_the_lowest_hundredth_and_the_highest_two_thousandths():
    scale = map_scale([np.arange(500, dtype=np.float32), np.arange(500, 1001, dtype=np.float32)])
    assert (scale.vmin, scale.vmax) == (10.0, 998.0)
    assert scale(2000.0) == 1.0 and scale(-5.0) == 0.0
    flat = map_scale([np.full((3, 3), 2.0, np.float32)])
    assert (flat.vmin, flat.vmax) == (2.0, 3.0)
    assert map_scale([np.full((3, 3), np.nan, np.float32)]).vmax == 1.0


def test_a_cold_pixel_keeps_the_grey_image_and_a_hot_one_takes_three_quarters_of_the_colour():
    image = np.full((4, 4, 3), (30, 60, 90), np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[:, 2:] = 1
    scale = map_scale([np.array([0.0, 1.0], np.float32)])
    scale.vmin, scale.vmax = 0.0, 1.0
    picture = overlay(image, values, scale)
    assert (picture[:, :2] == 60).all()
    hottest = 255 * np.array(colormaps["inferno"](255)[:3])
    np.testing.assert_allclose(picture[0, 3], (1 - HEAT) * 60 + HEAT * hottest, atol=1.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_whose_score_is_no_number_is_hot(value):
    values = np.zeros((6, 6), np.float32)
    values[3, 3] = value
    picture = overlay(np.zeros((6, 6, 3), np.uint8), values, map_scale([values]))
    assert picture[3, 3].max() > 150 and picture[0, 0].max() == 0


def test_a_small_map_is_enlarged_to_the_image():
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 9
    picture = overlay(np.full((40, 80, 3), 10, np.uint8), values, map_scale([values]))
    assert picture.shape == (40, 80, 3)
    hot = np.argwhere(picture.max(axis=-1) > 100).mean(axis=0)
    np.testing.assert_allclose(hot, (14.5, 49.5), atol=0.6)

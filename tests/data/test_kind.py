import numpy as np
import pytest
from PIL import Image
from skimage import data, draw

from adbench.data.kind import kind_of


def cut(photograph, count=16, side=128):
    """Crops of a photograph, at the size that is measured."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        y, x = (int(rng.integers(0, n - side)) for n in photograph.shape[:2])
        crop = Image.fromarray(photograph[y : y + side, x : x + side]).convert("RGB")
        found.append(np.asarray(crop.resize((64, 64), Image.Resampling.BOX)))
    return np.stack(found)


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_surface_is_a_texture(name, count):
    assert kind_of(cut(getattr(data, name)())[:count]).kind == "texture"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_thing_before_a_background_is_an_object_however_it_lies(turned, count):
    rng = np.random.default_rng(1)
    images = np.full((count, 64, 64, 3), 200.0) + rng.normal(0, 3, (count, 64, 64, 3))
    for image in images:
        angle = rng.uniform(0, np.pi) if turned else 0.3
        rows, columns = draw.ellipse(32, 32, 8, 24, rotation=angle)
        image[rows, columns] = 60 + rng.normal(0, 20, (len(rows), 3))
    found = kind_of(images)
    assert found.kind == "object"
    assert found.sure
    assert turned or count == 1 or found.position > 0.9


def test_a_board_that_fills_the_image_and_lies_alike_is_an_object():
    rng = np.random.default_rng(2)
    board = rng.uniform(0, 255, (64, 64, 3))
    found = kind_of(board + rng.normal(0, 20, (8, 64, 64, 3)))
    assert found.kind == "object"
    assert found.border > 0.7


def test_the_position_explains_nothing_of_noise_and_all_of_one_picture_repeated():
    rng = np.random.default_rng(3)
    assert abs(kind_of(rng.normal(size=(16, 64, 64, 3))).position) < 0.02
    assert kind_of(np.repeat(rng.normal(size=(1, 64, 64, 3)), 5, axis=0)).position == pytest.approx(1)


@pytest.mark.parametrize("images", [np.zeros((3, 64, 64, 3)), np.full((1, 64, 64, 1), 7, np.uint8)])
def test_images_without_any_contrast_have_a_kind(images):
    assert np.isfinite(kind_of(images)[1:3]).all()

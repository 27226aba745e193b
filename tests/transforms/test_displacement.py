import pytest
import torch

from adbench.transforms.displacement import other_rows, permuted, quarter_turned


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("draw, k", [(0.0, 1), (0.34, 2), (0.67, 3), (0.9999999, 3)])
def test_an_image_is_turned_by_the_drawn_number_of_quarters(draw, k):
    image = rand(1, 3, 4, 4)
    assert torch.equal(quarter_turned(image, torch.tensor([draw])), image.rot90(k, (-2, -1)))


def test_turning_moves_pixels_and_changes_none():
    image = rand(50, 1, 6, 6)
    turned = quarter_turned(image, rand(50))
    assert torch.equal(turned.flatten(1).sort(1).values, image.flatten(1).sort(1).values)
    assert (turned != image).flatten(1).any(1).all()


def test_an_oblong_image_is_refused():
    with pytest.raises(ValueError, match=r"only square images.*\(1, 1, 2, 3\)"):
        quarter_turned(rand(1, 1, 2, 3), rand(1))


@pytest.mark.parametrize("features", [2, 6, 274])
def test_a_permutation_keeps_the_values_and_leaves_none_in_place(features):
    x = torch.arange(float(features)).expand(200, -1)
    moved = permuted(x, rand(200, features))
    assert torch.equal(moved.sort(1).values, x)
    assert (moved != x).all()


def test_rows_are_permuted_differently():
    moved = permuted(torch.arange(6.0).expand(100, -1), rand(100, 6))
    assert len({tuple(row) for row in moved.tolist()}) > 50


def test_other_rows_are_the_wanted_ones_by_the_draw_and_any_where_there_are_none():
    rows, wanted = torch.arange(5.0)[:, None], torch.tensor([False, True, False, True, False])
    draw = torch.tensor([0.0, 0.4, 0.5, 0.999, 0.2])
    assert other_rows(rows, wanted, draw).flatten().tolist() == [1, 1, 3, 3, 1]
    assert other_rows(rows, wanted & False, draw).shape == rows.shape

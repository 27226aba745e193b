import pytest
import torch

from adbench.transforms.symmetry import apply_symmetry, crop, symmetry_codes, undo_symmetry
from adbench.types import UserError

L_SHAPE = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])


def images(group: str) -> torch.Tensor:
    codes = torch.tensor(symmetry_codes(group))
    return apply_symmetry(L_SHAPE.expand(len(codes), 1, 3, 3), codes)[:, 0]


def test_the_eight_codes_are_the_eight_symmetries_of_a_square():
    expected = {tuple(t.rot90(k).flatten().tolist()) for t in (L_SHAPE, L_SHAPE.flip(-1)) for k in range(4)}
    assert len(expected) == 8
    assert {tuple(i.flatten().tolist()) for i in images("all")} == expected


def test_rotations_never_mirror():
    expected = {tuple(L_SHAPE.rot90(k).flatten().tolist()) for k in range(4)}
    assert {tuple(i.flatten().tolist()) for i in images("rotations")} == expected


def test_a_grain_keeps_its_direction():
    stripes = torch.tensor([[1.0, 0.0, 1.0]]).expand(4, 1, 3, 3)
    turned = apply_symmetry(stripes, torch.tensor(symmetry_codes("grain")))
    assert torch.equal(turned, stripes)
    assert not torch.equal(apply_symmetry(stripes[:1], torch.tensor([4])), stripes[:1])


def test_images_that_are_not_square_keep_their_axes():
    assert symmetry_codes("all", square=False) == (0, 1, 2, 3)
    assert symmetry_codes("rotations", square=False) == (0, 3)
    image = torch.rand(2, 3, 4, 6)
    assert torch.equal(apply_symmetry(image, torch.tensor([3, 0]))[0], image[0].flip(-1, -2))


def test_an_unknown_group_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'mirror'.*horizontal"):
        symmetry_codes("mirror")


def test_each_row_is_cropped_at_its_own_place_and_no_place_is_outside():
    image = torch.arange(36.0).reshape(1, 1, 6, 6).expand(3, 1, 6, 6)
    cut = crop(image, 2, 4, torch.tensor([[0.0, 0.0], [0.999999, 0.999999], [0.5, 0.4]]))
    assert torch.equal(cut[0, 0], image[0, 0, :2, :4])
    assert torch.equal(cut[1, 0], image[0, 0, 4:, 2:])
    assert torch.equal(cut[2, 0], image[0, 0, 2:4, 1:5])


def test_a_crop_of_the_full_size_is_the_image():
    image = torch.rand(2, 3, 8, 8)
    assert crop(image, 8, 8, torch.rand(2, 2)) is image


def test_a_symmetry_is_undone_by_its_inverse():
    image, codes = torch.rand(8, 2, 5, 5), torch.arange(8)
    turned = apply_symmetry(image, codes)
    assert not torch.equal(turned[1:], image[1:])
    assert torch.equal(undo_symmetry(turned, codes), image)
    wide, codes = torch.rand(4, 1, 3, 7), torch.arange(4)
    assert torch.equal(undo_symmetry(apply_symmetry(wide, codes), codes), wide)

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from adbench.transforms import corruption
from adbench.transforms.corruption import Alternately, Cutout, Draws, Elastic, Occlusion, Rotated, Swap, Untouched
from adbench.types import UserError

ROWS = 6
BANK = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
KINDS = {
    "elastic": Elastic(),
    "occlusion": Occlusion(),
    "occlusion from a bank": Occlusion(bank=BANK),
    "cutout": Cutout(),
    "untouched": Untouched(),
    "alternately": Alternately(Elastic(), Occlusion(), 0.5),
    "rotated": Rotated(Elastic(), 0.5),
    "swap": Swap(),
}
ALONE = [kind for kind in KINDS if kind != "swap"]  # what takes nothing from the images beside it


def draws(seed: int = 0, rows: int = ROWS, **ranks) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), rows, **ranks)


def texture(rows: int = ROWS, size: tuple[int, int] = (64, 64), seed: int = 1) -> torch.Tensor:
    coarse = torch.rand(rows, 3, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (64, 96)])
def test_outside_its_mask_the_image_is_untouched_and_all_stays_in_range(kind, size):
    clean = texture(size=size)
    corrupted, mask = KINDS[kind](clean, draws())
    assert corrupted.shape == clean.shape and mask.shape == (ROWS, 1, *size)
    assert torch.equal(torch.where(mask == 0, corrupted, clean), clean)
    assert mask.min() >= 0 and mask.max() <= 1
    assert corrupted.min() >= 0 and corrupted.max() <= 1


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "untouched"])
def test_the_same_stream_gives_the_same_corruption_and_another_gives_another(kind):
    clean = texture()
    first, again, other = (KINDS[kind](clean, draws(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("kind", ALONE)
def test_two_devices_corrupt_their_rows_as_one_device_corrupts_the_joined_batch(kind):
    clean = texture(rows=8)
    joined, joined_mask = KINDS[kind](clean, draws(5, rows=8))
    for rank in (0, 1):
        part, mask = KINDS[kind](clean[rank::2], draws(5, rows=4, rank=rank, world=2))
        torch.testing.assert_close(part, joined[rank::2], rtol=0, atol=1e-6)
        torch.testing.assert_close(mask, joined_mask[rank::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ALONE)
def test_a_row_is_corrupted_without_regard_to_the_images_beside_it(kind):
    clean = texture()
    other = torch.cat([clean[:1], 1 - clean[1:]])
    torch.testing.assert_close(KINDS[kind](other, draws())[0][0], KINDS[kind](clean, draws())[0][0])


def test_no_displacement_and_no_brightness_leave_the_image_as_it_is():
    clean = texture()
    corrupted, mask = Elastic(displacement=(0.0, 0.0), brightness_probability=0.0)(clean, draws())
    torch.testing.assert_close(corrupted, clean, rtol=0, atol=1e-5)
    assert mask.amax() > 0.5


def test_an_elastic_patch_differs_where_its_mask_is_and_only_there():
    clean = texture(rows=16)
    corrupted, mask = Elastic()(clean, draws(rows=16))
    changed = (corrupted - clean).abs().mean(dim=1, keepdim=True)
    inside = (changed * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))
    assert (inside > 0.005).all()


def test_the_patch_keeps_the_sides_it_was_asked_for():
    mask = Elastic(patch=(0.25, 0.25))(texture(rows=32), draws(rows=32))[1] > 0
    for axis in (2, 3):
        extent = mask.any(dim=5 - axis).sum(dim=-1)
        assert (extent <= 14).all()  # 16 px of which the border is 0
        assert extent.float().mean() > 9


def test_the_shape_fills_between_a_fifth_and_four_fifths_of_the_patch_whatever_is_drawn():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(300, corruption.LATTICE, corruption.LATTICE, generator=generator)
    aspect = torch.ones(300, 2)
    aspect[100:200, 0] = torch.linspace(0.25, 1, 100)
    aspect[200:, 1] = torch.linspace(0.25, 1, 100)
    mask = corruption.shape_mask(noise, aspect)
    area = (mask > 0.5).float().mean(dim=(1, 2))
    assert area.min() > 0.2 and area.max() < 0.8
    for border in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]):
        assert (border == 0).all()


def test_shapes_differ_between_draws():
    masks = Elastic(patch=(0.4, 0.4))(texture(rows=8), draws(rows=8))[1].flatten(1)
    distance = torch.cdist(masks, masks) + torch.eye(8) * 1e9
    assert distance.min() > 1


def test_a_flat_place_is_drawn_again_while_the_image_has_structure_elsewhere():
    clean = torch.full((64, 3, 64, 64), 0.5)
    clean[..., :32] = texture(rows=64)[..., :32]
    share = {}
    for tries in (1, 10):
        corrupted, _ = Elastic(tries=tries, brightness_probability=0.0)(clean, draws(rows=64))
        share[tries] = ((corrupted - clean).abs().amax(dim=(1, 2, 3)) > 0.01).float().mean()
    assert share[1] < 0.8 < share[10]


def test_a_constant_image_does_not_loop_and_is_returned_unchanged():
    clean = torch.full((4, 3, 64, 64), 0.3)
    corrupted, _ = Elastic(brightness_probability=0.0)(clean, draws(rows=4))
    torch.testing.assert_close(corrupted, clean)


def test_brightness_scales_the_patch_by_its_factor():
    clean = torch.full((8, 3, 64, 64), 0.5)
    corrupted, mask = Elastic(brightness_probability=1.0, brightness=(1.2, 1.2))(clean, draws(rows=8))
    torch.testing.assert_close(corrupted, 0.5 * (1 + 0.2 * mask).expand(-1, 3, -1, -1))


def test_bilinear_sampling_agrees_with_scipy():
    image = texture(rows=1, size=(32, 48))
    y, x = torch.rand(2, 1, 40, 5, generator=torch.Generator().manual_seed(2))
    y, x = 31 * y, 47 * x
    ours = corruption._sample(image, y, x)[0, 1]
    expected = map_coordinates(image[0, 1].numpy(), [y[0].numpy(), x[0].numpy()], order=1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_reflection_folds_coordinates_back_into_the_patch():
    folded = corruption._reflect(torch.tensor([-2.0, 0.0, 3.0, 5.5, 9.0]), torch.tensor(5))
    torch.testing.assert_close(folded, torch.tensor([2.0, 0.0, 3.0, 4.5, 1.0]))


def test_a_control_grid_of_one_raised_node_moves_most_at_that_node_and_nothing_at_the_border():
    weights, inner = corruption._interpolation(4, 8, 64, torch.device("cpu"))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5, 64))
    assert inner.sum(dim=1).tolist() == [2, 3, 4, 5, 6]
    for row, g in enumerate(range(4, 9)):
        assert weights[row, :, 1].argmax().item() == pytest.approx(63 / (g - 1), abs=3)
        assert weights[row, 0, 1:].abs().max() < 1e-5


# -- occlusion ----------------------------------------------------------------------------------------------------


def test_occluding_shapes_show_the_foreign_content():
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    corrupted, mask = Occlusion(bank=white)(torch.zeros(8, 3, 64, 64), draws(rows=8))
    torch.testing.assert_close(corrupted, mask.expand(-1, 3, -1, -1), rtol=0, atol=1e-5)
    assert (mask.amax(dim=(1, 2, 3)) > 0.5).all()


def test_an_image_without_colour_is_occluded_by_content_without_colour():
    grey, coloured = torch.full((4, 3, 64, 64), 0.5), torch.full((4, 3, 64, 64), 0.5)
    coloured[:, 0] = 0.6
    corrupted, _ = Occlusion()(torch.cat([grey, coloured]), draws(rows=8))
    spread = corrupted.amax(dim=1) - corrupted.amin(dim=1)
    assert spread[:4].max() < 1e-6
    assert (spread[4:].amax(dim=(1, 2)) > 0.15).any()


def test_half_opaque_content_replaces_half_of_the_image():
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    corrupted, mask = Occlusion(opacity=(0.5, 0.5), bank=white)(torch.zeros(8, 3, 64, 64), draws(rows=8))
    torch.testing.assert_close(corrupted, 0.5 * mask.expand(-1, 3, -1, -1), rtol=0, atol=1e-5)
    assert mask.max() > 0.9


def test_matched_content_is_as_bright_as_the_image():
    image = torch.full((16, 3, 64, 64), 0.3)
    faint = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)  # without structure, nothing is left of it
    corrupted, _ = Occlusion(matched=1.0, bank=faint)(image, draws(rows=16))
    torch.testing.assert_close(corrupted, image, rtol=0, atol=1e-5)
    seen = Occlusion(matched=0.5, bank=faint)(image, draws(rows=16))[0].sub(image).abs().amax(dim=(1, 2, 3)) > 0.1
    assert 0 < seen.sum() < 16


def test_as_many_shapes_appear_as_were_drawn():
    from scipy.ndimage import label

    shapes = Occlusion(shapes=(3, 3), side=(0.08, 0.10))
    mask = shapes(torch.zeros(32, 3, 128, 128), draws(rows=32))[1] > 0.3
    found = [label(m[0].numpy())[1] for m in mask]
    assert max(found) == 3  # fewer where shapes touch
    assert np.mean(found) > 2.3


def test_a_triangle_by_the_even_odd_rule_has_the_area_of_a_triangle():
    line = torch.linspace(-1, 1, 201)
    x, y = torch.meshgrid(line, line, indexing="xy")
    inside = corruption._inside_polygon(torch.tensor([-0.8, 0.8, 0.0, 0.0]), torch.tensor([-0.5, -0.5, 0.7, 0.7]), x, y)
    assert inside.float().mean().item() * 4 == pytest.approx(0.5 * 1.6 * 1.2, rel=0.02)
    assert inside[100, 100] and not inside[199, 100]


def test_procedural_content_differs_between_rows_in_colour_and_structure():
    content = corruption.fractal_content(draws(rows=16), (48, 64))
    assert content.shape == (16, 3, 48, 64)
    assert content.mean(dim=(2, 3)).std(dim=0).min() > 0.1
    assert content.std(dim=(2, 3)).amax(dim=1).min() > 0.01


def test_a_folder_of_images_becomes_a_bank(tmp_path):
    for value in (10, 200):
        Image.new("RGB", (30, 20), (value,) * 3).save(tmp_path / f"{value}.png")
    bank = corruption.read_bank(str(tmp_path), side=16)
    assert bank.shape == (2, 3, 16, 16) and bank.dtype == torch.uint8
    assert set(bank.flatten(1)[:, 0].tolist()) == {10, 200}
    with pytest.raises(UserError, match="found none"):
        corruption.read_bank(str(tmp_path / "empty"), side=16)


# -- the others ---------------------------------------------------------------------------------------------------


def test_a_cutout_is_zero_inside_its_rectangle():
    corrupted, mask = Cutout()(torch.ones(8, 3, 64, 64), draws(rows=8))
    assert torch.equal(corrupted, (1 - mask).expand_as(corrupted))
    rows, cols = mask.any(dim=3).sum(dim=2), mask.any(dim=2).sum(dim=2)
    assert torch.equal(mask.sum(dim=(2, 3)), (rows * cols).float())


def test_a_swapped_rectangle_shows_the_same_place_of_another_image_of_the_batch():
    """x̂_S = y_S: every image has a grey of its own, so the content names its source."""
    image = torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand(5, 3, 40, 60) / 10 + torch.rand(1, 3, 40, 60) / 100
    for seed in range(10):
        corrupted, mask = Swap((0.2, 0.4))(image, draws(seed, 5))
        for i in range(5):
            inside = mask[i].bool().expand(3, -1, -1)
            others = [j for j in range(5) if torch.equal(corrupted[i][inside], image[j][inside])]
            assert len(others) == 1
            assert others[0] != i
            assert torch.equal(corrupted[i][~inside], image[i][~inside])
            height, width = mask[i, 0].any(1).sum(), mask[i, 0].any(0).sum()
            assert (8 <= height <= 16) and (12 <= width <= 24)
            assert mask[i].sum() == height * width


def test_an_image_alone_in_its_batch_has_nothing_to_swap_with():
    image = torch.rand(1, 3, 32, 32)
    corrupted, mask = Swap()(image, draws(rows=1))
    assert torch.equal(corrupted, image)
    assert mask.sum() == 0


def test_untouched_images_have_an_empty_mask():
    clean = texture()
    corrupted, mask = Untouched()(clean, draws())
    assert torch.equal(corrupted, clean) and mask.sum() == 0


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_alternation_takes_one_or_the_other(probability):
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    corrupted, mask = Alternately(Cutout(), Occlusion(bank=white), probability)(
        torch.full((4, 3, 64, 64), 0.5), draws(rows=4)
    )
    inside = corrupted[mask.expand_as(corrupted) > 0.99]
    torch.testing.assert_close(inside, torch.full_like(inside, probability), rtol=0, atol=0.01)


def test_a_quarter_turn_rotates_the_image_exactly():
    image = texture(rows=2, size=(32, 32))
    turned = corruption.turned_counter_clockwise(image, torch.tensor([torch.pi / 2, 0.0]))
    torch.testing.assert_close(turned[0], image[0].rot90(1, (-2, -1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], image[1], atol=1e-5, rtol=0)


def test_rotation_marks_everything_that_moved():
    clean = torch.zeros(3, 3, 64, 64)
    clean[:, :, 28:36, 8:56] = 1  # a bar
    corrupted, mask = Rotated(Untouched(), probability=1.0)(clean, draws(2, rows=3))
    moved = (corrupted - clean).abs().amax(dim=1, keepdim=True) > 0.2
    assert (moved.sum(dim=(1, 2, 3)) > 50).all()
    assert (mask[moved] > 0.9).all()
    assert (mask[:, :, :6, :6] == 0).all()  # the background did not


def test_a_swapped_patch_is_a_square_of_the_other_image():
    clean, other = torch.zeros(5, 3, 32, 40), torch.ones(5, 3, 32, 40)
    corrupted, mask = corruption.swap_patch(clean, other, 9, draws(rows=5))
    assert torch.equal(corrupted, mask.expand_as(corrupted))
    assert (mask.sum(dim=(1, 2, 3)) == 81).all()
    assert (corruption.swap_patch(clean, other, 32, draws(rows=5))[1].sum(dim=(1, 2, 3)) == 1024).all()
    with pytest.raises(UserError):
        corruption.swap_patch(clean, other, 33, draws(rows=5))


@pytest.mark.parametrize("options", [{"patch": (0.5, 0.4)}, {"patch": (0.0, 0.4)}, {"nodes": (2, 4)}, {"tries": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError):
        Elastic(**options)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Occlusion, {"side": (0.5, 0.1)}, "^method.occlusion.side must be two shares"),
        (Occlusion, {"opacity": (0.4, 2.0)}, "^method.occlusion.opacity must be two shares"),
        (Occlusion, {"shapes": (0, 3)}, "^method.occlusion.shapes must be 1 <= fewest <= most"),
        (Occlusion, {"vertices": (2, 8)}, "^method.occlusion.vertices must be 3 <= fewest <= most"),
        (Occlusion, {"matched": 5.0}, r"^method.occlusion.matched must lie in \[0, 1\]"),
        (Cutout, {"patch": (0.0, 0.4)}, "^method.cutout.patch must be two shares"),
        (Swap, {"patch": (0.3, 0.2)}, "^method.swap.patch must be two shares"),
        (Elastic, {"patch": (0.3, 1.4)}, "^method.elastic.patch must be two shares"),
    ],
)
def test_numbers_that_make_no_corruption_are_refused_by_the_key_to_type(kind, changes, message):
    with pytest.raises(UserError, match=message):
        kind(**changes)

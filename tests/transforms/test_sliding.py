"""Windows cut from an image and folded back."""

import pytest
import torch

from adbench.transforms.sliding import all_windows, chosen_windows, fold_windows


def test_a_256_px_image_has_225_patches_in_row_major_order():
    image = torch.arange(256 * 256, dtype=torch.float32).view(1, 1, 256, 256)
    patches = all_windows(image, 32, 16)
    assert patches.shape == (225, 1, 32, 32)
    assert torch.equal(patches[16], image[0, :, 16:48, 16:48])


def test_the_sum_of_folded_ones_counts_the_windows_over_a_pixel():
    counts = fold_windows(torch.ones(1, 225, 32, 32), 256, 256, 16, average=False)
    values, pixels = counts.unique(return_counts=True)
    assert values.tolist() == [1, 2, 4]
    assert [p / 65536 for p in pixels.tolist()] == pytest.approx([0.015625, 0.21875, 0.765625])


def test_averaging_folded_windows_gives_the_image_back():
    image = torch.rand(2, 1, 128, 128)
    windows = all_windows(image, 32, 16).view(2, 49, 32, 32)
    assert torch.allclose(fold_windows(windows, 128, 128, 16, average=True), image, atol=1e-6)


def test_chosen_windows_are_the_named_ones_with_neighbours_from_different_images():
    image = torch.rand(3, 2, 64, 64)
    every = all_windows(image, 32, 16).view(3, 9, 2, 32, 32)
    chosen = torch.tensor([[0, 8], [4, 3], [7, 7]])
    picked = chosen_windows(image, 32, 16, chosen)
    expected = torch.stack([every[b, chosen[b, k]] for k in range(2) for b in range(3)])
    assert torch.equal(picked, expected)

import pytest
import torch
from torch.nn import functional as F

from adbench.networks.dilated import DilatedAutoencoder, DilatedConv2d, StackedDilatedConv
from adbench.types import UserError


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("kernel", "expected"), [(3, 14_136_771), (5, 22_787_523)])
def test_the_paper_network_has_the_parameters_of_table_1(kernel, expected):
    with torch.device("meta"):
        network = DilatedAutoencoder(kernel)
    assert count(network) == expected


@pytest.mark.parametrize(
    ("inputs", "kernel", "expected"),
    [(256, 3, 2_214_144), (256, 5, 3_787_008), (384, 3, 2_656_512), (384, 5, 5_015_808)],
)
def test_a_stack_of_dilated_convolutions_has_the_parameters_of_table_1(inputs, kernel, expected):
    with torch.device("meta"):
        assert count(StackedDilatedConv(inputs, 64, kernel)) == expected


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (512, 512), (8, 8), (40, 72)])
def test_the_reconstruction_has_the_shape_of_the_image_and_lies_between_0_and_1(size):
    network = DilatedAutoencoder(3, width=1 / 16).eval()
    with torch.no_grad():
        output = network(torch.rand(1, 3, *size))
    assert output.shape == (1, 3, *size)
    assert output.min() > 0 and output.max() < 1


def test_the_code_is_an_eighth_of_the_side_with_six_times_the_filters():
    assert DilatedAutoencoder(3, width=1 / 16).encoder(torch.rand(2, 3, 64, 64)).shape == (2, 24, 8, 8)


def test_a_side_that_is_not_divisible_by_8_is_refused_with_a_side_that_is():
    with pytest.raises(UserError, match=r"divisible by 8; got 100 x 64.*96"):
        DilatedAutoencoder(3, width=1 / 16)(torch.rand(1, 3, 100, 64))


@pytest.mark.parametrize(("kernel", "width"), [(4, 1.0), (3, 0.001)])
def test_an_impossible_network_is_refused(kernel, width):
    with pytest.raises(UserError):
        DilatedAutoencoder(kernel, width)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("dilation", [1, 4, 8, 32])
def test_leaving_out_taps_that_meet_only_padding_changes_neither_output_nor_gradients(kernel, dilation):
    torch.manual_seed(0)
    conv = DilatedConv2d(2, 3, kernel, dilation)
    x = torch.randn(2, 2, 6, 9, requires_grad=True)
    padding = dilation * (kernel // 2)
    full = F.conv2d(x, conv.weight, conv.bias, padding=padding, dilation=dilation)
    cut = conv(x)
    torch.testing.assert_close(cut, full)
    for ours, reference in zip(
        torch.autograd.grad(cut.square().sum(), [x, conv.weight, conv.bias]),
        torch.autograd.grad(full.square().sum(), [x, conv.weight, conv.bias]),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_shifting_the_image_by_the_stride_shifts_the_reconstruction_away_from_borders():
    """With the dilations 1 and 2 alone: the others reach the border from everywhere at this size."""
    torch.manual_seed(0)
    network = DilatedAutoencoder(3, width=1 / 16).eval()
    for stack in network.encoder:
        if isinstance(stack, StackedDilatedConv):
            for branch in list(stack.branches)[2:]:
                torch.nn.init.zeros_(branch.weight)
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        here, there = network(image), network(image.roll((8, 16), dims=(-2, -1)))
    inner = slice(136, 192)
    back = there.roll((-8, -16), dims=(-2, -1))
    torch.testing.assert_close(back[..., inner, inner], here[..., inner, inner], rtol=0, atol=1e-4)
    assert (back - here).abs().max() > 1e-3  # at the border it does not hold


def test_bfloat16_autocast_changes_a_reconstruction_by_less_than_half_a_percent_of_the_range():
    torch.manual_seed(0)
    network = DilatedAutoencoder(3, width=1 / 8)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(20):
            network(image)  # running statistics
        network.eval()
        full = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.005
    assert full.std() > 0.02  # not constant: the comparison says something


def test_a_mirrored_stack_of_layers_starts_as_a_linear_map():
    torch.manual_seed(0)
    network = DilatedAutoencoder(3, width=1 / 16).double()
    network.start_linear()
    network.eval()
    stacks = network.encoder[-4:]
    a, b = (torch.randn(1, network.encoder[-4].branches[0].in_channels // 2, 8, 8).double() for _ in range(2))

    def through(x: torch.Tensor) -> torch.Tensor:
        # What reaches the stacks: the positive and the negative part of every channel, one beside the other.
        code = stacks(torch.stack([x, -x], dim=2).flatten(1, 2).relu())
        return code[:, ::2] - code[:, 1::2]

    torch.testing.assert_close(through(2 * a - 3 * b), 2 * through(a) - 3 * through(b))
    assert through(a).abs().max() > 0.1


def test_a_mirrored_filter_stands_beside_its_negative_at_every_width():
    network = DilatedAutoencoder(3, width=3 / 64)  # 3 filters: the last one has no partner
    network.start_linear()
    weight = network.encoder[0][0].weight
    assert torch.equal(weight[0], -weight[1])
    even = DilatedAutoencoder(5, width=1 / 16)
    even.start_linear()
    for branch in even.encoder[-1].branches:
        assert torch.equal(branch.weight[::2], -branch.weight[1::2])
        assert torch.equal(branch.weight[:, ::2], -branch.weight[:, 1::2])

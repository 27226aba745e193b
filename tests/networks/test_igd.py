"""IGD's networks: published parameter counts, and the folded blocks against the plain ones."""

import pytest
import timm
import torch
import torch.nn.functional as F

from adbench.networks.igd import (
    ConvThenHalve,
    Descriptor,
    DoubleThenConv,
    ImageNorm,
    image_critic,
    image_decoder,
    patch_critic,
    patch_decoder,
    reverse_resnet18,
)
from adbench.networks.resnet import ResNet18
from adbench.types import UserError


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def whole():
    return Descriptor(256, trunk="resnet18", latent=128)


@pytest.fixture(scope="module")
def patch():
    return Descriptor(32, trunk="residual", latent=128)


def test_the_whole_image_networks_have_the_published_parameter_counts(whole):
    assert count(whole.encoder.trunk) == 11_176_512
    assert count(whole.encoder.projection) == 65_664
    assert count(whole.decoder) == 10_903_363
    assert count(whole.critic) == 17_715_201
    assert count(whole.encoder.projection) + count(whole.decoder) == 10_969_027


def test_the_layers_of_the_whole_image_networks_have_the_published_counts(whole):
    counts = [count(layer) for layer in whole.decoder if count(layer)]
    assert counts == [1_056_768, 2_359_808, 4_983_808, 1_902_592, 476_160, 119_296, 128, 4_803]
    counts = [count(layer) for layer in whole.critic if count(layer)]
    assert counts == [4_864, 4_313_344, 2_572_800, 2_950_144, 5_506_048, 2_359_808, 8_193]


def test_the_patch_networks_have_the_published_parameter_counts(patch):
    assert count(patch.encoder) == 6_760_320
    assert count(patch.decoder) == 3_556_675
    assert count(patch.critic) == 2_964_993
    assert [count(layer) for layer in patch.critic if count(layer)] == [1_792, 381_184, 606_720, 1_967_104, 8_193]
    trunk = [count(layer) for layer in patch.encoder.trunk.layers if count(layer)]
    assert trunk == [1_792, 119_296, 476_160, 1_902_592, 4_194_816]


def test_the_cifar_resnet_has_the_published_parameter_count_and_keeps_small_images_large():
    trunk = ResNet18(stem="cifar")
    assert count(trunk) == 11_168_832
    seen = []
    trunk.layer4.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    assert seen == [(1, 512, 4, 4)]


def test_the_resnet_computes_what_timms_resnet18_computes_with_the_same_weights():
    reference = timm.create_model("resnet18.tv_in1k", pretrained=False, num_classes=0).eval()
    ours = ResNet18().eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), reference(x), atol=1e-5)


@pytest.mark.parametrize(("block", "kernel"), [(ConvThenHalve, 3), (DoubleThenConv, 3), (DoubleThenConv, 5)])
def test_a_folded_block_and_its_gradients_equal_the_plain_two_steps(block, kernel):
    torch.manual_seed(0)
    layer = block(4, 6, kernel).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)

    def plain(x):
        if block is ConvThenHalve:
            return F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2), 2)
        return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=kernel // 2)

    inputs = (x, layer.weight, layer.bias)
    folded, twostep = layer(x), plain(x)
    assert torch.allclose(folded, twostep, atol=1e-12)
    direction = torch.randn_like(folded)
    for ours, theirs in zip(
        torch.autograd.grad(folded, inputs, direction), torch.autograd.grad(twostep, inputs, direction), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_the_critics_norm_is_layer_normalisation_over_the_whole_activation():
    norm = ImageNorm(3, 4)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(norm(x), F.layer_norm(x, (3, 4, 4), norm.weight, norm.bias), atol=1e-6)


@pytest.mark.parametrize("side", [32, 64, 256])
def test_a_resnet_reversed_has_its_stages_backwards_and_makes_images_of_any_multiple_of_32(side):
    decoder = reverse_resnet18(side, 16, width=1 / 8).eval()
    shapes = []
    for module in decoder:
        module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    assert decoder(torch.zeros(2, 16)).shape == (2, 3, side, side)
    last = side // 32
    stages = [(64, last), (64, last), (32, 2 * last), (32, 2 * last), (16, 4 * last), (16, 4 * last), (8, 8 * last)]
    assert shapes[1:10] == [(c, s, s) for c, s in [*stages, (8, 8 * last), (8, 8 * last)]]


def test_a_resnet_reversed_convolves_as_often_as_the_resnet():
    kinds = [module for module in reverse_resnet18(32, 4, 1 / 8).modules() if isinstance(module, torch.nn.Conv2d)]
    forward = [module for module in ResNet18(1 / 8).modules() if isinstance(module, torch.nn.Conv2d)]
    for kernel in ((3, 3), (1, 1), (7, 7)):
        assert sum(k.kernel_size == kernel for k in kinds) == sum(k.kernel_size == kernel for k in forward)


@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_whole_image_networks_exist_for_every_power_of_two(side):
    decoder, critic = image_decoder(side, 16, width=1 / 16), image_critic(side, width=1 / 16)
    image = decoder(torch.zeros(2, 16))
    assert image.shape == (2, 3, side, side)
    assert critic(image).shape == (2,)


def test_patch_networks_turn_an_embedding_into_a_patch_and_a_patch_into_a_number():
    image = patch_decoder(16, width=1 / 8)(torch.zeros(2, 16))
    assert image.shape == (2, 3, 32, 32)
    assert patch_critic(width=1 / 8)(image).shape == (2,)


def test_the_sigmoid_is_optional_and_keeps_the_critic_between_zero_and_one():
    x = 100 * torch.randn(8, 3, 32, 32)
    torch.manual_seed(0)
    bounded = patch_critic(1 / 8, sigmoid=True)
    torch.manual_seed(0)
    free = patch_critic(1 / 8)
    assert torch.allclose(bounded(x), free(x).sigmoid())


@pytest.mark.parametrize("side", [48, 96, 33, 16])
def test_a_side_that_is_no_power_of_two_is_refused_by_name(side):
    with pytest.raises(UserError, match=f"power of two and at least 64, got {side}"):
        image_decoder(side, 16)


def test_an_unknown_or_unfit_trunk_is_refused():
    with pytest.raises(UserError, match="resnet18, resnet18_cifar, residual"):
        Descriptor(32, trunk="vgg", latent=8)
    with pytest.raises(UserError, match="takes 32-px images, got 64"):
        Descriptor(64, trunk="residual", latent=8)

import pytest
import torch
from torch import nn

from adbench.networks.residual_bigan import Critic, Encoder, Generator, ResidualBlock
from adbench.types import UserError


@pytest.mark.parametrize(
    ("width", "side", "hidden_bias", "counts"),
    [
        (3, 128, True, (88_246, 83_640, 668_327)),
        (3, 128, False, (87_892, 83_142, 666_437)),
        (3, 64, True, (60_598, 83_640, 640_679)),
        (3, 64, False, (60_244, 83_142, 638_789)),
        (16, 128, True, (2_424_736, 2_080_947, 3_098_209)),
        (16, 128, False, (2_422_848, 2_078_291, 3_094_785)),
        (16, 64, True, (1_638_304, 2_080_947, 2_311_777)),
        (16, 64, False, (1_636_416, 2_078_291, 2_308_353)),
        (64, 128, True, (38_563_264, 32_469_699, 39_581_569)),
        (64, 128, False, (38_555_712, 32_459_075, 39_572_481)),
        (64, 64, True, (25_980_352, 32_469_699, 26_998_657)),
        (64, 64, False, (25_972_800, 32_459_075, 26_989_569)),
    ],
)
def test_parameter_counts_of_encoder_generator_and_critic(width, side, hidden_bias, counts):
    with torch.device("meta"):
        built = [network(side, width, 64, hidden_bias) for network in (Encoder, Generator, Critic)]
    assert tuple(sum(p.numel() for p in network.parameters()) for network in built) == counts


def test_parameter_counts_of_every_block_at_width_16():
    with torch.device("meta"):
        encoder, generator = Encoder(128, 16, 64), Generator(128, 16, 64)

    def counts(*modules):
        return [sum(p.numel() for p in module.parameters()) for module in modules]

    assert counts(*encoder.trunk.blocks) == [3_104, 15_488, 38_592, 71_936, 246_272, 984_064]
    assert counts(encoder.hidden, encoder.output) == [1_048_832, 16_448]
    assert counts(generator.input, *generator.blocks, generator.output) == [
        *(66_560, 1_311_744, 492_032, 123_136, 53_952, 25_728, 7_744, 51)
    ]


@pytest.mark.parametrize(("side", "start"), [(32, 1), (64, 2), (96, 3), (128, 2), (160, 5)])
def test_encoder_and_generator_are_inverse_in_shape_and_the_critic_takes_both(side, start):
    encoder, generator, critic = (network(side, 1, 7) for network in (Encoder, Generator, Critic))
    image, latent = torch.zeros(2, 3, side, side), torch.zeros(2, 7)
    assert encoder(image).shape == latent.shape
    assert generator(latent).shape == image.shape
    assert critic(image, latent).shape == (2,)
    assert critic.first_convolution(image).shape == (2, 1, side, side)
    assert critic.penultimate(image, latent).shape == (2, 16)
    assert generator.start == (16, start, start)


@pytest.mark.parametrize("side", [0, 16, 48, 100])
def test_a_side_that_is_no_multiple_of_32_is_refused(side):
    for network in (Encoder, Generator, Critic):
        with pytest.raises(UserError, match="multiple of 32"):
            network(side, 1, 4)


def test_generated_values_stay_between_minus_one_and_one():
    generator = Generator(32, 2, 8)
    image = generator(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert image.abs().max() < 1
    assert generator(1e6 * torch.ones(1, 8)).abs().max() <= 1  # saturated


def test_kernels_start_glorot_uniform_and_biases_at_zero():
    torch.manual_seed(0)
    for network in (Encoder(64, 8, 64), Generator(64, 8, 64), Critic(64, 8, 64)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
                limit = (6 / (fan_in + fan_out)) ** 0.5
                assert layer.weight.abs().max() <= limit
                if layer.weight.numel() > 2000:
                    assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
                assert layer.bias is None or not layer.bias.any()


def test_there_is_no_normalisation():
    for network in (Encoder, Generator, Critic):
        leaves = {type(m) for m in network(64, 1, 4).modules() if not list(m.children())}
        assert leaves == {nn.Conv2d, nn.Linear}


def test_the_released_pattern_keeps_biases_only_at_the_end_of_blocks_and_networks():
    for network in (Encoder, Generator, Critic):
        biased = {n for n, _ in network(64, 1, 4, hidden_bias=False).named_parameters() if n.endswith("bias")}
        places = "trunk.blocks" if network is not Generator else "blocks"
        assert biased == {"output.bias", *(f"{places}.{i}.third.bias" for i in range(6))}


def test_a_residual_block_adds_its_branches_before_the_last_activation():
    block = ResidualBlock(1, 1)
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
        block.skip.weight.fill_(2.0)
        block.third.bias.fill_(-3.0)
    assert block(torch.ones(1, 1, 2, 2)).flatten().tolist() == pytest.approx([-0.2] * 4)  # leaky(2 - 3)


def test_the_first_convolution_is_linear_up_to_its_bias_and_the_penultimate_layer_depends_on_the_latent():
    torch.manual_seed(0)
    critic = Critic(32, 2, 4)
    a, b = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        critic.first_convolution(a) - critic.first_convolution(b),
        torch.nn.functional.conv2d(a - b, critic.trunk.blocks[0].first.weight, padding=1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert not torch.allclose(critic.penultimate(a, torch.zeros(2, 4)), critic.penultimate(a, torch.ones(2, 4)))

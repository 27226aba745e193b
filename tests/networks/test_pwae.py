"""P-WAE's networks have the sizes of the released program and treat tiles one by one."""

import pytest
import torch

from adbench.networks.pwae import CodeToMap, Decoder, TileEncoder, map_side


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def resnet50():
    return TileEncoder("resnet50", 1.0, 128, posterior=False, normalize=True).eval()


@pytest.fixture(scope="module")
def decoder():
    return Decoder(2048, 1.0, (300, 300), "released", "sigmoid").eval()


def small(posterior=False, normalize=True):
    return TileEncoder("resnet18", 0.25, 16, posterior, normalize).eval()


def test_parameter_counts_are_the_sheets(resnet50, decoder):
    jigsaw = torch.nn.Linear(9 * 128, 1000)
    assert count(resnet50.backbone) == 23_508_032
    assert count(resnet50.mapper) == 1_048_704
    assert count(jigsaw) == 1_153_000
    assert count(torch.nn.Linear(9 * 128, 1001)) == 1_154_153
    assert count(torch.nn.Linear(9 * 128, 101)) == 116_453
    assert count(decoder) == 6_808_675
    assert sum(map(count, (resnet50, jigsaw, decoder))) == 32_518_411
    assert count(Decoder(2048, 1.0, (300, 300), "padded", "sigmoid")) == 11_007_747


@pytest.mark.parametrize(("size", "maps"), [((100, 100), (4, 4)), ((100, 336), (4, 11))])
def test_a_tile_becomes_a_map_and_128_numbers(resnet50, size, maps):
    with torch.no_grad():
        f, z = resnet50(torch.rand(1, 3, *size))
    assert f.shape == (1, 2048, *maps)
    assert z.shape == (1, 128)


@pytest.mark.parametrize("side", [11, 32, 43, 44, 86, 100, 336])
def test_map_side_is_the_backbones(side):
    with torch.no_grad():
        assert small()(torch.rand(1, 3, side, side))[0].shape[-1] == map_side(side)


@pytest.mark.parametrize(
    ("maps", "inner", "size"), [((12, 12), (300, 300), (300, 300)), ((12, 33), (300, 972), (300, 1008))]
)
def test_a_mosaic_becomes_an_image(maps, inner, size):
    decoder = Decoder(32, 0.05, size, "released", "sigmoid").eval()
    with torch.no_grad():
        mosaic = torch.randn(1, 32, *maps)
        assert decoder.layers(mosaic).shape == (1, 3, *inner)
        image = decoder(mosaic)
    assert image.shape == (1, 3, *size)
    assert image.min() >= 0
    assert image.max() <= 1


def test_outputs_have_the_range_of_their_last_function():
    mosaic = 50 * torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        tanh = Decoder(8, 0.05, (108, 108), "released", "tanh")(mosaic)
        padded = Decoder(8, 0.05, (192, 192), "padded", "sigmoid")(mosaic)
    assert tanh.min() < 0
    assert tanh.abs().max() <= 1
    assert padded.shape == (1, 3, 192, 192)
    assert padded.min() >= 0


def test_a_four_by_four_map_is_pooled_to_its_code_as_released():
    encoder = small()
    tile = torch.rand(1, 3, 100, 100)
    with torch.no_grad():
        f, z = encoder(tile)
        by_hand = encoder.mapper(torch.nn.AvgPool2d(3, stride=1)(f).flatten(1))
    torch.testing.assert_close(z, by_hand)


def test_the_encoder_normalises_with_imagenets_statistics():
    grey = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(small().normalized(grey), torch.zeros(1, 3, 4, 4))
    assert torch.equal(small(normalize=False).normalized(grey), grey)


def test_a_posterior_has_twice_the_numbers():
    with torch.no_grad():
        assert small(posterior=True)(torch.rand(2, 3, 43, 43))[1].shape == (2, 32)


def test_a_code_becomes_a_map():
    assert CodeToMap(16, 8, (4, 11))(torch.rand(5, 16)).shape == (5, 8, 4, 11)


@pytest.mark.parametrize("layout", ["released", "padded"])
def test_only_the_named_biases_have_no_gradient(layout):
    decoder = Decoder(16, 0.05, (96, 96), layout, "sigmoid").double()
    decoder(torch.randn(4, 16, 6, 6, dtype=torch.float64)).square().sum().backward()
    size = {name: p.grad.abs().max() for name, p in decoder.named_parameters()}
    without = {name for name in size if size[name] < 1e-12 * max(size.values())}
    assert without == set(decoder.idle_biases())

"""The step that is timed and its naive baseline minimise the same numbers."""

import importlib.util
from pathlib import Path

import pytest
import torch

ALPHA = torch.tensor([[0.1], [0.4]])


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[2] / "bench" / "igd_step.py"
    spec = importlib.util.spec_from_file_location("igd_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(bench):
    method = bench.build_method(256, width=0.125, latent=8)
    method.rand = lambda purpose, rows, *shape: 2 * ALPHA  # alpha is half of a uniform draw
    image = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    return method, image


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("bf16-mixed", 2e-2)])
def test_two_steps_have_the_naive_steps_terms(bench, precision, tolerance):
    method, image = tiny(bench)
    naive = bench.NaiveStep(
        method.descriptors["global"], method.normalize(image).contiguous(), critic_first=True, alpha=ALPHA
    )
    method.log_every = 1
    expected = [naive.step(), naive.step()][1]  # the second step feels what the first one did to the weights
    bench.timed_step(method, image, precision, times=2)
    terms = {name.split("/")[1]: value for name, value in method.latest_terms.items()}
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), name


def test_the_naive_networks_are_the_same_functions(bench):
    d = tiny(bench)[0].descriptors["global"].eval()
    plain = bench.plain(d)
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = d.decoder(z)
        assert torch.allclose(plain.decoder(z), image, atol=1e-5)
        assert torch.allclose(plain.critic(image), d.critic(image), atol=1e-5)

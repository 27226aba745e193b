import functools

import pytest
import torch

from adbench.methods.autoencoder import Autoencoder, VariationalAutoencoder
from adbench.types import Batch, UserError

OPTIONS = {
    "kind": "small", "image_size": 16, "latent": 6, "width": 4, "mlp": {"hidden": [8], "embedding": 3},
    "scaling": "none", "error": "squared", "window": 7, "schedule": None, "rows_per_step": None,
    "optimizer": functools.partial(torch.optim.Adam, lr=1e-3),
}  # fmt: skip


def build(cls=Autoencoder, **changes):
    torch.manual_seed(0)
    return cls(**(OPTIONS | changes)).eval()


def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def batch(image: torch.Tensor) -> Batch:
    zeros = torch.zeros(len(image), dtype=torch.long)
    return Batch(image, zeros - 1, zeros, zeros, zeros)


@pytest.mark.parametrize("error", ["squared", "ssim"])
def test_the_score_is_the_mean_of_the_map_and_its_mean_the_loss(error):
    method = build(error=error)
    scores = method.score(images())
    torch.testing.assert_close(scores.image, scores.maps.mean((1, 2, 3)))
    torch.testing.assert_close(method.objective(batch(images()))["reconstruction"], scores.image.mean())


def test_a_defect_that_is_not_reconstructed_lights_up_where_it_is():
    method, image = build(), images() * 0 + 0.5
    spotted = image.clone()
    spotted[:, :, 4:8, 4:8] = 1.0
    method._decoded = lambda x: image
    heat = method.score(spotted).maps
    assert (heat[..., 4:8, 4:8] == 0.25).all()
    assert heat.sum() == 4 * 16 * 0.25


def test_a_vae_scores_the_mean_code_without_drawing_and_adds_its_divergence():
    vae = build(VariationalAutoencoder, divergence_weight=0.5)
    first, again = vae.score(images()), vae.score(images())
    assert torch.equal(first.image, again.image)
    plain = first.maps.mean((1, 2, 3))
    mean, log_variance = vae.encoder(images()).chunk(2, dim=1)
    nats = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    torch.testing.assert_close(first.image, plain + 0.5 * nats / (3 * 16 * 16))


def test_a_vae_trains_on_a_drawn_code():
    vae = build(VariationalAutoencoder, divergence_weight=0.5)
    first = vae.objective(batch(images()))
    vae.batches_seen = 1
    second = vae.objective(batch(images()))
    assert first["reconstruction"] != second["reconstruction"]
    assert first["divergence"] == second["divergence"]


def test_ssim_of_tables_is_refused():
    with pytest.raises(UserError, match="got ssim for data of kind tabular"):
        build(kind="tabular", error="ssim")


@pytest.mark.parametrize("cls", [Autoencoder, VariationalAutoencoder])
def test_decoded_codes_are_the_reconstruction_that_scores(cls):
    method = build(cls, **({"divergence_weight": 0.5} if cls is VariationalAutoencoder else {}))
    codes = method.codes(images())
    assert codes.shape == (4, 1, 6)
    assert method.decodes
    torch.testing.assert_close(method.decode(codes), method.reconstruct(images()))


def test_rows_of_a_table_have_codes_and_no_picture():
    method = build(kind="tabular", image_size=5)
    assert method.codes(torch.rand(4, 5)).shape == (4, 1, 3)
    assert not method.decodes

import numpy as np
import torch
from scipy.spatial.distance import mahalanobis as oracle
from sklearn.covariance import EmpiricalCovariance

from adbench.losses.padim import mahalanobis, regularised_covariance, whitening


def embeddings(n: int = 30, positions: int = 4, d: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(positions, d, d, generator=generator, dtype=torch.float64)
    return torch.einsum("npd,pde->npe", torch.randn(n, positions, d, generator=generator, dtype=torch.float64), mixed)


def fitted(rows: torch.Tensor, epsilon: float):
    by_position = rows.transpose(0, 1)
    products = by_position.transpose(1, 2) @ by_position
    return regularised_covariance(rows.sum(0), products, len(rows), epsilon)


def test_the_gaussians_are_numpys_and_scikit_learns():
    rows = embeddings()
    mean, covariance = fitted(rows, 0.01)
    for p in range(rows.shape[1]):
        wanted = np.cov(rows[:, p].numpy().T) + 0.01 * np.eye(5)
        np.testing.assert_allclose(covariance[p].numpy(), wanted, rtol=1e-10)
        found = EmpiricalCovariance().fit(rows[:, p].numpy())
        np.testing.assert_allclose(mean[p].numpy(), found.location_, rtol=1e-10)
        np.testing.assert_allclose(
            (covariance[p] - 0.01 * torch.eye(5)).numpy() * 29 / 30, found.covariance_, rtol=1e-6
        )


def test_distances_are_scipys():
    rows = embeddings()
    mean, covariance = fitted(rows, 0.01)
    found = mahalanobis(rows, mean, whitening(covariance))
    assert found.shape == rows.shape[:2]
    for n, p in ((0, 0), (3, 2), (29, 3)):
        wanted = oracle(rows[n, p].numpy(), mean[p].numpy(), np.linalg.inv(covariance[p].numpy()))
        np.testing.assert_allclose(found[n, p].item(), wanted, rtol=1e-9)


def test_the_whitening_matrix_is_a_root_of_the_inverse():
    _, covariance = fitted(embeddings(), 0.1)
    white = whitening(covariance)
    torch.testing.assert_close(white.transpose(1, 2) @ white @ covariance, torch.eye(5).double().expand(4, 5, 5))

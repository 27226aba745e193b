import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest as SklearnForest
from sklearn.neighbors import KernelDensity as SklearnDensity
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM as SklearnSvm

from adbench.methods.shallow import IsolationForest, KernelDensity, NearestNeighbour, OneClassSVM
from adbench.streams import derived_seed
from adbench.types import Batch, UserError

TRAIN = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
TEST = 2 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
TABLE = ("tabular", 4, "none", None)


def fitted(method):
    zeros = torch.zeros(len(TRAIN), dtype=torch.long)
    method.prepare([Batch(part, zeros, zeros, zeros, zeros) for part in TRAIN.split(70)])
    return method.eval()


def test_the_svm_scores_as_scikit_learn_s():
    oracle = SklearnSvm(nu=0.2, gamma="scale").fit(TRAIN.double().numpy())
    score = fitted(OneClassSVM(*TABLE, nu=0.2, gamma="scale")).score(TEST).image
    np.testing.assert_allclose(score, -oracle.decision_function(TEST.double().numpy()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows_per_tree", [256, 16, 2])
def test_the_forest_scores_as_scikit_learn_s(rows_per_tree):
    method = fitted(IsolationForest(*TABLE, trees=20, rows_per_tree=rows_per_tree))
    seed = derived_seed(0, "forest") % 2**32
    oracle = SklearnForest(n_estimators=20, max_samples=rows_per_tree, random_state=seed).fit(TRAIN.numpy())
    np.testing.assert_allclose(method.score(TEST).image, -oracle.score_samples(TEST.numpy()), rtol=1e-5)


def test_the_density_is_scikit_learn_s():
    oracle = SklearnDensity(bandwidth=0.7).fit(TRAIN.double().numpy())
    score = fitted(KernelDensity(*TABLE, bandwidth=0.7)).score(TEST).image
    np.testing.assert_allclose(score, -oracle.score_samples(TEST.double().numpy()), rtol=1e-5)


def test_scott_s_bandwidth_shrinks_with_the_number_of_rows():
    method = fitted(KernelDensity(*TABLE, bandwidth="scott"))
    assert method.width.item() == pytest.approx(300 ** (-1 / 8) * TRAIN.std(0).square().mean().sqrt().item(), rel=1e-5)


def test_the_neighbours_distance_is_scikit_learn_s():
    distance, _ = NearestNeighbors(n_neighbors=3).fit(TRAIN.numpy()).kneighbors(TEST.numpy())
    score = fitted(NearestNeighbour(*TABLE, neighbours=3)).score(TEST).image
    np.testing.assert_allclose(score, distance.mean(1), rtol=1e-4)


@pytest.mark.parametrize("make", [
    lambda *t: OneClassSVM(*t, nu=0.2, gamma="scale"), lambda *t: IsolationForest(*t, trees=5, rows_per_tree=64),
    lambda *t: KernelDensity(*t, bandwidth="scott"), lambda *t: NearestNeighbour(*t, neighbours=1),
])  # fmt: skip
def test_a_checkpoint_of_tensors_holds_all_that_was_fitted(make, tmp_path):
    first = fitted(make("tabular", 4, "min_max", None))
    torch.save(first.state_dict(), tmp_path / "c.ckpt")
    second = make("tabular", 4, "min_max", None).eval()
    second.load_state_dict(torch.load(tmp_path / "c.ckpt", weights_only=True))
    assert torch.equal(first.score(TEST).image, second.score(TEST).image)


def test_a_hybrid_looks_at_the_embeddings_of_its_encoder():
    method = NearestNeighbour("small", 32, "none", "cifar10", neighbours=1).eval()
    image = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(6, dtype=torch.long)
    method.prepare([Batch(image, zeros, zeros, zeros, zeros)])
    assert method.rows.shape == (6, 128)
    assert method.encoders()["encoder"].features == 128
    assert method.score(image).image.max() < 1e-2
    with pytest.raises(UserError, match=r"tables need method\.encoder=null"):
        NearestNeighbour("tabular", 4, "none", "cifar10", neighbours=1)

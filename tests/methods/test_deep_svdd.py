import functools

import pytest
import torch

from adbench.methods.deep_svdd import DeepSAD, DeepSVDD
from adbench.types import Batch, UserError

OPTIONS = {
    "kind": "tabular", "image_size": 5, "network": "cifar10", "mlp": {"hidden": [8], "embedding": 3},
    "scaling": "min_max", "contrast": False, "center_floor": 0.1, "schedule": None, "rows_per_step": None,
    "optimizer": functools.partial(torch.optim.Adam, lr=1e-2),
}  # fmt: skip
SVDD = {"soft_boundary": False, "nu": 0.1, "warm_up": 0.5}


def rows(n: int = 40, *shape: int) -> torch.Tensor:
    return torch.randn(n, *(shape or (5,)), generator=torch.Generator().manual_seed(0))


def batch(image: torch.Tensor, semi: int = 0) -> Batch:
    n = len(image)
    label = torch.full((n,), semi)
    return Batch(image, label * 0 - 1, label, torch.zeros(n, 1, 1, 1, dtype=torch.bool), torch.arange(n))


def prepared(method, image=None):
    image = rows() if image is None else image
    method.eval()
    with torch.no_grad():
        method.prepare([batch(part) for part in image.split(16)])
    return method


def svdd(**changes) -> DeepSVDD:
    torch.manual_seed(0)
    return DeepSVDD(**(OPTIONS | SVDD | changes))


def test_the_center_is_the_mean_embedding_in_eval_mode_whatever_the_order():
    method = prepared(svdd(center_floor=0.0))
    expected = method.encoder(method.input(rows())).mean(0)
    torch.testing.assert_close(method.center, expected)
    torch.testing.assert_close(prepared(svdd(center_floor=0.0), rows().flip(0)).center, expected)


def test_no_component_of_the_center_is_near_zero():
    assert (prepared(svdd(center_floor=5.0)).center.abs() >= 5).all()


def test_training_moves_the_network_and_not_the_center():
    method = prepared(svdd())
    center = method.center.clone()
    optimizer = method.configure_optimizers()
    method.train()
    before = method.objective(batch(rows()))["distance"]
    for _ in range(30):
        optimizer.zero_grad()
        method.objective(batch(rows()))["distance"].backward()
        optimizer.step()
    assert method.objective(batch(rows()))["distance"] < 0.5 * before
    assert torch.equal(method.center, center)
    assert not method.center.requires_grad


def test_a_row_that_embeds_on_the_center_scores_0_and_every_other_more():
    method = prepared(svdd())
    method.center.copy_(method.encoder(method.input(rows()))[3])
    scores = method.score(rows()).image
    assert scores[3].abs() < 1e-10
    assert (scores.sort().values[1:] > 0).all()


def test_a_soft_boundary_gets_its_radius_after_the_warm_up_and_ranks_as_the_distance():
    method = prepared(svdd(soft_boundary=True, nu=0.25))
    method.total_batches = 10
    for k, moved in ((0, False), (4, False), (5, True)):
        method.batches_seen = k
        method.objective(batch(rows()))
        method.after_step()
        assert bool(method.radius > 0) == moved
    distance = method.distance(rows())
    assert ((distance > method.radius.square()).double().mean() - 0.25).abs() < 0.03
    assert torch.equal(method.score(rows()).image.argsort(), distance.argsort())


def test_deep_sad_without_labels_minimises_what_deep_svdd_does():
    torch.manual_seed(0)
    sad = prepared(DeepSAD(**OPTIONS, eta=1.0))
    torch.testing.assert_close(
        sad.objective(batch(rows()))["distance"], prepared(svdd()).objective(batch(rows()))["distance"]
    )


def test_deep_sad_drives_known_anomalies_off_the_center():
    torch.manual_seed(0)
    sad = prepared(DeepSAD(**OPTIONS, eta=1.0))
    optimizer = sad.configure_optimizers()
    before = sad.distance(rows()).mean()
    for _ in range(20):
        optimizer.zero_grad()
        sad.objective(batch(rows(), semi=-1))["distance"].backward()
        optimizer.step()
    assert sad.distance(rows()).mean() > 2 * before


def test_contrast_normalised_training_images_fill_0_to_1():
    method = prepared(svdd(kind="small", image_size=32, contrast=True), rows(20, 3, 32, 32).sigmoid())
    seen = method.input(rows(20, 3, 32, 32).sigmoid())
    assert seen.min() == 0
    assert seen.max() == 1


def test_the_decoder_for_pretraining_mirrors_the_encoder():
    for changes, count in (({}, 5 * 8 + 8 * 3), ({"kind": "small", "image_size": 28, "network": "mnist"}, 1_200)):
        shown = svdd(**changes).encoders()["encoder"]
        assert sum(p.numel() for p in shown.decoder.parameters()) == count
        x = rows(4, 3, 28, 28) if changes else rows(4)
        assert shown.decoder(shown.network(x)).shape == x.shape


def test_pretraining_sees_the_scaled_features():
    method = svdd()
    method.before_pretraining([batch(rows())])
    scaled = method.encoders()["encoder"].normalize(rows())
    assert (scaled.amin(0), scaled.amax(0)) == (pytest.approx([0] * 5), pytest.approx([1] * 5))


def test_a_nu_outside_0_and_1_is_refused():
    with pytest.raises(UserError, match=r"method.nu.*got 0"):
        svdd(nu=0)


def test_codes_are_the_embeddings_of_which_the_score_is_a_distance():
    method = prepared(svdd())
    codes = method.codes(rows())
    assert codes.shape == (40, 1, 3)
    torch.testing.assert_close((codes[:, 0] - method.center).square().sum(1), method.distance(rows()))

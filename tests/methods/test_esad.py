import functools

import pytest
import torch

from adbench.losses.esad import squared_norm
from adbench.methods.esad import ESAD
from adbench.types import Batch, UserError

MLP = {"hidden": [8, 6], "embedding": 3}
PHI = {"turn": True, "permutation": True, "noise": 0.1, "normal": False}


def esad(kind: str = "tabular", image_size: int = 5, **changes) -> ESAD:
    torch.manual_seed(0)
    options = {
        "network": "deep", "mlp": MLP, "scaling": "none", "widths": [4, 4, 4, 8, 8], "batch_norm": True,
        "code_bn": False, "pad": 0, "lambda_1": 1.0, "lambda_2": 1.0, "phi": PHI, "reduction": "mean",
        "code_reduction": "mean", "squared_score": True, "labelled_stream": False, "inverse_eps": 1e-3,
        "second_encoder": True, "optimizer": functools.partial(torch.optim.SGD, lr=0.1), "schedule": None,
        "rows_per_step": None, "clip": 5.0,
    }  # fmt: skip
    return ESAD(kind, image_size, **(options | changes))


def batch(*shape: int, semi: list[int]) -> Batch:
    n = len(semi)
    image = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))
    semi_label = torch.tensor(semi)
    return Batch(image, semi_label * 0 - 1, semi_label, torch.zeros(n, 1, 1, 1, dtype=torch.bool), torch.arange(n))


def gradients(method: ESAD, *names: str) -> list[bool]:
    """Whether the named networks got a gradient."""
    return [any(p.grad is not None and p.grad.any() for p in getattr(method, name).parameters()) for name in names]


NETWORKS = ("encoder", "decoder", "second_encoder")


@pytest.mark.parametrize("term, reached", [
    ("reconstruction", [True, True, False]), ("norm", [True, True, True]), ("assistance", [True, True, True]),
])  # fmt: skip
def test_every_term_trains_what_the_paper_says(term, reached):
    method = esad()
    method.objective(batch(5, semi=[0, 0, 0, -1]))[term].backward()
    assert gradients(method, *NETWORKS) == reached


def test_assistance_reaches_the_first_encoder_through_both_arguments():
    method, x = esad(), batch(5, semi=[0] * 4).image
    z, _, z_hat = method._codes(x)
    parameter = next(method.encoder.parameters())
    one, other = (torch.autograd.grad(code.sum(), parameter, retain_graph=True)[0] for code in (z, z_hat))
    assert one.any()
    assert other.any()


def test_the_two_encoders_share_a_layout_but_no_storage_and_the_second_does_not_touch_the_reconstruction():
    method = esad("small", 32)
    first, second = ({p.data_ptr() for p in net.parameters()} for net in (method.encoder, method.second_encoder))
    assert len(first) == len(second)
    assert not first & second
    x = batch(3, 32, 32, semi=[0, 0]).image
    method.eval()
    before = method._codes(x)[1]
    for p in method.second_encoder.parameters():
        p.data.add_(1.0)
    assert torch.equal(method._codes(x)[1], before)


def test_the_whole_model_has_the_parameters_of_table_6():
    def count(**options) -> int:
        method = esad("small", 32, widths=[64, 128, 256, 512, 512], **options)
        return sum(p.numel() for p in method.parameters())

    assert count(code_bn=True) == 21_222_723
    assert count() == 21_220_675
    assert count(batch_norm=False) == 21_208_899


@pytest.mark.parametrize("features, hidden, code, count", [
    (274, [128, 64], 32, 135_936), (21, [32, 16], 8, 3_936), (36, [32, 16], 8, 5_376), (9, [32, 16], 8, 2_784),
    (6, [32, 16], 4, 2_304),
])  # fmt: skip
def test_the_tabular_models_have_the_published_parameters(features, hidden, code, count):
    method = esad(image_size=features, mlp={"hidden": hidden, "embedding": code})
    assert sum(p.numel() for p in method.parameters()) == count


def test_without_labels_and_weights_the_loss_is_a_plain_autoencoder_s():
    method, rows = esad(lambda_1=0.0, lambda_2=0.0), batch(5, semi=[0] * 6)
    method.eval()
    terms = method.objective(rows)
    x_hat = method.decoder(method.encoder(rows.image))
    torch.testing.assert_close(sum(terms.values()), (x_hat - rows.image).square().mean())


@pytest.mark.parametrize("kind, shape", [("tabular", (5,)), ("small", (3, 32, 32))])
def test_only_known_anomalies_have_another_target(kind, shape):
    method = esad(kind, shape[-1]).eval()
    clean = method.objective(batch(*shape, semi=[0, 0, 1, 1]))["reconstruction"]
    method.phi = PHI | {"turn": False, "permutation": False, "noise": 0.0}
    torch.testing.assert_close(method.objective(batch(*shape, semi=[0, 0, 1, 1]))["reconstruction"], clean)
    same = method.objective(batch(*shape, semi=[0, 0, -1, -1]))["reconstruction"]
    torch.testing.assert_close(same, clean)  # the ablation without phi
    method.phi = PHI
    assert not torch.isclose(method.objective(batch(*shape, semi=[0, 0, -1, -1]))["reconstruction"], clean)


def test_phi_is_redrawn_at_every_visit_and_is_a_function_of_the_batch_number():
    method, x = esad(), batch(5, semi=[-1] * 3).image
    first, again = method.displaced(x), method.displaced(x)
    method.batches_seen = 1
    assert torch.equal(first, again)
    assert not torch.equal(first, method.displaced(x))


def test_phi_of_images_stays_in_their_range():
    moved = esad("small", 32, phi=PHI | {"noise": 2.0}).displaced(batch(3, 32, 32, semi=[-1]).image)
    assert moved.min() == 0
    assert moved.max() == 1


def test_the_score_is_the_reconstruction_error_plus_the_norm_of_the_second_code():
    method, x = esad(lambda_1=0.5).eval(), batch(5, semi=[0] * 4).image
    _, x_hat, z_hat = method._codes(x)
    expected = squared_norm(x - x_hat, "mean") + 0.5 * squared_norm(z_hat, "mean")
    torch.testing.assert_close(method.score(x).image, expected)
    method.lambda_1 = 0.0
    torch.testing.assert_close(method.score(x).image, squared_norm(x - x_hat, "mean"))


def test_the_vanilla_autoencoder_norms_its_own_code():
    method, x = esad(second_encoder=False).eval(), batch(5, semi=[0] * 4)
    z, _, z_hat = method._codes(x.image)
    assert z is z_hat
    assert set(method.objective(x)) == {"reconstruction", "norm"}


def test_a_border_makes_28_px_digits_fit_and_is_cut_off_again():
    method = esad("small", 28, pad=2)
    x = batch(3, 28, 28, semi=[0, 0]).image
    assert method.eval().score(x).image.shape == (2,)
    assert method.reconstruct(x).shape == x.shape
    with pytest.raises(UserError, match="multiple of 16, got 28"):
        esad("small", 28)


def test_the_decoder_of_min_max_features_ends_in_a_sigmoid_and_the_others_do_not():
    x = 10 * batch(5, semi=[0] * 16).image
    assert esad(scaling="min_max").eval()._codes(x)[1].min() >= 0
    assert esad(scaling="clipped").eval()._codes(x)[1].min() < 0


def test_known_anomalies_can_be_reconstructed_as_unlabelled_rows_of_their_batch():
    phi = {"turn": False, "permutation": False, "noise": 0.0, "normal": True}
    for kind, shape in (("tabular", (5,)), ("small", (3, 32, 32))):
        rows = batch(*shape, semi=[-1, 0, 1, -1, 0, -1])
        x, target = esad(kind, shape[-1], phi=phi).shared_inputs(rows)
        for i, semi in enumerate(rows.semi_label.tolist()):
            others = [i] if semi >= 0 else [1, 4]
            assert any(torch.equal(target[i], x[j]) for j in others)
    x, target = esad(phi=phi).shared_inputs(batch(5, semi=[-1] * 200 + [0, 0]))
    assert 50 < sum(torch.equal(row, x[200]) for row in target[:200]) < 150


def test_the_unsquared_reading_scores_with_lengths_whatever_the_training_s_reduction():
    x = batch(5, semi=[0] * 4).image
    for reduction in ("mean", "sum"):
        method = esad(squared_score=False, lambda_1=0.5, reduction=reduction).eval()
        _, x_hat, z_hat = method._codes(x)
        expected = (x - x_hat).norm(dim=1) + 0.5 * z_hat.norm(dim=1)
        torch.testing.assert_close(method.score(x).image, expected)


def test_the_other_readings_of_the_score_come_along():
    x = batch(5, semi=[0] * 4).image
    method = esad(reduction="sum", lambda_1=0.5).eval()
    extra = method.extra_scores(x)
    assert set(extra) == {"reconstruction", "norm", "unsquared", "means", "sums"}
    torch.testing.assert_close(extra["reconstruction"] + 0.5 * extra["norm"], method.score(x).image)
    torch.testing.assert_close(extra["unsquared"], esad(squared_score=False, lambda_1=0.5).eval().score(x).image)
    torch.testing.assert_close(extra["means"], esad(lambda_1=0.5).eval().score(x).image)


def test_a_batch_with_too_many_labelled_rows_weighs_as_the_training_rows_do():
    method = esad(labelled_stream=True)
    with torch.no_grad():
        method.prepare([batch(5, semi=[0] * 24), batch(5, semi=[0] * 5 + [-1, 1, -1])])
    assert method.labelled_share == pytest.approx(3 / 32)
    rows = batch(5, semi=[0, -1, 0, -1])
    method.eval()
    z, _, z_hat = method._codes(rows.image)
    gap = (z - z_hat).square().mean(1)
    expected = 29 / 32 * gap[[0, 2]].mean() + 3 / 32 * gap[[1, 3]].mean()
    torch.testing.assert_close(method.objective(rows)["assistance"], expected)


@pytest.mark.parametrize("name", ["reduction", "code_reduction"])
def test_a_reduction_that_does_not_exist_is_refused(name):
    with pytest.raises(UserError, match=f"method.{name} is mean or sum, got 'max'"):
        esad(**{name: "max"})


@pytest.mark.parametrize(
    "options", [{"image_size": 32}, {"image_size": 28, "pad": 2}, {"image_size": 28, "network": "mnist"}]
)
def test_codes_are_z_and_z_hat_and_z_decodes_to_the_reconstruction(options):
    method = esad("small", **options).eval()
    x = batch(3, options["image_size"], options["image_size"], semi=[0, 0]).image
    z, _, z_hat = method._codes(method._input(x))
    codes = method.codes(x)
    assert torch.equal(codes[:, 0], z.flatten(1)) and torch.equal(codes[:, 1], z_hat.flatten(1))
    assert method.code_names == ("z", "z_hat") and method.decodes
    torch.testing.assert_close(method.decode(codes[:, :1]).clamp(0, 1), method.reconstruct(x))


def test_codes_of_tables_are_not_drawn_as_pictures():
    method = esad().eval()
    assert method.codes(batch(5, semi=[0, 0]).image).shape == (2, 2, 3) and not method.decodes

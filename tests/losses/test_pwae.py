"""P-WAE's equations: values by hand, limits, and SciPy's and POT's answers."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from adbench.losses import pwae
from adbench.streams import torch_stream


def normal(*shape, purpose="normal"):
    return torch.randn(shape, generator=torch_stream(0, purpose), dtype=torch.float64)


def uniform(*shape, purpose="uniform"):
    return torch.rand(shape, generator=torch_stream(0, purpose), dtype=torch.float64)


def directions(tiles, projections, d):
    return F.normalize(normal(tiles, projections, d, purpose="directions"), dim=-1)


# -- prior and divergence


def test_student_t_samples_follow_scipys_distribution():
    sample = pwae.student_t(uniform(20_000, 2), nu=5.0, location=3.0, scale=2.0)
    assert stats.kstest(sample.numpy(), stats.t(5, loc=3.0, scale=2.0).cdf).pvalue > 0.01


def test_student_t_has_mean_k_variance_five_thirds_and_heavy_tails():
    k = torch.arange(1.0, 10.0, dtype=torch.float64)
    sample = pwae.student_t(uniform(20_000, 9, 2), 5.0, k)
    torch.testing.assert_close(sample.mean(0), k, rtol=0, atol=0.04)
    torch.testing.assert_close(sample.var(0), torch.full((9,), 5 / 3, dtype=torch.float64), rtol=0.1, atol=0)
    assert (stats.kurtosis(sample.numpy()) > 1).all()  # a Gaussian's is 0


def test_student_t_is_finite_at_the_ends_of_the_uniform_range():
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 0.0], [0.0, 1 - 2**-24]])
    assert torch.isfinite(pwae.student_t(ends, 5.0)).all()


def test_sliced_wasserstein_is_pots_sliced_distance_squared_for_each_tile():
    z, prior, theta = normal(16, 9, 12), 2 + normal(16, 9, 12, purpose="prior"), directions(9, 20, 12)
    ours = pwae.sliced_wasserstein(z, prior, theta)
    pot = [
        ot.sliced_wasserstein_distance(z[:, k].numpy(), prior[:, k].numpy(), projections=theta[k].numpy().T, p=2) ** 2
        for k in range(9)
    ]
    np.testing.assert_allclose(ours.numpy(), pot, rtol=1e-9)


def test_sliced_wasserstein_of_two_points_on_a_line_by_hand():
    z = torch.tensor([0.0, 2.0]).reshape(2, 1, 1)
    prior = torch.tensor([5.0, 1.0]).reshape(2, 1, 1)  # sorted pairs (0, 1), (2, 5): (1 + 9) / 2
    assert pwae.sliced_wasserstein(z, prior, torch.ones(1, 1, 1)).item() == 5.0


def test_with_its_root_it_is_the_mean_of_the_directions_distances_as_scipy_has_them():
    z, prior, theta = normal(16, 3, 12), 2 + normal(16, 3, 12, purpose="prior"), directions(3, 20, 12)
    ours = pwae.sliced_wasserstein(z, prior, theta, root=True)
    projected = [[(v[:, k] @ theta[k].T).numpy() for k in range(3)] for v in (z, prior)]
    one_by_one = [
        [ot.wasserstein_1d(a[:, p], b[:, p], p=2) ** 0.5 for p in range(20)] for a, b in zip(*projected, strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), np.mean(one_by_one, axis=1), rtol=1e-9)


def test_with_its_root_equal_samples_are_at_distance_zero_and_pull_nowhere():
    z = normal(4, 9, 5).requires_grad_()
    distance = pwae.sliced_wasserstein(z, z.detach().clone(), directions(9, 10, 5), root=True)
    distance.sum().backward()
    assert (distance == 0).all()
    assert (z.grad == 0).all()


def test_the_moments_of_all_tiles_priors_together_are_those_of_their_samples():
    k = torch.arange(1.0, 10.0, dtype=torch.float64)
    sample = pwae.student_t(uniform(40_000, 9, 2), 5.0, k)
    mean, deviation = pwae.prior_moments("student_t", 5.0, k)
    assert (mean, deviation) == (5.0, pytest.approx((20 / 3 + 5 / 3) ** 0.5))
    assert sample.mean().item() == pytest.approx(mean, abs=0.02)
    assert sample.std().item() == pytest.approx(deviation, abs=0.02)
    assert pwae.prior_moments("gaussian", 5.0, 0 * k) == (0.0, 1.0)
    assert pwae.prior_moments("student_t", 2.0, 0 * k) == (0.0, 1.0)


def test_sliced_wasserstein_is_zero_for_the_same_samples_in_another_order_and_positive_otherwise():
    z, theta = normal(8, 9, 5), directions(9, 10, 5)
    assert pwae.sliced_wasserstein(z, z.flip(0), theta).abs().max() < 1e-24
    assert (pwae.sliced_wasserstein(z, z + 1, theta) > 0).all()


def test_sliced_wasserstein_is_symmetric_and_blind_to_a_joint_permutation_of_samples():
    z, prior, theta = normal(8, 9, 5), normal(8, 9, 5, purpose="prior"), directions(9, 10, 5)
    value, order = pwae.sliced_wasserstein(z, prior, theta), torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    torch.testing.assert_close(pwae.sliced_wasserstein(prior, z, theta), value)
    torch.testing.assert_close(pwae.sliced_wasserstein(z[order], prior[order], theta), value)


def test_a_shift_by_v_costs_the_squared_length_of_v_over_d():
    z, v = normal(4, 1, 128), normal(128, purpose="shift")
    cost = pwae.sliced_wasserstein(z, z + v, directions(1, 4096, 128)).item()
    assert cost == pytest.approx(v.square().sum().item() / 128, rel=0.06)


def test_gradient_descent_on_the_sliced_distance_moves_codes_to_their_own_prior():
    location = torch.tensor([1.0, 9.0], dtype=torch.float64)[:, None]
    z = normal(16, 2, 4).requires_grad_()
    prior, theta = normal(16, 2, 4, purpose="prior") + location, directions(2, 50, 4)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(pwae.sliced_wasserstein(z, prior, theta).sum(), z)
        z = (z - 10 * gradient).detach().requires_grad_()
    torch.testing.assert_close(z.detach().mean(0), location.expand(2, 4), rtol=0, atol=0.6)


def test_kl_is_torchs_kl_of_two_gaussians_per_dimension():
    mean, log_variance, location = normal(6, 9, 4), normal(6, 9, 4, purpose="v"), torch.arange(9.0)[:, None].double()
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(location, 1.0)
    )
    torch.testing.assert_close(pwae.gaussian_kl(mean, log_variance, location), theirs.mean(dim=(0, 2)))
    assert (pwae.gaussian_kl(location.expand(3, 9, 4), torch.zeros(3, 9, 4), location) == 0).all()


# -- HSIC


def gram(x, sigma=1.5):
    return pwae.centred_gram(x, sigma)


def test_the_centred_gram_matrix_is_h_k_h():
    x = normal(6, 3)
    k = torch.exp(-torch.cdist(x, x).square() / (2 * 1.5**2))
    h = torch.eye(6, dtype=torch.float64) - 1 / 6
    torch.testing.assert_close(gram(x), h @ k @ h)


def test_nhsic_is_equation_14_written_with_an_inverse():
    kx, kz, eps = gram(normal(6, 3)), gram(normal(6, 2, purpose="z")), 0.1
    tilde = [k @ torch.linalg.inv(k + eps * 6 * torch.eye(6, dtype=k.dtype)) for k in (kx, kz)]
    torch.testing.assert_close(pwae.nhsic(kx, kz, eps), torch.trace(tilde[0] @ tilde[1]))


def test_nhsic_is_symmetric_between_0_and_m_minus_1_and_0_for_a_constant_or_a_single_sample():
    kx, kz = gram(normal(8, 3)), gram(normal(8, 2, purpose="z"))
    value = pwae.nhsic(kx, kz, 1e-3)
    torch.testing.assert_close(pwae.nhsic(kz, kx, 1e-3), value)
    assert 0 < value < 7
    assert pwae.nhsic(gram(torch.ones(8, 3)), kz, 1e-3).abs() < 1e-12
    assert pwae.nhsic(gram(normal(1, 3)), gram(normal(1, 2)), 1e-3) == 0


def test_nhsic_does_not_see_a_shift_or_a_joint_permutation_of_samples():
    x, z, order = normal(8, 3), normal(8, 2, purpose="z"), torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    value = pwae.nhsic(gram(x), gram(z), 1e-2)
    torch.testing.assert_close(pwae.nhsic(gram(x + 40.0), gram(z), 1e-2), value)
    torch.testing.assert_close(pwae.nhsic(gram(x[order]), gram(z[order]), 1e-2), value)


def test_nhsic_of_a_variable_with_itself_tends_to_m_minus_1():
    k = gram(normal(8, 3))
    values = [pwae.nhsic(k, k, eps).item() for eps in (1e-1, 1e-3, 1e-9)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(7, abs=1e-5)


def test_at_the_literal_epsilon_nhsic_hardly_tells_dependent_from_independent_codes():
    """Why the default is not the literal form: 1152 numbers, 16 samples, sigma = 5 sqrt(d)."""
    x, z = normal(16, 1152), normal(16, 1152, purpose="z")
    sigma = 5 * math.sqrt(1152)
    k = [pwae.centred_gram(v, sigma) for v in (x, z, x + 0.1 * z)]
    independent, dependent = pwae.nhsic(k[0], k[1], 1e-5), pwae.nhsic(k[0], k[2], 1e-5)
    assert independent > 14.8
    assert dependent - independent < 0.05


def test_alignment_is_1_for_equal_grams_0_for_a_constant_and_tells_dependence_apart():
    x, z = normal(16, 4), normal(16, 4, purpose="z")
    kx, kz, both = (pwae.centred_gram(v, "median") for v in (x, z, x + 0.1 * z))
    assert pwae.kernel_alignment(kx, 3 * kx).item() == pytest.approx(1)
    assert pwae.kernel_alignment(torch.zeros_like(kx), kz) == 0
    assert pwae.kernel_alignment(kx, both) > 0.95
    assert pwae.kernel_alignment(kx, kz) < 0.7


def test_the_median_bandwidth_makes_the_gram_blind_to_scale():
    x = normal(7, 3)
    torch.testing.assert_close(pwae.centred_gram(x, "median"), pwae.centred_gram(100 * x, "median"))
    assert torch.isfinite(pwae.centred_gram(torch.ones(5, 2), "median")).all()


def test_the_gradient_of_nhsic_is_that_of_finite_differences():
    kx, z = gram(normal(5, 3)), normal(5, 2, purpose="z").requires_grad_()
    assert torch.autograd.gradcheck(lambda v: pwae.nhsic(kx, pwae.centred_gram(v, 2.0), 0.1), (z,))


def test_the_bottleneck_falls_as_the_dependence_on_the_input_rises_and_beta_0_leaves_the_prior_term():
    prior, low, high = torch.tensor(0.3), torch.tensor(0.1), torch.tensor(0.9)
    assert pwae.hsic_bottleneck(prior, high, 0.1) < pwae.hsic_bottleneck(prior, low, 0.1)
    assert pwae.hsic_bottleneck(prior, high, 0.0) == prior


# -- jigsaw and reconstruction


@pytest.mark.parametrize(("classes", "value"), [(1000, 6.9078), (1001, 6.9088)])
def test_jigsaw_loss_at_uniform_logits_is_the_log_of_the_number_of_classes(classes, value):
    loss = pwae.jigsaw(torch.zeros(4, classes), torch.tensor([0, 1, 5, classes - 1]))
    assert loss.item() == pytest.approx(value, abs=1e-4)


def test_reconstruction_is_the_mean_square_and_its_variant_adds_the_mean_absolute_value():
    image, x_hat = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.25)
    assert pwae.reconstruction(image, x_hat, "squared").item() == 0.0625
    assert pwae.reconstruction(image, x_hat, "absolute_and_squared").item() == 0.3125


# -- scores


def test_tile_errors_are_norms_of_the_whole_and_of_slices():
    image, x_hat = uniform(2, 3, 12, 18), uniform(2, 3, 12, 18, purpose="x_hat")
    errors, r = pwae.tile_errors(image, x_hat, 3), image - x_hat
    torch.testing.assert_close(errors[:, 0], r.flatten(1).norm(dim=1))
    torch.testing.assert_close(errors[:, 6], r[:, :, 4:8, 12:18].flatten(1).norm(dim=1))  # tile 5: row 1, column 2
    torch.testing.assert_close(errors[:, 1:].square().sum(1), errors[:, 0].square())


def test_a_side_that_three_does_not_divide_has_a_smaller_last_tile():
    image = torch.zeros(1, 3, 32, 32)
    x_hat = image.clone()
    x_hat[:, :, 22:, 22:] = 1.0  # ceil(32 / 3) = 11: the last tile is 10 x 10
    norm, released = (pwae.tile_errors(image, x_hat, 3, form)[0] for form in ("norm", "released"))
    assert norm.nonzero().flatten().tolist() == [0, 9]
    assert norm[9].item() == pytest.approx(math.sqrt(300))
    assert released[9].item() == pytest.approx(200.0)
    assert released[0].item() == pytest.approx(200.0 * 100 / 1024)


def test_a_score_of_at_most_1_is_the_two_threshold_rule():
    errors = torch.cat((0.6 * uniform(400, 1), uniform(400, 9, purpose="tiles")), dim=1)
    maxima = 0.8 + uniform(10, purpose="maxima")
    score = pwae.two_threshold_score(errors, maxima, 0.3, 0.8)
    normalised = errors / maxima
    rule = (normalised[:, 0] <= 0.3) & (normalised[:, 1:] <= 0.8).all(1)
    assert 20 < rule.sum() < 380
    assert torch.equal(score <= 1, rule)


def test_the_score_is_blind_to_the_scale_of_all_errors_and_never_falls_when_one_rises():
    errors, maxima = uniform(20, 10), 0.5 + uniform(10, purpose="maxima")
    score = pwae.two_threshold_score(errors, maxima, 0.3, 0.8)
    torch.testing.assert_close(pwae.two_threshold_score(7 * errors, 7 * maxima, 0.3, 0.8), score)
    for k in range(10):
        raised = errors.clone()
        raised[:, k] += 1
        assert (pwae.two_threshold_score(raised, maxima, 0.3, 0.8) >= score).all()


def test_the_summed_score_adds_the_whole_and_the_tiles():
    assert pwae.summed_score(torch.tensor([[3.0, 1.0, 2.0]])).item() == 6.0


def test_the_released_metrics_by_hand():
    """Four normal and three anomalous images; the threshold 0.3 of the maximum 1 gives TN 3, FP 1, TP 2, FN 1."""
    whole = torch.tensor([0.1, 0.2, 0.2, 0.5, 1.0, 0.9, 0.1])
    numbers = pwae.released_metrics(torch.stack((whole, torch.zeros(7)), 1), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    assert numbers["auroc"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert numbers["tpr"] == pytest.approx(3 / 4)  # TN / (TN + FN)
    assert numbers["tnr"] == pytest.approx(2 / 3)  # TP / (TP + FP)
    assert numbers["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_the_released_auroc_is_scikit_learns_of_hard_predictions():
    from sklearn.metrics import roc_auc_score

    errors = torch.cat((0.6 * uniform(60, 1), 0.85 * uniform(60, 9, purpose="tiles")), dim=1)
    errors[0] = 1.0  # so that the columns' maxima are 1
    label = (uniform(60, purpose="label") < 0.4).long()
    hard = (errors[:, 0] > 0.3) | (errors[:, 1:] > 0.8).any(1)
    assert 5 < hard.sum() < 55
    assert pwae.released_metrics(errors, label)["auroc"] == pytest.approx(roc_auc_score(label.numpy(), hard.numpy()))


def test_the_released_rows_of_a_folder_carry_the_tile_errors_of_its_last_image():
    errors = torch.tensor([[0.1, 1.0], [0.1, 0.0], [1.0, 1.0], [0.1, 1.0]])
    label, folder = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert pwae.released_metrics(errors, label)["auroc"] == pytest.approx(0.75)
    assert pwae.released_metrics(errors, label, folder)["auroc"] == pytest.approx(1.0)  # row 0 is forgiven its tile


def test_released_metrics_are_undefined_rather_than_made_up():
    numbers = pwae.released_metrics(torch.tensor([[0.1, 0.1], [1.0, 1.0]]), torch.tensor([0, 0]))
    assert numbers["auroc"] is None
    assert numbers["tnr"] == 0.0


# -- what the paper prints

BALANCED = [0.69, 0.88, 0.93, 0.89, 0.96, 0.99, 0.96, 0.98, 0.84, 0.76, 0.73, 0.97, 1.00, 0.78, 0.92]  # Table I
AUROC = [0.70, 0.90, 0.81, 0.87, 0.92, 0.99, 0.93, 1.00, 0.76, 0.86, 0.83, 0.92, 1.00, 0.76, 0.80]  # Table II
CATEGORIES = (
    "carpet grid leather tile wood bottle cable capsule hazelnut metal_nut pill screw toothbrush transistor zipper"
)


def test_three_categories_of_the_printed_tables_break_the_bound_that_auroc_and_balanced_accuracy_obey():
    """The best balanced accuracy b bounds the AUROC to [2 b - 1, 1 - 2 (1 - b)^2]; 0.005 is the printed rounding."""
    broken = [
        name
        for name, b, a in zip(CATEGORIES.split(), BALANCED, AUROC, strict=True)
        if a + 0.005 < 2 * (b - 0.005) - 1 or a - 0.005 > 1 - 2 * (1 - min(1, b + 0.005)) ** 2
    ]
    assert broken == ["leather", "screw", "zipper"]


def test_the_bound_holds_for_real_curves():
    from sklearn.metrics import roc_auc_score, roc_curve

    for seed in range(20):
        rng = np.random.default_rng(seed)
        label = np.arange(60) % 2
        score = rng.normal(size=60) + label * rng.uniform(0, 3)
        fpr, tpr, _ = roc_curve(label, score)
        b, area = ((tpr + 1 - fpr) / 2).max(), roc_auc_score(label, score)
        assert 2 * b - 1 - 1e-12 <= area <= 1 - 2 * (1 - b) ** 2 + 1e-12

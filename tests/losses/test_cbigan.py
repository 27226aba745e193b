import math

import pytest
import torch
from torch import nn

from adbench.losses import cbigan as loss


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_losses_of_hand_written_critic_values():
    real, generated = torch.tensor([3.0, 5.0]), torch.tensor([1.0, -2.0])
    assert loss.critic_loss(real, generated) == -4.5  # (1 - 2) / 2 - (3 + 5) / 2
    assert loss.encoder_generator_loss(real, generated) == 4.5


def test_critic_loss_is_exactly_the_negative_of_the_encoder_generator_loss():
    real, generated = rows(7), rows(7, seed=1)
    assert loss.critic_loss(real, generated) == -loss.encoder_generator_loss(real, generated)


def test_minimising_the_critic_loss_raises_real_values_and_lowers_generated_ones():
    real, generated = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss.critic_loss(real, generated).backward()
    assert (real.grad == -0.25).all()
    assert (generated.grad == 0.25).all()


@pytest.mark.parametrize(("pairing", "ends"), [("joint", ("encoded", "latent")), ("crossed", ("latent", "encoded"))])
def test_interpolation_ends_in_the_compared_pairs_or_with_their_latents_crossed(pairing, ends):
    given = {
        "image": rows(2, 3, 4, 4),
        "encoded": rows(2, 5, seed=1),
        "generated": rows(2, 3, 4, 4, seed=2),
        "latent": rows(2, 5, seed=3),
    }
    image, latent = loss.interpolated_pairs(**given, epsilon=torch.tensor([1.0, 0.0]), pairing=pairing)
    torch.testing.assert_close(image[0], given["image"][0])
    torch.testing.assert_close(latent[0], given[ends[0]][0])
    torch.testing.assert_close(image[1], given["generated"][1])
    torch.testing.assert_close(latent[1], given[ends[1]][1])


def test_interpolation_uses_one_epsilon_for_a_samples_image_and_latent():
    one, zero = torch.ones(3, 3, 2, 2), torch.zeros(3, 3, 2, 2)
    epsilon = torch.tensor([0.0, 0.25, 1.0])
    image, latent = loss.interpolated_pairs(one, torch.ones(3, 4), zero, torch.zeros(3, 4), epsilon)
    torch.testing.assert_close(image, epsilon.view(3, 1, 1, 1).expand_as(image))
    torch.testing.assert_close(latent, epsilon.view(3, 1).expand_as(latent))


def test_penalty_of_a_linear_critic_is_its_norm_minus_one_squared_whatever_the_data():
    a, b = rows(3, 4, 4), rows(5, seed=1)
    norm = math.sqrt(a.square().sum() + b.square().sum())

    def critic(x, z):
        return (x * a).flatten(1).sum(1) + z @ b

    for seed in (0, 1):  # other points, as another epsilon would give
        penalty = loss.gradient_penalty(critic, rows(6, 3, 4, 4, seed=seed), rows(6, 5, seed=seed))
        assert penalty.item() == pytest.approx((norm - 1) ** 2, rel=1e-5)


def test_penalty_is_zero_where_the_norm_over_image_and_latent_together_is_one_and_two_sided_around_it():
    def penalty(scale):
        return loss.gradient_penalty(
            lambda x, z: scale * (0.6 * x[:, 0, 0, 0] + 0.8 * z[:, 0]), rows(2, 3, 2, 2), rows(2, 5)
        ).item()

    assert penalty(1.0) == pytest.approx(0, abs=1e-10)
    assert penalty(1.5) == pytest.approx(0.25, rel=1e-5)
    assert penalty(0.5) == pytest.approx(0.25, rel=1e-5)


def test_penalty_of_a_nonlinear_critic_agrees_with_gradients_taken_one_sample_at_a_time():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12 + 5, 8), nn.Tanh(), nn.Linear(8, 1))
    x, z = rows(4, 3, 2, 2), rows(4, 5, seed=1)

    def value(x, z):
        return net(torch.cat([x.flatten(), z]))[0]

    norms = [
        torch.cat([g.flatten() for g in torch.func.grad(value, (0, 1))(*row)]).norm() for row in zip(x, z, strict=True)
    ]
    expected = (torch.stack(norms) - 1).square().mean()
    penalty = loss.gradient_penalty(lambda x, z: net(torch.cat([x.flatten(1), z], 1)).squeeze(1), x, z)
    torch.testing.assert_close(penalty, expected)


def test_penalty_trains_the_critic_even_where_its_gradient_vanishes_and_leaves_the_points_alone():
    scale = torch.zeros((), requires_grad=True)
    x, z = rows(2, 3, 2, 2).requires_grad_(), rows(2, 5)
    loss.gradient_penalty(lambda x, z: scale * (x.flatten(1).sum(1) + z.sum(1)), x, z).backward()
    assert torch.isfinite(scale.grad)
    assert x.grad is None


def test_l1_distance_sums_over_all_but_the_rows():
    a = torch.zeros(2, 3, 2, 2)
    b = torch.stack([torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), -2.0)])
    assert loss.l1_distance(a, b).tolist() == [6.0, 24.0]


@pytest.mark.parametrize(("side", "bound"), [(128, 98_304), (64, 24_576)])
def test_l1_distance_of_images_is_bounded_by_twice_their_number_of_values(side, bound):
    ones = torch.ones(1, 3, side, side)
    assert loss.l1_distance(ones, -ones).item() == bound


def test_an_encoder_that_always_says_zero_misses_latents_by_64_times_the_mean_of_a_half_normal():
    z = rows(20_000, 64)
    expected = 64 * math.sqrt(2 / math.pi)
    assert expected == pytest.approx(51.06, abs=0.01)
    assert loss.consistency(loss.l1_distance(z, torch.zeros_like(z))).item() == pytest.approx(expected, rel=2e-3)


def test_consistency_is_zero_if_and_only_if_the_cycle_is_the_identity_on_the_batch():
    x = rows(3, 8)
    assert loss.consistency(loss.l1_distance(x, x)) == 0
    other = x.clone()
    other[2, 5] += 1e-3
    assert loss.consistency(loss.l1_distance(x, other)) > 0


def test_summing_the_consistency_multiplies_the_mean_by_the_batch_size():
    distance = rows(32).abs()
    torch.testing.assert_close(loss.consistency(distance, "sum"), 32 * loss.consistency(distance, "mean"))


def test_total_is_linear_in_alpha_from_the_adversarial_loss_to_the_consistency():
    parts = torch.tensor(-3.0), torch.tensor(10.0), torch.tensor(2.0)
    totals = [sum(loss.encoder_generator_terms(*parts, alpha).values()).item() for alpha in (0.0, 0.25, 0.5, 1.0)]
    assert totals == [-3.0, 0.75, 4.5, 12.0]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_alpha_zero_only_the_adversarial_loss_has_a_gradient_and_at_one_only_the_consistency(alpha):
    parts = [torch.tensor(v, requires_grad=True) for v in (-3.0, 10.0, 2.0)]
    sum(loss.encoder_generator_terms(*parts, alpha).values()).backward()
    assert [p.grad.item() for p in parts] == [1 - alpha, alpha, alpha]


def test_anomaly_score_of_hand_written_distances():
    score = loss.anomaly_score(torch.tensor([10.0, 0.0]), torch.tensor([5.0, 0.0]), 0.1)
    torch.testing.assert_close(score, torch.tensor([9.5, 0.0]))


@pytest.mark.parametrize(("lambda_", "expected"), [(0.0, 10.0), (1.0, 5.0)])
def test_lambda_goes_from_pixels_alone_to_features_alone(lambda_, expected):
    assert loss.anomaly_score(torch.tensor([10.0]), torch.tensor([5.0]), lambda_).item() == expected


def linear_bigan_error(alpha, seed, steps=150):
    """mean ||x - G(E(x))||_1 after training linear encoder and generator of 2-d data in 4 dimensions."""
    torch.manual_seed(seed)
    mixing = torch.randn(2, 4)
    encoder, generator = nn.Linear(4, 2), nn.Linear(2, 4)
    critic = nn.Sequential(nn.Linear(6, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
    of_critic = torch.optim.Adam(critic.parameters(), 5e-3, betas=(0.0, 0.9))
    of_others = torch.optim.Adam([*encoder.parameters(), *generator.parameters()], 5e-3, betas=(0.0, 0.9))

    def value(x, z):
        return critic(torch.cat([x, z], 1)).squeeze(1)

    for step in range(2 * steps):
        x, z = torch.randn(32, 2) @ mixing, torch.randn(32, 2)
        encoded, generated = encoder(x), generator(z)
        if step % 2 == 0:
            encoded, generated = encoded.detach(), generated.detach()
            between = loss.interpolated_pairs(x, encoded, generated, z, torch.rand(32))
            total = loss.critic_loss(value(x, encoded), value(generated, z)) + 10 * loss.gradient_penalty(
                value, *between
            )
        else:
            adversarial = loss.encoder_generator_loss(value(x, encoded), value(generated, z))
            of_image = loss.consistency(loss.l1_distance(x, generator(encoded)))
            of_latent = loss.consistency(loss.l1_distance(z, encoder(generated)))
            total = sum(loss.encoder_generator_terms(adversarial, of_image, of_latent, alpha).values())
        optimizer = of_others if step % 2 else of_critic
        of_critic.zero_grad(), of_others.zero_grad()
        total.backward()
        optimizer.step()
    x = torch.randn(500, 2) @ mixing
    return loss.l1_distance(x, generator(encoder(x))).mean().item()


def test_without_consistency_a_linear_bigan_reconstructs_worse_after_equal_training():
    without, with_ = ([linear_bigan_error(alpha, seed) for seed in range(3)] for alpha in (0.0, 0.1))
    assert sum(without) > 1.2 * sum(with_)

import pytest
import torch

from adbench.losses.hypersphere import distance, kept_off_zero, one_class, radius, semi_supervised, soft_boundary


def distances(n: int = 1000) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(0)) * 4


def test_distance_is_squared_and_unmoved_by_a_joint_translation():
    embedding, center = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2)
    torch.testing.assert_close(distance(embedding, center), torch.tensor([25.0, 0.0]))
    torch.testing.assert_close(distance(embedding + 7, center + 7), torch.tensor([25.0, 0.0]))


def test_soft_boundary_by_hand():
    d = torch.tensor([1.0, 6.0])  # R² = 4: only the second is outside, by 2
    torch.testing.assert_close(soft_boundary(d, torch.tensor(2.0), nu=0.5), torch.tensor(4 + (0 + 2) / 2 / 0.5))


def test_with_radius_0_nu_times_soft_boundary_is_one_class():
    d = distances()
    torch.testing.assert_close(0.1 * soft_boundary(d, torch.zeros(()), 0.1), one_class(d))


@pytest.mark.parametrize("nu", [0.05, 0.1, 0.5])
def test_a_share_nu_lies_outside_the_radius(nu):
    d = distances()
    assert abs((d > radius(d, nu).square()).double().mean().item() - nu) < 0.002


def test_the_center_keeps_no_component_near_zero_and_keeps_signs():
    center = torch.tensor([0.05, -0.05, 0.0, 0.5, -3.0])
    torch.testing.assert_close(kept_off_zero(center, 0.1), torch.tensor([0.1, -0.1, 0.1, 0.5, -3.0]))


def test_without_labels_deep_sad_is_one_class_deep_svdd():
    d = distances()
    torch.testing.assert_close(semi_supervised(d, torch.zeros(len(d), dtype=torch.long), eta=3.0), one_class(d))


@pytest.mark.parametrize("d, value", [(0.0, 1e6), (1.0, 1 / (1 + 1e-6)), (1e9, 1e-9)])
def test_a_known_anomaly_costs_the_inverse_of_its_distance(d, value):
    d = torch.tensor([d], dtype=torch.float64)
    assert semi_supervised(d, torch.tensor([-1]), eta=1.0).item() == pytest.approx(value, rel=1e-6)


def test_a_known_normal_costs_its_distance():
    assert semi_supervised(torch.tensor([2.0]), torch.tensor([1]), eta=1.0).item() == pytest.approx(2.0, rel=1e-5)


def test_a_known_anomaly_is_pushed_away_and_a_known_normal_is_pulled_in():
    d = torch.tensor([2.0, 2.0], requires_grad=True)
    semi_supervised(d, torch.tensor([-1, +1]), eta=1.0).backward()
    anomalous, normal = d.grad
    assert anomalous < 0 < normal


def test_eta_weighs_labelled_rows_only_and_the_mean_is_over_all_rows():
    d, semi = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 1, -1])
    one, two = (semi_supervised(d, semi, eta=eta, eps=0.0) for eta in (1.0, 2.0))
    torch.testing.assert_close(one, torch.tensor((1 + 3 + 1 / 4) / 3))
    torch.testing.assert_close(two, torch.tensor((1 + 2 * (3 + 1 / 4)) / 3))

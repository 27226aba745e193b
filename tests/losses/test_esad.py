import torch

from adbench.losses.esad import assistance, norm, reconstruction, score, unsquared_score

UNLABELLED, NORMAL, ANOMALOUS = 0, 1, -1


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_reconstruction_adds_the_means_of_the_two_groups():
    x_hat = torch.tensor([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]])  # squared sizes 2, 10, 4
    zero = torch.zeros(3, 2)
    semi = labels(UNLABELLED, UNLABELLED, ANOMALOUS)
    torch.testing.assert_close(reconstruction(x_hat, zero, semi, "sum"), torch.tensor((2 + 10) / 2 + 4.0))
    torch.testing.assert_close(reconstruction(x_hat, zero, semi, "mean"), torch.tensor((1 + 5) / 2 + 2.0))


def test_a_group_that_is_not_in_the_batch_adds_nothing():
    x, semi = torch.ones(2, 3), labels(UNLABELLED, UNLABELLED)
    torch.testing.assert_close(reconstruction(x, 0 * x, semi, "sum"), torch.tensor(3.0))
    torch.testing.assert_close(norm(x, semi, "sum"), torch.tensor(3.0))
    torch.testing.assert_close(norm(x, semi + ANOMALOUS, "sum", eps=0.0), torch.tensor(1 / 3))


def test_scaling_the_code_by_3_multiplies_the_normal_term_by_9_and_the_anomalous_by_a_ninth():
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for semi, factor in ((UNLABELLED, 9.0), (NORMAL, 9.0), (ANOMALOUS, 1 / 9)):
        semi = labels(*[semi] * 4)
        torch.testing.assert_close(norm(3 * z, semi, "mean", eps=0.0), factor * norm(z, semi, "mean", eps=0.0))


def test_the_anomalous_term_is_positive_falls_with_the_code_and_vanishes_far_out():
    sizes = torch.tensor([0.1, 1.0, 10.0, 1e4])
    values = torch.stack([norm(torch.full((1, 4), float(s)), labels(ANOMALOUS), "mean") for s in sizes])
    assert (values > 0).all()
    assert (values.diff() < 0).all()
    assert values[-1] < 1e-6


def test_an_anomaly_on_the_origin_costs_a_bounded_amount_and_is_pushed_outward_near_it():
    assert abs(norm(torch.zeros(1, 4), labels(ANOMALOUS), "mean", eps=1e-3) - 1000) < 0.001
    z = torch.full((1, 4), 1e-3, requires_grad=True)
    norm(z, labels(ANOMALOUS), "mean", eps=1e-3).backward()
    assert (z.grad < -100).all()


def test_a_known_normal_counts_as_an_unlabelled_row_but_for_its_own_group_mean():
    x_hat, z = torch.rand(3, 4), torch.rand(3, 4)
    for term in (lambda s: reconstruction(x_hat, 0 * x_hat, s, "mean"), lambda s: norm(z, s, "mean")):
        torch.testing.assert_close(term(labels(1, 1, 1)), term(labels(0, 0, 0)))


def test_assistance_is_the_symmetric_mean_square_difference():
    z, z_hat = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    torch.testing.assert_close(assistance(z, z_hat, "sum"), torch.tensor((5 + 10) / 2))
    assert assistance(z, z_hat, "mean") == assistance(z_hat, z, "mean") == 3.75
    assert assistance(z, z, "mean") == 0


def test_score_adds_the_two_terms_and_is_the_reconstruction_error_without_the_second():
    x, x_hat, z = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0]])
    torch.testing.assert_close(score(x, x_hat, z, 0.5, "sum"), torch.tensor([5 + 0.5 * 9]))
    torch.testing.assert_close(score(x, x_hat, z, 0.0, "mean"), torch.tensor([2.5]))
    assert score(x, x, 0 * z, 1.0, "sum") == 0


def test_the_mean_over_devices_is_that_of_the_joined_rows_even_where_one_has_no_labelled_row():
    x, z = torch.rand(6, 4, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    semi, halves = labels(0, 0, ANOMALOUS, 0, 0, 0), (slice(0, 3), slice(3, 6))
    half_counts, share = torch.tensor([5.0, 1.0], dtype=torch.float64) / 2, torch.tensor(0.1)
    for term in (
        lambda rows, counts: reconstruction(x[rows], 0 * x[rows], semi[rows], "mean", counts),
        lambda rows, counts: norm(z[rows], semi[rows], "sum", 1e-3, counts),
        lambda rows, counts: assistance(z[rows], 0 * z[rows], "sum", semi[rows], share, counts),
    ):
        parts = [term(rows, half_counts) for rows in halves]
        torch.testing.assert_close(sum(parts) / 2, term(slice(None), None))


def test_assistance_counts_labelled_rows_by_their_share_of_the_training_rows():
    z = torch.tensor([[1.0], [3.0], [2.0]])  # squared gaps 1 and 9 of unlabelled rows, 4 of the labelled one
    value = assistance(z, 0 * z, "sum", labels(0, 0, ANOMALOUS), torch.tensor(0.1))
    torch.testing.assert_close(value, torch.tensor(0.9 * 5 + 0.1 * 4))


def test_the_unsquared_score_adds_lengths():
    x, x_hat, z_hat = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(unsquared_score(x, x_hat, z_hat, 0.5), torch.tensor([5.0 + 0.5 * 2.0]))


def test_input_and_code_may_be_reduced_differently():
    x, x_hat, z_hat = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(score(x, x_hat, z_hat, 1.0, "sum", "mean"), torch.tensor([25.0 + 2.0]))

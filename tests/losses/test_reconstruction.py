import torch
from torch.distributions import Normal, kl_divergence

from adbench.losses.reconstruction import gaussian_divergence, sampled, squared_error_map, ssim_error_map


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def test_squared_error_is_the_mean_over_channels():
    x = torch.zeros(1, 3, 1, 1)
    x[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(squared_error_map(x, 0 * x), torch.tensor([[[[14 / 3]]]]))


def test_ssim_error_has_the_images_size_and_is_0_where_nothing_differs():
    x, y = images(0), images(0)
    y[..., 16:, 16:] = 0.5
    error = ssim_error_map(x, y, data_range=1.0)
    assert error.shape == (2, 1, 24, 24)
    assert error[..., :10, :10].abs().max() < 1e-5
    assert error[..., 20:, 20:].min() > 0.3


def test_divergence_equals_the_library_s_and_is_0_for_a_standard_normal():
    mean, log_variance = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(gaussian_divergence(mean, log_variance), expected)
    assert gaussian_divergence(torch.zeros(1, 4), torch.zeros(1, 4)) == 0


def test_a_sample_is_the_mean_plus_the_deviation_times_the_noise():
    mean, log_variance = torch.tensor([[1.0]]), torch.tensor([[4.0]]).log()
    torch.testing.assert_close(sampled(mean, log_variance, torch.tensor([[3.0]])), torch.tensor([[7.0]]))

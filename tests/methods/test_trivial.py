import torch

from adbench.methods.trivial import Brightness, PCAResidual
from adbench.types import Batch


def batch_of(image: torch.Tensor) -> Batch:
    n = len(image)
    zeros = torch.zeros(n, dtype=torch.long)
    return Batch(image, zeros - 1, zeros, torch.zeros(n, 1, *image.shape[2:], dtype=torch.bool), torch.arange(n))


def test_brightness_scores_the_distance_to_the_mean_of_training_brightness_in_both_directions():
    method = Brightness()
    method.prepare([batch_of(torch.full((2, 3, 4, 4), 0.25)), batch_of(torch.full((2, 3, 4, 4), 0.75))])
    image = torch.stack([torch.full((3, 4, 4), value) for value in (0.5, 0.2, 0.8)])
    torch.testing.assert_close(method.score(image).image, torch.tensor([0.0, 0.3, 0.3]))


def test_pca_leaves_no_residual_inside_the_training_span_and_all_of_what_is_orthogonal_to_it():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(3 * 16, 3, generator=generator)).Q.T
    rows = torch.randn(20, 2, generator=generator) @ directions[:2]
    method = PCAResidual(components=2, image_size=4)
    method.prepare([batch_of(rows.view(-1, 3, 4, 4))])
    inside = (0.7 * directions[0] - 2 * directions[1]).view(1, 3, 4, 4)
    outside = inside + 3 * directions[2].view(1, 3, 4, 4)
    assert method.score(inside).image.item() < 1e-10
    torch.testing.assert_close(method.score(outside).image.item(), 9 / 48, rtol=1e-4, atol=0)


def test_pca_of_fewer_rows_than_components_uses_as_many_as_there_are():
    method = PCAResidual(components=30, image_size=4)
    method.prepare([batch_of(torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)))])
    assert int((method.basis.norm(dim=1) > 0.5).sum()) == 2

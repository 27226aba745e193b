import math

import torch

from adbench.losses.patchcore import locally_averaged, reweighted


def test_a_constant_map_stays_constant_to_its_border():
    fine, coarse = torch.full((1, 2, 6, 6), 3.0), torch.full((1, 1, 3, 3), 5.0)
    features = locally_averaged([fine, coarse])
    assert features.shape == (1, 3, 6, 6)
    torch.testing.assert_close(features[0, :2], torch.full((2, 6, 6), 3.0))
    torch.testing.assert_close(features[0, 2], torch.full((6, 6), 5.0))


def test_a_patch_is_the_mean_of_its_neighbourhood():
    fine = torch.arange(25.0).view(1, 1, 5, 5)
    features = locally_averaged([fine])
    assert features[0, 0, 2, 2] == 12  # of 6, 7, 8, 11, ..., 18
    assert features[0, 0, 0, 0] == 3  # of 0, 1, 5, 6: what lies outside does not count


def test_the_weight_by_hand():
    # On a line: p at 3, the bank at 0, 1, -1. m* = 1 (place 1), its two nearest are 1 and 0.
    bank = torch.tensor([[0.0], [1.0], [-1.0]])
    score = reweighted(torch.tensor([2.0]), torch.tensor([[3.0]]), torch.tensor([1]), bank, neighbours=2)
    wanted = (1 - math.exp(2) / (math.exp(2) + math.exp(3))) * 2
    torch.testing.assert_close(score, torch.tensor([wanted]))


def test_among_many_alike_members_the_distance_counts_almost_whole_and_alone_it_counts_less():
    patch, member = torch.tensor([[5.0]]), torch.tensor([0])
    crowd = torch.zeros(100, 1)
    lonely = torch.cat([torch.zeros(1, 1), torch.full((99, 1), -50.0)])
    distance = torch.tensor([5.0])
    assert reweighted(distance, patch, member, crowd, 50) > 0.97 * distance
    # The farther the other members are from the patch, the nearer the weight is to 1: a rare member is not trusted.
    assert reweighted(distance, patch, member, lonely, 2) > 0.99 * distance
    near = torch.tensor([[0.0], [4.0]])
    assert reweighted(distance, patch, member, near, 2) < 0.5 * distance


def test_one_neighbour_leaves_the_distance_as_it_is_and_large_distances_do_not_overflow():
    bank = torch.randn(4, 3)
    distance = torch.tensor([7.0])
    assert reweighted(distance, torch.randn(1, 3), torch.tensor([0]), bank, 1) == 7
    far = torch.full((1, 3), 1e4)
    assert torch.isfinite(reweighted(torch.tensor([1.7e4]), far, torch.tensor([0]), bank, 3)).all()

"""Permutations cancel with their inverses, and are far apart."""

from itertools import permutations

import pytest
import torch

from adbench.transforms.jigsaw import (
    distant_permutations,
    inverse,
    permute_tiles,
    random_permutations,
)
from adbench.types import UserError


def test_a_permutation_and_its_inverse_cancel_for_all_of_them():
    every = torch.tensor(list(permutations(range(9))))
    tiles = torch.arange(9).expand(len(every), 9)
    assert torch.equal(permute_tiles(permute_tiles(tiles, every), inverse(every)), tiles)


def test_slot_j_shows_tile_permutation_j():
    tiles = torch.tensor([[10, 11, 12]])
    assert permute_tiles(tiles, torch.tensor([[2, 0, 1]])).tolist() == [[12, 10, 11]]


def test_a_thousand_permutations_are_distinct_apart_and_led_by_the_identity():
    chosen = distant_permutations(1000, 9, seed=0)
    assert chosen.shape == (1001, 9)
    assert chosen[0].tolist() == list(range(9))
    assert torch.equal(chosen.sort(dim=1).values, torch.arange(9).expand(1001, 9))
    distance = (chosen[:, None] != chosen).sum(-1) + 9 * torch.eye(1001, dtype=torch.long)
    assert distance.min() == 5  # 1000 drawn at random come as near as 2


def test_each_next_permutation_is_the_farthest_from_those_before():
    every = torch.tensor(list(permutations(range(4))))
    chosen = distant_permutations(23, 4, seed=3)
    for i in range(1, 24):
        nearest = (every[:, None] != chosen[:i]).sum(-1).amin(1)
        assert (chosen[i] != chosen[:i]).sum(-1).amin() == nearest.max()


def test_the_choice_is_a_function_of_the_seed():
    distant_permutations.cache_clear()
    first = distant_permutations(20, 9, seed=4).clone()
    distant_permutations.cache_clear()
    assert torch.equal(distant_permutations(20, 9, seed=4), first)
    assert not torch.equal(distant_permutations(20, 9, seed=5), first)


def test_random_permutations_are_distinct_follow_the_seed_and_every_tile_is_as_often_in_every_slot():
    chosen = random_permutations(1000, 9, seed=0)
    assert chosen[0].tolist() == list(range(9))
    assert len({tuple(row) for row in chosen.tolist()}) == 1001
    counts = torch.stack([(chosen[1:] == tile).sum(0) for tile in range(9)])  # binomial around 111, deviation 9.9
    assert (counts - 1000 / 9).abs().max() < 4.5 * 9.94
    distance = (chosen[:, None] != chosen).sum(-1) + 9 * torch.eye(1001, dtype=torch.long)
    assert distance.min() < 5  # nothing keeps them apart
    assert not torch.equal(random_permutations(1000, 9, seed=1), chosen)
    assert torch.equal(random_permutations(23, 4, seed=0).sort(0).values[:, 0], torch.arange(4).repeat_interleave(6))


@pytest.mark.parametrize("choose", [distant_permutations, random_permutations])
@pytest.mark.parametrize(("count", "tiles"), [(24, 4), (10, 16)])
def test_more_permutations_than_there_are_or_too_many_tiles_are_refused(count, tiles, choose):
    with pytest.raises(UserError, match=r"method\."):
        choose(count, tiles)

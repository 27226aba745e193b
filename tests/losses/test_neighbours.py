import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from adbench.losses import neighbours
from adbench.losses.neighbours import greedy_coreset, nearest, squared_distances


def clustered(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Rows in a few clumps, as features of images lie, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(7, d, generator=generator) * torch.linspace(3, 0.1, d)
    rows = centers[torch.randint(7, (n,), generator=generator)] + 0.3 * torch.randn(n, d, generator=generator)
    rows[n // 2 : n // 2 + 5] = rows[:5]
    return rows


def plainly_greedy(rows: torch.Tensor, count: int, first: int) -> list[int]:
    """Every distance from every member, in float64."""
    rows, chosen = rows.double(), [first]
    while len(chosen) < count:
        distance = torch.cdist(rows, rows[chosen]).min(1).values
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen


@pytest.mark.parametrize("head", [1, 4, 24, 100])
def test_the_coreset_is_that_of_the_plain_greedy_algorithm(head):
    rows = clustered(300, 20)
    assert greedy_coreset(rows, 60, first=17, head=head).tolist() == plainly_greedy(rows, 60, 17)


def test_a_coreset_of_a_line_by_hand():
    rows = torch.tensor([[0.0], [1.0], [5.0], [10.0]])
    assert greedy_coreset(rows, 3, first=0).tolist() == [0, 3, 2]


def test_repeated_rows_are_chosen_once_each_and_all_rows_may_be_asked_for():
    rows = torch.ones(6, 3)
    assert (
        sorted(greedy_coreset(rows, 5, first=2).tolist()) == [0, 1, 2, 3, 4]
        or len(set(greedy_coreset(rows, 5, first=2).tolist())) == 5
    )
    assert greedy_coreset(rows, 9, first=2).tolist() == list(range(6))


@pytest.mark.parametrize("chunk", [7, 4096])
def test_nearest_is_scikit_learns(monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    bank, rows = clustered(200, 12), clustered(50, 12, seed=1)
    distance, place = nearest(rows, bank)
    wanted, where = NearestNeighbors(n_neighbors=1).fit(bank.numpy()).kneighbors(rows.numpy())
    torch.testing.assert_close(distance, torch.from_numpy(wanted[:, 0]).float(), rtol=1e-4, atol=1e-4)
    assert place.tolist() == where[:, 0].tolist()


def test_a_row_is_no_distance_from_itself():
    rows = 100 + torch.randn(5, 3)
    assert squared_distances(rows, rows).diagonal().max() < 0.1
    assert (squared_distances(rows, rows) >= 0).all()

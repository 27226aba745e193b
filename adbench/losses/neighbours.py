"""Distances to a bank of rows, and a small bank that covers a large one."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

CHUNK = 4096  # rows of a bank that are compared at once
BLOCK = 1 << 16  # rows that are gone through at once, where a copy of all of them would not fit


def squared_distances(rows: Tensor, bank: Tensor) -> Tensor:
    """(B, D), (n, D) -> (B, n) squared Euclidean distances, as one product (ONNX has no cdist), at least 0."""
    lengths = rows.square().sum(1, keepdim=True) + bank.square().sum(1)
    return (lengths - 2 * rows @ bank.T).clamp(min=0)


def nearest(rows: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (B,) to the nearest row of a bank (n, D), and its place (B,) int64; `CHUNK` rows of it at a time."""
    distances, places = [], []
    for first in range(0, len(bank), CHUNK):
        distance, place = squared_distances(rows, bank[first : first + CHUNK]).min(1)
        distances.append(distance)
        places.append(place + first)
    distance, part = torch.stack(distances).min(0)
    return distance.sqrt(), torch.stack(places).gather(0, part[None])[0]


def greedy_coreset(rows: Tensor, count: int, first: int, head: int = 24) -> Tensor:
    """Places of `count` rows that leave no row far from all of them: each next one is the farthest from those before.

    The choice is that of the plain greedy algorithm, without its cost: the squared distance along a few principal
    axes, which never exceeds the whole distance, says for most rows that a new member is no nearer than an older one.
    Only the others are compared in full. Memory beside the rows: `head` and a few more numbers for each; no copy of
    them, and never rows x rows.

    Source: Roth et al. 2022, Algorithm 1 (without its random projection, which this search does not need);
    Gonzalez 1985 (the greedy choice is at most twice as far as the best one).

    Args:
        rows: (n, D) float.
        count: how many to choose, at least 1.
        first: place of the first member.
        head: axes that are looked at first.

    Returns:
        (count,) int64 places, in the order of the choice; all (n,) in their order if `count` is n or more.
    """
    n = len(rows)
    if count >= n:
        return torch.arange(n, device=rows.device)
    front = _principal(rows, head)
    front_length = front.square().sum(1)
    slack = 1e-5 * float(front_length.max())  # of the rounding of |a|² - 2ab + |b|²
    distance = torch.full((n,), torch.inf, device=rows.device, dtype=rows.dtype)
    chosen = torch.empty(count, dtype=torch.int64, device=rows.device)
    place = torch.tensor(first, device=rows.device)
    for k in tqdm(range(count), desc="Choosing a coreset", unit="row", delay=2, leave=False, disable=None):
        chosen[k] = place
        bound = torch.addmv(front_length, front, front[place], alpha=-2).add_(front_length[place] - slack)
        closer = (bound < distance).nonzero()[:, 0]
        for some in closer.split(BLOCK):
            squared = (rows[some] - rows[place]).square().sum(1)
            distance[some] = torch.minimum(distance[some], squared)
        distance[place] = -1.0  # a member is not chosen again, even where rows repeat
        place = distance.argmax()
    return chosen


def _principal(rows: Tensor, number: int) -> Tensor:
    """Coordinates (n, number) of the rows about their mean along the axes on which they vary most."""
    mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(BLOCK):
        mean += part.sum(0, dtype=torch.float64)
    mean /= len(rows)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(BLOCK):
        centered = part.double() - mean
        covariance.addmm_(centered.T, centered)
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :number]
    return torch.cat([((part.double() - mean) @ axes).to(rows.dtype) for part in rows.split(BLOCK)])


def joined(parts: list[Tensor]) -> Tensor:
    """All rows of a list of (n_i, D) as one (n, D); the list is emptied on the way, so that no second copy of the rows
    is ever held."""
    rows = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
    end = len(rows)
    while parts:
        part = parts.pop()
        rows[end - len(part) : end] = part
        end -= len(part)
    return rows

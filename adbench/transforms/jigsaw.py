"""The permutations of a jigsaw puzzle's tiles."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from adbench.streams import numpy_stream
from adbench.types import UserError


def permute_tiles(tiles: Tensor, permutation: Tensor) -> Tensor:
    """Slot j of the result holds tile permutation[:, j].

    Args:
        tiles: (B, K, ...).
        permutation: (B, K) int64, each row a permutation of 0 .. K - 1.

    Returns:
        (B, K, ...).
    """
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], permutation]


def inverse(permutation: Tensor) -> Tensor:
    """The permutations that undo (..., K) int64 permutations of 0 .. K - 1, in the same shape."""
    return permutation.argsort(dim=-1)


@lru_cache(maxsize=8)
def distant_permutations(count: int, tiles: int, seed: int = 0) -> Tensor:
    """Permutations far from the identity and from each other: each next one has the largest Hamming distance to the
    nearest chosen before. Ties are broken at random, by the seed alone.

    Source: Noroozi and Favaro 2016, section 4.2 (permutations chosen for their Hamming distance).

    Args:
        count: how many, without the identity; at most tiles! - 1.
        tiles: permuted things, at most 9 (all permutations are looked at).
        seed: of the order in which ties are taken.

    Returns:
        (1 + count, tiles) int64 on the CPU; row 0 is the identity. Shared between callers: do not write into it.

    Raises:
        UserError: more permutations than there are, or too many tiles.
    """
    every = _enumerated(count, tiles)
    order = numpy_stream(seed, "permutations", tiles).permutation(len(every) - 1) + 1  # 0 is the identity
    candidates = every[order]
    columns = np.ascontiguousarray(candidates.T)
    # same[j, v] marks the candidates with tile v in slot j, so a distance to all of them is `tiles` sums of bytes.
    same = (columns[:, None] == np.arange(tiles, dtype=np.uint8)[:, None]).view(np.uint8)
    closest = np.zeros(len(candidates), dtype=np.uint8)  # slots shared with the nearest chosen permutation
    shared = np.empty_like(closest)
    chosen = [every[0]]
    for _ in range(count):
        shared.fill(0)
        for slot, tile in enumerate(chosen[-1]):
            shared += same[slot, tile]
        np.maximum(closest, shared, out=closest)
        chosen.append(candidates[closest.argmin()])
    return torch.from_numpy(np.array(chosen, dtype=np.int64))


@lru_cache(maxsize=8)
def random_permutations(count: int, tiles: int, seed: int = 0) -> Tensor:
    """Different permutations, each as likely as any other; arguments, result and errors of `distant_permutations`.

    Source: P-WAE, section IV-A, "S contains 1000 random permutations".
    """
    every = _enumerated(count, tiles)
    order = numpy_stream(seed, "random permutations", tiles).permutation(len(every) - 1)[:count] + 1
    return torch.from_numpy(every[np.concatenate(([0], order))].astype(np.int64))


def _enumerated(count: int, tiles: int) -> np.ndarray:
    """All permutations, if `count` of them can be had beside the identity."""
    if tiles > 9:
        raise UserError(f"method.grid cuts {tiles} tiles, whose permutations cannot be enumerated; use 2 or 3")
    every = _all_permutations(tiles)
    if not 0 <= count < len(every):
        raise UserError(f"method.permutations must be between 0 and {len(every) - 1} for {tiles} tiles, got {count}")
    return every


def _all_permutations(tiles: int) -> np.ndarray:
    """(tiles!, tiles) uint8, the identity first."""
    every = np.zeros((1, 1), dtype=np.uint8)
    for new in range(1, tiles):  # put the new tile last, then into every other slot
        slots = [np.insert(every, slot, new, axis=1) for slot in range(new, -1, -1)]
        every = np.concatenate(slots)
    return every

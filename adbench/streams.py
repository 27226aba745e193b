"""Random streams without state: what is drawn depends only on a seed and on names, never on what was drawn before.

A run that is interrupted and resumed, or that loads its data with another number of workers, therefore draws the
same numbers for training batch k as one that ran through.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that is a pure function of `seed` and the names of its purpose."""
    text = "/".join([str(int(seed)), *map(str, purpose)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def torch_stream(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose, e.g. `torch_stream(seed, "interpolation", k)`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *purpose))


def numpy_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose, e.g. `numpy_stream(seed, "rows", epoch)`."""
    return np.random.default_rng(derived_seed(seed, *purpose))


@contextmanager
def seeded_globals(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> Iterator[None]:
    """For code of others, which draws from the global generators: inside, everything random is a pure function of
    `seed` and the purpose; outside, the generators of Python, NumPy and torch go on as if nothing had been drawn.

    Args:
        seed: of the run.
        purpose: what is drawn for, in words and numbers.
        device: where the code draws beside the CPU.
    """
    derived = derived_seed(seed, *purpose)
    python, arrays = random.getstate(), np.random.get_state()
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derived)
        random.seed(derived)
        np.random.seed(derived % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)

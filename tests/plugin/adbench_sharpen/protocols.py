"""Train on every n-th normal row."""

import numpy as np

from adbench.data.protocols import hold_out, normal_rows
from adbench.data.records import Split


def every_nth(records, rng, supervision, *, n: int, holdout: float = 0.05) -> Split:
    """Every n-th normal training row trains."""
    train, kept = hold_out(normal_rows(records, "train")[::n], rng, holdout)
    return Split(train, np.zeros(len(train), np.int8), kept, np.flatnonzero(records.split == "test"))

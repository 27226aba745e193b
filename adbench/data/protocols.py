"""Protocols: pure functions from a table of records to who trains, who is held out and who is tested.

A protocol has the signature `(records, rng, supervision, *, its own options) -> Split`. It draws from `rng` alone,
which does not depend on the method, so every method of a comparison gets the same rows.
"""

from __future__ import annotations

import numpy as np

from adbench.data.records import Records, Split
from adbench.types import UserError


def one_class(records: Records, rng: np.random.Generator, supervision: str, *, holdout: float = 0.05) -> Split:
    """All normal training rows train, unlabelled; anomalous training rows are not used.

    Args:
        records: the data set.
        rng: draws the held-out rows.
        supervision: what the method may see; no label is given here, so it does not matter.
        holdout: share of the normal training rows kept back, in [0, 1); at least three rows unless it is 0.
    """
    train, kept = hold_out(normal_rows(records, "train"), rng, holdout)
    return Split(train, np.zeros(len(train), np.int8), kept, np.flatnonzero(records.split == "test"))


def normal_rows(records: Records, split: str) -> np.ndarray:
    """Rows of the normal samples of "train" or "test", in order."""
    return np.flatnonzero((records.split == split) & (records.label == 0))


def hold_out(normal: np.ndarray, rng: np.random.Generator, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Divide normal training rows into (to train on, held out), both in order.

    Raises:
        UserError: fewer than two rows would remain to train on.
    """
    if not 0 <= share < 1:
        raise UserError(f"protocol.holdout is a share of the normal training rows in [0, 1), got {share}")
    count = max(3, round(share * len(normal))) if share > 0 else 0
    if len(normal) - count < 2:
        raise UserError(
            f"training needs at least 2 normal samples; there are {len(normal)} and {count} of them are held out; "
            + ("add normal training images, or set protocol.holdout=0" if count else "add normal training images")
        )
    kept = np.sort(rng.permutation(len(normal))[:count])
    return np.delete(normal, kept), normal[kept]


def checked(split: Split, records: Records) -> Split:
    """The split, if it keeps what every protocol promises.

    Raises:
        UserError: nothing to train on or nothing to test.
        ValueError: the protocol is wrong: a row has two roles, a held-out row is anomalous, a label is missing.
    """
    if len(split.train) < 2:
        raise UserError(
            f"training needs at least 2 samples; the protocol leaves {len(split.train)}; add training images"
        )
    if len(split.test) == 0:
        raise UserError("there is no test image: nothing could be measured; add normal and anomalous test images")
    used = np.concatenate([split.train, split.holdout, split.test])
    if len(np.unique(used)) != len(used):
        raise ValueError("a protocol gave one row two roles")
    if len(split.semi_label) != len(split.train):
        raise ValueError("a protocol must give one semi_label per training row")
    if records.label[split.holdout].any():
        raise ValueError("a protocol held out an anomalous row")
    return split

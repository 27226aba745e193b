"""Rows with the same pixels or the same features: a test image that is also trained on, an image with both labels.

Two images are the same if every pixel is, at full size and whatever the file format or its name. What is merely alike
(another compression, a crop, a neighbouring frame) is not found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adbench.data.records import Records, Split
from adbench.types import UserError

POLICIES = ("warn", "refuse", "drop")
NAMED = 3  # examples in a message
LISTED = 20  # and in the report


def same(content: np.ndarray) -> np.ndarray:
    """(N, ...) of any type -> (N,) int64: equal numbers for rows of equal bytes."""
    rows = np.ascontiguousarray(content).reshape(len(content), -1)
    return np.unique(rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))), return_inverse=True)[
        1
    ].ravel()


def without(split: Split, content: np.ndarray) -> Split:
    """The split without training and held-out rows that are tested too, or that are there once more.

    The test rows stay: figures on the whole test set can be compared. Of equal training and held-out rows the first
    stays, a training row before a held-out one.

    Args:
        split: of a protocol.
        content: (N,) of `same`.
    """
    rows = np.concatenate([split.train, split.holdout])
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(content[rows], return_index=True)[1]] = True
    kept = first & ~np.isin(content[rows], content[split.test])
    train, holdout = np.split(kept, [len(split.train)])
    return Split(split.train[train], split.semi_label[train], split.holdout[holdout], split.test)


def found(split: Split, records: Records, content: np.ndarray) -> dict[str, Any]:
    """What is there more than once among the rows that a split uses.

    Args:
        split, records: of the data set.
        content: (N,) of `same`.

    Returns:
        `test_in_training`: test rows that equal a training or held-out row; `both_labels`: different contents that are
        labelled normal and anomalous; `in_training` and `in_test`: rows beyond the first of their kind; `examples`:
        pairs of names of each, at most `LISTED`.
    """
    trained, label = np.concatenate([split.train, split.holdout]), records.label
    used = np.concatenate([trained, split.test])
    leaked = split.test[np.isin(content[split.test], content[trained])]
    normal, anomalous = used[label[used] == 0], used[label[used] == 1]
    both = anomalous[np.isin(content[anomalous], content[normal])]
    pairs = {
        "test_in_training": _partners(leaked, trained, content),
        "both_labels": _partners(both[np.unique(content[both], return_index=True)[1]], normal, content),
        "in_training": _again(trained, content),
        "in_test": _again(split.test, content),
    }
    return {
        **{kind: len(rows) for kind, rows in pairs.items()},
        "examples": {
            kind: [[str(records.path[i]), str(records.path[k])] for i, k in rows[:LISTED]]
            for kind, rows in pairs.items()
            if len(rows)
        },
    }


def _partners(rows: np.ndarray, others: np.ndarray, content: np.ndarray) -> np.ndarray:
    """(n, 2): each row and the first of the others that is equal to it, which there must be."""
    values, first = np.unique(content[others], return_index=True)
    if not len(rows):
        return np.empty((0, 2), dtype=np.int64)
    return np.stack([rows, others[first[np.searchsorted(values, content[rows])]]], axis=1)


def _again(rows: np.ndarray, content: np.ndarray) -> np.ndarray:
    """(n, 2): each row whose content came before, and the row in which it came."""
    _, first, inverse = np.unique(content[rows], return_index=True, return_inverse=True)
    origin = rows[first[inverse.ravel()]]
    return np.stack([rows, origin], axis=1)[rows != origin]


SENTENCES = {
    "test_in_training": "{} test {rows} also trained on or held out",
    "both_labels": "{} {rows} both normal and anomalous",
    "in_training": "{} training {rows} there more than once",
    "in_test": "{} test {rows} there more than once",
}


def message(report: dict[str, Any], noun: str = "image") -> str:
    """One sentence on what `found` found, with names; empty where there is nothing.

    Args:
        report: of `found`.
        noun: of a row, "image" or "row".
    """
    parts = []
    for kind, sentence in SENTENCES.items():
        if count := report[kind]:
            rows = f"{noun} is" if count == 1 else f"{noun}s are"
            pairs = report["examples"][kind][:NAMED]
            names = "; ".join(f"{one} = {other}" for one, other in pairs) + ("; ..." if count > NAMED else "")
            parts.append(f"{sentence.format(count, rows=rows)} ({names})")
    return ", ".join(parts)


def checked_policy(policy: str) -> str:
    """What is done about duplicates, as it was given.

    Raises:
        UserError: it is none of `POLICIES`.
    """
    if policy not in POLICIES:
        raise UserError(f"protocol.duplicates is {', '.join(POLICIES[:-1])} or {POLICIES[-1]}, got {policy!r}")
    return policy

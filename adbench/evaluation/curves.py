"""The curve of scored samples and the bootstrap of its area: NumPy only, for the test of a run and for the report.

A run's metrics.json and a report of the same scores.csv therefore tell the same AUROC and the same interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
DRAWS, FEWEST_DRAWS = 1000, 200
DRAWN_ROWS = 2_000_000  # rows times draws: large test sets get fewer draws, their intervals are narrow anyway
LEVEL = 0.95
SEED = 0  # of the resamples, for every interval of the package


@dataclass(frozen=True)
class Curve:
    """What is found at each threshold, from the highest down; entry 0 is "nothing is found".

    Args:
        threshold: (K + 1,) float, descending from +inf; a sample is found where its score >= threshold.
        false: (K + 1,) float, normal samples found; the last entry is their number.
        true: (K + 1,) float, anomalous samples found; the last entry is their number.
    """

    threshold: Floats
    false: Floats
    true: Floats

    @property
    def fpr(self) -> Floats:
        """(K + 1,) false positive rate, from 0 to 1."""
        return self.false / self.false[-1]

    @property
    def tpr(self) -> Floats:
        """(K + 1,) true positive rate, from 0 to 1."""
        return self.true / self.true[-1]

    @property
    def precision(self) -> Floats:
        """(K + 1,) share of anomalous samples among those found, in [0, 1]; 1 where nothing is found."""
        found = self.true + self.false
        return np.divide(self.true, found, out=np.ones_like(found), where=found > 0)

    def auroc(self) -> float:
        """Chance that an anomalous sample outscores a normal one, in [0, 1], ties counted half."""
        return float(_area(self.false, self.true) / (self.false[-1] * self.true[-1]))

    def average_precision(self) -> float:
        """Sum of precision times the step in recall (no interpolation), in [0, 1]."""
        return float((np.diff(self.tpr) * self.precision[1:]).sum())

    def f1_max(self) -> float:
        """Largest F1 over all thresholds, in [0, 1]."""
        return float((2 * self.true / (self.true + self.false + self.true[-1])).max())

    def balanced_accuracy_max(self) -> float:
        """Largest mean of true positive and true negative rate over all thresholds, at least 0.5."""
        return float((1 + self.tpr - self.fpr).max() / 2)


def _area(x: Floats, y: Floats) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def area_up_to(x: Floats, y: Floats, limit: float) -> float:
    """Area under the polyline (x, y) for x from 0 to `limit`, divided by `limit`; linear between points.

    Args:
        x: (K,) float, ascending from 0 to at least `limit`.
        y: (K,) float.
        limit: > 0.
    """
    inside = int(np.searchsorted(x, limit, side="right"))
    x_in, y_in = x[:inside], y[:inside]
    if inside < len(x):
        share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        x_in = np.append(x_in, limit)
        y_in = np.append(y_in, y[inside - 1] + share * (y[inside] - y[inside - 1]))
    return _area(x_in, y_in) / limit


def curve(score: ArrayLike, label: ArrayLike) -> Curve | None:
    """The exact curve of scored samples; equal scores share a threshold.

    Args:
        score: (N,) float, any range, infinities allowed, no NaN.
        label: (N,) 0 normal, 1 anomalous.

    Returns:
        None where one of the two labels is absent.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label, np.int64)
    anomalous = int(label.sum())
    if anomalous in (0, len(label)):
        return None
    order = np.argsort(-score, kind="stable")
    score, label = score[order], label[order]
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), len(score) - 1)  # of each run of equal scores
    true = np.cumsum(label)[last]
    return Curve(
        threshold=np.append(np.inf, score[last]),
        false=np.append(0.0, last + 1 - true),
        true=np.append(0.0, true),
    )


def auroc(score: ArrayLike, label: ArrayLike) -> float | None:
    """Chance that an anomalous sample outscores a normal one, ties counted half. Arguments and None as in `curve`."""
    found = curve(score, label)
    return None if found is None else found.auroc()


# -- intervals --------------------------------------------------------------------------------------------------------


def bootstrap(score: ArrayLike, label: ArrayLike, draws: int | None = None, seed: int = SEED) -> Floats | None:
    """(draws,) AUROCs of test sets resampled with replacement, normal and anomalous rows apart.

    Two sets of the same sizes get the same draws, so that the mean over seeds can be resampled row by row.

    Args:
        score, label: as in `curve`.
        draws: None takes `DRAWS`, fewer for sets of more than 2,000 rows and never below `FEWEST_DRAWS`.
        seed: of the draws; a function of nothing else, so the same rows give the same areas wherever they are computed.

    Returns:
        None where one of the two labels is absent.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label)
    if not 0 < label.sum() < len(label):
        return None
    draws = draws or int(np.clip(DRAWN_ROWS // len(score), FEWEST_DRAWS, DRAWS))
    normal, anomalous = score[label == 0], score[label == 1]
    order = np.argsort(normal, kind="stable")
    found = np.zeros((len(normal) + 1, draws), dtype=np.float32)  # of each draw, normal rows up to each sorted one
    np.cumsum(resampled(len(normal), draws, seed)[order], axis=0, out=found[1:])
    below, up_to = (np.searchsorted(normal[order], anomalous, side) for side in ("left", "right"))
    wins = (found[below] + found[up_to]) / 2
    times = resampled(len(anomalous), draws, seed + 1)
    return np.einsum("rd,rd->d", wins, times, dtype=np.float64) / len(normal) / len(anomalous)


@lru_cache(maxsize=8)
def resampled(rows: int, draws: int, seed: int) -> NDArray[np.float32]:
    """(rows, draws) how often each row is in each resample, whole numbers; runs on one data set share it."""
    drawn = np.random.default_rng(seed).integers(rows, size=(draws, rows))
    drawn += rows * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * draws).reshape(draws, rows).T.astype(np.float32, order="C")


def interval(areas: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval (low, high) of (draws,) areas; it holds the share `level` of them."""
    low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

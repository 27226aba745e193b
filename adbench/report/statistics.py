"""Numbers of tables of scored test sets: NumPy only, no training library. Curves are evaluation.curves'."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean, the sample standard deviation (None for one value) and the number of values."""

    mean: float
    std: float | None
    n: int


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean and sample standard deviation (n - 1) of the values that exist; None where none does."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return Estimate(float(np.mean(numbers)), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None, len(numbers))


def transductive_accuracy(score: Floats, label: NDArray[np.int8]) -> float | None:
    """Mean of true positive and true negative rate at 0.5 after scaling the scores to [0, 1] over the test set.

    It looks at all test rows at once, so it compares with no other method's figure.

    Args:
        score: (N,), any range.
        label: (N,) 0 normal, 1 anomalous.

    Returns:
        in [0, 1]; None where a label is absent, a score is not finite or all scores are equal.
    """
    if not 0 < label.sum() < len(label) or not np.isfinite(score).all() or np.ptp(score) == 0:
        return None
    alarms = (score - score.min()) / np.ptp(score) > 0.5
    return float((alarms[label == 1].mean() + (~alarms[label == 0]).mean()) / 2)


# -- several data sets --------------------------------------------------------------------------------------------


def average_ranks(values: Floats) -> Floats:
    """(N, k) values of k methods on N data sets -> (k,) mean ranks; 1 is the highest value, ties share theirs."""
    from scipy import stats

    return np.asarray(stats.rankdata(-values, axis=1).mean(axis=0))


class Friedman(NamedTuple):
    """Do the methods differ at all?"""

    chi_square: float
    p_chi_square: float
    f: float  # Iman and Davenport's, less conservative
    p_f: float


def friedman(values: Floats) -> Friedman | None:
    """Friedman's test of (N, k) values of k methods on N data sets, and Iman and Davenport's correction.

    None for two methods.

    Ties are corrected for. Where each method has the same value everywhere, nothing tells them apart: p is 1.

    Source: scipy; Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, Section 3.2.2.
    """
    from scipy import stats

    n, k = values.shape
    if k < 3:
        return None
    if (values == values[:, :1]).all():
        return Friedman(0.0, 1.0, 0.0, 1.0)
    chi_square, p = map(float, stats.friedmanchisquare(*values.T))
    rest = n * (k - 1) - chi_square
    f = (n - 1) * chi_square / rest if rest > 1e-9 else math.inf
    return Friedman(chi_square, p, f, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))))


def wilcoxon(values: Floats) -> float:
    """p value of Wilcoxon's signed-rank test of (N, 2) values of two methods on N data sets.

    It is 1 where the two are equal everywhere.

    Source: scipy; Demšar 2006, Section 3.1.3.
    """
    from scipy import stats

    first, second = values.T
    return 1.0 if (first == second).all() else float(stats.wilcoxon(first, second).pvalue)


def critical_difference(methods: int, data_sets: int, alpha: float = 0.05) -> float:
    """Average ranks that differ by less than this are not told apart (Nemenyi).

    Source: Demšar 2006, Section 3.2.2; q is the studentized range at infinite degrees of freedom over sqrt(2).
    """
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def complete_block(ran: Mapping[Hashable, set[str]]) -> tuple[list[Hashable], list[str]]:
    """Methods and data sets such that each of the methods ran on each of the sets, as many pairs as can be had.

    Sets looked at are those of single methods and of pairs of them, which is exact for the few methods of a report
    unless three differ in an intricate way. Fewer than two of either is no table to rank: then both are empty.
    """
    candidates = {frozenset(sets) for sets in ran.values()}
    candidates |= {frozenset(a & b) for a, b in combinations(list(candidates), 2)} if len(candidates) < 300 else set()
    best: tuple[tuple[int, int], list[Hashable], list[str]] = ((0, 0), [], [])
    for sets in candidates:
        methods = [method for method, found in ran.items() if sets <= found]
        if len(sets) >= 2 and len(methods) >= 2:
            size = (len(sets) * len(methods), len(methods))
            if size > best[0] or (size == best[0] and sorted(sets) < best[2]):
                best = (size, methods, sorted(sets))
    return best[1], best[2]

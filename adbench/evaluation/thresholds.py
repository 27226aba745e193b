"""The threshold from held-out normal samples: its value, the false alarms that it lets expect, and how sure that is."""

from __future__ import annotations

import warnings
from typing import Annotated, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from adbench.types import UserError

Floats = NDArray[np.float64]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # by which a distribution of scores is told


class _Source(TypedDict):
    value: Annotated[float, "a score above it means anomalous"]
    quantile: Annotated[float | None, "share of the held-out scores that it was to cover"]
    n: Annotated[int | None, "held-out normal scores"]
    origin: Annotated[str, "where these scores come from, in words"]
    false_alarm_rate: Annotated[float | None, "asked for: 1 - quantile, or 1 / (n + 1) where n is too small for it"]


class Decisions(TypedDict):
    """What the run's threshold makes of the test rows. A report: nothing is chosen by it."""

    found: Annotated[int, "anomalous test rows above the threshold"]
    anomalous: Annotated[int, "anomalous test rows"]
    false_alarms: Annotated[int, "normal test rows above it"]
    normal: Annotated[int, "normal test rows"]


class Threshold(_Source, total=False):
    """The score above which a sample is called anomalous, where it comes from and how sure it is. Plain JSON."""

    above: Annotated[int, "held-out normal scores that exceed it"]
    expected_false_alarm_rate: Annotated[float, "to be expected on new normal samples: (above + 1) / (n + 1)"]
    false_alarm_interval_95: Annotated[list[float], "exact 95 % interval (Clopper and Pearson) of that rate"]
    score_quantiles: Annotated[dict[str, float], "share of the held-out normal scores -> score that it does not exceed"]


def held_out_threshold(
    score: ArrayLike,
    quantile: float = 0.95,
    origin: str = "held-out normal training samples",
    key: str = "evaluation.quantile",
) -> Threshold | None:
    """The threshold above which a sample is called anomalous: a quantile of held-out normal scores.

    The smallest held-out score is taken that at least the share `quantile` of them does not exceed.

    Args:
        score: (n,) float, scores of normal samples that took no part in training.
        quantile: in (0, 1); 1 - quantile is the false-alarm rate asked for.
        origin: where the scores come from, in words.
        key: what the user sets, as messages name it: `evaluation.quantile`, or a name of the rate itself.

    Returns:
        `value`, `quantile`, `n`, `origin`; `false_alarm_rate` (the rate asked for, or 1 / (n + 1), that of the largest
        of n scores, where n is too small for it, with a warning); `above`, how many of the n scores exceed the value;
        `expected_false_alarm_rate`, (above + 1) / (n + 1); `false_alarm_interval_95`, see `binomial_interval`; and
        `score_quantiles`, scores by `QUANTILES`.
        None, with a warning, without scores.

    Raises:
        UserError: the quantile is outside (0, 1) or a score is NaN.
    """
    score = np.asarray(score, dtype=np.float64).reshape(-1)
    if not 0 < quantile < 1:
        raise UserError(f"{key}: a quantile lies in (0, 1), got {quantile}; 0.95 allows 5 % false alarms")
    if np.isnan(score).any():
        nan = int(np.isnan(score).sum())
        raise UserError(f"{nan} of {len(score)} held-out scores are NaN: train again with a lower learning rate")
    n = len(score)
    if n == 0:
        warnings.warn("no normal samples were held out: no threshold, thresholded metrics are null", stacklevel=2)
        return None
    rate = round(1 - quantile, 12)  # 0.05, not 0.050000000000000044
    least = 1 / (n + 1)  # of a new normal sample to exceed the largest of n others
    if rate < least - 1e-9:
        asked, attainable = _told_apart(rate, least)
        setting = f"{quantile:.6g} (a false-alarm rate of {asked})" if key == "evaluation.quantile" else asked
        above = np.ceil(least * 1e4) / 1e4  # what is typed is rounded to the side that can be had
        other = f"{1 - above:.6g}" if key == "evaluation.quantile" else f"{above:.6g}"
        warnings.warn(
            f"{key}={setting} is out of reach of {n} held-out normal samples: the threshold is the largest of their "
            f"scores, with a rate of about {attainable}. Hold out at least {needed(quantile)} "
            f"(protocol.holdout, in training), or set {key}={other}",
            stacklevel=2,
        )
        rate = least
    value = float(np.quantile(score, quantile, method="inverted_cdf"))
    above = int((score > value).sum())
    return {
        "value": value, "quantile": quantile, "n": n, "origin": origin, "false_alarm_rate": rate, "above": above,
        "expected_false_alarm_rate": (above + 1) / (n + 1),
        "false_alarm_interval_95": list(binomial_interval(above, n)),
        "score_quantiles": {f"{q:g}": float(np.quantile(score, q, method="inverted_cdf")) for q in QUANTILES},
    }  # fmt: skip


def binomial_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a probability of which `count` of n independent trials were counted.

    For `count` of n held-out scores above a threshold it holds the false-alarm rate of new normal samples. That the
    threshold is one of these scores costs nothing: the rate above it then follows Beta(count + 1, n - count), whose
    quantiles lie within the interval.

    Source: Clopper and Pearson 1934; the distribution of the rate: David and Nagaraja 2003, section 2.3.

    Args:
        count: 0..n.
        n: trials, >= 1.
        level: in (0, 1), of confidence.

    Returns:
        (low, high) in [0, 1].
    """
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, n - count + 1, tail))
    high = 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - tail))
    return low, high


def needed(quantile: float) -> int:
    """The smallest number n of held-out samples with ceil((n + 1) quantile) <= n.

    From n on, the largest score (or a smaller one) is exceeded by a new normal sample with a probability of at most
    1 - quantile, whatever the distribution of the scores.

    Source: Vovk, Gammerman and Shafer 2005, section 2.3.

    Args:
        quantile: in (0, 1).
    """
    return int(np.ceil(quantile / (1 - quantile) - 1e-9))


def in_words(threshold: Threshold) -> str:
    """One line: the threshold, where it comes from, and the share of good images that it lets expect above it."""
    low, high = (f"{100 * rate:.3g}" for rate in threshold["false_alarm_interval_95"])
    return (
        f"threshold {threshold['value']:.6g}, the {threshold['quantile']:g} quantile of {threshold['n']} scores "
        f"({threshold['origin']}): expect {100 * threshold['expected_false_alarm_rate']:.3g} % false alarms, with 95 % "
        f"confidence {low} to {high} %"
    )


def _told_apart(*numbers: float) -> list[str]:
    """Numbers with as many digits as it takes to see that they differ, three at least."""
    digits = next(d for d in range(3, 18) if len({f"{number:.{d}g}" for number in numbers}) == len(numbers))
    return [f"{number:.{digits}g}" for number in numbers]


def conformal_p_value(score: ArrayLike, held_out: ArrayLike) -> Floats:
    """(1 + number of held-out normal scores >= score) / (n + 1): small where a sample is unlike the normal ones.

    Args:
        score: (N,) float.
        held_out: (n,) float, scores of normal samples that took no part in training.

    Returns:
        (N,) float in (0, 1]; for a normal sample P(p <= a) <= a.
    """
    held_out = np.sort(np.asarray(held_out, dtype=np.float64).reshape(-1))
    at_least = len(held_out) - np.searchsorted(held_out, np.asarray(score, dtype=np.float64).reshape(-1), side="left")
    return (1 + at_least) / (len(held_out) + 1)

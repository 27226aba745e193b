"""Protocols: pure functions from a table of records to who trains, who is held out and who is tested.

A protocol has the signature `(records, rng, supervision, *, its own options) -> Split`. It draws from `rng` alone,
which does not depend on the method, so every method of a comparison gets the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from adbench.data.records import Records, Split
from adbench.types import UserError

FOLDS = 5  # of a cross-validation
Share = float | Literal["auto", "cv"]  # a run puts a `HoldOut` in the place of a word
SHARES = ("labelled_ratio", "pollution_ratio", "labelled_normal_ratio")
WORDS = {"train": "training", "test": "test"}  # a split in messages
FEW = 200  # rows of which several fits take seconds


def one_class(
    records: Records,
    rng: np.random.Generator,
    supervision: str,
    *,
    holdout: Share = 0.05,
) -> Split:
    """All normal training rows train, unlabelled; anomalous training rows are not used.

    Args:
        records: the data set.
        rng: draws the held-out rows.
        supervision: what the method may see; no label is given here, so it does not matter.
        holdout: share of the normal training rows kept back, in [0, 1); at least three rows unless it is 0. Or "auto"
            or "cv", see `HoldOut`.

    Raises:
        UserError: fewer than two rows would remain to train on.
    """
    train, kept = hold_out(normal_rows(records, "train"), rng, holdout)
    return Split(train, np.zeros(len(train), np.int8), kept, np.flatnonzero(records.split == "test"))


def small_train(
    records: Records,
    rng: np.random.Generator,
    supervision: str,
    *,
    fraction: float,
    holdout: Share = 0.05,
) -> Split:
    """As `one_class`, on a share of the normal training rows. With one `rng` state a smaller share lies in a larger.

    Source: Chen et al. 2022 (IGD), Table 6.

    Args:
        records, rng, supervision: see `one_class`.
        fraction: share of the normal training rows that there are, in (0, 1], rounded; held-out rows are among them.
        holdout: share of *these* rows kept back.

    Raises:
        UserError: a share is out of its range, or fewer than two rows would remain to train on.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"protocol.fraction is a share of the normal training rows in (0, 1], got {fraction}")
    normal = normal_rows(records, "train")
    some = np.sort(rng.permutation(normal)[: round(fraction * len(normal))])
    train, kept = hold_out(some, rng, holdout)
    return Split(train, np.zeros(len(train), np.int8), kept, np.flatnonzero(records.split == "test"))


def contaminated(
    records: Records,
    rng: np.random.Generator,
    supervision: str,
    *,
    ratio: float,
    holdout: Share = 0.05,
) -> Split:
    """As `one_class`, with a share of the *anomalous test rows* moved to the training rows, unlabelled.

    The moved rows are not tested, so test sets of different ratios differ.

    Source: Chen et al. 2022 (IGD), Table 7.

    Args:
        records, rng, supervision: see `one_class`.
        ratio: of the anomalous test rows, in [0, 1), rounded; at least one must be left to test.
        holdout: share of the normal training rows kept back.

    Raises:
        UserError: a share is out of its range, or no anomalous test row would move or stay.
    """
    if not 0 <= ratio < 1:
        raise UserError(f"protocol.ratio is a share of the anomalous test rows in [0, 1), got {ratio}")
    anomalous = np.flatnonzero((records.split == "test") & (records.label == 1))
    count = round(ratio * len(anomalous))
    if ratio > 0 and not 0 < count < len(anomalous):
        raise UserError(
            f"protocol.ratio={ratio} of the {len(anomalous)} anomalous test rows is {count}; at least one must move "
            "to the training rows and one must stay: change protocol.ratio, or use more test images"
        )
    train, kept = hold_out(normal_rows(records, "train"), rng, holdout)
    moved = rng.permutation(anomalous)[:count]
    train = np.sort(np.concatenate([train, moved]))
    return Split(
        train, np.zeros(len(train), np.int8), kept, np.setdiff1d(np.flatnonzero(records.split == "test"), moved)
    )


def semi_supervised(
    records: Records,
    rng: np.random.Generator,
    supervision: str,
    *,
    labelled_ratio: float,
    pollution_ratio: float = 0.0,
    labelled_classes: int | str | Sequence[str | int] = 1,
    labelled_normal_ratio: float = 0.0,
    anomalies: str = "auto",
    holdout: Share = 0.05,
) -> Split:
    """Normal training rows with some known anomalies and some unknown ones; nobody trains on the other anomalies.

    Known and unknown anomalies are drawn without overlap, the known ones first. The held-out rows are taken off before
    anything is counted. Unsupervised methods later lose the known anomalies, and only those. Rows that come from the
    test split are not tested, by any method.

    Source: Ruff et al. 2020 (Deep SAD), section 4; Huang et al. 2021 (ESAD), section 4.2.

    Args:
        records, rng, supervision: see `one_class`.
        labelled_ratio: known anomalies as a share of all training rows, in [0, 1) (gamma_l).
        pollution_ratio: unknown anomalies as a share of the unlabelled rows, in [0, 1) (gamma_p).
        labelled_classes: how many kinds of anomaly are known, drawn at random (0: no labels); a list of their names; or
            "all", however many there are (k_l). Kinds are the defects, which in data sets of classes are the classes.
        labelled_normal_ratio: known normals as a share of all training rows.
        anomalies: the split that the anomalies come from: "train"; "test", as `contaminated` does; or "auto", the
            training rows where any of them is anomalous, else the test rows.
        holdout: share of the normal training rows kept back.

    Raises:
        UserError: a share is out of its range or less than one row, or there are not as many anomalies.
    """
    train, kept = hold_out(normal_rows(records, "train"), rng, holdout)
    none = isinstance(labelled_classes, int) and labelled_classes == 0
    wanted = semi_supervised_counts(len(train), 0.0 if none else labelled_ratio, pollution_ratio, labelled_normal_ratio)
    shares = (0.0 if none else labelled_ratio, pollution_ratio, labelled_normal_ratio)
    counts = (wanted.known_anomalous, wanted.unknown_anomalous, wanted.known_normal)
    for name, share, count in zip(SHARES, shares, counts, strict=True):
        if share > 0 and count == 0:
            raise UserError(f"protocol.{name}={share} of {len(train)} normal training rows is less than one row")
    drawn = labelled_ratio, pollution_ratio, 0 if wanted.known_anomalous == 0 else labelled_classes
    known, unknown = _anomalies(records, rng, wanted, _split_with_anomalies(records, anomalies), *drawn)
    tested = _without_moved(records, np.concatenate([known, unknown]))
    known_normal = rng.permutation(train)[: wanted.known_normal]
    rows = np.sort(np.concatenate([train, known, unknown]))
    label = np.zeros(len(rows), np.int8)
    label[np.isin(rows, known)] = -1
    label[np.isin(rows, known_normal)] = 1
    return Split(rows, label, kept, tested)


def _split_with_anomalies(records: Records, wanted: str) -> str:
    """Where the anomalies of `semi_supervised` come from: "train" or "test"."""
    if wanted not in ("auto", *WORDS):
        raise UserError(f"protocol.anomalies is auto, train or test, got {wanted}")
    if wanted != "auto":
        return wanted
    return "train" if ((records.split == "train") & (records.label == 1)).any() else "test"


def _anomalies(
    records: Records,
    rng: np.random.Generator,
    wanted: SemiSupervisedCounts,
    pool: str,
    labelled_ratio: float,
    pollution_ratio: float,
    labelled_classes: int | str | Sequence[str | int],
) -> tuple[np.ndarray, np.ndarray]:
    """The known and the unknown anomalies among the rows of the split `pool`; the shares are for messages.

    Raises:
        UserError: there are not so many.
    """
    word = WORDS[pool]
    anomalous = rng.permutation(np.flatnonzero((records.split == pool) & (records.label == 1)))
    kinds = _known_kinds(records, anomalous, rng, labelled_classes, word)
    known = anomalous[np.isin(records.defect[anomalous], kinds)][: wanted.known_anomalous]
    if len(known) < wanted.known_anomalous:
        raise UserError(
            f"protocol.labelled_ratio={labelled_ratio} asks for {wanted.known_anomalous} known anomalies, and the "
            f"{word} rows hold {len(known)} of {', '.join(kinds)}; lower it, or know more protocol.labelled_classes"
        )
    # Drawn anew: at the front of the first draw the known kinds are thinned out.
    left = rng.permutation(anomalous[~np.isin(anomalous, known)])
    if len(left) < wanted.unknown_anomalous:
        raise UserError(
            f"protocol.pollution_ratio={pollution_ratio} asks for {wanted.unknown_anomalous} unlabelled anomalies, and "
            f"{len(left)} anomalous {word} rows are left; lower protocol.pollution_ratio"
        )
    return known, left[: wanted.unknown_anomalous]


def _without_moved(records: Records, moved: np.ndarray) -> np.ndarray:
    """The test rows without those that train.

    Raises:
        UserError: every anomalous test row trains.
    """
    test = np.flatnonzero(records.split == "test")
    left = np.setdiff1d(test, moved)
    if records.label[test].any() and not records.label[left].any():
        raise UserError(
            f"all {int(records.label[test].sum())} anomalous test rows would train: none would be left to test; lower "
            "protocol.labelled_ratio and protocol.pollution_ratio, or use more anomalous images"
        )
    return left


class SemiSupervisedCounts(NamedTuple):
    """Rows of each kind beside the unlabelled normal ones."""

    known_normal: int
    known_anomalous: int
    unknown_anomalous: int


def semi_supervised_counts(
    normal: int, labelled_ratio: float, pollution_ratio: float, labelled_normal_ratio: float = 0.0
) -> SemiSupervisedCounts:
    """Solve for the total T: known anomalies = labelled_ratio T, known normals = labelled_normal_ratio T, unknown
    anomalies = pollution_ratio (unknown anomalies + unlabelled normals), all normals = `normal`; then cut to integers.

    Source: Ruff et al. 2020 (Deep SAD), section 4, and its published sampler.

    Args:
        normal: how many normal rows train.
        labelled_ratio, pollution_ratio, labelled_normal_ratio: shares in [0, 1).

    Raises:
        UserError: a share is out of its range, or more normal rows would be known than there are.
    """
    for name, value in zip(SHARES, (labelled_ratio, pollution_ratio, labelled_normal_ratio), strict=True):
        if not 0 <= value < 1:
            raise UserError(f"protocol.{name} is a share in [0, 1), got {value}")
    odds = pollution_ratio / (1 - pollution_ratio)
    share = 1 + odds * labelled_normal_ratio - labelled_ratio
    total = normal * (1 + odds) / share if share > 0 else np.inf
    if labelled_normal_ratio * total > normal:
        raise UserError(
            f"protocol.labelled_normal_ratio={labelled_normal_ratio} with labelled_ratio={labelled_ratio} asks for "
            f"more known normals than the {normal} normal training rows; lower one of them"
        )
    unlabelled = normal - labelled_normal_ratio * total
    whole = (int(x + 1e-9) for x in (labelled_normal_ratio * total, labelled_ratio * total, odds * unlabelled))
    return SemiSupervisedCounts(*whole)


def _known_kinds(
    records: Records,
    anomalous: np.ndarray,
    rng: np.random.Generator,
    wanted: int | str | Sequence[str | int],
    word: str,
) -> list[str]:
    """The names of the kinds of anomaly of which some are known; `word` tells whose rows the anomalous ones are."""
    present = sorted(set(records.defect[anomalous].tolist()))
    if wanted == "all":
        wanted = max(1, len(present))
    if isinstance(wanted, str):
        raise UserError(
            f"protocol.labelled_classes is a number, a list of kinds such as [{', '.join(present)}], or all; "
            f"got {wanted}"
        )
    if isinstance(wanted, int):
        if not 0 <= wanted <= len(present):
            raise UserError(
                f"protocol.labelled_classes={wanted} kinds of known anomalies were asked for; the {word} rows hold "
                f"{len(present)}{': ' if present else ''}{', '.join(present)}"
                + ("" if present else f"; this data set has no anomalous {word} rows: use protocol=one_class")
            )
        return [present[i] for i in rng.permutation(len(present))[:wanted]]
    names = [str(name) for name in wanted]
    missing = [name for name in names if name not in present]
    if missing or len(set(names)) < len(names):
        raise UserError(
            f"protocol.labelled_classes=[{', '.join(names)}] must name different kinds of anomalous {word} rows; "
            f"there are {', '.join(present) or 'none'}"
        )
    return names


def normal_rows(records: Records, split: str) -> np.ndarray:
    """Rows of the normal samples of "train" or "test": (n,) int64, in order."""
    return np.flatnonzero((records.split == split) & (records.label == 0))


@dataclass(frozen=True)
class HoldOut:
    """How normal rows are kept from training where their number decides.

    A threshold that new normal images exceed as seldom as asked, whatever the distribution of scores, needs a number of
    held-out rows. "auto" holds out so many (or 5 % of the rows, if that is more) where as many are left to train on,
    else a third. Of few rows that is a large part; where a fit takes seconds, "auto" is then "cv": every row trains,
    and each gets its held-out score from a fit on the rows of the other folds (K-fold cross-validation).

    What holds of cross-validated scores is less. Scored by the K models together, a new normal image would exceed the
    threshold with a probability of at most about twice the rate asked for (CV+, cross-conformal prediction). Here the
    final model, fitted on all rows, scores it, for which no such bound exists: the rate is right as far as a fit
    changes little when a fold is left out. A fit on more rows gives normal images lower scores, as a rule, which errs
    on the side of fewer false alarms.

    Source: Vovk 2015, "Cross-conformal predictors"; Barber et al. 2021, "Predictive inference with the jackknife+",
    Theorem 4 and section 5.

    Args:
        way: "auto" or "cv".
        enough: rows that the threshold needs; 19 for a false-alarm rate of 5 % (`evaluation.thresholds.needed`).
        refits: whether the method is fitted in one pass, without gradient steps, so that several fits cost little.

    Raises:
        UserError: another word, or "cv" for a method that takes gradient steps.
    """

    way: str
    enough: int = 19
    refits: bool = False

    def __post_init__(self) -> None:
        if self.way not in ("auto", "cv"):
            raise UserError(f"protocol.holdout is a share in [0, 1), auto or cv, got {self.way}")
        if self.way == "cv" and not self.refits:
            raise UserError(
                "protocol.holdout=cv fits the method once more for each fold: that is for methods that fit in one "
                "pass, without training steps, on features that did not see the training images (pretraining=none or "
                "imagenet); take protocol.holdout=auto or a share such as 0.2"
            )

    def folds(self, n: int) -> int:
        """Folds of a cross-validation of n rows; 0: none, `rows` are held out."""
        few = n < min(FEW, 5 * self.enough)
        return min(FOLDS, n) if self.way == "cv" or (self.refits and few) else 0

    def rows(self, n: int) -> int:
        """Of n normal rows, how many are held out."""
        if self.folds(n):
            return 0
        enough = max(self.enough, round(0.05 * n))
        return enough if enough <= n - enough else max(0, min(max(1, n // 3), n - 2))


def hold_out(normal: np.ndarray, rng: np.random.Generator, share: Share | HoldOut) -> tuple[np.ndarray, np.ndarray]:
    """Divide normal training rows into (to train on, held out), both in order.

    Args:
        normal: (n,) int64 rows.
        rng: draws the held-out ones.
        share: in [0, 1); of a share above 0 at least three rows. Or a `HoldOut`, or its word.

    Raises:
        UserError: the share is out of its range, or fewer than two rows would remain to train on.
    """
    if isinstance(share, str):
        share = HoldOut(share)  # of a method that nothing is known of
    if isinstance(share, HoldOut):
        return _kept(normal, rng, share.rows(len(normal)))
    if not 0 <= share < 1:
        raise UserError(f"protocol.holdout is a share of the normal training rows in [0, 1), got {share}")
    return _kept(normal, rng, max(3, round(share * len(normal))) if share > 0 else 0)


def _kept(normal: np.ndarray, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    if len(normal) - count < 2:
        raise UserError(
            f"training needs at least 2 normal samples; there are {len(normal)} and {count} of them are held out; "
            + ("add normal training images, or set protocol.holdout=0" if count else "add normal training images")
        )
    kept = np.sort(rng.permutation(len(normal))[:count])
    return np.delete(normal, kept), normal[kept]


def checked(split: Split, records: Records, tested: bool = True) -> Split:
    """The split, if it keeps what every protocol promises.

    Args:
        split, records: of the data set.
        tested: whether there must be a row to test.

    Raises:
        UserError: nothing to train on or nothing to test.
        ValueError: the protocol is wrong: a row has two roles, a held-out row is anomalous, a label is missing.
    """
    if len(split.train) < 2:
        raise UserError(
            f"training needs at least 2 samples; the protocol leaves {len(split.train)}; add training images"
        )
    if tested and len(split.test) == 0:
        raise UserError("there is no test image: nothing could be measured; add normal and anomalous test images")
    used = np.concatenate([split.train, split.holdout, split.test])
    if len(np.unique(used)) != len(used):
        raise ValueError("a protocol gave one row two roles")
    if len(split.semi_label) != len(split.train):
        raise ValueError("a protocol must give one semi_label per training row")
    if records.label[split.holdout].any():
        raise ValueError("a protocol held out an anomalous row")
    return split

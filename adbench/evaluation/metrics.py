"""Metrics of raw scores: exact for images, one-pass histograms for pixels.

Every metric is read off one `Curve`, the counts found at each threshold; image metrics count sorted scores, pixel
metrics count the bins of a histogram. Scores are never squashed, clamped or normalised, and a metric without positives
or without negatives is None.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from adbench.evaluation import curves
from adbench.evaluation.curves import Curve, area_up_to
from adbench.types import UserError

Floats = NDArray[np.float64]

PRO_FPR_LIMIT = 0.3
BOUND_WORTH_A_WARNING = 1e-4
IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max", "image_balanced_accuracy_max", "image_balanced_accuracy")
PIXEL_METRICS = (
    "pixel_auroc",
    "pixel_auroc_anomalous_images",
    "pixel_ap",
    "pixel_f1_max",
    "pixel_pro",
    "pixel_auroc_bound",
)


# -- images: exact ----------------------------------------------------------------------------------------------------


def curve(score: ArrayLike | Tensor, label: ArrayLike | Tensor) -> Curve | None:
    """The exact curve of scored samples; equal scores share a threshold.

    Args:
        score: (N,) float, any range, infinities allowed.
        label: (N,) 0 normal, 1 anomalous.

    Returns:
        None, with a warning, where one of the two labels is absent.

    Raises:
        UserError: a score is NaN, a label is neither 0 nor 1, or the lengths differ.
    """
    score, label = _vector(score), _vector(label)
    if len(score) != len(label):
        raise UserError(f"expected one label per score, got {len(score)} scores and {len(label)} labels")
    if not np.isin(label, (0, 1)).all():
        raise UserError(f"labels must be 0 (normal) or 1 (anomalous), got {np.unique(label).tolist()[:5]}")
    nan = int(np.isnan(score).sum())
    if nan:
        raise UserError(
            f"{nan} of {len(score)} scores are NaN (first at position {int(np.isnan(score).argmax())}): the method has "
            "diverged or its input is broken; train again with a lower learning rate, or look at that image"
        )
    anomalous = int(label.sum())
    if anomalous in (0, len(label)):
        _undefined("image metrics", len(label) - anomalous, anomalous, "samples")
        return None
    return curves.curve(score, label)


def image_auroc(score: ArrayLike | Tensor, label: ArrayLike | Tensor) -> float | None:
    """Area under the ROC curve, in [0, 1], ties counted half. Arguments, errors and None as in `curve`."""
    c = curve(score, label)
    return None if c is None else c.auroc()


def image_ap(score: ArrayLike | Tensor, label: ArrayLike | Tensor) -> float | None:
    """Step-wise average precision, in [0, 1]. Arguments, errors and None as in `curve`."""
    c = curve(score, label)
    return None if c is None else c.average_precision()


def image_f1_max(score: ArrayLike | Tensor, label: ArrayLike | Tensor) -> float | None:
    """Largest F1 over thresholds, in [0, 1]. Arguments, errors and None as in `curve`."""
    c = curve(score, label)
    return None if c is None else c.f1_max()


def image_balanced_accuracy_max(score: ArrayLike | Tensor, label: ArrayLike | Tensor) -> float | None:
    """Largest balanced accuracy over thresholds, in [0.5, 1]. Arguments, errors and None as in `curve`."""
    c = curve(score, label)
    return None if c is None else c.balanced_accuracy_max()


def image_balanced_accuracy(
    score: ArrayLike | Tensor, label: ArrayLike | Tensor, threshold: float | None
) -> float | None:
    """Mean of true positive and true negative rate where `score > threshold` means anomalous, in [0, 1].

    None without threshold; other arguments, errors and None as in `curve`.
    """
    c = curve(score, label)
    if c is None or threshold is None:
        return None
    point = int((c.threshold > threshold).sum()) - 1
    return float((1 + c.tpr[point] - c.fpr[point]) / 2)


def image_metrics(
    score: ArrayLike | Tensor, label: ArrayLike | Tensor, threshold: float | None = None
) -> dict[str, float | None]:
    """All `IMAGE_METRICS` by name, each in [0, 1]. Errors and None as in `curve`.

    Args:
        score, label: see `curve`.
        threshold: of `image_balanced_accuracy`, which is None without it.
    """
    c = curve(score, label)
    if c is None:
        return dict.fromkeys(IMAGE_METRICS)
    return {
        "image_auroc": c.auroc(),
        "image_ap": c.average_precision(),
        "image_f1_max": c.f1_max(),
        "image_balanced_accuracy_max": c.balanced_accuracy_max(),
        "image_balanced_accuracy": image_balanced_accuracy(score, label, threshold),
    }


def bootstrap_auroc(
    score: ArrayLike | Tensor, label: ArrayLike | Tensor, *, seed: int = curves.SEED, draws: int | None = None
) -> tuple[float, float] | None:
    """95 % percentile interval (low, high) of the image AUROC under resampling, normal and anomalous rows apart.

    Arguments, errors and None as in `curve`, `seed` and `draws` as in `curves.bootstrap`: what a report says of the
    same rows.
    """
    if curve(score, label) is None:
        return None
    areas = curves.bootstrap(_vector(score), _vector(label), draws, seed)
    return None if areas is None else curves.interval(areas)


# -- pixels: one pass, constant memory --------------------------------------------------------------------------------

_DROPPED_BITS = 12
_INFINITY = 0x7F800000  # the bits of float32's +inf; larger magnitudes are NaN
BINS = 1 << (32 - _DROPPED_BITS)


def _ordered(score: Tensor) -> Tensor:
    """The integer that orders float32 as the numbers are ordered: the bits' magnitude, negated for negative scores."""
    bits = score.contiguous().view(torch.int32)
    negative = bits >> 31  # -1 where the sign bit is set, else 0
    return ((bits & 0x7FFFFFFF) ^ negative).sub_(negative)


def _bin(ordered: Tensor) -> Tensor:
    return (ordered >> _DROPPED_BITS).add_(BINS // 2)


def bin_of(score: Tensor) -> Tensor:
    """Bin of each score: the top 20 bits of the integer that orders float32 as the numbers are ordered.

    Args:
        score: float32, any shape; infinities allowed, -0.0 and 0.0 share a bin.

    Returns:
        Same shape, int32 in [0, BINS), non-decreasing in the score. A bin spans 2^-11 of its octave.
    """
    return _bin(_ordered(score))


def _lower_edge(bins: NDArray[np.int64]) -> Floats:
    """The smallest score of each bin (the most negative one that `bin_of` puts there)."""
    ordered = (bins - BINS // 2) << _DROPPED_BITS
    magnitude = np.abs(ordered).astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(ordered < 0, -magnitude, magnitude)


_ONE_IMAGE_8_NEIGHBOURS = np.zeros((3, 3, 3), dtype=bool)
_ONE_IMAGE_8_NEIGHBOURS[1] = True


def region_shares(mask: NDArray[np.bool_]) -> tuple[Floats, int]:
    """1 / area of the region each anomalous pixel belongs to; regions are 8-connected.

    Args:
        mask: (B, H, W) bool.

    Returns:
        (number of anomalous pixels,) float64 in row-major order of the mask, and the number of regions.
    """
    regions, number = ndimage.label(mask, _ONE_IMAGE_8_NEIGHBOURS)
    region = regions[mask]
    return (1.0 / np.maximum(np.bincount(region, minlength=1), 1))[region], int(number)


def histogram_offset(maps: ArrayLike | Tensor) -> float:
    """A value to subtract from anomaly maps before they are binned, from held-out maps (a sample of pixels will do).

    Bins are relative: scores that vary by 0.1 around 100 share few of them. The median is returned where it spreads
    the scores over more bins than 0 does and 0 leaves too many pairs in one bin; otherwise 0.

    Args:
        maps: of any shape, any range, not empty.
    """
    maps = torch.as_tensor(np.asarray(maps, dtype=np.float32)).flatten()
    median = float(maps.median())

    def tied(offset: float) -> float:
        share = torch.bincount(bin_of(maps - offset)).double() / len(maps)
        return float(share.square().sum() / 2)

    return median if tied(0.0) > BOUND_WORTH_A_WARNING and tied(median) < tied(0.0) else 0.0


class PixelMetrics(Metric):
    """AUROC, AP, F1max and PRO of anomaly maps in one pass over the test set.

    Three histograms over the bins of `bin_of` are kept: normal pixels, anomalous pixels, and anomalous pixels weighted
    by 1 / area of their region. All are sums, so they add over batches and ranks, and memory does not grow with the
    test set. Images without defects contribute their pixels as normal ones.

    Source: Bergmann et al. 2020 (Uninformed Students), section 4: PRO, the mean overlap with connected regions, here
    8-connected, as the area up to a false positive rate of 0.3, divided by 0.3.

    Args:
        offset: subtracted from every map before binning (`histogram_offset`); the bins are finest around it.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    negatives: Tensor
    positives: Tensor
    overlap: Tensor
    regions: Tensor
    nan: Tensor
    image_aurocs: Tensor
    mixed_images: Tensor

    def __init__(self, offset: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.offset = float(offset)
        for name, shape, dtype in (
            ("negatives", BINS, torch.int64),
            ("positives", BINS, torch.int64),
            ("overlap", BINS, torch.float64),  # of a bin: sum over its anomalous pixels of 1 / area of their region
            ("regions", (), torch.int64),
            ("nan", (), torch.int64),
            ("image_aurocs", (), torch.float64),  # sum over images that have both kinds of pixel
            ("mixed_images", (), torch.int64),
        ):
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def update(self, maps: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            maps: (B, 1, H, W) float, any range, higher = more anomalous.
            mask: (B, 1, H, W) bool, True where anomalous.

        Raises:
            ValueError: the shapes differ or are others.
        """
        if maps.shape != mask.shape or maps.ndim != 4 or maps.shape[1] != 1:
            raise ValueError(
                f"expected maps and masks of one shape (B, 1, H, W), got {tuple(maps.shape)} and {tuple(mask.shape)}"
            )
        with one_cpu_thread():
            self._add(maps.detach().float().flatten(1).to(self.negatives.device), mask[:, 0].cpu().numpy())

    def _add(self, maps: Tensor, mask: NDArray[np.bool_]) -> None:
        """Add (B, H * W) maps on the states' device and (B, H, W) masks on the host, where regions are labelled."""
        if self.offset:
            maps = maps - self.offset
        ordered = _ordered(maps)
        self.nan += (ordered.abs() > _INFINITY).sum()
        _count(self.negatives, _bin(ordered).flatten())

        rows = np.flatnonzero(mask.any(axis=(1, 2)))
        if not len(rows):
            return
        mask = mask[rows]
        shares, regions = region_shares(mask)
        self.regions += regions
        ordered = ordered[torch.from_numpy(rows).to(ordered.device)]
        positions = torch.from_numpy(np.flatnonzero(mask)).to(ordered.device)
        bins = _bin(ordered.flatten()[positions])
        one = torch.ones_like(positions)
        self.positives.index_add_(0, bins, one)
        self.negatives.index_add_(0, bins, one, alpha=-1)
        self.overlap.index_add_(0, bins, torch.from_numpy(shares).to(ordered.device))
        areas, mixed = _auroc_per_image(ordered, positions)
        self.image_aurocs += areas
        self.mixed_images += mixed

    def compute(self) -> dict[str, float | None]:
        """All `PIXEL_METRICS` by name, each in [0, 1], None where undefined.

        The exact AUROC differs from `pixel_auroc` by at most `pixel_auroc_bound`, half the share of
        normal-anomalous pairs that share a bin; a warning says what to do where that is more than 1e-4.

        Raises:
            UserError: a pixel was NaN.
        """
        if int(self.nan):
            raise UserError(
                f"{int(self.nan)} pixels of the anomaly maps are NaN: the method has diverged or an input is broken; "
                "train again with a lower learning rate"
            )
        mixed = int(self.mixed_images)
        results = dict.fromkeys(PIXEL_METRICS) | {
            "pixel_auroc_anomalous_images": float(self.image_aurocs) / mixed if mixed else None
        }
        counted, overlap = self._curve()
        if counted is None:
            return results
        bound = float((np.diff(counted.false) * np.diff(counted.true)).sum() / 2 / counted.false[-1] / counted.true[-1])
        if bound > BOUND_WORTH_A_WARNING:
            middle = float(np.interp(0.5, counted.fpr, np.append(counted.threshold[1], counted.threshold[1:])))
            warnings.warn(
                f"pixel_auroc is known to ±{bound:.1g} only: many normal and anomalous pixels share a bin, around "
                f"{middle + self.offset:.6g}. Unless their scores are truly equal, subtract a fixed offset from the "
                "maps for finer bins (histogram_offset of held-out maps gives one).",
                stacklevel=2,
            )
        return results | {
            "pixel_auroc": counted.auroc(),
            "pixel_ap": counted.average_precision(),
            "pixel_f1_max": counted.f1_max(),
            "pixel_pro": area_up_to(counted.fpr, overlap, PRO_FPR_LIMIT),
            "pixel_auroc_bound": bound,
        }

    def curves(self, points: int = 500) -> dict[str, list[float]]:
        """`fpr`, `tpr`, `precision` and `pro` at no more than `points` thresholds, for plots; empty if undefined."""
        counted, overlap = self._curve(quietly=True)
        if counted is None:
            return {}
        # Evenly spaced along the ROC curve and, because PRO is read at small rates, along its root.
        along = np.sqrt(counted.fpr) + counted.tpr
        keep = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)).clip(max=len(along) - 1))
        kept = {"fpr": counted.fpr, "tpr": counted.tpr, "precision": counted.precision, "pro": overlap}
        return {name: values[keep].tolist() for name, values in kept.items()}

    def _curve(self, quietly: bool = False) -> tuple[Curve | None, Floats]:
        """The curve over occupied bins, and the mean overlap with a region (K + 1,) at its thresholds."""
        negatives, positives = self.negatives.cpu().numpy(), self.positives.cpu().numpy()
        if not negatives.any() or not positives.any():
            if not quietly:
                _undefined("pixel metrics", int(negatives.sum()), int(positives.sum()), "pixels")
            return None, np.zeros(0)
        occupied = np.flatnonzero(negatives + positives)[::-1]

        def cumulated(counts: NDArray[Any]) -> Floats:
            return np.append(0.0, np.cumsum(counts[occupied], dtype=np.float64))

        counted = Curve(np.append(np.inf, _lower_edge(occupied)), cumulated(negatives), cumulated(positives))
        return counted, cumulated(self.overlap.cpu().numpy()) / int(self.regions)


@contextmanager
def one_cpu_thread() -> Iterator[None]:
    """For short passes over memory: threads gain little on idle cores and wait long for each other on busy ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _count(state: Tensor, bins: Tensor) -> None:
    """Add to `state` the number of entries in each bin."""
    if bins.device.type == "cpu":
        low = int(bins.min())
        counts = torch.bincount(bins - low)
        state[low : low + len(counts)] += counts
    else:  # bincount would make the host wait for the device
        state.index_add_(0, bins, torch.ones_like(bins, dtype=state.dtype))


def _auroc_per_image(ordered: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the exact AUROCs of single images, and how many of them have both kinds of pixel.

    Args:
        ordered: (R, P) int32, scores as `_ordered` integers.
        positions: (A,) int64, anomalous pixels as positions in the flattened maps, ascending.

    Returns:
        () float64 and () int64.
    """
    images, pixels = ordered.shape
    image = positions // pixels
    if ordered.device.type == "cpu":  # NumPy sorts rows about twice as fast there
        ascending = torch.from_numpy(np.sort(ordered.numpy(), axis=1))
    else:
        ascending = ordered.sort(dim=1).values
    # One search serves all images: the row number takes the high bits, the order of the scores the low ones.
    row = torch.arange(images, device=ordered.device).mul_(1 << 33)[:, None]
    keys = (ascending.long() + row).flatten()
    wanted = ordered.flatten()[positions].long() + (image << 33)
    twice_rank = torch.searchsorted(keys, wanted) + torch.searchsorted(keys, wanted, right=True) - 2 * pixels * image
    none = torch.zeros(images, dtype=torch.int64, device=ordered.device)
    twice_ranks = none.index_add(0, image, twice_rank)
    anomalous = none.index_add(0, image, torch.ones_like(image))
    pairs = anomalous * (pixels - anomalous)
    wins = (twice_ranks - anomalous * anomalous).double() / 2  # an anomalous pixel outranks itself by a half
    return torch.where(pairs > 0, wins / pairs.clamp(min=1), 0.0).sum(), (pairs > 0).sum()


def _vector(values: ArrayLike | Tensor) -> Floats:
    values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    return values.reshape(-1)


def _undefined(what: str, normal: int, anomalous: int, unit: str) -> None:
    warnings.warn(
        f"{what} need both kinds of {unit}, got {normal} normal and {anomalous} anomalous: they are null", stacklevel=4
    )

"""Pixel metrics: time, memory and exactness beside scikit-learn, on maps with defects that are made batch by batch.

Run `python bench/metrics.py`. Each measurement is a process of its own, so that peak memory is its own too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SIDE, BATCH = 256, 16


def maps_with_defects(images: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Batches of smooth positive maps (B, 1, H, W) and masks: half of the images have one to three defects."""
    y, x = np.mgrid[:SIDE, :SIDE]
    for start in range(0, images, BATCH):
        rng = np.random.default_rng([7, start])
        noise = rng.standard_normal((BATCH, SIDE, SIDE), dtype=np.float32)
        maps = 0.3 * np.exp(6 * ndimage.gaussian_filter(noise, (0, 6, 6)))
        mask = np.zeros(maps.shape, dtype=bool)
        for image in range(0, BATCH, 2):
            for _ in range(rng.integers(1, 4)):
                cy, cx, a, b = *rng.uniform(20, SIDE - 20, 2), *rng.uniform(4, 25, 2)
                distance = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2
                mask[image] |= distance < 1
                maps[image] += rng.uniform(0.05, 0.8) * np.exp(-distance)  # found in part, and beyond its edge
        yield maps[:, None].astype(np.float32), mask[:, None]


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _ours(images: int) -> dict[str, Any]:
    import torch

    from adbench.evaluation.metrics import PixelMetrics

    list(maps_with_defects(BATCH))  # making maps takes memory that is not the metrics'
    base, seconds = _peak_mib(), 0.0
    metrics = PixelMetrics()
    for maps, mask in maps_with_defects(images):
        start = time.perf_counter()
        metrics.update(torch.from_numpy(maps), torch.from_numpy(mask))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    values = metrics.compute()
    seconds += time.perf_counter() - start
    return {"seconds": seconds, "mib": _peak_mib() - base, **values}


def _reference(images: int) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    batches = list(maps_with_defects(images))
    score = np.concatenate([maps.ravel() for maps, _ in batches])
    mask = np.concatenate([mask for _, mask in batches])[:, 0]
    del batches
    base = _peak_mib()
    start = time.perf_counter()
    auroc = roc_auc_score(mask.ravel(), score)
    seconds, mib = time.perf_counter() - start, _peak_mib() - base
    ap = average_precision_score(mask.ravel(), score)
    return {"seconds": seconds, "mib": mib, "pixel_auroc": auroc, "pixel_ap": ap, "pixel_pro": _plain_pro(score, mask)}


def _plain_pro(score: NDArray[np.float32], mask: NDArray[np.bool_], limit: float = 0.3) -> float:
    """Exact PRO: sort every pixel, add up each one's share of its region, integrate to the limit."""
    from skimage.measure import label

    regions, share = 0, np.zeros(mask.shape)
    for one_mask, one_share in zip(mask, share, strict=True):
        region = label(one_mask, connectivity=2)
        for k in range(1, region.max() + 1):
            one_share[region == k] = 1 / (region == k).sum()
            regions += 1
    order = np.argsort(-score, kind="stable")
    score = score[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    overlap = np.cumsum(share.ravel()[order])[last] / regions
    fpr = np.cumsum(~mask.ravel()[order])[last] / (~mask).sum()
    overlap, fpr = np.append(0, overlap), np.append(0, fpr)
    at_limit = np.interp(limit, fpr, overlap)
    inside = fpr < limit
    return float(np.trapezoid(np.append(overlap[inside], at_limit), np.append(fpr[inside], limit)) / limit)


def _in_a_process(what: str, images: int, **environment: str) -> dict[str, Any]:
    command, everything = [sys.executable, __file__, what, str(images)], os.environ | environment
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=everything).stdout)  # noqa: S603


def measure() -> list[dict[str, Any]]:
    """Rows {name, value, unit, baseline, ratio, note}; a baseline is scikit-learn's or the plain reference's."""
    rows: list[dict[str, Any]] = []

    def row(name: str, value: float, unit: str, baseline: float, ratio: float, note: str) -> None:
        rows.append({"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio, "note": note})

    memory = {}
    for images in (160, 640):
        ours, reference = _in_a_process("ours", images), _in_a_process("reference", images)
        # Freed arrays go back to the system at once, so that the peak is what was held and not how the heap was cut.
        memory[images] = _in_a_process("ours", images, MALLOC_MMAP_THRESHOLD_="262144")["mib"]
        row(
            f"pixel metrics, {images} maps of {SIDE}x{SIDE}: time",
            ours["seconds"],
            "s",
            reference["seconds"],
            reference["seconds"] / ours["seconds"],
            "AUROC, AP, F1max, PRO and per-image AUROC together; baseline: scikit-learn's roc_auc_score alone; "
            "ratio: times faster (at least 8)",
        )
        for key, against, allowed in (
            ("pixel_auroc", "scikit-learn's roc_auc_score", 1e-4),
            ("pixel_ap", "scikit-learn's average_precision_score", 1e-3),
            ("pixel_pro", "an exact sort of every pixel", 1e-3),
        ):
            difference = abs(ours[key] - reference[key])
            row(
                f"pixel metrics, {images} maps of {SIDE}x{SIDE}: {key}",
                ours[key],
                "fraction",
                reference[key],
                difference / allowed,
                f"baseline: {against}; ratio: difference ({difference:.1e}) over what is allowed ({allowed:g})",
            )
        row(
            f"pixel metrics, {images} maps of {SIDE}x{SIDE}: peak memory",
            memory[images],
            "MiB",
            reference["mib"],
            reference["mib"] / memory[images],
            "above what the process held before; baseline: roc_auc_score; ratio: times smaller",
        )
    row(
        "pixel metrics: peak memory at 640 maps beside 160",
        memory[640],
        "MiB",
        memory[160],
        memory[640] / memory[160],
        "constant memory: the ratio is 1 but for a few pages",
    )
    return rows


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps({"ours": _ours, "reference": _reference}[sys.argv[1]](int(sys.argv[2]))))
    else:
        for entry in measure():
            print("{name}: {value:.6g} {unit}, baseline {baseline:.6g}, ratio {ratio:.3g} ({note})".format(**entry))

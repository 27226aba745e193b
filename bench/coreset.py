"""PatchCore's coreset: time beside a straightforward greedy loop, memory at the size of MVTec AD's largest category.

Rows are patch features of EfficientNet-Lite0 with its ImageNet weights (`adbench-vision[weights]`) on crops of the
embedded textures, as `method=patchcore/small` takes them. The loop is Algorithm 1 of Roth et al. 2022: every distance
to each new member, then the farthest row. Both choose the same members.

    python -m bench coreset
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import Tensor

from adbench.losses.neighbours import greedy_coreset
from adbench.methods.patchcore import PatchCore
from adbench.pretraining.imagenet import ImageNet
from adbench.types import Batch

SMALL, MEMBERS, TURNS = 60, 2000, 3  # images of 224 px, rows chosen
LARGE, LARGE_SIDE, SHARE = 391, 512, 0.001  # MVTec AD's hazelnut has 391 training images
GIB = 2**30


def measure() -> list[dict[str, object]]:
    """Seconds for a small bank beside the loop's; seconds and peak memory for a large one, in a process of its own."""
    patches = features(SMALL, 224)
    loops, ours = [], []
    for _ in range(TURNS):
        clock = time.perf_counter()
        wanted = plain_loop(patches, MEMBERS, 0)
        loops.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        found = greedy_coreset(patches, MEMBERS, 0)
        ours.append(time.perf_counter() - clock)
    same = float((found == wanted).double().mean())
    large = json.loads(
        subprocess.run([sys.executable, "-m", "bench.coreset"], stdout=subprocess.PIPE, check=True, text=True).stdout
    )
    rows, minutes = large["rows"], large["coreset_s"] / large["members"] / 60
    threads = f"{torch.get_num_threads()} CPU threads"
    return [
        {"name": "PatchCore's coreset", "value": round(min(ours), 2), "unit": "s", "baseline": round(min(loops), 2),
         "ratio": round(min(loops) / min(ours), 2),
         "note": f"{MEMBERS} of {len(patches):,} patches of {patches.shape[1]} numbers, {threads}, best of {TURNS} "
                 f"turns; baseline: a straightforward greedy loop; {same:.1%} of the choices are the same; ratio: "
                 "times faster (at least 5)"},
        {"name": "PatchCore's fit on 512-px images: memory", "value": round(large["peak_gib"], 2), "unit": "GiB",
         "baseline": 24, "ratio": round(large["peak_gib"] / 24, 3),
         "note": f"peak of the whole process: {LARGE} images, {rows:,} patches of {large['dimension']} numbers "
                 f"({rows * large['dimension'] * 4 / GIB:.2f} GiB); baseline: what must be enough"},
        {"name": "PatchCore's fit on 512-px images: time", "value": round(large["fit_s"], 1), "unit": "s",
         "baseline": None, "ratio": None,
         "note": f"{threads}; features {large['fit_s'] - large['coreset_s']:.0f} s, then {large['members']:,} members "
                 f"({SHARE:.1%}) in {large['coreset_s']:.0f} s; not run: at this rate 1 % takes "
                 f"{minutes * rows * 0.01:.0f} min and 10 % {minutes * rows * 0.1:.0f} min"},
    ]  # fmt: skip


def crops(number: int, side: int, seed: int = 0) -> np.ndarray:
    """(number, side, side, 3) uint8: pieces of photographs of a brick wall, turned, mirrored and lit at random."""
    from skimage import data

    rng, wall = np.random.default_rng(seed), data.brick()
    images = np.empty((number, side, side, 3), np.uint8)
    for image in images:
        turned = np.rot90(np.roll(wall, rng.integers(0, 512, 2), (0, 1)), rng.integers(4))
        light = rng.uniform(0.8, 1.2) * turned[:side, :side] + rng.normal(0, 2, (side, side))
        image[:] = light.clip(0, 255).astype(np.uint8)[..., None]
    return images


def batches(images: np.ndarray, size: int = 8) -> list[Batch]:
    """Training batches of images, (N, S, S, 3) uint8; each is made when its turn comes."""

    def one(part: np.ndarray) -> Batch:
        nothing = torch.zeros(len(part), dtype=torch.long)
        image = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255
        return Batch(image, nothing, nothing, torch.zeros(len(part), 1, 1, 1, dtype=torch.bool), nothing)

    return [one(part) for part in np.split(images, range(size, len(images), size))]


def detector(side: int, coreset: float = 0.1) -> PatchCore:
    """`method=patchcore/small pretraining=imagenet`."""
    method = PatchCore("tf_efficientnet_lite0.in1k", image_size=side, coreset=coreset)
    ImageNet(None).check(method)
    return method.eval()


def features(number: int, side: int) -> Tensor:
    """(patches, D) of so many crops."""
    method = detector(side)
    with torch.no_grad():
        return torch.cat([method._patches(batch.image)[0] for batch in batches(crops(number, side))])


def plain_loop(rows: Tensor, count: int, first: int) -> Tensor:
    """Algorithm 1 as it is printed."""
    distance = torch.full((len(rows),), torch.inf)
    chosen, place = [], first
    for _ in range(count):
        chosen.append(place)
        distance = torch.minimum(distance, torch.linalg.norm(rows - rows[place], dim=1))
        distance[place] = -1.0
        place = int(distance.argmax())
    return torch.tensor(chosen)


def large_fit() -> dict[str, float]:
    """Fit on images of the largest size that the bench claims, with few members."""
    import adbench.methods.patchcore as patchcore

    spent = {"coreset_s": 0.0, "rows": 0, "dimension": 0}

    def timed(rows: Tensor, *options: int) -> Tensor:
        clock = time.perf_counter()
        chosen = greedy_coreset(rows, *options)
        spent.update(coreset_s=time.perf_counter() - clock, rows=rows.shape[0], dimension=rows.shape[1])
        return chosen

    patchcore.greedy_coreset = timed  # type: ignore[assignment]
    method, images = detector(LARGE_SIDE, SHARE), crops(LARGE, LARGE_SIDE)
    clock = time.perf_counter()
    with torch.no_grad():
        method.prepare(batch for part in np.array_split(images, 49) for batch in batches(part))
    fit = time.perf_counter() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return spent | {"fit_s": fit, "members": len(method.get_buffer("bank")), "peak_gib": peak}


if __name__ == "__main__":
    print(json.dumps(large_fit()))

"""What training and scoring once computed more often than they must: each beside the way that computes it again.

The other way is written here as plainly as it can be; both give the same numbers, to 1e-5 of the largest. Where sharing
does not pay, the row says how much it could save at most.

    python -m bench twice
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adbench.evaluation.metrics import one_cpu_thread
from adbench.losses import igd
from adbench.methods.igd import PATCH, STRIDE
from adbench.networks.igd import Down
from adbench.transforms.geometry import rotated_crop
from adbench.transforms.image import to_float, to_rgb
from adbench.transforms.symmetry import apply_symmetry, undo_symmetry
from adbench.types import Batch
from bench._steps import built, images, in_turns

ASKED = "at least 1.5"
NEAR = 1e-5  # of the largest value


def measure() -> list[dict[str, Any]]:
    """A row of each: milliseconds now, and of the way that computes twice as the baseline."""
    with one_cpu_thread(), torch.no_grad():
        return [
            similarity(), e_step(), windows(), crops_of_bytes(), symmetric_views(), encodings(),
        ]  # fmt: skip


def compared(name: str, now: Callable[[], Any], then: Callable[[], Any], note: str, times: int = 9) -> dict[str, Any]:
    """A row of two works that give the same tensors; the ratio says how many times faster the first is."""
    agree(name, now(), then())
    seconds = in_turns({"now": now, "then": then}, times)
    return {
        "name": f"paid once: {name}", "value": round(1e3 * seconds["now"], 3), "unit": "ms",
        "baseline": round(1e3 * seconds["then"], 3), "ratio": round(seconds["then"] / seconds["now"], 3),
        "note": f"{note}; one thread, processor time, median of {times} turns; ratio: times faster",
    }  # fmt: skip


def agree(name: str, now: Iterable[Tensor], then: Iterable[Tensor]) -> None:
    """Refuse to time two works of different results.

    Raises:
        AssertionError: they differ by more than 1e-5 of the largest value.
    """
    for ours, theirs in zip(now, then, strict=True):
        largest = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=NEAR * largest, msg=lambda m: f"{name}: {m}")


# -- IGD --------------------------------------------------------------------------------------------------------------


def similarity() -> dict[str, Any]:
    """Score and map of an image from one pyramid of its similarity, or from one each."""
    method, side, _ = built("igd", "data=mvtec/bottle", "method.scales=[global]")
    x, x_hat = (method.normalize(images(2, side, seed)) for seed in (0, 1))
    options = method._window["global"]

    def once() -> tuple[Tensor, ...]:
        levels = igd.pyramid(x, x_hat, **options)
        return _residual_and_map(x, x_hat, options, levels)

    return compared(
        "IGD's similarity pyramid", once, lambda: _residual_and_map(x, x_hat, options, None),
        f"l_r and map of 2 images of {side} px; baseline: a pyramid for each; {ASKED}",
    )  # fmt: skip


def _residual_and_map(x: Tensor, x_hat: Tensor, options: Any, levels: Any) -> tuple[Tensor, ...]:
    residual = igd.reconstruction(x, x_hat, rho=0.15, levels=levels, **options)
    return residual, igd.residual_map(x, x_hat, rho=0.15, levels=levels, **options)


def e_step() -> dict[str, Any]:
    """An E-step of a frozen trunk: from the moments of its features, or from all images again."""
    method, side, rows = built("igd/small", "method.scales=[global]")
    method.on_pretrained()
    method.eval()
    unknown = torch.full((rows,), -1)
    batches = [Batch(images(rows, side, k), unknown, unknown, unknown, unknown) for k in range(4)]
    d = method.descriptors["global"]

    def by_moments() -> tuple[Tensor, ...]:
        method.e_step(batches, first=False)
        return d.center.clone(), d.variance.clone()

    def of_all_images() -> tuple[Tensor, ...]:
        z = torch.cat([d.encoder(method.normalize(batch.image)) for batch in batches])
        center = igd.floored_center(z.mean(0), method.center_floor)
        distance = (z - center).square().sum().view(1)
        return center, igd.floored_variance(distance, torch.tensor([len(z)]), method.variance_floor)

    return compared(
        "IGD's E-step, frozen trunk", by_moments, of_all_images,
        f"every E-step but the first, igd/small, {len(batches) * rows} images of {side} px; baseline: all images "
        f"through the encoder again; {ASKED}",
    )  # fmt: skip


def windows() -> dict[str, Any]:
    """What all windows of an image could save if they shared their convolutions where that is exact."""
    method, side, _ = built("igd", "data=mvtec/bottle")
    d = method.descriptors["local"].eval()
    with FlopCounterMode(display=False) as counter:
        d.decoder(d.encoder(torch.zeros(1, 3, PATCH, PATCH)))
    every = counter.get_total_flops() / 2
    shared = shareable(d.encoder.trunk, (side - PATCH) // STRIDE + 1)
    return {
        "name": "not shared: convolutions of IGD's overlapping windows", "value": round((every - shared) / 1e6, 1),
        "unit": "million multiplications a window", "baseline": round(every / 1e6, 1),
        "ratio": round(every / (every - shared), 3),
        "note": f"encoder and decoder of a {PATCH}-px window, {STRIDE} px apart in {side} px; values that the window's "
        "padding reaches are not the image's, and the decoder has an embedding for each window; ratio: times faster at "
        f"most, gathering and the windows' rims not counted; {ASKED}",
    }  # fmt: skip


def shareable(trunk: nn.Module, along: int) -> float:
    """Multiplications of a window that a pass over the whole image could give it.

    A 3 x 3 convolution widens the rim of values that the window's padding has reached by one; halving halves it. Of the
    values inside the rim each lies in several windows, and is to be computed once.

    Args:
        trunk: of 32-px patches, in eval mode.
        along: windows along a side of the image.
    """
    side, stride, rim, saved = PATCH, STRIDE, 0, 0.0

    def saving(convolution: Any, rim: int) -> float:
        inside = max(0, side - 2 * rim)
        distinct = min(inside, stride) * (along - 1) + inside  # along a side of the image
        taps = 16 / 9 if hasattr(convolution, "fold") else 1  # 3 x 3 weights are used as 4 x 4
        share = (inside / side) ** 2 - (distinct / (along * side)) ** 2
        return float(convolution.weight.numel() * taps * side**2 * share)

    for layer in trunk.layers:
        if isinstance(layer, nn.Conv2d):
            rim += 1
            saved += saving(layer, rim)
        elif isinstance(layer, Down):
            convolution, halving = (part for part in layer.main if isinstance(part, nn.Conv2d))
            saved += saving(convolution, rim + 1)
            side, stride, pooled, rim = side // 2, stride // 2, (rim + 1) // 2, (rim + 3) // 2
            saved += saving(halving, rim) + saving(layer.shortcut[1], pooled)
    return saved


# -- the others -------------------------------------------------------------------------------------------------------


def crops_of_bytes() -> dict[str, Any]:
    """CBiGAN's crops of textures: of bytes, or of images that became float whole."""
    method, side, rows = built("cbigan", "data=mvtec/carpet")  # a texture, photographed in 512 px
    method.seed = 0
    image = (images(rows, side) * 255).round().byte()

    def of_floats() -> tuple[Tensor, ...]:
        low, high = method.rotation
        degrees = low + (high - low) * method.rand("rotation", rows)
        crop = rotated_crop(to_float(to_rgb(image)), degrees, method.rand("crop", rows, 2), method.side)
        return ((2 * crop - 1).contiguous(memory_format=torch.channels_last),)

    return compared(
        "CBiGAN's crops", lambda: (method.view(image),), of_floats,
        f"the view of a step, {rows} crops of {method.side} px in images of {side} px; baseline: the images made float "
        f"whole; {ASKED}",
    )  # fmt: skip


def symmetric_views() -> dict[str, Any]:
    """SSAE's mean map over eight symmetries: view by view, or all views in one batch."""
    method, side, _ = built("ssae/small", "method.symmetric_maps=true", "method.symmetries=all")
    method.eval()
    image, network = images(rows := 8, side), method.networks[0]
    codes = torch.tensor(method._views).repeat_interleave(rows)

    def one_by_one() -> tuple[Tensor, ...]:
        return (torch.stack([method._differences(image, view)[0] for view in method._views]).mean(dim=0),)

    def in_one_batch() -> tuple[Tensor, ...]:
        turned = apply_symmetry(image.repeat(len(method._views), 1, 1, 1), codes)
        back = undo_symmetry(method._difference(turned, network(turned)), codes)
        return (back.unflatten(0, (-1, rows)).mean(dim=0),)

    row = compared(
        "SSAE's eight views one by one", one_by_one, in_one_batch,
        f"maps of {rows} images of {side} px, ssae/small; baseline: all views in one batch, which has as many "
        "multiplications and larger maps",
    )  # fmt: skip
    return row | {"name": "not batched: SSAE's eight views"}


def encodings() -> dict[str, Any]:
    """P-WAE's test of an image: score, other scores and codes of one pass, or of one each."""
    method, side, _ = built("pwae/small")
    method.eval()
    image = images(rows := 4, side)

    def at_once() -> tuple[Tensor, ...]:
        scores = method.test_scores(image)
        return scores.image, scores.maps, *scores.extras.values(), scores.codes

    def each() -> tuple[Tensor, ...]:
        scores = method.score(image)
        return scores.image, scores.maps, *method.extra_scores(image).values(), method.codes(image)

    return compared(
        "P-WAE's encodings of a test image", at_once, each,
        f"pwae/small, {rows} images of {side} px; baseline: score, extra scores and codes each by themselves; {ASKED}",
        times=5,
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

"""PatchCore, fit and scores, beside the PatchCore of anomalib: same backbone, weights, images and share of the bank.

Both find the same features. Their means of 3 x 3 patches differ at the border of a map alone, where anomalib counts the
zeros outside; so the maps are compared inside.

anomalib lives in an environment of its own, whose interpreter ADBENCH_ANOMALIB_PYTHON names:

    python -m venv /tmp/anomalib && /tmp/anomalib/bin/pip install "anomalib[cpu]==2.7.0"
    ADBENCH_ANOMALIB_PYTHON=/tmp/anomalib/bin/python python -m bench anomalib_patchcore
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from adbench.methods.patchcore import PatchCore
from bench.coreset import batches, crops, detector

VARIABLE = "ADBENCH_ANOMALIB_PYTHON"
SIDE, TRAIN, TEST, SHARE = 224, 60, 40, 0.1
BORDER = 48  # pixels of a map that see the outside of a patch
#: Run by the other interpreter: images and weights in, seconds and scores out.
THEIRS = """
import json, sys, time
import numpy as np, torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

file, weights, threads, share = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = PatchcoreModel(["blocks.2", "blocks.4"], "tf_efficientnet_lite0", pre_trained=False)
own = model.feature_extractor.feature_extractor
state = {name: value for name, value in torch.load(weights, weights_only=True).items() if name in own.state_dict()}
own.load_state_dict(state, strict=True)
images = {name: torch.from_numpy(value).permute(0, 3, 1, 2).float() / 255 for name, value in np.load(file).items()}
images = {name: (value - 0.5) / 0.5 for name, value in images.items()}
clock = time.perf_counter()
with torch.no_grad():
    model.train()
    model.feature_extractor.eval()
    for part in images["train"].split(8):
        model(part)
    model.subsample_embedding(share)
    fit = time.perf_counter() - clock
    model.eval()
    clock = time.perf_counter()
    maps = torch.cat([model(part).anomaly_map for part in images["test"].split(8)])
print(json.dumps({"fit": fit, "score": time.perf_counter() - clock, "bank": len(model.memory_bank)}))
np.save(file + ".maps.npy", maps.numpy())
"""


def measure() -> list[dict[str, object]]:
    """Seconds of fit and scores of both."""
    interpreter = os.environ.get(VARIABLE)
    if not interpreter:
        print(f"  left out: {VARIABLE} does not name the interpreter of an environment with anomalib", flush=True)
        return []
    train, test = crops(TRAIN, SIDE), crops(TEST, SIDE, seed=1)
    rng = np.random.default_rng(2)
    for image in test[::2]:  # a dark spot
        y, x = rng.integers(0, SIDE - 24, 2)
        image[y : y + 24, x : x + 24] //= 2
    method = detector(SIDE, SHARE)
    clock = time.perf_counter()
    with torch.no_grad():
        method.prepare(batches(train))
        fit = time.perf_counter() - clock
        clock = time.perf_counter()
        maps = torch.cat([_maps(method, batch.image) for batch in batches(test)])
    ours = {"fit": fit, "score": time.perf_counter() - clock}
    theirs, their_maps = _theirs(interpreter, method.backbone.network.state_dict(), train, test)
    total, other = (sum(one[part] for part in ("fit", "score")) for one in (ours, theirs))
    inner = slice(BORDER, SIDE - BORDER)
    alike = np.corrcoef(*(one[:, 0, inner, inner].ravel() for one in (maps.numpy(), their_maps)))[0, 1]
    return [
        {"name": "PatchCore, fit and scores", "value": round(total, 2), "unit": "s", "baseline": round(other, 2),
         "ratio": round(total / other, 3),
         "note": f"{TRAIN} images to fit, {TEST} to score, {SIDE} px, EfficientNet-Lite0, a bank of "
                 f"{len(method.get_buffer('bank')):,} and {theirs['bank']:,} patches, "
                 f"{torch.get_num_threads()} CPU threads; fit {ours['fit']:.2f} s and {theirs['fit']:.2f} s, scores "
                 f"{ours['score']:.2f} s and {theirs['score']:.2f} s; inside, the maps' correlation is {alike:.4f}; "
                 "baseline: anomalib 2.7.0; ratio: share of its time (at most 0.5)"},
    ]  # fmt: skip


def _maps(method: PatchCore, image: torch.Tensor) -> torch.Tensor:
    maps = method.score(image).maps
    assert maps is not None
    return maps


def _theirs(
    interpreter: str, weights: dict[str, torch.Tensor], train: np.ndarray, test: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    with tempfile.TemporaryDirectory() as place:
        file, state = Path(place) / "images.npz", Path(place) / "weights.pt"
        np.savez(file, train=train, test=test)
        torch.save(weights, state)
        line = [interpreter, "-c", THEIRS, str(file), str(state), str(torch.get_num_threads()), str(SHARE)]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        found = subprocess.run(line, check=True, cwd=place, **quiet).stdout  # type: ignore[call-overload]  # noqa: S603
        return json.loads(found.splitlines()[-1]), np.load(f"{file}.maps.npy")

"""`python -m adbench.corruptions`: a contact sheet of the artificial defects that SSAE would train on.

Look at it before training: defects that cannot be seen teach nothing, and ones that cannot occur teach the wrong thing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adbench.errors import command
from adbench.files import whole
from adbench.transforms.corruption import Corruption, Draws
from adbench.types import UserError

GAP = 4  # pixels between pictures


def contact_sheet(clean: Tensor, corrupt: Corruption, draws: int, seed: int) -> NDArray[np.uint8]:
    """A row of clean images above, for each draw, their corrupted versions and the masks.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        corrupt: (images, Draws) -> (corrupted images, masks).
        draws: corruptions of each image.
        seed: of the corruptions.

    Returns:
        (rows, columns, 3) uint8, a white gap between the pictures.
    """
    rows = [clean]
    for draw in range(draws):
        generator = torch.Generator(device=clean.device).manual_seed(seed * 1_000_003 + draw)
        corrupted, mask = corrupt(clean, Draws(generator, len(clean)))
        rows += [corrupted, mask.expand_as(corrupted)]
    grid = torch.nn.functional.pad(torch.stack(rows), (0, GAP, 0, GAP), value=1.0)
    sheet = grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)[:-GAP, :-GAP]
    return (sheet * 255).round().byte().cpu().numpy()


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adbench.corruptions",
        description="Draw clean training images, their artificial defects and the masks.",
        epilog="Example: python -m adbench.corruptions data=mvtec/bottle data_root=DIR method.elastic.patch=[0.2,0.3]",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for adbench.run: data=..., method=...")
    parser.add_argument("--out", default="corruptions.png", type=Path, help="picture to write (corruptions.png)")
    parser.add_argument("--images", default=8, type=int, help="images side by side (8)")
    parser.add_argument("--draws", default=3, type=int, help="corruptions of each image (3)")
    options = parser.parse_intermixed_args(arguments)
    try:
        sheet = _sheet(options.overrides, options.images, options.draws)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from PIL import Image

    options.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(options.out) as path:
        Image.fromarray(sheet).save(path, format="PNG")
    print(f"clean images, then {options.draws} times corrupted images and masks -> {options.out}")
    return 0


def _sheet(overrides: list[str], images: int, draws: int) -> NDArray[np.uint8]:
    from hydra import compose, initialize_config_dir

    from adbench.experiment.build import build_datamodule, build_method
    from adbench.experiment.groups import conf_dir, unknown_choice

    if images < 1 or draws < 1:
        raise UserError(f"--images and --draws must be at least 1, got {images} and {draws}")
    message = unknown_choice(overrides)
    if message:
        raise UserError(message)
    if not any(override.startswith("method=") for override in overrides):
        overrides = ["method=ssae", *overrides]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    method = build_method(cfg)
    if not hasattr(method, "corrupt"):
        raise UserError(
            f"{cfg.method._target_} trains without artificial defects; leave method= out, or take method=ssae"
        )
    datamodule = build_datamodule(cfg, method.supervision)
    datamodule.setup()
    clean: list[Tensor] = []
    for batch in datamodule.training_batches("cpu"):
        clean.append(batch.image)
        if sum(map(len, clean)) >= images:
            break
    return contact_sheet(torch.cat(clean)[:images], method.corrupt, draws, cfg.seed)


if __name__ == "__main__":
    sys.exit(main())

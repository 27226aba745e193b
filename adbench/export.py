"""`python -m adbench.export`: a trained detector as one file, for machines without the run folder or this package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adbench.errors import UserError, command


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adbench.export",
        description="Write a trained detector as one file, with its model card (JSON) inside and beside it.",
        epilog="onnx and torch-export hold resizing and scoring in one graph: uint8 images (N, 3, H, W) of any size "
        "and count in, score (N,) and map (N, 1, h, w) out. safetensors holds the weights and the configuration, to be "
        "released for adbench itself (adbench.load, predict --model).",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("--format", choices=("onnx", "torch-export", "safetensors"), default="onnx", help="(onnx)")
    parser.add_argument("--out", help="file to write (RUN/exports/<method>_<data>.<suffix>)")
    parser.add_argument("--input-size", metavar="HxW",
                        help="fix the size of the images, e.g. 900x900, for runtimes that need it")  # fmt: skip
    parser.add_argument("--trust", action="append", default=[], metavar="NAME",
                        help="a package whose classes may be built from the run folder")  # fmt: skip
    options = parser.parse_args(arguments)
    input_size = _size(options.input_size)
    from adbench.detection.graph import export  # imports torch: --help answers at once

    path, card = export(options.run, options.format, options.out, input_size, options.trust)
    parity = "" if card["parity"] is None else f", scores equal the method's to {card['parity']:.1g} relative"
    print(f"{card['method']} of {card['data']}, {path.stat().st_size / 2**20:.1f} MiB{parity} -> {path}")
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"--input-size is HxW, e.g. 900x900, got {text}")
    return int(sides[0]), int(sides[1])


if __name__ == "__main__":
    sys.exit(main())

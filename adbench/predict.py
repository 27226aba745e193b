"""`python -m adbench.predict`: score a user's own images with a finished run or an exported graph."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from pathlib import Path

from adbench.errors import UserError, command
from adbench.imports import import_quickly


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a mistake, 2 if some files could not be read."""
    options = _parser().parse_intermixed_args(arguments)
    with contextlib.suppress(AttributeError):  # a name that the terminal cannot show must not cost a score
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        return _predict(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adbench.predict",
        description="Score images with a trained detector: scores.csv, anomaly maps and overlays.",
        epilog="Exit code: 0; 1 a mistake, the message says which; 2 some files could not be read (listed at the end "
        "and in unreadable.csv) or some maps not written (listed at the end), all else is done. With --model FILE "
        "the first argument is an image already.",
    )
    parser.add_argument("inputs", nargs="+", metavar="RUN|IMAGE|FOLDER",
                        help="a run folder, then images or folders (searched with their subfolders); for a run on "
                             "tables .csv or .npy files of feature rows, or X of .npz and .mat files")  # fmt: skip
    parser.add_argument("--model", type=Path, help="a .onnx or .safetensors file instead of a run folder")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; an earlier prediction in it is replaced"
    )
    parser.add_argument("--false-alarm-rate", type=float, metavar="RATE",
                        help="share of normal images that may be called anomalous (as in the run: 0.05)")  # fmt: skip
    parser.add_argument("--maps", choices=("png", "npy", "none"), default="png",
                        help="anomaly maps as 16-bit PNG with their scale inside (png), as float32 .npy, or neither "
                             "maps nor overlays")  # fmt: skip
    parser.add_argument("--max-pixels", type=int, metavar="N",
                        help="refuse larger images (as in the run: 200 million)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, help="images scored together (32)")
    parser.add_argument("--device", default="cpu", help="cpu, gpu, cuda:1, ... (cpu)")
    parser.add_argument("--trust", action="append", default=[], metavar="NAME",
                        help="a package whose classes may be built from the run folder")  # fmt: skip
    return parser


def _predict(options: argparse.Namespace) -> int:
    model, inputs = (options.model, options.inputs) if options.model else (Path(options.inputs[0]), options.inputs[1:])
    if not inputs:
        raise UserError("give the images after the run folder: python -m adbench.predict RUN IMAGE_OR_FOLDER --out DIR")
    import_quickly("torch")  # here, so that --help answers at once
    from adbench.detection.prediction import Options, predict

    choices = Options(options.out, options.false_alarm_rate, options.maps, options.batch_size, options.max_pixels)
    return predict(model, [Path(entry).expanduser() for entry in inputs], choices, options.device, options.trust)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m adbench.serve`: a trained detector behind HTTP, with a page where one drops an image."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from adbench.errors import UserError, command


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        _serve(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adbench.serve",
        description="Serve a trained detector over HTTP: POST /score scores images, / is a page where one drops them.",
        epilog="GET /health says whether the server is ready, /docs and /openapi.json describe the interface. SIGTERM "
        "and Ctrl-C end the server once the requests in flight are answered; the exit code is 0 then. There is no "
        "password and no encryption: put a proxy with both in front before other machines may connect (--host).",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run folder, or a .onnx or .safetensors file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=_number(0, 65535), default=8000, help="(8000); 0 takes a free one")
    parser.add_argument("--false-alarm-rate", type=float, metavar="RATE",
                        help="share of normal images that may be called anomalous (as in the run: 0.05)")  # fmt: skip
    parser.add_argument("--max-batch", type=_number(1), default=16, metavar="N", help="images scored together (16)")
    parser.add_argument("--queue", type=_number(1), default=128, metavar="N",
                        help="images received, waiting and scored at once; more get 503 (128)")  # fmt: skip
    parser.add_argument("--max-bytes", type=_number(1), default=32 * 2**20, metavar="N",
                        help="of a request (33554432); larger ones get 413")  # fmt: skip
    parser.add_argument("--max-images", type=_number(1), default=16, metavar="N", help="in a request (16)")
    parser.add_argument("--max-pixels", type=_number(1), default=50_000_000, metavar="N",
                        help="of an image (50 million, or the run's own limit if that is lower)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, gpu, cuda:1, ... (cpu)")
    parser.add_argument("--trust", action="append", default=[], metavar="NAME",
                        help="a package whose classes may be built from the run folder")  # fmt: skip
    return parser


def _number(least: int, most: int | None = None):  # type: ignore[no-untyped-def]
    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} is not at least {least}" + (f" and at most {most}" * bool(most)))
        return value

    number.__name__ = "whole number"
    return number


def _serve(options: argparse.Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f'the server needs {error.name}: pip install "adbench-vision[serve]"') from None
    from adbench.serving.server import create_service, serve, server_socket
    from adbench.serving.uploads import Limits

    with server_socket(options.host, options.port) as listener:
        service = create_service(
            options.model, device=options.device, trust=options.trust, false_alarm_rate=options.false_alarm_rate,
            max_batch=options.max_batch, places=options.queue, max_pixels=options.max_pixels,
            limits=Limits(options.max_bytes, options.max_images),
        )  # fmt: skip
        serve(service, listener)


if __name__ == "__main__":
    sys.exit(main())

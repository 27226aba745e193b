"""The server's process: model, socket, signals."""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import uvicorn

from adbench.detection.detector import Detector, load
from adbench.serving.app import Service, create_app
from adbench.serving.uploads import Limits
from adbench.serving.worker import Worker
from adbench.types import UserError

PATIENCE = 60  # seconds for which requests in flight are waited for when the server is to end


def create_service(
    model: Path,
    *,
    device: str = "cpu",
    trust: Sequence[str] = (),
    false_alarm_rate: float | None = None,
    max_batch: int = 16,
    places: int = 128,
    limits: Limits | None = None,
    max_pixels: int | None = None,
) -> Service:
    """A detector that has scored one image, and its worker, which is running.

    Args:
        model: a run folder, or a .onnx or .safetensors file.
        device: cpu, cuda, ...
        trust: packages whose classes may be built from the run folder.
        false_alarm_rate: in (0, 1); None: as in the run.
        max_batch: images scored together at most.
        places: images that are received, wait and are scored at once.
        limits: of a request; None takes the defaults.
        max_pixels: larger images are refused; None takes the run's limit.

    Raises:
        UserError: there is no detector of images at `model`, or a number is out of range.
    """
    detector = load(model, device, trust)
    if detector.tabular:
        raise UserError(
            f"{model} takes rows of a table, and the server images; python -m adbench.predict scores tables"
        )
    threshold = detector.threshold(false_alarm_rate)
    limits = limits or Limits()
    limits = limits._replace(max_images=min(limits.max_images, places))
    worker = Worker(detector, max_batch, places, max_pixels=max_pixels)
    worker.start()
    return Service(detector, worker, threshold, limits, maps=_first_score(detector))


def _first_score(detector: Detector) -> bool:
    """Score a grey image, so that a model that cannot score fails now; returns whether there are maps."""
    height, width = detector.card.get("input_size") or detector.card["input"]["size"]
    return detector.score(np.full((height, width, 3), 127, np.uint8)).maps is not None


class Server(uvicorn.Server):
    """Ends without an error when it is asked to; Ctrl-C a second time does not wait for requests in flight."""

    should_exit: bool

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def server_socket(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port") from error
    listener.setblocking(False)
    return listener


def serve(service: Service, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; requests in flight are answered before it returns."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.simplefilter("ignore")  # what is odd about an uploaded file is no news to the server's owner
    config = uvicorn.Config(
        create_app(service), log_config=None, access_log=False, timeout_graceful_shutdown=PATIENCE, server_header=False
    )
    listener.listen(1024)
    print(f"{service.detector} -> {url(listener)} (Ctrl-C ends it)", flush=True)
    Server(config).run(sockets=[listener])


def url(listener: socket.socket) -> str:
    """The address of a bound socket, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

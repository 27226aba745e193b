"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """The signal that asked the run to stop, and the callback that should save and stop.

    SIGTERM, which schedulers send before the time limit, and Ctrl-C become 'save a checkpoint and stop'. A second
    signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.callback: Any = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """What a shell reports of a process that this signal ended."""
        return 128 + (self.signal or signal.SIGINT)

    def handle(self, signum: int, frame: Any) -> None:
        """Note the signal, and ask the training to stop.

        Raises:
            SystemExit: it is the second signal, or nothing is being trained.
        """
        repeated, self.signal = bool(self), signum
        if repeated or self.callback is None:
            raise SystemExit(self.code)  # not training: what is written is whole, the rest is done again
        self.callback.stop_requested = True

    def listen(self) -> dict[int, Any]:
        """Become the handler of both signals; returns the handlers before."""
        return {signum: signal.signal(signum, self.handle) for signum in (signal.SIGTERM, signal.SIGINT)}


class IgnoredRequest(StopRequest):
    """Of a rank other than 0, where signals do nothing: rank 0 decides for all."""

    def handle(self, signum: int, frame: Any) -> None: ...


def signal_callback(request: StopRequest) -> Any:
    """Makes the request the handler again once a trainer has begun.

    Lightning's trainers become the handlers. Under several ranks they talk to the others from inside the handler, while
    the others wait for something else.
    """
    from pytorch_lightning.callbacks import LambdaCallback

    def listen(*_: Any) -> None:
        request.listen()

    return LambdaCallback(on_train_start=listen, on_test_start=listen)


@contextmanager
def signals_as_request() -> Iterator[StopRequest]:
    """While open, SIGTERM and Ctrl-C become a request; outside the main thread signals stay as they are."""
    request = StopRequest()
    try:
        earlier = request.listen()
    except ValueError:  # not the main thread: the owner of the process decides about its signals
        request.listen = dict  # type: ignore[method-assign]
        earlier = {}
    try:
        yield request
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)

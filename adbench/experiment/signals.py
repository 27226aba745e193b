"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """The signal that asked the run to stop, and the callback that should save and stop.

    SIGTERM, which schedulers send before the time limit, and Ctrl-C become 'save a checkpoint and stop'. Whoever asks a
    second time is not made to wait.
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
        again, self.signal = bool(self), signum
        if again or self.callback is None:
            raise SystemExit(self.code)  # not training: what is written is whole, the rest is done again
        self.callback.stop_requested = True

    def listen(self) -> dict[int, Any]:
        """Hear the signals; returns who did before. Lightning's trainers take them over, and under several ranks talk
        to the others from inside the handler, where these do not listen: said again once they have begun."""
        return {signum: signal.signal(signum, self.handle) for signum in (signal.SIGTERM, signal.SIGINT)}


@contextmanager
def signals_as_request() -> Iterator[StopRequest]:
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

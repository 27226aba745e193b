"""Servers in this process and in one of their own, and the images that they are sent."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from conftest import striped
from PIL import Image

RATE = 0.4
PCA = ("method=pca", "data=mvtec/bottle", "data.image_size=32")


def png(pixels) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


def pictures(number: int) -> list[bytes]:
    """PNG files of different sizes and contents, every third with a bright square."""
    rng = np.random.default_rng(5)
    files = []
    for k in range(number):
        image = striped(rng, 40 + k % 7)
        if k % 3 == 0:
            image[5:14, 8:20] = 250
        files.append(png(image))
    return files


@contextlib.contextmanager
def running(service):
    """The address of a server in this process, on a free port."""
    from uvicorn import Config

    from adbench.serving.app import create_app
    from adbench.serving.server import Server, server_socket, url

    listener = server_socket("127.0.0.1", 0)
    listener.listen(128)
    server = Server(Config(create_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield url(listener)
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


# The worker of this process waits while the file HOLD is there, and notes how many images each batch has.
HELD = """
import sys, time
from pathlib import Path
from adbench.detection.detector import MethodEngine
hold, sizes = Path(sys.argv[1]), Path(sys.argv[2])
original = MethodEngine.score
def score(self, rows):
    while hold.exists():
        time.sleep(0.01)
    with sizes.open("a") as file:
        file.write(f"{len(rows)}\\n")
    return original(self, rows)
MethodEngine.score = score
from adbench.serve import main
sys.exit(main(sys.argv[3:]))
"""


class Process:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.hold, self.sizes = folder / "hold", folder / "sizes"
        self.outcome: tuple[int, str] | None = None
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
        self.child = subprocess.Popen(
            [sys.executable, "-c", HELD, str(self.hold), str(self.sizes), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.greeting = self.child.stdout.readline()
        self.address = next((word for word in self.greeting.split() if word.startswith("http://")), "")
        assert self.address, self.child.communicate()

    def end(self) -> tuple[int, str]:
        """Exit code and standard error."""
        if self.outcome is None:
            self.hold.unlink(missing_ok=True)
            if self.child.poll() is None:
                self.child.terminate()
            _, error = self.child.communicate(timeout=60)
            self.outcome = (self.child.returncode, error)
        return self.outcome

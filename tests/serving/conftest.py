"""A small detector, and servers of it."""

from __future__ import annotations

import httpx
import pytest
from servers import PCA, RATE, Process, running

import adbench


@pytest.fixture(scope="session")
def trained(_finished):
    """The folder of a finished run, which no test may change."""
    return _finished(*PCA)


@pytest.fixture(scope="session")
def detector(trained):
    return adbench.load(trained)


@pytest.fixture(scope="session")
def service(trained):
    from adbench.serving.server import create_service
    from adbench.serving.uploads import Limits

    return create_service(trained, false_alarm_rate=RATE, max_pixels=10**6,
                          limits=Limits(max_bytes=300_000, max_images=4))  # fmt: skip


@pytest.fixture(scope="session")
def address(service):
    with running(service) as found:
        yield found


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=20) as made:
        yield made


@pytest.fixture(scope="session")
def processes():
    started: list[Process] = []
    yield started
    for one in started:
        one.end()


@pytest.fixture
def process(processes, trained, tmp_path_factory):
    """The server's process of the test before, if it is still there, else a new one."""
    if not processes or processes[-1].child.poll() is not None:
        folder = tmp_path_factory.mktemp("serve")
        processes.append(Process(folder, str(trained), "--port", "0", "--false-alarm-rate", str(RATE)))
    return processes[-1]

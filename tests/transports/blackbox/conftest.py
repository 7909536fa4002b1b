"""The services of the black-box suite: `tidegate serve` on each server, started once, as users start it."""

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

SERVERS = ("aiohttp", "uvicorn", "granian", "aiohttp-2")
"""What reads the HTTP, and in how many processes if not in the service's own."""

HANDLERS = Path(__file__).with_name("handlers.py")

Launched = tuple["subprocess.Popen[str]", str]
Launch = Callable[..., AbstractContextManager[Launched]]


def _started(process: "subprocess.Popen[str]", errors: IO[str]) -> str:
    assert process.stdout is not None
    printed = ""
    # The line to paste comes last, when the door is open.
    while "\ncurl " not in printed:
        line = process.stdout.readline()
        errors.seek(0)
        assert line, errors.read()
        printed += line
    found = re.search(r"https?://[^\s/]+:\d+", printed)
    assert found
    return found[0]


@pytest.fixture(scope="session")
def launch(tidegate: str, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """`with launch(server, *flags, NAME="value") as (process, url):` runs a service of the suite's handlers."""

    @contextmanager
    def launch(server: str, *flags: str, **environment: str) -> Iterator[Launched]:
        server, _, processes = server.partition("-")
        command = [tidegate, "serve", str(HANDLERS), "--server", server, "--drain-delay", "0"]
        command += ["--http-processes", processes] if processes else []
        command += [] if "--http" in flags else ["--http", "127.0.0.1:0"]
        with (tmp_path_factory.mktemp(server) / "errors").open("w+") as errors:
            process = subprocess.Popen(
                [*command, *flags], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            # Whatever goes wrong, no test waits for ever.
            watchdog = threading.Timer(300, process.kill)
            watchdog.start()
            try:
                yield process, _started(process, errors)
            finally:
                process.kill()
                process.communicate()
                watchdog.cancel()

    return launch


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Which server reads the HTTP."""
    return str(request.param)


@pytest.fixture(scope="session")
def service(server: str, launch: Launch) -> Iterator[str]:
    """The address of a running service, the same one for the whole session."""
    with launch(server, "--max-body", "10000000", "--cors-origin", "https://page.example") as (_, url):
        yield url


@pytest.fixture
def client(service: str) -> Iterator[httpx.Client]:
    """A client of `service`."""
    with httpx.Client(base_url=service, timeout=30) as client:
        yield client

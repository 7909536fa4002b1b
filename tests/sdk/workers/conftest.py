import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest

from tidegate.target import find_handlers

FILE = Path(__file__).with_name("worker_handlers.py")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One loop for a module's tests, which share its workers."""
    return "asyncio"


@pytest.fixture(scope="session")
def handlers() -> Any:
    """The module `worker_handlers`, as a service has it that was started with this file."""
    find_handlers(str(FILE))
    return sys.modules["worker_handlers"]


class Meeting:
    """Where handlers, in whichever process, say that they are there and wait until the test lets them go."""

    def __init__(self) -> None:
        self._arrivals: asyncio.Queue[tuple[str, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._met, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        word = (await reader.readline()).decode().strip()
        self._writers.append(writer)
        self._arrivals.put_nowait((word, writer))

    async def arrival(self) -> tuple[str, Callable[[], None]]:
        """What the next to come said, and how to let it go."""
        async with asyncio.timeout(20):
            word, writer = await self._arrivals.get()
        return word, lambda: writer.write(b"go")


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.002)


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Waits for what no event tells of, such as the state of another process."""
    return _until


@pytest.fixture
async def meeting() -> AsyncIterator[Meeting]:
    async with Meeting() as meeting:
        yield meeting

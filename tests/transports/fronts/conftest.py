"""An app with front ends: in this process, where everything but the processes is real, or in their own."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from tidegate import App, serve
from tidegate.target import find_handlers
from tidegate_transports.fronts import FrontsTransport
from tidegate_transports.ipc_channel import Channel
from tidegate_transports.ipc_front import RemoteApp
from tidegate_transports.ipc_hub import HubLink
from tidegate_transports.ipc_memory import Memory
from tidegate_transports.ipc_messages import Message


def both_sides() -> tuple[Memory, Memory]:
    """Memory as the two processes have it that share it."""
    ours = Memory.create()
    assert ours is not None
    theirs = Memory.open([os.dup(descriptor) for descriptor in ours.descriptors])
    assert theirs is not None
    return ours, theirs


@pytest.fixture(name="both_sides")
def both_sides_fixture() -> Any:
    """`ours, theirs = both_sides()`: memory as the two processes have it that share it."""
    return both_sides


class Front:
    """A front end of an app, and the hub's end of its line."""

    def __init__(self, app: App, tasks: asyncio.TaskGroup) -> None:
        self.others: list[Message] = []
        self.link = HubLink(app, tasks, self.others.append)
        self.channel = Channel(lambda message: self.app.received(message), self._end)
        self._closed = asyncio.Event()
        windows = {name: app.window(name) for name in app.handlers}
        self.app = RemoteApp(app.handlers, self.channel, drain_timeout=app.drain_timeout, windows=windows)

    async def open(self, *, shares: bool) -> None:
        memories = both_sides() if shares else (None, None)
        for channel, sock, memory in zip((self.link.channel, self.channel), socket.socketpair(), memories, strict=True):
            await channel.open(sock, memory)

    def _end(self) -> None:
        self.app.closed()
        self._closed.set()

    async def die(self) -> None:
        """As a process that is killed: its line ends."""
        self.channel.abort()
        await self.link.gone.wait()
        await self._closed.wait()


Joined = Callable[..., AbstractAsyncContextManager[tuple[App, list[Front]]]]


@pytest.fixture
def joined() -> Joined:
    """`async with joined(handler, …, fronts=2) as (app, (one, other)):` serves through front ends of this process."""

    @asynccontextmanager
    async def joined(
        *handlers: Any, fronts: int = 1, shares: bool = True, worker: Any = "thread"
    ) -> AsyncIterator[tuple[App, list[Front]]]:
        with anyio.fail_after(30):
            async with App(*handlers, worker=worker, drain_timeout=1) as app, asyncio.TaskGroup() as tasks:
                made = [Front(app, tasks) for _ in range(fronts)]
                for front in made:
                    await front.open(shares=shares)
                try:
                    yield app, made
                finally:
                    for front in made:
                        await front.die()

    return joined


class Held:
    """A handler that notes what it runs and finishes nothing before it is let go."""

    def __init__(self, **options: Any) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.ran: list[Any] = []

        @serve(**options)
        def held(x: Any) -> Any:
            self.ran.append(x)
            self.begun.set()
            assert self.go.wait(20)
            return x

        self.handler = held

    async def has_begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, 20)


@pytest.fixture
def held() -> type[Held]:
    return Held


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is looked at has no event to wait for
        await asyncio.sleep(0.001)


@pytest.fixture(name="until")
def until_fixture() -> Any:
    """`await until(condition)`, for what has no event to wait for."""
    return until


# ---------------------------------------------------------------------- in processes of their own

FILE = Path(__file__).with_name("front_handlers.py")


@pytest.fixture(scope="session")
def handlers() -> Any:
    """The module `front_handlers`, as a service has it that was started with this file."""
    find_handlers(str(FILE))
    return sys.modules["front_handlers"]


class Client:
    """One connection, and what is said on it."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=30)

    def ask(self, path: str, body: str) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    async def answer(self) -> str:
        """The body of the next answer; "" if the connection ended instead."""
        try:
            return await asyncio.to_thread(self._answer)
        except ConnectionError:
            return ""

    def _answer(self) -> str:
        with self.socket.makefile("rb") as file:
            length = 0
            while (line := file.readline().lower()) not in (b"\r\n", b""):
                length = int(line[15:]) if line.startswith(b"content-length:") else length
            return file.read(length).decode()


class Served:
    """An app that is served by front ends in processes of their own."""

    def __init__(self, app: App, door: FrontsTransport, clients: list[Client]) -> None:
        self.app = app
        self.door = door
        self._clients = clients

    @property
    def pids(self) -> list[int]:
        return [place.pid for place in self.door.places]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.door.url.removeprefix("http://").split(":")
        return host, int(port)

    def http(self) -> httpx.AsyncClient:
        """A client whose first request opens a connection, to one or the other."""
        return httpx.AsyncClient(base_url=self.door.url, timeout=30)

    async def replaced(self, victim: int) -> None:
        await until(lambda: victim not in self.pids and 0 not in self.pids)
        # A process is there before its door is.
        await self.connected(1)

    async def connected(self, each: int) -> dict[int, list[Client]]:
        """So many connections to each front end; the system chooses where one goes, some are closed again."""
        found: dict[int, list[Client]] = {pid: [] for pid in self.pids}
        while any(len(clients) < each for clients in found.values()):
            client = Client(*self.address)
            self._clients.append(client)
            client.ask("/where", "{}")
            answer = await client.answer()
            if answer.isdecimal() and len(found[int(answer)]) < each:
                found[int(answer)].append(client)
            else:
                client.socket.close()
                # Whoever is just starting is not to be kept from it.
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
def served(handlers: Any) -> Iterator[Any]:
    """`async with served(handler, …, processes=2) as served:` serves through processes; `options` are the door's."""
    clients: list[Client] = []
    where = handlers.where

    @asynccontextmanager
    async def served(
        *handlers: Any, processes: int = 2, drain_timeout: float = 5, **options: Any
    ) -> AsyncIterator[Served]:
        with anyio.fail_after(60):
            door = FrontsTransport("127.0.0.1:0", processes, **options)
            async with App(where, *handlers, http=door, drain_timeout=drain_timeout) as app:
                yield Served(app, door, clients)

    yield served
    for client in clients:
        client.socket.close()


class Gate:
    """Where the handler `held` says that it runs, and waits."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.server.settimeout(30)
        self._running: list[socket.socket] = []

    def body(self, number: int) -> str:
        return f'{{"port":{self.server.getsockname()[1]},"number":{number}}}'

    async def arrival(self) -> tuple[int, Callable[[], None]]:
        """The number of the next that runs, and how to let it go."""
        running, _ = await asyncio.to_thread(self.server.accept)
        self._running.append(running)
        running.settimeout(30)
        with running.makefile("rb") as file:
            return int(await asyncio.to_thread(file.readline)), running.close

    def close(self) -> None:
        for one in (self.server, *self._running):
            one.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()

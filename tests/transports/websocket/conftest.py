"""The three shells as doors of an app, and two clients to knock at them."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import anyio.to_thread
import msgspec
import pytest
import uvicorn
import websockets
from aiohttp import web

from tidegate import App, serve
from tidegate_transports.http import HTTPTransport
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.session import Limits
from tidegate_transports.websocket import WebSocketTransport
from tidegate_transports.websocket_aiohttp import is_upgrade, upgrade
from tidegate_transports.websocket_asgi import websocket
from tidegate_transports.websocket_handshake import WebSockets


class AiohttpDoor:
    """The upgrade on an aiohttp server."""

    def __init__(self, options: HTTPOptions | None, limits: Limits | None) -> None:
        self._options, self._limits = options, limits
        self.url = ""

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        sockets = WebSockets(app, self._options, self._limits)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await upgrade(request, sockets) if is_upgrade(request) else web.Response(status=404)

        runner = web.ServerRunner(web.Server(handle, handler_cancellation=True))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await sockets.drain()
            await runner.cleanup()


class UvicornDoor:
    """The ASGI scope under uvicorn."""

    def __init__(self, options: HTTPOptions | None, limits: Limits | None) -> None:
        self._options, self._limits = options, limits
        self.url = ""

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        sockets = WebSockets(app, self._options, self._limits)

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await websocket(sockets, scope, receive, send)

        config = uvicorn.Config(
            asgi,
            port=0,
            lifespan="off",
            log_config=None,
            log_level="critical",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.001)
        self.url = f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            await sockets.drain()
            server.should_exit = True
            await running


class HTTPDoor:
    """The upgrade at the HTTP door, beside everything else that is there."""

    def __init__(self, options: HTTPOptions | None, limits: Limits | None) -> None:
        if limits is not None:
            pytest.skip("the HTTP door has the usual limits")
        self._door = HTTPTransport("127.0.0.1:0", options or HTTPOptions())
        self.url = ""

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        async with self._door.serve(app):
            self.url = self._door.url.replace("http", "ws", 1)
            yield


SHELLS: dict[str, Callable[[HTTPOptions | None, Limits | None], Any]] = {
    "own-port": lambda options, limits: WebSocketTransport("127.0.0.1:0", options, limits),
    "aiohttp": AiohttpDoor,
    "asgi": UvicornDoor,
    "http": HTTPDoor,
}


class Talk:
    """A client's end of one connection, whichever library it is of."""

    def __init__(
        self,
        send: Callable[[str | bytes], Awaitable[None]],
        receive: Callable[[], Awaitable[str | bytes]],
        close: Callable[[], Awaitable[Any]],
        code: Callable[[], int | None],
        raw: Any,
    ) -> None:
        self.send_raw, self.receive_raw, self.close, self.raw = send, receive, close, raw
        self._code = code
        self.kind: Any = None

    @property
    def close_code(self) -> int | None:
        return self._code()

    async def send(self, *, binary: bool = False, **fields: Any) -> None:
        await self.send_raw(msgspec.msgpack.encode(fields) if binary else json.dumps(fields))

    async def receive(self) -> dict[str, Any]:
        """The next message's fields; in what kind of message they came is told by `kind`."""
        message = await self.receive_raw()
        self.kind = type(message)
        fields: dict[str, Any] = json.loads(message) if isinstance(message, str) else msgspec.msgpack.decode(message)
        return fields

    async def call(self, *, binary: bool = False, **fields: Any) -> dict[str, Any]:
        await self.send(binary=binary, **fields)
        return await self.receive()

    async def closed(self) -> int | None:
        """Read to the end, and the code that it closed with."""
        try:
            while True:
                await self.receive_raw()
        except ConnectionError:
            return self.close_code


@asynccontextmanager
async def by_websockets(url: str, **options: Any) -> AsyncIterator[Talk]:
    async with websockets.connect(url, compression=None, max_size=None, **options) as connection:

        async def receive() -> str | bytes:
            try:
                return await connection.recv()
            except websockets.ConnectionClosed as error:
                raise ConnectionError from error

        yield Talk(connection.send, receive, connection.close, lambda: connection.close_code, connection)


@asynccontextmanager
async def by_aiohttp(url: str, **options: Any) -> AsyncIterator[Talk]:
    if "additional_headers" in options:
        options["headers"] = options.pop("additional_headers")
    if "subprotocols" in options:
        options["protocols"] = options.pop("subprotocols")
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0, **options) as connection:

        async def receive() -> str | bytes:
            message = await connection.receive()
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                raise ConnectionError
            data: str | bytes = message.data
            return data

        async def send(message: str | bytes) -> None:
            await (connection.send_str(message) if isinstance(message, str) else connection.send_bytes(message))

        yield Talk(send, receive, connection.close, lambda: connection.close_code, connection)


class Held:
    """A handler that finishes nothing before it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

        @serve(worker="thread", max_batch_size=64, batch_timeout=0)
        def held(x: list[int]) -> list[int]:
            for _ in x:
                self.begun.release()
            assert self.go.wait(20)
            return x

        self.handler = held

    async def has_begun(self) -> None:
        assert await anyio.to_thread.run_sync(lambda: self.begun.acquire(timeout=20))


CLIENTS = {"websockets": by_websockets, "aiohttp": by_aiohttp}

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]
Knock = Callable[..., AbstractAsyncContextManager[Talk]]


@pytest.fixture
def anyio_backend() -> str:
    """Workers and doors are asyncio's."""
    return "asyncio"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """A test that asks for it runs at each of the shells."""
    name: str = request.param
    return name


@asynccontextmanager
async def open_door(
    *handlers: Any,
    shell: str = "own-port",
    options: HTTPOptions | None = None,
    limits: Limits | None = None,
    patience: float = 60.0,
    **of_app: Any,
) -> AsyncIterator[tuple[App, str]]:
    transport = SHELLS[shell](options, limits)
    async with asyncio.timeout(patience), App(*handlers, door=transport, **of_app) as app:
        yield app, transport.url


@pytest.fixture
def door() -> Door:
    """`async with door(*handlers, shell=…, options=…, limits=…) as (app, url):`, and all is over within 60 s."""
    return open_door


@pytest.fixture(scope="module")
def module_door() -> Door:
    """The same for a fixture that lives longer."""
    return open_door


@pytest.fixture
def knock() -> Knock:
    """`async with knock(url, client="websockets", …) as talk:`."""

    def knock(url: str, client: str = "websockets", **options: Any) -> AbstractAsyncContextManager[Talk]:
        return CLIENTS[client](url, **options)

    return knock


@pytest.fixture
def held() -> Held:
    """A handler that is held, to be let go by the test."""
    return Held()

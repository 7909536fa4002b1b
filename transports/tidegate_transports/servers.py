"""The HTTP door on uvicorn or granian, in this process: the same batcher, another server in front of it."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tidegate import App
from tidegate_transports.address import parse_address
from tidegate_transports.asgi import ASGI
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.listener import GRACE
from tidegate_transports.listening import BACKLOG, bind, probe, tls_context, url_of

__all__ = ["GranianTransport", "UvicornTransport"]

LAST_WORDS = 1.0
"""Seconds that a server gets to end after its requests have."""


MAX_HEAD = 64 * 1024
"""Bytes of a head under uvicorn, the same that its slower parser takes."""


class _ServerTransport:
    """What the servers share: an address, a socket of our own, the exchange behind ASGI, one deadline."""

    def __init__(self, address: str, options: HTTPOptions | None = None, *, shared: bool = False, **given: Any) -> None:
        self._address = parse_address(address)
        self._shared = shared
        self.options = options or HTTPOptions.from_environment(os.environ, **given)
        self._scheme = "https" if self.options.tls_certificate else "http"
        self.url = f"{self._scheme}://{self._address}"

    def check(self) -> None:
        """Raise OSError if the address is taken."""
        probe(self._address)

    def _bind(self) -> list[socket.socket]:
        sockets = bind(self._address, shared=self._shared)
        self.url = url_of(sockets, self._address, self._scheme)
        return sockets

    def _deadline(self, app: App) -> float:
        # Infinite when another door could not be opened, and this one is closed again.
        return min(app.drain_ends_at, asyncio.get_running_loop().time() + app.drain_timeout)


class UvicornTransport(_ServerTransport):
    """Serves an app through uvicorn at `address`, `HOST:PORT`; port 0 takes a free one, which `url` then names."""

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Listen until left; raises OSError when the address cannot be taken, ValueError where uvicorn is missing."""
        try:
            import uvicorn
        except ImportError as error:
            raise ValueError("the server uvicorn is not installed: pip install tidegate[asgi]") from error
        tls = tls_context(self.options)
        asgi = ASGI(app, self.options)
        sockets = self._bind()
        server = _without_signals(uvicorn)(self._config(uvicorn, asgi, tls))
        running = asyncio.create_task(server.serve(sockets))
        try:
            while not server.started:
                if running.done():
                    await running
                    raise OSError("uvicorn ended before it listened")
                await asyncio.sleep(0.001)
            yield
        finally:
            deadline = self._deadline(app)
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            # uvicorn would close at once who has just connected; here they still get to ask.
            await asyncio.sleep(0)
            for listener in server.servers:
                listener.close()
            if server.server_state.connections:
                await asyncio.sleep(min(left, GRACE))
            server.config.timeout_graceful_shutdown = left
            server.should_exit = True
            await asgi.drain(deadline)
            await _ended(running, max(deadline, asyncio.get_running_loop().time() + LAST_WORDS))

    def _config(self, uvicorn: Any, asgi: ASGI, tls: ssl.SSLContext | None) -> Any:
        options = self.options
        return uvicorn.Config(
            asgi,
            lifespan="off",
            http=_protocol(),
            ws="websockets-sansio",
            ws_max_size=options.max_body,
            ws_per_message_deflate=False,
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=options.keepalive_timeout,
            limit_concurrency=options.max_connections,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )


def _without_signals(uvicorn: Any) -> Any:
    class Embedded(uvicorn.Server):  # type: ignore[misc]  # uvicorn is loaded when it is used
        """uvicorn's server where the signals are the app's."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Embedded


def _protocol() -> Any:
    """What reads HTTP for uvicorn: httptools where it is installed, else what uvicorn has."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "auto"

    class Bounded(HttpToolsProtocol):
        """uvicorn's connection on httptools, which by itself would read a head that never ends."""

        _head: object = None
        _size = 0

        def data_received(self, data: bytes) -> None:
            head = self._head
            super().data_received(data)
            # Only what came wholly inside of one head: a read may hold the end of a long body and the next one's start.
            self._size = self._size + len(data) if head is not None and head is self._head else 0
            if self._size > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response(f"the head is over {MAX_HEAD} bytes")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head = object()

        def on_headers_complete(self) -> None:
            self._head = None
            super().on_headers_complete()

    return Bounded


class GranianTransport(_ServerTransport):
    """Serves an app through granian at `address`, `HOST:PORT`; port 0 takes a free one, which `url` then names."""

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Listen until left; raises OSError when the address cannot be taken, ValueError where granian is missing."""
        server_class = _embedded_granian()
        tls_context(self.options)  # says what is wrong with the files
        asgi = ASGI(app, self.options)
        first, *others = self._bind()
        for one in others:  # granian listens on one socket, which it owns from here on
            one.close()
        server = server_class(first, asgi, self.options)
        running = asyncio.create_task(server.serve())
        try:
            yield
        finally:
            deadline = self._deadline(app)
            server.stop()
            await asgi.drain(deadline)
            await _ended(running, max(deadline, asyncio.get_running_loop().time() + LAST_WORDS))


def _embedded_granian() -> Any:
    try:
        from granian.constants import HTTPModes, Interfaces, SSLProtocols
        from granian.http import HTTP1Settings
        from granian.server.embed import Server

        holder: Any = importlib.import_module("granian.net").__dict__["SocketHolder"]
    except (ImportError, KeyError) as error:
        raise ValueError("the server granian is not installed, or too old: pip install tidegate[asgi]") from error

    class Embedded(Server):
        """granian's server in this process, on a socket that nobody else can share."""

        def __init__(self, listener: socket.socket, asgi: ASGI, options: HTTPOptions) -> None:
            self._listener = listener
            super().__init__(
                asgi,
                interface=Interfaces.ASGINL,
                websockets=True,
                backlog=BACKLOG,
                backpressure=options.max_connections,
                http=HTTPModes.auto,
                http1_settings=HTTP1Settings(header_read_timeout=round(options.header_timeout * 1000)),
                log_enabled=False,
                ssl_cert=Path(options.tls_certificate) if options.tls_certificate else None,
                ssl_key=Path(options.tls_key) if options.tls_key else None,
                ssl_protocol_min=SSLProtocols.tls12,
            )

        def _init_shared_socket(self) -> None:
            # granian's own would be open to others by SO_REUSEPORT, and keep to itself which port it took.
            self._shd: Any = holder(self._listener.detach(), False, BACKLOG)

    return Embedded


async def _ended(running: asyncio.Task[None], until: float) -> None:
    try:
        async with asyncio.timeout_at(until):
            await asyncio.shield(running)
    except TimeoutError:
        running.cancel()

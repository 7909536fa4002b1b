"""The HTTP door on aiohttp: it moves bytes between sockets and the exchange."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import HttpVersion, HttpVersion11, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from tidegate import App
from tidegate_transports.address import parse_address
from tidegate_transports.connection import Connection, Malformed
from tidegate_transports.exchange import Exchange
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.listener import Listener
from tidegate_transports.listening import BACKLOG, bind, probe, tls_context, url_of
from tidegate_transports.messages import Request, Response
from tidegate_transports.pages import PROBES
from tidegate_transports.websocket_aiohttp import upgrade
from tidegate_transports.websocket_handshake import WebSockets
from tidegate_transports.wire_format import send_parts, whole

__all__ = ["HTTPTransport"]


class HTTPTransport:
    """Serves an app at `address`, `HOST:PORT`; port 0 takes a free one, which `url` then names.

    options: those of the environment (`TIDEGATE_API_KEY`…) if not given; `given` are single ones that come before these.
    shared: with other processes of one service, on a port that is reserved for them.
    """

    def __init__(self, address: str, options: HTTPOptions | None = None, *, shared: bool = False, **given: Any) -> None:
        self._address = parse_address(address)
        self._shared = shared
        self.options = options or HTTPOptions.from_environment(os.environ, **given)
        self._scheme = "https" if self.options.tls_certificate else "http"
        self.url = f"{self._scheme}://{self._address}"

    def check(self) -> None:
        """Raise OSError if the address is taken."""
        probe(self._address)

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Listen until left; raises OSError when the address cannot be taken, ValueError for unusable TLS files."""
        loop = asyncio.get_running_loop()
        door = _Door(app, self.options)
        tls = tls_context(self.options)
        sockets = bind(self._address, shared=self._shared)
        self.url = url_of(sockets, self._address, self._scheme)
        listener = Listener(door.answer, door.upgrade, self.options)
        patience = self.options.header_timeout if tls else None
        servers = [
            # Named again, because asyncio listens once more, and 100 is its own idea.
            await loop.create_server(listener, sock=one, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=patience)
            for one in sockets
        ]
        try:
            yield
        finally:
            await asyncio.sleep(0)  # takes what the system has accepted already
            for server in servers:
                server.close()
            # Infinite when another door could not be opened, and this one is closed again.
            ends_at = min(app.drain_ends_at, loop.time() + app.drain_timeout)
            await asyncio.gather(door.web_sockets.drain(), listener.drain(ends_at))


class _Door:
    """Takes one request after another from the connections."""

    def __init__(self, app: App, options: HTTPOptions) -> None:
        self._app = app
        self._options = options
        self._exchange = Exchange(app, options)
        self.web_sockets = WebSockets(app, options)

    async def answer(self, connection: Connection, message: RawRequestMessage, content: StreamReader) -> bool:
        """Read a request's body, have it answered, write the answer; whether the connection is kept."""
        url, version = message.url, message.version
        # What came in one piece with its head is looked at in one go.
        body = content.read_nowait() if content.is_eof() else b""
        head = Request(message.method, url.path, message.headers, body, url.raw_query_string, connection.client)
        if connection.surplus and head.path not in PROBES:
            response = self._exchange.refuse(head, 503, "overloaded", "every connection is taken; try again later")
            response.headers["Retry-After"] = "1"
        else:
            response = await self._respond(connection, head, version, content)
        keep_alive = not (message.should_close or self._app.draining or connection.surplus)
        # A body that nobody read would be taken for the next request.
        keep_alive = keep_alive and content.is_eof()
        if response.parts is None:
            await connection.put(whole(message.method, version, response, keep_alive))
        else:
            # An older client knows the end by the connection's.
            keep_alive = keep_alive and version >= HttpVersion11
            await send_parts(connection.put, message.method, version, response, response.parts, keep_alive)
        return keep_alive

    async def upgrade(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve a connection that wants to become a WebSocket until it is closed."""
        return await upgrade(request, self.web_sockets)

    async def _respond(
        self, connection: Connection, head: Request, version: HttpVersion, content: StreamReader
    ) -> Response:
        if content.is_eof():
            return await self._exchange.respond(head)
        refusal = self._exchange.admit(head)
        if refusal is not None:
            return refusal
        # curl waits a second for this before every body over a megabyte.
        if version >= HttpVersion11 and head.headers.get("Expect", "").lower() == "100-continue":
            await connection.put(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.began = False
        try:
            body = await self._read(content)
        except _TooLarge:
            detail = f"the body is over {self._options.max_body} bytes"
            return self._exchange.refuse(head, 413, "body-too-large", detail)
        except TimeoutError:
            detail = f"the body did not come within {self._options.body_timeout:g} s"
            return self._exchange.refuse(head, 408, "request-timeout", detail)
        except Malformed:
            detail = "the body is not what Transfer-Encoding says"
            return self._exchange.refuse(head, 400, "malformed-body", detail)
        return await self._exchange.respond(head._replace(body=body))

    async def _read(self, content: StreamReader) -> bytes:
        parts: list[bytes] = []
        size = 0
        async with asyncio.timeout(self._options.body_timeout):
            while part := await content.readany():
                size += len(part)
                if size > self._options.max_body:
                    raise _TooLarge
                parts.append(part)
        return b"".join(parts)


class _TooLarge(Exception):
    """The body is over the limit."""

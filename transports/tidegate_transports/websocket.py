"""The WebSocket door on a port of its own, by the websockets library."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tidegate import App
from tidegate.wire import Message
from tidegate_transports.address import parse_address
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.listening import BACKLOG, bind, probe, tls_context, url_of
from tidegate_transports.problems import Refusal, problem, request_id_of
from tidegate_transports.pulse import Pulse
from tidegate_transports.session import Limits
from tidegate_transports.websocket_handshake import CLOSE_TIMEOUT, Admitted, WebSockets

__all__ = ["WebSocketTransport"]

log = logging.getLogger("tidegate.websocket")

# The library's own records would hold headers, and with them keys, at DEBUG.
_library_log = logging.getLogger("tidegate.websocket.library")
_library_log.setLevel(logging.ERROR)


class WebSocketTransport:
    """Serves an app at `address`, `HOST:PORT`; port 0 takes a free one, which `url` then names.

    options: keys, origins, limits and TLS, as for an HTTP door; those of the environment (`TIDEGATE_API_KEY`…) if not
    given, and `given` are single ones that come before these. limits: what one connection may take.

    Example:
        >>> WebSocketTransport("127.0.0.1:8001").url
        'ws://127.0.0.1:8001'
    """

    def __init__(
        self, address: str, options: HTTPOptions | None = None, limits: Limits | None = None, **given: Any
    ) -> None:
        self._address = parse_address(address)
        self.options = options or HTTPOptions.from_environment(os.environ, **given)
        self._limits = limits
        self._scheme = "wss" if self.options.tls_certificate else "ws"
        self.url = f"{self._scheme}://{self._address}"

    def check(self) -> None:
        """Raise OSError if the address is taken."""
        probe(self._address)

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Listen until left; raises OSError when the address cannot be taken, ValueError for unusable TLS files."""
        door = _Door(WebSockets(app, self.options, self._limits))
        tls = tls_context(self.options)
        sockets = bind(self._address)
        self.url = url_of(sockets, self._address, self._scheme)
        servers = [
            await serve(
                door.handle,
                sock=sock,
                backlog=BACKLOG,  # asyncio listens once more, and 100 is its own idea
                ssl=tls,
                process_request=door.admit,
                process_response=door.accept,
                create_connection=_Connection,
                max_size=self.options.max_body,
                # A message of a few bytes can inflate to the limit above, at the price of our memory and time.
                compression=None,
                open_timeout=self.options.header_timeout,
                close_timeout=CLOSE_TIMEOUT,
                # The session asks in its own time: not while nothing is read.
                ping_interval=None,
                server_header=None,
                logger=_library_log,
            )
            for sock in sockets
        ]
        try:
            yield
        finally:
            for server in servers:
                server.close(close_connections=False)
            await door.sockets.drain()
            for server in servers:
                await server.wait_closed()


class _Connection(ServerConnection):
    """The library's connection, with what the session wants to know of it."""

    admitted: Admitted
    pulse: Pulse | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio sees to it only where a socket names its protocol, and a token must not wait for the last one's ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.pulse is not None:
            self.pulse.heard(self.loop.time())
        super().data_received(data)


class _Wire:
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def receive(self) -> str | bytes | None:
        try:
            return await self._connection.recv()
        except ConnectionClosed:
            return None

    async def send(self, message: Message) -> None:
        try:
            await self._connection.send(message.data, text=message.is_text)
        except ConnectionClosed as error:
            raise ConnectionError("the WebSocket is closed") from error

    async def ping(self) -> None:
        try:
            await self._connection.ping()
        except ConnectionClosed as error:
            raise ConnectionError("the WebSocket is closed") from error

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code, reason)

    def abort(self) -> None:
        self._connection.transport.abort()


class _Door:
    """The library's callbacks."""

    def __init__(self, sockets: WebSockets) -> None:
        self.sockets = sockets

    def admit(self, connection: Any, request: Request) -> Response | None:
        headers = _lowered(request.headers)
        path = request.path.partition("?")[0]
        try:
            connection.admitted = self.sockets.admit(path, headers)
        except Refusal as refusal:
            return _refused(refusal, request_id_of(headers))
        return None

    def accept(self, connection: Any, request: Request, response: Response) -> None:
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return
        response.headers["X-Request-Id"] = connection.admitted.name
        if connection.admitted.subprotocol is not None:
            response.headers["Sec-WebSocket-Protocol"] = connection.admitted.subprotocol

    async def handle(self, connection: Any) -> None:
        connection.pulse = self.sockets.pulse()
        with suppress(ConnectionError):
            await self.sockets.serve(connection.admitted, _Wire(connection), connection.pulse)


def _lowered(headers: Headers) -> dict[str, str]:
    lowered: dict[str, str] = {}
    for name, value in headers.raw_items():
        key = name.lower()
        lowered[key] = f"{lowered[key]}, {value}" if key in lowered else value
    return lowered


def _refused(refusal: Refusal, request_id: str) -> Response:
    told = problem(refusal.status, refusal.detail, refusal.code, request_id, refusal.headers)
    headers = Headers(told.headers)
    headers["Content-Type"] = told.content_type
    headers["Content-Length"] = str(len(told.body))
    headers["Connection"] = "close"
    return Response(told.status, HTTPStatus(told.status).phrase, headers, told.body)

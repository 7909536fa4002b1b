"""WebSockets on the HTTP door's own port: the upgrade of an aiohttp request."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, hdrs, web
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict

from tidegate.wire import SUBPROTOCOL, Message
from tidegate_transports.messages import Response
from tidegate_transports.problems import Refusal, problem, request_id_of
from tidegate_transports.pulse import Pulse
from tidegate_transports.websocket_handshake import CLOSE_TIMEOUT, Admitted, WebSockets

__all__ = ["is_upgrade", "upgrade"]

# Without one aiohttp tells its version and Python's.
_SERVER = "tidegate"


def is_upgrade(request: web.BaseRequest | RawRequestMessage) -> bool:
    """Whether a request wants to become a WebSocket."""
    return hdrs.UPGRADE in request.headers and request.headers[hdrs.UPGRADE].lower().strip() == "websocket"


async def upgrade(request: web.BaseRequest, sockets: WebSockets) -> web.StreamResponse:
    """Answer a handshake; where it is accepted, serve the connection until it is closed."""
    try:
        if request.method != hdrs.METH_GET:
            raise Refusal(405, "method-not-allowed", "a WebSocket begins with GET", {"Allow": "GET"})
        admitted = sockets.admit(request.path, request.headers)
        opened = await _open(request, admitted, sockets.options.max_body)
    except Refusal as refusal:
        told = problem(refusal.status, refusal.detail, refusal.code, request_id_of(request.headers), refusal.headers)
        return _plain(told)
    pulse = sockets.pulse()
    with suppress(ConnectionError):
        await sockets.serve(admitted, _Wire(request, opened, pulse), pulse)
    return opened


async def _open(request: web.BaseRequest, admitted: Admitted, max_message: int) -> web.WebSocketResponse:
    if admitted.subprotocol is None and hdrs.SEC_WEBSOCKET_PROTOCOL in request.headers:
        # aiohttp would log what was offered, and that may hold a key.
        headers = CIMultiDict(request.headers)
        del headers[hdrs.SEC_WEBSOCKET_PROTOCOL]
        request = request.clone(headers=headers)
    opened = web.WebSocketResponse(
        timeout=CLOSE_TIMEOUT,
        # The session hears pongs too, and asks in its own time: not while nothing is read.
        autoping=False,
        protocols=(SUBPROTOCOL,),
        # A message of a few bytes can inflate to the limit below, at the price of our memory and time.
        compress=False,
        max_msg_size=max_message,
    )
    opened.headers.update({"X-Request-Id": admitted.name, hdrs.SERVER: _SERVER})
    try:
        await opened.prepare(request)
    except web.HTTPException as error:
        raise Refusal(error.status, "malformed-request", error.text or "this is no WebSocket handshake") from None
    return opened


def _plain(told: Response) -> web.Response:
    response = web.Response(status=told.status, body=told.body, headers={**told.headers, hdrs.SERVER: _SERVER})
    response.content_type = told.content_type
    response.force_close()
    return response


class _Wire:
    def __init__(self, request: web.BaseRequest, opened: web.WebSocketResponse, pulse: Pulse) -> None:
        self._transport: Any = request.transport
        self._opened = opened
        self._pulse = pulse
        self._loop = asyncio.get_running_loop()

    async def receive(self) -> str | bytes | None:
        while True:
            message = await self._opened.receive()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                data: str | bytes = message.data
                return data
            if message.type == WSMsgType.PING:
                with suppress(ConnectionError):
                    await self._opened.pong(message.data)
            elif message.type != WSMsgType.PONG:
                return None
            self._pulse.heard(self._loop.time())

    async def send(self, message: Message) -> None:
        await self._opened.send_frame(message.data, WSMsgType.TEXT if message.is_text else WSMsgType.BINARY)

    async def ping(self) -> None:
        await self._opened.ping()

    async def close(self, code: int, reason: str) -> None:
        await self._opened.close(code=code, message=reason.encode())

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

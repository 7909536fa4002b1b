"""WebSockets under an ASGI server: the `websocket` scope.

Message limits beyond ours, pings and the close handshake are the server's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from tidegate.wire import Message
from tidegate_transports.problems import Refusal, problem, request_id_of
from tidegate_transports.websocket_handshake import WebSockets

__all__ = ["websocket"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY, TOO_BIG = 1008, 1009


async def websocket(sockets: WebSockets, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a handshake; where it is accepted, serve the connection until it is closed."""
    if (await receive())["type"] != "websocket.connect":
        return
    headers = _headers(scope)
    try:
        admitted = sockets.admit(_path_below_mount(scope), headers)
    except Refusal as refusal:
        await _refuse(refusal, request_id_of(headers), scope, send)
        return
    named = [(b"x-request-id", admitted.name.encode())]
    await send({"type": "websocket.accept", "subprotocol": admitted.subprotocol, "headers": named})
    wire = _Wire(receive, send, sockets.options.max_body)
    try:
        with suppress(ConnectionError):
            await sockets.serve(admitted, wire, sockets.pulse(pings=False))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not wire.aborted or task is None or task.uncancel():
            raise


async def _refuse(refusal: Refusal, request_id: str, scope: Scope, send: Send) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        # The server makes a 403 of it, whatever it was.
        await send({"type": "websocket.close", "code": POLICY, "reason": refusal.detail[:100]})
        return
    told = problem(refusal.status, refusal.detail, refusal.code, request_id, refusal.headers)
    fields = {**told.headers, "Content-Type": told.content_type, "Content-Length": str(len(told.body))}
    headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in fields.items()]
    await send({"type": "websocket.http.response.start", "status": told.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": told.body})


def _headers(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _path_below_mount(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = (scope.get("root_path") or "").rstrip("/")
    inside = bool(root) and (path == root or path.startswith(f"{root}/"))
    return path[len(root) :] or "/" if inside else path


class _Wire:
    def __init__(self, receive: Receive, send: Send, max_message: int) -> None:
        self._receive = receive
        self._send = send
        self._max_message = max_message
        self._task = asyncio.current_task()
        self._closed = False
        self.aborted = False

    async def receive(self) -> str | bytes | None:
        event = await self._receive()
        if event["type"] != "websocket.receive":
            self._closed = True
            return None
        text: str | None = event.get("text")
        data: bytes = event.get("bytes") or b""
        if len(data if text is None else text) > self._max_message:
            await self.close(TOO_BIG, f"a message is over {self._max_message} bytes")
            return None
        return data if text is None else text

    async def send(self, message: Message) -> None:
        if message.is_text:
            await self._pass({"type": "websocket.send", "text": message.data.decode()})
        else:
            await self._pass({"type": "websocket.send", "bytes": message.data})

    async def _pass(self, event: MutableMapping[str, Any]) -> None:
        if self._closed:
            raise ConnectionError("the WebSocket is closed")
        try:
            await self._send(event)
        except (OSError, RuntimeError) as error:
            # Servers differ in what they raise when the client is gone.
            raise ConnectionError("the WebSocket is closed") from error

    async def ping(self) -> None:
        """The server's business."""

    async def close(self, code: int, reason: str) -> None:
        with suppress(ConnectionError):
            await self._pass({"type": "websocket.close", "code": code, "reason": reason})
        self._closed = True

    def abort(self) -> None:
        # There is nothing to tear down here but ourselves; the server ends a connection that its app has left.
        self.aborted = True
        if self._task is not None:
            self._task.cancel()

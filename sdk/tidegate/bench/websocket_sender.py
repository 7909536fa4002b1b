"""Requests over WebSockets: many at a time on each connection, as the service's own clients send them."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count, cycle
from typing import Any, Self

import msgspec
import numpy as np

from tidegate.bench.sender import OK, Ending, Payload, Shot
from tidegate.encoding import write_msgpack
from tidegate.media import JSON, MSGPACK_NAMES, NPY, MalformedBody
from tidegate.wire import DUPLICATE_ID, SUBPROTOCOL, Call, read_reply, write

__all__ = ["WebSocketSender"]

CONNECT_TIMEOUT = 10.0


class WebSocketSender:
    """Connections to one URL, which requests take in turn."""

    waited = 0

    def __init__(
        self,
        url: str,
        payloads: Sequence[Payload],
        *,
        headers: Mapping[str, str],
        connections: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ValueError for a payload that cannot go into a message."""
        inputs = [_input(payload) for payload in payloads]
        sockets = [_Socket(url, inputs, dict(headers), tls) for _ in range(connections)]
        self._sockets = sockets
        self._turns = cycle(sockets)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(socket.aclose() for socket in self._sockets))

    def send(self, payload: int, shot: Shot) -> None:
        """On the next connection."""
        next(self._turns).send(payload, shot)

    def abandon(self, shot: Shot) -> None:
        """The service is told."""
        if isinstance(shot.place, tuple):
            socket, number = shot.place
            socket.cancel(number)


class _Socket:
    """One connection: opened by the first request, and by the first after it was lost."""

    def __init__(
        self,
        url: str,
        inputs: Sequence[tuple[bytes, bool]],
        headers: dict[str, str],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._url = url
        self._inputs = inputs
        self._headers = headers
        self._tls = tls
        self._ids = count(1)
        self._in_flight: dict[int, Shot] = {}
        self._outbox: deque[tuple[bytes, bool]] = deque()
        self._something_to_send = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def send(self, payload: int, shot: Shot) -> None:
        number = next(self._ids)
        shot.place = (self, number)
        self._in_flight[number] = shot
        body, is_text = self._inputs[payload]
        if is_text:
            self._put(b'{"id":%d,"input":%b}' % (number, body), True)
        else:
            self._put(write(Call(number, msgspec.Raw(body)), is_text=False).data, False)

    def cancel(self, number: int) -> None:
        if self._in_flight.pop(number, None) is not None:
            self._put(b'{"id":%d,"cancel":true}' % number, True)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _put(self, data: bytes, is_text: bool) -> None:
        self._outbox.append((data, is_text))
        self._something_to_send.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._task = None

    async def _run(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        options: dict[str, Any] = {"ssl": self._tls} if self._tls is not None else {}
        ending = Ending("connection-failed", detail=f"{self._url} cannot be reached")
        try:
            async with connect(
                self._url,
                additional_headers=self._headers,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
                compression=None,
                proxy=None,
                open_timeout=CONNECT_TIMEOUT,
                close_timeout=1.0,
                max_size=None,
                max_queue=None,
                **options,
            ) as connection:
                ending = Ending("connection-lost", detail="the service closed the connection")
                writing = asyncio.create_task(self._write(connection))
                try:
                    await self._read(connection)
                finally:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
        except (OSError, WebSocketException, MalformedBody) as error:
            ending = Ending(ending.code, detail=str(error) or type(error).__name__)
        self._lose(ending)

    def _lose(self, ending: Ending) -> None:
        self._outbox.clear()
        lost, self._in_flight = self._in_flight, {}
        # From now on who sends opens another.
        self._task = None
        for shot in lost.values():
            shot.end(ending)

    async def _write(self, connection: Any) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            while self._outbox:
                data, is_text = self._outbox.popleft()
                await connection.send(data, text=is_text)

    async def _read(self, connection: Any) -> None:
        async for message in connection:
            reply = read_reply(message)
            if not (reply.end or reply.error is not None or len(reply.output)):
                continue  # a chunk, of which more will come
            error = reply.error
            if error is not None and error.code == DUPLICATE_ID:
                continue
            shot = self._in_flight.pop(reply.id, None) if isinstance(reply.id, int) else None
            if shot is not None:
                shot.end(OK if error is None else Ending(error.code, error.status, error.message))
            elif error is not None and reply.id is None:
                raise MalformedBody(f"the service could not tell to whom it spoke: {error.message}")


def _input(payload: Payload) -> tuple[bytes, bool]:
    """A payload as the input of a message, and whether that is a text message."""
    if payload.content_type == JSON:
        return payload.body, True
    if payload.content_type in MSGPACK_NAMES:
        return payload.body, False
    if payload.content_type == NPY:
        return write_msgpack(np.load(io.BytesIO(payload.body), allow_pickle=False)), False
    return write_msgpack(payload.body), False

"""Requests over HTTP/1.1: one at a time on each connection, without a library in between that would take longer.

A client made for applications takes some 70 µs of CPU per request, as much as a fast service; this takes a fifth.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self
from urllib.parse import urlsplit

import msgspec

from tidegate.bench.responses import BrokenResponse, ResponseReader
from tidegate.bench.sender import OK, Ending, Payload, Shot
from tidegate.version import __version__

__all__ = ["HTTPSender", "ending_of", "request_bytes"]

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take to open, TLS included."""


class _Problem(msgspec.Struct):
    """As much of `application/problem+json`, or of a stream's last line, as is counted."""

    code: str = ""
    status: int = 0
    detail: str = ""
    message: str = ""


class _Line(_Problem):
    error: _Problem | None = None


class HTTPSender:
    """Connections to one URL, opened as they are needed, up to `connections`."""

    def __init__(
        self,
        url: str,
        payloads: Sequence[Payload],
        *,
        headers: Mapping[str, str],
        connections: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._requests = [request_bytes(url, payload, headers) for payload in payloads]
        self._limit = connections
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[int, Shot]] = deque()
        self.waited = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._open):
            connection.abort()

    def send(self, payload: int, shot: Shot) -> None:
        """On an idle connection, on a new one, or after the next answer."""
        if not self._send_now(payload, shot):
            self.waited += 1
            shot.place = None
            self._waiting.append((payload, shot))

    def _send_now(self, payload: int, shot: Shot) -> bool:
        if self._idle:
            self._idle.pop().send(self._requests[payload], shot)
        elif len(self._open) + len(self._opening) < self._limit:
            task = asyncio.ensure_future(self._connect(payload, shot))
            shot.place = task
            self._opening.add(task)
            task.add_done_callback(self._tried)
        else:
            return False
        return True

    def _tried(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and self._send_now(*self._waiting[0]):
            self._waiting.popleft()

    def abandon(self, shot: Shot) -> None:
        """Its connection is closed: an answer that comes late would be taken for the next one's."""
        if isinstance(shot.place, _Connection):
            shot.place.abort()
        elif isinstance(shot.place, asyncio.Task):
            shot.place.cancel()
        else:
            self._waiting = deque(one for one in self._waiting if one[1] is not shot)

    async def _connect(self, payload: int, shot: Shot) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                loop = asyncio.get_running_loop()
                name = self._host if self._tls else None
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError:
            shot.end(Ending("connection-failed", detail=f"no connection within {CONNECT_TIMEOUT:g} s"))
        except OSError as error:
            shot.end(Ending("connection-failed", detail=str(error)))
        else:
            connection.send(self._requests[payload], shot)

    # ------------------------------------------------------------------ what connections say

    def opened(self, connection: _Connection) -> None:
        """It counts from now on."""
        self._open.add(connection)

    def free(self, connection: _Connection) -> None:
        """It has nothing to do."""
        self._idle.append(connection)
        if self._waiting:
            self._send_waiting()

    def gone(self, connection: _Connection) -> None:
        """It is closed; somebody who waits for one may open another."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._send_waiting()


class _Connection(asyncio.Protocol):
    """One connection and the request on it."""

    def __init__(self, sender: HTTPSender) -> None:
        self._sender = sender
        self._reader = ResponseReader()
        self._shot: Shot | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._sender.opened(self)

    def send(self, request: bytes, shot: Shot) -> None:
        """Only when it is free."""
        self._shot = shot
        shot.place = self
        self._transport.write(request)

    def abort(self) -> None:
        """Whatever is on it is of no interest, and its place is free at once."""
        self._shot = None
        self._transport.abort()
        self._sender.gone(self)

    def data_received(self, data: bytes) -> None:
        shot = self._shot
        if shot is None:
            self.abort()  # nobody asked
            return
        try:
            if not self._reader.feed(data):
                return
        except BrokenResponse as error:
            self._end(Ending("broken-response", detail=str(error)))
            self._transport.abort()
            return
        keep_alive = self._reader.keep_alive
        ending = ending_of(self._reader)
        self._shot = None
        # Free before whoever waits for the answer hears of it, so that the next request finds this connection.
        if keep_alive and not self._transport.is_closing():
            self._sender.free(self)
        else:
            self._transport.close()
        shot.end(ending)

    def connection_lost(self, error: Exception | None) -> None:
        if self._shot is not None and self._reader.feed_eof():
            self._end(ending_of(self._reader))
        elif self._shot is not None:
            begun = "in the middle of its answer" if self._reader.has_begun else "before it was answered"
            self._end(Ending("connection-lost", detail=f"closed {begun}" + (f": {error}" if error else "")))
        self._sender.gone(self)

    def _end(self, ending: Ending) -> None:
        shot, self._shot = self._shot, None
        if shot is not None:
            shot.end(ending)


def ending_of(reader: ResponseReader) -> Ending:
    """What a whole response means; a stream that ends with an error has failed, whatever its status."""
    if reader.status == 200 and not reader.is_lines:
        return OK
    if 200 <= reader.status < 300:
        return _ending_of_stream(reader.tail)
    try:
        problem = msgspec.json.decode(reader.tail, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem()
    detail = problem.detail or problem.message or reader.tail[:200].decode("utf-8", "replace")
    return Ending(problem.code or f"http-{reader.status}", reader.status, detail)


def _ending_of_stream(tail: bytes) -> Ending:
    """By its last line, or its last event."""
    before, _, last = tail.rstrip().rpartition(b"\n")
    is_error_event = last.startswith(b"data:") and before.rpartition(b"\n")[2].strip() == b"event: error"
    if not is_error_event and not last.startswith(b'{"error"'):
        return OK
    try:
        told = msgspec.json.decode(last.removeprefix(b"data:"), type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = _Line()
    problem = told.error or told
    return Ending(problem.code or "stream-error", problem.status, problem.detail or problem.message)


def request_bytes(url: str, payload: Payload, headers: Mapping[str, str]) -> bytes:
    """A whole request, head and body; `headers` come before what is usual.

    Raises ValueError for what would break the head.

    Example:
        >>> request = request_bytes("http://127.0.0.1:8000/embed", Payload(b'"hi"'), {"User-Agent": "me"})
        >>> request.split(b"\\r\\n")  # doctest: +NORMALIZE_WHITESPACE
        [b'POST /embed HTTP/1.1', b'Host: 127.0.0.1:8000', b'User-Agent: me', b'Content-Type: application/json',
         b'Content-Length: 4', b'', b'"hi"']
    """
    parts = urlsplit(url)
    usual = {
        "Host": parts.netloc.rpartition("@")[2],
        "User-Agent": f"tidegate-bench/{__version__}",
        "Content-Type": payload.content_type,
    }
    given = {name.lower(): (name, value) for name, value in headers.items()}
    fields = {name: given.pop(name.lower(), (name, value))[1] for name, value in usual.items()}
    fields |= dict(given.values())
    fields["Content-Length"] = str(len(payload.body))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = f"POST {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    if not head.isascii() or any(char in value for value in (target, *fields, *fields.values()) for char in "\r\n"):
        raise ValueError("headers: names and values must be printable ASCII without line breaks")
    return head.encode() + b"\r\n" + payload.body

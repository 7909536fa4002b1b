"""One client's connection: requests in through aiohttp's C parser, answers out, and a limit on everything.

The parser is all that is used of aiohttp here; a request that wants to become a WebSocket is handed on to aiohttp's own
connection. The limits are clocks (a head, an idle connection, a client that does not read), the number of connections
and how far requests may be sent ahead.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.problems import problem, request_id_of
from tidegate_transports.websocket_aiohttp import is_upgrade
from tidegate_transports.wire_format import head_of

if TYPE_CHECKING:
    from tidegate_transports.listener import Listener

__all__ = ["Connection", "Malformed"]

log = logging.getLogger("tidegate.http")

SLOWEST = 1024
"""Bytes per second that a client must read of an answer that waits for it."""

RESERVE = 64
"""Connections over the limit that are still heard, so that probes get through and the rest is told to come later."""

LINGER = 10.0
"""Seconds that a client may go on sending a body that was refused: closed at once, it might not read why."""

AHEAD = 32
"""Requests sent ahead of their answers until the client is not read for a while."""

READ_SIZE = 256 * 1024
MAX_HEADERS = 100
MAX_HEADER_LINE = 16 * 1024

_PARSING: dict[str, Any] = {
    "max_line_size": MAX_HEADER_LINE,
    "max_field_size": MAX_HEADER_LINE,
    "max_headers": MAX_HEADERS,
    "auto_decompress": False,  # the exchange does that, for every shell alike
}


class Malformed(Exception):
    """A body is not what its head says of it."""


class Connection(BaseProtocol):
    """Takes a client's requests one after the other, and lets it keep us waiting for nothing."""

    __slots__ = (
        "_answered_at",
        "_head_timer",
        "_held",
        "_idle_timer",
        "_listener",
        "_options",
        "_reader",
        "_requests",
        "_stall_timer",
        "_tail",
        "_task",
        "_unsent",
        "_upgraded_to",
        "_waiter",
        "began",
        "client",
        "surplus",
    )

    def __init__(self, listener: Listener, options: HTTPOptions, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._listener = listener
        self._options = options
        self._reader: HttpRequestParser | None = HttpRequestParser(
            self, loop, READ_SIZE, payload_exception=Malformed, **_PARSING
        )
        self._requests: deque[tuple[RawRequestMessage | HttpProcessingError, StreamReader]] = deque()
        self._tail = b""
        self._held = False
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._upgraded_to: web.RequestHandler | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._unsent = 0
        self.began = False
        """Whether an answer's first byte is out."""
        self.client = ""
        """Where it comes from, for the log."""
        self.surplus = False
        """Whether it came when there were enough already."""

    # ------------------------------------------------------------------ how it comes and goes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        others = len(self._listener.live)
        self._listener.live.add(self)
        self.surplus = others >= self._options.max_connections
        if others >= self._options.max_connections + RESERVE:
            self.refuse(503, "every connection is taken; try again later", "overloaded")
        else:
            self._head_timer = self._loop.call_later(self._options.header_timeout, self._head_is_late)
            self._task = self._loop.create_task(self._run())

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._listener.lost(self)
        for timer in (self._head_timer, self._idle_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            # A client that hangs up cancels its request, and with that its place in the queue.
            self._task.cancel()
        if self._upgraded_to is not None:
            self._upgraded_to.connection_lost(exc)

    def close(self) -> None:
        """Take no further request; what is written still goes out."""
        wire = self.transport
        if wire is not None and not wire.is_closing():
            wire.close()
            # The system, or the loop, still holds what the client has not read.
            if self._stall_timer is None:
                self._watch_reader(wire)

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._waiter is not None and self._head_timer is None

    # ------------------------------------------------------------------ one request after another

    async def _run(self) -> None:
        keep_alive = True
        while keep_alive:
            if not self._requests:
                self._waiter = self._loop.create_future()
                await self._waiter
            message, body = self._requests.popleft()
            if self._held:
                self._regulate()
            self.began = False
            if isinstance(message, HttpProcessingError):
                self.refuse(*_wrong_with(message))
                return
            if is_upgrade(message):
                self._hand_over(message)
                return
            try:
                keep_alive = await self._listener.answer(self, message, body)
            except ConnectionError:
                keep_alive = False  # the client has gone
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
                self._failed(message, error)
                return
            self._answered_at = self._loop.time()
            if self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self._options.keepalive_timeout, self._is_idle_for_long)
        with suppress(TimeoutError, Malformed):
            async with asyncio.timeout(LINGER):
                while not body.is_eof():
                    await body.readany()
        self.close()

    def data_received(self, data: bytes) -> None:
        if self._upgraded_to is not None:
            self._upgraded_to.data_received(data)
            return
        if self._reader is None:
            self._tail += data
            self._regulate()
            return
        requests: Sequence[tuple[RawRequestMessage | HttpProcessingError, StreamReader]]
        try:
            requests, is_over, tail = self._reader.feed_data(data)
        except HttpProcessingError as error:
            requests, is_over, tail = [(error, EMPTY_PAYLOAD)], True, b""
        if requests:
            self._requests.extend(requests)
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            waiter, self._waiter = self._waiter, None
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            if len(self._requests) >= AHEAD:
                self._regulate()
        elif self._head_timer is None and self._waiter is not None:
            self._head_timer = self._loop.call_later(self._options.header_timeout, self._head_is_late)
        if is_over:  # what follows is no HTTP
            self._reader, self._tail = None, tail

    def _head_is_late(self) -> None:
        self._head_timer = None
        self.refuse(408, f"no request came within {self._options.header_timeout:g} s", "request-timeout")

    def _is_idle_for_long(self) -> None:
        self._idle_timer = None
        ends_at = self._answered_at + self._options.keepalive_timeout
        if self._loop.time() < ends_at:
            self._idle_timer = self._loop.call_at(ends_at, self._is_idle_for_long)
        elif self.idle:
            self.close()

    def _hand_over(self, message: RawRequestMessage) -> None:
        """Let aiohttp's own connection have the request, and all that follows."""

        async def upgrade(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await self._listener.upgrade(request)
            finally:
                # It is closed now, and the client may not have read all.
                if self.transport is not None and self._stall_timer is None:
                    self._watch_reader(self.transport)

        assert self.transport is not None
        self.began = True
        server = web.Server(upgrade, handler_cancellation=True)
        self._upgraded_to = upgraded = web.RequestHandler(
            server,
            loop=self._loop,
            access_log=None,  # type: ignore[arg-type]  # none is what aiohttp itself passes for none
            lingering_time=0,  # the body, if it had any, has been read
            **_PARSING,
        )
        upgraded.connection_made(self.transport)
        if self._paused:
            upgraded.pause_writing()
        tail, self._tail = self._tail, b""
        self._regulate()
        upgraded.data_received(_head_again(message) + tail)

    # ------------------------------------------------------------------ clients that send too much

    def pause_reading(self) -> None:
        self._reading_paused = True
        self._regulate()

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._regulate()

    def _regulate(self) -> None:
        """Read the client, or do not while enough of it waits here."""
        full = self._reading_paused or len(self._requests) >= AHEAD or len(self._tail) >= READ_SIZE
        wire = self.transport
        if full != self._held and wire is not None and not wire.is_closing():
            self._held = full
            if full:
                wire.pause_reading()
            else:
                wire.resume_reading()

    # ------------------------------------------------------------------ clients that do not read

    async def put(self, data: bytes) -> None:
        """Write, and wait while the client has not read enough; raises ConnectionError when it has gone."""
        wire = self.transport
        if wire is None or wire.is_closing():
            raise ConnectionResetError("the client has gone")
        self.began = True
        wire.write(data)
        if self._paused:
            await self._drain_helper()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._upgraded_to is not None:
            self._upgraded_to.pause_writing()
        if self.transport is not None and self._stall_timer is None:
            self._watch_reader(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._upgraded_to is not None:
            self._upgraded_to.resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _watch_reader(self, wire: asyncio.Transport) -> None:
        self._unsent = wire.get_write_buffer_size()
        self._stall_timer = self._loop.call_later(self._options.write_timeout, self._check_reader, wire)

    def _check_reader(self, wire: asyncio.Transport) -> None:
        self._stall_timer = None
        if wire.get_write_buffer_size() > self._unsent - SLOWEST * self._options.write_timeout:
            wire.abort()
        else:
            self._watch_reader(wire)

    # ------------------------------------------------------------------ answers that no handler gives

    def refuse(self, status: int, detail: str, code: str) -> None:
        """Tell a client that has no answer under way why, and close."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_last_words(status, detail, code))
        self.close()

    def _failed(self, message: RawRequestMessage, error: Exception) -> None:
        if self.began:
            log.error("an answer to %s %s broke off", message.method, message.url.path, exc_info=error)
            self._break_off()
        else:
            log.error("the HTTP door failed on %s %s", message.method, message.url.path, exc_info=error)
            self.refuse(500, "internal error", "internal-error")

    def _break_off(self) -> None:
        # An answer that breaks off must not look like one that ended.
        if self.transport is not None:
            self.transport.abort()

    # ------------------------------------------------------------------ the end

    def end_politely(self) -> None:
        """Close if nothing is under way; what is under way ends the connection itself."""
        if self.idle:
            self.close()

    def end_now(self) -> None:
        """The deadline is over: whoever has got nothing yet is told so."""
        if self.began:
            self._break_off()
        else:
            self.refuse(503, "the service is shutting down", "closed")
        if self._task is not None:
            self._task.cancel()


def _head_again(message: RawRequestMessage) -> bytes:
    version = message.version
    first = f"{message.method} {message.path} HTTP/{version.major}.{version.minor}".encode("utf-8", "surrogateescape")
    return b"\r\n".join([first, *(b"%b: %b" % header for header in message.raw_headers), b"", b""])


def _wrong_with(error: HttpProcessingError) -> tuple[int, str, str]:
    """Status, text and code for what is no request."""
    if isinstance(error, LineTooLong):
        return 431, f"a header or the address is over {MAX_HEADER_LINE} bytes", "headers-too-large"
    if "Too many" in str(error):
        return 431, f"the request has more than {MAX_HEADERS} headers", "headers-too-large"
    return 400, "the bytes received are no HTTP/1.1 request", "malformed-request"


def _last_words(status: int, detail: str, code: str) -> bytes:
    """A whole answer to a request that never got as far as the exchange."""
    response = problem(status, detail, code, request_id_of({}))
    if status == 503:
        response.headers["Retry-After"] = "1"
    return (
        head_of(response.status, response.content_type, response.headers, len(response.body), "close") + response.body
    )

"""One client's connection on aiohttp, with the limits that aiohttp's own leaves out.

aiohttp parses and calls; here are the clocks (a head, a client that does not read), the number of connections, answers
to what is no HTTP, and the end: idle connections are closed, busy ones finish until one deadline.
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import _RequestFactory, _RequestHandler

from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.problems import problem, request_id_of
from tidegate_transports.wire_format import LAST, head_of

__all__ = ["Connection", "Listener"]

SLOWEST = 1024
"""Bytes per second that a client must read of an answer that waits for it."""

RESERVE = 64
"""Connections over the limit that are still heard, so that probes get through and the rest is told to come later."""

GRACE = 0.1
"""Seconds after the last connection was taken until those that have asked nothing are closed."""

MAX_HEADERS = 100
MAX_HEADER_LINE = 16 * 1024


class Connection(web.RequestHandler):
    """aiohttp's connection with a limit on everything that a client could keep us waiting for."""

    __slots__ = (
        "_head_timer",
        "_listener",
        "_options",
        "_stall_timer",
        "_unsent",
        "_wire",
        "began",
        "client",
        "surplus",
    )

    def __init__(self, listener: Listener, options: HTTPOptions, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            listener,
            loop=loop,
            keepalive_timeout=options.keepalive_timeout,
            access_log=None,  # type: ignore[arg-type]  # none is what aiohttp itself passes for none
            max_line_size=MAX_HEADER_LINE,
            max_field_size=MAX_HEADER_LINE,
            max_headers=MAX_HEADERS,
            auto_decompress=False,  # the exchange does that, for every shell alike
        )
        self._listener = listener
        self._options = options
        self._wire: asyncio.Transport | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self.began = False
        """Whether an answer's first byte is out."""
        self.client = ""
        """Where it comes from, for the log."""
        self.surplus = False
        """Whether it came when there were enough already."""

    # ------------------------------------------------------------------ how it comes and goes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)  # uvloop's transports are not derived from asyncio's
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        others = len(self._listener.live)
        self._listener.live.add(self)
        self.surplus = others >= self._options.max_connections
        super().connection_made(transport)
        if others >= self._options.max_connections + RESERVE:
            self.refuse(503, "every connection is taken; try again later", "overloaded")
        else:
            self._head_timer = self._loop.call_later(self._options.header_timeout, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._listener.lost(self)
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    async def start(self) -> None:
        try:
            await super().start()
        finally:
            # Closed, as far as aiohttp cares; the system still holds what the client has not read.
            if self._wire is not None and self._stall_timer is None:
                self._watch_reader(self._wire)

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._waiter is not None and self._head_timer is None

    # ------------------------------------------------------------------ heads that come too slowly

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        timer, waiter = self._head_timer, self._waiter
        if waiter is not None and not waiter.done():
            if timer is None and data:
                self._head_timer = self._loop.call_later(self._options.header_timeout, self._head_is_late)
        elif timer is not None:
            timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        self.refuse(408, f"no request came within {self._options.header_timeout:g} s", "request-timeout")

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
        if self._wire is not None and self._stall_timer is None:
            self._watch_reader(self._wire)

    def resume_writing(self) -> None:
        super().resume_writing()
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
        """Tell a client that has no request in flight why, and close."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_last_words(status, detail, code))
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """A problem document in place of aiohttp's page, which names the server and quotes the request."""
        if isinstance(exc, ConnectionError):
            raise exc
        if self.began:
            self.log_exception("an answer to %s %s broke off", request.method, request.path, exc_info=exc)
            raise ConnectionError("the answer has begun")
        if status == 500:
            self.log_exception("the HTTP door failed on %s %s", request.method, request.path, exc_info=exc)
            words = (500, "internal error", "internal-error")
        elif isinstance(exc, LineTooLong):
            words = (431, f"a header or the address is over {MAX_HEADER_LINE} bytes", "headers-too-large")
        elif exc is not None and "Too many" in str(exc):
            words = (431, f"the request has more than {MAX_HEADERS} headers", "headers-too-large")
        else:
            words = (400, "the bytes received are no HTTP/1.1 request", "malformed-request")
        if self.transport is not None:
            self.transport.write(_last_words(*words))
        return LAST

    # ------------------------------------------------------------------ the end

    def end_politely(self) -> None:
        """Close if nothing is under way; what is under way ends the connection itself."""
        if self.idle:
            self.force_close()

    def end_now(self) -> None:
        """The deadline is over: whoever has got nothing yet is told so."""
        task = self._task_handler
        if self.began:
            # An answer that breaks off must not look like one that ended.
            if self._wire is not None:
                self._wire.abort()
        else:
            self.refuse(503, "the service is shutting down", "closed")
        if task is not None:
            task.cancel()


class Listener(web.Server):
    """What the connections of one door share."""

    def __init__(self, handler: _RequestHandler, request_factory: _RequestFactory, options: HTTPOptions) -> None:
        # A client that hangs up cancels its handler, and with that its place in the queue.
        super().__init__(handler, request_factory=request_factory, handler_cancellation=True)
        self._options = options
        self.live: set[Connection] = set()
        self._empty = asyncio.Event()

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self._options, self._loop)

    def lost(self, connection: Connection) -> None:
        self.live.discard(connection)
        if not self.live:
            self._empty.set()

    async def drain(self, until: float) -> None:
        """Close what is idle, wait until `until` on the loop's clock for the rest, then end that too."""
        # Whoever has just connected, or been told nothing of the end yet, is about to send: that is still answered.
        await self._emptied(min(until, self._loop.time() + GRACE))
        for connection in list(self.live):
            connection.end_politely()
        await self._emptied(until)
        for connection in list(self.live):
            connection.end_now()
        await self._emptied(self._loop.time() + 1.0)
        for connection in list(self.live):
            if connection._wire is not None:
                connection._wire.abort()

    async def _emptied(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                while self.live:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            pass


def _last_words(status: int, detail: str, code: str) -> bytes:
    """A whole answer to a request that never got as far as the exchange."""
    response = problem(status, detail, code, request_id_of({}))
    if status == 503:
        response.headers["Retry-After"] = "1"
    return (
        head_of(response.status, response.content_type, response.headers, len(response.body), "close") + response.body
    )

"""One WebSocket connection and the requests in flight on it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any, Self

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tidegate.clients.answers import END, Output, read_message
from tidegate.clients.carrier import Disconnected, Reply, Request
from tidegate.clients.values import write_input
from tidegate.media import MalformedBody
from tidegate.wire import Call, error_from_wire, read_reply, write
from tidegate.wire import Reply as Message
from tidegate_batching import SlowReader, TidegateError

__all__ = ["Link"]

MAX_UNREAD = 64 * 1024 * 1024
"""Bytes of chunks that are kept for a stream's reader."""

OVERHEAD = 512
"""About what a message takes beside its bytes while it waits for its reader."""

USUAL_PRIORITY = 3

TOO_BIG = 1009
"""The close code for a message over the limit (RFC 6455, 7.4.1)."""


class Link:
    """Sends requests in the order in which they were made, and gives every message to the request that it is for."""

    def __init__(self, connection: ClientConnection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._ids = count(1)
        self._in_flight: dict[int, Flight] = {}
        # Written by one task: a caller who gives up can then leave a cancel behind without waiting for the socket.
        self._outbox: deque[tuple[Flight, bytes]] = deque()
        self._something_to_send = asyncio.Event()
        self._error: Disconnected | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests may still be made on it."""
        return self._error is None

    # ------------------------------------------------------------------ callers

    async def ask(self, request: Request) -> Reply:
        """Send a request and wait for its first message."""
        call = Call(
            next(self._ids),
            msgspec.Raw(write_input(request.value)),
            request.handler,
            request.timeout,
            None if request.priority == USUAL_PRIORITY else request.priority,
        )
        flight = Flight(self, int(call.id), len(call.input))
        if self._error is not None:
            raise Disconnected(self._error.detail, sent=False)
        self._in_flight[flight.id] = flight
        self._send(flight, call)
        try:
            first = await flight.next()
        except BaseException:
            await flight.aclose()
            raise
        if isinstance(first, Output):
            return Reply(first.value)
        flight.put_back(first)
        return Reply(chunks=flight)

    def cancel(self, flight: Flight) -> None:
        """Forget a request; the service hears of it if it has heard of the request."""
        if self._in_flight.pop(flight.id, None) is not None and self.is_open:
            if flight.sent:
                self._send(flight, Call(flight.id, cancel=True))
            else:
                flight.withdrawn = True

    def _send(self, flight: Flight, call: Call) -> None:
        self._outbox.append((flight, write(call, is_text=False).data))
        self._something_to_send.set()

    # ------------------------------------------------------------------ the connection

    async def run(self) -> None:
        """Move messages until the connection ends, however it does, or until cancelled; then every request has ended."""
        writing = asyncio.create_task(self._write())
        why = "this client was closed"
        try:
            why = await self._read()
        finally:
            self._end(f"the connection to {self._url} is gone: {why}")
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            # One that is gone already may fail to close, and nobody waits here to hear of it.
            with suppress(Exception):
                await self._connection.close()

    def _end(self, why: str) -> None:
        self._error = Disconnected(why)
        if self._connection.close_code == TOO_BIG and self._in_flight:
            # The service says that one was too large and not which one; sent again it would end the next connection too.
            largest = max(self._in_flight.values(), key=lambda flight: (flight.sent, flight.size))
            text = f"the input of {largest.size} bytes is more than the service takes in one message"
            largest.fail(error_from_wire("body-too-large", 413, text))
            del self._in_flight[largest.id]
        for flight in self._in_flight.values():
            flight.fail(Disconnected(why, sent=flight.sent))
        self._in_flight.clear()

    async def _read(self) -> str:
        """Hand out what comes; returns why nothing comes any more."""
        while True:
            try:
                message = await self._connection.recv()
                reply = read_reply(message)
            except ConnectionClosed as closed:
                return str(closed)
            except MalformedBody as error:
                return f"the service sent what is no answer: {error}"
            if reply.id is None:
                told = reply.error.message if reply.error else "a message without an id"
                return f"the service could not tell to whom it spoke: {told}"
            flight = self._in_flight.get(reply.id) if isinstance(reply.id, int) else None
            # One that nobody waits for any more crossed with its cancel.
            if flight is not None:
                if reply.end or reply.error is not None or len(reply.output):
                    del self._in_flight[flight.id]
                flight.deliver(reply, len(message), isinstance(message, str))

    async def _write(self) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            while self._outbox:
                flight, data = self._outbox.popleft()
                if flight.withdrawn:
                    continue
                flight.sent = True
                try:
                    await self._connection.send(data)
                except ConnectionClosed:
                    return  # whoever reads finds out as well, and says so


class Flight:
    """A request in flight: what has come for it and was not read yet."""

    def __init__(self, link: Link, number: int, size: int) -> None:
        self.id = number
        self.size = size
        self.sent = False
        self.withdrawn = False
        self._link = link
        self._unread: deque[tuple[Message, int, bool]] = deque()
        self._size = 0
        self._error: TidegateError | None = None
        self._begun = False
        self._ended = False
        self._first: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ the connection's side

    def deliver(self, message: Message, size: int, is_text: bool) -> None:
        """Keep a message for the reader; one who is too far behind is told so and waited for no longer."""
        size += OVERHEAD
        self._unread.append((message, size, is_text))
        self._size += size
        # One alone is no sign of a slow reader, however large it is.
        if self._size > MAX_UNREAD and len(self._unread) > 1:
            self._link.cancel(self)
            self.fail(SlowReader())
        self._wake()

    def fail(self, error: TidegateError) -> None:
        """End it with an error, behind what has come."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------ the caller's side

    def put_back(self, chunk: Any) -> None:
        """The first chunk, or END, which was read to see that it is there."""
        self._first.append(chunk)

    async def next(self) -> Any:
        """The next chunk's value, an `Output`, or END."""
        while not self._unread:
            if self._error is not None:
                raise self._last_word(self._error)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message, size, is_text = self._unread.popleft()
        self._size -= size
        self._begun = True
        return read_message(message, is_text=is_text, request_id="")

    def _last_word(self, error: TidegateError) -> TidegateError:
        if isinstance(error, Disconnected):
            return Disconnected(error.detail, sent=error.sent, begun=self._begun)
        return error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._first:
            chunk = self._first.pop()
        elif self._ended:
            raise StopAsyncIteration
        else:
            try:
                chunk = await self.next()
            except BaseException:
                await self.aclose()
                raise
        if chunk is END:
            self._ended = True
            raise StopAsyncIteration
        if isinstance(chunk, Output):
            await self.aclose()
            raise Disconnected("the service sent a whole output in the middle of a stream", begun=True)
        return chunk

    async def aclose(self) -> None:
        """Let the service know, unless it has ended."""
        self._ended = True
        self._first.clear()
        self._unread.clear()
        self._link.cancel(self)

"""An app that is elsewhere: what a front end's doors take for the app, and what asks the hub."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import msgspec

from tidegate import Handler, TidegateError, Unavailable
from tidegate.context import RequestInfo
from tidegate.portable import from_fields
from tidegate.service import Answer as TimedAnswer
from tidegate.status import DoorCounts, Overview
from tidegate_transports.ipc_hub import CHUNKS_AHEAD
from tidegate_transports.ipc_messages import (
    Answer,
    Call,
    Cancel,
    Channel,
    Chunk,
    Credit,
    End,
    Failure,
    Message,
    News,
    Question,
    Reply,
)
from tidegate_transports.ipc_values import decode_value, encode_value

__all__ = ["RemoteApp", "RemoteStream"]

_NOBODY = RequestInfo()


class RemoteApp:
    """The same interface as `App` for doors; every call goes to the hub and its answer comes from there.

    windows: how many inputs a job keeps under way, by handler. by_value: names of handlers that came pickled.
    """

    drain_ends_at: float = math.inf

    def __init__(
        self,
        handlers: Mapping[str, Handler[..., Any]],
        channel: Channel,
        *,
        drain_timeout: float,
        by_value: frozenset[str] = frozenset(),
    ) -> None:
        self.handlers = dict(handlers)
        self.drain_timeout = drain_timeout
        self.ready = False
        self.alive = True
        self.draining = False
        self.counters: list[Callable[[], Awaitable[DoorCounts]]] = []
        self._channel = channel
        self._by_value = by_value
        self._last = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, RemoteStream] = {}
        self._lost = False

    # ------------------------------------------------------------------ requests

    async def call(self, name: str, value: Any, *, priority: int = 3, timeout: float | None = None) -> Any:
        """One input through the hub's batcher to its output."""
        return (await self.answer(name, value, priority=priority, timeout=timeout)).value

    async def answer(
        self,
        name: str,
        value: Any,
        *,
        priority: int = 3,
        timeout: float | None = None,
        info: RequestInfo | None = None,
    ) -> TimedAnswer:
        """`call` with the times and the batch size beside the value."""
        found = await self._ask(self._message(name, value, priority, timeout, info))
        return TimedAnswer(decode_value(found.value), found.queued, found.ran, found.batch_size)

    async def patient_call(self, name: str, value: Any, *, priority: int = 3, info: RequestInfo | None = None) -> Any:
        """`call` without a deadline, that waits where `call` would be refused."""
        message = self._message(name, value, priority, None, info)
        return decode_value((await self._ask(msgspec.structs.replace(message, patient=True))).value)

    def stream(
        self,
        name: str,
        value: Any,
        *,
        priority: int = 3,
        timeout: float | None = None,
        info: RequestInfo | None = None,
    ) -> RemoteStream:
        """One input to its chunks as they come."""
        message = msgspec.structs.replace(self._message(name, value, priority, timeout, info), stream=True)
        stream = self._streams[message.id] = RemoteStream(self, message.id)
        if self._lost:
            stream.end(Unavailable())
        else:
            self._channel.send(message)
        return stream

    def window(self, name: str) -> int:
        """How many inputs a job should keep under way: enough for two batches."""
        size = self.handlers[name].options.max_batch_size or 1
        return max(16, 3 * size)

    def _message(self, name: str, value: Any, priority: int, timeout: float | None, info: RequestInfo | None) -> Call:
        told = info or _NOBODY
        self._last += 1
        encoded = encode_value(value, by_value=name in self._by_value)
        headers = dict(told.headers) if told.headers else {}
        return Call(self._last, name, encoded, priority, timeout, told.request_id, headers, told.patience, told.nbytes)

    async def _ask(self, message: Call | Question) -> Any:
        if self._lost:
            raise Unavailable
        if not self._channel.writable.is_set():
            await self._channel.writable.wait()
        future = self._answers[message.id] = asyncio.get_running_loop().create_future()
        self._channel.send(message)
        try:
            return await future
        except asyncio.CancelledError:
            if self._answers.pop(message.id, None) is not None:
                self._channel.send(Cancel(message.id))
            raise

    # ------------------------------------------------------------------ how it is

    async def overview(self) -> Overview:
        """The hub's, as `App.overview` gives it, with the counts of every front end."""
        self._last += 1
        reply: Reply = await self._ask(Question(self._last, "overview"))
        return msgspec.convert(reply.found, Overview)

    async def counts(self) -> DoorCounts:
        """What the doors here have counted."""
        counted = DoorCounts()
        for counter in self.counters:
            counted += await counter()
        return counted

    # ------------------------------------------------------------------ what the hub says

    def received(self, message: Message) -> None:
        """One message from the hub that is about a call, or about how it is."""
        match message:
            case Answer() | Reply():
                if (future := self._answers.pop(message.id, None)) is not None and not future.done():
                    future.set_result(message)
            case Failure():
                self._failed(message.id, from_fields(message.error))
            case Chunk():
                if (stream := self._streams.get(message.id)) is not None:
                    stream.push(decode_value(message.value), message.queued)
            case End():
                if (stream := self._streams.pop(message.id, None)) is not None:
                    stream.end(None)
            case News():
                self.ready, self.alive = message.ready, message.alive
                self.draining = self.draining or message.draining

    def closed(self) -> None:
        """The hub has gone."""
        self._lost = True
        self.ready = self.alive = False
        for number in [*self._answers, *self._streams]:
            self._failed(number, Unavailable())

    def _failed(self, number: int, error: TidegateError) -> None:
        if (future := self._answers.pop(number, None)) is not None:
            if not future.done():
                future.set_exception(error)
        elif (stream := self._streams.pop(number, None)) is not None:
            stream.end(error)

    def read(self, number: int, chunks: int) -> None:
        """A stream's reader has read so many."""
        if number in self._streams:
            self._channel.send(Credit(number, chunks))

    def stop_reading(self, number: int) -> None:
        """Nobody reads this stream any more."""
        if self._streams.pop(number, None) is not None:
            self._channel.send(Cancel(number))


class RemoteStream:
    """A stream's chunks, in the front end; the hub sends no more than CHUNKS_AHEAD that nobody has read."""

    def __init__(self, app: RemoteApp, number: int) -> None:
        self._app = app
        self._number = number
        self._chunks: deque[Any] = deque()
        self._error: TidegateError | None = None
        self._ended = False
        self._unsaid = 0
        self._reader: asyncio.Future[None] | None = None
        self.queued: float | None = None

    def push(self, chunk: Any, queued: float) -> None:
        """The hub sent a chunk."""
        self.queued = queued
        self._chunks.append(chunk)
        self._wake()

    def end(self, error: TidegateError | None) -> None:
        """The hub sent the end."""
        self._ended, self._error = True, error
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise self._error.with_traceback(None)
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        self._unsaid += 1
        if self._unsaid == CHUNKS_AHEAD // 4:
            self._app.read(self._number, self._unsaid)
            self._unsaid = 0
        return self._chunks.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading."""
        if not self._ended:
            self._app.stop_reading(self._number)
            self._ended = True
        self._chunks.clear()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

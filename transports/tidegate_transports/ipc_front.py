"""An app that is elsewhere: what a front end's doors take for the app, and what asks the hub."""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from tidegate import Handler, InvalidInput, Statistics, TidegateError, Unavailable
from tidegate.context import RequestInfo
from tidegate.portable import from_fields
from tidegate.service import Answer as TimedAnswer
from tidegate.status import DoorCounts, HandlerStatus, Overview
from tidegate_transports.ipc_channel import Channel
from tidegate_transports.ipc_messages import (
    Answer,
    Call,
    Cancel,
    Chunk,
    Credit,
    End,
    Failure,
    Message,
    News,
    Question,
    Reply,
)
from tidegate_transports.ipc_stream import RemoteStream
from tidegate_transports.ipc_values import decode_value, encode_value

__all__ = ["RemoteApp"]

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
        windows: Mapping[str, int],
        by_value: frozenset[str] = frozenset(),
    ) -> None:
        self.handlers = dict(handlers)
        self.drain_timeout = drain_timeout
        self.ready = False
        self.alive = True
        self.draining = False
        self.counters: list[Callable[[], Awaitable[DoorCounts]]] = []
        self._channel = channel
        self._windows = windows
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
        if self.handlers[name].streams:
            raise TypeError(f"handler {name!r} streams: read it with stream(), not call()")
        found = await self._ask(self._message(name, value, priority, timeout, info))
        return TimedAnswer(decode_value(found.value), found.queued, found.ran, found.batch_size)

    async def patient_call(self, name: str, value: Any, *, priority: int = 3, info: RequestInfo | None = None) -> Any:
        """`call` without a deadline, that waits where `call` would be refused; a stream's chunks come as a list."""
        message = self._message(name, value, priority, None, info, patient=True)
        return decode_value((await self._ask(message)).value)

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
        if not self.handlers[name].streams:
            raise TypeError(f"handler {name!r} gives one output: use call(), not stream()")
        message = self._message(name, value, priority, timeout, info, stream=True)
        stream = RemoteStream(partial(self._read, message.id), partial(self._stop_reading, message.id))
        if self._lost:
            stream.end(Unavailable())
        else:
            self._streams[message.id] = stream
            self._channel.send(message)
        return stream

    def window(self, name: str) -> int:
        """How many inputs a job should keep under way to keep this handler's workers busy."""
        return self._windows[name]

    def _message(
        self,
        name: str,
        value: Any,
        priority: int,
        timeout: float | None,
        info: RequestInfo | None,
        *,
        stream: bool = False,
        patient: bool = False,
    ) -> Call:
        told = info or _NOBODY
        encoded = encode_value(value, self._channel.outbox, by_value=name in self._by_value, unsendable=InvalidInput)
        headers = pickle.dumps(dict(told.headers), 5) if told.headers else b""
        request_id = told.request_id
        if not request_id.isascii():
            request_id = request_id.encode("utf-8", "replace").decode()
        self._last = number = self._last + 1
        return Call(
            number,
            name,
            encoded,
            priority,
            timeout,
            request_id,
            headers,
            told.patience,
            told.nbytes,
            stream,
            patient,
        )

    async def _ask(self, message: Call | Question) -> Any:
        if not self._channel.writable.is_set():
            message = await self._when_writable(message)
        if self._lost:
            raise Unavailable
        future = self._answers[message.id] = asyncio.get_running_loop().create_future()
        self._channel.send(message)
        try:
            return await future
        except asyncio.CancelledError:
            if self._answers.pop(message.id, None) is not None:
                self._channel.send(Cancel(message.id))
            raise

    def _unsent(self, message: Call | Question) -> None:
        """What it would have said lies in memory that the hub will never give back."""
        place = message.value.place if isinstance(message, Call) else None
        if place is not None and (outbox := self._channel.outbox) is not None:
            outbox.take_back([place[0]])

    async def _when_writable(self, message: Call | Question) -> Call | Question:
        """The message for a hub that could not take it at once, with the time that it has left then."""
        began = time.monotonic()
        try:
            await self._channel.writable.wait()
        except asyncio.CancelledError:
            self._unsent(message)
            raise
        if isinstance(message, Question) or message.patient:
            return message
        limit = self.handlers[message.handler].options.timeout if message.timeout is None else message.timeout
        left = None if limit is None else max(0.0, limit - (time.monotonic() - began))
        return msgspec.structs.replace(message, timeout=left)

    # ------------------------------------------------------------------ how it is

    async def overview(self) -> Overview:
        """The hub's, as `App.overview` gives it, with the counts of every front end."""
        self._last += 1
        reply: Reply = await self._ask(Question(self._last, "overview"))
        if reply.error:
            raise Unavailable(f"the hub cannot say how it is: {reply.error}")
        return msgspec.msgpack.decode(reply.found, type=Overview)

    async def counts(self) -> DoorCounts:
        """What the doors here have counted."""
        counted = DoorCounts()
        for counter in self.counters:
            counted += await counter()
        return counted

    def status(self) -> dict[str, HandlerStatus]:
        """That every handler is served; its workers are the hub's, and `overview` tells of them."""
        return {name: HandlerStatus((), self.alive) for name in self.handlers}

    def statistics(self) -> dict[str, Statistics]:
        """Nothing: see `overview`."""
        return {}

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
                    stream.push(message.value, message.queued)
            case End():
                if (stream := self._streams.pop(message.id, None)) is not None:
                    stream.queued = message.queued
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

    def _read(self, number: int, chunks: int) -> None:
        if number in self._streams:
            self._channel.send(Credit(number, chunks))

    def _stop_reading(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            self._channel.send(Cancel(number))

"""The hub's end of the line to one front end: its calls into the batcher, and what becomes of them back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from tidegate import App, Closed
from tidegate.context import RequestInfo
from tidegate.portable import to_fields
from tidegate_batching import Item, Outcome
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
    Question,
    Reply,
)
from tidegate_transports.ipc_values import decode_value, encode_value

__all__ = ["CHUNKS_AHEAD", "HubLink"]

CHUNKS_AHEAD = 64
"""Chunks of a stream that may be on their way to a front end that has not read them yet."""


class HubLink:
    """One front end, as the hub sees it, and what it says of its calls; `others` gets the rest. `channel` is its line.

    by_value: names of the handlers that were sent pickled.
    """

    def __init__(
        self,
        app: App,
        tasks: asyncio.TaskGroup,
        others: Callable[[Message], None],
        by_value: Collection[str] = (),
    ) -> None:
        self._app = app
        self._others = others
        self._tasks = tasks
        self._by_value = frozenset(by_value)
        self._waiting: dict[int, _Waiter] = {}
        self._streams: dict[int, _Streaming] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._questions = 0
        self.channel = Channel(self.received, self.closed, stops_reading=True)
        self.gone = asyncio.Event()

    @property
    def under_way(self) -> int:
        """Calls and streams that are not answered yet."""
        return len(self._waiting) + len(self._streams)

    def received(self, message: Message) -> None:
        """One message from the front end."""
        match message:
            case Call():
                self._call(message)
            case Cancel():
                self._cancel(message.id)
            case Credit():
                if (stream := self._streams.get(message.id)) is not None:
                    stream.credit(message.chunks)
            case Question():
                self._tasks.create_task(self._reply(message))
            case Reply():
                if (future := self._asked.pop(message.id, None)) is not None and not future.done():
                    future.set_result(message.found)
            case _:
                self._others(message)

    def closed(self) -> None:
        """The front end has gone: nobody waits for its answers any more."""
        for waiter in list(self._waiting.values()):
            if waiter.item is not None:
                self._app.withdraw(waiter.handler, waiter.item)
        self._waiting.clear()
        for stream in list(self._streams.values()):
            stream.task.cancel()
        for future in self._asked.values():
            future.cancel()
        self.gone.set()

    async def ask(self, about: str) -> Any:
        """What the front end knows about something; CancelledError if it goes away first."""
        self._questions += 1
        future = self._asked[self._questions] = asyncio.get_running_loop().create_future()
        self.channel.send(Question(self._questions, about))
        return await future

    # ------------------------------------------------------------------ calls

    def _call(self, call: Call) -> None:
        try:
            value = decode_value(call.value)
        except Exception as error:  # noqa: BLE001 - classes of the user's may raise anything as they are made again
            self.channel.send(Failure(call.id, to_fields(error)))
            return
        if call.stream or call.patient:
            self._streams[call.id] = _Streaming(self, call, value, self._tasks)
            return
        waiter = self._waiting[call.id] = _Waiter(self, call.id, call.handler)
        info = RequestInfo(call.request_id, call.headers, call.patience, call.nbytes)
        try:
            waiter.item = self._app.post(
                call.handler, value, waiter, priority=call.priority, timeout=call.timeout, info=info
            )
        except Exception as error:  # noqa: BLE001 - what cost() raises is the caller's answer
            waiter.set_result(Outcome(error=error))

    def _cancel(self, number: int) -> None:
        waiter = self._waiting.pop(number, None)
        if waiter is not None and waiter.item is not None:
            self._app.withdraw(waiter.handler, waiter.item)
        stream = self._streams.get(number)
        if stream is not None:
            stream.task.cancel()

    def settled(self, waiter: _Waiter, outcome: Outcome) -> None:
        """A call has ended."""
        if self._waiting.pop(waiter.number, None) is None:
            return
        item = waiter.item
        if outcome.error is None and item is not None:
            try:
                value = encode_value(outcome.value, by_value=waiter.handler in self._by_value)
            except Exception as error:  # noqa: BLE001 - as in _call
                outcome = Outcome(error=error)
            else:
                queued, ran = item.dispatched_at - item.arrived_at, item.settled_at - item.dispatched_at
                self.channel.send(Answer(waiter.number, value, queued, ran, item.batch_size))
                return
        self.channel.send(Failure(waiter.number, to_fields(outcome.error or Closed())))

    async def stream(self, call: Call, value: Any, credit: asyncio.Semaphore) -> None:
        """Send a stream's chunks as the front end has room for them."""
        info = RequestInfo(call.request_id, call.headers, call.patience, call.nbytes)
        by_value = call.handler in self._by_value
        try:
            async with self._app.stream(
                call.handler, value, priority=call.priority, timeout=call.timeout, info=info
            ) as chunks:
                async for chunk in chunks:
                    await credit.acquire()
                    self.channel.send(Chunk(call.id, encode_value(chunk, by_value=by_value), chunks.queued or 0.0))
        except Exception as error:  # noqa: BLE001 - the stream's own end
            self.channel.send(Failure(call.id, to_fields(error)))
        else:
            self.channel.send(End(call.id))
        finally:
            self._streams.pop(call.id, None)

    async def patient(self, call: Call, value: Any) -> None:
        """A job's item: it waits where a caller would be refused."""
        info = RequestInfo(call.request_id, call.headers, call.patience, call.nbytes)
        try:
            result = await self._app.patient_call(call.handler, value, priority=call.priority, info=info)
            encoded = encode_value(result, by_value=call.handler in self._by_value)
        except Exception as error:  # noqa: BLE001 - the item's own end
            self.channel.send(Failure(call.id, to_fields(error)))
        else:
            self.channel.send(Answer(call.id, encoded, 0.0, 0.0, 1))
        finally:
            self._streams.pop(call.id, None)

    async def _reply(self, question: Question) -> None:
        found = await self._app.overview() if question.about == "overview" else None
        self.channel.send(Reply(question.id, found))


class _Waiter:
    """Where one call waits in the batcher."""

    __slots__ = ("_ended", "_link", "handler", "item", "number")

    def __init__(self, link: HubLink, number: int, handler: str) -> None:
        self._link = link
        self._ended = False
        self.number = number
        self.handler = handler
        self.item: Item | None = None

    def done(self) -> bool:
        return self._ended

    def set_result(self, outcome: Outcome) -> None:
        self._ended = True
        self._link.settled(self, outcome)

    def __await__(self) -> Any:
        raise TypeError("nobody waits here")


class _Streaming:
    """A call that has a task of its own in the hub."""

    def __init__(self, link: HubLink, call: Call, value: Any, tasks: asyncio.TaskGroup) -> None:
        self._credit = asyncio.Semaphore(CHUNKS_AHEAD)
        run = link.stream(call, value, self._credit) if call.stream else link.patient(call, value)
        self.task = tasks.create_task(run)

    def credit(self, chunks: int) -> None:
        """The reader has read so many."""
        for _ in range(chunks):
            self._credit.release()

"""The hub's end of the line to one front end: its calls into the batcher, and what becomes of them back."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from tidegate import App
from tidegate.context import RequestInfo
from tidegate.portable import to_fields
from tidegate_batching import Item, Outcome
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
    Question,
    Reply,
)
from tidegate_transports.ipc_stream import Window
from tidegate_transports.ipc_values import decode_value, encode_value

__all__ = ["HubLink", "LineLost"]

log = logging.getLogger("tidegate.fronts")

_NOBODY = RequestInfo()


class LineLost(ConnectionError):
    """The other process has gone, or what it said made no sense."""


class HubLink:
    """One front end, as the hub sees it, and what it says of its calls; `channel` is its line.

    tasks: where its streams run. others: gets what it says besides. lost: called once, when its line has ended.
    by_value: names of the handlers that were sent pickled.
    """

    def __init__(
        self,
        app: App,
        tasks: asyncio.TaskGroup,
        others: Callable[[Message], None],
        lost: Callable[[], None] = lambda: None,
        by_value: Collection[str] = (),
    ) -> None:
        self._app = app
        self._others = others
        self._lost = lost
        self._tasks = tasks
        self._by_value = frozenset(by_value)
        self._waiting: dict[int, _Waiter] = {}
        self._running: dict[int, _Running] = {}
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._questions = 0
        self.channel = Channel(self.received, self.closed, stops_reading=True)
        self.gone = asyncio.Event()

    @property
    def under_way(self) -> int:
        """Calls and streams that are not answered yet."""
        return len(self._waiting) + len(self._running)

    def received(self, message: Message) -> None:
        """One message from the front end."""
        match message:
            case Call():
                self._call(message)
            case Cancel():
                self._cancel(message.id)
            case Credit():
                if (running := self._running.get(message.id)) is not None:
                    running.window.read(message.chunks)
            case Question():
                self._tasks.create_task(self._reply(message))
            case Reply():
                if (future := self._asked.pop(message.id, None)) is not None and not future.done():
                    future.set_result(message.found)
            case _:
                self._others(message)

    def closed(self) -> None:
        """The front end has gone: nobody waits for its answers any more."""
        if self.gone.is_set():
            return
        self.gone.set()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.withdraw(self._app)
        for running in list(self._running.values()):
            running.task.cancel()
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(LineLost())
        self._lost()

    async def ask(self, about: str) -> bytes:
        """What the front end knows about something, in msgpack; LineLost if it goes away first."""
        if self.gone.is_set():
            raise LineLost
        self._questions += 1
        future = self._asked[self._questions] = asyncio.get_running_loop().create_future()
        self.channel.send(Question(self._questions, about))
        found: bytes = await future
        return found

    # ------------------------------------------------------------------ calls

    def _call(self, call: Call) -> None:
        if self.gone.is_set():
            return  # said before its end, and read after it
        try:
            value = decode_value(call.value)
            # A call may last, and a copy was made of what its value is no view of.
            call.value.data = None
            info = _info(call)
            if call.stream or call.patient:
                self._running[call.id] = _Running(self, call, value, info, self._tasks)
                return
            waiter = self._waiting[call.id] = _Waiter(self, call)
            item = self._app.post(call.handler, value, waiter, priority=call.priority, timeout=call.timeout, info=info)
        except Exception as error:  # noqa: BLE001 - what cost() or a class of the user's raises is the caller's answer
            self._waiting.pop(call.id, None)
            self._fail(call.id, error)
        else:
            waiter.posted(item)

    def _cancel(self, number: int) -> None:
        if (waiter := self._waiting.pop(number, None)) is not None:
            waiter.withdraw(self._app)
        elif (running := self._running.get(number)) is not None:
            running.task.cancel()

    def settled(self, waiter: _Waiter, item: Item, outcome: Outcome) -> None:
        """A call has ended."""
        call = waiter.call
        if self._waiting.pop(call.id, None) is None:
            return
        if outcome.error is not None:
            self._fail(call.id, outcome.error)
            return
        queued, ran = item.dispatched_at - item.arrived_at, item.settled_at - item.dispatched_at
        self._answer(call, outcome.value, queued, ran, item.batch_size)

    def _answer(self, call: Call, output: Any, queued: float, ran: float, batch_size: int) -> None:
        try:
            value = encode_value(output, self.channel.outbox, by_value=call.handler in self._by_value)
        except Exception as error:  # noqa: BLE001 - why it cannot be sent is the answer then
            self._fail(call.id, error)
        else:
            self.channel.send(Answer(call.id, value, queued, ran, batch_size))

    def _fail(self, number: int, error: BaseException) -> None:
        self.channel.send(Failure(number, to_fields(error)))

    async def run_stream(self, call: Call, value: Any, info: RequestInfo, window: Window) -> None:
        """Send a stream's chunks as the front end has room for them."""
        by_value = call.handler in self._by_value
        try:
            async with self._app.stream(
                call.handler, value, priority=call.priority, timeout=call.timeout, info=info
            ) as chunks:
                async for chunk in chunks:
                    while window.is_full:
                        await window.moved()
                    # Sent as soon as it is encoded: who is cancelled in between would leave it in memory for ever.
                    encoded = encode_value(chunk, self.channel.outbox, by_value=by_value)
                    window.sent(encoded.nbytes)
                    self.channel.send(Chunk(call.id, encoded, chunks.queued or 0.0))
                queued = chunks.queued or 0.0
        except Exception as error:  # noqa: BLE001 - the stream's own end
            self._fail(call.id, error)
        else:
            self.channel.send(End(call.id, queued))

    async def run_patiently(self, call: Call, value: Any, info: RequestInfo) -> None:
        """A job's item: it waits where a caller would be refused."""
        try:
            output = await self._app.patient_call(call.handler, value, priority=call.priority, info=info)
        except Exception as error:  # noqa: BLE001 - the item's own end
            self._fail(call.id, error)
        else:
            self._answer(call, output, 0.0, 0.0, 1)

    def ended(self, number: int) -> None:
        """A stream or a job's item is over."""
        del self._running[number]

    async def _reply(self, question: Question) -> None:
        try:
            if question.about != "overview":
                raise ValueError(f"nobody knows anything about {question.about!r} here")
            found = msgspec.msgpack.encode(await self._app.overview())
        except Exception as error:
            log.exception("a front end's question about %s has no answer", question.about)
            self.channel.send(Reply(question.id, b"", f"{type(error).__name__}: {error}"))
        else:
            self.channel.send(Reply(question.id, found))


class _Waiter:
    """Where one call waits in the batcher."""

    __slots__ = ("_item", "_link", "_outcome", "call")

    def __init__(self, link: HubLink, call: Call) -> None:
        self._link = link
        self._item: Item | None = None
        self._outcome: Outcome | None = None
        self.call = call

    def posted(self, item: Item) -> None:
        """It is in the queue; or was refused already, from within the call that put it there."""
        self._item = item
        if self._outcome is not None:
            self._link.settled(self, item, self._outcome)

    def withdraw(self, app: App) -> None:
        """Nobody waits here any more."""
        if self._item is not None and self._outcome is None:
            app.withdraw(self.call.handler, self._item)

    def done(self) -> bool:
        return self._outcome is not None

    def set_result(self, outcome: Outcome) -> None:
        self._outcome = outcome
        if self._item is not None:
            self._link.settled(self, self._item, outcome)

    def __await__(self) -> Any:
        raise TypeError("nobody waits here")


class _Running:
    """A call that has a task of its own in the hub."""

    def __init__(self, link: HubLink, call: Call, value: Any, info: RequestInfo, tasks: asyncio.TaskGroup) -> None:
        self.window = Window()
        if call.stream:
            run = link.run_stream(call, value, info, self.window)
        else:
            run = link.run_patiently(call, value, info)
        self.task = tasks.create_task(run)
        # Not in the task: one that is cancelled before it has begun never gets that far.
        self.task.add_done_callback(lambda _: link.ended(call.id))


def _info(call: Call) -> RequestInfo:
    headers = pickle.loads(call.headers) if call.headers else _NOBODY.headers
    return RequestInfo(call.request_id, headers, call.patience, call.nbytes)

"""What the WebSocket shells share: it reads a session's messages, runs its requests and sends what they come to.

A shell gives a `Wire` per connection and keeps the sockets; meaning is the session's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from tidegate import App, HandlerError, TidegateError
from tidegate.wire import Message
from tidegate_batching import Stream
from tidegate_transports.pulse import GiveUp, Ping
from tidegate_transports.session import Action, Send, Session, Start
from tidegate_transports.session_request import Request

__all__ = ["CLOSING_TIME", "GOING_AWAY", "Connection", "Wire"]

log = logging.getLogger("tidegate.websocket")

NORMAL, GOING_AWAY = 1000, 1001

CLOSING_TIME = 1.0
"""Seconds that the last messages and the close message may take when the time for draining is over."""


class Wire(Protocol):
    """One open WebSocket. `receive` gives None when it is closed, `send` and `ping` raise ConnectionError then.

    Whatever it receives in parts, or hears of the client otherwise, it may tell `Session.pulse`.
    """

    async def receive(self) -> str | bytes | None: ...
    async def send(self, message: Message) -> None: ...
    async def ping(self) -> None: ...
    async def close(self, code: int, reason: str) -> None: ...
    def abort(self) -> None: ...


class _Gone(Exception):
    """There is nobody left to send to. No ConnectionError, which a handler's codec may raise too."""


class Connection:
    """One connection being served; `run` returns when it is closed."""

    def __init__(self, app: App, session: Session, wire: Wire) -> None:
        self._app = app
        self._session = session
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._running: dict[Request, asyncio.Task[None]] = {}
        self._streams: dict[Request, Stream[Any]] = {}
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._over = False
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Serve until the client goes, or until drained; cancelling it ends everything at once."""
        async with asyncio.TaskGroup() as self._tasks:
            watch = self._tasks.create_task(self._watch())
            try:
                await self._read()
            finally:
                self._is_over()
                watch.cancel()
                # Nobody is left to answer: their items leave the queue or the running batch.
                for task in self._running.values():
                    task.cancel()

    async def drain(self) -> None:
        """Refuse what is new, finish what is in until `App.drain_ends_at`, and close."""
        self._session.drain()
        # Infinite when another door could not be opened, and this one is closed again.
        until = min(self._app.drain_ends_at, self._loop.time() + self._app.drain_timeout)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._until(lambda: self._session.idle)
        with suppress(TimeoutError, _Gone):
            async with asyncio.timeout(CLOSING_TIME):
                await self._do(self._session.abandon())
                await self._until(lambda: self._session.idle)
                await self._wire.close(GOING_AWAY, "the service is shutting down")
                return
        self._wire.abort()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that becomes true when a request ends, or until the client is gone."""
        while not condition() and not self._over:
            self._changed.clear()
            await self._changed.wait()

    def _is_over(self) -> None:
        """There is nobody left to answer: nothing more is begun, and nothing waited for."""
        self._over = True
        self._changed.set()

    # ------------------------------------------------------------------ reading

    async def _read(self) -> None:
        session, wire = self._session, self._wire
        while (message := await wire.receive()) is not None:
            with suppress(_Gone):
                await self._do(session.receive(message, self._loop.time()))
            if not session.reading:
                session.pulse.deaf(True, self._loop.time())
                await self._until(lambda: session.reading)
                session.pulse.deaf(False, self._loop.time())

    async def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                if not self._over:
                    self._running[action.request] = self._tasks.create_task(self._run(action.request))
            elif isinstance(action, Send):
                await self._send(action.message)
            else:
                await self._stop(action.request, action.error)

    async def _watch(self) -> None:
        pulse = self._session.pulse
        while True:
            await asyncio.sleep(pulse.period)
            beat = pulse.tick(self._loop.time(), idle=self._session.idle)
            if isinstance(beat, Ping):
                # Not here: it may have to wait until the client reads, and somebody must see for how long.
                self._tasks.create_task(self._ping())
            elif isinstance(beat, GiveUp) and beat.kind == "idle":
                await self._wire.close(NORMAL, "nothing was asked for a long time")
            elif isinstance(beat, GiveUp):
                log.info("a client is %s: its connection is given up", beat.kind)
                self._wire.abort()
                self._is_over()
                return

    async def _ping(self) -> None:
        with suppress(ConnectionError):
            async with self._writing:
                self._session.pulse.sending(self._loop.time(), 0)
                await self._wire.ping()
                self._session.pulse.sent(self._loop.time())

    # ------------------------------------------------------------------ requests

    async def _run(self, request: Request) -> None:
        """One request from its start to its last message."""
        try:
            await self._send(await self._safe_outcome(request), last_of=request)
        except _Gone:
            # The reader sees it too, and ends the rest.
            pass
        finally:
            del self._running[request]
            following = self._session.finished(request, self._loop.time())
            self._changed.set()
        await self._do(following)

    async def _safe_outcome(self, request: Request) -> Message:
        try:
            return await self._outcome(request)
        except _Gone:
            raise
        except Exception:
            # An error of the user's own that cannot even be told; the connection's other requests go on.
            log.exception("%s failed, request %s", request.handler.name, request.info.request_id)
            return request.failed(TidegateError("internal error"))

    async def _outcome(self, request: Request) -> Message:
        if (early := request.stopped) is not None:
            return request.failed(early)
        try:
            value = request.value()
            if request.handler.streams:
                return await self._stream(request, value)
            return request.output(await self._answer(request, value))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if request.stopped is None or task is None or task.uncancel():
                raise
            return request.failed(request.stopped)
        except TidegateError as error:
            return request.failed(request.stopped or error)
        except _Gone:
            raise
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything while it is read or written
            return request.failed(HandlerError.wrap(error))

    async def _answer(self, request: Request, value: Any) -> Any:
        request.may_be_cut_off = True
        try:
            answer = await self._app.answer(
                request.handler.name, value, priority=request.priority, timeout=request.timeout, info=request.info
            )
        finally:
            request.may_be_cut_off = False
        return answer.value

    async def _stream(self, request: Request, value: Any) -> Message:
        chunks = self._app.stream(
            request.handler.name, value, priority=request.priority, timeout=request.timeout, info=request.info
        )
        self._streams[request] = chunks
        try:
            async with chunks:
                async for chunk in chunks:
                    await self._send(request.chunk(chunk))
        finally:
            del self._streams[request]
        return request.failed(request.stopped) if request.stopped else request.end()

    async def _stop(self, request: Request, error: TidegateError) -> None:
        if request.stopped is not None or request not in self._running:
            return
        request.stopped = error
        if request in self._streams:
            # Takes the item out of its batch, and the reader out of its wait, though not out of the middle of a message.
            await self._streams[request].aclose()
        elif request.may_be_cut_off:
            self._running[request].cancel()

    async def _send(self, message: Message, last_of: Request | None = None) -> None:
        """One at a time, so that a client that does not read has one message waiting and not one per request."""
        session = self._session
        async with self._writing:
            if last_of is not None:
                session.ended(last_of)
            session.pulse.sending(self._loop.time(), len(message.data))
            try:
                await self._wire.send(message)
            except ConnectionError as error:
                self._is_over()
                raise _Gone from error
            finally:
                session.pulse.sent(self._loop.time())

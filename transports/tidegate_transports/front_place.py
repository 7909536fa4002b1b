"""One place for a front end, kept filled: who dies in it is replaced, and takes nobody's connections along but its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import msgspec

from tidegate import App, SetupFailed
from tidegate.status import DoorCounts
from tidegate.workers.replica import MAX_FAILED_STARTS, restart_delay
from tidegate.workers.spawn import Child
from tidegate_transports.address import Address
from tidegate_transports.ipc_hub import HubLink, LineLost
from tidegate_transports.ipc_memory import Memory
from tidegate_transports.ipc_messages import VERSION, Drain, Hello, Listening, Message, News, NotListening, Start

__all__ = ["FrontFailed", "FrontPlace"]

log = logging.getLogger("tidegate.fronts")

LAST_WORDS = 1.0
"""Seconds that a front end gets to end after its requests have, or after its line was cut."""

STEADY = 10.0
"""Seconds after which a front end that dies is replaced at once, however often others have died before."""


class FrontFailed(SetupFailed):
    """A front end cannot start; `traceback` is its own, "" where there is none."""

    def __init__(self, number: int, text: str, traceback: str = "") -> None:
        Exception.__init__(self, f"front end {number} cannot start: {text}")
        self.handler = ""
        self.traceback = traceback


class FrontPlace:
    """A place's front ends, one after the other; lost: called when it can never be filled again."""

    def __init__(
        self, app: App, number: int, start: Start, by_value: Collection[str], lost: Callable[[SetupFailed], None]
    ) -> None:
        self._app = app
        self._number = number
        self._start = start
        self._by_value = by_value
        self._lost = lost
        self._front: _Front | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup
        self._before = DoorCounts()  # of the processes that have ended, as far as they told
        self._counted = DoorCounts()  # of the one that runs, when it was last asked
        self._asking: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process that is in it, 0 for none."""
        return 0 if self._front is None else self._front.pid

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """The first process, whose door is open when this returns; raises what it says that it cannot."""
        self._tasks = tasks
        front = await self._filled()
        self._keeper = tasks.create_task(self._keep(front))

    def tell(self, news: News) -> None:
        """How the app is."""
        if self._front is not None:
            self._front.link.channel.send(news)

    async def drain(self, ends_at: float) -> None:
        """Let it finish its requests, until `ends_at` and a moment more."""
        self._leave()
        if self._front is not None:
            await self._front.drain(ends_at)

    async def kill(self) -> None:
        """End it now, if it has not ended."""
        self._leave()
        if self._front is not None:
            await self._front.end()

    def _leave(self) -> None:
        """Replace nobody any more."""
        for task in (self._keeper, self._asking):
            if task is not None:
                task.cancel()

    # ------------------------------------------------------------------ what it has counted

    async def counts(self, within: float) -> DoorCounts:
        """What the doors here have counted, those before included; after `within` seconds what was last known."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            # Only the first to ask waits for who does not answer.
            await asyncio.wait([self._asking], timeout=within)
        return self._before + self._counted

    async def _ask(self) -> None:
        front = self._front
        if front is None:
            return
        with suppress(LineLost):
            found = msgspec.msgpack.decode(await front.link.ask("counts"), type=DoorCounts)
            # It may have ended meanwhile, and what nobody has seen yet need not be added up.
            if front is self._front:
                self._counted = found

    # ------------------------------------------------------------------ deaths

    async def _filled(self) -> _Front:
        front = self._front = _Front(self._app, self._number, self._start, self._by_value, self._tasks)
        try:
            await front.open()
        except BaseException:
            await front.end()
            raise
        return front

    async def _keep(self, front: _Front) -> None:
        fruitless = 0
        while True:
            await front.ended.wait()
            self._front = None
            self._before, self._counted = self._before + self._counted, DoorCounts()
            log.error("front end %d (process %d) is lost: it %s", self._number, front.pid, front.how)
            fruitless = 0 if time.monotonic() - front.since > STEADY else fruitless + 1
            replaced = await self._replaced(fruitless)
            if replaced is None:
                return
            front = replaced
            log.warning("front end %d: a new process, %d", self._number, front.pid)

    async def _replaced(self, fruitless: int) -> _Front | None:
        for failed in range(MAX_FAILED_STARTS):
            # The first at once: a start takes half a second anyway.
            await asyncio.sleep(restart_delay(max(fruitless - 1, failed)))
            try:
                return await self._filled()
            except (OSError, ValueError, FrontFailed) as error:
                self._front, last = None, error
                log.error("front end %d: start %d failed: %s", self._number, failed + 1, error)
        log.error("front end %d cannot be started any more", self._number)
        self._lost(last if isinstance(last, FrontFailed) else FrontFailed(self._number, str(last)))
        return None


class _Front:
    """One front end's process, from its start to its end."""

    def __init__(
        self, app: App, number: int, start: Start, by_value: Collection[str], tasks: asyncio.TaskGroup
    ) -> None:
        self._app = app
        self._number = number
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._listening: asyncio.Future[None] = self._loop.create_future()
        self._child: Child | None = None
        self.link = HubLink(app, tasks, self._received, self._line_lost, by_value)
        self.ended = asyncio.Event()
        """Set when the process is reaped."""
        self.since = 0.0
        """When its door was open, on the clock of time.monotonic."""

    @property
    def pid(self) -> int:
        """Its number; 0 before it is started."""
        return 0 if self._child is None else self._child.pid

    @property
    def how(self) -> str:
        """How it ended, for people."""
        return "was never started" if self._child is None else self._child.describe_end()

    async def open(self) -> None:
        """Start it, and wait until its door is open; raises OSError, ValueError or FrontFailed when it cannot be."""
        ours, theirs = socket.socketpair()
        with theirs:
            memory = Memory.create()
            descriptors = [theirs.fileno(), *([] if memory is None else memory.descriptors)]
            try:
                await self.link.channel.open(ours, memory)
            except BaseException:
                ours.close()
                if memory is not None:
                    memory.close()
                raise
            name = f"tidegate-front-{self._number}"
            self._child = Child(name, descriptors, {}, self._reaped, "tidegate_transports.front_process")
        await self._listening
        self.since = time.monotonic()

    async def drain(self, ends_at: float) -> None:
        """Let it finish its requests, until `ends_at` and a moment more."""
        self.link.channel.send(Drain(max(0.0, ends_at - self._loop.time())))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(max(ends_at, self._loop.time()) + LAST_WORDS):
                await self.ended.wait()

    async def end(self) -> None:
        """Kill it; when this returns, nothing is left of it."""
        self.link.channel.abort()
        if self._child is None:
            return
        self._child.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self.ended.wait()

    # ------------------------------------------------------------------ what happens

    def _received(self, message: Message) -> None:
        match message:
            case Hello(version=version) if version == VERSION:
                self.link.channel.send(self._start)
            case Hello(version=version):
                text = (
                    f"it speaks version {version} of what the service's processes tell each other, and this one "
                    f"version {VERSION}: tidegate was changed while the service ran; start the service again"
                )
                self._cannot_listen(FrontFailed(self._number, text))
            case Listening():
                self.link.channel.send(News(self._app.ready, self._app.alive, self._app.draining))
                if not self._listening.done():
                    self._listening.set_result(None)
            case NotListening():
                self._cannot_listen(self._reason(message))
            case _:
                log.error("a front end sent %s, which is not for it to say", type(message).__name__)

    def _reason(self, told: NotListening) -> Exception:
        if told.kind == "OSError":
            return OSError(told.errno, told.text, str(Address(self._start.host, self._start.port)))
        return (
            ValueError(told.text) if told.kind == "ValueError" else FrontFailed(self._number, told.text, told.traceback)
        )

    def _cannot_listen(self, reason: Exception) -> None:
        if not self._listening.done():
            self._listening.set_exception(reason)
            self._listening.exception()  # whoever waited for it may have gone

    def _line_lost(self) -> None:
        # It should end by itself then; one that does not can be of no more use.
        if self._child is not None and not self.ended.is_set():
            self._loop.call_later(LAST_WORDS, self._child.kill)

    def _reaped(self) -> None:
        self.ended.set()
        self.link.closed()
        # Who it started may hold its end open; what it said last is of use to nobody.
        self.link.channel.abort()
        self._cannot_listen(FrontFailed(self._number, f"it {self.how} before it listened"))

"""Several processes at one HTTP port, one hub behind them: the door of a service whose Python is what it waits for."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from tidegate import App
from tidegate.status import DoorCounts
from tidegate.workers.reference import reference_to
from tidegate.workers.replica import restart_delay
from tidegate.workers.spawn import Child
from tidegate_transports.address import parse_address
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.ipc_hub import HubLink
from tidegate_transports.ipc_messages import VERSION, Drain, Hello, Listening, Message, News, Start
from tidegate_transports.listening import reserve, url_of

__all__ = ["FrontsTransport"]

log = logging.getLogger("tidegate.fronts")

LOOKS_EVERY = 0.25
"""Seconds between two looks at whether the app is still ready, for the front ends to say."""

ANSWERS_WITHIN = 1.0
"""Seconds that a front end gets to say what it has counted."""

LAST_WORDS = 1.0
"""Seconds that a front end gets to end after its requests have."""

MAX_FAILED_STARTS = 8


class FrontsTransport:
    """Serves an app at `address` through `processes` front ends, each with the door named `transport` of its own.

    Each parses, validates, decodes and encodes; the hub, which is this process, owns the batcher and the workers. A
    front end that dies takes its own connections along and is replaced. They share the port by SO_REUSEPORT, which is
    tried without first: where another service listens already this fails.
    """

    def __init__(
        self,
        address: str,
        processes: int,
        transport: str = "http",
        options: HTTPOptions | None = None,
        log_format: str = "text",
        **given: Any,
    ) -> None:
        if processes < 1:
            raise ValueError(f"http_processes={processes!r}: give a whole number, 1 or more")
        self._address = parse_address(address)
        self._processes = processes
        self._transport = transport
        self._log_format = log_format
        self.options = options or HTTPOptions.from_environment(os.environ, **given)
        self._scheme = "https" if self.options.tls_certificate else "http"
        self.url = f"{self._scheme}://{self._address}"

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Open the doors; raises OSError when the address cannot be taken or a front end cannot open its door."""
        reserved = reserve(self._address)
        self.url = url_of(reserved, self._address, self._scheme)
        host, port = self._address.host, reserved[0].getsockname()[1]
        start = self._start(app, host, port)
        fronts = [_Front(app, number, start) for number in range(self._processes)]
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    await asyncio.gather(*(front.start(tasks) for front in fronts))
                    news = tasks.create_task(_tell(app, fronts))
                    app.counters += [front.counts for front in fronts]
                    yield
                    news.cancel()
                    ends_at = min(app.drain_ends_at, asyncio.get_running_loop().time() + app.drain_timeout)
                    await asyncio.gather(*(front.drain(ends_at) for front in fronts))
                finally:
                    for front in fronts:
                        front.kill()
        finally:
            for one in reserved:
                one.close()

    def _start(self, app: App, host: str, port: int) -> Start:
        references = [reference_to(handler) for handler in app.handlers.values()]
        options = dataclasses.asdict(self.options)
        return Start(VERSION, references, self._transport, host, port, options, self._log_format, app.drain_timeout)


class _Front:
    """One place for a front end, kept filled."""

    def __init__(self, app: App, number: int, start: Start) -> None:
        self._app = app
        self._number = number
        self._start = start
        self._by_value = [name for name, one in zip(app.handlers, start.handlers, strict=True) if one.by_value]
        self._stopping = False
        self._child: Child | None = None
        self._listening: asyncio.Future[None]
        self._tasks: asyncio.TaskGroup
        self.link: HubLink | None = None
        self._before = DoorCounts()
        self._counted = DoorCounts()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """The first process; its door is open when this returns."""
        self._tasks = tasks
        await self._spawn()

    async def drain(self, ends_at: float) -> None:
        """Let it finish its requests, until `ends_at` and a moment more."""
        self._stopping = True
        link = self.link
        if link is None or link.gone.is_set():
            return
        loop = asyncio.get_running_loop()
        link.channel.send(Drain(max(0.0, ends_at - loop.time())))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(max(ends_at, loop.time()) + LAST_WORDS):
                await link.gone.wait()

    async def counts(self) -> DoorCounts:
        """What its doors have counted, those of the processes before it included as far as they told."""
        link = self.link
        if link is not None and not link.gone.is_set():
            with suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(ANSWERS_WITHIN):
                    self._counted = msgspec.convert(await link.ask("counts"), DoorCounts)
        return self._before + self._counted

    def kill(self) -> None:
        """End it now."""
        self._stopping = True
        if self._child is not None:
            self._child.kill()

    def tell(self, news: News) -> None:
        """How the app is."""
        if self.link is not None and not self.link.gone.is_set():
            self.link.channel.send(news)

    async def _spawn(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._listening = loop.create_future()
        link = self.link = HubLink(self._app, self._tasks, self._received, self._by_value)
        try:
            self._child = Child(
                f"tidegate-front-{self._number}",
                [theirs.fileno()],
                {},
                lambda: self._ended(link),
                "tidegate_transports.front_process",
            )
        finally:
            theirs.close()
        await loop.create_unix_connection(lambda: link.channel, sock=ours)
        await self._listening

    def _received(self, message: Message) -> None:
        assert self.link is not None
        match message:
            case Hello(version=version) if version == VERSION:
                self.link.channel.send(self._start)
            case Hello(version=version):
                self._fail(OSError(f"a front end speaks version {version} of the protocol, this is {VERSION}"))
            case Listening(error=""):
                self.link.channel.send(_news(self._app))
                if not self._listening.done():
                    self._listening.set_result(None)
            case Listening(error=error):
                self._fail(OSError(None, error, self._start.host))
            case _:
                log.error("a front end sent %s, which is not for it to say", type(message).__name__)

    def _fail(self, error: OSError) -> None:
        if not self._listening.done():
            self._listening.set_exception(error)

    def _ended(self, link: HubLink) -> None:
        link.closed()
        self._before, self._counted = self._before + self._counted, DoorCounts()
        assert self._child is not None
        how = self._child.describe_end()
        if not self._listening.done():
            self._fail(OSError(None, f"front end {self._number} {how} before it listened"))
        elif not self._stopping:
            log.error("front end %d (process %d) is lost: it %s", self._number, self._child.pid, how)
            self._tasks.create_task(self._restart())

    async def _restart(self) -> None:
        for failed in range(MAX_FAILED_STARTS):
            await asyncio.sleep(restart_delay(failed))
            if self._stopping:
                return
            try:
                await self._spawn()
            except OSError as error:
                log.error("front end %d: start %d failed: %s", self._number, failed + 1, error)
            else:
                log.warning("front end %d: a new process, %d", self._number, self._child.pid if self._child else 0)
                return
        log.error("front end %d cannot be started any more", self._number)


async def _tell(app: App, fronts: list[_Front]) -> None:
    """Let the front ends know when the app becomes ready, or is no longer."""
    last = _news(app)
    while True:
        await asyncio.sleep(LOOKS_EVERY)
        now = _news(app)
        if now != last:
            last = now
            for front in fronts:
                front.tell(now)


def _news(app: App) -> News:
    return News(app.ready, app.alive, app.draining)

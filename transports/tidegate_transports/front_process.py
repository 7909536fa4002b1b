"""Inside a front end's process: a door like any other, in front of an app that is the hub's."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from tidegate import Handler
from tidegate.status import DoorCounts
from tidegate.transport import load_transport
from tidegate.workers.spawn import follow_parent, ignore_signals
from tidegate_transports.address import Address
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.ipc_front import RemoteApp
from tidegate_transports.ipc_messages import VERSION, Channel, Drain, Hello, Listening, Message, Question, Reply, Start
from tidegate_transports.logs import configure

__all__ = ["main"]


def main(descriptor: int) -> None:
    """A front end's whole life: open the door, answer until told to drain, end. Without the hub it ends at once."""
    follow_parent()
    ignore_signals()
    faulthandler.enable()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_Front(socket.socket(fileno=descriptor)).live())


class _Front:
    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._started: asyncio.Future[Start]
        self._drained: asyncio.Future[float]
        self._app: RemoteApp | None = None

    async def live(self) -> None:
        loop = asyncio.get_running_loop()
        self._started, self._drained = loop.create_future(), loop.create_future()
        self._channel = Channel(self._received, _leave)
        await loop.create_unix_connection(lambda: self._channel, sock=self._line)
        self._channel.send(Hello(VERSION))
        start = await self._started
        if start.version != VERSION:
            raise SystemExit(f"the hub speaks version {start.version} of the protocol, this is {VERSION}")
        try:
            app = self._made(start)
            door = self._door(start)
        except BaseException as error:
            await self._refuse(f"{type(error).__name__}: {error}")
            raise
        await self._serve(app, door, start)

    async def _serve(self, app: RemoteApp, door: Any, start: Start) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with door.serve(app):
                self._channel.send(Listening())
                seconds = await self._drained
                app.draining = True
                app.drain_ends_at = loop.time() + seconds
        except OSError as error:
            await self._refuse(error.strerror or str(error))
            raise

    async def _refuse(self, error: str) -> None:
        self._channel.send(Listening(error))
        await asyncio.sleep(0)  # so that it is sent

    def _made(self, start: Start) -> RemoteApp:
        configure(start.log_format)
        handlers: dict[str, Handler[..., Any]] = {}
        by_value = []
        for reference in start.handlers:
            handler = reference.load()
            handler.freeze()
            handlers[handler.name] = handler
            if reference.by_value:
                by_value.append(handler.name)
        # User code may have set handlers of its own when it was imported.
        ignore_signals()
        self._app = app = RemoteApp(
            handlers, self._channel, drain_timeout=start.drain_timeout, by_value=frozenset(by_value)
        )
        return app

    def _door(self, start: Start) -> Any:
        door: Callable[..., Any] = load_transport(start.transport)
        address = str(Address(start.host, start.port))
        return door(address, HTTPOptions(**start.options), shared=True)

    def _received(self, message: Message) -> None:
        match message:
            case Start():
                self._started.set_result(message)
            case Drain(seconds=seconds):
                if not self._drained.done():
                    self._drained.set_result(seconds)
            case Question():
                self._replying = asyncio.ensure_future(self._reply(message))
            case _ if self._app is not None:
                self._app.received(message)

    async def _reply(self, question: Question) -> None:
        counted = DoorCounts() if self._app is None else await self._app.counts()
        self._channel.send(Reply(question.id, counted))


def _leave() -> NoReturn:
    """The hub has gone: there is nobody to ask, and nobody who would start another."""
    os._exit(70)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory

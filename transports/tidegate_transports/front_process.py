"""Inside a front end's process: a door like any other, in front of an app that is the hub's."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from tidegate import Handler
from tidegate.devices import cuda_context_made
from tidegate.status import DoorCounts
from tidegate.transport import load_transport
from tidegate.workers.reference import MAIN, Reference
from tidegate.workers.spawn import follow_parent, ignore_signals
from tidegate_transports.address import Address
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.ipc_channel import Channel
from tidegate_transports.ipc_front import RemoteApp
from tidegate_transports.ipc_memory import Memory
from tidegate_transports.ipc_messages import (
    VERSION,
    Drain,
    Hello,
    Listening,
    Message,
    NotListening,
    Question,
    Reply,
    Start,
)
from tidegate_transports.logs import configure

__all__ = ["main"]

log = logging.getLogger("tidegate.fronts")

HUB_LOST = 70
"""The exit status without a hub; sysexits.h calls it an internal error."""


def main(descriptor: int, *memory: int) -> None:
    """A front end's whole life: open the door, answer until told to drain, end. Without the hub it ends at once.

    descriptor: of its line to the hub. memory: descriptors of what both see, if there is such memory.
    """
    follow_parent()
    ignore_signals()
    for inherited in (descriptor, *memory):
        os.set_inheritable(inherited, False)
    faulthandler.enable()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_Front().live(socket.socket(fileno=descriptor), Memory.open(memory)))


class _Front:
    """What the hub says, and what is done about it."""

    def __init__(self) -> None:
        self._app: RemoteApp | None = None
        self._replies: set[asyncio.Task[None]] = set()

    async def live(self, line: socket.socket, memory: Memory | None) -> None:
        """From the first word to the last."""
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[Start] = loop.create_future()
        self._drained: asyncio.Future[float] = loop.create_future()
        self._channel = Channel(self._received, _leave)
        await self._channel.open(line, memory)
        self._channel.send(Hello(VERSION))
        start = await self._started
        configure(start.log_format)  # type: ignore[arg-type]  # it says itself what it takes
        try:
            handlers = _loaded(start.handlers)
        except BaseException as error:  # noqa: BLE001 - whatever the user's module raises when it is imported
            await self._refuse(type(error).__name__, f"{type(error).__name__}: {error}", traceback.format_exc())
        by_value = frozenset(name for name, one in zip(handlers, start.handlers, strict=True) if one.by_value)
        self._app = RemoteApp(
            handlers, self._channel, drain_timeout=start.drain_timeout, windows=start.windows, by_value=by_value
        )
        await self._serve(self._app, start)

    async def _serve(self, app: RemoteApp, start: Start) -> None:
        loop = asyncio.get_running_loop()
        make: Callable[..., Any] = load_transport(start.transport)
        try:
            door = make(str(Address(start.host, start.port)), HTTPOptions(**start.options), shared=True)
            async with door.serve(app):
                # What is there now stays: the collector need not look at it again and again.
                gc.collect()
                gc.freeze()
                self._channel.send(Listening())
                seconds = await self._drained
                app.draining = True
                app.drain_ends_at = loop.time() + seconds
        except OSError as error:
            await self._refuse("OSError", error.strerror or str(error), errno=error.errno)
        except Exception as error:  # noqa: BLE001 - a door of somebody else's may raise anything
            await self._refuse(type(error).__name__, str(error), traceback.format_exc())

    async def _refuse(self, kind: str, text: str, told: str = "", errno: int | None = None) -> NoReturn:
        """Say why there will be no door here, and end."""
        self._channel.send(NotListening(kind, text, errno, told))
        await asyncio.sleep(0)  # so that it is sent
        raise SystemExit(1)

    def _received(self, message: Message) -> None:
        match message:
            case Start():
                self._started.set_result(message)
            case Drain(seconds=seconds):
                if not self._drained.done():
                    self._drained.set_result(seconds)
            case Question():
                task = asyncio.ensure_future(self._reply(message))
                self._replies.add(task)
                task.add_done_callback(self._replies.discard)
            case _ if self._app is not None:
                self._app.received(message)

    async def _reply(self, question: Question) -> None:
        counted = DoorCounts() if self._app is None else await self._app.counts()
        self._channel.send(Reply(question.id, msgspec.msgpack.encode(counted)))


def _loaded(references: Sequence[Reference]) -> dict[str, Handler[..., Any]]:
    """The handlers, by name and in order; each module runs once."""
    handlers: dict[str, Handler[..., Any]] = {}
    has_main = False
    for reference in references:
        if reference.main and has_main:
            # Another of the main script's, which must not run again.
            reference = msgspec.structs.replace(reference, main=False, file="", module=MAIN)
        has_main = has_main or reference.main
        handler = reference.load()
        # What is an array is written for the hub next, and needs no memory of its own before; within something else it
        # would be pickled as what nobody may write to.
        handler.freeze(writable=handler.codec.array is None)
        handlers[handler.name] = handler
    # User code may have set handlers of its own when it was imported.
    ignore_signals()
    if cuda_context_made():
        log.warning(
            "the module of a handler uses a GPU when it is imported: every front end then takes memory there; "
            "load the model in setup="
        )
    return handlers


def _leave() -> NoReturn:
    """The hub has gone: there is nobody to ask, and nobody who would start another."""
    os._exit(HUB_LOST)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory

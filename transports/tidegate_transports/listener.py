"""All connections of one HTTP door: what they share, and their end; idle ones are closed, busy ones have until one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from tidegate_transports.connection import Connection
from tidegate_transports.http_options import HTTPOptions

__all__ = ["GRACE", "Answer", "Listener", "Upgrade"]

GRACE = 0.1
"""Seconds after the last connection was taken until those that have asked nothing are closed."""

Answer = Callable[[Connection, RawRequestMessage, StreamReader], Awaitable[bool]]
"""Answers a request through its connection, and says whether that may bring another."""

Upgrade = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listener:
    """What the connections of one door share."""

    def __init__(self, answer: Answer, upgrade: Upgrade, options: HTTPOptions) -> None:
        self.answer = answer
        self.upgrade = upgrade
        self._options = options
        self._loop = asyncio.get_running_loop()
        self.live: set[Connection] = set()
        self._empty = asyncio.Event()

    def __call__(self) -> Connection:
        return Connection(self, self._options, self._loop)

    def lost(self, connection: Connection) -> None:
        self.live.discard(connection)
        if not self.live:
            self._empty.set()

    async def drain(self, until: float) -> None:
        """Close what is idle, wait until `until` on the loop's clock for the rest, then end that too."""
        # Whoever has just connected, or been told nothing of the end yet, is about to send: that is still answered.
        await self._emptied(min(until, self._loop.time() + GRACE))
        for connection in list(self.live):
            connection.end_politely()
        await self._emptied(until)
        for connection in list(self.live):
            connection.end_now()
        await self._emptied(self._loop.time() + 1.0)
        for connection in list(self.live):
            if connection.transport is not None:
                connection.transport.abort()

    async def _emptied(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                while self.live:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            pass

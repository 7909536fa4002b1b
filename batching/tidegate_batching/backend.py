"""What the batcher needs of an event loop, on asyncio and on whatever else anyio runs on.

Two primitives: a waiter per item (a bare future on asyncio costs 0.3 µs where an anyio.Event costs 4) and one alarm
for the whole batcher that can be moved without starting a task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from math import inf
from typing import Any, Protocol

import anyio
import anyio.abc

__all__ = ["Alarm", "Backend", "Recipient", "Waiter", "current_backend"]


class Recipient(Protocol):
    """Who gets one result."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...


class Waiter(Recipient, Protocol):
    """Where one caller waits for one result."""

    def __await__(self) -> Generator[Any, Any, Any]: ...


class Alarm(Protocol):
    """Calls back at the time asked for, or earlier: one look at the queue is cheaper than moving a timer per batch.

    `when`: it rings then at the latest; infinity if nobody asked, minus infinity if it rings on the next turn.
    """

    when: float

    def set(self, when: float) -> None: ...
    def cancel(self) -> None: ...


class Backend(Protocol):
    """One event loop as the batcher sees it; `now` is its monotonic clock in seconds."""

    now: Callable[[], float]
    waiter: Callable[[], Waiter]

    def alarm(self, callback: Callable[[], None], tasks: anyio.abc.TaskGroup) -> Alarm: ...


def current_backend() -> Backend:
    """The backend of the running event loop."""
    try:
        return AsyncioBackend(asyncio.get_running_loop())
    except RuntimeError:  # not under asyncio
        return AnyioBackend()


class AsyncioBackend:
    """Futures and `call_later`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Not loop.time: uvloop's moves once per turn and in whole milliseconds.
        self.now: Callable[[], float] = time.monotonic
        self.waiter: Callable[[], Waiter] = loop.create_future

    def alarm(self, callback: Callable[[], None], tasks: anyio.abc.TaskGroup) -> AsyncioAlarm:
        return AsyncioAlarm(self._loop, callback)


class AsyncioAlarm:
    """One timer handle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self.when = inf

    def set(self, when: float) -> None:
        """Ring at `when` at the latest; at or before now means on the next turn of the loop."""
        if when >= self.when:
            return
        self.cancel()
        delay = when - time.monotonic()
        if delay > 0:
            self.when = when
            self._handle = self._loop.call_later(delay, self._ring)
        else:
            # call_soon, not call_later: everything that became readable in this turn is delivered first.
            self.when = -inf
            self._handle = self._loop.call_soon(self._ring)

    def cancel(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self.when = inf

    def _ring(self) -> None:
        self._handle = None
        self.when = inf
        self._callback()


class AnyioBackend:
    """Events and one sleeping task, for trio."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = anyio.current_time
        self.waiter: Callable[[], Waiter] = EventWaiter

    def alarm(self, callback: Callable[[], None], tasks: anyio.abc.TaskGroup) -> AnyioAlarm:
        alarm = AnyioAlarm(callback)
        tasks.start_soon(alarm.run)
        return alarm


class EventWaiter:
    """An anyio.Event with a value."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._result: Any = None

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, result: Any, /) -> None:
        self._result = result
        self._event.set()

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from self._event.wait().__await__()
        return self._result


class AnyioAlarm:
    """A task that sleeps until the time asked for, woken when that moves closer."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._moved = anyio.Event()
        self.when = inf

    def set(self, when: float) -> None:
        """Ring at `when` at the latest; at or before now means on the next turn of the loop."""
        if when < self.when:
            self.when = when if when > anyio.current_time() else -inf
            self._moved.set()

    def cancel(self) -> None:
        """Do not ring."""
        self.when = inf
        self._moved.set()

    async def run(self) -> None:
        """Sleep and ring for ever; runs as a task of its own."""
        while True:
            self._moved = anyio.Event()
            with anyio.CancelScope(deadline=self.when):
                await self._moved.wait()
                continue
            self.when = inf
            self._callback()

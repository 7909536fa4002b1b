"""Runs a load: sends what is due, hears how each request ends, and watches itself doing so."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tidegate.bench.record import Record
from tidegate.bench.schedule import AllAtOnce, Closed, Load
from tidegate.bench.sender import Ending, Sender

__all__ = ["Driver", "Timing"]

BEAT = 0.01
"""Seconds between two looks at the own event loop and at requests that have waited too long."""

PAUSE = 0.05
"""Seconds that a caller in a closed loop waits after it found no connection, so as not to ask for one all the time."""

TURN = 0.001
"""Seconds for which requests are sent before answers are looked at again, however late they are."""

_LOST = ("connection-failed", "connection-lost")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: before anything is counted, that are counted, and that a request may take."""

    warmup: float
    duration: float
    timeout: float


class _Flight:
    """One request."""

    __slots__ = ("_driver", "due", "ended", "place", "sent")

    def __init__(self, driver: Driver, due: float, sent: float) -> None:
        self.due = due
        self.sent = sent
        self.place: object = None
        self.ended = False
        self._driver = driver

    def end(self, ending: Ending) -> None:
        if not self.ended:
            self.ended = True
            self._driver.ended(self, ending)


class Driver:
    """Runs one load once.

    payloads: how many there are; they take turns. look: asked when the measured time begins and when it ends; what it
    gives is the record's `before` and `after`.
    """

    def __init__(
        self,
        sender: Sender,
        payloads: int,
        load: Load,
        timing: Timing,
        *,
        seed: int = 0,
        look: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self._sender = sender
        self._payloads = payloads
        self._load = load
        self._at_once = isinstance(load, AllAtOnce)
        self._is_loop = isinstance(load, (Closed, AllAtOnce))
        self._timing = timing
        self._seed = seed
        self._look = look
        self._in_flight: dict[_Flight, None] = {}
        self._sent = 0
        self._due: Iterator[float] = iter(())
        self._next_due = 0.0
        self._begins = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._now: Callable[[], float]
        self._over: asyncio.Future[None]
        self._record: Record
        self._looks: dict[str, asyncio.Future[Any]] = {}
        self._timers: list[asyncio.Handle] = []
        self._send_timer: asyncio.Handle | None = None
        self._cpu_before: float | None = None

    async def run(self) -> Record:
        """The whole, until every request has ended."""
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._over = self._loop.create_future()
        if self._at_once:
            await self._glance("before")
        self._begins = begins = self._now()
        opens = begins if self._at_once else begins + self._timing.warmup
        self._record = Record(opens, math.inf if self._at_once else opens + self._timing.duration)
        waited = self._sender.waited
        try:
            self._at(opens, self._open_window)
            if not self._at_once:
                self._at(self._record.closes, self._close_window)
            self._beat(begins)
            self._start()
            await self._over
        finally:
            for timer in (*self._timers, self._send_timer):
                if timer is not None:
                    timer.cancel()
        if self._at_once:
            self._record.closes = max(self._record.last_end, begins)
        self._stop_clock()
        await self._glance("after")
        self._record.waited = self._sender.waited - waited
        looks = [await self._looks[when] if when in self._looks else None for when in ("before", "after")]
        self._record.before, self._record.after = looks
        return self._record

    def stop(self) -> None:
        """End now; what has not ended does not count."""
        if self._over.done():
            return
        at = self._now()
        self._record.interrupted = True
        self._record.closes = min(self._record.closes, max(at, self._record.opens))
        self._stop_clock()
        for flight in list(self._in_flight):
            flight.ended = True
            self._record.forget(flight.due)
            self._sender.abandon(flight)
        self._in_flight.clear()
        self._over.set_result(None)

    # ------------------------------------------------------------------ sending

    def _start(self) -> None:
        load = self._load
        if isinstance(load, (Closed, AllAtOnce)):
            for _ in range(load.connections):
                self._send_next()
        else:
            self._due = load.due(self._seed)
            self._next_due = self._begins + next(self._due)
            self._send_due()

    def _send_next(self) -> None:
        """In a loop of callers: the next one's turn."""
        at = self._now()
        if isinstance(self._load, AllAtOnce):
            if self._sent < self._load.requests:
                self._send(self._begins, at)
        elif at < self._record.closes and not self._over.done():
            self._send(at, at)

    def _send_due(self) -> None:
        """On a schedule: everything that is due."""
        if self._over.done():
            return
        began = at = self._now()
        while self._next_due <= at < began + TURN:
            if self._next_due >= self._record.closes:
                self._check_over()
                return
            self._send(self._next_due, at)
            self._next_due = self._begins + next(self._due)
            at = self._now()
        if self._next_due <= at:
            self._loop.call_soon(self._send_due)
        else:
            self._send_timer = self._loop.call_later(self._next_due - at, self._send_due)

    def _send(self, due: float, at: float) -> None:
        flight = _Flight(self, due, at)
        self._in_flight[flight] = None
        self._record.sending(due, None if self._is_loop else at - due)
        self._sent += 1
        self._sender.send((self._sent - 1) % self._payloads, flight)

    def ended(self, flight: _Flight, ending: Ending) -> None:
        """A request has ended, as its sender or the clock says."""
        del self._in_flight[flight]
        self._record.ended(flight.due, ending, self._now())
        if self._is_loop:
            if ending.code == "ok":
                self._send_next()
            elif ending.code in _LOST:
                self._loop.call_later(PAUSE, self._again)
                return
            else:
                # Not at once: who is refused before it has sent would never come back from here.
                self._loop.call_soon(self._again)
                return
        self._check_over()

    def _again(self) -> None:
        if not self._over.done():
            self._send_next()
            self._check_over()

    # ------------------------------------------------------------------ watching

    def _at(self, when: float, callback: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(when - self._now(), callback))

    def _open_window(self) -> None:
        self._cpu_before = time.process_time()
        if not self._at_once:
            self._looks["before"] = asyncio.ensure_future(self._asked())

    def _close_window(self) -> None:
        self._stop_clock()
        self._looks["after"] = asyncio.ensure_future(self._asked())
        self._check_over()

    def _stop_clock(self) -> None:
        if self._cpu_before is not None:
            self._record.cpu = time.process_time() - self._cpu_before
            self._cpu_before = None

    async def _glance(self, when: str) -> None:
        if when not in self._looks:
            self._looks[when] = asyncio.ensure_future(self._asked())
        await self._looks[when]

    async def _asked(self) -> Any:
        return await self._look() if self._look is not None else None

    def _beat(self, due: float) -> None:
        if self._over.done():
            return
        at = self._now()
        if self._record.opens <= at < self._record.closes:
            self._record.lag.add(max(0.0, at - due))
        while self._in_flight:
            oldest = next(iter(self._in_flight))
            if at - oldest.sent < self._timing.timeout:
                break
            oldest.ended = True  # first, since it may be told now that it was cancelled
            self._sender.abandon(oldest)
            self.ended(oldest, Ending("timeout", detail=f"no answer within {self._timing.timeout:g} s"))
        due = max(at, due) + BEAT
        self._loop.call_later(due - self._now(), self._beat, due)

    def _check_over(self) -> None:
        if self._over.done() or self._in_flight:
            return
        if isinstance(self._load, AllAtOnce):
            over = self._sent >= self._load.requests
        else:
            over = self._now() >= self._record.closes
        if over:
            self._over.set_result(None)

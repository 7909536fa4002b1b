"""Everything between a caller and a carrier: deadlines, retries, and the patience of a job."""

from __future__ import annotations

import asyncio
import math

from tidegate.clients.carrier import Carrier, Reply, Request
from tidegate.clients.retries import Retries, is_refusal
from tidegate_batching import DeadlineExceeded, TidegateError

__all__ = ["Asker", "Job"]

RETRY_TIME = 30.0
"""Seconds within which a request without a timeout of its own is sent again."""

STANDSTILL = 300.0
"""Seconds for which a job waits for a service that refuses everything."""


class Asker:
    """Asks through a carrier, again where that makes sense. retries: how often at most."""

    def __init__(self, carrier: Carrier, retries: int) -> None:
        self.retries = retries
        self._carrier: Carrier | None = carrier

    def close(self) -> None:
        """Ask nothing any more."""
        self._carrier = None

    async def ask(self, request: Request) -> Reply:
        """Send it until the answer begins, the service's word is final or the time is over."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + (RETRY_TIME if request.timeout is None else request.timeout)
        retries = Retries(self.retries)
        while True:
            try:
                if request.timeout is None:
                    return await self.ask_once(request)
                return await self._ask_in_time(request, ends_at - loop.time())
            except TidegateError as error:
                pause = retries.pause(error, now=loop.time(), ends_at=ends_at)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def ask_once(self, request: Request) -> Reply:
        """Send it; RuntimeError when the client is closed."""
        if self._carrier is None:
            raise RuntimeError("this client is not open any more")
        return await self._carrier.ask(request)

    async def _ask_in_time(self, request: Request, left: float) -> Reply:
        left = max(0.0, left)
        try:
            async with asyncio.timeout(left + _slack(left)):
                return await self.ask_once(Request(request.value, request.handler, left, request.priority))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {request.timeout:g} s") from None


class Job:
    """What one `map` asks: without a deadline, and again for as long as the service says "later"."""

    def __init__(self, asker: Asker, handler: str | None, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency!r}: give a whole number from 1")
        self._asker = asker
        self._handler = handler
        self._concurrency = concurrency
        self._ends_at = math.inf

    def window(self) -> int:
        """How many inputs are under way at a time."""
        return self._concurrency

    async def ask(self, value: object) -> object:
        """One input to its output; to the list of its chunks where the handler streams."""
        loop = asyncio.get_running_loop()
        retries = Retries(self._asker.retries, patient=True)
        while True:
            try:
                output = await self._answer(Request(value, self._handler))
            except TidegateError as error:
                # From the first refusal on, for as long as none of the job's items gets any other answer.
                self._ends_at = min(self._ends_at, loop.time() + STANDSTILL) if is_refusal(error) else math.inf
                pause = retries.pause(error, now=loop.time(), ends_at=self._ends_at)
                if pause is None:
                    raise
            else:
                self._ends_at = math.inf
                return output
            await asyncio.sleep(pause)

    async def _answer(self, request: Request) -> object:
        reply = await self._asker.ask_once(request)
        if reply.chunks is None:
            return reply.output
        try:
            return [chunk async for chunk in reply.chunks]
        finally:
            await reply.chunks.aclose()


def _slack(timeout: float) -> float:
    """What the service's own word about a deadline may take to arrive."""
    return min(1.0, 0.1 + timeout / 10)

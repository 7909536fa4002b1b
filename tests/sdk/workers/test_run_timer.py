import asyncio

import anyio
import pytest

from tidegate.workers.run_timer import RunTimer
from tidegate_batching import Batch

pytestmark = pytest.mark.anyio


def batch(slot: int = 0) -> Batch:
    made = Batch.of([1])
    made.slot = slot
    return made


class Timed:
    """A timer, and the limits that were outlived."""

    def __init__(self, limit: float | None) -> None:
        self.outlived: list[float] = []
        self.rang = asyncio.Event()
        self.timer = RunTimer(limit, self.ring)

    def ring(self, limit: float) -> None:
        self.outlived.append(limit)
        self.rang.set()

    @property
    def running(self) -> int:
        return sum(not timer.cancelled() for timer in self.timer._timers.values())


async def test_a_batch_that_outlives_the_limit_is_told() -> None:
    timed = Timed(0.01)
    timed.timer.begin(batch())
    with anyio.fail_after(10):
        await timed.rang.wait()
    assert timed.outlived == [0.01]


async def test_a_batch_that_has_ended_does_not_ring() -> None:
    timed = Timed(0.01)
    first = batch()
    timed.timer.begin(first)
    timed.timer.end(first)
    assert timed.running == 0
    await asyncio.sleep(0.02)
    assert timed.outlived == []


async def test_the_time_of_a_slots_second_batch_begins_when_the_first_has_ended() -> None:
    timed = Timed(0.1)
    loop = asyncio.get_running_loop()
    first, second = batch(), batch()
    timed.timer.begin(first)
    timed.timer.begin(second)
    assert timed.running == 1
    await asyncio.sleep(0.05)
    before = loop.time()
    timed.timer.end(first)
    assert timed.running == 1
    assert timed.timer._timers[0].when() >= before + 0.1
    timed.timer.end(second)
    assert timed.running == 0
    await asyncio.sleep(0.12)
    assert timed.outlived == []


async def test_every_slot_has_a_time_of_its_own() -> None:
    timed = Timed(0.01)
    one, other = batch(0), batch(1)
    timed.timer.begin(one)
    timed.timer.begin(other)
    timed.timer.end(one)
    with anyio.fail_after(10):
        await timed.rang.wait()
    assert timed.outlived == [0.01]


async def test_without_a_limit_nothing_is_timed() -> None:
    timed = Timed(None)
    first = batch()
    timed.timer.begin(first)
    assert timed.running == 0
    timed.timer.end(first)


async def test_a_stopped_timer_does_not_ring() -> None:
    timed = Timed(0.01)
    timed.timer.begin(batch())
    timed.timer.stop()
    await asyncio.sleep(0.02)
    assert timed.outlived == []


async def test_what_ends_after_its_time_is_no_error() -> None:
    timed = Timed(0.01)
    late = batch()
    timed.timer.begin(late)
    with anyio.fail_after(10):
        await timed.rang.wait()
    timed.timer.end(late)
    assert timed.running == 0

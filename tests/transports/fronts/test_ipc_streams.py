"""Streams through a front end and the hub: nothing is lost, nobody is buried, what nobody reads is ended."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from tidegate import END, DeadlineExceeded, EncodeError, HandlerError, HTTPError, SlowReader, serve
from tidegate.context import RequestInfo
from tidegate_transports.ipc_stream import BYTES_AHEAD, CHUNKS_AHEAD, Window
from tidegate_transports.ipc_values import Value

pytestmark = pytest.mark.anyio

CORE_CHUNKS = 256
"""Chunks that the core keeps for a reader."""


class Endless:
    """An unbatched stream that counts its steps, and says when it is closed."""

    def __init__(self, chunk: Any = "x") -> None:
        self.steps = 0
        self.closed = threading.Event()

        @serve
        def endless(n: int) -> Iterator[Any]:
            try:
                while True:
                    self.steps += 1
                    yield chunk
            finally:
                self.closed.set()

        self.handler = endless

    async def stands_still(self) -> int:
        """How many steps it has made when it makes no more."""
        before = -1
        while before != self.steps:
            before = self.steps
            await asyncio.sleep(0.1)
        return before


@serve(max_batch_size=4)
def count(starts: list[int]) -> Iterator[list[Any]]:
    for step in range(max(starts)):
        yield [step if step < start else END for start in starts]


async def test_every_chunk_comes_in_order_however_many(joined: Any) -> None:
    async with joined(count) as (_, (front,)):

        async def read(n: int) -> None:
            assert [chunk async for chunk in front.app.stream("count", n)] == list(range(n))

        await asyncio.gather(read(1000), read(3))
        assert front.link.under_way == 0


async def test_a_stream_says_how_long_it_queued_also_without_a_chunk(joined: Any) -> None:
    async with joined(count) as (_, (front,)):
        for n in (0, 3):
            stream = front.app.stream("count", n)
            assert len([chunk async for chunk in stream]) == n
            assert 0 < stream.queued < 5


async def test_arrays_in_chunks_stay_arrays(joined: Any) -> None:
    @serve
    def rows(n: int) -> Iterator[np.ndarray]:
        yield from np.eye(n)

    async with joined(rows) as (_, (front,)):
        found = [chunk async for chunk in front.app.stream("rows", 3)]
        assert np.array_equal(found, np.eye(3))


# ---------------------------------------------------------------------- failures


@serve
def failing(after: int) -> Iterator[int]:
    yield from range(after)
    raise HTTPError(409, "not today")


@pytest.mark.parametrize("after", [0, 1, 100])
async def test_a_failure_comes_after_the_chunks_before_it(after: int, joined: Any) -> None:
    async with joined(failing) as (_, (front,)):
        found = []
        stream = front.app.stream("failing", after)
        with pytest.raises(HTTPError, match="not today"):
            async for chunk in stream:
                found.append(chunk)
        assert found == list(range(after))
        with pytest.raises(HTTPError):
            await anext(stream)


async def test_the_deadline_of_a_stream_is_that_of_its_first_chunk(joined: Any) -> None:
    @serve
    async def late(n: int) -> AsyncIterator[int]:
        if n == 0:
            await asyncio.sleep(0.5)
        yield 1
        await asyncio.sleep(0.1)
        yield 2

    async with joined(late) as (_, (front,)):
        with pytest.raises(DeadlineExceeded):
            await anext(front.app.stream("late", 0, timeout=0.02))
        assert [chunk async for chunk in front.app.stream("late", 1, timeout=0.09)] == [1, 2]


async def test_a_chunk_that_cannot_be_sent_ends_the_stream_and_its_generator(joined: Any) -> None:
    closed = threading.Event()

    @serve
    def odd(n: int) -> Iterator[Any]:
        try:
            while True:
                yield threading.Lock()
        finally:
            closed.set()

    async with joined(odd) as (_, (front,)):
        with pytest.raises(EncodeError, match="lock"):
            await anext(front.app.stream("odd", 1))
        assert await asyncio.to_thread(closed.wait, 10)


async def test_a_chunk_that_cannot_be_made_again_ends_the_stream_and_its_generator(
    joined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr("tidegate_transports.ipc_hub.encode_value", lambda value, **_: Value(3, b"no pickle"))
    async with joined(endless.handler) as (_, (front,)):
        with pytest.raises(HandlerError):
            await anext(front.app.stream("endless", 1))
        assert await asyncio.to_thread(endless.closed.wait, 10)


# ---------------------------------------------------------------------- the end


async def test_closing_a_stream_closes_its_generator(joined: Any) -> None:
    endless = Endless()
    async with joined(endless.handler) as (_, (front,)):
        async with front.app.stream("endless", 1) as stream:
            assert await anext(stream) == "x"
        assert await asyncio.to_thread(endless.closed.wait, 10)


async def test_a_stream_that_is_closed_before_the_hub_has_begun_it_leaves_nothing_behind(
    joined: Any, until: Any
) -> None:
    endless = Endless()
    async with joined(endless.handler, count) as (_, (front,)):
        await front.app.stream("endless", 1).aclose()  # in one frame with what it takes back
        assert [chunk async for chunk in front.app.stream("count", 2)] == [0, 1]
        await until(lambda: front.link.under_way == 0)
        assert endless.steps == 0


async def test_the_death_of_a_front_end_closes_its_generators(joined: Any, until: Any) -> None:
    endless = Endless()
    async with joined(endless.handler, fronts=2) as (_, (dead, alive)):
        await anext(dead.app.stream("endless", 1))
        await dead.die()
        assert await asyncio.to_thread(endless.closed.wait, 10)
        assert await anext(alive.app.stream("endless", 1)) == "x"
        await until(lambda: dead.link.under_way == 0)


# ---------------------------------------------------------------------- readers that do not read


async def test_an_unbatched_generator_waits_for_its_reader_and_then_goes_on(joined: Any) -> None:
    endless = Endless()
    async with joined(endless.handler) as (_, (front,)):
        async with front.app.stream("endless", 1) as stream:
            await anext(stream)
            steps = await endless.stands_still()
            assert steps < CHUNKS_AHEAD + CORE_CHUNKS + 20
            for _ in range(2 * steps):
                await anext(stream)
            assert await endless.stands_still() > 2 * steps
        assert await asyncio.to_thread(endless.closed.wait, 10)


async def test_its_patience_is_the_callers(joined: Any) -> None:
    endless = Endless()
    async with joined(endless.handler) as (_, (front,)):
        info = RequestInfo(patience=0.05)
        async with front.app.stream("endless", 1, info=info) as stream:
            await anext(stream)
            assert await asyncio.to_thread(endless.closed.wait, 10)
            with pytest.raises(SlowReader):
                while True:
                    await anext(stream)


async def test_a_slow_reader_of_a_batch_is_ended_and_its_neighbour_is_not(joined: Any) -> None:
    async with joined(count) as (app, (front,)):
        slow, fast = (front.app.stream("count", 3000) for _ in range(2))
        assert await anext(slow) == 0
        assert [chunk async for chunk in fast] == list(range(3000))
        found = []
        with pytest.raises(SlowReader):
            async for chunk in slow:
                found.append(chunk)
        assert found == list(range(1, len(found) + 1))
        assert len(found) < CHUNKS_AHEAD + CORE_CHUNKS + 20
        assert app.statistics()["count"].outcomes["slow-reader"] == 1


@pytest.mark.parametrize("size", [10_000, 100_000, 3_000_000])
async def test_large_chunks_flow_and_few_are_kept_for_who_does_not_read(size: int, joined: Any) -> None:
    endless = Endless(b"x" * size)
    async with joined(endless.handler) as (_, (front,)):
        async with front.app.stream("endless", 1) as stream:
            await anext(stream)
            steps = await endless.stands_still()
            # The line's share, the core's megabyte, and what the generator has in hand.
            assert steps * size < BYTES_AHEAD + (1 << 20) + 24 * size
            for _ in range(steps + 10):
                assert len(await anext(stream)) == size
        assert await asyncio.to_thread(endless.closed.wait, 10)


async def test_a_window_is_full_by_number_or_by_size_and_takes_one_chunk_however_large() -> None:
    window = Window()
    states = [window.is_full]
    window.sent(10 * BYTES_AHEAD)
    states.append(window.is_full)
    window.read(1)
    states.append(window.is_full)
    for _ in range(CHUNKS_AHEAD):
        window.sent(1)
    states.append(window.is_full)
    window.read(CHUNKS_AHEAD + 5)  # more than there are does no harm
    states.append(window.is_full)
    assert states == [False, True, False, True, False]

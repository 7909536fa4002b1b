"""What ends a call through a front end and the hub before its answer: a deadline, its caller, either process."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tidegate import DeadlineExceeded, TidegateError, Unavailable, current_batch, serve

pytestmark = pytest.mark.anyio


@serve
def chunks(n: int) -> Iterator[int]:
    yield from range(n)


# ---------------------------------------------------------------------- deadlines, order, cancellation


async def test_a_deadline_travels_as_the_time_left(joined: Any, held: Any) -> None:
    one = held()
    async with joined(one.handler) as (_, (front,)):
        first = asyncio.ensure_future(front.app.call("held", 1))
        await one.has_begun()
        with pytest.raises(DeadlineExceeded):
            await front.app.call("held", 2, timeout=0.02)
        one.go.set()
        assert await first == 1
        assert one.ran == [1]


async def test_the_handlers_own_deadline_holds_too(joined: Any, held: Any) -> None:
    one = held(timeout=0.05)
    async with joined(one.handler) as (_, (front,)):
        with pytest.raises(DeadlineExceeded):
            await front.app.call("held", 1)
        one.go.set()


@pytest.mark.parametrize(("timeout", "least"), [(None, 9.0), (5.0, 4.0)])
async def test_waiting_for_a_busy_hub_counts_against_the_deadline(
    timeout: float | None, least: float, joined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @serve(timeout=10)
    def same(x: int) -> int:
        return x

    async with joined(same) as (_, (front,)):
        sent: list[Any] = []
        send = front.channel.send

        def noted(message: Any) -> None:
            sent.append(message)
            send(message)

        monkeypatch.setattr(front.channel, "send", noted)
        front.channel.pause_writing()
        waiting = asyncio.ensure_future(front.app.call("same", 1, timeout=timeout))
        await asyncio.sleep(0.01)
        assert sent == []
        front.channel.resume_writing()
        assert await waiting == 1
        assert least < sent[0].timeout < (timeout or 10) - 0.001


async def test_the_first_in_order_is_the_first_to_run_wherever_it_came_from(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler, fronts=2) as (app, fronts):
        calls = [asyncio.ensure_future(fronts[0].app.call("held", "first"))]
        await one.has_begun()
        for number, priority in enumerate((5, 1, 3, 0)):
            calls.append(asyncio.ensure_future(fronts[number % 2].app.call("held", priority, priority=priority)))
        await until(lambda: app.statistics()["held"].waiting == 4)
        one.go.set()
        await asyncio.gather(*calls)
        assert one.ran == ["first", 0, 1, 3, 5]


async def test_who_hangs_up_in_the_queue_never_runs(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler) as (app, (front,)):
        calls = [asyncio.ensure_future(front.app.call("held", n)) for n in range(6)]
        await one.has_begun()
        await until(lambda: app.statistics()["held"].waiting == 5)
        for n in (2, 4):
            calls[n].cancel()
        await until(lambda: app.statistics()["held"].waiting == 3)
        one.go.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [n for n in done if isinstance(n, int)] == one.ran == [0, 1, 3, 5]
        assert front.link.under_way == 0


async def test_a_running_handler_learns_that_its_caller_has_gone(joined: Any, until: Any) -> None:
    seen: list[bool] = []

    @serve
    async def watch(x: int) -> None:
        (item,) = current_batch().items
        seen.append(False)
        while not item.cancelled:  # noqa: ASYNC110 - a handler has no event for it
            await asyncio.sleep(0.001)
        seen.append(True)

    async with joined(watch) as (_, (front,)):
        call = asyncio.ensure_future(front.app.call("watch", 1))
        await until(lambda: bool(seen))
        call.cancel()
        await until(lambda: seen == [False, True])


async def test_a_job_that_is_cancelled_leaves_nothing_behind(joined: Any, held: Any, until: Any) -> None:
    one = held(max_queue_size=1)
    async with joined(one.handler) as (_, (front,)):
        jobs = [asyncio.ensure_future(front.app.patient_call("held", n)) for n in range(4)]
        await one.has_begun()
        for job in jobs[1:]:
            job.cancel()
        await until(lambda: front.link.under_way == 1)
        one.go.set()
        assert await jobs[0] == 0
        assert one.ran == [0]


# ---------------------------------------------------------------------- deaths


async def test_nothing_that_a_dead_front_end_left_in_the_queue_runs(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler, fronts=2) as (app, (dead, alive)):
        calls = [asyncio.ensure_future(dead.app.call("held", f"dead {n}")) for n in range(5)]
        await one.has_begun()
        others = [asyncio.ensure_future(alive.app.call("held", f"alive {n}")) for n in range(5)]
        jobs = [asyncio.ensure_future(dead.app.patient_call("held", f"job {n}")) for n in range(5)]
        await until(lambda: app.statistics()["held"].waiting == 14)
        await dead.die()
        await until(lambda: app.statistics()["held"].waiting == 5)
        one.go.set()
        assert await asyncio.gather(*others) == one.ran[1:]
        assert one.ran[0] == "dead 0"
        assert dead.link.under_way == 0
        gone = await asyncio.gather(*calls, *jobs, return_exceptions=True)
        assert {type(error) for error in gone} == {Unavailable}


async def test_the_values_of_a_dead_front_end_are_whole_to_the_end_and_told_to_nobody(
    joined: Any, held: Any, until: Any
) -> None:
    one = held()
    async with joined(one.handler, fronts=2) as (_, (dead, alive)):
        call = asyncio.ensure_future(dead.app.call("held", np.full(100_000, 7)))
        await one.has_begun()
        await dead.die()
        assert (dead.channel.outbox, dead.link.channel.outbox) == (None, None)
        (value,) = one.ran
        # Others write their own memory.
        other = asyncio.ensure_future(alive.app.call("held", np.full(100_000, 8)))
        await until(lambda: alive.link.under_way == 1)
        assert set(value) == {7}
        del value
        one.ran.clear()
        one.go.set()
        assert set(await other) == {8}
        one.ran.clear()
        await until(lambda: alive.channel.outbox.used == 0)
        with pytest.raises(Unavailable):
            await call


async def test_without_a_hub_everybody_is_told_and_nobody_hangs(joined: Any, held: Any) -> None:
    one = held()
    async with joined(one.handler, chunks) as (_, (front,)):
        call = asyncio.ensure_future(front.app.call("held", 1))
        await one.has_begun()
        front.link.channel.abort()
        with pytest.raises(Unavailable):
            await call
        one.go.set()
        with pytest.raises(Unavailable):
            await front.app.call("held", 2)
        with pytest.raises(Unavailable):
            await anext(front.app.stream("chunks", 2))
        assert (front.app.ready, front.app.alive) == (False, False)


async def test_callers_come_and_go_at_random_and_nothing_is_left_behind(joined: Any) -> None:
    @serve(max_batch_size=4)
    async def slow(x: list[int]) -> list[int]:
        await asyncio.sleep(0.001)
        return [-n for n in x]

    ends: Counter[str] = Counter()
    rng = random.Random(3)
    async with joined(slow, chunks, fronts=3) as (app, fronts):

        async def caller(front: Any, number: int) -> None:
            try:
                async with asyncio.timeout(rng.choice([0.002, 0.02, 20])):
                    if number % 3:
                        assert await front.app.call("slow", number, timeout=rng.choice([0.01, 20])) == -number
                    else:
                        async with front.app.stream("chunks", 40) as stream:
                            async for chunk in stream:
                                if chunk == number % 70:
                                    break
                ends["ok"] += 1
            except (TimeoutError, TidegateError) as error:
                ends[type(error).__name__] += 1

        callers = [asyncio.ensure_future(caller(fronts[n % 3], n)) for n in range(600)]
        await asyncio.sleep(0.05)
        await fronts[2].die()
        await asyncio.gather(*callers)
        assert ends.total() == 600
        assert ends["ok"] > 50
        # Their last words may still be on the way.
        for _ in range(1000):
            if not any(front.link.under_way for front in fronts):
                break
            await asyncio.sleep(0.001)
        assert [front.link.under_way for front in fronts] == [0, 0, 0]
        for found in app.statistics().values():
            assert found.waiting == 0
            assert found.submitted == sum(found.outcomes.values())

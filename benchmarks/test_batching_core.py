"""What the core costs per request on asyncio: `python -m pytest benchmarks --benchmark-only`.

`floor` is the same callers on a bare future each, answered in batches of the same size with nothing in between: what
asyncio itself takes. Compare with it, for the machine is never quiet. Budget: 7 us per request at batch 8 and more, 20 us at batch 1, waiter included, and
15 us per decision.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tidegate_batching import Action, Batch, Batcher, Dispatch, Item, Policy, Scheduler

REQUESTS = 20_000


@pytest.mark.parametrize("batch_timeout", [0, "auto"])
@pytest.mark.parametrize(("size", "callers"), [(64, 256), (8, 64), (1, 64), (1, 1)])
def test_request_through_the_batcher(benchmark: BenchmarkFixture, size: int, callers: int, batch_timeout: Any) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def start(batch: Batch) -> None:
            loop.call_soon(batch.complete, batch.items)

        async with Batcher[int, int](Policy(max_batch_size=size, batch_timeout=batch_timeout)) as batcher:
            batcher.add_slot(start)

            async def caller() -> None:
                for value in range(REQUESTS // callers):
                    await batcher.submit(value, timeout=30)

            await asyncio.gather(*(caller() for _ in range(callers)))

    _per_request(benchmark, serve)


@pytest.mark.parametrize(("size", "callers"), [(64, 256), (8, 64), (1, 64), (1, 1)])
def test_floor_of_a_bare_future_per_request(benchmark: BenchmarkFixture, size: int, callers: int) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        waiters: list[asyncio.Future[int]] = []

        def answer() -> None:
            batch = waiters[:size]
            del waiters[:size]
            for waiter in batch:
                waiter.set_result(1)
            if waiters:
                loop.call_soon(answer)

        async def caller() -> None:
            for _ in range(REQUESTS // callers):
                waiter = loop.create_future()
                waiters.append(waiter)
                if len(waiters) == 1:
                    loop.call_soon(answer)
                await waiter

        await asyncio.gather(*(caller() for _ in range(callers)))

    _per_request(benchmark, serve)


@pytest.mark.parametrize("batch_timeout", [0, "auto"])
def test_decision(benchmark: BenchmarkFixture, batch_timeout: Any) -> None:
    """Nothing but the decision: 24 items wait, a slot has become free, one tick forms the batch or holds it."""
    scheduler = Scheduler(Policy(max_batch_size=32, batch_timeout=batch_timeout))
    now = 0.0
    scheduler.slot_ready(0, now)
    scheduler.slot_ready(1, now)

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    running: dict[int, int] = {}

    def note(actions: Sequence[Action]) -> None:
        running.update((action.slot, len(action.items)) for action in actions if isinstance(action, Dispatch))

    def prepare() -> None:
        for _ in range(24):
            advance(1e-4)
            note(scheduler.submit(Item(None, deadline=now + 30), now))
        while not running:
            advance(0.02)
            note(scheduler.tick(now))
        slot, size = running.popitem()
        note(scheduler.complete(slot, [None] * size, now))

    def decide() -> None:
        note(scheduler.tick(now))

    benchmark.pedantic(decide, setup=prepare, rounds=3000)


def test_batch_of_32_ends_and_the_next_begins(benchmark: BenchmarkFixture) -> None:
    """Among 1,000 that wait: learning, settling 32 items and the decision together, per batch."""
    scheduler = Scheduler(Policy(max_batch_size=32, max_queue_size=100_000))
    now = 0.0
    scheduler.slot_ready(0, now)

    def refill() -> None:
        nonlocal now
        while scheduler.waiting < 1000:
            now += 1e-5
            scheduler.submit(Item(None, deadline=now + 30), now)

    refill()
    scheduler.tick(now)

    def round_trip() -> None:
        nonlocal now
        now += 0.005
        scheduler.complete(0, [None] * 32, now)

    benchmark.pedantic(round_trip, setup=refill, rounds=2000)


def test_an_idle_batcher_takes_no_processor_time() -> None:
    async def idle() -> float:
        async with Batcher[int, int](Policy(max_batch_size=8)) as batcher:
            batcher.add_slot(lambda batch: batch.complete(batch.items))
            await batcher.submit(1, timeout=30)
            before = resource.getrusage(resource.RUSAGE_SELF)
            begun = time.monotonic()
            await asyncio.sleep(5)
            after = resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return used / (time.monotonic() - begun)

    share = asyncio.run(idle())
    print(f"idle: {share:.4%} of a core")


def _per_request(benchmark: BenchmarkFixture, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    benchmark.pedantic(lambda: asyncio.run(serve()), rounds=7, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_request"] = round(benchmark.stats.stats.min / REQUESTS * 1e6, 2)

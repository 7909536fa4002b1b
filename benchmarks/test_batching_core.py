"""What the core costs per request on asyncio: `python -m pytest benchmarks --benchmark-only`.

`floor` is the same number of callers on a bare future each, with nothing in between: subtract it, or compare ratios,
for the machine is never quiet. Budget: 7 us per request at batch 8 and more, 20 us at batch 1, waiter included, and
15 us per decision.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tidegate_batching import Batch, Batcher, Item, Policy, Scheduler

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


def test_floor_of_a_bare_future_per_request(benchmark: BenchmarkFixture) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        waiters: list[asyncio.Future[int]] = []

        def answer() -> None:
            batch = waiters[:64]
            del waiters[:64]
            for waiter in batch:
                waiter.set_result(1)
            if waiters:
                loop.call_soon(answer)

        async def caller() -> None:
            for _ in range(REQUESTS // 256):
                waiter = loop.create_future()
                waiters.append(waiter)
                if len(waiters) == 1:
                    loop.call_soon(answer)
                await waiter

        await asyncio.gather(*(caller() for _ in range(256)))

    _per_request(benchmark, serve)


def test_decision_with_a_full_queue(benchmark: BenchmarkFixture) -> None:
    """A batch of 32 ends and the next of 1,000 waiting items is formed: learning, settling and decision together."""
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

import asyncio
import time

from tidegate.bench.clock import precise_loop


def test_timers_are_never_early_and_mostly_within_half_a_millisecond() -> None:
    async def lateness() -> list[float]:
        loop = asyncio.get_running_loop()
        found = []
        for _ in range(200):
            due = loop.time() + 0.0013
            fired = loop.create_future()
            loop.call_at(due, fired.set_result, None)
            await fired
            found.append(loop.time() - due)
        return found

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        found = runner.run(lateness())
        assert abs(runner.get_loop().time() - time.monotonic()) < 60
    # Whole milliseconds, rounded up, would make every one of them 0.7 ms late.
    assert min(found) > -1e-4
    assert sorted(found)[20] < 0.0005


def test_sockets_and_threads_still_wake_it() -> None:
    async def woken() -> int:
        return await asyncio.wait_for(asyncio.to_thread(lambda: 7), 30)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        assert runner.run(woken()) == 7

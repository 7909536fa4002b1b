import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tidegate import App, HTTPError, serve
from tidegate.bench.app_sender import AppSender
from tidegate.bench.driver import Driver, Timing
from tidegate.bench.record import Measurement
from tidegate.bench.schedule import AllAtOnce, Closed, Load
from tidegate.handler import Handler

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def invert(xs: list[int]) -> list[float]:
    return [1 / x if x else HTTPError(422, "not zero") for x in xs]  # type: ignore[misc]


@serve
def count(n: int) -> Iterator[int]:
    if n < 0:
        raise HTTPError(418, "no teapot")
    yield from range(n)


async def measured(handler: Handler[Any, Any], values: list[int], load: Load) -> Measurement:
    async with App(handler) as app, AppSender(app, handler.name, values) as sender:
        record = await Driver(sender, len(values), load, Timing(0.0, 1.0, 30.0)).run()
    return record.measurement(None, None, shared=True)


async def test_values_go_through_the_batcher_and_errors_are_told_apart() -> None:
    found = await measured(invert, [1, 2, 0, 4], AllAtOnce(40, 8))
    assert (found.sent, found.ok, found.failed) == (40, 30, 10)
    assert found.codes == {"422 handler-refused": 10}
    assert found.details == {"handler-refused": "not zero"}


async def test_a_stream_counts_when_it_has_ended() -> None:
    found = await measured(count, [3, -1], AllAtOnce(20, 4))
    assert (found.ok, found.failed) == (10, 10)
    assert list(found.codes.values()) == [10]
    assert next(iter(found.codes)).startswith("418 ")


async def test_a_full_queue_refuses_and_the_load_goes_on() -> None:
    @serve(max_batch_size=1, max_queue_size=1)
    def one(xs: list[int]) -> list[int]:
        return xs

    found = await measured(one, [1], Closed(16))
    assert found.refused > 0
    assert found.ok > 0
    assert set(found.codes) == {"429 overloaded"}


async def test_what_takes_too_long_is_taken_out_of_the_queue() -> None:
    go_on = threading.Event()

    @serve(max_batch_size=1)
    def waits(xs: list[int]) -> list[int]:
        go_on.wait(30)
        return xs

    async with App(waits) as app:
        async with AppSender(app, "waits", [1]) as sender:
            record = await Driver(sender, 1, Closed(3), Timing(0.0, 0.1, 0.15)).run()
        found = record.measurement(None, None)
        assert (found.sent, found.timeouts) == (3, 3)
        assert app.statistics()["waits"].waiting == 0
        go_on.set()
        async with asyncio.timeout(30):
            assert await app.call("waits", 2) == 2

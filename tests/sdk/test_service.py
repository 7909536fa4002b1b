import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from tidegate import Handler, SetupFailed, serve
from tidegate.devices import DeviceManager
from tidegate.discovery import CPU
from tidegate.service import Answer, Service

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(handler: Handler[..., Any]) -> AsyncIterator[Service]:
    """A service from its start to its end, on threads."""
    handler.freeze()
    service = Service(handler, DeviceManager([CPU]).plan([handler], "thread")[handler.name])
    await service.start()
    try:
        async with service:
            yield service
            await service.drain(math.inf)
    finally:
        await service.stop(math.inf)


async def test_an_answer_tells_how_long_it_queued_and_ran_and_with_how_many() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve(max_batch_size=4)
    def held(x: list[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        return [2 * n for n in x]

    answers: dict[int, Answer] = {}

    async def ask(n: int) -> None:
        answers[n] = await service.answer(n)

    with anyio.fail_after(10):
        async with running(held) as service, anyio.create_task_group() as tasks:
            started = time.monotonic()
            tasks.start_soon(ask, 0)
            await anyio.to_thread.run_sync(begun.wait, 10)
            for n in (1, 2, 3):
                tasks.start_soon(ask, n)
            await anyio.wait_all_tasks_blocked()
            assert (service.statistics().running, service.statistics().waiting) == (1, 3)
            go.set()
        took = time.monotonic() - started
    assert {n: answer.value for n, answer in answers.items()} == {0: 0, 1: 2, 2: 4, 3: 6}
    assert [answers[n].batch_size for n in range(4)] == [1, 3, 3, 3]
    # The three queued at least from when all were blocked until the first batch ended.
    assert all(0 < answers[n].queued < took and 0 < answers[n].ran < took for n in (1, 2, 3))
    assert answers[0].queued < answers[0].ran


async def test_items_that_cannot_share_a_batch_run_apart() -> None:
    @serve(max_batch_size=8)
    def double(x: np.ndarray) -> np.ndarray:
        return x * 2

    async with running(double) as service, anyio.create_task_group() as tasks:
        for length in (2, 3, 2, 3):
            tasks.start_soon(service.answer, np.zeros(length))
    sizes = service.statistics().batch_sizes
    assert max(sizes) <= 2
    # None ran twice.
    assert sum(size * batches for size, batches in sizes.items()) == 4


async def test_a_failing_setup_is_told_with_the_handlers_name_and_the_traceback_of_setup() -> None:
    def load(device: str) -> None:
        raise FileNotFoundError("no weights")

    @serve(setup=load)
    def classify(state: None, x: int) -> int:
        return x

    with pytest.raises(SetupFailed) as caught:
        async with running(classify):
            raise AssertionError("must not start")
    assert str(caught.value) == "setup of handler 'classify' failed: FileNotFoundError: no weights"
    assert caught.value.handler == "classify"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "in load\n" in caught.value.traceback


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit()])
async def test_a_setup_that_raises_something_odd_fails_and_does_not_hang(error: BaseException) -> None:
    def load(device: str) -> None:
        raise error

    @serve(setup=load)
    def echo(state: None, x: int) -> int:
        return x

    with anyio.fail_after(10), pytest.raises(SetupFailed) as caught:
        async with running(echo):
            raise AssertionError("must not start")
    assert type(error).__name__ in str(caught.value)
    assert "in load\n" in caught.value.traceback


async def test_setup_has_run_when_a_service_is_entered_and_its_thread_is_gone_when_it_is_left() -> None:
    threads: list[threading.Thread] = []

    @serve(setup=lambda device: threads.append(threading.current_thread()))
    def echo(state: None, x: int) -> int:
        return x

    async with running(echo) as service:
        (thread,) = threads
        assert thread.is_alive()
        assert "echo" in thread.name
        assert (await service.answer(3)).value == 3
    thread.join(10)
    assert not thread.is_alive()

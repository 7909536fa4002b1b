import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from tidegate import Handler, serve
from tidegate.workers.thread import ThreadWorker
from tidegate_batching import Batch, Item

pytestmark = pytest.mark.anyio


class NotedBatch(Batch):
    """A batch of no batcher, which notes what is reported, and on which thread."""

    def __init__(self, *values: Any) -> None:
        self.items = [Item(value) for value in values]
        self.values = list(values)
        self.completed = asyncio.Event()

    def complete(self, result: Sequence[Any] | BaseException) -> None:
        self.result = result
        self.thread = threading.current_thread()
        self.completed.set()


async def result_of(worker: ThreadWorker, *values: Any) -> Any:
    batch = NotedBatch(*values)
    worker.run(batch)
    with anyio.fail_after(10):
        await batch.completed.wait()
    assert batch.thread is threading.current_thread()
    return batch.result


async def started(handler: Handler[..., Any], device: str = "cpu") -> ThreadWorker:
    worker = ThreadWorker(handler, device)
    with anyio.fail_after(10):
        await worker.start()
    return worker


async def stopped(worker: ThreadWorker) -> None:
    with anyio.fail_after(10):
        await worker.stop()


async def test_a_batch_runs_on_the_workers_thread_and_its_outputs_are_reported_in_the_loop() -> None:
    threads = []

    @serve(max_batch_size=4)
    def double(x: list[int]) -> list[int]:
        threads.append(threading.current_thread())
        return [2 * n for n in x]

    worker = await started(double)
    assert await result_of(worker, 1, 2) == [2, 4]
    assert await result_of(worker, 3) == [6]
    await stopped(worker)
    assert threads[0] is threads[1] is not threading.current_thread()


async def test_setup_the_hooks_and_the_function_share_one_thread() -> None:
    threads = set()

    def noted(x: Any) -> Any:
        threads.add(threading.current_thread())
        return x

    @serve(max_batch_size=4, setup=noted, batch=noted, unbatch=noted)
    def handler(device: str, x: list[int]) -> list[str]:
        noted(x)
        return [device for _ in x]

    worker = await started(handler, "cuda:7")
    assert await result_of(worker, 1) == ["cuda:7"]
    await stopped(worker)
    assert len(threads) == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
async def test_whatever_the_function_raises_is_its_batchs_result_and_the_worker_lives_on(error: BaseException) -> None:
    @serve
    def fragile(x: int) -> int:
        if x < 0:
            raise error
        return x

    worker = await started(fragile)
    assert await result_of(worker, -1) is error
    assert await result_of(worker, 1) == [1]
    await stopped(worker)


async def test_starting_raises_what_setup_raises() -> None:
    error = ImportError("no such model")

    def load(device: str) -> None:
        raise error

    @serve(setup=load)
    def echo(state: None, x: int) -> int:
        return x

    with pytest.raises(ImportError) as caught:
        await started(echo)
    assert caught.value is error


async def test_stopping_finishes_what_was_begun_in_order() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve
    def held(x: int) -> int:
        begun.set()
        assert go.wait(10)
        return x

    worker = await started(held)
    batches = [NotedBatch(n) for n in range(3)]
    for batch in batches:
        worker.run(batch)
    await anyio.to_thread.run_sync(begun.wait, 10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stopped, worker)
        await anyio.wait_all_tasks_blocked()
        assert not any(batch.completed.is_set() for batch in batches)
        go.set()
    assert [batch.result for batch in batches] == [[0], [1], [2]]


async def test_nothing_of_a_batch_lives_on_while_the_worker_waits_for_the_next() -> None:
    class Image:
        pass

    freed = threading.Event()

    @serve
    def look(x: Any) -> int:
        return 1

    worker = await started(look)
    image = Image()
    weakref.finalize(image, freed.set)
    assert await result_of(worker, image) == [1]
    del image
    assert await anyio.to_thread.run_sync(freed.wait, 10)
    await stopped(worker)


def test_a_worker_whose_loop_has_gone_ends_quietly() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve
    def held(x: int) -> int:
        begun.set()
        assert go.wait(10)
        return x

    async def leave_it_running() -> threading.Thread:
        before = set(threading.enumerate())
        worker = await started(held)
        worker.run(NotedBatch(1))
        worker.run(NotedBatch(2))
        while not begun.is_set():
            await anyio.lowlevel.checkpoint()
        (thread,) = set(threading.enumerate()) - before
        # What `stop` would do, without waiting for the end.
        stopping = asyncio.ensure_future(worker.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        return thread

    # pytest turns an exception on the thread into a failure.
    thread = asyncio.run(leave_it_running())
    go.set()
    thread.join(10)
    assert not thread.is_alive()

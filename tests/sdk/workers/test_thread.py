import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest

from tidegate import (
    END,
    SKIP,
    App,
    Handler,
    HandlerError,
    HTTPError,
    InvalidInput,
    OutOfMemory,
    SetupFailed,
    SlowReader,
    serve,
)
from tidegate.context import RequestInfo
from tidegate.workers.runner import STEPS_AHEAD, _Turns
from tidegate.workers.thread import ThreadWorker
from tidegate_batching import Batch, Item, State, Stream

pytestmark = pytest.mark.anyio


class NotedBatch(Batch):
    """A batch of no batcher, which notes what is reported, and on which thread."""

    def __init__(self, *values: Any) -> None:
        self.items = [Item(value) for value in values]
        self.values = list(values)
        self.completed = asyncio.Event()
        self.was_prepared = asyncio.Event()

    def prepared(self) -> None:
        self.was_prepared.set()

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


async def test_an_answer_that_the_loop_sees_late_is_what_it_was_when_the_function_gave_it() -> None:
    room, again = np.zeros((1, 2)), threading.Event()

    @serve(max_batch_size=1)
    def reuse(x: np.ndarray) -> np.ndarray:
        if room.any():
            again.set()
        room[:] = x
        return room

    worker = await started(reuse)
    first, second = NotedBatch(np.array([1.0, 2.0])), NotedBatch(np.array([3.0, 4.0]))
    worker.run(first)
    worker.run(second)
    assert again.wait(10)  # meanwhile the loop hears nothing
    await stopped(worker)
    results: list[Any] = [first.result, second.result]
    assert [outputs[0].tolist() for outputs in results] == [[1.0, 2.0], [3.0, 4.0]]


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


async def is_set(event: threading.Event) -> bool:
    return await anyio.to_thread.run_sync(event.wait, 10)


def echo(x: Any) -> Any:
    return x


def handler_of_hooks(function: Any = echo, **options: Any) -> Handler[..., Any]:
    return serve(**{"name": "f", "max_batch_size": 8, **options})(function)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- two threads


@pytest.mark.parametrize(
    ("options", "prefetch"),
    [
        ({}, False),
        ({"decode_request": echo}, True),
        ({"encode_response": echo}, True),
        ({"decode_request": echo, "overlap": False}, False),
        ({"batch": list, "unbatch": list}, False),
    ],
    ids=str,
)
async def test_only_hooks_of_single_items_are_worth_a_second_thread(options: dict[str, Any], prefetch: bool) -> None:
    assert ThreadWorker(handler_of_hooks(**options), "cpu").prefetch is prefetch


async def test_neither_streams_nor_async_handlers_are_prepared_ahead() -> None:
    def chunks(x: Any) -> Iterator[Any]:
        yield x

    async def later(x: Any) -> Any:
        return x

    for function in (chunks, later):
        assert not ThreadWorker(handler_of_hooks(function, decode_request=echo), "cpu").prefetch


async def test_the_next_batch_is_decoded_while_the_function_runs() -> None:
    begun, go = threading.Event(), threading.Event()
    decoded: list[int] = []

    def decode(body: int) -> int:
        decoded.append(body)
        return body

    def held(x: list[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        return x

    worker = await started(handler_of_hooks(held, decode_request=decode))
    first, second = NotedBatch(1, 2), NotedBatch(3, 4)
    with anyio.fail_after(10):
        worker.run(first)
        await first.was_prepared.wait()
        assert await is_set(begun)
        worker.run(second)
        await second.was_prepared.wait()
        assert decoded == [1, 2, 3, 4]
        assert not first.completed.is_set()
        go.set()
        await second.completed.wait()
    assert (first.result, second.result) == ([1, 2], [3, 4])
    await stopped(worker)


async def test_without_overlap_nothing_is_decoded_while_the_function_runs() -> None:
    begun, go = threading.Event(), threading.Event()
    order: list[Any] = []

    def decode(body: int) -> int:
        order.append(("decode", body))
        return body

    def held(x: list[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        order.append(("ran", x))
        return x

    worker = await started(handler_of_hooks(held, decode_request=decode, overlap=False))
    batches = [NotedBatch(1), NotedBatch(2)]
    for batch in batches:
        worker.run(batch)
    assert await is_set(begun)
    go.set()
    with anyio.fail_after(10):
        await batches[1].completed.wait()
    assert order == [("decode", 1), ("ran", [1]), ("decode", 2), ("ran", [2])]
    await stopped(worker)


async def test_the_item_hooks_share_a_thread_of_their_own_and_never_run_two_at_once() -> None:
    threads: dict[str, set[int]] = {}
    in_hooks = threading.Lock()

    def noted(name: str) -> Callable[[Any], Any]:
        def hook(x: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            if name in ("decode_request", "encode_response"):
                assert in_hooks.acquire(blocking=False), "two hooks at once"
                in_hooks.release()
            return x

        return hook

    names = ("decode_request", "encode_response", "batch", "unbatch", "setup", "teardown")

    def function(state: Any, x: Any) -> Any:
        return noted("function")(x)

    hooks: Any = {name: noted(name) for name in names}
    async with App(handler_of_hooks(function, **hooks)) as app:
        with anyio.fail_after(20):
            outputs = await asyncio.gather(*(app.call("f", n) for n in range(200)))
    assert outputs == list(range(200))
    main, beside = threads["function"], threads["decode_request"]
    assert [threads[name] for name in ("setup", "batch", "unbatch", "teardown")] == [main] * 4
    assert threads["encode_response"] == beside
    assert len(main) == len(beside) == 1
    assert main != beside


def test_a_batch_that_ends_comes_before_one_that_begins() -> None:
    order: list[str] = []
    turns = _Turns()
    turns.later(lambda: order.append("decode the third"))
    turns.later(lambda: order.append("decode the fourth"))
    turns.first(lambda: order.append("encode the first"))
    turns.first(lambda: order.append("encode the second"))
    turns.stop()
    turns.run()
    assert order == ["encode the first", "encode the second", "decode the third", "decode the fourth"]


@pytest.mark.parametrize("overlap", [True, False])
async def test_a_hooks_failure_on_an_item_is_that_items_alone(overlap: bool) -> None:
    ran: list[Any] = []

    def decode(body: int) -> int:
        if body == 1:
            raise ValueError("one is not a number")
        if body == 2:
            raise HTTPError(404, "no two")
        return body

    def encode(output: int) -> int:
        if output == 3:
            raise SystemExit(3)
        return output

    def function(x: list[int]) -> list[Any]:
        ran.append(x)
        return [KeyError("four") if n == 4 else n for n in x]

    worker = await started(handler_of_hooks(function, decode_request=decode, encode_response=encode, overlap=overlap))
    outputs = await result_of(worker, 0, 1, 2, 3, 4, 5)
    assert ran == [[0, 3, 4, 5]]
    assert (outputs[0], outputs[5]) == (0, 5)
    assert [type(output) for output in outputs[1:5]] == [InvalidInput, HTTPError, SystemExit, KeyError]
    assert outputs[1].detail == "ValueError: one is not a number"
    assert isinstance(outputs[1].__cause__, ValueError)
    await stopped(worker)


@pytest.mark.parametrize("overlap", [True, False])
async def test_a_batch_of_which_no_item_can_be_decoded_does_not_run(overlap: bool) -> None:
    def never(x: Any) -> Any:
        raise AssertionError("there is nothing to run")

    worker = await started(handler_of_hooks(never, decode_request=int, overlap=overlap))
    outputs = await result_of(worker, "a", "b")
    assert [type(output) for output in outputs] == [InvalidInput, InvalidInput]
    await stopped(worker)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("place", ["decode_request", "function", "encode_response"])
async def test_a_plain_function_that_returns_an_awaitable_is_told_so_and_the_worker_lives_on(
    place: str, overlap: bool
) -> None:
    async def later(x: Any) -> Any:
        class Forever:
            def __await__(self) -> Generator[None, None, None]:
                while True:
                    yield

        return await Forever() if x in ("wait", ["wait"]) else x

    hooks: Any = {"decode_request": echo, "encode_response": echo, "function": echo}
    hooks[place] = lambda x: later(x)
    worker = await started(handler_of_hooks(hooks.pop("function"), overlap=overlap, **hooks))
    result = await result_of(worker, "wait")
    error = result if isinstance(result, BaseException) else result[0]
    assert "write it as `async def`" in str(error)
    assert await result_of(worker, "go") == ["go"]
    await stopped(worker)


async def test_with_two_threads_whatever_the_function_raises_is_its_batchs_result_in_its_turn() -> None:
    def fragile(x: list[int]) -> list[float]:
        return [1 / n for n in x]

    worker = await started(handler_of_hooks(fragile, decode_request=int, encode_response=str))
    batches = [NotedBatch(n) for n in (1, 0, 2)]
    for batch in batches:
        worker.run(batch)
    with anyio.fail_after(10):
        await batches[-1].completed.wait()
    assert isinstance(batches[1].result, ZeroDivisionError)
    assert [batches[0].result, batches[2].result] == [["1.0"], ["0.5"]]
    await stopped(worker)


async def test_with_two_threads_stopping_finishes_what_was_begun_and_both_end() -> None:
    before = set(threading.enumerate())
    torn_down: list[Any] = []
    handler = handler_of_hooks(
        lambda state, x: x, setup=lambda device: "state", teardown=torn_down.append, decode_request=int
    )
    worker = await started(handler)
    batches = [NotedBatch(str(n)) for n in range(20)]
    for batch in batches:
        worker.run(batch)
    threads = set(threading.enumerate()) - before
    await stopped(worker)
    assert [batch.result for batch in batches] == [[n] for n in range(20)]
    assert torn_down == ["state"]
    for one in threads:
        await anyio.to_thread.run_sync(one.join, 10)
        assert not one.is_alive()


async def test_a_service_prepares_a_batch_while_one_runs() -> None:
    begun, go, decoded_ahead = threading.Event(), threading.Event(), threading.Event()

    def decode(body: int) -> int:
        if begun.is_set():
            decoded_ahead.set()
        return body

    def function(x: list[int]) -> list[int]:
        if x == [-1]:
            begun.set()
            assert go.wait(10)
        return x

    async with App(handler_of_hooks(function, decode_request=decode)) as app:
        # Only what has been timed is prepared ahead, and the first run of a model is not typical.
        for _ in range(3):
            await app.call("f", 0)
        calls = [asyncio.ensure_future(app.call("f", -1))]
        assert await is_set(begun)
        calls += [asyncio.ensure_future(app.call("f", n)) for n in range(1, 9)]
        assert await is_set(decoded_ahead)
        go.set()
        with anyio.fail_after(10):
            assert await asyncio.gather(*calls) == [-1, *range(1, 9)]


@pytest.mark.parametrize("kind", ["plain", "overlapping", "async"])
async def test_nothing_of_a_batch_lives_on_in_any_kind_of_worker(kind: str) -> None:
    class Image:
        pass

    async def later(x: Any) -> int:
        return 1

    options: dict[str, Any] = {"max_batch_size": None}
    if kind == "overlapping":
        options["decode_request"] = echo
    worker = await started(handler_of_hooks(later if kind == "async" else lambda x: 1, **options))
    freed, image = threading.Event(), Image()
    weakref.finalize(image, freed.set)
    assert await result_of(worker, image) == [1]
    del image
    assert await is_set(freed)
    await stopped(worker)


@pytest.mark.parametrize("kind", ["plain", "overlapping", "async"])
async def test_a_batch_that_ran_out_of_memory_holds_none_of_it_when_it_is_run_again(kind: str) -> None:
    freed = threading.Event()

    class Activations:
        pass

    def hungry(x: Any) -> Any:
        activations = Activations()
        weakref.finalize(activations, freed.set)
        raise MemoryError("CUDA out of memory")

    async def hungry_later(x: Any) -> Any:
        return hungry(x)

    options: dict[str, Any] = {"decode_request": echo} if kind == "overlapping" else {}
    worker = await started(handler_of_hooks(hungry_later if kind == "async" else hungry, **options))
    error = await result_of(worker, 1, 2)
    assert isinstance(error, OutOfMemory)
    assert str(error) == "CUDA out of memory"
    # Not when the garbage collector comes by: at once.
    assert freed.is_set()
    await stopped(worker)


# ---------------------------------------------------------------------- an event loop


async def test_an_async_handler_runs_all_of_itself_on_one_thread_with_one_loop() -> None:
    seen: dict[str, Any] = {}

    def noted(name: str) -> Callable[..., Any]:
        async def hook(*arguments: Any) -> Any:
            seen[name] = (threading.get_ident(), asyncio.get_running_loop())
            return arguments[-1]

        return hook

    names = ("setup", "teardown", "decode_request", "batch", "unbatch", "encode_response")

    async def function(state: Any, x: Any) -> Any:
        return await noted("function")(x)

    worker = await started(handler_of_hooks(function, **{name: noted(name) for name in names}))
    assert await result_of(worker, 1, 2) == [1, 2]
    await stopped(worker)
    assert set(seen) == {"function", *names}
    assert len(set(seen.values())) == 1
    assert seen["function"][0] != threading.get_ident()


async def test_an_async_hook_beside_a_plain_function_works() -> None:
    async def decode(body: int) -> int:
        await asyncio.sleep(0)
        return body + 1

    worker = await started(handler_of_hooks(decode_request=decode))
    assert await result_of(worker, 1, 2) == [2, 3]
    await stopped(worker)


async def test_an_async_handler_runs_as_many_batches_at_a_time_as_it_has_slots() -> None:
    most = running = 0

    async def load(device: str) -> asyncio.Barrier:
        return asyncio.Barrier(3)

    @serve(concurrency=3, setup=load)
    async def together(barrier: asyncio.Barrier, x: int) -> int:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await barrier.wait()
        running -= 1
        return x

    async with App(together) as app:
        with anyio.fail_after(10):
            assert await asyncio.gather(*(app.call("together", n) for n in range(9))) == list(range(9))
    assert most == 3


async def test_batches_of_an_async_handler_may_end_in_any_order() -> None:
    async def load(device: str) -> list[asyncio.Event]:
        return [asyncio.Event(), asyncio.Event()]

    @serve(concurrency=2, setup=load)
    async def swapped(events: list[asyncio.Event], x: int) -> int:
        if x == 0:
            await events[1].wait()
        events[x].set()
        return x

    order: list[int] = []
    async with App(swapped) as app:

        async def ask(n: int) -> None:
            order.append(await app.call("swapped", n))

        with anyio.fail_after(10):
            await asyncio.gather(ask(0), ask(1))
    assert order == [1, 0]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_whatever_an_async_function_raises_is_its_batchs_result_and_the_worker_lives_on(
    error: BaseException,
) -> None:
    @serve
    async def fragile(x: int) -> int:
        if x < 0:
            raise error
        return x

    worker = await started(fragile)
    assert await result_of(worker, -1) is error
    assert await result_of(worker, 1) == [1]
    await stopped(worker)


# ---------------------------------------------------------------------- start and stop


@pytest.mark.parametrize("kind", ["plain", "overlapping", "async"])
async def test_a_worker_whose_setup_failed_stops_at_once(kind: str) -> None:
    def load(device: str) -> None:
        raise ImportError("no such model")

    def plain(state: None, x: Any) -> Any:
        return x

    async def later(state: None, x: Any) -> Any:
        return x

    options: dict[str, Any] = {"decode_request": echo} if kind == "overlapping" else {}
    worker = ThreadWorker(handler_of_hooks(later if kind == "async" else plain, setup=load, **options), "cpu")
    with pytest.raises(ImportError), anyio.fail_after(10):
        await worker.start()
    await stopped(worker)


@pytest.mark.parametrize("kind", ["plain", "overlapping", "async"])
async def test_a_worker_that_is_stopped_while_it_sets_up_ends_when_that_is_done(kind: str) -> None:
    begun, go = threading.Event(), threading.Event()
    torn_down: list[Any] = []

    def load(device: str) -> str:
        begun.set()
        assert go.wait(10)
        return "state"

    def plain(state: str, x: Any) -> Any:
        return x

    async def later(state: str, x: Any) -> Any:
        return x

    options: dict[str, Any] = {"decode_request": echo} if kind == "overlapping" else {}
    worker = ThreadWorker(
        handler_of_hooks(later if kind == "async" else plain, setup=load, teardown=torn_down.append, **options), "cpu"
    )
    async with anyio.create_task_group() as starting:
        starting.start_soon(worker.start)
        assert await is_set(begun)
        starting.cancel_scope.cancel()
    async with anyio.create_task_group() as stopping:
        stopping.start_soon(stopped, worker)
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert torn_down == ["state"]


async def test_a_worker_that_was_never_started_stops_at_once() -> None:
    await stopped(ThreadWorker(handler_of_hooks(), "cpu"))


@pytest.mark.parametrize("error", [OSError("busy"), SystemExit(3)])
@pytest.mark.parametrize("kind", ["plain", "overlapping", "async"])
async def test_a_failing_teardown_is_logged_and_the_worker_ends(
    kind: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def leave() -> None:
        raise error

    async def later(x: Any) -> Any:
        return x

    options: dict[str, Any] = {"decode_request": echo} if kind == "overlapping" else {}
    worker = await started(handler_of_hooks(later if kind == "async" else echo, teardown=leave, **options))
    await stopped(worker)
    assert "teardown of handler f failed" in caplog.text
    assert repr(error).partition("(")[0] in caplog.text


async def test_a_class_is_torn_down_by_its_own_method() -> None:
    torn_down: list[str] = []

    @serve
    class Model:
        def setup(self, device: str) -> None:
            self.name = f"model on {device}"

        def predict(self, x: int) -> str:
            return self.name

        def teardown(self) -> None:
            torn_down.append(self.name)

    async with App(Model) as app:
        name = await app.call("Model", 1)
    assert torn_down == [name]


# ---------------------------------------------------------------------- warm-up


@pytest.mark.parametrize("kind", ["plain", "overlapping", "async"])
@pytest.mark.parametrize("size", [None, 1, 4])
@pytest.mark.parametrize("example", [3, lambda: 3], ids=["value", "callable"])
async def test_warm_up_runs_one_item_and_a_full_batch_before_the_worker_is_ready(
    kind: str, size: int | None, example: Any
) -> None:
    seen: list[Any] = []

    def plain(x: Any) -> Any:
        seen.append(x)
        return x

    async def later(x: Any) -> Any:
        return plain(x)

    options: dict[str, Any] = {"decode_request": lambda body: body + 1} if kind == "overlapping" else {}
    expected = 4 if kind == "overlapping" else 3
    worker = await started(
        handler_of_hooks(later if kind == "async" else plain, max_batch_size=size, warmup=example, **options)
    )
    assert seen == ([expected] if size is None else [[expected] * n for n in sorted({1, size})])
    await stopped(worker)


async def test_warm_up_reads_a_stream_up_to_its_first_chunk_and_closes_it() -> None:
    seen: list[str] = []

    def chunks(x: list[int]) -> Iterator[list[int]]:
        try:
            seen.append(f"{len(x)} begun")
            yield x
            raise AssertionError("one is enough")
        finally:
            seen.append("closed")

    worker = await started(handler_of_hooks(chunks, max_batch_size=4, warmup=1))
    assert seen == ["1 begun", "closed", "4 begun", "closed"]
    await stopped(worker)


def raises(x: Any) -> Any:
    raise ValueError("not warm")


def gives_an_error(x: list[Any]) -> list[Any]:
    return [ValueError("not warm") for _ in x]


def raises_for_more(x: list[Any]) -> list[Any]:
    return raises(x) if len(x) > 1 else x


def streams_an_error(x: list[Any]) -> Iterator[list[Any]]:
    yield [ValueError("not warm") for _ in x]


@pytest.mark.parametrize(
    ("function", "hooks"),
    [
        (raises, {}),
        (raises_for_more, {}),
        (gives_an_error, {}),
        (streams_an_error, {}),
        (echo, {"decode_request": raises}),
        (echo, {"encode_response": raises}),
        (echo, {"batch": raises}),
    ],
    ids=str,
)
async def test_a_failing_warm_up_fails_the_start(function: Any, hooks: dict[str, Any]) -> None:
    handler = handler_of_hooks(function, warmup=1, **hooks)
    with pytest.raises(SetupFailed, match="not warm"), anyio.fail_after(10):
        async with App(handler):
            raise AssertionError("must not start")


# ---------------------------------------------------------------------- streams


class Reader:
    """Reads one item's stream in a task of its own and notes the chunks and how it ended."""

    def __init__(self, stream: Stream[Any]) -> None:
        self.stream = stream
        self.chunks: list[Any] = []
        self.error: BaseException | None = None

    async def read(self) -> None:
        try:
            async for chunk in self.stream:
                self.chunks.append(chunk)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error


async def read_all(app: App, *values: Any) -> list[Reader]:
    """What callers get whose items run in one batch."""
    readers = [Reader(app.stream("f", value)) for value in values]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(reader.read)
    return readers


def batched_stream(function: Any, **options: Any) -> Handler[..., Any]:
    # Full batches only, so that a test knows who runs with whom.
    return handler_of_hooks(function, **{"max_batch_size": 3, "batch_timeout": 5.0, **options})


async def test_each_yield_of_an_unbatched_generator_is_a_chunk() -> None:
    def chunks(x: int) -> Iterator[Any]:
        yield [x, x]
        yield None
        yield x

    async with App(handler_of_hooks(chunks, max_batch_size=None)) as app:
        (reader,) = await read_all(app, 3)
    assert (reader.chunks, reader.error) == ([[3, 3], None, 3], None)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_each_yield_of_a_batched_generator_is_a_list_with_one_entry_per_item(asynchronous: bool) -> None:
    closed = threading.Event()
    odd = ValueError("odd")
    steps: list[list[Any]] = [
        ["a0", "b0", "c0"],
        [END, SKIP, "c1"],
        ["late", "b2", SKIP],
        [SKIP, odd, "c3"],
        ["late", "late", "c4"],
    ]

    def plain(x: list[str]) -> Iterator[list[Any]]:
        assert x == ["a", "b", "c"]
        try:
            yield from steps
        finally:
            closed.set()

    async def later(x: list[str]) -> AsyncIterator[list[Any]]:
        try:
            for step in steps:
                await asyncio.sleep(0)
                yield step
        finally:
            closed.set()

    async with App(batched_stream(later if asynchronous else plain)) as app:
        a, b, c = await read_all(app, "a", "b", "c")
    assert (a.chunks, a.error) == (["a0"], None)
    assert b.chunks == ["b0", "b2"]
    assert isinstance(b.error, HandlerError)
    assert b.error.__cause__ is odd
    assert (c.chunks, c.error) == (["c0", "c1", "c3", "c4"], None)
    assert closed.is_set()


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_when_all_items_have_ended_the_generator_is_closed(asynchronous: bool) -> None:
    closed = threading.Event()

    def plain(x: list[int]) -> Iterator[list[Any]]:
        try:
            yield [END, "b", "c"]
            yield [SKIP, HTTPError(404), END]
            raise AssertionError("nobody reads this")
        finally:
            closed.set()

    async def later(x: list[int]) -> AsyncIterator[list[Any]]:
        try:
            for step in plain(x):
                yield step
        finally:
            closed.set()

    async with App(batched_stream(later if asynchronous else plain)) as app:
        readers = await read_all(app, 1, 2, 3)
        assert await is_set(closed)
        assert dict(app.statistics()["f"].outcomes) == {"ok": 2, "handler-refused": 1}
    assert [reader.chunks for reader in readers] == [[], ["b"], ["c"]]
    assert [type(reader.error) for reader in readers] == [type(None), HTTPError, type(None)]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("size", [None, 3])
async def test_when_all_readers_have_gone_the_generator_is_closed(asynchronous: bool, size: int | None) -> None:
    closed = threading.Event()

    def plain(x: Any) -> Iterator[Any]:
        try:
            while True:
                yield x
        finally:
            closed.set()

    async def later(x: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield x
                await asyncio.sleep(0)
        finally:
            closed.set()

    timing: dict[str, Any] = {} if size is None else {"batch_timeout": 5.0}
    handler = handler_of_hooks(later if asynchronous else plain, max_batch_size=size, **timing)
    async with App(handler) as app:
        streams = [app.stream("f", n) for n in range(size or 1)]
        with anyio.fail_after(10):
            for n, stream in enumerate(streams):
                assert await anext(stream) == n
            for stream in streams[:-1]:
                await stream.aclose()
            assert not closed.is_set()
            await streams[-1].aclose()
            assert await is_set(closed)
        # A stream that fell behind before it was closed has been ended for that; here each is gone by its own will.
        assert app.statistics()["f"].outcomes["cancelled"] >= 1


async def test_a_reader_that_leaves_does_not_disturb_its_neighbours() -> None:
    go = threading.Event()

    def chunks(x: list[int]) -> Iterator[list[int]]:
        yield x
        assert go.wait(10)
        for step in range(1, 5):
            yield [n + step for n in x]

    async with App(batched_stream(chunks)) as app:
        leaves, *stay = [app.stream("f", n) for n in (0, 10, 20)]
        with anyio.fail_after(10):
            assert await anext(leaves) == 0
            await leaves.aclose()
            go.set()
            assert [[chunk async for chunk in stream] for stream in stay] == [[*range(10, 15)], [*range(20, 25)]]


async def test_a_batch_of_streams_whose_items_have_all_gone_before_it_began_makes_no_generator() -> None:
    begun = threading.Event()

    def chunks(x: list[int]) -> Iterator[list[int]]:
        begun.set()
        yield x

    worker = await started(batched_stream(chunks))
    batch = NotedBatch(1, 2)
    for item in batch.items:
        item.state = State.SETTLED
    worker.run(batch)
    with anyio.fail_after(10):
        await batch.completed.wait()
    assert not begun.is_set()
    await stopped(worker)


async def test_hooks_are_applied_to_the_items_and_each_chunk_of_a_stream() -> None:
    def chunks(state: str, x: str) -> Iterator[str]:
        for step in range(2):
            yield ",".join(f"{state}{name}{step}" for name in x.split(","))

    handler = batched_stream(
        chunks,
        setup=lambda device: "s",
        decode_request=lambda body: body.decode(),
        batch=",".join,
        unbatch=lambda output: (chunk for chunk in output.split(",")),
        encode_response=str.upper,
    )
    async with App(handler) as app:
        readers = await read_all(app, b"a", b"b", b"c")
    assert [reader.chunks for reader in readers] == [["SA0", "SA1"], ["SB0", "SB1"], ["SC0", "SC1"]]


async def test_an_item_of_a_stream_that_cannot_be_decoded_fails_alone() -> None:
    def chunks(x: list[int]) -> Iterator[list[int]]:
        yield x
        yield x

    async with App(batched_stream(chunks, decode_request=int)) as app:
        good, bad, other = await read_all(app, "1", "x", "3")
    assert (good.chunks, other.chunks) == ([1, 1], [3, 3])
    assert isinstance(bad.error, InvalidInput)


async def test_a_chunk_that_cannot_be_encoded_ends_its_item_alone() -> None:
    def chunks(x: list[int]) -> Iterator[list[int]]:
        for step in range(3):
            yield [n - step for n in x]

    async with App(batched_stream(chunks, encode_response=lambda chunk: 12 // chunk)) as app:
        one, two, twelve = await read_all(app, 1, 2, 12)
    assert (one.chunks, two.chunks, twelve.chunks) == ([12], [6, 12], [1, 1, 1])
    assert isinstance(one.error, HandlerError)
    assert isinstance(two.error, HandlerError)
    assert twelve.error is None


async def test_a_generator_that_raises_before_any_chunk_is_isolated_like_a_batch() -> None:
    calls: list[list[int]] = []

    def chunks(x: list[int]) -> Iterator[list[Any]]:
        calls.append(x)
        yield [SKIP] * len(x)
        if 0 in x:
            raise ZeroDivisionError("zero")
        yield x

    async with App(batched_stream(chunks)) as app:
        zero, one, two = await read_all(app, 0, 1, 2)
    assert isinstance(zero.error, HandlerError)
    assert (one.chunks, one.error) == ([1], None)
    assert (two.chunks, two.error) == ([2], None)
    assert calls[0] == [0, 1, 2]
    assert len(calls) <= 7


async def test_a_generator_that_raises_after_a_chunk_fails_every_unfinished_item_and_is_not_run_again() -> None:
    calls: list[list[int]] = []

    def chunks(x: list[int]) -> Iterator[list[Any]]:
        calls.append(x)
        yield [x[0], SKIP, END]
        raise ZeroDivisionError("later")

    async with App(batched_stream(chunks)) as app:
        begun, waiting, ended = await read_all(app, 1, 2, 3)
    assert begun.chunks == [1]
    assert isinstance(begun.error, HandlerError)
    assert isinstance(waiting.error, HandlerError)
    assert (ended.chunks, ended.error) == ([], None)
    assert calls == [[1, 2, 3]]


async def test_a_yield_with_a_wrong_number_of_chunks_is_an_error() -> None:
    def chunks(x: list[int]) -> Iterator[list[int]]:
        yield x
        yield x[1:]

    async with App(batched_stream(chunks)) as app:
        readers = await read_all(app, 1, 2, 3)
    assert [(reader.chunks, getattr(reader.error, "code", None)) for reader in readers] == [
        ([n], "batch-size-mismatch") for n in (1, 2, 3)
    ]


async def test_a_slow_reader_of_a_batch_is_ended_while_its_neighbours_go_on() -> None:
    read_on = threading.Event()

    def chunks(x: list[int]) -> Iterator[list[int]]:
        for step in range(300):
            yield [step] * len(x)
        assert read_on.wait(10)
        yield [300] * len(x)

    async with App(batched_stream(chunks, max_batch_size=2)) as app:
        slow, quick = app.stream("f", 0), Reader(app.stream("f", 1))
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(quick.read)
                while len(quick.chunks) < 300:
                    await anyio.lowlevel.checkpoint()
                read_on.set()
            chunks_of_slow = []
            with pytest.raises(SlowReader):
                async for chunk in slow:
                    chunks_of_slow.append(chunk)
    # What its buffer holds is still its own.
    assert chunks_of_slow == list(range(256))
    assert (quick.chunks, quick.error) == (list(range(301)), None)


class Counting:
    """An unbatched stream of `length` chunks that counts how far the generator is."""

    def __init__(self, length: int, chunk: Any = None) -> None:
        self.made = 0
        self.ended = threading.Event()

        def counting(x: Any) -> Iterator[Any]:
            for n in range(length):
                self.made = n + 1
                yield n if chunk is None else chunk
            self.ended.set()

        async def counting_later(x: Any) -> AsyncIterator[Any]:
            for n in counting(x):
                yield n

        self.plain = handler_of_hooks(counting, max_batch_size=None)
        self.later = handler_of_hooks(counting_later, max_batch_size=None)

    async def pauses(self) -> int:
        """How far the generator has come when it does not move any more."""
        with anyio.fail_after(10):
            made, still = -1, 0
            while still < 200:
                await anyio.to_thread.run_sync(threading.Event().wait, 0.000_5)
                made, still = (made, still + 1) if made == self.made else (self.made, 0)
        return made


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_an_unbatched_generator_pauses_for_its_reader_and_goes_on(asynchronous: bool) -> None:
    counting = Counting(2000)
    async with App(counting.later if asynchronous else counting.plain) as app:
        stream = app.stream("f", None)
        made = await counting.pauses()
        assert 256 <= made <= 256 + STEPS_AHEAD + 1
        with anyio.fail_after(20):
            assert [chunk async for chunk in stream] == list(range(2000))
    assert counting.ended.is_set()


async def test_a_generator_that_has_paused_goes_as_far_ahead_again_as_before() -> None:
    counting = Counting(100_000)
    async with App(counting.plain) as app:
        stream = app.stream("f", None)
        ahead = await counting.pauses()
        for read in (200, 400, 600):
            for _ in range(200):
                await anext(stream)
            assert await counting.pauses() - read == ahead
        await stream.aclose()


async def test_large_chunks_pause_a_generator_earlier() -> None:
    counting = Counting(100, chunk=b"x" * (1 << 19))
    async with App(counting.plain) as app:
        stream = app.stream("f", None)
        assert await counting.pauses() <= 2 + STEPS_AHEAD + 1
        with anyio.fail_after(20):
            assert len([chunk async for chunk in stream]) == 100


async def test_a_paused_generator_is_closed_when_its_reader_leaves() -> None:
    closed = threading.Event()

    def endless(x: Any) -> Iterator[Any]:
        try:
            while True:
                yield x
        finally:
            closed.set()

    async with App(handler_of_hooks(endless, max_batch_size=None)) as app:
        stream = app.stream("f", 1)
        assert await anext(stream) == 1
        await stream.aclose()
        assert await is_set(closed)
        assert await read_all(app, 2, name="f") if False else True


async def test_patience_with_a_reader_that_does_not_come_back_ends() -> None:
    counting = Counting(2000)
    async with App(counting.plain) as app:
        stream = app.stream("f", None, info=RequestInfo(patience=0.05))
        chunks = []
        with anyio.fail_after(20):
            await counting.pauses()
            while not stream.done():
                await anyio.lowlevel.checkpoint()
            with pytest.raises(SlowReader):
                async for chunk in stream:
                    chunks.append(chunk)
    assert chunks[:256] == list(range(256))
    assert not counting.ended.is_set()


async def test_a_reader_that_has_caught_up_in_time_is_not_ended_for_its_pause() -> None:
    go = threading.Event()

    behind = threading.Event()

    def chunks(x: Any) -> Iterator[int]:
        for n in range(300):
            if n == 256 + STEPS_AHEAD - 1:
                behind.set()
            yield n
        assert go.wait(10)
        yield 300

    async with App(handler_of_hooks(chunks, max_batch_size=None)) as app:
        stream = app.stream("f", None, info=RequestInfo(patience=0.3))
        with anyio.fail_after(20):
            assert await is_set(behind)
            while not stream.full:
                await anyio.lowlevel.checkpoint()
            read = [await anext(stream) for _ in range(300)]
            # Time must pass: the timer of no pause may still ring.
            await anyio.sleep(0.5)
            go.set()
            read += [chunk async for chunk in stream]
    assert read == list(range(301))


def test_a_stream_whose_loop_has_gone_ends() -> None:
    closed = threading.Event()

    def endless(x: Any) -> Iterator[Any]:
        try:
            while True:
                yield x
        finally:
            closed.set()

    async def leave_it_running() -> None:
        worker = await started(handler_of_hooks(endless, max_batch_size=None))
        worker.run(NotedBatch(1))
        worker._runner.begin(None)

    asyncio.run(leave_it_running())
    assert closed.wait(10)

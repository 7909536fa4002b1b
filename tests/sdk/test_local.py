import asyncio
import concurrent.futures
import gc
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from tidegate import (
    DeadlineExceeded,
    Handler,
    HandlerError,
    HTTPError,
    InvalidInput,
    LocalClient,
    Overloaded,
    SetupFailed,
    TidegateError,
    serve,
    service,
)

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve
def fragile(x: int) -> float:
    return 1 / x


@serve
def count(x: int) -> Iterator[int]:
    yield from range(x)


def echo(x: Any) -> Any:
    return x


class Endless:
    """A stream without an end that notes when it is closed."""

    def __init__(self, **options: Any) -> None:
        self.closed = threading.Event()

        def endless(x: Any) -> Iterator[Any]:
            try:
                while True:
                    yield x
            finally:
                self.closed.set()

        self.handler: Handler[..., Any] = serve(**options)(endless)


class Gauge:
    """A handler that counts how many of its inputs are taken from their source and not yet answered."""

    def __init__(self) -> None:
        self.under_way = self.most = 0

    def inputs(self, number: int) -> Iterator[int]:
        for n in range(number):
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            yield n

    def answered(self) -> None:
        self.under_way -= 1


# ---------------------------------------------------------------------- call


def test_with_gives_the_synchronous_view() -> None:
    with LocalClient(double) as client:
        assert [client.call(n) for n in range(3)] == [0, 2, 4]


async def test_async_with_gives_the_asynchronous_view() -> None:
    async with LocalClient(double) as client:
        assert await asyncio.gather(*(client.call(n) for n in range(3))) == [0, 2, 4]


async def test_both_views_work_while_an_event_loop_is_running() -> None:
    with LocalClient(double) as client:
        assert client.call(1) == 2
        assert list(client.map([1, 2])) == [2, 4]
        async with LocalClient(double) as other:
            assert await other.call(3) == 6


def test_a_client_can_be_opened_again() -> None:
    client = LocalClient(double)
    for n in (1, 2):
        with client:
            assert client.call(n) == 2 * n


def test_a_client_is_open_once_at_a_time() -> None:
    client = LocalClient(double)
    with client:
        with pytest.raises(RuntimeError, match="open already"), client:
            raise AssertionError("must not open")
        assert client.call(1) == 2


@pytest.mark.parametrize("use", ["call", "stream", "map"])
@pytest.mark.parametrize("opened_before", [True, False])
def test_outside_of_its_block_a_client_says_how_it_is_used(use: str, opened_before: bool) -> None:
    client = LocalClient(double)
    if opened_before:
        with client:
            pass
    with pytest.raises(RuntimeError, match="use it inside `with LocalClient"):
        getattr(client, use)([1])


def test_many_threads_share_a_client() -> None:
    answers: dict[int, Any] = {}
    with LocalClient(double) as client:

        def ask(n: int) -> None:
            answers[n] = client.call(n)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert answers == {n: 2 * n for n in range(20)}


def test_an_error_is_tidegates_with_the_original_as_its_cause() -> None:
    with LocalClient(fragile) as client:
        with pytest.raises(HandlerError) as caught:
            client.call(0)
        assert client.call(2) == 0.5
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert (caught.value.type_name, caught.value.code) == ("ZeroDivisionError", "handler-error")


@pytest.mark.parametrize("error", [HTTPError(404, "no such speaker"), InvalidInput("too long"), Overloaded("not now")])
async def test_an_error_of_tidegates_arrives_as_it_is(error: Exception) -> None:
    @serve
    def refuse(x: int) -> int:
        raise error

    with LocalClient(refuse) as client, pytest.raises(type(error)) as caught:
        client.call(1)
    assert caught.value is error
    async with LocalClient(refuse) as view:
        with pytest.raises(type(error)) as caught:
            await view.call(1)
    assert caught.value is error


async def test_what_the_wire_would_convert_is_converted_here_too() -> None:
    def total(x: np.ndarray) -> np.ndarray:
        return np.asarray(x.sum(axis=1))

    @serve(name="steps")
    def steps(x: np.ndarray) -> Iterator[Any]:
        yield from x

    with LocalClient(serve(max_batch_size=4)(total), steps) as client:
        assert client.call([1, 2.5], handler="total") == 3.5
        assert list(client.map([[1, 2], (3, 4)], handler="total")) == [3, 7]
        assert list(client.stream([1, 2], handler="steps")) == [1, 2]
        errors = list(client.map([[1, 2], ["x"]], handler="total", return_exceptions=True))
        assert (errors[0], type(errors[1])) == (3, InvalidInput)
    async with LocalClient(serve(max_batch_size=4)(total), steps) as view:
        assert await view.call([1, 2.5], handler="total") == 3.5
        assert [chunk async for chunk in view.stream([1, 2], handler="steps")] == [1, 2]
        assert [output async for output in view.map([[1, 2]], handler="total")] == [3]


@pytest.mark.parametrize(("isolate_errors", "warnings"), [(True, 1), (False, 0)])
def test_too_few_outputs_are_in_the_log_also_where_parts_of_the_batch_succeed_later(
    isolate_errors: bool, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    @serve(max_batch_size=2, batch_timeout=1.0, isolate_errors=isolate_errors)
    def one_less(x: list[int]) -> list[int]:
        return x[: max(1, len(x) - 1)]

    with LocalClient(one_less) as client:
        outputs = list(client.map([1, 2], return_exceptions=True))
    assert (outputs == [1, 2]) is isolate_errors
    assert sum("one_less: a batch of 2 items failed" in message for message in caplog.messages) == warnings


@pytest.mark.parametrize("hook", ["cost", "group_by"])
def test_what_cost_and_group_by_raise_is_an_error_of_the_handlers(hook: str) -> None:
    options: Any = {"max_batch_cost": 10, "cost": len} if hook == "cost" else {"group_by": len}
    handler: Handler[..., Any] = serve(name="f", max_batch_size=4, **options)(echo)
    with LocalClient(handler) as client:
        with pytest.raises(HandlerError, match="has no len") as caught:
            client.call(5)
        assert client.call("text") == "text"
    assert isinstance(caught.value.__cause__, TypeError)


def test_what_cost_says_of_an_input_arrives_as_it_is() -> None:
    def price(x: int) -> float:
        raise InvalidInput("priceless")

    handler: Handler[..., Any] = serve(name="f", max_batch_size=4, max_batch_cost=10, cost=price)(echo)
    with LocalClient(handler) as client, pytest.raises(InvalidInput, match="priceless") as caught:
        client.call(5)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_timeout_that_is_no_duration_is_refused(timeout: float) -> None:
    with LocalClient(double) as client:
        with pytest.raises(ValueError, match=r"timeout=.*give seconds"):
            client.call(1, timeout=timeout)
        assert client.call(1) == 2


@pytest.mark.parametrize("priority", [-1, 8, 2.5, "high", None])
def test_a_priority_that_there_is_not_is_refused(priority: Any) -> None:
    with LocalClient(double) as client:
        with pytest.raises(ValueError, match=r"priority=.*from 0 \(first\) to 7"):
            client.call(1, priority=priority)
        assert client.call(1, priority=7) == 2


def test_a_caller_can_ask_for_less_time_and_not_for_more() -> None:
    with LocalClient(serve(name="f", timeout=0.000_001)(echo)) as client, pytest.raises(DeadlineExceeded):
        client.call(1, timeout=60)
    with LocalClient(double) as client, pytest.raises(DeadlineExceeded):
        client.call(1, timeout=0)


# ---------------------------------------------------------------------- several handlers


def test_with_several_handlers_one_is_named() -> None:
    with LocalClient(double, fragile, count) as client:
        assert client.call(2, handler="double") == 4
        assert client.call(2, handler="fragile") == 0.5
        assert list(client.stream(2, handler="count")) == [0, 1]
        assert list(client.map([1, 2], handler="double")) == [2, 4]


@pytest.mark.parametrize("use", ["call", "stream", "map"])
@pytest.mark.parametrize("handler", [None, "triple"])
def test_a_handler_that_is_not_named_or_not_there_is_a_lookup_error_that_lists_them(
    use: str, handler: str | None
) -> None:
    with LocalClient(double, fragile) as client, pytest.raises(LookupError) as caught:
        getattr(client, use)([1], handler=handler)
    assert str(caught.value) == f"handler={handler!r}: name one of double, fragile"


async def test_the_asynchronous_view_lists_the_handlers_too() -> None:
    async with LocalClient(double, fragile) as client:
        with pytest.raises(LookupError, match="name one of double, fragile"):
            await client.call(1)
        for iterator in (client.stream(1), client.map([1])):
            with pytest.raises(LookupError, match="name one of double, fragile"):
                await anext(iterator)


# ---------------------------------------------------------------------- setup


def broken_setup(device: str) -> None:
    raise OSError("no weights")


@serve(setup=broken_setup)
def broken(state: None, x: int) -> int:
    return x


async def broken_async_setup(device: str) -> None:
    raise OSError("no weights")


@serve(setup=broken_async_setup)
async def broken_async(state: None, x: int) -> int:
    return x


@pytest.mark.parametrize("handler", [broken, broken_async])
async def test_a_failing_setup_fails_both_views_and_leaves_no_thread(handler: Handler[..., Any]) -> None:
    before = set(threading.enumerate())
    client = LocalClient(double, handler)
    with pytest.raises(SetupFailed, match=f"setup of handler '{handler.name}' failed: OSError: no weights"), client:
        raise AssertionError("must not open")
    with pytest.raises(RuntimeError, match="not open"):
        client.call(1)
    with pytest.raises(SetupFailed, match="no weights"):
        async with LocalClient(handler):
            raise AssertionError("must not open")
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("tidegate-"):
            thread.join(10)
            assert not thread.is_alive()


def test_after_the_block_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    with LocalClient(double, count) as client:
        client.call(1, handler="double")
        (loop,) = (thread for thread in threading.enumerate() if thread.name == "tidegate-local")
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert not loop.is_alive()


def test_a_function_that_does_not_return_does_not_keep_the_block_from_ending(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = threading.Event(), threading.Event()
    monkeypatch.setattr(service, "TEARDOWN_TIMEOUT", 0.05)

    @serve
    def held(x: int) -> int:
        begun.set()
        assert go.wait(30)
        return x

    failed: list[Any] = []
    with LocalClient(held) as client:
        client._app.drain_timeout = 0.05

        def ask() -> None:
            try:
                client.call(1)
            except Exception as error:  # noqa: BLE001 - what it is is looked at below
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(10)
    asking.join(10)
    assert [type(error).__name__ for error in failed] == ["Closed"]
    assert "handler held still runs a batch at the end of its time" in caplog.text
    assert "left behind" in caplog.text
    go.set()


# ---------------------------------------------------------------------- stream


def test_a_stream_gives_its_chunks_in_order() -> None:
    with LocalClient(count) as client:
        assert list(client.stream(3)) == [0, 1, 2]
        assert list(client.stream(0)) == []


async def test_a_stream_gives_its_chunks_in_order_asynchronously() -> None:
    async with LocalClient(count) as client:
        assert [chunk async for chunk in client.stream(3)] == [0, 1, 2]


def test_a_stream_raises_what_the_generator_raised_after_its_chunks() -> None:
    @serve
    def fails(x: int) -> Iterator[int]:
        yield 1
        raise KeyError("later")

    with LocalClient(fails) as client:
        chunks = client.stream(1)
        assert next(chunks) == 1
        with pytest.raises(HandlerError) as caught:
            next(chunks)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 4}], ids=["unbatched", "batched"])
def test_breaking_out_of_a_stream_closes_the_generator(options: dict[str, Any]) -> None:
    endless = Endless(**options)
    with LocalClient(endless.handler) as client:
        for chunk in client.stream(5):
            assert chunk == 5
            break
        assert endless.closed.wait(10)


async def test_breaking_out_of_a_stream_closes_the_generator_asynchronously() -> None:
    endless = Endless()
    async with LocalClient(endless.handler) as client:
        async for chunk in client.stream(5):
            assert chunk == 5
            break
        assert await anyio.to_thread.run_sync(endless.closed.wait, 10)


def test_a_stream_that_is_still_held_is_closed_with_its_client() -> None:
    endless = Endless()
    with LocalClient(endless.handler) as client:
        chunks = client.stream(5)
        assert next(chunks) == 5
    assert endless.closed.is_set()
    assert list(chunks) == []
    del chunks
    gc.collect()  # nothing is raised by what was left


@pytest.mark.parametrize(("handler", "use"), [(count, "call"), (double, "stream")])
async def test_the_wrong_way_to_ask_is_refused_with_the_right_one(handler: Handler[..., Any], use: str) -> None:
    right = "stream" if use == "call" else "call"
    with LocalClient(handler) as client, pytest.raises(TypeError, match=rf"{right}\(\)"):
        client.call(1) if use == "call" else next(client.stream(1))
    async with LocalClient(handler) as view:
        with pytest.raises(TypeError, match=rf"{right}\(\)"):
            await view.call(1) if use == "call" else await anext(view.stream(1))


# ---------------------------------------------------------------------- map


def test_map_keeps_the_order() -> None:
    with LocalClient(double) as client:
        assert list(client.map(range(1000))) == [2 * n for n in range(1000)]
        assert list(client.map([])) == []


async def test_map_keeps_the_order_asynchronously() -> None:
    async with LocalClient(double) as client:
        assert [output async for output in client.map(range(1000))] == [2 * n for n in range(1000)]
        assert [output async for output in client.map([])] == []


def test_map_keeps_the_order_also_where_answers_come_in_another() -> None:
    @serve(concurrency=4)
    async def slower_first(x: int) -> int:
        for _ in range(100 - x):
            await asyncio.sleep(0)
        return x

    with LocalClient(slower_first) as client:
        assert list(client.map(range(100))) == list(range(100))


def test_map_gives_a_streams_chunks_as_a_list() -> None:
    with LocalClient(count) as client:
        assert list(client.map(range(4))) == [[], [0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("size", [None, 1, 8, 64])
def test_map_takes_a_bounded_number_of_inputs_ahead(size: int | None) -> None:
    gauge = Gauge()
    handler: Handler[..., Any] = serve(name="f", max_batch_size=size)(echo)
    with LocalClient(handler) as client:
        for _ in client.map(gauge.inputs(1000)):
            gauge.answered()
    # Enough for the next batch to be full while one runs.
    assert 2 * (size or 1) <= gauge.most <= max(16, 3 * (size or 1))


async def test_map_takes_a_bounded_number_of_inputs_ahead_asynchronously() -> None:
    gauge = Gauge()
    async with LocalClient(double) as client:
        async for _ in client.map(gauge.inputs(1000)):
            gauge.answered()
    assert 16 <= gauge.most <= 24


def test_map_waits_where_a_call_would_be_refused() -> None:
    gauge = Gauge()
    with LocalClient(serve(max_batch_size=2, max_queue_size=1)(echo)) as client:
        # Two maps at a time: each thinks of its own window only.
        other = client.map(range(100))
        first = next(other)
        outputs = []
        for output in client.map(gauge.inputs(100)):
            gauge.answered()
            outputs.append(output)
        assert outputs == list(range(100))
        assert [first, *other] == list(range(100))
    assert gauge.most == 1


def test_map_has_no_deadline() -> None:
    handler: Handler[..., Any] = serve(name="f", timeout=0.000_001)(echo)
    with LocalClient(handler) as client:
        assert list(client.map(range(3))) == [0, 1, 2]


def test_an_overload_that_the_handler_itself_reports_is_not_waited_for() -> None:
    @serve
    def full(x: int) -> int:
        raise Overloaded("the upstream is full")

    with LocalClient(full) as client, pytest.raises(Overloaded, match="upstream"):
        list(client.map([1]))


def test_map_raises_the_first_error_in_order_and_stops() -> None:
    with LocalClient(fragile) as client:
        outputs = client.map([1, 0, 2, 0])
        assert next(outputs) == 1
        with pytest.raises(HandlerError):
            next(outputs)
        assert list(outputs) == []


def test_map_gives_errors_in_their_places_if_asked_to() -> None:
    with LocalClient(fragile) as client:
        one, error, half = client.map([1, 0, 2], return_exceptions=True)
    assert (one, half) == (1, 0.5)
    assert isinstance(error, HandlerError)
    assert isinstance(error.__cause__, ZeroDivisionError)


async def test_map_gives_errors_in_their_places_asynchronously_or_raises_them() -> None:
    async with LocalClient(fragile) as client:
        one, error, half = [output async for output in client.map([1, 0, 2], return_exceptions=True)]
        assert (one, half) == (1, 0.5)
        assert isinstance(error, HandlerError)
        with pytest.raises(HandlerError):
            [output async for output in client.map([1, 0, 2])]


def test_an_error_of_the_inputs_source_passes_through() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise OSError("the file is gone")

    with LocalClient(double) as client, pytest.raises(OSError, match="the file is gone"):
        list(client.map(inputs()))


def test_inputs_are_taken_in_the_callers_own_thread() -> None:
    threads = set()

    def inputs() -> Iterator[int]:
        for n in range(50):
            threads.add(threading.current_thread())
            yield n

    with LocalClient(double) as client:
        list(client.map(inputs()))
    assert threads == {threading.current_thread()}


def test_one_map_may_feed_another() -> None:
    with LocalClient(double, fragile) as client:
        doubled = client.map(range(1, 50), handler="double")
        assert list(client.map(doubled, handler="fragile")) == [1 / (2 * n) for n in range(1, 50)]


def test_leaving_a_map_early_takes_what_is_not_running_out_of_the_queue() -> None:
    begun, go = threading.Event(), threading.Event()
    seen: list[int] = []

    @serve
    def held(x: int) -> int:
        seen.append(x)
        if x == 1:
            begun.set()
            assert go.wait(10)
        return x

    with LocalClient(held, double) as client:
        outputs = client.map(range(10), handler="held")
        assert next(outputs) == 0
        assert begun.wait(10)
        outputs.close()  # type: ignore[attr-defined]  # what `break` does
        # Behind what was just said in the client's loop.
        assert client.call(1, handler="double") == 2
        go.set()
        assert client.call(10, handler="held") == 10
    assert seen == [0, 1, 10]


async def test_leaving_a_map_early_takes_what_is_not_running_out_of_the_queue_asynchronously() -> None:
    seen: list[int] = []
    begun, go = threading.Event(), threading.Event()

    @serve
    def held(x: int) -> int:
        seen.append(x)
        if x == 1:
            begun.set()
            assert go.wait(10)
        return x

    async with LocalClient(held) as client:
        outputs = client.map(range(10))
        assert await anext(outputs) == 0
        assert await anyio.to_thread.run_sync(begun.wait, 10)
        await outputs.aclose()
        go.set()
        assert await client.call(10) == 10
    assert seen == [0, 1, 10]


def test_an_iterator_that_the_collector_ends_in_the_clients_own_thread_does_not_stop_it() -> None:
    @serve
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    with LocalClient(count) as client:
        chunks = client.stream(10**9)
        assert next(chunks) == 0
        ended = threading.Event()

        async def collect() -> None:
            # As the collector does wherever it happens to run.
            chunks.close()  # type: ignore[attr-defined]
            ended.set()

        client._portal.submit(collect())
        assert ended.wait(10)
        assert list(client.stream(2)) == [0, 1]


def test_calls_that_race_with_the_end_are_answered_or_refused_and_none_hangs() -> None:
    @serve
    def echo(x: int) -> int:
        return x

    ended: list[object] = []

    def ask(client: LocalClient, ready: threading.Barrier) -> None:
        ready.wait(10)
        try:
            for n in range(100):
                client.call(n)
        except (RuntimeError, TidegateError, concurrent.futures.CancelledError) as error:
            ended.append(error)
        else:
            ended.append(None)

    for _ in range(10):
        ready = threading.Barrier(5)
        with LocalClient(echo) as client:
            threads = [threading.Thread(target=ask, args=(client, ready)) for _ in range(4)]
            for thread in threads:
                thread.start()
            ready.wait(10)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert len(ended) == 40

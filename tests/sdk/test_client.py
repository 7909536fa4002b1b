"""The client over real sockets, against the real doors."""

import asyncio
import concurrent.futures
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio.to_thread
import msgspec
import numpy as np
import pytest
import torch
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate import (
    END,
    App,
    DeadlineExceeded,
    Handler,
    HandlerError,
    HTTPError,
    InvalidInput,
    LocalClient,
    Overloaded,
    TidegateError,
    current_batch,
    serve,
)
from tidegate.client import Client
from tidegate.clients.carrier import Disconnected
from tidegate.portal import Portal
from tidegate_transports.http import HTTPTransport
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.websocket import WebSocketTransport

pytestmark = pytest.mark.anyio

Threads = concurrent.futures.ThreadPoolExecutor


@serve(worker="thread", max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(worker="thread", max_batch_size=8)
def square(x: np.ndarray) -> np.ndarray:
    return x**2


@serve(worker="thread")
def fragile(x: int) -> float:
    return 1 / x


@serve(worker="thread")
def count(x: int) -> Iterator[int]:
    yield from range(x)


@serve(worker="thread")
def echo(x: Any) -> Any:
    return x


@serve(worker="thread")
def reverse(x: bytes) -> bytes:
    return x[::-1]


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

        self.handler: Handler[..., Any] = serve(worker="thread", **options)(endless)


class Held:
    """A handler that takes items one by one, notes them and finishes none before it is let go."""

    def __init__(self, **options: Any) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []

        @serve(worker="thread", **options)
        def held(x: int) -> int:
            self.seen.append(x)
            self.begun.set()
            assert self.go.wait(20)
            return x

        self.handler = held


class Served:
    """An app behind both doors."""

    def __init__(self, app: App, http: HTTPTransport, ws: WebSocketTransport) -> None:
        self.app = app
        self._urls: dict[str, HTTPTransport | WebSocketTransport] = {"http": http, "ws": ws}

    def url(self, scheme: str) -> str:
        return self._urls[scheme].url

    def outcomes(self, name: str) -> dict[str, int]:
        return {str(outcome): number for outcome, number in self.app.statistics()[name].outcomes.items()}


@contextmanager
def served(*handlers: Any, options: HTTPOptions | None = None) -> Iterator[Served]:
    """An app on two free ports, in a loop of its own: tests may block theirs."""
    http, ws = HTTPTransport("127.0.0.1:0", options), WebSocketTransport("127.0.0.1:0", options)
    app = App(*handlers, http=http, ws=ws)
    portal = Portal("App", "service")
    portal.open(app)
    try:
        yield Served(app, http, ws)
    finally:
        portal.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the service does on its own, and says to nobody."""
    waiting = threading.Event()
    for _ in range(20_000):
        if condition():
            return
        waiting.wait(0.001)
    raise AssertionError("it did not happen")


@pytest.fixture(params=["http", "ws"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[Threads]:
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        yield threads


@pytest.fixture(scope="module")
def everything() -> Iterator[Served]:
    with served(double, square, fragile, count, echo, reverse) as service:
        yield service


# ---------------------------------------------------------------------- call


def test_with_gives_the_synchronous_view(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client:
        assert [client.call(n, handler="double") for n in range(3)] == [0, 2, 4]


async def test_async_with_gives_the_asynchronous_view(everything: Served, scheme: str) -> None:
    async with Client(everything.url(scheme)) as client:
        answers = await asyncio.gather(*(client.call(n, handler="double") for n in range(3)))
    assert answers == [0, 2, 4]


async def test_both_views_work_while_an_event_loop_is_running(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/double") as client:
        assert client.call(1) == 2
        assert list(client.map([1, 2])) == [2, 4]
        assert list(client.stream(2, handler="count")) == [0, 1]
        async with Client(everything.url(scheme) + "/double") as other:
            assert await other.call(3) == 6


def test_the_address_names_the_usual_handler(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/double") as client:
        assert client.call(4) == 8
        assert client.call(4, handler="fragile") == 0.25


def test_an_apps_only_handler_needs_no_name(scheme: str) -> None:
    with served(double) as service, Client(service.url(scheme)) as client:
        assert client.call(21) == 42


def test_a_client_can_be_opened_again_and_is_open_once_at_a_time(everything: Served, scheme: str) -> None:
    client = Client(everything.url(scheme) + "/double")
    for n in (1, 2):
        with client:
            assert client.call(n) == 2 * n
            with pytest.raises(RuntimeError, match="open already"), client:
                raise AssertionError("must not open")


async def test_the_asynchronous_view_is_open_once_at_a_time(everything: Served) -> None:
    client = Client(everything.url("http") + "/double")
    async with client:
        with pytest.raises(RuntimeError, match="open already"):
            async with client:
                raise AssertionError("must not open")
    async with client as view:
        assert await view.call(1) == 2


@pytest.mark.parametrize("use", ["call", "stream", "map"])
@pytest.mark.parametrize("opened_before", [True, False])
def test_outside_of_its_block_a_client_says_how_it_is_used(use: str, opened_before: bool) -> None:
    client = Client("http://127.0.0.1:1")
    if opened_before:
        with client:
            pass
    with pytest.raises(RuntimeError, match="use it inside `with Client"):
        getattr(client, use)([1])


async def test_outside_of_its_block_the_asynchronous_view_says_so_too() -> None:
    async with Client("http://127.0.0.1:1") as client:
        pass
    with pytest.raises(RuntimeError, match="use it inside `async with Client"):
        await client.call(1)
    with pytest.raises(RuntimeError, match="use it inside `async with Client"):
        await anext(client.map([1]))


def test_many_threads_share_a_client(everything: Served, scheme: str, threads: Threads) -> None:
    with Client(everything.url(scheme) + "/double") as client:
        assert list(threads.map(client.call, range(200))) == [2 * n for n in range(200)]


def test_after_the_block_no_thread_is_left(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/double") as client:
        client.call(1)
        (loop,) = (thread for thread in threading.enumerate() if thread.name == "tidegate-client")
    assert not loop.is_alive()


def test_a_client_shows_its_address_and_no_key() -> None:
    client = Client("http://127.0.0.1:8000/double", api_key="sesame", headers={"X-Secret": "sesame"})
    assert repr(client) == "Client('http://127.0.0.1:8000/double')"


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"max_connections": 0}, {"api_key": ""}, {"headers": {"a": "\n"}}])
def test_what_a_client_cannot_be_told_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Client("http://127.0.0.1:8000", **wrong)


# ---------------------------------------------------------------------- values


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


def test_arrays_go_in_and_out_with_their_dtypes_and_shapes(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client:
        found = client.call(np.array([[1, 2], [3, 4]], "float32"), handler="square")
        assert (found.dtype, found.tolist()) == (np.float32, [[1, 4], [9, 16]])
        found = client.call(torch.tensor([3, 4]), handler="square")
        assert (found.dtype, found.tolist()) == (np.int64, [9, 16])
        found = client.call({"a": [np.arange(2), "text"]}, handler="echo")
        assert (found["a"][0].tolist(), found["a"][1]) == ([0, 1], "text")


def test_large_arrays_go_in_and_out(everything: Served, scheme: str) -> None:
    large = np.random.default_rng(7).random((1500, 1000))
    with Client(everything.url(scheme)) as client:
        assert np.array_equal(client.call(large, handler="square"), large**2)


def test_bytes_go_in_and_out(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client:
        assert client.call(b"\x00abc\xff", handler="reverse") == b"\xffcba\x00"


def test_structs_go_in_and_come_back_as_dicts(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client:
        found = client.call(Point(1.5), handler="echo")
        assert found == {"x": 1.5, "y": 0.0}
        assert msgspec.convert(found, Point) == Point(1.5)


def test_what_cannot_be_sent_is_refused_here_and_the_client_lives_on(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/echo") as client:
        with pytest.raises(InvalidInput, match="the input cannot be written"):
            client.call(object())
        one, error, two = client.map([1, object(), 2], return_exceptions=True)
    assert (one, two) == (1, 2)
    assert isinstance(error, InvalidInput)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.lists(st.integers(0, 9), max_size=3).map(lambda numbers: np.array(numbers, "float32"))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def shown(value: Any) -> Any:
    """Equal for equal values, arrays included."""
    return repr(value)


@pytest.fixture(scope="module")
def three(everything: Served) -> Iterator[list[Any]]:
    with (
        LocalClient(double, square, fragile, count, echo, reverse) as local,
        Client(everything.url("http")) as http,
        Client(everything.url("ws")) as ws,
    ):
        yield [local, http, ws]


@given(VALUES)
def test_a_client_gives_what_a_local_client_gives(three: list[Any], value: Any) -> None:
    local, http, ws = (shown(client.call(value, handler="echo")) for client in three)
    assert local == http == ws


@settings(max_examples=20)
@given(st.lists(st.integers(-3, 3), max_size=10))
def test_maps_and_streams_of_a_client_are_those_of_a_local_client(three: list[Any], numbers: list[int]) -> None:
    def told(output: Any) -> Any:
        return (type(output), output.code, output.status) if isinstance(output, TidegateError) else output

    for name in ("double", "fragile", "count"):
        local, http, ws = (
            [told(output) for output in client.map(numbers, handler=name, return_exceptions=True)] for client in three
        )
        assert local == http == ws
    for number in numbers[:2]:
        local, http, ws = (list(client.stream(number, handler="count")) for client in three)
        assert local == http == ws


# ---------------------------------------------------------------------- errors


def refusing(error: Exception) -> Handler[..., Any]:
    @serve(worker="thread")
    def refuse(x: int) -> int:
        raise error

    return refuse


@pytest.mark.parametrize(
    "error",
    [
        HTTPError(404, "no such speaker"),
        HTTPError(500, "broken"),
        InvalidInput("too long"),
        DeadlineExceeded("upstream"),
    ],
)
def test_an_error_of_the_service_comes_back_as_the_same_class(error: TidegateError, scheme: str) -> None:
    with served(refusing(error)) as service, Client(service.url(scheme)) as client:
        with pytest.raises(type(error)) as caught:
            client.call(1)
        assert (caught.value.status, caught.value.code) == (error.status, error.code)
        assert caught.value.detail == error.detail


def test_an_internal_error_says_by_which_id_the_log_tells_more(
    everything: Served, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(everything.url(scheme)) as client, pytest.raises(HandlerError) as caught:
        client.call(0, handler="fragile")
    assert "ZeroDivisionError" not in caught.value.detail
    assert "internal error" in caught.value.detail
    (record,) = (record for record in caplog.records if "ZeroDivisionError" in record.getMessage())
    words = caught.value.detail.replace(")", "").split()
    assert f"request {words[-1]}:" in record.getMessage()


def test_an_input_of_the_wrong_type_is_refused_with_where_and_why(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client, pytest.raises(InvalidInput, match="Expected `int`, got `str`"):
        client.call("text", handler="double")


def test_a_handler_that_is_not_there_is_an_http_error_that_lists_those_that_are(
    everything: Served, scheme: str
) -> None:
    with Client(everything.url(scheme)) as client:
        for handler in ("triple", None):
            with pytest.raises(HTTPError, match="double") as caught:
                client.call(1, handler=handler)
            assert (caught.value.status, caught.value.code) == (404, "not-found")


@pytest.mark.parametrize(("handler", "use"), [("count", "call"), ("double", "stream")])
async def test_the_wrong_way_to_ask_is_refused_with_the_right_one(
    everything: Served, scheme: str, handler: str, use: str
) -> None:
    right = "stream" if use == "call" else "call"
    message = rf"handler '{handler}' .*{right}\(\)"
    with Client(everything.url(scheme)) as client, pytest.raises(TypeError, match=message):
        client.call(1, handler=handler) if use == "call" else next(client.stream(1, handler=handler))
    async with Client(everything.url(scheme)) as view:
        with pytest.raises(TypeError, match=message):
            await view.call(1, handler=handler) if use == "call" else await anext(view.stream(1, handler=handler))


@pytest.mark.parametrize("use", ["call", "stream"])
@pytest.mark.parametrize("wrong", [{"timeout": -1.0}, {"timeout": float("nan")}, {"priority": 8}, {"priority": None}])
def test_a_timeout_or_priority_that_there_is_not_is_refused(
    everything: Served, use: str, wrong: dict[str, Any]
) -> None:
    with Client(everything.url("http") + "/count") as client, pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        list(getattr(client, use)(1, **wrong))


def test_a_service_that_is_not_there_is_an_error_that_says_so(scheme: str) -> None:
    with Client(f"{scheme}://127.0.0.1:1", retries=1) as client:
        with pytest.raises(Disconnected, match=f"{scheme}://127.0.0.1:1.* cannot be reached") as caught:
            client.call(1)
        assert isinstance(caught.value, ConnectionError)
        assert not caught.value.sent
        # A library's traceback above it would bury the line.
        assert caught.value.__suppress_context__
        assert caught.value.__cause__ is None
        with pytest.raises(Disconnected):
            list(client.stream(1))
        (error,) = client.map([1], return_exceptions=True)
        assert isinstance(error, Disconnected)


def test_a_key_opens_the_door(scheme: str) -> None:
    with served(double, options=HTTPOptions(api_keys=("sesame",))) as service:
        with Client(service.url(scheme), api_key="sesame") as client:
            assert client.call(1) == 2
        with Client(service.url(scheme), headers={"X-API-Key": "sesame"}) as client:
            assert client.call(1) == 2
        with Client(service.url(scheme), api_key="wrong") as client, pytest.raises(HTTPError) as caught:
            client.call(1)
    assert caught.value.status == 401
    assert "wrong" not in caught.value.detail


# ---------------------------------------------------------------------- deadlines and priorities


def test_the_service_knows_how_long_a_caller_waits(scheme: str) -> None:
    @serve(worker="thread", timeout=100)
    def left(x: int) -> float:
        import time

        return current_batch().items[0].deadline - time.monotonic()

    with served(left) as service, Client(service.url(scheme)) as client:
        assert 0 < client.call(1, timeout=5) <= 5
        assert 50 < client.call(1) <= 100
        assert 50 < client.call(1, timeout=float("inf")) <= 100


def test_a_deadline_that_passes_in_the_queue_is_the_services_to_tell(scheme: str, threads: Threads) -> None:
    held = Held()
    with served(held.handler) as service, Client(service.url(scheme)) as client:
        first = threads.submit(client.call, 1)
        assert held.begun.wait(10)
        with pytest.raises(DeadlineExceeded):
            client.call(2, timeout=0.05)
        held.go.set()
        assert first.result(10) == 1
    assert held.seen == [1]
    assert service.outcomes("held").get("deadline-exceeded") == 1


def test_no_time_at_all_is_a_deadline_that_has_passed(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client, pytest.raises(DeadlineExceeded):
        client.call(1, handler="double", timeout=0)


def test_the_urgent_go_first(scheme: str, threads: Threads) -> None:
    held = Held()
    options = HTTPOptions(trust_priority=True)
    with served(held.handler, options=options) as service, Client(service.url(scheme)) as client:
        calls = [threads.submit(client.call, 1)]
        assert held.begun.wait(10)
        for number, priority in ((2, 7), (3, 3), (4, 0)):
            calls.append(threads.submit(client.call, number, priority=priority))
            until(lambda: service.app.statistics()["held"].waiting == len(calls) - 1)
        held.go.set()
        assert [call.result(10) for call in calls] == [1, 2, 3, 4]
    assert held.seen == [1, 4, 3, 2]


# ---------------------------------------------------------------------- cancelling


async def test_a_call_that_is_cancelled_is_cancelled_at_the_service(scheme: str) -> None:
    held = Held()
    with served(held.handler) as service:
        async with Client(service.url(scheme)) as client:
            first = asyncio.create_task(client.call(1))
            assert await anyio.to_thread.run_sync(held.begun.wait, 10)
            second = asyncio.create_task(client.call(2))
            await anyio.to_thread.run_sync(until, lambda: service.app.statistics()["held"].waiting == 1)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            await anyio.to_thread.run_sync(until, lambda: service.outcomes("held").get("cancelled") == 1)
            held.go.set()
            assert await first == 1
    assert held.seen == [1]


def test_ctrl_c_takes_the_request_along(scheme: str, threads: Threads) -> None:
    held = Held()
    with served(held.handler) as service, Client(service.url(scheme)) as client:
        first = threads.submit(client.call, 1)
        assert held.begun.wait(10)

        def interrupt() -> None:
            until(lambda: service.app.statistics()["held"].waiting == 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupting = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.call(2)
        interrupting.result(10)
        until(lambda: service.outcomes("held").get("cancelled") == 1)
        held.go.set()
        assert first.result(10) == 1
    assert held.seen == [1]


async def test_calls_in_flight_when_the_client_ends_are_told_so(scheme: str) -> None:
    held = Held()
    with served(held.handler) as service:
        async with Client(service.url(scheme)) as client:
            calls = [asyncio.create_task(client.call(n)) for n in range(3)]
            assert await anyio.to_thread.run_sync(held.begun.wait, 10)
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, (RuntimeError, TidegateError)), error
        held.go.set()


def test_threads_that_wait_when_the_client_ends_are_told_so(scheme: str, threads: Threads) -> None:
    held = Held()
    with served(held.handler) as service:
        with Client(service.url(scheme)) as client:
            calls = [threads.submit(client.call, n) for n in range(3)]
            assert held.begun.wait(10)
            until(lambda: service.app.statistics()["held"].waiting == 2)
        assert [type(call.exception(10)) for call in calls] == [RuntimeError] * 3
        held.go.set()


# ---------------------------------------------------------------------- stream


def test_a_stream_gives_its_chunks_in_order(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/count") as client:
        assert list(client.stream(3)) == [0, 1, 2]
        assert list(client.stream(0)) == []
        assert list(client.stream(2000)) == list(range(2000))


async def test_a_stream_gives_its_chunks_in_order_asynchronously(everything: Served, scheme: str) -> None:
    async with Client(everything.url(scheme) + "/count") as client:
        assert [chunk async for chunk in client.stream(3)] == [0, 1, 2]


def test_many_streams_and_calls_at_once_each_get_their_own(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client:
        streams = [client.stream(n, handler="count") for n in range(8)]
        found: list[list[int]] = [[] for _ in streams]
        for turn in range(8):
            for number, stream in enumerate(streams):
                found[number] += [chunk for chunk in [next(stream, END)] if chunk is not END]
            assert client.call(turn, handler="double") == 2 * turn
    assert found == [list(range(n)) for n in range(8)]


def test_a_stream_raises_what_the_generator_raised_after_its_chunks(scheme: str) -> None:
    @serve(worker="thread")
    def fails(x: int) -> Iterator[int]:
        if x == 0:
            raise HTTPError(409, "nothing is below zero")
        yield 1
        raise KeyError("later") if x == 1 else Overloaded("the upstream is full")

    with served(fails) as service, Client(service.url(scheme)) as client:
        chunks = client.stream(1)
        assert next(chunks) == 1
        with pytest.raises(HandlerError, match="internal error"):
            next(chunks)
        with pytest.raises(HTTPError, match="below zero") as caught:
            next(client.stream(0))
        assert caught.value.status == 409
        # Nothing is sent again once a chunk has come.
        chunks = client.stream(2)
        assert next(chunks) == 1
        with pytest.raises(Overloaded, match="upstream"):
            next(chunks)
        assert sum(service.outcomes("fails").values()) == 3


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 4}], ids=["unbatched", "batched"])
def test_breaking_out_of_a_stream_closes_the_generator(scheme: str, options: dict[str, Any]) -> None:
    endless = Endless(**options)
    with served(endless.handler) as service, Client(service.url(scheme)) as client:
        for chunk in client.stream(5):
            assert chunk == 5
            break
        assert endless.closed.wait(10)


async def test_breaking_out_of_a_stream_closes_the_generator_asynchronously(scheme: str) -> None:
    endless = Endless()
    with served(endless.handler) as service:
        async with Client(service.url(scheme)) as client:
            async for chunk in client.stream(5):
                assert chunk == 5
                break
            gc.collect()
            assert await anyio.to_thread.run_sync(endless.closed.wait, 10)


def test_a_stream_that_is_still_held_is_closed_with_its_client(scheme: str) -> None:
    endless = Endless()
    with served(endless.handler) as service:
        with Client(service.url(scheme)) as client:
            chunks = client.stream(5)
            assert next(chunks) == 5
        assert endless.closed.wait(10)
        assert list(chunks) == []


def test_cancelling_one_stream_of_a_batch_leaves_the_others(scheme: str, threads: Threads) -> None:
    @serve(worker="thread", max_batch_size=4, batch_timeout=0.5)
    def tokens(x: list[int]) -> Iterator[list[Any]]:
        for n in range(200):
            yield [(one, n) for one in x]
        yield [END for _ in x]

    with served(tokens) as service, Client(service.url(scheme)) as client:

        def read(number: int) -> list[Any]:
            chunks = client.stream(number)
            if number == 2:
                first = [next(chunks)]
                chunks.close()  # type: ignore[attr-defined]
                return first
            return list(chunks)

        found = list(threads.map(read, range(4)))
    assert found[2] == [[2, 0]]
    for number in (0, 1, 3):
        assert found[number] == [[number, n] for n in range(200)]


# ---------------------------------------------------------------------- map


def test_map_keeps_the_order(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/double") as client:
        assert list(client.map(range(1000))) == [2 * n for n in range(1000)]
        assert list(client.map([])) == []


async def test_map_keeps_the_order_asynchronously(everything: Served, scheme: str) -> None:
    async with Client(everything.url(scheme) + "/double") as client:
        assert [output async for output in client.map(range(300))] == [2 * n for n in range(300)]


def test_map_gives_a_streams_chunks_as_a_list(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/count") as client:
        assert list(client.map(range(4))) == [[], [0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("concurrency", [1, 5])
def test_map_takes_a_bounded_number_of_inputs_ahead(everything: Served, scheme: str, concurrency: int) -> None:
    under_way = most = 0

    def inputs() -> Iterator[int]:
        nonlocal under_way, most
        for n in range(100):
            under_way += 1
            most = max(most, under_way)
            yield n

    with Client(everything.url(scheme) + "/double") as client:
        for _ in client.map(inputs(), concurrency=concurrency):
            under_way -= 1
        with pytest.raises(ValueError, match="concurrency=0"):
            client.map([1], concurrency=0)
    assert most == concurrency


def test_map_raises_the_first_error_in_order_or_gives_errors_in_their_places(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme) + "/fragile") as client:
        outputs = client.map([1, 0, 2, 0])
        assert next(outputs) == 1
        with pytest.raises(HandlerError):
            next(outputs)
        assert list(outputs) == []
        one, error, half = client.map([1, 0, 2], return_exceptions=True)
    assert (one, half) == (1, 0.5)
    assert isinstance(error, HandlerError)


def test_one_map_may_feed_another(everything: Served, scheme: str) -> None:
    with Client(everything.url(scheme)) as client:
        doubled = client.map(range(1, 50), handler="double")
        assert list(client.map(doubled, handler="fragile")) == [1 / (2 * n) for n in range(1, 50)]


def test_leaving_a_map_early_takes_what_is_not_running_out_of_the_queue(scheme: str) -> None:
    begun, go = threading.Event(), threading.Event()
    seen: list[int] = []

    @serve(worker="thread")
    def held(x: int) -> int:
        seen.append(x)
        if x == 1:
            begun.set()
            assert go.wait(10)
        return x

    with served(held) as service, Client(service.url(scheme)) as client:
        outputs = client.map(range(10))
        assert next(outputs) == 0
        assert begun.wait(10)
        outputs.close()  # type: ignore[attr-defined]
        until(lambda: service.app.statistics()["held"].waiting == 0)
        go.set()
        assert client.call(10) == 10
    assert len(seen) < 12


# ---------------------------------------------------------------------- refusals


def test_a_refused_call_is_made_again_until_there_is_room(scheme: str, threads: Threads) -> None:
    held = Held(max_queue_size=1)
    with served(held.handler) as service, Client(service.url(scheme), retries=10) as client:
        calls = [threads.submit(client.call, 0)]
        assert held.begun.wait(10)
        calls.append(threads.submit(client.call, 1))
        until(lambda: service.app.statistics()["held"].waiting == 1)
        with Client(service.url(scheme), retries=0) as impatient, pytest.raises(Overloaded) as caught:
            impatient.call(9)
        assert caught.value.retry_after > 0
        calls.append(threads.submit(client.call, 2))
        until(lambda: service.outcomes("held").get("overloaded", 0) >= 2)
        held.go.set()
        assert [call.result(20) for call in calls] == [0, 1, 2]
    assert held.seen == [0, 1, 2]


def test_a_refusal_that_would_outlast_the_callers_time_is_told_at_once(scheme: str, threads: Threads) -> None:
    held = Held(max_queue_size=1)
    with served(held.handler) as service, Client(service.url(scheme), retries=10) as client:
        calls = [threads.submit(client.call, 0)]
        assert held.begun.wait(10)
        calls.append(threads.submit(client.call, 1))
        until(lambda: service.app.statistics()["held"].waiting == 1)
        with pytest.raises(Overloaded):
            client.call(9, timeout=0.5)
        held.go.set()
        assert [call.result(20) for call in calls] == [0, 1]


def test_map_waits_where_a_call_would_be_refused(scheme: str) -> None:
    with (
        served(serve(worker="thread", name="tiny", max_batch_size=1, max_queue_size=1)(lambda x: x)) as service,
        Client(service.url(scheme), retries=0) as client,
    ):
        assert list(client.map(range(12), concurrency=6)) == list(range(12))


# ---------------------------------------------------------------------- TLS, and a service that comes back


def test_tls_is_checked_unless_told_otherwise(scheme: str, tmp_path: Any) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for index, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=index > 0)
    options = HTTPOptions(tls_certificate=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem"))
    with served(double, options=options) as service:
        url = service.url(scheme)
        assert url.startswith(f"{scheme}s://")
        with Client(url, verify=tmp_path / "ca.pem") as client:
            assert client.call(1) == 2
        with Client(url, verify=False) as client:
            assert client.call(1) == 2
        with Client(url, retries=0) as client, pytest.raises(Disconnected, match="certificate verify failed"):
            client.call(1)


def test_a_service_that_comes_back_is_found_again(scheme: str, threads: Threads) -> None:
    with ExitStack() as stack:
        with served(double) as service:
            url = service.url(scheme)
            client = stack.enter_context(Client(url, retries=20))
            assert client.call(1) == 2
        asking = threads.submit(client.call, 2)
        address = url.rpartition("/")[2]
        door = HTTPTransport(address) if scheme == "http" else WebSocketTransport(address)
        portal = Portal("App", "service")
        portal.open(App(double, door=door))
        stack.callback(portal.close)
        assert asking.result(20) == 4


async def test_calls_at_once_share_batches(everything: Served, scheme: str) -> None:
    async with Client(everything.url(scheme) + "/double") as client:
        answers = await asyncio.gather(*(client.call(n) for n in range(200)))
    assert answers == [2 * n for n in range(200)]
    assert max(everything.app.statistics()["double"].batch_sizes) > 1

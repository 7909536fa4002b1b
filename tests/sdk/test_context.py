import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from tidegate import END, App, LocalClient, current_batch, serve
from tidegate.context import BatchContext, RequestInfo

pytestmark = pytest.mark.anyio


def test_outside_of_a_batch_there_is_none() -> None:
    with pytest.raises(LookupError, match="no batch is running here"):
        current_batch()


def test_the_function_and_its_hooks_see_the_batch_they_run_for() -> None:
    seen: dict[str, Any] = {}

    def noted(name: str) -> Any:
        def hook(x: Any) -> Any:
            seen[name] = current_batch().size
            return x

        return hook

    hooks = {name: noted(name) for name in ("decode_request", "batch", "unbatch", "encode_response")}
    handler: Any = serve(name="f", max_batch_size=3, batch_timeout=5.0, **hooks)(noted("function"))
    with LocalClient(handler) as client:
        assert list(client.map([1, 2, 3])) == [1, 2, 3]
    assert seen == dict.fromkeys([*hooks, "function"], 3)


@pytest.mark.parametrize("overlap", [True, False])
def test_setup_warm_up_and_teardown_leave_no_batch_behind(overlap: bool) -> None:
    seen: list[Any] = []

    def look(*_: Any) -> None:
        try:
            seen.append(current_batch())
        except LookupError as error:
            seen.append(type(error))

    def echo(state: None, x: int) -> int:
        look()
        return x

    handler: Any = serve(setup=look, teardown=look, warmup=1, overlap=overlap, decode_request=int)(echo)
    with LocalClient(handler) as client:
        client.call(1)
    assert [one if isinstance(one, type) else one.size for one in seen] == [LookupError, 1, 1, LookupError]


async def test_an_item_tells_its_request_id_headers_and_deadline() -> None:
    @serve(max_batch_size=2, batch_timeout=5.0, forward_headers=("X-Tenant",), timeout=20.0)
    def ask(x: list[int]) -> list[Any]:
        items = current_batch().items
        return [(item.request_id, dict(item.headers), item.deadline, item.cancelled) for item in items]

    async with App(ask) as app:
        before = time.monotonic()
        first, second = await asyncio.gather(
            app.answer("ask", 1, info=RequestInfo("r1", {"x-tenant": "a"}), timeout=10.0), app.answer("ask", 2)
        )
        after = time.monotonic()
    # A deadline comes before an arrival in a batch's order; each still has its own.
    assert first.value[:2] == ("r1", {"x-tenant": "a"})
    assert before + 10 <= first.value[2] <= after + 10
    assert second.value[:2] == ("", {})
    assert before + 20 <= second.value[2] <= after + 20
    assert not first.value[3]


async def test_without_a_timeout_the_deadline_is_infinite() -> None:
    @serve(timeout=None)
    def deadline(x: int) -> float:
        return current_batch().items[0].deadline

    async with App(deadline) as app:
        assert await app.call("deadline", 1) == math.inf


async def test_an_item_turns_cancelled_while_its_batch_runs() -> None:
    begun, go = threading.Event(), threading.Event()
    cancelled: list[list[bool]] = []

    @serve(max_batch_size=2, batch_timeout=5.0)
    def held(x: list[int]) -> list[int]:
        cancelled.append([item.cancelled for item in current_batch().items])
        begun.set()
        assert go.wait(10)
        cancelled.append([item.cancelled for item in current_batch().items])
        return x

    async with App(held) as app:
        stays, leaves = asyncio.ensure_future(app.call("held", 1)), asyncio.ensure_future(app.call("held", 2))
        assert await anyio.to_thread.run_sync(begun.wait, 10)
        leaves.cancel()
        await asyncio.wait([leaves])
        go.set()
        assert await stays == 1
    assert cancelled == [[False, False], [False, True]]


def test_a_function_sees_the_items_that_it_got_and_no_others() -> None:
    # decode_request gives arrays of two shapes, so that one batch is run in two parts; one item fails before that.
    def decode(body: int) -> np.ndarray:
        if body < 0:
            raise ValueError("negative")
        return np.full(1 + body % 2, body)

    @serve(max_batch_size=5, batch_timeout=5.0)
    class Parts:
        def decode_request(self, request: int, context: dict[str, Any]) -> np.ndarray:
            context["body"] = request
            return decode(request)

        def predict(self, x: np.ndarray) -> list[Any]:
            return [(int(row[0]), item.scope["body"]) for row, item in zip(x, current_batch().items, strict=True)]

        def encode_response(self, output: Any) -> Any:
            return (*output, current_batch().size)

    with LocalClient(Parts) as client:
        outputs = list(client.map([0, 1, -1, 2, 3], return_exceptions=True))
    assert [output for output in outputs if isinstance(output, tuple)] == [(n, n, 5) for n in range(4)]


def test_a_streams_generator_sees_its_batch_after_each_chunk() -> None:
    sizes: list[int] = []

    def decode(body: int) -> int:
        if body < 0:
            raise ValueError("negative")
        return body

    @serve(max_batch_size=3, batch_timeout=5.0, decode_request=decode, encode_response=lambda chunk: chunk)
    def count(x: list[int]) -> Iterator[list[int]]:
        for step in range(3):
            sizes.append(current_batch().size)
            yield [n + step for n in x]

    with LocalClient(count) as client:
        outputs = list(client.map([1, -1, 2], return_exceptions=True))
    assert [outputs[0], outputs[2]] == [[1, 2, 3], [2, 3, 4]]
    assert sizes == [2, 2, 2]


async def test_batches_that_run_at_the_same_time_see_their_own() -> None:
    async def load(device: str) -> asyncio.Barrier:
        return asyncio.Barrier(2)

    @serve(concurrency=2, setup=load)
    async def ask(both: asyncio.Barrier, x: str) -> str:
        await both.wait()
        return current_batch().items[0].request_id

    async with App(ask) as app:
        with anyio.fail_after(10):
            answers = await asyncio.gather(
                *(app.answer("ask", name, info=RequestInfo(f"id-{name}")) for name in ("a", "b"))
            )
    assert [answer.value for answer in answers] == ["id-a", "id-b"]


async def test_an_async_stream_sees_its_own_batch() -> None:
    @serve(max_batch_size=2)
    async def count(x: list[int]) -> AsyncIterator[list[Any]]:
        for _ in range(2):
            yield [current_batch().size] * len(x)
        yield [END] * len(x)

    async with LocalClient(count) as client:
        assert [chunk async for chunk in client.stream(1)] == [1, 1]


def test_a_batch_context_has_the_device_and_the_size_of_its_items() -> None:
    batch = BatchContext("cuda:1", [])
    assert (batch.device, batch.size) == ("cuda:1", 0)

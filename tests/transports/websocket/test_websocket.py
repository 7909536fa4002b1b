"""What clients see of the WebSocket, at each of its shells: real sockets, real clients."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio.to_thread
import msgspec
import numpy as np
import pytest

from tidegate import END, App, HTTPError, current_batch, serve
from tidegate_transports.http_options import HTTPOptions

pytestmark = pytest.mark.anyio

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]
Knock = Callable[..., AbstractAsyncContextManager[Any]]


@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(max_batch_size=8, worker="thread")
def square(x: np.ndarray) -> np.ndarray:
    return x**2


@serve(worker="thread")
def size(x: bytes) -> int:
    return len(x)


@serve(max_batch_size=8, worker="thread")
def countdown(starts: list[int]) -> Iterator[list[object]]:
    """Down to one; negative numbers are refused, 13 breaks on the way."""
    if min(starts) < 0:
        raise HTTPError(409, "nothing is below zero")
    for step in range(max(starts) + 1):
        if 13 in starts and step == 2:
            raise RuntimeError("secret")
        yield [start - step if step < start else END for start in starts]


@serve(worker="thread", forward_headers=["X-Tenant"])
def who(x: int) -> dict[str, Any]:
    (item,) = current_batch().items
    return {"id": item.request_id, "headers": dict(item.headers)}


# ---------------------------------------------------------------------- requests and answers


@pytest.mark.parametrize("client", ["websockets", "aiohttp"])
async def test_an_answer_comes_in_the_kind_of_message_of_its_request(
    shell: str, client: str, door: Door, knock: Knock
) -> None:
    async with door(double, countdown, shell=shell) as (_, url), knock(f"{url}/double", client) as talk:
        assert await talk.call(id=1, input=21) == {"id": 1, "output": 42}
        assert [talk.kind] == [str]
        assert await talk.call(binary=True, id="a", input=4) == {"id": "a", "output": 8}
        assert [talk.kind] == [bytes]
        await talk.send(id="b", handler="countdown", input=2)
        got = [await talk.receive() for _ in range(3)]
        assert got == [{"id": "b", "chunk": 2}, {"id": "b", "chunk": 1}, {"id": "b", "end": True}]
        await talk.send(binary=True, id=-5, handler="countdown", input=0)
        assert await talk.receive() == {"id": -5, "end": True}
        assert [talk.kind] == [bytes]


async def test_arrays_travel_raw_in_msgpack_and_as_lists_in_json(shell: str, door: Door, knock: Knock) -> None:
    array = {"dtype": "float32", "shape": [2], "data": np.array([1.5, 2], "float32").tobytes()}
    async with door(square, shell=shell) as (_, url), knock(url) as talk:
        assert await talk.call(id=1, input=[1.5, 2]) == {"id": 1, "output": [2.25, 4.0]}
        answer = await talk.call(binary=True, id=1, input=array)
    assert answer["output"]["dtype"] == "float32"
    assert np.frombuffer(answer["output"]["data"], "float32").tolist() == [2.25, 4.0]


async def test_bytes_travel_as_such_in_msgpack_and_as_base64_in_json(door: Door, knock: Knock) -> None:
    async with door(size) as (_, url), knock(url) as talk:
        assert (await talk.call(binary=True, id=1, input=b"12345"))["output"] == 5
        assert (await talk.call(id=1, input=base64.b64encode(b"1234567").decode()))["output"] == 7
        assert (await talk.call(binary=True, id=1, input="text"))["error"]["status"] == 422


async def test_answers_come_as_they_are_ready_and_not_in_order(shell: str, door: Door, knock: Knock, held: Any) -> None:
    async with door(held.handler, double, shell=shell) as (_, url), knock(f"{url}/held") as talk:
        await talk.send(id=1, input=1)
        await held.has_begun()
        assert await talk.call(id=2, handler="double", input=2) == {"id": 2, "output": 4}
        held.go.set()
        assert await talk.receive() == {"id": 1, "output": 1}


async def test_requests_of_one_connection_share_batches(door: Door, knock: Knock, held: Any) -> None:
    async with door(held.handler) as (app, url), knock(url) as talk:
        for n in range(10):
            await talk.send(id=n, input=n)
        await held.has_begun()
        held.go.set()
        assert sorted([(await talk.receive())["output"] for _ in range(10)]) == list(range(10))
        assert max(app.statistics()["held"].batch_sizes) > 1


async def test_the_path_names_the_usual_handler_and_a_request_may_name_another(
    shell: str, door: Door, knock: Knock
) -> None:
    async with door(double, size, shell=shell) as (_, url):
        async with knock(f"{url}/double") as talk:
            assert (await talk.call(id=1, input=1))["output"] == 2
            assert (await talk.call(id=1, handler="size", input=""))["output"] == 0
        async with knock(f"{url}/") as talk:
            error = (await talk.call(id=1, input=1))["error"]
            assert (error["code"], error["status"]) == ("not-found", 404)
            assert "double, size" in error["message"]
            assert (await talk.call(id=1, handler="double", input=1))["output"] == 2
    async with door(double, shell=shell) as (_, url):
        for path in ("/", "/predict", "/double"):
            async with knock(url + path) as talk:
                assert (await talk.call(id=1, input=1))["output"] == 2


async def test_a_handler_sees_the_handshakes_headers_that_it_asked_for_and_an_id_that_names_the_connection(
    shell: str, door: Door, knock: Knock
) -> None:
    headers = {"X-Tenant": "blue", "X-Other": "no", "X-Request-Id": "conn-7"}
    async with door(who, shell=shell) as (_, url), knock(url, additional_headers=headers) as talk:
        assert talk.raw.response.headers["X-Request-Id"] == "conn-7"
        assert (await talk.call(id=3, input=1))["output"] == {"id": "conn-7/3", "headers": {"x-tenant": "blue"}}


async def test_a_timeout_of_a_request_is_its_own(door: Door, knock: Knock, held: Any) -> None:
    async with door(held.handler) as (_, url), knock(url) as talk:
        await talk.send(id=1, input=1)
        await held.has_begun()
        assert (await talk.call(id=2, input=2, timeout=0.01))["error"]["code"] == "deadline-exceeded"
        held.go.set()
        assert await talk.receive() == {"id": 1, "output": 1}


@pytest.mark.parametrize(("trusted", "order"), [(True, [0, 3, 7]), (False, [3, 0, 7])])
async def test_a_priority_may_only_lower_itself_unless_clients_are_trusted(
    trusted: bool, order: list[int], door: Door, knock: Knock
) -> None:
    ran: list[int] = []
    gate = threading.Event()
    begun = threading.Event()

    @serve(worker="thread", max_batch_size=1)
    def noted(x: list[int]) -> list[int]:
        begun.set()
        assert gate.wait(20)
        ran.extend(x)
        return x

    async with door(noted, options=HTTPOptions(trust_priority=trusted)) as (_, url), knock(url) as talk:
        await talk.send(id="first", input=99)
        assert await anyio.to_thread.run_sync(begun.wait, 20)
        for priority in (7, 3, 0):
            await talk.send(id=priority, input=priority, priority=priority)
        # The last of them has been read when this one is answered.
        assert (await talk.call(id="no", handler="none", input=1))["error"]["status"] == 404
        gate.set()
        for _ in range(4):
            await talk.receive()
    # One batch may have been prepared before the others came.
    assert [n for n in ran if n in order] in (order, [7, *[n for n in order if n != 7]])


# ---------------------------------------------------------------------- what goes wrong


BAD = [
    ("{", None, 400, "malformed-body"),
    ("[1]", None, 400, "malformed-body"),
    ('{"input": 1}', None, 400, "malformed-body"),
    ('{"id": 5}', 5, 400, "malformed-body"),
    ('{"id": 5, "input": 1, "timeout": "soon"}', 5, 400, "malformed-body"),
    ('{"id": 5, "input": 1, "handler": "nobody"}', 5, 404, "not-found"),
    ('{"id": 5, "input": "text"}', 5, 422, "invalid-input"),
    (b"", None, 400, "malformed-body"),
    (b"\xc1", None, 400, "malformed-body"),
    (b'{"id": 5, "input": 1}', None, 400, "malformed-body"),
    (msgspec.msgpack.encode({"id": 5}), 5, 400, "malformed-body"),
    (msgspec.msgpack.encode({"id": 5, "input": "text"}), 5, 422, "invalid-input"),
]


async def test_what_cannot_be_read_is_told_with_its_id_and_the_connection_lives(
    shell: str, door: Door, knock: Knock
) -> None:
    async with door(double, shell=shell) as (_, url), knock(url) as talk:
        for message, id, status, code in BAD:
            await talk.send_raw(message)
            answer = await talk.receive()
            assert talk.kind is type(message)
            assert ("id" in answer, answer.get("id")) == (id is not None, id)
            assert (answer["error"]["status"], answer["error"]["code"]) == (status, code)
            assert answer["error"]["message"]
        assert await talk.call(id=1, input=21) == {"id": 1, "output": 42}


async def test_a_second_request_with_an_id_in_flight_is_refused_and_the_first_goes_on(
    door: Door, knock: Knock, held: Any
) -> None:
    async with door(held.handler) as (_, url), knock(url) as talk:
        await talk.send(id=1, input=10)
        await held.has_begun()
        error = (await talk.call(id=1, input=20))["error"]
        assert (error["status"], error["code"]) == (409, "duplicate-id")
        held.go.set()
        assert await talk.receive() == {"id": 1, "output": 10}
        assert await talk.call(id=1, input=30) == {"id": 1, "output": 30}


async def test_a_failure_tells_nothing_private_and_the_log_has_the_rest_with_the_requests_id(
    shell: str, door: Door, knock: Knock, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"X-Request-Id": "conn-8"}
    async with door(countdown, shell=shell) as (_, url), knock(url, additional_headers=headers) as talk:
        await talk.send(id=1, input=13)
        assert [(await talk.receive())["chunk"] for _ in range(2)] == [13, 12]
        error = (await talk.receive())["error"]
        assert (error["code"], error["status"]) == ("handler-error", 500)
        assert "secret" not in json.dumps(error)
        assert "conn-8/1" in error["message"]
        error = (await talk.call(id=2, input=-1))["error"]
        assert (error["code"], error["status"], error["message"]) == ("handler-refused", 409, "nothing is below zero")
    assert "conn-8/1" in caplog.text
    assert "RuntimeError: secret" in caplog.text


async def test_an_output_that_cannot_be_written_is_a_failure_of_its_own(door: Door, knock: Knock) -> None:
    @serve(worker="thread")
    def odd(x: int) -> Iterator[object]:
        yield float("nan") if x else object()

    async with door(odd) as (_, url), knock(url) as talk:
        for x in (0, 1):
            assert (await talk.call(id=1, input=x))["error"]["code"] == "unencodable-output"
        await talk.send(binary=True, id=1, input=1)
        assert np.isnan((await talk.receive())["chunk"])
        assert await talk.receive() == {"id": 1, "end": True}


async def test_a_refusal_says_when_to_try_again(door: Door, knock: Knock, held: Any) -> None:

    @serve(worker="thread", max_queue_size=1)
    def tight(x: int) -> int:
        held.begun.release()
        assert held.go.wait(20)
        return x

    async with door(tight) as (_, url), knock(url) as talk:
        await talk.send(id=1, input=1)
        await held.has_begun()
        for n in range(2, 10):
            await talk.send(id=n, input=n)
        error = (await talk.receive())["error"]
        assert (error["code"], error["status"]) == ("overloaded", 429)
        assert error["retry_after"] > 0
        held.go.set()


# ---------------------------------------------------------------------- cancels


async def test_a_cancelled_request_ends_once_and_frees_its_place(
    shell: str, door: Door, knock: Knock, held: Any
) -> None:
    async with door(held.handler, shell=shell) as (app, url), knock(url) as talk:
        await talk.send(id=1, input=1)
        await held.has_begun()
        await talk.send(id=1, cancel=True)
        await talk.send(id=1, cancel=True)
        error = (await talk.receive())["error"]
        assert (error["code"], error["status"]) == ("cancelled", 499)
        await talk.send(id="never was", cancel=True)
        held.go.set()
        assert await talk.call(id=1, input=2) == {"id": 1, "output": 2}
        assert app.statistics()["held"].outcomes == {"cancelled": 1, "ok": 1}


async def test_cancelling_one_stream_of_a_batch_of_eight_stops_its_tokens_within_one_step_and_leaves_seven(
    shell: str, door: Door, knock: Knock
) -> None:
    """Each step is let go by the test, and the handler notes for whom it made a token."""
    step = threading.Semaphore(0)
    stepped = threading.Semaphore(0)
    tokens: list[set[int]] = []

    @serve(worker="thread", max_batch_size=8, batch_timeout=60)
    def generate(prompts: list[int]) -> Iterator[list[int]]:
        items = current_batch().items
        for number in range(20):
            assert step.acquire(timeout=20)
            tokens.append({prompt for prompt, item in zip(prompts, items, strict=True) if not item.cancelled})
            yield [1000 * prompt + number for prompt in prompts]
            stepped.release()

    async def go(steps: int) -> None:
        for _ in range(steps):
            step.release()
            assert await anyio.to_thread.run_sync(lambda: stepped.acquire(timeout=20))

    async with door(generate, shell=shell) as (_, url), knock(url) as talk:
        for prompt in range(8):
            await talk.send(id=prompt, input=prompt)
        got: dict[int, list[int]] = {prompt: [] for prompt in range(8)}

        async def read(until: Callable[[dict[str, Any]], bool]) -> None:
            while True:
                message = await talk.receive()
                if "chunk" in message:
                    got[message["id"]].append(message["chunk"])
                if until(message):
                    return

        await go(4)
        while min(map(len, got.values())) < 4:
            await read(lambda _: True)
        await talk.send(id=3, cancel=True)
        await read(lambda message: message.get("error", {}).get("code") == "cancelled" and message["id"] == 3)
        for _ in range(16):
            step.release()
        ended: set[int] = set()
        while len(ended) < 7:
            await read(lambda message: bool(message.get("end")) and not ended.add(message["id"]))  # type: ignore[func-returns-value]
    # The cancel was heard between the fourth step and the fifth: one step at most may have begun before.
    assert [3 in made for made in tokens[:4]] == [True] * 4
    assert not any(3 in made for made in tokens[5:])
    assert all(made >= set(range(8)) - {3} for made in tokens)
    assert got.pop(3) in ([3000, 3001, 3002, 3003], [3000, 3001, 3002, 3003, 3004])
    assert got == {prompt: [1000 * prompt + number for number in range(20)] for prompt in got}


async def test_a_client_that_goes_away_cancels_what_it_asked_for(shell: str, door: Door, knock: Knock) -> None:
    closed = threading.Event()

    @serve(worker="thread")
    def forever(n: int) -> Iterator[int]:
        try:
            while True:
                yield n
        finally:
            closed.set()

    async with door(forever, shell=shell) as (_, url):
        async with knock(url) as talk:
            await talk.send(id=1, input=1)
            await talk.receive()
            talk.raw.transport.abort()
        assert await anyio.to_thread.run_sync(closed.wait, 20)

"""What a connection may take, and how it ends, at each of the shells."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import websockets

from tidegate import App, serve
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.session import Limits

pytestmark = pytest.mark.anyio

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]
Knock = Callable[..., AbstractAsyncContextManager[Any]]


@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


# ---------------------------------------------------------------------- limits


async def test_beyond_the_limit_requests_wait_while_cancels_are_heard_and_none_is_lost(
    shell: str, door: Door, knock: Knock, held: Any
) -> None:
    limits = Limits(max_in_flight=4)
    async with door(held.handler, shell=shell, limits=limits) as (app, url), knock(url) as talk:
        for n in range(20):
            await talk.send(id=n, input=n)
        await talk.send(id=17, cancel=True)
        assert (await talk.receive())["error"]["code"] == "cancelled"
        statistics = app.statistics()["held"]
        assert statistics.submitted <= 4
        await talk.send(id=0, cancel=True)
        message = await talk.receive()
        assert (message["id"], message["error"]["code"]) == (0, "cancelled")
        held.go.set()
        answers = [await talk.receive() for _ in range(18)]
        assert sorted(answer["output"] for answer in answers) == sorted(set(range(20)) - {0, 17})


async def test_when_the_backlog_is_full_reading_stops_and_nothing_is_lost(
    shell: str, door: Door, knock: Knock, held: Any
) -> None:

    @serve(worker="thread", max_batch_size=4, batch_timeout=0)
    def sizes(x: list[str]) -> list[int]:
        held.begun.release()
        assert held.go.wait(30)
        return [len(text) for text in x]

    # Pings would be due all the time, and could not be answered: nothing is read.
    limits = Limits(max_in_flight=4, max_backlog=1 << 16, ping_interval=0.05, ping_timeout=0.05)
    async with door(sizes, shell=shell, limits=limits) as (app, url), knock(url) as talk:
        sent = 0

        async def send() -> None:
            nonlocal sent
            for n in range(300):
                await talk.send(id=n, input="x" * 50_000)
                sent += 1

        sending = asyncio.create_task(send())
        await held.has_begun()
        seen = -1
        while seen != sent:  # until the sockets' buffers are full, too
            seen = sent
            await asyncio.sleep(0.3)
        assert not sending.done()
        assert sum(app.statistics()["sizes"].outcomes.values()) == 0
        held.go.set()
        answers = [await talk.receive() for _ in range(300)]
        await sending
    assert sorted(answer["id"] for answer in answers) == list(range(300))
    assert {answer["output"] for answer in answers} == {50_000}


async def test_a_message_over_the_limit_closes_its_connection_with_1009_and_no_other(
    shell: str, door: Door, knock: Knock
) -> None:
    options = HTTPOptions(max_body=10_000)
    async with (
        door(double, shell=shell, options=options) as (_, url),
        knock(url) as other,
        knock(url) as talk,
    ):
        await talk.send_raw(json.dumps({"id": 1, "input": "x" * 20_000}))
        assert await talk.closed() == 1009
        assert await other.call(id=1, input=1) == {"id": 1, "output": 2}


async def test_text_that_is_no_utf_8_closes_with_1007(shell: str, door: Door, knock: Knock) -> None:
    async with door(double, shell=shell) as (_, url), knock(url) as talk:
        await talk.raw.send(b'{"id": 1, "input": "\xff"}', text=True)
        assert await talk.closed() == 1007


async def test_compression_is_not_taken_up(shell: str, door: Door) -> None:
    async with door(double, shell=shell) as (_, url), websockets.connect(url, compression="deflate") as connection:
        assert connection.response is not None
        assert "Sec-WebSocket-Extensions" not in connection.response.headers


async def test_fragments_make_one_message(shell: str, door: Door, knock: Knock) -> None:
    async with door(double, shell=shell) as (_, url), knock(url) as talk:
        await talk.raw.send(['{"id": 1', ', "inp', 'ut": 2', "1}"])
        assert await talk.receive() == {"id": 1, "output": 42}


# ---------------------------------------------------------------------- the end


async def test_a_drain_finishes_what_is_in_refuses_what_is_new_and_closes_with_1001(
    shell: str, door: Door, knock: Knock, held: Any
) -> None:
    under_way = asyncio.Event()

    async def client(url: str) -> None:
        async with knock(url) as talk, knock(url) as idle:
            await talk.send(id=1, input=1)
            await held.has_begun()
            under_way.set()
            assert await idle.closed() == 1001
            error = (await talk.call(id=2, input=2))["error"]
            assert (error["code"], error["status"]) == ("closed", 503)
            with pytest.raises((OSError, websockets.InvalidStatus)):
                await websockets.connect(url)
            held.go.set()
            assert await talk.receive() == {"id": 1, "output": 1}
            assert await talk.closed() == 1001

    async with door(held.handler, shell=shell) as (_, url):
        talking = asyncio.create_task(client(url))
        await under_way.wait()
    await talking


async def test_a_drain_that_takes_too_long_tells_the_rest_and_closes(
    shell: str, door: Door, knock: Knock, held: Any
) -> None:
    under_way = asyncio.Event()

    async def client(url: str) -> None:
        async with knock(url) as talk:
            await talk.send(id=1, input=1)
            await talk.send(id=2, input=2)
            await held.has_begun()
            under_way.set()
            messages = [await talk.receive() for _ in range(2)]
            assert {message["id"]: message["error"]["code"] for message in messages} == {1: "closed", 2: "closed"}
            assert await talk.closed() == 1001
            held.go.set()

    async with door(held.handler, shell=shell, drain_timeout=0.1, limits=Limits(max_in_flight=1)) as (_, url):
        talking = asyncio.create_task(client(url))
        await under_way.wait()
    await talking


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(shell: str, door: Door, knock: Knock) -> None:
    @serve(worker="thread")
    def much(n: int) -> str:
        return "x" * n

    async with knock_later(knock) as keep:
        async with door(much, shell=shell, drain_timeout=0.2) as (app, url):
            talk = await keep(url, max_queue=1, close_timeout=0.1)
            for n in range(10):
                await talk.send(id=n, input=5_000_000)
            while app.statistics()["much"].outcomes.get("ok", 0) < 10:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.001)
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun < 5


@asynccontextmanager
async def knock_later(knock: Knock) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Opens connections that outlive the door."""
    async with AsyncExitStack() as stack:

        async def keep(url: str, **options: Any) -> Any:
            return await stack.enter_async_context(knock(url, **options))

        yield keep


async def test_a_silent_client_is_given_up(door: Door) -> None:
    limits = Limits(ping_interval=0.05, ping_timeout=0.05)
    async with door(double, limits=limits) as (_, url):
        host, port = url.removeprefix("ws://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                await reader.readexactly(1)
        writer.close()


@pytest.mark.parametrize("shell", ["own-port", "aiohttp"])
async def test_a_client_that_answers_pings_is_kept(shell: str, door: Door, knock: Knock) -> None:
    limits = Limits(ping_interval=0.02, ping_timeout=0.5)
    async with door(double, shell=shell, limits=limits) as (_, url), knock(url) as talk:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await talk.receive_raw()
        assert (await talk.call(id=1, input=1))["output"] == 2


async def test_an_idle_connection_is_closed_with_1000(shell: str, door: Door, knock: Knock) -> None:
    async with door(double, shell=shell, limits=Limits(idle_timeout=0.1)) as (_, url), knock(url) as talk:
        await talk.call(id=1, input=1)
        assert await talk.closed() == 1000
